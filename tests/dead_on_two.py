"""A run whose second process loses a reader, for tests/test_ends.py: started by the launcher.

    python scripts/launch.py --nproc-per-node 2 tests/dead_on_two.py FOLDER shared|between|deaf

shared: every step tells the others, as on the CPU. between: every tenth does, as on accelerators. deaf: likewise, and
the other process waits in a call that no signal reaches, as one does that waits for an accelerator.
"""
import ctypes
import os
import sys
import time
from multiprocessing import active_children
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import vgnb.training.trainer as trainer_room
from tests.toy_training import RECIPE, Pair, Points
from vgnb.cli import run_main
from vgnb.training.run_folder import Run
from vgnb.training.step import Stepper
from vgnb.training.trainer import Trainer

class Mourning(Stepper):
    "Steps; at step 14 the second process loses a reader."
    folder, how = Path(), ""

    def __call__(self, step, micros):
        second = os.environ["RANK"] == "1"
        if step == 14 and second:
            victim = next(p for p in active_children())
            victim.kill()
            (self.folder / "died").write_text(str(time.time()))
            victim.join()
        try: super().__call__(step, micros)
        except RuntimeError:                     # gloo knows that the other is gone; NCCL would not
            if self.how != "deaf": raise
            while True: ctypes.CDLL(None).pause()                     # a signal ends one call, not the wait


def main(argv: list[str]) -> int:
    Mourning.folder, Mourning.how = Path(argv[0]), argv[1]
    if Mourning.how != "shared": trainer_room._all_hear = lambda session: session.step % 10 == 0
    trainer_room.Stepper = Mourning
    run = Run(save_every=1000, workers=2, progress=False, tracker="none")
    done = Trainer(Pair(slow=0.02), Points(), RECIPE, Mourning.folder / "run", run).fit()
    return done.code


if __name__ == "__main__": sys.exit(run_main(main))
