"Words: who may take one, who finds it, and what becomes of them in JSON and on a command line."
import importlib.util
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.run_scripts import Scripts
from vgnb import pipeline
from vgnb.cli import typed_cli
from vgnb.core import BadInput, Mismatch, load_json, save_json
from vgnb.data.layouts import layouts
from vgnb.evaluation.features import extractors
from vgnb.evaluation.samples import read_npz
from vgnb.families import Family, register
from vgnb.generators.orders import ORDERS, PATHS, FixedPath, Order, Raster
from vgnb.generators.schedules import CURVES, SCHEDULES, one_by_one
from vgnb.kinds import discover, from_json, kinds, register_part, shelf, shelves, to_json
from vgnb.pipeline import Pipeline, from_pretrained, named_pipeline, saved_sampling
from vgnb.sampling.guidance import CFG, Between, Constant, Linear, Ramped, SpatialGuidance
from vgnb.sampling.pick import HaltonPick, Pick
from vgnb.sampling.settings import Sampling, short_form
from vgnb.saved import load_model, save_model
from vgnb.shipped import shipped_folder
from vgnb.tokenizers.objectives import VQGANLossConfig
from vgnb.tokenizers.quantizers import Revive, VectorConfig
from vgnb.training.commands import first_word
from vgnb.training.recipes import recipe, recipes
from vgnb.training.trackers import trackers

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def tables():
    "Whatever a test registers is gone afterwards."
    discover()
    tables = [kinds, recipes, SCHEDULES, CURVES, PATHS, layouts, extractors, trackers, *shelves.values()]
    before = [dict.copy(table) for table in tables]
    yield
    for table, was in zip(tables, before):
        dict.clear(table)
        dict.update(table, was)


@pytest.fixture
def rooms(tables, tmp_path, monkeypatch):
    "Write rooms of one's own into the current folder and name them."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    made = []

    def write(**texts):
        for name, text in texts.items(): (tmp_path / f"{name}.py").write_text(text)
        made.extend(texts)
        monkeypatch.setenv("VGNB_RUN_ROOMS", " ".join(made))
    yield write
    for name in made: sys.modules.pop(name, None)


# ---- who may take a word

def test_a_class_takes_no_word_by_its_name(tables):
    class Raster(Order): pass
    class Unguided(CFG): pass
    assert kinds["order.raster"].config is type(ORDERS["raster"])
    assert kinds["guidance.unguided"].config is type(shelf("guidance")["unguided"])
    assert Sampling().order == ORDERS["raster"]
    assert "guidance.guided" not in kinds
    with pytest.raises(BadInput, match="a registered order"): Sampling(order=Raster())


def theirs(name: str, *bases) -> type:
    "A class of this name, as another module would define it."
    return type(name, bases, {"__module__": "somebody", "__qualname__": name})


TAKEN = {
    "part": ("order.raster", lambda: register_part("order", "raster", theirs("Raster", Order)())),
    "part-by-class": ("order.raster", lambda: register_part("order", "raster", theirs("Raster", Order))),
    "part-of-another-name": ("cfg", lambda: register_part("guidance", "cfg", theirs("Mine", CFG)())),
    "ready-made-value": ("halton", lambda: register_part("order", "halton", theirs("Mine", Order)())),
    "value-on-a-shelf": ("raster", lambda: ORDERS.update(raster=theirs("Raster", Order)())),
    "schedule": ("even", lambda: SCHEDULES.register(one_by_one, name="even")),
    "path": ("spiral", lambda: PATHS.register(one_by_one, name="spiral")),
    "extractor": ("inception", lambda: extractors.register(one_by_one, name="inception")),
    "recipe": ("shapes-8x8-maskgit", lambda: recipes.register(one_by_one, name="shapes-8x8-maskgit")),
    "layout": ("halton", lambda: layouts.register(theirs("Halton"), name="halton")),
    "family": ("vqgan", lambda: register(Family("vqgan", theirs("VQGANConfig"), dict, role="tokenizer")))}


@pytest.mark.parametrize("name", TAKEN)
def test_no_word_is_taken_twice(tables, name):
    word, take = TAKEN[name]
    before = {k: dict.copy(v) for k, v in shelves.items()}, dict.copy(kinds)
    with pytest.raises(BadInput, match="is the word for .*needs another") as e: take()
    assert e.value.value in (word, word.split(".")[-1])
    assert ({k: dict.copy(v) for k, v in shelves.items()}, dict.copy(kinds)) == before


def test_what_is_run_again_replaces_itself(tables):
    for width in (1, 2):
        @dataclass(frozen=True)
        class Brush:
            "A part whose cell is run twice."
            size: int = width
        register_part("brush", "round", Brush(), list)
    assert shelf("brush")["round"].size == 2
    assert kinds["brush.round"].config is Brush


def test_a_class_alone_is_a_kind_and_no_ready_made_value(tables):
    register_part("brush", "flat", theirs("Flat", CFG))
    assert "brush.flat" in kinds
    assert "flat" not in shelf("brush")


# ---- who finds it

OWN = {"schedule": (SCHEDULES, "halves"), "curve": (CURVES, "cube"), "path": (PATHS, "columns"),
       "layout": (layouts, "lines"), "extractor": (extractors, "corner"), "tracker": (trackers, "last")}


ASK = {"by-name": lambda table, name: table[name], "in": lambda table, name: name in table,
       "listed": lambda table, name: name in list(table), "items": lambda table, name: name in dict(table.items()),
       "counted": lambda table, name: len(table) == len(list(table))}


@pytest.mark.parametrize("ask", ASK.values(), ids=ASK)
@pytest.mark.parametrize("kind", OWN)
def test_every_table_asks_the_rooms(rooms, kind, ask):
    table, name = OWN[kind]
    rooms(own_names=(ROOT / "tests/extension/own_names.py").read_text())
    assert ask(table, name)


def test_settings_know_own_names(rooms):
    rooms(own_names=(ROOT / "tests/extension/own_names.py").read_text())
    pipe = from_pretrained("tiny-maskgit")
    sampling = Sampling(FixedPath("columns"), "halves", guidance=2.0)
    assert [s.positions.shape[1] for s in pipe.stream([0], **vars(sampling))] == [32, 16, 8, 4, 2, 1, 1]
    assert SCHEDULES["halves"](16, 1) == [8, 4, 2, 1, 1]
    assert kinds["masked"].config(mask_rate="cube").mask_rate == "cube"


BROKEN = {"import tortch": "No module named 'tortch'",
          "from vgnb.core import nothing": "cannot import name 'nothing' from 'vgnb.core'",
          "def f(:": r"broken.py, line 1",
          "x = 1\ny = z": r"NameError: name 'z' is not defined \(broken.py, line 2\)",
          "from vgnb.kinds import shelf\nshelf('order')['raster'] = 1": "raster.*is the word for"}


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_room_is_named(rooms, text):
    rooms(broken=text)
    with pytest.raises(BadInput, match=BROKEN[text]) as e: SCHEDULES["nowhere"]
    assert (e.value.argument, e.value.value) == ("rooms", "broken")


def test_a_room_that_asks_while_it_is_asked(rooms):
    "It gets what is known so far, and rooms behind it are asked all the same."
    rooms(first="from vgnb.generators.schedules import SCHEDULES\nnames = list(SCHEDULES)",
          second="from vgnb.generators.schedules import SCHEDULES, even\n"
                 "def mine(n, steps, start=0): return even(n, steps, start)\nSCHEDULES['mine'] = mine")
    assert "mine" in SCHEDULES
    assert "even" in sys.modules["first"].names


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    "Run scripts where the names are known."
    place = tmp_path_factory.mktemp("own")
    shutil.copy(ROOT / "tests/extension/own_names.py", place)
    shutil.copy(ROOT / "tests/extension/table_generator.py", place)
    runner = Scripts(place, VGNB_RUN_ROOMS="own_names table_generator", VGNB_RUN_TRACKER="last")

    def run(*words):
        ran = runner(*words)
        assert ran.code == 0, ran
        return place
    yield run


@pytest.mark.full
def test_scripts_know_own_names(own):
    words = ["--order", "halton", "--order.path", "columns", "--schedule", "halves", "--count", 4]
    place = own("sample.py", "tiny-maskgit", *words, "--out", "a.npz")
    assert read_npz(place / "a.npz", "arr_0").shape == (4, 32, 32, 3)
    assert load_json(place / "a.run.json")["sampler"]["order"]["path"] == "columns"
    own("evaluate.py", "a.npz", "a.npz", "--extractor", "corner", "--metrics", "pr", "--k", 1, "--json", "numbers.json")
    assert "corner@1" in (place / "numbers.json").read_text()

    rows = np.random.default_rng(0).integers(0, 10, (80, 17))
    np.savetxt(place / "codes.txt", rows, fmt="%d")
    own("train_generator.py", "shapes-table", "--data", "lines://codes.txt?vocab=16", "--out", "run", "--log-every", 1)
    assert load_json(place / "run" / "last.json")["step"] == 20


# ---- on a command line

def typed(words: str, default=None):
    default = default or Sampling()
    return typed_cli(type(default), words.split(), default)


WARM = Sampling(picks=Pick(temperature=Linear(1.0, 0.5)))
WORDS = {
    "--guidance 3": Sampling(guidance=CFG(3.0)),
    "--guidance ramped --guidance.along linear --guidance.along.end 4": Sampling(guidance=Ramped(Linear(1.0, 4.0))),
    "--guidance ramped --guidance.along 2.5": Sampling(guidance=Ramped(Constant(2.5))),
    "--guidance ramped --guidance.along between --guidance.along.inside linear --guidance.along.inside.end 5":
        Sampling(guidance=Ramped(Between(0.0, 1.0, Linear(1.0, 5.0)))),
    "--picks.0.temperature linear --picks.0.temperature.end 0.2": Sampling(picks=Pick(Linear(1.0, 0.2))),
    "--picks.0.temperature 0.7": Sampling(picks=Pick(0.7)),
    "--picks.1 halton --picks.1.top-k 5": Sampling(picks=(Pick(), HaltonPick(top_k=5))),
    "--picks.0 halton --picks.1 plain --picks.2 halton": Sampling(picks=(HaltonPick(), Pick(), HaltonPick()))}


@pytest.mark.parametrize("words", WORDS)
def test_parts_are_put_together(words):
    assert typed(words) == WORDS[words]
    assert from_json(json.loads(json.dumps(to_json(typed(words)))), Sampling) == WORDS[words]


def test_a_saved_ramp_can_be_changed():
    assert typed("--picks.0.temperature 0.7", WARM).picks[0].divisor(None) == 0.7
    assert typed("--picks.0.temperature.end 0.7", WARM) == Sampling(picks=Pick(Linear(1.0, 0.7)))
    assert typed("--picks.0.top-k 3", WARM) == Sampling(picks=Pick(Linear(1.0, 0.5), top_k=3))


def test_an_empty_tuple_can_grow():
    r = recipe("shapes-tokenizer")
    more = typed("--model.quantizer.updates.0 revive --model.quantizer.updates.0.every 5", r)
    assert more.model.quantizer.updates == (Revive(5),)


@pytest.mark.parametrize("words, message", [
    ("--picks halton", "must say which one: --picks.0"),
    ("--picks.1 haltn", "did you mean halton"),
    ("--picks.0.temperature hot", "ramp='hot': must be one of between, constant"),
    ("--guidance -1", "scale=-1.0")])
def test_words_that_choose_nothing(words, message):
    with pytest.raises(BadInput, match=message): typed(words)


def test_updates_are_checked_where_they_are_set():
    with pytest.raises(BadInput, match="updates.0='revive': must be the configuration of one of: revive"):
        VectorConfig(updates=("revive",))
    with pytest.raises(BadInput, match="updates.1=CFG"): VectorConfig(updates=(Revive(), CFG()))
    with pytest.raises(BadInput, match="updates='revive': must say which one"):
        typed("--model.quantizer.updates revive", recipe("shapes-tokenizer"))


# ---- in JSON

RECIPE = to_json(recipe("shapes-tokenizer"))
SAMPLING = to_json(Sampling())
UNREADABLE = {
    "field-missing": ({"kind": "ramp.linear", "start": 1}, None, "recipe.end=None: is needed by Linear"),
    "tuple-too-short": (RECIPE | {"optim": {"betas": [0.9]}}, None, r"recipe.optim.betas=\[0.9\]: must have 2 entries"),
    "no-object": ([RECIPE], None, "must be an object with fields"),
    "part-that-is-a-list": (RECIPE | {"optim": [1]}, None, r"recipe.optim=\[1\]: must be an object"),
    "part-that-is-nothing": (RECIPE | {"optim": None}, None, "recipe.optim=None: must be an object"),
    "part-of-another-class": (RECIPE | {"optim": {"kind": "ramp.constant"}}, None, "must be a Optim"),
    "another-kind": ({"kind": "ramp.constant"}, Sampling, "recipe='ramp.constant': must be a Sampling"),
    "kind-that-is-no-word": ({"kind": ["ramp"]}, None, "recipe.kind="),
    "number-for-a-pair": (RECIPE | {"optim": {"betas": 3}}, None, "betas=3: must be a list"),
    "guidance-for-an-order": (SAMPLING | {"order": {"kind": "guidance.cfg"}}, Sampling, "a registered order")}


@pytest.mark.parametrize("name", UNREADABLE)
def test_json_that_describes_nothing(name):
    value, cls, message = UNREADABLE[name]
    with pytest.raises(BadInput, match=message): from_json(json.loads(json.dumps(value)), cls)


@pytest.mark.parametrize("content, message", [
    ([RECIPE], "must hold a JSON object, not a list"),
    ({"config": [1]}, "must be an object with fields"),
    ({"kind": "ramp.constant"}, "must be a recipe, or a run.json that holds one; this is a Constant"),
    ({"config": {"kind": "order.raster"}}, "this is a Raster"),
    (to_json(recipe("shapes-8x8-maskgit")), "must be of kind tokenizer")])
def test_a_file_that_is_no_recipe(tmp_path, content, message):
    save_json(tmp_path / "a.json", content)
    with pytest.raises(BadInput, match=message): first_word(str(tmp_path / "a.json"), "tokenizer")


@pytest.mark.parametrize("config", [Linear(1.0, 2.0), Revive(), VQGANLossConfig(), Raster(), recipe("vq-16")])
def test_a_folder_that_holds_no_model(tmp_path, config):
    save_model(tmp_path / "m", torch.nn.Linear(1, 1), config)
    with pytest.raises(Mismatch, match="which is no model"): load_model(tmp_path / "m")


@pytest.mark.parametrize("changes", [{"sampling": []}, {"sampling": {"kind": "ramp.constant"}}, {"classes": 10},
                                     {"grid": 8}])
def test_a_card_that_is_no_pipelines(tmp_path, changes):
    shutil.copytree(shipped_folder("tiny-maskgit"), tmp_path / "p")
    save_json(tmp_path / "p/pipeline.json", load_json(tmp_path / "p/pipeline.json") | changes)
    with pytest.raises(BadInput): from_pretrained(tmp_path / "p")


@dataclass(frozen=True)
class Unknown:
    "A ramp that nobody registered."
    value: float = 2.0

    def __call__(self, clock): return self.value


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    pipe = from_pretrained("tiny-maskgit")
    def saved(**changes): return Pipeline(pipe.tokenizer, pipe.generator, Sampling(**changes)).save_pretrained(tmp_path)

    with pytest.raises(BadInput, match="guidance.along=<function .*can't be written as JSON"):
        saved(guidance=Ramped(lambda clock: 2.0))
    with pytest.raises(BadInput, match="guidance.along=Unknown.*is of no registered kind"):
        saved(guidance=Ramped(Unknown()))
    with pytest.raises(BadInput, match="picks.0.temperature=<function"): saved(picks=Pick(lambda clock: 1.0))
    assert not (tmp_path / "pipeline.json").exists()
    assert to_json({"a": np.float32(0.5), "b": (np.int64(3), Path("c"))}) == {"a": 0.5, "b": [3, "c"]}
    with pytest.raises(BadInput, match="can't be written as JSON in a.json"):
        save_json(tmp_path / "a.json", {"f": lambda: 1})
    assert not (tmp_path / "a.json").exists()


# ---- which pipeline a command means

def script(name: str, monkeypatch):
    "A script as a module."
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / f"scripts/{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def sample(monkeypatch): return script("sample", monkeypatch)


def test_a_pipeline_of_the_hub_brings_its_settings(sample, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "_fetched", lambda repository: shipped_folder("tiny-maskgit"))
    assert saved_sampling("owner/name") == from_pretrained("tiny-maskgit").sampling != Sampling()
    assert sample.main(["owner/name", "--count", "1", "--dry-run"]) == 0
    assert short_form(from_pretrained("tiny-maskgit").sampling) in capsys.readouterr().out


def test_the_pipeline_is_the_word_that_is_read_as_one():
    assert named_pipeline(["--sheet", "tiny-randar", "tiny-maskgit"], "tiny-maskgit") == "tiny-maskgit"
    assert named_pipeline(["--guidance.spatial", "3", "tiny-randar"], "") == "tiny-randar"
    assert named_pipeline(["--tokenizer", "a"], "") == ""


@pytest.mark.parametrize("words", [
    "tiny-maskgit --count 1", "--count 1 tiny-maskgit",
    "--classes heart --sheet heart.png tiny-maskgit --count 1",
    "--order confidence --order.noise 4 tiny-maskgit --count 1"])
def test_its_settings_are_the_defaults(sample, capsys, words):
    assert sample.main([*words.split(), "--dry-run"]) == 0
    assert "schedule='arccos', steps=22" in capsys.readouterr().out


def test_another_word_is_no_pipeline(sample, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    card = load_json(shipped_folder("tiny-randar") / "pipeline.json")
    del card["seal"]
    card["sampling"]["guidance"] = to_json(SpatialGuidance(3.0))
    for name in "ab": save_json(tmp_path / name / "pipeline.json", card)
    words = ["--guidance.spatial", "2", "b"]
    with pytest.raises(BadInput, match="pipeline='b': must be the first word"): sample.main(["--sheet", "a", *words])
    assert named_pipeline(words, "") == "b"


def test_each_file_has_its_own_system(sample, tmp_path, monkeypatch):
    asked = {}
    def load(path, system, prefix, strict):
        return torch.tensor(asked.setdefault(Path(path).name, " ".join(filter(None, (system, prefix)))) == "")

    monkeypatch.setattr("vgnb.shipped.load_published", load)
    for name in ("t.pt", "g.pt"): (tmp_path / name).touch()
    t, g = str(tmp_path / "t.pt"), str(tmp_path / "g.pt")
    source = sample.Source(tokenizer=t, generator=g, generator_system="dar", generator_prefix="net.")
    with monkeypatch.context() as patched:
        patched.setattr("vgnb.shipped.check_role", lambda *args: None)
        for part in ("tokenizer", "generator"): sample.open_part(source, part, "cpu")
    assert asked == {"t.pt": "", "g.pt": "dar net."}

    asked.clear()
    extract = script("extract_codes", monkeypatch).main
    with pytest.raises(BadInput, match="holds a Tensor, which is no tokenizer"):
        named = ["--tokenizer", t, "--tokenizer-system", "llamagen", "--tokenizer-prefix", "model."]
        extract([*named, "--data", "shapes://", "--out", "nowhere"])
    assert asked == {"t.pt": "llamagen model."}


def test_a_part_with_fields_of_its_own_is_a_dataclass():
    "Else two of its values would be equal, share one sampler, and lose their fields in files."
    class Shifted(Order):
        def __init__(self, k=0): self.k = k
    with pytest.raises(BadInput, match="part='Shifted': must be a dataclass"):
        register_part("order", "shifted", Shifted())


@pytest.mark.parametrize("asked, words", [
    (dict(guidance="cfgg"), "must be one of unguided, cfg, .* did you mean cfg"),
    (dict(guidance=False), "must be one of unguided, cfg"),
    (dict(picks="halten"), "did you mean halton"),
    (dict(order=[1, 2]), "must be one of raster, random"),
])
def test_parts_go_by_name_everywhere(asked, words):
    by_name = Sampling(order="halton", guidance="spatial", picks="halton")
    assert by_name.guidance == shelf("guidance")["spatial"] and by_name.picks == (shelf("pick")["halton"],)
    with pytest.raises(BadInput, match=words): Sampling(**asked)
