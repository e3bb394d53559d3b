"""Train a generator on extracted codes.

    python scripts/train_generator.py RECIPE --data CODES --out runs/mine [options]

CODES is a folder that extract_codes.py wrote, or a published layout: llamagen://FOLDER, randar://FOLDER, iar2://FOLDER,
pgm://FOLDER, halton://FOLDER (pgm and halton: ?split=eval). Codebook size, grid and number of classes follow the codes
unless you ask for others. Text-conditional recipes also need --features, a folder that extract_text.py wrote. The run's
folder gets checkpoints/, log.jsonl, run.json, index.html (how it goes, for a browser) and, at the end, model/: what
sample.py reads.

    python scripts/train_generator.py shapes-generator --data runs/shapes-codes --dry-run
    python scripts/train_generator.py gpt-b --data runs/codes/imagenet-256 --out runs/gpt-b --workers 4
    python -m accelerate.commands.launch scripts/train_generator.py gpt-b ...       one process, or as configured
    python scripts/launch.py --nproc-per-node 8 scripts/train_generator.py gpt-b ...

Killed or interrupted, the same command goes on from the last checkpoint.
Exit codes: 0 done, 2 something named on stderr, 75 interrupted (run again).
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main(argv: list[str]) -> int:
    from vgnb.training.commands import parse, train
    options = parse("generator", argv, __doc__)
    return train(options).code if options else 0


if __name__ == "__main__":
    from vgnb.cli import run_main
    sys.exit(run_main(main))
