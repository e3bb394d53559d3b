"""Runs many short scripts for the price of one start: a process that has the imports behind it forks a child for each.

The child runs the script as `__main__` with its own argv, stdout and stderr; what comes back is what
`python script.py ...` would give. Run as a program (`python -m tests.run_scripts warm`) it is that process: one JSON
list (folder, script, words) a line in, one JSON object a line out.
"""
import atexit
import contextlib
import functools
import importlib.util
import inspect
import io
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NamedTuple

from tests.offline import stay_here

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("accelerate", "datasets", "transformers", "torchvision", "torch_fidelity", "pandas", "huggingface_hub",
         "sklearn")
COLD = ("torch", "tyro")        # paid for once
PAGES = ("nbdev.test", "execnb.shell", "IPython.core.interactiveshell", "matplotlib.pyplot",
         "matplotlib.backends.backend_agg")
WARM = (*COLD, *PAGES, "torch._dynamo", "accelerate", "datasets", "vgnb.evaluation.judge", "vgnb.evaluation.measure",
        "vgnb.jobs", "vgnb.training.commands", "vgnb.training.extract", "vgnb.zoo")
HELPFUL = (["sample.py"], ["train_tokenizer.py", "vq-16"], ["train_generator.py", "gpt-b"])   # whose options are many


class Ran(NamedTuple):
    "How a script ended."
    code: int
    out: str
    err: str
    loaded: list = []   # which of HEAVY were imported in the end


def main_of(name: str):
    "A script's `main`, of a module of its own; its globals can be replaced."
    path = ROOT / "scripts" / name
    found = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    module = sys.modules[found.name] = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.main


_RUNNING: dict[tuple, subprocess.Popen] = {}     # processes that wait for scripts to run, shared by all who ask


class Scripts:
    "`scripts('sample.py', '--count', 4)` runs it"
    def __init__(self,
        cwd: Path,
        warm: bool = True,      # everything is imported once; else torch and tyro only
        **env: str,             # environment variables on top
    ):
        self.cwd = cwd
        kept = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
        start = cwd if "VGNB_RUN_ROOMS" in {**kept, **env} else ROOT        # where rooms of one's own lie
        env = {**kept, "OMP_NUM_THREADS": "1", "COLUMNS": "80", "PYTHONPATH": str(ROOT), **env}
        key = (warm, str(start), *sorted(env.items()))
        if key not in _RUNNING: _RUNNING[key] = _started("warm" if warm else "cold", start, env)
        self.process = _RUNNING[key]

    def __call__(self, script: str, *words, cwd: Path | None = None) -> Ran:
        self.process.stdin.write(json.dumps([str(cwd or self.cwd), script, *map(str, words)]) + "\n")
        self.process.stdin.flush()
        return Ran(**json.loads(self.process.stdout.readline()))


def _started(mode: str, cwd: Path, env: dict[str, str]) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-m", "tests.run_scripts", mode], cwd=cwd, env=env, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    atexit.register(_end, process)
    return process


def _end(process: subprocess.Popen):
    process.stdin.close()
    process.wait(30)


def _script(folder: str, script: str, *words: str) -> int:
    "The script's exit code; an error that it let through is printed as Python prints it."
    os.chdir(folder)
    sys.argv = [str(ROOT / "scripts" / script), *words]
    try: runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else int(bool(e.code))
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _child(words: list[str], out, err, loaded):
    "Never returns."
    code = 70
    try:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        code = _script(*words)
        sys.stdout.flush()
        sys.stderr.flush()
        loaded.write(json.dumps([m for m in HEAVY if m in sys.modules]))
        loaded.flush()
    finally: os._exit(code)


def _run(words: list[str]) -> dict:
    "Run a script in a fork of this process."
    file = tempfile.TemporaryFile
    with file("w+") as out, file("w+") as err, file("w+") as loaded:
        pid = os.fork()
        if pid == 0: _child(words, out, err, loaded)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        for f in (out, err, loaded): f.seek(0)
        return dict(code=code, out=out.read(), err=err.read(), loaded=json.loads(loaded.read() or "[]"))


def _remember_sources():
    "Every parse of options reads the sources of their classes for the help texts: here, once for all children."
    classes = importlib.import_module("tyro._docstrings")._ClassTokenization
    classes.make = staticmethod(functools.cache(classes.make))
    inspect.getsource = functools.cache(inspect.getsource)
    for words in HELPFUL:
        with contextlib.redirect_stdout(io.StringIO()): _script(str(ROOT), *words, "--help")


def _serve(warm: bool):
    stay_here()
    for name in WARM if warm else COLD: importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)
    if warm: _remember_sources()
    for line in sys.stdin: print(json.dumps(_run(json.loads(line))), flush=True)


if __name__ == "__main__": _serve(sys.argv[1] == "warm")
