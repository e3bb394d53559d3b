"""What a training's seed changes in the tutorial on parts of your own: its generator from several.

    python scripts/studies/own_parts.py                      # train, sample, print
    python scripts/studies/own_parts.py --record             # and write nbs/studies/own_parts.json
    python scripts/studies/own_parts.py --seeds 3 4 --record # others; the file's other rows stay

Parts, training and mixtures are the page's own: the cells of
nbs/tutorials/930_parts_of_your_own.ipynb that define them are run as they stand there. Each seed
trains the generator anew on the same codes; of each mixture of orders and picks 200 samples are
judged. About two minutes a seed on one CPU core; killed at any point, the same command goes on.
"""
import ast
import hashlib
import json
import os
import platform
import sys
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
FILE = ROOT / "nbs" / "studies" / "own_parts.json"
PAGE = ROOT / "nbs" / "tutorials" / "930_parts_of_your_own.ipynb"
DEFINED = {
    "Ripple", "MinP", "Patches", "Neighbours",              # the parts
    "source", "coded", "trained", "how", "mixtures"}        # what is done with them
COUNT = 200     # samples of a mixture, ten classes in turn
SEED = 2        # of the samples; trainings differ, draws don't


@dataclass
class Options:
    "Which trainings, and where."
    seeds: tuple[int, ...] = (0, 1, 2)
    "of the trainings"
    out: Path = Path("runs/own-parts")
    "where codes, runs and finished seeds are kept"
    record: bool = False
    "write nbs/studies/own_parts.json"


# ---- the page's own code

def bound(node: ast.stmt) -> set[str]:
    "The names that a statement of a module defines."
    if isinstance(node, ast.Assign): return {t.id for t in node.targets if isinstance(t, ast.Name)}
    return {node.name} if isinstance(node, (ast.ClassDef, ast.FunctionDef)) else set()


def imports(node: ast.stmt) -> bool: return isinstance(node, (ast.Import, ast.ImportFrom))


def cells(page: Path = PAGE, names: set[str] = DEFINED) -> list[ast.Module]:
    """A page's cells that only import, and those that define one of `names`.

    Errors: BadInput where a name is defined by no cell."""
    from vgnb.core import check
    found, known = [], set()
    for cell in json.loads(page.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code": continue
        tree = ast.parse("".join(cell["source"]))
        here = set().union(*map(bound, tree.body)) & names
        if here or all(map(imports, tree.body)): found.append(tree)
        known |= here
    check(known == names, "names", sorted(names - known), f"must be defined on {page.name}")
    return found


def digest(trees: list[ast.Module]) -> str:
    "Of what cells do: neither imports, comments, line breaks nor words of documentation."
    bare = [node for tree in deepcopy(trees) for node in tree.body if not imports(node)]
    for node in (node for top in bare for node in ast.walk(top)):
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef)): continue
        if ast.get_docstring(node) is not None: node.body[0] = ast.Pass()
    return hashlib.sha256("\n".join(map(ast.unparse, bare)).encode()).hexdigest()[:12]


def room(trees: list[ast.Module]) -> ModuleType:
    "A module that has run these cells; known by its name, as dataclasses ask for it."
    made = sys.modules.setdefault("own_parts_page", ModuleType("own_parts_page"))
    for tree in trees: exec(compile(tree, PAGE.name, "exec"), vars(made))
    return made


# ---- one seed

def found_with(page: ModuleType, place: Path, seed: int) -> dict:
    "{loss, rows} of a training: what share of each mixture's samples is as asked, and by class."
    from vgnb.evaluation.judge import judge_input, load_judge
    from vgnb.pipeline import Pipeline
    tokenizer = page.coded(place / "codes")
    generator, log = page.trained(place / "codes", place / f"seed-{seed}", seed)
    names = page.source.classes
    pipe, (judge, _) = Pipeline(tokenizer, generator, page.how, names), load_judge()
    asked, rows = np.arange(COUNT) % len(names), []
    for mixture, changes in page.mixtures.items():
        images = pipe.sample([names[k] for k in asked], seed=SEED, **changes)
        with torch.no_grad(): hits = judge(judge_input(images)).argmax(1).numpy() == asked
        classes = {name: float(hits[asked == k].mean()) for k, name in enumerate(names)}
        share = float(hits.mean())
        rows.append({"seed": seed, "mixture": mixture, "as_asked": share, "classes": classes})
    return {"loss": log[-1]["loss"], "rows": rows}


def piece(page: ModuleType, o: Options, seed: int, facts: dict) -> dict:
    "As `found_with`; from its file, where it was done before. Errors: it was, with other settings."
    from scripts.studies.pieces import kept
    place = o.out / facts["page"]          # what another text of the page made lies elsewhere
    return kept(place / f"seed-{seed}.json", lambda: found_with(page, place, seed), facts, o.out)


# ---- what is committed

def settings(trees: list[ast.Module]) -> dict:
    "What the numbers rest on."
    from vgnb.evaluation.features import load_extractor
    return {"page": f"{PAGE.stem}@{digest(trees)}", "count": COUNT, "samples_seed": SEED,
            "judge": load_extractor("shapes-judge").id, "torch": torch.__version__}


def record(o: Options, found: dict[int, dict], facts: dict):
    "Put seeds into the committed file. Errors: it holds others, measured with other settings."
    from vgnb.core import Mismatch, check
    study = json.loads(FILE.read_text()) if FILE.exists() else facts | {"losses": {}, "rows": []}
    kept = [row for row in study["rows"] if row["seed"] not in o.seeds]
    message = "holds other seeds measured with other settings; measure all seeds anew"
    check(not kept or {k: study[k] for k in facts} == facts, "record", str(FILE), message, Mismatch)

    rows = kept + [row for seed in o.seeds for row in found[seed]["rows"]]
    rows.sort(key=lambda row: row["seed"])
    seeds = sorted({row["seed"] for row in rows})
    losses = study["losses"] | {str(seed): found[seed]["loss"] for seed in o.seeds}
    words = " ".join(map(str, seeds))
    top = {"command": f"python scripts/studies/own_parts.py --seeds {words} --record",
           "device": f"{platform.processor() or platform.machine()}, one thread"}
    losses = {str(seed): losses[str(seed)] for seed in seeds}
    FILE.write_text(json.dumps(top | facts | {"losses": losses, "rows": rows}, indent=1) + "\n")


def main(o: Options) -> int:
    from vgnb.core import check_ints
    check_ints("seeds", o.seeds, 0)
    torch.set_num_threads(1)
    trees = cells()
    page, facts, found = room(trees), settings(trees), {}
    for seed in o.seeds:
        found[seed] = piece(page, o, seed, facts)
        shares = ", ".join(f"{row['mixture']} {row['as_asked']:.1%}" for row in found[seed]["rows"])
        print(f"seed {seed}: loss {found[seed]['loss']:.3f}; {shares}", flush=True)
    if o.record: record(o, found, facts)
    return 0


if __name__ == "__main__":
    from vgnb.cli import run_main, typed_cli
    sys.exit(run_main(lambda words: main(typed_cli(Options, args=words, description=__doc__))))
