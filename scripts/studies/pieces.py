"""What the studies share: a piece of work whose finding lies in a file, so that it is done once."""
from collections.abc import Callable
from pathlib import Path

def kept(
    path: Path,
    work: Callable[[], dict],
    settings: dict | None = None,   # what the finding rests on, written beside it; None = the file's name says it
    out: Path | None = None,        # the folder of pieces, as the options name it
) -> dict:
    "What a piece of work found; from its file, where it was done before. Errors: it was, with other settings."
    from vgnb.core import Mismatch, check, load_json, save_json
    if path.exists():
        known = load_json(path)
        if settings is None: return known
        allowed = "holds pieces measured with other settings; choose another"
        check(known["settings"] == settings, "out", out, allowed, Mismatch)
        return known["found"]
    found = work()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_json(path, found if settings is None else {"settings": settings, "found": found})
    return found
