"""What somebody meets who tries things: labels of their own folders, arguments of another kind, names that are none."""
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import vgnb
from vgnb import processes
from vgnb.core import BadInput, Missing, digest_file, run_manifest, save_card
from vgnb.data.shapes import Shapes
from vgnb.draws import Keyed
from vgnb.evaluation.features import Extractor, load_extractor
from vgnb.evaluation.measure import graded_labels, label_note, measure
from vgnb.evaluation.samples import Samples, open_samples, save_samples
from vgnb.generators.generator import Cond, Grid, Prediction
from vgnb.generators.orders import ORDERS, Order
from vgnb.kinds import from_json
from vgnb.pipeline import Pipeline, from_pretrained
from vgnb.sampling.applications import check_mask
from vgnb.sampling.guidance import Unguided
from vgnb.sampling.sampler import Sampler

ROOT = Path(__file__).resolve().parents[1]


# ---- accuracy goes by the classes' names

FOUR = ["crescent", "heart", "ring", "star"]


def four_classes(count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    "Shapes of four classes, and their numbers among these four."
    source = Shapes(n=400, seed=5, size=32, difficulty=0)
    images, labels = source.batch(np.arange(400))
    numbers = [FOUR.index(name) if (name := source.classes[k]) in FOUR else -1 for k in labels]
    chosen = np.flatnonzero(np.array(numbers) >= 0)[:count]
    return images[chosen], np.array(numbers)[chosen]


@pytest.fixture(scope="module")
def judge() -> Extractor: return load_extractor("shapes-judge")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    top = tmp_path_factory.mktemp("four")
    for i, (image, label) in enumerate(zip(*four_classes(), strict=True)):
        place = top / FOUR[label]
        place.mkdir(exist_ok=True)
        Image.fromarray(image).save(place / f"{i}.png")
    return top


def recorded(place: Path, classes: list, sha: str | None = None) -> Path:
    "An npz with its record."
    file = place / "made.npz"
    save_samples(file, *four_classes())
    save_card(place / "made.run.json", {"outputs": {file.name: sha or digest_file(file)}, "classes": classes})
    return file


def accuracy_of(samples, judge) -> tuple[float, list[str]]:
    report = measure(samples, samples, judge, metrics=("accuracy",))
    return report.values["accuracy"], report.notes


def test_accuracy_of_one_s_own_folders_goes_by_name(folder, judge, tmp_path):
    for source in (folder, recorded(tmp_path, FOUR), Samples(*four_classes(), classes=FOUR)):
        right, notes = accuracy_of(open_samples(source), judge)
        assert right > 0.9 and not notes, source

    other = ["heart", "crescent", "star", "ring"]
    assert accuracy_of(Samples(*four_classes(), classes=other), judge)[0] < 0.1


@pytest.mark.parametrize("broken", [dict(classes=[]), dict(classes=[1, 2, 3, 4]), dict(classes=FOUR, sha="0" * 64)])
def test_labels_without_names_are_said_to_be_taken_as_numbers(judge, tmp_path, broken):
    for source in (Samples(*four_classes()), open_samples(recorded(tmp_path, **broken))):
        right, notes = accuracy_of(source, judge)
        assert right < 0.1 and ["taken as the class numbers of shapes-judge" in note for note in notes] == [True]


def test_a_class_that_the_judge_does_not_know_is_refused(judge):
    images, labels = four_classes()
    unknown = Samples(images, labels, classes=["crescent", "heart", "ring", "rabbit"])
    with pytest.raises(BadInput, match=r"labels=\['rabbit'\]: must be classes of shapes-judge.*heart"):
        measure(unknown, unknown, judge, metrics=("accuracy",))

    unused = Samples(images[labels < 3], labels[labels < 3], classes=["crescent", "heart", "ring", "rabbit"])
    assert accuracy_of(unused, judge)[0] > 0.9                          # nobody asked for a rabbit
    with pytest.raises(BadInput, match=r"must lie in \[0, 2\)"):
        graded_labels(Samples(images, labels, classes=FOUR[:2]), judge)


def test_names_in_digits_are_the_numbers_themselves(judge):
    images, labels = four_classes()
    numbers = [str(judge.names.index(name)) for name in FOUR]
    digits = Samples(images, labels, classes=numbers)
    assert [judge.names[k] for k in graded_labels(digits, judge)[:4]] == [FOUR[k] for k in labels[:4]]
    assert "taken as" in label_note(digits, judge)

    nameless = Extractor()
    nameless.id, nameless.classes = "nameless", 10
    assert graded_labels(Samples(images, labels, classes=FOUR), nameless).tolist() == labels.tolist()
    assert "taken as" in label_note(Samples(images, labels, classes=FOUR), nameless)


def test_the_script_tells_too(folder, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("evaluate_script", ROOT / "scripts/evaluate.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    np.savez(tmp_path / "bare.npz", arr_0=four_classes()[0], labels=four_classes()[1])
    for samples, told in ((folder, False), (tmp_path / "bare.npz", True)):
        words = [str(folder), str(samples), "--extractor", "shapes-judge", "--metrics", "accuracy", "--dry-run"]
        assert script.main(words) == 0
        assert ("labels are taken as" in capsys.readouterr().out) == told


# ---- arguments of another kind are taken where they are clear, and else refused by name

CELLS = np.arange(64)[None] < 10
BOX = np.zeros((32, 32), bool)
BOX[8:20, 8:20] = True


@pytest.fixture(scope="module")
def pipe() -> Pipeline: return from_pretrained("tiny-randar")


@pytest.fixture(scope="module")
def pgm() -> Pipeline: return from_pretrained("tiny-pgm")


@pytest.fixture(scope="module")
def codes(pipe) -> torch.Tensor: return pipe.codes("heart", steps=4)


@pytest.fixture(scope="module")
def two(pipe) -> np.ndarray: return pipe.sample(["heart", "ring"], seed=1, steps=4)


def test_arrays_are_codes_and_known_cells(pipe, codes):
    want = pipe.codes("heart", seed=3, steps=4, given=(codes, torch.from_numpy(CELLS)))
    for known in (CELLS, CELLS.astype(int), CELLS.tolist()):
        again = pipe.codes("heart", seed=3, steps=4, given=[codes.numpy(), known])
        assert torch.equal(again, want) and torch.equal(again[:, :10], codes[:, :10])
    steps = list(pipe.stream("heart", seed=3, steps=4, given=(codes.numpy(), CELLS)))
    assert torch.equal(steps[-1].codes(), want)
    assert np.array_equal(pipe.decode(codes.numpy()), pipe.decode(codes))


@pytest.mark.parametrize("mask", [BOX.astype(int), BOX.astype(np.float64), torch.from_numpy(BOX).float(), BOX.tolist(),
                                  np.uint8(255) * BOX])
def test_zeros_and_ones_are_a_mask(two, mask):
    assert torch.equal(check_mask(mask, 2, (32, 32)), torch.from_numpy(BOX).expand(2, -1, -1))


@pytest.mark.parametrize("mask", [None, "here", BOX * 0.5, BOX * 255, BOX * np.nan, BOX - 1.0, [[1, 0], [1]], {}])
def test_other_masks_are_refused_by_name(pipe, two, mask):
    for verb in (pipe.edit, pipe.inpaint):
        with pytest.raises(BadInput, match="^mask=.*must be an array: bool, uint8"): verb(two, mask, "star")
    if mask is None: return                                                     # a morph without a mask changes all
    with pytest.raises(BadInput, match="^mask="): pipe.morph(two, "star", mask=mask)


def test_one_label_stands_for_all_pictures(pipe, two):
    for verb, how in ((pipe.edit, (BOX,)), (pipe.outpaint, ((32, 40),))):
        alike = verb(two, *how, "star", steps=4)
        assert np.array_equal(alike, verb(two, *how, ["star", "star"], steps=4))
    with pytest.raises(BadInput, match="labels=3: must be one for each of the 2 images, or one for all"):
        pipe.edit(two, BOX, ["star"] * 3)


@pytest.mark.parametrize("words, ask", [
    (r"given='Tensor': must be two tensors", lambda p, w: p.sample("heart", given=w.codes)),
    (r"given='Tensor': must be two tensors", lambda p, w: p.stream("heart", given=w.codes)),
    (r"given='tuple': must be two tensors", lambda p, w: p.sample("heart", given=(w.codes,))),
    (r"given codes='a': must be integer codes", lambda p, w: p.sample("heart", given=("a", CELLS))),
    (r"given known=0.5: must be bool", lambda p, w: p.sample("heart", given=(w.codes, CELLS * 0.5))),
    (r"codes='abc': must be integer codes", lambda p, w: p.decode("abc")),
    (r"codes=\(64, 1\): must be integer codes", lambda p, w: p.decode(w.codes[0])),
    (r"codes='float32': must have an integer", lambda p, w: p.decode(w.codes.float())),
    (r"schedule=\[1, 1.*must be one of one-by-one", lambda p, w: p.sample("heart", schedule=[1] * 64)),
    (r"schedule=array.*must be one of one-by-one", lambda p, w: p.sample("heart", schedule=np.ones(3))),
    (r"compat=\{\}: must be one of", lambda p, w: p.sample("heart", compat={})),
    (r"images=None: must be uint8", lambda p, w: p.edit(None, BOX, "star")),
    (r"images=None: must be uint8", lambda p, w: p.encode(None)),
    (r"canvas=64: must be two numbers of pixels", lambda p, w: p.outpaint(w.two, 64, "star")),
    (r"canvas=\('a', 'b'\): height and width", lambda p, w: p.outpaint(w.two, ("a", "b"), "star")),
    (r"canvas=\(nan, 64\): height and width", lambda p, w: p.outpaint(w.two, (float("nan"), 64), "star")),
    (r"at=3: must be two numbers of pixels: row", lambda p, w: p.outpaint(w.two, (64, 64), "star", at=3)),
    (r"shape=12: must be two numbers of cells", lambda p, w: p.extrapolate("ring", 12)),
    (r"shape='a': must be an integer", lambda p, w: p.extrapolate("ring", ("a", 12))),
    (r"shape=\(4, 4\): .* nowhere smaller than the training grid \(8, 8\)", lambda p, w: p.extrapolate("ring", (4, 4))),
    (r"spatial=2.5: must be two scales", lambda p, w: p.extrapolate("ring", (12, 12), spatial=2.5)),
    (r"ids='a': must be whole numbers", lambda p, w: p.sample("heart", ids="a")),
    (r"ids=\[0.5\]: must be whole numbers", lambda p, w: p.sample("heart", ids=[0.5])),
    (r"sampling=3: must be a Sampling", lambda p, w: setattr(p, "sampling", 3)),
    (r"sampling=3: must be a Sampling", lambda p, w: Pipeline(p.tokenizer, p.generator, 3)),
    (r"where=None: must be a folder", lambda p, w: from_pretrained(None)),
    (r"left=Pipeline.*must be an OrderChoice", lambda p, w: vgnb.OrderExplorer(p)),
    (r"right=3: must be an OrderChoice", lambda p, w: vgnb.OrderExplorer(right=3)),
    (r"tokenizers=3: must be tokenizers", lambda p, w: vgnb.desk(3)),
    (r"where='tiny-rand': must be a folder", lambda p, w: vgnb.desk("tiny-rand")),
    (r"steps='Pipeline': must be the steps", lambda p, w: vgnb.SamplingPlayer(p, p.tokenizer.decode, (8, 8))),
    (r"decode='x': must be a function", lambda p, w: vgnb.SamplingPlayer(p.stream("heart"), "x", (8, 8))),
    (r"shape=\(4, 4\): must be the grid of the run's 64",
     lambda p, w: vgnb.SamplingPlayer(p.stream("heart"), p.tokenizer.decode, (4, 4))),
    (r"shape=64: must be the grid of the run's 64",
     lambda p, w: vgnb.SamplingPlayer(p.stream("heart"), p.tokenizer.decode, 64)),
])
def test_what_is_not_clear_is_refused_by_name(pipe, codes, two, words, ask):
    with pytest.raises(BadInput, match=f"^{words}"): ask(pipe, SimpleNamespace(codes=codes, two=two))


def test_a_pipeline_keeps_its_settings_after_a_refusal(pipe):
    before = pipe.sampling
    with pytest.raises(BadInput): pipe.sampling = None
    assert pipe.sampling is before
    pipe.sampling = pipe.settings(steps=5)
    assert pipe.sampling.steps == 5
    pipe.sampling = before


def test_the_desk_takes_a_pipeline_s_name(pipe):
    shown = vgnb.desk("tiny-randar").snapshot()
    assert shown.tobytes() == vgnb.desk(pipe).snapshot().tobytes()


# ---- words

def test_a_model_that_cannot_be_enlarged_says_so(pgm, two):
    told = "can't be had: PartitionTransformer makes no pictures larger than its training grid"
    with pytest.raises(BadInput, match=rf"shape=\(12, 12\): {told}"): pgm.extrapolate("ring", (12, 12))
    with pytest.raises(BadInput, match=rf"canvas cells=\(16, 16\): {told}"):
        pgm.outpaint(two, (64, 64), "ring", ntk_boundary=2)


@pytest.mark.parametrize("name", ["n", "count", "num_samples"])
def test_how_many_is_said_by_labels(pipe, two, name):
    for ask in (pipe.sample, pipe.codes, pipe.stream, pipe):
        with pytest.raises(BadInput, match=rf'^{name}=3: .*\["heart"\] \* 3.*seed, .*ids'): ask("heart", **{name: 3})
    with pytest.raises(BadInput, match=f"^{name}=3: "): pipe.edit(two, BOX, "star", **{name: 3})
    with pytest.raises(BadInput, match=r"^setting='sedd': .*size, seed, ids.*did you mean seed"):
        pipe.sample("heart", sedd=1)


@pytest.mark.parametrize("where, hint", [("runs/quickstart", True), ("runs/nothing", False)])
def test_a_folder_that_is_not_there_is_named_before_the_hub(where, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Missing, match="is no folder here, and as a hub repository it could not be fetched") as e:
        from_pretrained(where)
    assert ("scripts/quickstart.sh" in str(e.value)) == hint and "\n" not in str(e.value)
    with pytest.raises(Missing, match=r"must be a folder .*quickstart.sh makes"): from_pretrained("a/b/quickstart")


def test_a_word_of_another_package_points_to_its_rooms(monkeypatch):
    with pytest.raises(BadInput, match="settings.ini, or in VGNB_RUN_ROOMS") as e:
        from_json({"kind": "order.rings"}, None, "sampling.order")
    assert "order.raster" in e.value.allowed and "guidance" not in e.value.allowed
    with pytest.raises(BadInput, match="kind='rings': .*tokenizer.*rooms") as e: from_json({"kind": "rings"})
    assert "order.raster" not in e.value.allowed

    monkeypatch.setenv("VGNB_RUN_ROOMS", "my.rooms other")
    assert run_manifest({}, seed=0)["rooms"] == ["my.rooms", "other"]


def test_a_repeated_run_knows_the_same_rooms(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("rerun_script", ROOT / "scripts/rerun.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.delenv("VGNB_RUN_ROOMS", raising=False)
    seen = []
    monkeypatch.setattr(processes, "run_below", lambda command, cwd, env: seen.append(env.get("VGNB_RUN_ROOMS")) or 0)
    for rooms in ({"rooms": ["a", "b.c"]}, {"rooms": []}, {}):
        script.repeat({"cwd": str(tmp_path), "device": "cpu: x"} | rooms, [])
    assert seen == ["a b.c", None, None]


# ---- parts of one's own

class _Order(Order):
    "An order that answers as it is told."
    def __init__(self, cells): object.__setattr__(self, "cells", cells)
    def fixed(self, grid, draws, at): return self.cells


class _Planless(Order):
    def plan(self, *args): return torch.arange(64)[None], [1] * 64


class _Whole(Order):
    def counts(self, *args): return [2.0] * 32


class _Guidance(Unguided):
    def __init__(self, answer): self.answer = answer
    def mix(self, p, clock): return self.answer(p.logits)


@pytest.mark.parametrize("words, part", [
    (r"order='ndarray': must be a tensor of integers", dict(order=_Order(np.arange(64)))),
    (r"order='list': must be a tensor of integers", dict(order=_Order(list(range(64))))),
    (r"order='torch.float32': must be integers", dict(order=_Order(torch.arange(64.0)))),
    (r"order=\(63,\): must list all 64", dict(order=_Order(torch.arange(63)))),
    (r"order='_Planless': plan must return a Plan, not tuple", dict(order=_Planless())),
    (r"order=\[2.0, .*must be positive group sizes", dict(order=_Whole())),
    (r"guidance='_Guidance': mix must return float logits \(4, 1, 256\), not float32 \(1, 4, 1, 256\)",
     dict(guidance=_Guidance(lambda logits: logits))),
    (r"guidance='_Guidance': mix .* not ndarray", dict(guidance=_Guidance(lambda logits: logits[0].numpy()))),
    (r"guidance='_Guidance': mix .* not NoneType", dict(guidance=_Guidance(lambda logits: None))),
    (r"guidance='_Guidance': mix .* not int64", dict(guidance=_Guidance(lambda logits: logits[0].long()))),
])
def test_parts_of_one_s_own_are_told_what_they_must_return(pipe, words, part):
    sampler = Sampler(pipe.generator, min_rows=4, **part)
    with pytest.raises(BadInput, match=f"^{words}"):
        sampler.sample(Cond(labels=torch.tensor([6])), torch.tensor([0]), Keyed(0), grid=Grid((8, 8)))


@pytest.mark.parametrize("words, change", [
    ("must return a Prediction, not float32", lambda p: p.logits),
    ("must return a Prediction, not NoneType", lambda p: None),
    (r"must return float logits \(1, 4, 1, 256\), not float32 \(4, 1, 256\)", lambda p: Prediction(p.logits[0])),
    (r"must return float logits .* not float32 \(1, 4, 1, 255\)", lambda p: Prediction(p.logits[..., 1:])),
    (r"must return float logits .* not ndarray", lambda p: Prediction(p.logits.numpy())),
])
def test_a_generator_of_one_s_own_is_told_too(pipe, monkeypatch, words, change):
    right = pipe.generator.predict
    monkeypatch.setattr(pipe.generator, "predict", lambda *args, **how: change(right(*args, **how)), raising=False)
    with pytest.raises(BadInput, match=f"^generator='RandomOrderTransformer': predict {words}"):
        pipe.codes("heart", guidance=1.0, schedule="one-by-one")


def test_an_adaptive_order_is_told_too():
    class Chooses(type(ORDERS["confidence"])):
        def choose(self, *args): return np.zeros((4, 1))
    sampler = Sampler(from_pretrained("tiny-maskgit").generator, order=Chooses(), min_rows=4)
    with pytest.raises(BadInput, match=r"^order='Chooses': choose must return int64 columns \(4, 1\), not ndarray"):
        sampler.sample(Cond(labels=torch.tensor([6])), torch.tensor([0]), Keyed(0), grid=Grid((8, 8)))
