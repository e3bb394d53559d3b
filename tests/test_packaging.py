"What a user installs: all modules and data are in the wheel, its metadata says what we support, the entry points work."
import configparser
import os
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from nbdev.config import get_config
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from vgnb.core import _DEFAULTS

@pytest.fixture(scope="module")
def wheel(root, tmp_path_factory):
    "The wheel of the files that git knows or would take."
    out = tmp_path_factory.mktemp("wheel")
    listing = ["git", "ls-files", "-co", "--exclude-standard", "vgnb", "pyproject.toml", "README.md", "LICENSE"]
    files = subprocess.run(listing, cwd=root, capture_output=True, text=True, check=True).stdout.split()
    for f in files:
        if not (root / f).is_file(): continue
        copy = out / "src" / f
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((root / f).read_bytes())

    options = ["-q", "--no-deps", "--no-build-isolation", "-w", str(out)]
    build = [sys.executable, "-m", "pip", "wheel", *options, str(out / "src")]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(out.glob("vgnb-*.whl"))


def test_wheel_holds_every_module_and_data_file(root, wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    files = [p for p in (root / "vgnb").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    want = {str(p.relative_to(root)) for p in files}
    assert len(want) > 20
    assert want - inside == set()


def test_the_wheel_holds_the_package_and_its_weights_alone(wheel):
    "No tests, notebooks, scripts or measurements; the shipped models with their cards."
    z = zipfile.ZipFile(wheel)
    names = [Path(name) for name in z.namelist()]
    assert {p.parts[0].split("-")[0] for p in names} == {"vgnb"}
    own = [p for p in names if p.parts[0] == "vgnb"]
    assert {p.suffix for p in own} == {".py", ".json", ".safetensors"}
    assert all(p.parts[1] == "weights" for p in own if p.suffix != ".py")
    assert sum(z.getinfo(str(p)).file_size for p in own if p.parts[1:3] == ("weights", "tiny")) <= 22e6


NEEDED = ("torch", "einops", "accelerate", "datasets", "fastcore", "ipywidgets", "matplotlib", "safetensors", "tyro")
NOT_NEEDED = ("nbdev", "torchvision", "transformers", "pytest")


def test_every_pinned_version_goes_with_the_first_release_of_its_python(root):
    "Debian's 3.11 is 3.11.2: a pin that wants 3.11.5 leaves its users with pip's error."
    pins = [Requirement(line) for line in (root / "constraints.txt").read_text().splitlines() if line.strip("# ")
            and not line.startswith("#")]
    strange = []
    for pin in (pin for pin in pins if pin.marker is None or pin.marker.evaluate()):
        wanted = metadata.metadata(pin.name).get("Requires-Python") or ""
        first = f"{sys.version_info[0]}.{sys.version_info[1]}.0"
        if pin.specifier.contains(metadata.version(pin.name)) and not SpecifierSet(wanted).contains(first):
            strange.append(f"{pin}: {wanted}")
    assert pins and not strange


def test_metadata(wheel):
    z = zipfile.ZipFile(wheel)
    text = z.read(next(n for n in z.namelist() if n.endswith("METADATA"))).decode()
    assert "Requires-Python: <3.14,>=3.10" in text
    assert "License-Expression: Apache-2.0" in text
    for version in ("3.10", "3.11", "3.12", "3.13"): assert f"Python :: {version}" in text

    lines = [line for line in text.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    for name in NEEDED: assert any(f" {name}" in line for line in lines), name
    for name in NOT_NEEDED: assert not any(name in line for line in lines), name


IMPORT_ALL = """
import sys
sys.path += {libraries!r}
import importlib, pkgutil, socket

def refuse(*a, **k): raise SystemExit('a connection at import')
socket.socket.connect = refuse

sys.path.insert(0, {place!r})
import vgnb
assert vgnb.__file__.startswith({place!r}), vgnb.__file__
names = [m.name for m in pkgutil.walk_packages(vgnb.__path__, 'vgnb.')]
for name in names: importlib.import_module(name)
bad = {{'torchvision', 'transformers', 'nbdev', 'torch_fidelity', 'pytest'}} & set(sys.modules)
assert not bad, bad
print(len(names))
"""


@pytest.mark.fault("F24")
def test_the_wheel_alone_imports_everything(wheel, tmp_path, figures):
    "Away from the checkout every module imports, without a connection and without torchvision or transformers."
    zipfile.ZipFile(wheel).extractall(tmp_path)
    libraries = [p for p in sys.path if p.endswith("site-packages")]
    code = IMPORT_ALL.format(libraries=libraries, place=str(tmp_path))
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout) > 20
    figures(imported=int(done.stdout), asked=0)


SAMPLE = """
import socket, sys
def refuse(*a, **k): raise SystemExit('a connection')
socket.socket.connect = refuse
import vgnb
assert vgnb.__file__.startswith(sys.prefix), vgnb.__file__
images = vgnb.Pipeline.from_pretrained('tiny-randar')(labels=[3], seed=0)
assert images.shape == (1, 32, 32, 3) and images.std() > 10
print(vgnb.zoo.table())
"""


@pytest.mark.full
def test_the_wheel_in_an_environment_of_its_own_samples_offline(wheel, tmp_path):
    "pip puts it into a new environment; from another folder its one line gives a picture, without a connection."
    place, elsewhere = tmp_path / "environment", tmp_path / "elsewhere"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    python = next(place.glob("[bS]*/python*"))
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    done = subprocess.run([*install, "--disable-pip-version-check", str(wheel)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    packages = next(place.rglob("site-packages"))
    libraries = [p for p in sys.path if p.endswith("site-packages")]
    (packages / "libraries.pth").write_text("\n".join(libraries) + "\n")    # torch and the like, not this checkout
    elsewhere.mkdir()
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "HF_HOME")} | {"HOME": str(tmp_path)}
    how = dict(cwd=elsewhere, env=env, capture_output=True, text=True, timeout=300)
    done = subprocess.run([str(python), "-c", SAMPLE], **how)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "RandAR-XL" in done.stdout and not list(elsewhere.iterdir())


def test_nbdev_is_configured_in_pyproject(root):
    here = os.getcwd()
    try:
        os.chdir(root)
        assert Path(get_config().config_file).name == "pyproject.toml"
    finally: os.chdir(here)


def test_settings_ini_is_ours(root):
    "The sections and keys that the package reads, each explained by a comment above it."
    lines = (root / "settings.ini").read_text().splitlines()
    assert "nbdev" in lines[0]
    ini = configparser.ConfigParser()
    ini.read(root / "settings.ini")
    assert ini.sections() == ["paths", "run", "notebook"]
    assert {name: set(ini[name]) for name in ini.sections()} == {name: set(keys) for name, keys in _DEFAULTS.items()}

    for above, line in zip(lines, lines[1:]):
        is_setting = "=" in line and not line.startswith("#")
        assert not is_setting or above.startswith("#"), f"{line}: has no comment above it"


def test_nbdev_export_command(root):
    assert Path(sys.executable).with_name("nbdev_export").exists()
    code = ("import sys; sys.modules['nbdev'] = sys.modules['nbdev.doclinks'] = None\n"
            "from vgnb._cli import nbdev_export\n"
            "nbdev_export()")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 1
    assert "pip install 'vgnb[dev]'" in done.stderr
