"""Run every parity fixture below DIR and compare with its recorded answers.

    python scripts/check_parity.py DIR [--system llamagen] [--case 'vq*'] [--dump OUT] [--dry-run]

One line a fixture, then `N passed, M failed, K missing`; exit code 0 only when all passed.
"""
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


@dataclass
class Options:
    "Hold vgnb against recorded outputs of the published code."
    folder: tyro.conf.Positional[Path]
    "folder with <system>/<case>.json and .safetensors"
    system: str = "*"
    "only this system (a glob)"
    case: str = "*"
    "only cases whose name matches this glob"
    dump: Path | None = None
    "also write what was computed to DUMP/<system>/<case>.safetensors"
    dry_run: bool = False
    "name the fixtures, compute nothing"


def main(o: Options) -> int:
    from tests.parity.harness import load_adapters, run_case
    if not o.folder.is_dir():
        print(f"folder={o.folder}: no such folder", file=sys.stderr)
        return 2

    fixtures = sorted(o.folder.glob(f"{o.system}/{o.case}.json"))
    if o.dry_run:
        for path in fixtures: print(path.relative_to(o.folder).with_suffix(""))
        print(f"{len(fixtures)} fixtures would be compared")
        return int(not fixtures)

    load_adapters()
    count = Counter()
    for path in fixtures:
        verdict, line = run_case(path, o.dump)
        count[verdict] += 1
        print(line, flush=True)
    print(f"{count['PASS']} passed, {count['FAIL']} failed, {count['MISSING']} missing")
    return int(bool(count["FAIL"] or count["MISSING"] or not count))


if __name__ == "__main__":
    from vgnb.cli import typed_cli
    sys.exit(main(typed_cli(Options, description=__doc__)))
