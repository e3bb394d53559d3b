"""Start a script on several processes: it ends with the script's own words and exit code.

    python scripts/launch.py --nproc-per-node 8 scripts/train_generator.py gpt-b --data runs/codes --out runs/gpt-b
    ACCELERATE_USE_CPU=true python scripts/launch.py --nproc-per-node 2 scripts/extract_codes.py --tokenizer ...
    # on every one of four nodes (scripts/slurm/run.sbatch does so)
    python scripts/launch.py --nnodes 4 --nproc-per-node 8 --rdzv-endpoint node1:29500 --rdzv-id 7 scripts/...

Below lies torch's launcher (python -m torch.distributed.run), which ends with a traceback and code 1 whatever
happened. This one ends as the script did: 0 done, 2 something named on stderr, 75 interrupted (run again). When one
process fails, the others on its machine end within seconds, whatever they wait for. A process that a signal ended from
outside (memory that ran out, say) is 2, too: whether it would happen again is for a person to see. When the launcher
itself is killed, its processes are told to stop, and save (on Linux).
"""
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


@dataclass
class Options:
    "How many processes, and where; then the script and its own options."
    nproc_per_node: int = 1
    "processes on this machine"
    nnodes: int = 1
    "machines"
    rdzv_endpoint: str = ""
    "where they meet, as host:port; empty = this machine"
    rdzv_id: str = "vgnb"
    "the meeting's name, the same on all machines"


def split_at_script(argv: list[str]) -> tuple[list[str], list[str]]:
    "(options of the launch, the script with its own)."
    at = next((i for i, word in enumerate(argv) if word.endswith(".py")), len(argv))
    return argv[:at], argv[at:]


def words_for_torch(o: Options) -> list[str]:
    "The same for torch's launcher."
    alone = ["--standalone"]
    meeting = ["--rdzv_backend", "c10d", "--rdzv_endpoint", o.rdzv_endpoint, "--rdzv_id", o.rdzv_id]
    place = meeting if o.rdzv_endpoint else alone
    time_to_save = os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "3600")      # torch: 30 s from SIGTERM to SIGKILL
    size = ["--nnodes", str(o.nnodes), "--nproc_per_node", str(o.nproc_per_node)]
    return [*place, "--shutdown-timeout", time_to_save, *size]


def ended_with(failures: dict) -> int:
    "The exit code of processes that failed: what is named comes before an interruption."
    killed = tell_killed(failures)
    said = {f.exitcode for f in failures.values() if f.exitcode > 0}
    named = said - {75}
    if named: return 2 if killed or 2 in named else min(named)
    return 2 if killed else 75 if said else 1


def tell_killed(failures: dict) -> bool:
    "Say which processes a signal ended, for they could not, and the others know only that somebody is gone."
    killed = {rank: f.signal_name() for rank, f in sorted(failures.items()) if f.exitcode < 0 and f.pid not in _ENDED}
    why = ", as the system does when memory runs out" if "SIGKILL" in killed.values() else ""
    for rank, name in killed.items():
        words = f"process {rank} was ended by {name}{why}; when that is mended, the same command goes on"
        print(words, file=sys.stderr)
    return bool(killed)


PATIENCE = 5    # seconds that the others have after one failed; torch: 30
_ENDED: set[int] = set()    # processes that this launcher ended itself: no news of theirs


def end_soon():
    """Processes whose fellow failed wait for it where no signal reaches them: end them soon. (Where a signal came from
    outside it is another time: see `words_for_torch`.)"""
    from torch.distributed.elastic.multiprocessing.api import SubprocessContext
    close = SubprocessContext.close

    def close_soon(self, death_sig=None, timeout=PATIENCE):
        processes = [handler.proc for handler in self.subprocess_handlers.values()]
        _ENDED.update(process.pid for process in processes if process.poll() is None)
        return close(self, death_sig, timeout)

    SubprocessContext.close = close_soon


def main(argv: list[str]) -> int:
    from vgnb.core import Missing, check, check_int
    own, work = split_at_script(argv)
    from vgnb.cli import typed_cli
    o = typed_cli(Options, args=own, description=__doc__)
    check(work, "script", None, "is needed: scripts/NAME.py and its options, after those of the launch")
    check(Path(work[0]).is_file(), "script", Path(work[0]), "no such file", Missing)
    for name in ("nproc_per_node", "nnodes"): check_int(name, getattr(o, name), 1)

    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run
    logging.disable(logging.ERROR)                     # what torch has to say of it, in forty lines
    end_soon()
    try: run(parse_args([*words_for_torch(o), *work]))
    except ChildFailedError as e: return ended_with(e.failures)
    except SignalException: return 75                  # passed on to all processes, who have said what they left
    return 0


def said(argv: list[str]) -> int:
    "`main`; what can be explained is one line. (torch's launcher answers signals, so ours must not.)"
    from vgnb.cli import explained
    from vgnb.core import VgnbError
    try: return main(argv)
    except (VgnbError, OSError) as e:
        print(explained(e), file=sys.stderr)
        return 2


if __name__ == "__main__": sys.exit(said(sys.argv[1:]))
