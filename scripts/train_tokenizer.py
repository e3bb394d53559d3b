"""Train an image tokenizer.

    python scripts/train_tokenizer.py RECIPE --data IMAGES --out runs/mine [options]

IMAGES is a folder of class folders (or of pictures), a .tar, wds://SHARDS, datasets://NAME?split=train or
shapes://?n=60000&size=32. The run's folder gets checkpoints/, log.jsonl, run.json, index.html (how it goes, for a
browser) and, at the end, model/: what extract_codes.py and sample.py read.

    python scripts/train_tokenizer.py shapes-tokenizer --dry-run
    python scripts/train_tokenizer.py vq-16 --data IMAGENET/train --out runs/vq-16 --workers 8
    python -m accelerate.commands.launch scripts/train_tokenizer.py vq-16 ...       one process, or as configured
    python scripts/launch.py --nproc-per-node 8 scripts/train_tokenizer.py vq-16 ...

Killed or interrupted, the same command goes on from the last checkpoint.
Exit codes: 0 done, 2 something named on stderr, 75 interrupted (run again).
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main(argv: list[str]) -> int:
    from vgnb.training.commands import parse, train
    options = parse("tokenizer", argv, __doc__)
    return train(options).code if options else 0


if __name__ == "__main__":
    from vgnb.cli import run_main
    sys.exit(run_main(main))
