"What a user installs: every module and data file is in the wheel, the metadata says what we support, the entry points work."
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

@pytest.fixture(scope="module")
def wheel(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    src = out / "src"
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "vgnb", "pyproject.toml", "README.md", "LICENSE"], cwd=root, capture_output=True, text=True, check=True).stdout.split()
    for f in files:
        if (root / f).is_file(): (src / f).parent.mkdir(parents=True, exist_ok=True); (src / f).write_bytes((root / f).read_bytes())
    r = subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(out), str(src)], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    return next(out.glob("vgnb-*.whl"))


def test_wheel_holds_every_module_and_data_file(root, wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    want = {str(p.relative_to(root)) for p in (root / "vgnb").rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert len(want) > 20 and not want - inside, sorted(want - inside)


def test_metadata(wheel):
    z = zipfile.ZipFile(wheel)
    text = z.read(next(n for n in z.namelist() if n.endswith("METADATA"))).decode()
    assert "Requires-Python: <3.14,>=3.10" in text and "License-Expression: Apache-2.0" in text
    for v in ("3.10", "3.11", "3.12", "3.13"): assert f"Python :: {v}" in text
    core = [l for l in text.splitlines() if l.startswith("Requires-Dist") and "extra ==" not in l]
    for name in ("torch", "einops", "accelerate", "datasets", "ipywidgets", "matplotlib", "safetensors", "tyro"): assert any(f" {name}" in l for l in core), name
    assert not any(n in l for l in core for n in ("nbdev", "fastcore", "torchvision", "transformers", "pytest"))


def test_the_wheel_alone_imports_everything(root, wheel, tmp_path):
    "Unpacked away from the checkout, every module imports, and importing opens no connection and pulls in neither torchvision nor transformers."
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = ("import sys, pkgutil, importlib, socket\n"
            "def refuse(*a, **k): raise SystemExit('a connection at import')\n"
            "socket.socket.connect = refuse\n"
            f"sys.path.insert(0, {str(tmp_path)!r})\n"
            "import vgnb\n"
            f"assert vgnb.__file__.startswith({str(tmp_path)!r}), vgnb.__file__\n"
            "names = [m.name for m in pkgutil.walk_packages(vgnb.__path__, 'vgnb.')]\n"
            "[importlib.import_module(n) for n in names]\n"
            "bad = {'torchvision', 'transformers', 'nbdev', 'torch_fidelity', 'pytest'} & set(sys.modules)\n"
            "assert not bad, bad\n"
            "print(len(names))")
    r = subprocess.run([sys.executable, "-S", "-c", f"import sys; sys.path += {[p for p in sys.path if p.endswith('site-packages')]!r}\n" + code], cwd=tmp_path, capture_output=True, text=True)
    assert r.returncode == 0, r.stdout + r.stderr
    assert int(r.stdout) > 20


def test_nbdev_reads_pyproject_and_settings_ini_is_ours(root):
    import configparser

    from nbdev.config import get_config
    here = os.getcwd()
    try: os.chdir(root); assert Path(get_config().config_file).name == "pyproject.toml"
    finally: os.chdir(here)
    text = (root / "settings.ini").read_text()
    ini = configparser.ConfigParser(); ini.read_string(text)
    assert ini.sections() == ["paths", "run", "notebook"] and "nbdev" in text.splitlines()[0]
    lines = text.splitlines()
    for i, line in enumerate(lines):
        if "=" in line and not line.startswith("#"): assert lines[i - 1].startswith("#"), f"{line}: has no comment above it"
    from vgnb.core import _DEFAULTS
    assert {s: set(ini[s]) for s in ini.sections()} == {s: set(d) for s, d in _DEFAULTS.items()}


def test_nbdev_export_command(root, tmp_path):
    script = Path(sys.executable).with_name("nbdev_export")
    assert script.exists()
    code = "import sys; sys.modules['nbdev'] = sys.modules['nbdev.doclinks'] = None\nfrom vgnb._cli import nbdev_export\nnbdev_export()"
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert r.returncode == 1 and "pip install 'vgnb[dev]'" in r.stderr
