"""Train the judge of the shapes set and write vgnb/weights/shapes-judge.safetensors with its card.

    python scripts/train_judge.py                      # the shipped recipe
    python scripts/train_judge.py --dry-run            # what would be done
    python scripts/train_judge.py --recipe.steps 50 --out /tmp/judge.safetensors

Train it again whenever the pictures of vgnb.data.shapes change. The same recipe gives the same weights on the same
machine; it runs on one thread because sums over several threads may round differently. Exits with 1, writing nothing,
when held-out accuracy stays below --at-least.
"""
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from vgnb.core import as_json, sweep_aside
from vgnb.evaluation.judge import JudgeRecipe, examine, load_judge, save_judge, train_judge
from vgnb.places import check_vacant, locked_file

@dataclass
class Options:
    "Where to write, and the recipe."
    out: Path = ROOT / "vgnb" / "weights" / "shapes-judge.safetensors"
    "the weights; the card is written beside them as .json"
    at_least: float = 0.99
    "accuracy on clean held-out pictures that must be reached"
    held_out: int = 10000
    "how many held-out pictures are examined"
    overwrite: bool = False
    "train again where a judge is finished, and replace it"
    dry_run: bool = False
    "say what would be done and stop"
    recipe: JudgeRecipe = field(default_factory=JudgeRecipe)


def main(argv: list[str]) -> int:
    from vgnb.cli import typed_cli
    o = typed_cli(Options, args=argv, description=__doc__)
    torch.set_num_threads(1)
    print(f"{o.recipe}\n-> {o.out}")
    if o.dry_run: return 0
    with locked_file(o.out):
        for file in (o.out, o.out.with_suffix(".json")): sweep_aside(file.parent, file.name)
        if is_finished(o):
            print("finished already; --overwrite trains it again")
            return 0
        check_vacant(o.out, o.overwrite)
        return train(o)


def is_finished(o: Options) -> bool:
    "Whether a judge of this very recipe lies there."
    if o.overwrite or not o.out.exists(): return False
    _, card = load_judge(o.out)
    return card["recipe"] == as_json(o.recipe)


def train(o: Options) -> int:
    "Train, examine, write."
    start = time.perf_counter()
    def show(step, loss):
        if step % 50 == 0: print(f"step {step:4}  loss {loss:.3f}  {time.perf_counter() - start:.0f} s", flush=True)
    net = train_judge(o.recipe, show)
    seconds = time.perf_counter() - start

    right, sure = examine(net, o.held_out, difficulty=o.recipe.difficulty)
    for kind, accuracy in right.items(): print(f"{kind:16} accuracy {accuracy:.2%}")
    for kind, (mean, share) in sure.items(): print(f"{kind:16} confidence {mean:.2f}, above 0.9: {share:.2%}")
    if right["clean"] < o.at_least:
        print(f"accuracy {right['clean']:.2%} is below --at-least {o.at_least:.2%}; nothing written", file=sys.stderr)
        return 1

    card = save_judge(
        o.out, net, o.recipe,
        command="python scripts/train_judge.py",
        seconds=round(seconds),
        held_out_count=o.held_out,
        held_out_seed=0,
        held_out=right,
        no_shape={kind: dict(confidence=mean, above_09=share) for kind, (mean, share) in sure.items()},
        torch=torch.__version__)
    print(f"{card['bytes']} bytes, {seconds:.0f} s, sha256 {card['sha256'][:16]}")
    return 0


if __name__ == "__main__":
    from vgnb.cli import run_main
    sys.exit(run_main(main))
