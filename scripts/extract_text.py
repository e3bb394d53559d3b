"""Turn captions into text features, once.

    python scripts/extract_text.py --captions data/captions.jsonl --out runs/text-features [--encoder google/flan-t5-xl]

Captions are lines of JSON: {"image_path": ..., "text": [blip, llava, ...]}, in one file or a folder of them. Needs the
extra vgnb[text]; the encoder is a local folder or a name on the hub. The processes of one launch share a store, and
after a kill the same command writes what is missing.

Exit codes: 0 done, 2 something named on stderr.
"""
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


@dataclass
class Options:
    "Which captions, by which encoder."
    captions: Path                     # a .jsonl file, or a folder of them
    out: Path                          # the feature store, made or completed
    encoder: str = "google/flan-t5-xl" # local folder, or a name on the hub
    caption: str = "blip"              # which of a line's captions: blip, llava or llava_first
    first_sentence: bool = False       # cut a caption at its first full stop
    tokens: int = 120                  # slots a caption is cut at and padded to
    dtype: str = "float16"             # of the stored features, or float32
    batch: int = 32                    # captions at once
    shard_size: int = 1024             # captions a file of the store covers
    max_bad: int = 0                   # unreadable lines to leave out before one stops the run
    dry_run: bool = False              # say what would happen, and stop


def main(argv: list[str]) -> int:
    from vgnb.cli import typed_cli
    o = typed_cli(Options, args=argv, description=__doc__)
    from vgnb.core import write_run
    from vgnb.data.text import Captions, TextEncoder
    from vgnb.kinds import to_json
    from vgnb.processes import Processes
    from vgnb.training.extract import extract_text, is_recorded

    captions = Captions(o.captions, caption=o.caption, first_sentence=o.first_sentence)
    processes = Processes()
    if processes.main:
        print(f"{len(captions):,} captions -> at most {o.tokens} features each by {o.encoder}, in {o.out}, "
              f"on {processes.world} process(es)")
    if o.dry_run: return 0

    encoder = TextEncoder(o.encoder, tokens=o.tokens, device=processes.device)
    store = extract_text(encoder, captions, o.out, processes=processes, dtype=o.dtype, batch=o.batch,
                         shard_size=o.shard_size, max_bad=o.max_bad)
    if processes.main and is_recorded(o.out, features=store.fingerprint):
        print(f"finished already: {len(store):,} captions in {o.out}")
    elif processes.main:
        write_run(o.out, to_json(o), seed=0, data=captions.fingerprint, device=processes.device,
                  world=processes.world, features=store.fingerprint)
        print(f"{len(store):,} captions, {store.width} channels")
    return 0


if __name__ == "__main__":
    from vgnb.cli import run_main
    sys.exit(run_main(main))
