"""Runs many short scripts for the price of one start: a process that has the imports behind it forks a child for each command.

The child runs the script as `__main__` with its own argv, stdout and stderr; what comes back is what `python script.py ...` would give.
Run as a program (`python -m tests.run_scripts warm`) it is that process: one JSON list (folder, script, words) a line in, one JSON object a line out.
"""
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


HEAVY = ("accelerate", "datasets", "transformers", "torchvision", "torch_fidelity", "pandas", "huggingface_hub", "sklearn")


class Ran(NamedTuple):
    "How a script ended."
    code: int
    out: str
    err: str
    loaded: list = []   # which of HEAVY were imported in the end


class Scripts:
    "`scripts('sample.py', '--count', 4)` runs it; close() at the end."
    def __init__(self, cwd: Path, warm: bool = True):   # warm: everything is imported once; else torch and tyro only
        self.cwd = cwd
        env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen([sys.executable, "-m", "tests.run_scripts", "warm" if warm else "cold"], cwd=cwd, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, script: str, *words, cwd: Path | None = None) -> Ran:
        self.process.stdin.write(json.dumps([str(cwd or self.cwd), script, *map(str, words)]) + "\n"); self.process.stdin.flush()
        return Ran(**json.loads(self.process.stdout.readline()))

    def close(self):
        self.process.stdin.close(); self.process.wait(30)


def _script(words: list[str]) -> int:
    "The script's exit code; an error that it let through is printed as Python prints it."
    os.chdir(words[0]); sys.argv = [str(ROOT / "scripts" / words[1]), *words[2:]]
    try: runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as e: return e.code if isinstance(e.code, int) else int(bool(e.code))
    except BaseException: traceback.print_exc(); return 1
    return 0


def _child(words: list[str], files: list):
    "Never returns."
    code = 70
    try:
        for number, f in zip((1, 2), files): os.dup2(f.fileno(), number)
        code = _script(words)
        sys.stdout.flush(); sys.stderr.flush()
        files[2].write(json.dumps([m for m in HEAVY if m in sys.modules])); files[2].flush()
    finally: os._exit(code)


def _serve(warm: bool):
    import torch, tyro  # noqa: paid for once
    if warm:
        import accelerate, datasets  # noqa

        import vgnb.evaluation.judge, vgnb.evaluation.measure, vgnb.jobs, vgnb.training.commands, vgnb.training.extract, vgnb.zoo  # noqa
    torch.set_num_threads(1)
    for line in sys.stdin:
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err, tempfile.TemporaryFile("w+") as loaded:
            pid = os.fork()
            if pid == 0: _child(json.loads(line), [out, err, loaded])
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            for f in (out, err, loaded): f.seek(0)
            print(json.dumps(dict(code=code, out=out.read(), err=err.read(), loaded=json.loads(loaded.read() or "[]"))), flush=True)


if __name__ == "__main__": _serve(sys.argv[1] == "warm")
