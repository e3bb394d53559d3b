"""D-AR against its authors' code: pictures from tokens, previews, and tokens, on the same weights.

    python scripts/studies/dar_speed.py --original D-AR            # measure, print
    python scripts/studies/dar_speed.py --original D-AR --record   # and write nbs/studies/dar_speed.json
    python scripts/studies/dar_speed.py --original D-AR --work generate --batches 1 --pairs 3

D-AR is a clone of github.com/showlab/D-AR. Its `decode_code` and `generate` run on a CPU as they are, and are called as
its scripts call them. What is theirs and not in the clone is stood in for: of timm `Mlp`, two linear layers with SiLU
between, and `DropPath`, which drops nothing here; of torchvision a module that is imported and never used. The script
that shows all previews does not run (it imports a name that is gone, and asks for a preview of no steps); its loop is
written here: each preview decoded from the beginning, from the same noise.

Models have the published widths and settings, fewer layers, and weights that our writer wrote under their names. Both
must make the same pictures of the same noise, and greedily the same 64 tokens, else nothing is timed. Then runs take
turns in one process, in fp32 on one thread, and a ratio is that of a pair; its median and quartiles count. Rows of
other work in the file stay. Minutes on one quiet core.
"""
import importlib
import json
import os
import platform
import sys
import time
import types
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
FILE = ROOT / "nbs" / "studies" / "dar_speed.json"
SCALES = "1.2,8.0"           # of guidance, as published for D-AR-L
COUNTED = 64                 # tokens that are compared, and whose operations are counted


@dataclass
class Options:
    "What to measure."
    original: Path
    "a clone of the authors' repository"
    work: tuple[str, ...] = ("decode", "previews", "generate")
    "of these"
    blocks: int = 3
    "of the flow decoder, of v1's width 768; v1 has 12"
    side: int = 128
    "of a decoded picture in pixels"
    layers: int = 2
    "of the generator, of L's width 1024; L has 24"
    batches: tuple[int, ...] = (1, 4)
    "pictures at once; guidance doubles the rows of the generator"
    pairs: int = 3
    "runs of each, in turns"
    record: bool = False
    "write nbs/studies/dar_speed.json"


class Mlp(nn.Module):
    "timm's, as far as it is used: up, SiLU, down."
    def __init__(self, dim: int, hidden: int, act_layer=nn.SiLU, drop: float = 0.0):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, hidden), act_layer(), nn.Linear(hidden, dim)

    def forward(self, x): return self.fc2(self.act(self.fc1(x)))


class DropPath(nn.Identity):
    "timm's, at the rate 0."
    def __init__(self, drop_prob: float = 0.0): super().__init__()


def stand_in(name: str, **content):
    "A module of others, with what is used of it; modules above it, too."
    for end in [i for i, letter in enumerate(name) if letter == "."] + [len(name)]:
        module = sys.modules[name[:end]] = types.ModuleType(name[:end])
    vars(module).update(content)


def originals(folder: Path) -> tuple:
    "The authors' modules: the tokenizer's, the generator's, and the sampler's."
    stand_in("timm.layers.drop", DropPath=DropPath)
    stand_in("timm.layers.mlp", Mlp=Mlp)
    stand_in("torchvision.transforms.functional")
    names = ("tokenizer.tokenizer_image.vq_model", "autoregressive.models.gpt", "autoregressive.models.generate")
    sys.path.insert(0, str(folder))
    try: return tuple(importlib.import_module(name) for name in names)
    finally: sys.path.remove(str(folder))


def awake(model):
    "A model of which every part has a say: what begins at zero is drawn."
    g = torch.Generator().manual_seed(0)
    for p in model.parameters():
        if not p.any(): p.data.normal_(0, 0.02, generator=g)
    return model.eval()


class Decoding:
    "Tokens to pictures, by both."
    def __init__(self, o: Options, original):
        from vgnb.tokenizers.dar_tokenizer import DAR_TOKENIZER, DARTokenizerConfig, dar_tokenizer_spec
        from vgnb.tokenizers.flow_decoder import FlowConfig
        from vgnb.zoo import export_published
        self.side = o.side
        flow = FlowConfig(depth=o.blocks, teacher_layer=o.blocks * 2 // 3)        # v1: before block 8 of 12
        spec = dar_tokenizer_spec(DARTokenizerConfig(flow=flow, layers=1, resolution=o.side))
        self.ours = awake(DAR_TOKENIZER.make(spec)[0])
        self.theirs = original.VQModel(spec).eval()
        self.theirs.load_state_dict(export_published(self.ours), strict=True)
        self.steps = self.ours.plan().steps
        self.size = f"{o.blocks} blocks of {flow.width}, {o.side} px"

    def codes(self, batch: int):
        return torch.randint(16384, (batch, 256), generator=torch.Generator().manual_seed(1))

    def their_picture(self, codes, clip_steps: int | None = None):
        "A picture from the noise of torch's seed 0, after some steps or all."
        torch.manual_seed(0)
        return self.theirs.decode_code(codes, self.side, self.side, clip_steps=clip_steps)

    def their_previews(self, codes):
        return torch.stack([self.their_picture(codes, k + 1) for k in range(self.steps)], 1)

    def same_noise(self, batch: int) -> dict:
        "Their noise as arguments of ours."
        from vgnb.draws import At, Recorded
        torch.manual_seed(0)
        noise = torch.randn(batch, 3, self.side, self.side)
        return {"draws": Recorded({"noise": noise}), "at": At(torch.arange(batch))}

    def decode(self, batch: int) -> dict:
        codes = self.codes(batch)
        return {"ours": partial(self.ours.decode, codes), "theirs": partial(self.their_picture, codes)}

    def previews(self, batch: int) -> dict:
        codes = self.codes(batch)
        return {"ours": partial(self.ours.previews, codes), "theirs": partial(self.their_previews, codes)}

    def alike(self, runs: dict, batch: int) -> tuple[bool, dict]:
        "(whether both make the same pictures of the same noise, the operations of each)."
        (ours, work), (theirs, more) = counted(partial(runs["ours"], **self.same_noise(batch))), counted(runs["theirs"])
        moves = float(theirs.std()) > 0.1
        return moves and torch.allclose(ours, theirs, atol=1e-3), {"gflop_ours": work, "gflop_theirs": more}


class Generating:
    "A class to tokens, by both."
    def __init__(self, o: Options, gpt, code):
        from vgnb.generators.raster import DAR_GPT
        from vgnb.zoo import export_published
        spec = {"n_layer": o.layers, "dim": 1024, "n_head": 16, "vocab_size": 16384, "block_size": 256,
                "num_classes": 1000}
        self.ours, self.code = awake(DAR_GPT.make(spec)[0]), code
        self.theirs = gpt.Transformer(gpt.ModelArgs(**spec)).eval()
        self.theirs.load_state_dict(export_published(self.ours), strict=True)
        self.size = f"{o.layers} layers of {spec['dim']}, 256 tokens"

    def generate(self, batch: int) -> dict:
        labels = torch.arange(batch) * 7
        return {"ours": partial(self.our_codes, labels), "theirs": partial(self.their_codes, labels)}

    def our_codes(self, labels, n: int = 256, greedy: bool = False):
        "Tokens (b, n)."
        from vgnb.draws import Keyed
        from vgnb.generators.generator import Cond, Grid
        from vgnb.sampling.guidance import dar_guidance
        from vgnb.sampling.pick import Pick
        from vgnb.sampling.sampler import Sampler
        sampler = Sampler(self.ours, guidance=dar_guidance(SCALES), picks=(Pick(greedy=greedy),), rows=len(labels))
        return sampler.sample(Cond(labels), torch.arange(len(labels)), Keyed(0), grid=Grid((n,)))[..., 0]

    def their_codes(self, labels, n: int = 256, greedy: bool = False):
        "Tokens (b, n)."
        how = dict(temperature=1.0, top_k=0, top_p=1.0, sample_logits=not greedy)
        return self.code.generate(self.theirs, labels, n, cfg_scale=SCALES, cfg_interval=-1, **how)

    def alike(self, runs: dict, batch: int) -> tuple[bool, dict]:
        "(whether both draw the same first tokens greedily, the operations of each for them)."
        (ours, work), (theirs, more) = (counted(partial(run, n=COUNTED, greedy=True)) for run in runs.values())
        varied = ours.unique().numel() > 10
        return varied and torch.equal(ours, theirs.long()), {"gflop_ours": work, "gflop_theirs": more}


def counted(run) -> tuple:
    "(what a run gives, its multiplications and additions in units of 1e9), oneDNN's products included."
    from torch.utils.flop_counter import FlopCounterMode
    def product(x, weight, *args, **kw) -> int: return 2 * prod(x) * weight[0]
    known = {torch.ops.mkldnn._linear_pointwise: product} if hasattr(torch.ops.mkldnn, "_linear_pointwise") else {}
    with FlopCounterMode(display=False, custom_mapping=known) as counter, torch.no_grad(): made = run()
    return made, round(counter.get_total_flops() / 1e9, 2)


def timed(run) -> tuple[float, float]:
    "Seconds by the clock and of the processor."
    clock, processor = time.perf_counter(), time.process_time()
    with torch.no_grad(): run()
    return time.perf_counter() - clock, time.process_time() - processor


def quartiles(values) -> list[float]:
    "The lower quartile, the median and the upper one."
    q = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    return [round(float(v), 4) for v in torch.tensor(values, dtype=torch.float64).quantile(q)]


def measured(o: Options, both, work: str, batch: int) -> dict:
    "A row: seconds of both, the ratio of pairs, the operations of both. Errors: other results."
    from vgnb.core import Mismatch, check
    runs = getattr(both, work)(batch)
    same, operations = both.alike(runs, batch)
    check(same, "original", o.original, f"makes something else ({work}, batch {batch}): nothing is timed", Mismatch)

    times = [{name: timed(run) for name, run in runs.items()} for _ in range(o.pairs)]
    row = {"work": work, "size": both.size, "batch": batch}
    for k, unit in enumerate(("wall", "cpu")):
        row[f"{unit}_ratio"] = quartiles([pair["theirs"][k] / pair["ours"][k] for pair in times])
        for name in runs: row[f"{unit}_{name}"] = quartiles([pair[name][k] for pair in times])[1]
    return row | {"pairs": o.pairs} | operations


def record(rows: list[dict]):
    "Put the new rows into the committed file. Errors: it holds rows of other settings."
    from vgnb.core import Mismatch, check
    settings = {
        "original": "showlab/D-AR at 3fb0f2d",
        "device": f"{platform.processor() or platform.machine()}, one thread",
        "torch": torch.__version__}
    study = json.loads(FILE.read_text()) if FILE.exists() else settings | {"rows": []}
    def key(row): return Options.work.index(row["work"]), row["size"], row["batch"]
    others = [row for row in study["rows"] if key(row) not in map(key, rows)]
    there = {name: study[name] for name in settings}
    check(not others or there == settings, "record", FILE, f"holds rows of {there}; measure all anew", Mismatch)
    command = {"command": "python scripts/studies/dar_speed.py --original D-AR --record"}
    FILE.write_text(json.dumps(command | settings | {"rows": sorted(others + rows, key=key)}, indent=1) + "\n")


def main(o: Options) -> int:
    from vgnb.core import Missing, check, check_choice, check_int
    for work in o.work: check_choice("work", work, Options.work)
    for name in ("blocks", "layers", "pairs"): check_int(name, getattr(o, name), 1)
    there = (o.original / "autoregressive" / "models" / "generate.py").is_file()
    check(there, "original", o.original, "must be a clone of the authors' repository", Missing)
    torch.set_num_threads(1)
    tokenizer, gpt, code = originals(o.original)
    rows = []
    for work in o.work:
        both = Generating(o, gpt, code) if work == "generate" else Decoding(o, tokenizer)
        for batch in o.batches:
            rows.append(measured(o, both, work, batch))
            print(rows[-1], flush=True)
    if o.record: record(rows)
    return 0


if __name__ == "__main__":
    from vgnb.cli import run_main, typed_cli
    sys.exit(run_main(lambda words: main(typed_cli(Options, args=words, description=__doc__))))
