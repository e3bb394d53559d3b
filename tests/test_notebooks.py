"The notebooks are the source of truth: they run, and exporting or cleaning them changes nothing."
import os
import shutil
import subprocess
import sys
from pathlib import Path

BIN = Path(sys.executable).parent


def _run(*cmd, cwd, timeout=900, **env):
    return subprocess.run([str(BIN / cmd[0]), *cmd[1:]], cwd=cwd, env={**os.environ, "OMP_NUM_THREADS": "1", **env}, capture_output=True, text=True, timeout=timeout)


def _tree(folder: Path) -> dict:
    "Every notebook and module below `folder`, by content."
    return {p.relative_to(folder): p.read_bytes() for d in ("nbs", "vgnb") for p in sorted((folder / d).rglob("*"))
            if p.suffix in (".py", ".ipynb") and ".ipynb_checkpoints" not in p.parts}


def test_clean_and_export_change_nothing(root, tmp_path):
    for d in ("nbs", "vgnb"): shutil.copytree(root / d, tmp_path / d, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "weights", "runs"))
    for f in ("pyproject.toml", "README.md", "settings.ini"): shutil.copy(root / f, tmp_path / f)
    before, project = _tree(tmp_path), (tmp_path / "pyproject.toml").read_bytes()
    for tool in ("nbdev-clean", "nbdev-export"):
        r = _run(tool, cwd=tmp_path)
        assert r.returncode == 0, r.stdout + r.stderr
        after = _tree(tmp_path)
        changed = sorted(str(k) for k in before.keys() | after.keys() if before.get(k) != after.get(k))
        assert not changed, f"{tool} changes {changed}: run nbdev-export and nbdev-clean, then commit"
    assert (tmp_path / "pyproject.toml").read_bytes() == project


def test_notebooks_run(root):
    flags = ["--flags", "slow"] if os.environ.get("VGNB_TEST_FULL") else []
    r = _run("nbdev-test", "--n-workers", "2", *flags, cwd=root, timeout=3000 if flags else 900)
    assert r.returncode == 0, (r.stdout + r.stderr)[-6000:]
