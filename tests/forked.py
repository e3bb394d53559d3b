"Several processes of one run, forked: what `torch.distributed.run` would give, without its start."
import os
import pickle
import socket

from accelerate import PartialState

def on_many(world: int, work) -> list:
    "`work(rank)` in `world` processes of one run: what each returns, the words of its error, or None if it died."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    pipes = [os.pipe() for _ in range(world)]
    pids = []
    for rank in range(world):
        pid = os.fork()
        if pid: pids.append(pid)
        else: _as_rank(rank, world, port, work, pipes[rank][1])
    out = []
    for read, write in pipes:
        os.close(write)
        with os.fdopen(read, "rb") as f: said = f.read()
        out.append(pickle.loads(said) if said else None)
    for pid in pids: os.waitpid(pid, 0)
    return out


def on_two(work) -> list: return on_many(2, work)


def _as_rank(rank: int, world: int, port: int, work, pipe: int):
    "The rest of a forked process; what takes long to import was imported before."
    try:
        both = dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world),
                    MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true")
        if world > 1: os.environ |= both
        PartialState._reset_state()
        try: found = work(rank)
        except Exception as e: found = repr(e)
        with os.fdopen(pipe, "wb") as f: f.write(pickle.dumps(found))
    finally: os._exit(0)
