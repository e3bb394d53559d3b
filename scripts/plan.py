"""What a training run would need: memory of a GPU, operations, days, storage, the order of its data.

    python scripts/plan.py RECIPE --world 64 [options]

RECIPE is one of any kind, a .json file with one (or a run.json), or one of RandAR's .yaml files; its fields are
options. Nothing is trained, and no data or weights are needed: a step is taken on shapes. For each way to share the
work (data parallel, FSDP2, HSDP), with and without recomputed blocks, it says what a GPU holds, and the largest
micro-batch for 40, 80 and 141 GiB. The days follow from a share of the GPUs' peak that is assumed.

    python scripts/plan.py gpt-3b --world 64
    python scripts/plan.py gpt-3b --world 64 --shard 16 --peak h200 --mfu 0.35 --accumulate 2 --json
    python scripts/train_generator.py gpt-3b --dry-run --world 64       the same plan

Exit codes: 0 done, 2 something named on stderr.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main(argv: list[str]) -> int:
    from vgnb.training.commands import parse_plan, show_plan
    options = parse_plan(argv, __doc__)
    if options: show_plan(options)
    return 0


if __name__ == "__main__":
    from vgnb.cli import run_main
    sys.exit(run_main(main))
