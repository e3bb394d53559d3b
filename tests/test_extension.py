"""What is new is a new room: parts that a module of its own registers, with no line changed in the house.

Each module below is written into a folder and named by VGNB_RUN_ROOMS; scripts and saved files then know its words.
"""
import json
import sys
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from tests.run_scripts import Scripts
from vgnb import families
from vgnb.core import BadInput, load_json
from vgnb.data.shapes import Shapes
from vgnb.data.transforms import Augment
from vgnb.draws import At, Keyed
from vgnb.evaluation.samples import read_npz
from vgnb.generators import orders
from vgnb.generators.generator import Grid
from vgnb.generators.schedules import even
from vgnb.kinds import from_json, kind_of, kinds, shelves, to_json
from vgnb.pipeline import Pipeline, from_pretrained
from vgnb.sampling.pick import Pick
from vgnb.sampling.settings import Sampling
from vgnb.saved import load_model, save_model
from vgnb.tokenizers.vqgan import vqgan
from vgnb.training.extract import extract_codes
from vgnb.training.recipes import recipe, recipe_table, recipes
from vgnb.views.explorer import OrderExplorer
from vgnb.views.scenes import OrderChoice, order_course

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {}      # name of a module -> its text


class Rooms:
    "Modules in a folder; what they register is forgotten at the end."
    def __init__(self, folder: Path):
        self.folder = folder
        self.tables = [kinds, recipes, families._FAMILIES, *shelves.values()]
        self.before = [dict.copy(table) for table in self.tables]
        for name, text in ROOMS.items(): (folder / f"{name}.py").write_text(textwrap.dedent(text))

    def forget(self):
        for table, was in zip(self.tables, self.before):
            dict.clear(table)
            dict.update(table, was)
        for name in ROOMS: sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A folder with the modules, which is also the current one, and what all tests start from: a tokenizer and codes."
    folder = tmp_path_factory.mktemp("extension")
    rooms = Rooms(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [*sys.path])
        patch.setenv("VGNB_RUN_ROOMS", " ".join(ROOMS))
        torch.manual_seed(0)
        tokenizer = vqgan("tiny-shapes", quantizer=dict(codebook=16), width=16, groups=8).eval()
        save_model("tokenizer", tokenizer, tokenizer.config)
        extract_codes(tokenizer, Shapes(80, 32), Path("codes"), Augment("center", 32), progress=False)
        yield folder
    rooms.forget()


@pytest.fixture(scope="module")
def scripts(place):
    runner = Scripts(place)
    yield runner
    runner.close()


def succeeds(scripts, *words):
    ran = scripts(*words)
    assert ran.code == 0, ran
    return ran


# ---- an order: the anti-diagonals of a grid, each in one step whatever the schedule

ROOMS["diagonals"] = """
    import torch

    from vgnb.generators.orders import ORDERS, Order

    class Diagonals(Order):
        def lines(self, grid): return (torch.arange(grid.shape[0])[:, None] + torch.arange(grid.shape[1])).flatten()
        def fixed(self, grid, draws, at): return self.lines(grid).argsort(stable=True)
        def counts(self, grid, schedule, steps, known):
            ends = self.lines(grid).bincount().cumsum(0).clamp(min=known)
            return [c for c in torch.diff(ends, prepend=torch.tensor([known])).tolist() if c]

    ORDERS["diagonals"] = Diagonals()
    """


def test_an_order_is_ten_lines():
    assert len([line for line in ROOMS["diagonals"].splitlines() if line.strip()]) <= 10


def test_an_order_knows_its_groups(place):
    order, at = orders.ORDERS["diagonals"], At(torch.arange(2))
    plan = order.plan(Grid((3, 5)), None, even, 1, Keyed(0), at)
    assert plan.counts == [1, 2, 3, 3, 3, 2, 1]
    assert plan.perm[1, :6].tolist() == [0, 1, 5, 2, 6, 10]

    known = torch.zeros(2, 15, dtype=torch.bool)
    known[:, [0, 1]] = True
    plan = order.plan(Grid((3, 5)), known, even, 1, Keyed(0), at)
    assert plan.counts == [1, 3, 3, 3, 2, 1]
    assert plan.known == 2


def test_an_order_is_a_setting(place):
    s = Sampling(order="diagonals", steps=3)
    text = json.dumps(to_json(s))
    assert '"kind": "order.diagonals"' in text
    assert from_json(json.loads(text), Sampling) == s
    with pytest.raises(BadInput, match="did you mean diagonals"): Sampling(order="diagonal")


def test_an_order_samples_at_once(place):
    pipe = from_pretrained("tiny-maskgit")
    steps = list(pipe.stream(["heart", "star"], order="diagonals"))
    assert [s.positions.shape[1] for s in steps] == [*range(1, 9), *range(7, 0, -1)]
    for k, s in enumerate(steps): assert (s.positions // 8 + s.positions % 8 == k).all()


def test_an_order_is_an_option(place, scripts):
    succeeds(scripts, "sample.py", "tiny-maskgit", "--order", "diagonals", "--count", 3, "--out", "diagonals.npz")
    made = read_npz(place / "diagonals.npz", "arr_0")
    pipe = from_pretrained("tiny-maskgit")
    assert (made == pipe.sample([0, 1, 2], order="diagonals")).all()
    record = load_json(place / "diagonals.run.json")
    assert record["sampler"]["order"] == {"kind": "order.diagonals"}


def test_an_order_can_be_looked_at(place):
    course = order_course(OrderChoice("diagonals", "even", height=4, width=6, steps=3))
    assert course.total == 9
    explorer = OrderExplorer(OrderChoice("halton", height=4, width=6))
    explorer.left.order.value = "diagonals"
    assert explorer.left.error is None
    assert explorer.clock.max == 9


# ---- a generator: a table of logits, with a configuration and a recipe of its own

ROOMS["lookup"] = '''
    from dataclasses import dataclass
    from math import prod

    import torch
    from torch import nn

    from vgnb.core import check
    from vgnb.families import Family, register
    from vgnb.generators.generator import Generator, Grid, Prediction, check_canvas, check_classes, cross_entropy
    from vgnb.layers import null_class
    from vgnb.training.recipes import GeneratorRecipe, Optim, recipes


    @dataclass(frozen=True)
    class TableConfig:
        "What decides a table."
        vocab: int = 16                        # codebook size
        grid: tuple[int, ...] = (4, 4)         # cells (h, w)
        classes: int = 10                      # that labels name
        class_dropout: float = 0.1             # for guidance


    class Table(Generator):
        "Logits of each cell by class and place, whatever the other cells are."
        traits = frozenset({"any_order"})

        def __init__(self, config, seed=0):
            super().__init__()
            self.config, self.vocab = config, (config.vocab,)
            self.table = nn.Parameter(torch.zeros(config.classes + 1, prod(config.grid), config.vocab))

        def null(self, cond): return null_class(cond, self.classes)

        def check_cond(self, cond): check_classes(cond, self.classes, self.classes + 1)

        def check_grid(self, grid): check(grid.shape == self.grid, "grid", grid.shape, f"must be {self.grid}")

        def forward(self, codes, cond, draws, at, valid=None):
            codes = check_canvas(codes, cond, self.vocab, Grid(self.grid))
            dropped = draws.uniform("class_drop", at) < self.config.class_dropout
            labels = torch.where(dropped, self.classes, cond.labels)
            return cross_entropy(self.table[labels], codes[..., 0], valid)

        def predict(self, state, positions, given=None, *, live, independent=False):
            rows = torch.arange(state.b)[:, None]
            return Prediction(torch.stack([self.table[c.labels][rows, positions] for c in state.cond[:live]]).float())


    register(Family("lookup-table", TableConfig, Table, role="generator"))


    @recipes.register
    def shapes_table() -> GeneratorRecipe:
        """A table of logits on *shapes*.

        Command: python scripts/train_generator.py shapes-table --data CODES --out runs/shapes-table"""
        return GeneratorRecipe(TableConfig(), optim=Optim(lr=0.3), steps=20, batch=40, precision="fp32")
    '''
HOW = dict(order="halton", schedule="cosine", steps=4, guidance=2.0, rows=3)


@pytest.fixture(scope="module")
def trained(place, scripts) -> Path:
    "The run of a table, trained by the script."
    succeeds(scripts, "train_generator.py", "shapes-table", "--data", "codes", "--out", "table", "--log-every", 1)
    return place / "table"


@pytest.fixture(scope="module")
def pipe(place, trained) -> Pipeline:
    return Pipeline(load_model(place / "tokenizer"), load_model(trained / "model"), Sampling(**HOW), Shapes.classes)


def test_a_generator_is_trained_by_the_script(trained):
    log = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < log[0]["loss"] - 0.5
    card = load_json(trained / "model" / "config.json")
    assert card["config"] == {"kind": "lookup-table", "vocab": 16, "grid": [4, 4], "classes": 10, "class_dropout": 0.1}
    assert card["classes"] == Shapes.classes


def test_a_generator_is_sampled(pipe):
    steps = list(pipe.stream([3, 4, 5]))
    cells = torch.cat([s.positions for s in steps], 1)
    assert torch.equal(cells.sort(1).values, torch.arange(16).expand(3, -1))
    assert torch.equal(cells[0], orders.ORDERS["halton"].permutation(Grid((4, 4)), None, None, At(torch.arange(1)))[0])

    table = pipe.generator.table
    guided = table[-1] + 2 * (table[[3, 4, 5]] - table[-1])
    assert torch.equal(pipe.codes([3, 4, 5], picks=Pick(greedy=True))[..., 0], guided.argmax(-1))


def test_a_generator_is_saved_and_loaded(place, pipe):
    pipe.save_pretrained("pipe")
    again = from_pretrained("pipe")
    assert type(again.generator).__name__ == "Table"
    assert again.sampling == pipe.sampling
    assert torch.equal(again.codes([1, 2]), pipe.codes([1, 2]))


def test_a_generator_is_sampled_by_the_script(place, scripts, pipe):
    pipe.save_pretrained("pipe")
    succeeds(scripts, "sample.py", "pipe", "--count", 4, "--seed", 5, "--out", "table.npz")
    assert (read_npz(place / "table.npz", "arr_0") == pipe.sample([0, 1, 2, 3], seed=5)).all()
    parts = ["--tokenizer", "tokenizer", "--generator", "table/model", "--order", "diagonals", "--guidance.scale", 3]
    succeeds(scripts, "sample.py", *parts, "--classes", "heart", "--count", 2, "--out", "hearts.npz")
    want = pipe.sample(["heart"] * 2, order="diagonals", guidance=3.0, rows=8, schedule="one-by-one", steps=1)
    assert (read_npz(place / "hearts.npz", "arr_0") == want).all()


def test_a_generator_paints(pipe):
    "An application asks for nothing but the protocol."
    images = Shapes(2, 32).batch(range(2))[0]
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[:, 16:] = True
    made = pipe.inpaint(images, mask, [1, 2], paste=True)
    assert (made[:, :, :16] == images[:, :, :16]).all()


def test_a_wrong_class_is_one_line(place, scripts, trained):
    ran = scripts("sample.py", "--tokenizer", "tokenizer", "--generator", "table/model", "--classes", 10)
    assert ran.code == 2
    assert ran.err.splitlines() == ["class id=10: must be an integer >= 0 and <= 9"]


# ---- pages do not depend on what is registered

def lesson(page: str, words: str) -> str:
    "The one code cell of a page that holds these words."
    cells = json.loads((ROOT / "nbs" / page).read_text())["cells"]
    found = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    found = [text for text in found if words in text]
    assert len(found) == 1, (page, words, len(found))
    return found[0]


@pytest.fixture
def more_orders(place):
    "Many more orders than the house has."
    for n in range(7): orders.ORDERS[f"diagonals-{n}"] = orders.ORDERS["diagonals"]
    yield
    for n in range(7): del orders.ORDERS[f"diagonals-{n}"]


@pytest.mark.parametrize("words", ["fig, axes = plt.subplots(2 * blocks", "def steps_of(path, h, w)"])
def test_the_page_of_orders_shows_any_number(more_orders, words):
    names = vars(orders) | {"plt": plt, "np": np, "Keyed": Keyed}
    exec(lesson("generators/310_orders.ipynb", words), names)
    plt.close("all")


def test_the_table_of_recipes_takes_any_model(place):
    table = recipe_table(recipes["shapes-table"])
    assert "| shapes-table | lookup-table | 0.0M | 20 | 40 | A table of logits on *shapes*. |" in table


def test_the_page_of_recipes_lists_them(place, capsys):
    page = "training/500_recipes.ipynb"
    names = {"json": json, "kind_of": kind_of, "from_json": from_json, "to_json": to_json, "BadInput": BadInput}
    exec(lesson(page, "for name in library.recipes:"), names)
    assert "shapes-table" in capsys.readouterr().out
    assert recipe("shapes-table", steps=9).name == "shapes-table"
