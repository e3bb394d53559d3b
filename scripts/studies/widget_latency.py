"""How long a hand waits for the widgets: processor time to the first and to the last picture.

    python scripts/studies/widget_latency.py                  # all widgets and shipped models
    python scripts/studies/widget_latency.py --widgets sight  # some of them
    python scripts/studies/widget_latency.py --record       # nbs/studies/widget_latency.json
                                                              # (some: for their old rows)

A control is moved `events` times, each time to a value that it did not have; every picture that
reaches the page is noted with the processor time of the process so far (`time.process_time`),
which other work on the machine does not change. The widgets' own clock, by which they decide when
to show work that is not over, is set to the same time: they do what they do where nothing else
runs. Messages to the page are packed and signed as a kernel does it; what is not measured is
their way through the network and what the browser does with them.

Wanted of the 95th percentile, in milliseconds: a scrub, which only shows what is there, 50; an
order of 32x32 cells 50; a change that samples anew 250 to the first picture, which may be one of
a run that is not over, and 1,000 to the last; a branch 300 to the first. Nine models take some
twenty minutes of one core.
"""
import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import comm
import ipywidgets
import numpy as np
import torch
from comm.base_comm import BaseComm
from jupyter_client.session import Session

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from vgnb.pipeline import Pipeline, from_pretrained
from vgnb.shipped import shipped
from vgnb.views.desk import ReconstructionDesk
from vgnb.views.explorer import OrderChoice, OrderExplorer
from vgnb.views.player import SamplingPlayer

FILE = ROOT / "nbs" / "studies" / "widget_latency.json"
LIMITS = {     # milliseconds to the first and to the last picture
    "scrub": (50, 50), "order": (50, 50), "change": (250, 1000), "branch": (300, 1000)}


@dataclass
class Options:
    "What to measure."
    widgets: tuple[str, ...] = ()
    "some of them; empty: all"
    models: tuple[str, ...] = ()
    "some of the shipped models; empty: all that follow classes"
    events: int = 20
    "of each control"
    record: bool = False
    "write nbs/studies/widget_latency.json"


@dataclass
class Control:
    "A control: what kind of wait it is, the events, and whose pictures count."
    name: str
    kind: str                       # of `LIMITS`
    acts: Iterator[Callable]
    images: Callable = field(default=lambda: None)      # the widgets that count; None = all


PACKER, SEEN = Session(key=b"a key"), []      # SEEN: (image widget, when) of each picture


class PackedComm(BaseComm):
    "Packs and signs each message, and sends it nowhere."
    def publish_msg(self, msg_type, data=None, metadata=None, buffers=None, **keys):
        content = {"data": data or {}, "comm_id": self.comm_id, **keys}
        PACKER.serialize(PACKER.msg(msg_type, content, metadata=metadata))


def watch():
    "From here on pictures are noted and messages packed; all clocks are the processor's."
    def constructed(widget):
        if isinstance(widget, ipywidgets.Image):
            widget.observe(lambda change: SEEN.append((widget, time.process_time())), "value")
    ipywidgets.Widget.on_widget_constructed(constructed)
    comm.create_comm = PackedComm
    time.monotonic = time.process_time


def moved(control, values) -> Iterator[Callable]:
    "Put a control to one value after the other."
    for value in values: yield lambda value=value: setattr(control, "value", value)


def around(values) -> Iterator:
    "One after the other, again and again; the one that a control holds already first comes last."
    values = list(values)
    return itertools.cycle([*values[1:], values[0]]) if len(values) > 1 else iter(())


def options(control) -> list:
    "The values of a chooser, the one that is chosen first."
    values = [value for _, value in control.options]
    at = control.index
    return values[at:] + values[:at]


def sampling(live) -> list[Control]:
    "The controls of one sampler."
    values = {name: around(options(getattr(live, name))) for name in ("label", "order", "schedule")}
    values |= {"seed": itertools.count(1),
               "steps": around([live.steps.value, *range(2, live.steps.max)]),
               "guidance": around(np.linspace(1, 6, 26)),
               "temperature": around(np.linspace(.5, 1.5, 27)),
               "top_k": around(range(1, 60, 2)),
               "top_p": around(np.linspace(.4, .99, 29))}
    controls = {name: getattr(live, name) for name in live.names if name in values}
    return [Control(name, "change", moved(control, values[name]))
            for name, control in controls.items() if not control.disabled]


def play(pipe: Pipeline) -> list[Control]:
    live = pipe.play(0)
    shown = around(range(1, live.shown.max + 1))
    return [Control("shown", "scrub", moved(live.shown, shown)),
            Control("colour", "scrub", moved(live.by, around(live.by.options))), *sampling(live)]


def compare(pipe: Pipeline) -> list[Control]:
    pair = pipe.compare(0, right=dict(temperature=.7))
    left = [c for c in sampling(pair.left) if c.name in ("label", "seed", "temperature")]
    return left


def branch(pipe: Pipeline) -> list[Control]:
    live = pipe.branch(0)
    first = live.tree.now
    early = [int(k) for k in first.when.argsort(stable=True)]

    def forced():
        for cell in itertools.cycle(early[::3]):
            live.tree.go(first)
            live.look(cell)
            code = next(code for code in live._codes if code != int(live.tree.now.codes[cell, 0]))
            yield lambda code=code: live.force(code)

    looks = (lambda cell=cell: live.look(cell) for cell in itertools.cycle(early))
    return [Control("another cell", "change", looks), Control("another code", "branch", forced())]


def race(pipe: Pipeline) -> list[Control]:
    live = pipe.race(0)
    clock = around(range(live.clock.max, -1, -1))
    paces = around([value for _, value in live.pace.options])
    numbers = (f"{k}, {k + 3}" for k in itertools.count(3))
    controls = [Control("clock", "scrub", moved(live.clock, clock)),
                Control("pace", "scrub", moved(live.pace, paces)),
                Control("seed", "change", moved(live.seed, itertools.count(1)))]
    if pipe.sampling.schedule == "one-by-one": return controls
    return [*controls, Control("steps", "change", moved(live.steps, numbers))]


def sight(pipe: Pipeline) -> list[Control]:
    live = pipe.sight(0)
    step = around(range(live.step.value, live.step.max + 1))
    changes = [c for c in (("order", live.order, around(options(live.order))),
                           ("schedule", live.schedule, around(options(live.schedule))),
                           ("steps", live.steps, around([0, *range(2, live.steps.max)])),
                           ("seed", live.seed, itertools.count(1))) if not c[1].disabled]
    return [Control("step", "scrub", moved(live.step, step)),
            *(Control(name, "change", moved(control, values)) for name, control, values in changes)]


def sweep(pipe: Pipeline) -> list[Control]:
    live = pipe.sweep(0)
    place = around(range(live.column.value, 0, -1))

    def opened():
        for at in itertools.cycle(itertools.product(*map(range, live.table.shape))):
            live._closed()
            yield lambda at=at: live.open(at)
        live._closed()

    def beside(): return [live.player.image] if live.player else []
    def column():
        live._closed()
        yield from moved(live.column, place)

    typed = (f"1, 2, 4, {k}" for k in itertools.count(5))
    return [Control("a click", "change", opened(), beside), Control("guidance", "scrub", column()),
            Control("seed", "change", moved(live.seed, itertools.count(1))),
            Control("scales", "change", moved(live.scales, typed))]


def editor(pipe: Pipeline) -> list[Control]:
    live = pipe.editor(0)
    cells = itertools.cycle(range(0, int(np.prod(pipe.grid.shape)), 3))
    marks = (lambda cell=cell: live.touch(cell) for cell in cells)

    def again():
        last = len(live.marked) * 3 // 4
        while True:
            yield lambda: (live.mark(torch.arange(len(live.marked)) >= last), live.again())

    drawn = Control("draw anew", "change", again())
    return [Control("mark", "scrub", marks), drawn]


def player(pipe: Pipeline) -> list[Control]:
    decode = pipe.arriving(0) if pipe.tokenizer.dims == 1 else pipe.tokenizer.decode
    live = SamplingPlayer(pipe.stream([0], seed=0), decode, pipe.grid.shape)
    steps = around(range(live.step.value, live.step.max + 1))
    return [Control("step", "scrub", moved(live.step, steps))]


def desk(pipe: Pipeline) -> list[Control]:
    labels = [k % pipe.generator.classes for k in range(24)]
    live = ReconstructionDesk(pipe.sample(labels, seed=5), pipe.tokenizer)
    return [Control("blend", "scrub", moved(live.share, around(range(50, 100, 2)))),
            Control("image", "change", moved(live.choice, around(range(len(live.choice.options)))))]


def explorer(pipe: Pipeline) -> list[Control]:
    live = OrderExplorer(OrderChoice(height=32, width=32))
    clock = around(range(live.clock.value, live.clock.max))
    orders = around(options(live.left.order))
    return [Control("clock", "scrub", moved(live.clock, clock)),
            Control("order 32x32", "order", moved(live.left.order, orders))]


WIDGETS = {f.__name__: f for f in (
    play, compare, branch, race, sight, sweep, editor, player, desk, explorer)}
ALONE = ("explorer",)     # has no model behind it


def waited(control: Control, events: int) -> dict:
    "A row: percentiles of the first and of the last picture, in milliseconds."
    times = []
    for act in itertools.islice(control.acts, events):
        SEEN.clear()
        began = time.process_time()
        act()
        end, wanted = time.process_time(), control.images()
        pictures = [at for image, at in SEEN if wanted is None or image in wanted]
        if pictures: times.append((1000 * (pictures[0] - began), 1000 * (end - began)))
    if not times: return {}
    share = np.percentile(np.array(times), (50, 95), axis=0)
    (first, last), (first_95, last_95) = (np.round(row, 1).tolist() for row in share)
    wanted = LIMITS[control.kind]
    return {"control": control.name, "kind": control.kind, "events": len(times),
            "first_ms": [first, first_95], "last_ms": [last, last_95],
            "within": bool(first_95 <= wanted[0] and last_95 <= wanted[1])}


def measured(o: Options) -> Iterator[dict]:
    "Row by row."
    for model in o.models or tuple(shipped()):
        pipe = from_pretrained(model)
        if pipe.generator.conditioned_on != "class": continue
        for name in o.widgets or tuple(WIDGETS):
            if name in ALONE and model != (o.models or tuple(shipped()))[0]: continue
            for control in WIDGETS[name](pipe):
                row = waited(control, o.events)
                if row: yield {"widget": name, "model": "" if name in ALONE else model, **row}


def main(o: Options) -> int:
    torch.set_num_threads(1)
    watch()
    rows = []
    for row in measured(o):
        rows.append(row)
        print(json.dumps(row), flush=True)
    if o.record:
        again = {(row["widget"], row["model"]) for row in rows}
        before = json.loads(FILE.read_text())["rows"] if FILE.is_file() else []
        rows = [row for row in before if (row["widget"], row["model"]) not in again] + rows
        rows.sort(key=lambda row: (list(WIDGETS).index(row["widget"]), row["model"]))
        study = {
            "command": "python scripts/studies/widget_latency.py --record",
            "device": f"{platform.processor() or platform.machine()}, one thread",
            "torch": torch.__version__,
            "limits_ms": LIMITS,
            "rows": rows}
        FILE.write_text(json.dumps(study, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    from vgnb.cli import run_main, typed_cli
    sys.exit(run_main(lambda words: main(typed_cli(Options, args=words, description=__doc__))))
