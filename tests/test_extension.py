"""What is new is a new room: an order, a quantizer, a generator and an objective, with no line changed in the house.

Each is a module in tests/extension. It is copied into a folder and named by VGNB_RUN_ROOMS: scripts and saved files
then know its words.
"""
import inspect
import json
import re
import shutil
import sys
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
from vgnb.figures import heat, tile_sheet
from vgnb.generators import orders
from vgnb.generators.generator import Grid
from vgnb.generators.schedules import even
from vgnb.kinds import discover, from_json, kind_of, kinds, shelves, to_json
from vgnb.pipeline import Pipeline, from_pretrained
from vgnb.sampling.pick import Pick
from vgnb.sampling.settings import Sampling
from vgnb.saved import load_model, load_tensors, save_model
from vgnb.tokenizers.pictures import pictures
from vgnb.tokenizers.vqgan import vqgan
from vgnb.training.commands import TrainOptions, build_tokenizer, train
from vgnb.training.extract import extract_codes
from vgnb.training.recipes import recipe, recipe_table, recipes
from vgnb.training.run_folder import Run
from vgnb.training.trainer import Trainer
from vgnb.views.explorer import OrderExplorer
from vgnb.views.scenes import OrderChoice, order_course
from vgnb.zoo import export_published

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("diagonal_order", "sign_quantizer", "table_generator", "flow_tokenizer")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A folder with the modules, which is also the current one; in the end nothing they registered is left."
    folder = tmp_path_factory.mktemp("extension")
    for room in ROOMS: shutil.copy(ROOT / "tests" / "extension" / f"{room}.py", folder)
    discover()
    tables = [kinds, recipes, families._FAMILIES, *shelves.values()]
    before = [dict.copy(table) for table in tables]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [*sys.path])
        patch.setenv("VGNB_RUN_ROOMS", " ".join(ROOMS))
        yield folder
    for table, was in zip(tables, before):
        dict.clear(table)
        dict.update(table, was)
    for room in ROOMS: sys.modules.pop(room, None)


@pytest.fixture(scope="module")
def scripts(place):
    return Scripts(place)


@pytest.fixture(scope="module")
def run(scripts):
    "Run a script that must succeed."
    def run(*words):
        ran = scripts(*words)
        assert ran.code == 0, ran
        return ran
    return run


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_rooms_are_found_by_their_setting(place):
    assert set(ROOMS) <= set(discover())


def test_no_room_of_the_house_knows_them():
    words = (*ROOMS, "Diagonal", "SignConfig", "TableConfig", "FlowTokenizer", "TaughtFlowConfig")
    for path in (ROOT / "vgnb").rglob("*.py"):
        text = path.read_text()
        assert [word for word in words if word in text] == [], path


# ---- an order: the anti-diagonals of a grid, each in one step whatever the schedule

def test_an_order_is_ten_lines(place):
    order = orders.ORDERS["diagonal"]
    lines = inspect.getsource(type(order)).splitlines()
    assert len([line for line in lines if line.strip()]) <= 10


def test_an_order_knows_its_groups(place):
    order, at = orders.ORDERS["diagonal"], At(torch.arange(2))
    plan = order.plan(Grid((3, 5)), None, even, 1, Keyed(0), at)
    assert plan.counts == [1, 2, 3, 3, 3, 2, 1]
    assert plan.perm[1, :6].tolist() == [0, 1, 5, 2, 6, 10]

    known = torch.zeros(2, 15, dtype=torch.bool)
    known[:, [0, 1]] = True
    plan = order.plan(Grid((3, 5)), known, even, 1, Keyed(0), at)
    assert plan.counts == [1, 3, 3, 3, 2, 1]
    assert plan.known == 2


def test_an_order_is_a_setting(place):
    s = Sampling(order="diagonal", steps=3)
    text = json.dumps(to_json(s))
    assert '"kind": "order.diagonal"' in text
    assert from_json(json.loads(text), Sampling) == s
    with pytest.raises(BadInput, match="did you mean diagonal"): Sampling(order="diagonals")


def test_an_order_samples_at_once(place):
    pipe = from_pretrained("tiny-maskgit")
    steps = list(pipe.stream(["heart", "star"], order="diagonal", rows=2))
    assert [s.positions.shape[1] for s in steps] == [*range(1, 9), *range(7, 0, -1)]
    for k, s in enumerate(steps): assert (s.positions // 8 + s.positions % 8 == k).all()


def test_an_order_is_an_option(place, run):
    run("sample.py", "tiny-maskgit", "--order", "diagonal", "--rows", 3, "--count", 3, "--out", "diagonal.npz")
    want = from_pretrained("tiny-maskgit").sample([0, 1, 2], order="diagonal", rows=3)
    assert (read_npz(place / "diagonal.npz", "arr_0") == want).all()
    record = load_json(place / "diagonal.run.json")
    assert record["sampler"]["order"] == {"kind": "order.diagonal"}


def test_an_order_can_be_looked_at(place):
    course = order_course(OrderChoice("diagonal", "even", height=4, width=6, steps=3))
    assert course.total == 9
    explorer = OrderExplorer(OrderChoice("halton", height=4, width=6))
    explorer.left.order.value = "diagonal"
    assert explorer.left.error is None
    assert explorer.clock.max == 9


# ---- a quantizer: the house's own that has no table, and the sign of each channel

SMALL = ["--model.width", 16, "--model.groups", 8, "--data", "shapes://?n=64&size=32", "--steps", 4, "--batch", 8,
         "--free-steps", 2, "--precision", "fp32"]


@pytest.mark.parametrize("word, options, codes", [
    ("fsq", ["--model.quantizer.levels", 4, 4, 4], 64),
    ("sign", ["--model.quantizer.bits", 5], 32)])
def test_a_quantizer_is_an_option_of_the_training(place, run, word, options, codes):
    run("train_tokenizer.py", "shapes-tokenizer", "--model.quantizer", word, *options, *SMALL, "--out", word)
    model = load_model(place / word / "model")
    assert kind_of(model.config.quantizer) == f"quantizer.{word}"
    assert model.vocab == (codes,)

    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = model.encode(images)
    assert found.unique().numel() > 1
    assert torch.equal(model.lookup(found), model.quantize(images).z)
    with pytest.raises(BadInput, match="has no published form"): export_published(model)


@pytest.mark.parametrize("room", ["vgnb/tokenizers/fsq.py", "tests/extension/sign_quantizer.py"])
def test_a_quantizer_is_sixty_lines(room):
    lines = (ROOT / room).read_text().splitlines()
    assert len([line for line in lines if line.strip() and not line.startswith("#")]) <= 60


def test_no_other_room_knows_finite_scalars():
    "But for those that put another system's words for it into ours, and that system's trainings, which choose it."
    room = ROOT / "vgnb" / "tokenizers" / "fsq.py"
    words = set((ROOT / "vgnb").rglob("vqkd_*.py"))
    others = [p for p in (ROOT / "vgnb").rglob("*.py") if p not in (room, ROOT / "vgnb" / "_modidx.py", *words)]
    assert [p.name for p in others if re.search("fsq", p.read_text(), re.I)] == []


# ---- a generator: a table of logits, with a configuration and a recipe of its own

HOW = dict(order="halton", schedule="cosine", steps=4, guidance=2.0, rows=3)


@pytest.fixture(scope="module")
def table(place, run) -> Path:
    "The run of a table, trained by the script on codes of an untrained tokenizer."
    torch.manual_seed(0)
    tokenizer = vqgan("tiny-shapes", quantizer=dict(codebook=16), width=16, groups=8).eval()
    save_model("tokenizer", tokenizer, tokenizer.config)
    extract_codes(tokenizer, Shapes(80, 32), Path("codes"), Augment("center", 32), progress=False)
    run("train_generator.py", "shapes-table", "--data", "codes", "--out", "table", "--log-every", 1)
    return place / "table"


@pytest.fixture(scope="module")
def pipe(place, table) -> Pipeline:
    return Pipeline(load_model(place / "tokenizer"), load_model(table / "model"), Sampling(**HOW), Shapes.classes)


def test_a_generator_is_trained_by_the_script(table):
    log = log_of(table)
    assert log[-1]["loss"] < log[0]["loss"] - 0.5
    card = load_json(table / "model" / "config.json")
    assert card["config"] == {"kind": "table", "vocab": 16, "grid": [4, 4], "classes": 10, "class_dropout": 0.1}
    assert card["classes"] == Shapes.classes


def test_a_generator_is_sampled(pipe):
    cells = torch.cat([s.positions for s in pipe.stream([3, 4, 5])], 1)
    halton = orders.ORDERS["halton"].permutation(Grid((4, 4)), None, None, At(torch.arange(3)))
    assert torch.equal(cells, halton)

    logits = pipe.generator.table
    guided = logits[-1] + 2 * (logits[[3, 4, 5]] - logits[-1])
    assert torch.equal(pipe.codes([3, 4, 5], picks=Pick(greedy=True))[..., 0], guided.argmax(-1))


def test_a_generator_is_saved_and_loaded(pipe):
    again = from_pretrained(pipe.save_pretrained("pipe"))
    assert type(again.generator).__name__ == "Table"
    assert again.sampling == pipe.sampling
    assert torch.equal(again.codes([1, 2]), pipe.codes([1, 2]))


def test_a_generator_is_sampled_by_the_script(place, run, pipe):
    pipe.save_pretrained("pipe")
    run("sample.py", "pipe", "--count", 4, "--seed", 5, "--out", "table.npz")
    assert (read_npz(place / "table.npz", "arr_0") == pipe.sample([0, 1, 2, 3], seed=5)).all()

    parts = ["--tokenizer", "tokenizer", "--generator", "table/model", "--order", "diagonal", "--guidance.scale", 3]
    run("sample.py", *parts, "--classes", "heart", "--count", 2, "--out", "hearts.npz")
    want = pipe.sample(["heart"] * 2, order="diagonal", guidance=3.0, rows=8)
    assert (read_npz(place / "hearts.npz", "arr_0") == want).all()


def test_a_generator_paints(pipe):
    "An application asks for nothing but the protocol."
    images = Shapes(2, 32).batch(range(2))[0]
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[:, 16:] = True
    made = pipe.inpaint(images, mask, [1, 2], paste=True)
    assert (made[:, :, :16] == images[:, :, :16]).all()


def test_a_wrong_class_is_one_line(scripts, table):
    ran = scripts("sample.py", "--tokenizer", "tokenizer", "--generator", "table/model", "--classes", 10)
    assert ran.code == 2
    assert ran.err.splitlines() == ["classes=10: must be an integer >= 0 and <= 9"]


# ---- an objective: flow matching with a frozen teacher, for a tokenizer whose decoder is given noise and time

@pytest.fixture(scope="module")
def flow(place, run) -> Path:
    "The run of the tokenizer, trained by the script."
    run("train_tokenizer.py", "shapes-flow", "--out", "flow", "--log-every", 1, "--save-every", 2)
    return place / "flow"


def test_an_objective_trains(flow):
    log = log_of(flow)
    assert len(log) == 6
    assert {"flow", "align"} <= set(log[-1])
    assert all(np.isfinite(record["flow"]) for record in log)
    card = load_json(flow / "model" / "config.json")
    assert card["config"]["kind"] == "flow-tokenizer"
    assert card["recipe"]["loss"]["kind"] == "objective.flow"


def test_a_teacher_is_not_saved(flow):
    saved = sorted({p.name for p in flow.rglob("*.safetensors")})
    assert "model.project.safetensors" in saved
    assert [name for name in saved if "teacher" in name] == []
    entries = [name for p in flow.rglob("*.safetensors") for name in load_tensors(p)]
    assert entries
    assert [name for name in entries if "teacher" in name] == []


def test_a_teacher_is_frozen(place, flow):
    r = recipe("shapes-flow")
    task, data = build_tokenizer(r, weights="weights")
    teacher, project = task.objective.helpers["teacher"], task.modules["project"]
    before = [module.weight.detach().clone() for module in (teacher, project)]
    Trainer(task, data, r, "frozen", Run(progress=False)).fit()
    assert not teacher.weight.requires_grad
    assert torch.equal(teacher.weight, before[0])
    assert not torch.equal(project.weight, before[1])
    trained = load_model(flow / "model").state_dict()
    for name, value in task.modules["tokenizer"].state_dict().items(): assert torch.equal(value, trained[name]), name


def test_a_stopped_training_goes_on(place, flow):
    "From the checkpoint of step 4, to the very weights of the run that was never stopped."
    class Stopped(Exception): pass

    def stop(trainer, numbers):
        if trainer.step == 5: raise Stopped

    options = TrainOptions(recipe("shapes-flow"), place / "stopped", run=Run(log_every=1, save_every=2, progress=False))
    with pytest.raises(Stopped): train(options, on_log=stop)
    done = train(options)
    assert done.finished
    assert [record["step"] for record in log_of(place / "stopped")][-2:] == [5, 6]
    weights = [folder / "model" / "model.safetensors" for folder in (flow, place / "stopped")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_decoder_draws_its_noise_by_sample(flow):
    "A picture is a function of its codes, its id and the seed, in whatever company it is made."
    model = load_model(flow / "model")
    codes = torch.randint(16, (1, 16, 1), generator=torch.Generator().manual_seed(0)).expand(5, -1, -1)
    together = pictures(model, codes, rows=4)
    assert len({picture.tobytes() for picture in together}) == 5
    assert (pictures(model, codes[:1], ids=[3], rows=4)[0] == together[3]).all()
    assert (pictures(model, codes, rows=4, draws=Keyed(1)) != together).any()


def test_such_a_tokenizer_has_codes_like_any_other(place, run, flow):
    run("extract_codes.py", "--tokenizer", "flow/model", "--data", "shapes://?n=40&size=32", "--size", 32,
        "--out", "flow-codes")
    run("train_generator.py", "shapes-table", "--data", "flow-codes", "--out", "flow-table")
    words = ["--tokenizer", "flow/model", "--generator", "flow-table/model", "--part", 8, "--order", "halton"]
    run("sample.py", *words, "--count", 12, "--out", "flow.npz")
    pipe = Pipeline(load_model("flow/model"), load_model("flow-table/model"), Sampling("halton"), Shapes.classes)
    made = read_npz(place / "flow.npz", "arr_0")
    assert (made == pipe.sample([i % 10 for i in range(12)])).all()
    assert (made[[9]] == pipe.sample([9], ids=[9])).all()


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
    names = [f"diagonal-{n}" for n in range(7)]
    for name in names: orders.ORDERS[name] = orders.ORDERS["diagonal"]
    yield
    for name in names: del orders.ORDERS[name]


@pytest.mark.parametrize("words", ["def lines(items, width=5)", "def steps_of(path, h, w)"])
def test_the_page_of_orders_shows_any_number(more_orders, words):
    names = vars(orders) | {"plt": plt, "np": np, "Keyed": Keyed, "heat": heat, "tile_sheet": tile_sheet}
    exec(lesson("generators/310_orders.ipynb", words), names)
    plt.close("all")


def test_the_table_of_recipes_takes_any_model(place):
    table = recipe_table(recipes["shapes-table"], recipes["shapes-flow"])
    assert "| shapes-table | table | 0.1M | 20 | 40 | A table of logits on *shapes*" in table
    assert "| shapes-flow | flow-tokenizer | 0.0M | 6 | 16 | A toy of a diffusion decoder" in table


def test_the_page_of_recipes_lists_them(place, capsys):
    names = {"json": json, "kind_of": kind_of, "from_json": from_json, "to_json": to_json, "BadInput": BadInput,
             "stages": {}}               # the page's own
    exec(lesson("training/500_recipes.ipynb", "import recipes as library"), names)
    exec(lesson("training/500_recipes.ipynb", "for name in library.recipes:"), names)
    printed = capsys.readouterr().out
    assert "shapes-table" in printed
    assert "shapes-flow" in printed
