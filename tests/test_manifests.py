"""Every published size of every system here has exactly the published entries and shapes.

Each is built on the meta device and exported under its authors' names.
"""
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
from check_manifests import Options, compare, main

MANIFESTS = sorted((Path(__file__).parent / "manifests").glob("*.json"))


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: p.stem)
def test_manifest_is_met(path):
    verdict, why = compare(path)
    assert verdict == "met", why


def test_a_changed_manifest_fails_and_an_unknown_one_is_missing(tmp_path, capsys):
    spec = json.loads((Path(__file__).parent / "manifests/llamagen-vq8.json").read_text())
    changed = spec | {"manifest": spec["manifest"] | {"quant_conv.bias": [9]}}
    unknown = spec | {"config": {"model": "unheard-of"}}
    (tmp_path / "llamagen-a.json").write_text(json.dumps(changed))
    (tmp_path / "llamagen-b.json").write_text(json.dumps(unknown))

    assert main(Options(tmp_path, "llamagen")) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "0 met, 1 failed, 1 missing"
    assert main(Options(tmp_path, "nobody")) == 1
    assert main(Options(tmp_path / "nowhere")) == 2
