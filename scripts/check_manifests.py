"""Hold our models against the state dicts of published ones: same names, same shapes.

    python scripts/check_manifests.py DIR [--system llamagen] [--dry-run]

Every DIR/<system>-<model>.json describes a model in its authors' words (`config`, `upstream_class`) and lists its
entries (`manifest`: name -> shape). Ours is built on the meta device and exported through its name table. Ends
`N met, M failed, K missing`; exit code 0 only when all are met.
"""
import fnmatch
import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


@dataclass
class Options:
    "Where the manifests are."
    folder: tyro.conf.Positional[Path]
    "folder with <system>-<model>.json files"
    system: str = "*"
    "only this system (a glob)"
    dry_run: bool = False
    "name the manifests, build nothing"


def compare(path: Path) -> tuple[str, str]:
    "(met | failed | missing, what to say) for one manifest."
    import torch

    import vgnb.evaluation.features  # noqa: F401  (the network of FID is published, too)
    from vgnb.core import VgnbError
    from vgnb.families import published_model
    spec = json.loads(path.read_text())
    system = path.name.split("-")[0]
    try:
        with torch.device("meta"):
            model, table = published_model(spec["config"], spec.get("upstream_class", ""), system)
    except VgnbError as e:
        return "missing", str(e)

    got = {k: list(v.shape) for k, v in table.export(model.state_dict(), model).items()}
    want = spec["manifest"]
    wrong = sorted(k for k in got.keys() | want.keys() if got.get(k) != want.get(k))
    if not wrong: return "met", f"{len(want)} entries"
    some = ", ".join(f"{k} {got.get(k)} for {want.get(k)}" for k in wrong[:3])
    return "failed", f"{len(wrong)} differ: {some}"


def main(o: Options) -> int:
    if not o.folder.is_dir():
        print(f"folder={o.folder}: no such folder", file=sys.stderr)
        return 2

    asked = sorted(p for p in o.folder.glob("*.json") if fnmatch.fnmatchcase(p.name.split("-")[0], o.system))
    if o.dry_run:
        for path in asked: print(path.stem)
        print(f"{len(asked)} manifests would be compared")
        return int(not asked)

    count = Counter()
    for path in asked:
        verdict, why = compare(path)
        count[verdict] += 1
        print(f"{verdict.upper():7} {path.stem}: {why}", flush=True)
    print(f"{count['met']} met, {count['failed']} failed, {count['missing']} missing")
    return int(bool(count["failed"] or count["missing"] or not count))


if __name__ == "__main__":
    from vgnb.cli import typed_cli
    sys.exit(main(typed_cli(Options, description=__doc__)))
