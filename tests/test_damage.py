"""Damage of every kind to every kind of file that the project writes.

A flipped bit, a zeroed page, a cut, an empty file, another file of the same kind, an HTML page, a pointer of Git LFS:
each ends in one line that names the file, or heals. No number and no picture ever changes in silence.
"""
import contextlib
import errno
import gc
import io
import json
import resource
import runpy
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import vgnb.data.shards as shards
import vgnb.evaluation.measure
import vgnb.search
from tests.toy_training import RECIPE, Pair, Points, result
from vgnb import core
from vgnb.core import VgnbError, digest, load_card, save_card
from vgnb.data.codes import CodeStore
from vgnb.data.shapes import Shapes
from vgnb.data.shards import read_sealed
from vgnb.data.text import FeaturePlan, FeatureStore, FeatureWriter
from vgnb.data.transforms import Augment
from vgnb.evaluation.feature_passes import Passes, cluster_dataset
from vgnb.evaluation.features import Extractor, Features
from vgnb.evaluation.judge import Judge, JudgeRecipe, load_judge, save_judge
from vgnb.evaluation.reference import FeatureShards, extract_reference, reference_plan
from vgnb.evaluation.samples import Statistics, load_statistics, open_samples, save_samples, save_statistics
from vgnb.generators.raster import RasterConfig, RasterTransformer
from vgnb.jobs import Part, SampleJob, planned_labels
from vgnb.pipeline import Pipeline
from vgnb.pngs import pixel_hash
from vgnb.processes import Processes
from vgnb.reopened import reopen
from vgnb.sampling.settings import Sampling
from vgnb.saved import load_model, save_model
from vgnb.search import GuidanceSearch
from vgnb.tokenizers.streamed_kmeans import Clusters
from vgnb.tokenizers.vqgan import vqgan
from vgnb.training.checkpoints import HostCopies, newest, read_checkpoint, write_checkpoint
from vgnb.training.extract import extract_codes
from vgnb.training.run_folder import Run
from vgnb.training.shared_checkpoints import take_pieces, write_shared
from vgnb.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
SOURCE = Shapes(24, 32)


# ---- ways to damage a file

def flips(count: int):
    "`count` files, each with another bit changed, from the first byte to the last."
    def damage(raw: bytes, other: bytes | None):
        for n, at in enumerate(np.linspace(0, len(raw) - 1, count).astype(int)):
            yield raw[:at] + bytes([raw[at] ^ (1 << n % 8)]) + raw[at + 1:]
    return damage


def zeroed(raw, other):
    "A page of zeros at the beginning, in the middle, at the end."
    page = min(4096, max(1, len(raw) // 4))
    for at in (0, (len(raw) - page) // 2, len(raw) - page): yield raw[:at] + bytes(page) + raw[at + page:]


def cut(raw, other):
    for share in (0.1, 0.5, 0.9): yield raw[:int(len(raw) * share)]
    yield raw[:-1]


def empty(raw, other): yield b""
def exchanged(raw, other): yield from [other] if other else []
def page(raw, other): yield b"<!DOCTYPE html>\n<html><head><title>404</title></head><body>Not found</body></html>\n"


def pointer(raw, other):
    yield b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"


def everything(raw: bytes, other: bytes | None, count: int):
    "(name, the file's bytes) of every damage that changes something, then of random ones up to `count`."
    rng, done = np.random.default_rng(0), 0
    for name, damage in DAMAGES.items():
        for bad in damage(raw, other):
            if bad == raw: continue
            done += 1
            yield name, bad
    while done < count:
        name, bad = random_damage(raw, rng)
        if bad == raw: continue
        done += 1
        yield name, bad


def random_damage(raw: bytes, rng) -> tuple[str, bytes]:
    "A bit flipped, a page of zeros or a cut, anywhere."
    name, at = ("flips", "flips", "zeroed", "cut")[rng.integers(4)], int(rng.integers(len(raw)))
    page = int(rng.integers(1, 4097))
    if name == "flips": return name, raw[:at] + bytes([raw[at] ^ (1 << rng.integers(8))]) + raw[at + 1:]
    return name, raw[:at] + (bytes(len(raw[at:at + page])) + raw[at + page:] if name == "zeroed" else b"")


DAMAGES = {"flips": flips(24), "zeroed": zeroed, "cut": cut, "empty": empty, "exchanged": exchanged, "html": page,
           "lfs": pointer}


# ---- what is written, and how it is read

@pytest.fixture(scope="module", autouse=True)
def quick():
    "No waiting for the disk, no subprocess a record, no picture, and a distance that needs no package."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vgnb.search, "png_bytes", lambda *args: b"a picture")
        patch.setattr(vgnb.evaluation.measure, "frechet_distance", lambda a, b: float((a.mean - b.mean).norm()))
        patch.setattr(core, "_fsync", lambda path: None)
        patch.setattr(core, "_git", lambda *args: None)
        yield


@pytest.fixture(scope="module")
def room(tmp_path_factory): return tmp_path_factory.mktemp("damage")


@pytest.fixture(scope="module")
def pipes():
    "Two pipelines of one shape."
    def pipe(seed):
        torch.manual_seed(seed)
        tokenizer = vqgan("tiny-shapes", width=16, z=8, groups=8, quantizer=dict(codebook=32, usage=0))
        generator = RasterTransformer(RasterConfig(1, 32, 2, ffn_multiple=16, vocab=32, grid=(4, 4), classes=10), seed)
        torch.nn.init.normal_(generator.head.weight, std=0.5)
        return Pipeline(tokenizer, generator, Sampling(rows=4, guidance=float(seed + 1)), Shapes(10).classes)

    return pipe(0), pipe(1)


def weights(model) -> str: return digest(model.state_dict())


class Job(SampleJob):
    "Pictures that are quickly made, each a function of seed and id."
    def make(self, start):
        ids = np.arange(start, min(start + self.part, self.count))
        return Part(np.stack([np.full((8, 8, 3), (17 * i + 101 * self.seed) % 256, np.uint8) for i in ids]))


def job(pipe, folder: Path, seed: int = 0) -> SampleJob:
    return Job(pipe, planned_labels(10, 10), folder / "s.npz", seed, part=4)


def begun(pipe, folder, seed):
    "A job that was killed after two parts, which are sound."
    work = job(pipe, folder, seed)
    work.begin()
    for start, file in work.parts()[:2]: work.write_part(file, work.make(start))


def store(tokenizer, folder, finished=True):
    extract_codes(tokenizer, SOURCE, folder / "codes", Augment("center", 32), shard_size=8)
    if not finished: (folder / "codes" / "index.json").unlink()


def completed(tokenizer, folder):
    "The codes of a store that is completed."
    store(tokenizer, folder)
    return codes(folder)


def codes(folder) -> str:
    found = CodeStore(folder / "codes")
    return digest(*found.batch(range(24)), found.ids, found.classes)


class Toy(Extractor):
    "Mean colours of the four quarters: features that cost nothing."
    dims, classes, id, device = 12, 0, "toy", "cpu"
    def look(self, images):
        h, w = (n // 2 for n in images.shape[2:])
        quarters = [images[:, :, a:a + h, b:b + w].double().mean((2, 3)) for a in (0, h) for b in (0, w)]
        return Features(torch.cat(quarters, 1).float())


def statistics(seed) -> Statistics:
    x = torch.from_numpy(np.random.default_rng(seed).normal(size=(40, 6)))
    return Statistics(6, "toy", "pictures").update(x)


def stored(file):
    s = open_samples(file).statistics
    return digest(s.mean, s.cov, s.count, s.extractor)


def looked_at(folder) -> str:
    "Reference statistics, completed."
    extract_reference(SOURCE, folder / "ref.npz", Toy(), shard_size=8, progress=False)
    return stored(folder / "ref.npz")


def begun_reference(folder, source=SOURCE):
    "One of its shards is there."
    plan = reference_plan(open_samples(source), Toy(), folder / "ref.npz", 0, 8)
    FeatureShards(folder / "ref.npz.parts", plan).write(0, range(8), Toy()(source.batch(range(8))[0]).pool)


def search(pipe, folder):
    return GuidanceSearch(pipe, "shapes://?n=24&seed=3", Toy(), folder / "search", (1.0, 2.0),
                          count=8, final=0, metrics=("fid",), part=8)


def searched(pipe, folder):
    "Its numbers."
    results = search(pipe, folder).run()
    return digest({k: v["values"] for k, v in results["scales"].items()})


def saved(folder, seed):
    "Two checkpoints."
    for step in (1, 2):
        files = {"model": {"w": torch.full((64,), float(step + seed))}}
        write_checkpoint(folder / "saves", step, files, {"recipe": {"seed": seed}})


def saved_in_pieces(folder, seed):
    "Two checkpoints as the processes of a shared-out run write them; here one holds all pieces."
    for step in (1, 2):
        files = {"model": {"w": torch.full((64,), float(step + seed))}}
        write_shared(folder / "saves", step, take_pieces(HostCopies(), files), {"recipe": {"seed": seed}}, Processes())


def chosen(folder):
    "What a run would go on from: the last checkpoint, or the one before."
    found = newest(folder / "saves", lambda reason: None)
    files, state = read_checkpoint(found)
    assert found.name.endswith(str(state["step"])) and files["model"]["w"][0] == state["step"]
    return "a whole checkpoint"


evaluate = runpy.run_path(str(ROOT / "scripts" / "evaluate.py"))


def facts(folder):
    "What evaluate.py says of the samples' origin: the truth, or nothing."
    options = evaluate["Options"]("ref.npz", str(folder / "s.npz"))
    found = evaluate["recorded"](options, open_samples(folder / "s.npz"))
    return digest(found) if found else None


def judge_in(folder):
    for p in (ROOT / "vgnb" / "weights").glob("shapes-judge.*"): shutil.copy(p, folder)


def teach(pipe, folder, seed):
    "A generator with averages beside its weights."
    averages = {k: v + seed + 1 for k, v in pipe.generator.state_dict().items()}
    save_model(folder / "m", pipe.generator, pipe.generator.config, ema=averages)


def captions(folder, seed):
    "Features of nine captions."
    writer = FeatureWriter(folder / "text", FeaturePlan(8, 4, 9, "e", shard_size=5))
    g = torch.Generator().manual_seed(seed)
    for shard in writer.todo():
        ids = writer.span(shard)
        writer.write(shard, [torch.randn(1 + i % 4, 8, generator=g) for i in ids], ids)
    writer.finish()


def told(folder) -> str:
    store = FeatureStore(folder / "text")
    return digest(store.ids, *(t for i in range(len(store)) for t in store[i] if torch.is_tensor(t)))


def reopened(folder) -> str | None:
    "The words of a picture, and its pixels; None where these are not those that the words are about."
    opened = reopen(folder / "x.png")
    is_its_own = pixel_hash(opened.picture) == opened.origin.pixels
    return digest(opened.origin.note(), np.asarray(opened.picture)) if is_its_own else None


def half_clustered(folder, seed, iterations=1, until=None):
    "K-means over the pixels' colours; at `until` batches it is stopped."
    passes = Passes(Shapes(40, 16, seed), Augment("center", 16), batch=8)
    def look(images):
        nonlocal until
        if until is not None: until -= 1
        if until == -1: raise KeyboardInterrupt
        return torch.nn.functional.avg_pool2d(images, 8)
    of = {"network": "colours"}
    return cluster_dataset(look, Clusters(4, 3), passes, folder / "c.safetensors", of, iterations=iterations, every=1)


def begin_clusters(folder, seed):
    with contextlib.suppress(KeyboardInterrupt): half_clustered(folder, seed, until=8)


def pt_reference(folder, seed):
    extract_reference(Shapes(24, 32, seed), folder / "r.pt", Toy(), shard_size=8, progress=False)


def same_reference(folder) -> str:
    "The statistics, which a second command leaves as they are."
    pt_reference(folder, 0)
    return stored(folder / "r.pt")


def begun_run(folder, seed):
    "A run that ended before its first checkpoint."
    recipe = replace(RECIPE, seed=seed)
    Trainer(Pair(), Points(), recipe, folder / "run", Run(progress=False, tracker="none")).fit(2)
    shutil.rmtree(folder / "run" / "checkpoints")


def gone_on(folder) -> str:
    Trainer(Pair(), Points(), RECIPE, folder / "run", Run(progress=False, tracker="none")).fit(2)
    return result(folder / "run")


@dataclass
class Kind:
    "A kind of file."
    file: str            # in the folder
    make: Callable       # (pipe, folder, seed): writes it, with what belongs to it
    read: Callable       # (pipe, folder) -> what rests on it
    nothing: bool = False  # whether `read` may also know nothing (None)


def named(report):
    "A file of numbers."
    return lambda pipe, folder, seed: save_card(folder / report, {"values": {"fid": 1.5 + seed}, "protocol": {}})


KINDS = {
    "weights": Kind("p/generator/model.safetensors", lambda pipe, folder, seed: pipe.save_pretrained(folder / "p"),
                    lambda pipe, folder: weights(load_model(folder / "p/generator"))),
    "config": Kind("p/generator/config.json", lambda pipe, folder, seed: pipe.save_pretrained(folder / "p"),
                   lambda pipe, folder: digest(load_model(folder / "p/generator").config)),
    "pipeline": Kind("p/pipeline.json", lambda pipe, folder, seed: pipe.save_pretrained(folder / "p"),
                     lambda pipe, folder: digest(Pipeline.from_pretrained(folder / "p").sampling)),
    "a part of a pipeline": Kind(
        "p/tokenizer/model.safetensors", lambda pipe, folder, seed: pipe.save_pretrained(folder / "p"),
        lambda pipe, folder: weights(Pipeline.from_pretrained(folder / "p").tokenizer)),
    "averages": Kind("m/ema.safetensors", teach, lambda pipe, folder: weights(load_model(folder / "m"))),
    "captions": Kind("text/00001.features", lambda pipe, folder, seed: captions(folder, seed),
                     lambda pipe, folder: told(folder)),
    "picture": Kind("x.png", lambda pipe, folder, seed: pipe.save(folder / "x.png", [seed], seed=seed),
                    lambda pipe, folder: reopened(folder), nothing=True),
    "clusters under way": Kind("c.safetensors", lambda pipe, folder, seed: begin_clusters(folder, seed),
                               lambda pipe, folder: digest(half_clustered(folder, 0).state_dict())),
    "note of a reference": Kind("r.pt.json", lambda pipe, folder, seed: pt_reference(folder, seed),
                                lambda pipe, folder: same_reference(folder)),
    "record of a run": Kind("run/run.json", lambda pipe, folder, seed: begun_run(folder, seed),
                            lambda pipe, folder: gone_on(folder)),
    "shard": Kind("codes/00001.codes", lambda pipe, folder, seed: store(pipe.tokenizer, folder),
                  lambda pipe, folder: codes(folder)),
    "index": Kind("codes/index.json", lambda pipe, folder, seed: store(pipe.tokenizer, folder),
                  lambda pipe, folder: codes(folder)),
    "plan of a store": Kind("codes/plan.json", lambda pipe, folder, seed: store(pipe.tokenizer, folder),
                            lambda pipe, folder: completed(pipe.tokenizer, folder)),
    "shard under way": Kind("codes/00001.codes", lambda pipe, folder, seed: store(pipe.tokenizer, folder, False),
                            lambda pipe, folder: completed(pipe.tokenizer, folder)),
    "part": Kind(".s.npz.parts/000000004.part", begun,
                 lambda pipe, folder: digest(job(pipe, folder).run(progress=False).read_bytes())),
    "plan of a job": Kind(".s.npz.parts/plan.json", begun,
                          lambda pipe, folder: digest(job(pipe, folder).run(progress=False).read_bytes())),
    "record of samples": Kind("s.run.json", lambda pipe, folder, seed: job(pipe, folder, seed).run(progress=False),
                              lambda pipe, folder: facts(folder), nothing=True),
    "finished samples": Kind("s.npz", lambda pipe, folder, seed: job(pipe, folder, seed).run(progress=False),
                             lambda pipe, folder: digest(job(pipe, folder).run(progress=False).read_bytes())),
    "statistics": Kind("s.npz", lambda pipe, folder, seed: save_statistics(folder / "s.npz", statistics(seed)),
                       lambda pipe, folder: stored(folder / "s.npz")),
    "safe statistics": Kind(
        "s.safetensors", lambda pipe, folder, seed: save_statistics(folder / "s.safetensors", statistics(seed)),
        lambda pipe, folder: stored(folder / "s.safetensors")),
    "torch statistics": Kind("s.pt", lambda pipe, folder, seed: save_statistics(folder / "s.pt", statistics(seed)),
                             lambda pipe, folder: stored(folder / "s.pt")),
    "looks": Kind(
        "ref.npz.parts/00000.looks", lambda pipe, folder, seed: begun_reference(folder, Shapes(24, 32, seed)),
        lambda pipe, folder: looked_at(folder)),
    "plan of a reference": Kind(
        "ref.npz.parts/plan.json", lambda pipe, folder, seed: begun_reference(folder, Shapes(24, 32, seed)),
        lambda pipe, folder: looked_at(folder)),
    "results of a search": Kind("search/results.json", lambda pipe, folder, seed: search(pipe, folder).run(),
                                lambda pipe, folder: searched(pipe, folder)),
    "looks of a search": Kind("search/reference.looks", lambda pipe, folder, seed: search(pipe, folder).run(),
                              lambda pipe, folder: digest(search(pipe, folder).look().pool)),
    "manifest": Kind("saves/step-000000002/manifest.json", lambda pipe, folder, seed: saved(folder, seed),
                     lambda pipe, folder: chosen(folder)),
    "state": Kind("saves/step-000000002/state.json", lambda pipe, folder, seed: saved(folder, seed),
                  lambda pipe, folder: chosen(folder)),
    "checkpoint": Kind("saves/step-000000002/model.safetensors", lambda pipe, folder, seed: saved(folder, seed),
                       lambda pipe, folder: chosen(folder)),
    "pieces": Kind("saves/step-000000002/model.00001-of-00001.safetensors",
                   lambda pipe, folder, seed: saved_in_pieces(folder, seed), lambda pipe, folder: chosen(folder)),
    "card of pieces": Kind("saves/step-000000002/pieces.json",
                           lambda pipe, folder, seed: saved_in_pieces(folder, seed),
                           lambda pipe, folder: chosen(folder)),
    "numbers": Kind("numbers.json", named("numbers.json"),
                    lambda pipe, folder: digest(load_card(folder / "numbers.json")["values"])),
    "judge": Kind("shapes-judge.safetensors", lambda pipe, folder, seed: judge_in(folder),
                  lambda pipe, folder: weights(load_judge(folder / "shapes-judge.safetensors")[0])),
    "card of the judge": Kind("shapes-judge.json", lambda pipe, folder, seed: judge_in(folder),
                              lambda pipe, folder: digest(load_judge(folder / "shapes-judge.safetensors")[1])),
}
# another file of the kind is simply another
LEGAL = {"statistics", "safe statistics", "torch statistics", "numbers", "picture"}


@pytest.mark.fault("F9")
@pytest.mark.parametrize("count", [0, pytest.param(200, marks=pytest.mark.full)])
@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_named_or_heals(kind, count, room, pipes, figures):
    "Every damage of the list, and with `count` random ones, too: never another number or picture in silence."
    k, room = KINDS[kind], room / str(count)
    made, foreign = room / kind / "made", room / kind / "other"
    for seed, folder in enumerate((made, foreign)):
        folder.mkdir(parents=True)
        k.make(pipes[seed], folder, seed)
    raw, other = (made / k.file).read_bytes(), (foreign / k.file).read_bytes()
    other = None if other == raw or kind in LEGAL else other
    shutil.copytree(made, room / kind / "sound")
    expected = k.read(pipes[0], room / kind / "sound")
    assert expected is not None

    said = {}
    for n, (name, bad) in enumerate(everything(raw, other, count)):
        place = room / kind / f"{name}{n}"
        shutil.copytree(made, place)
        (place / k.file).write_bytes(bad)
        said.setdefault(name, []).append(outcome(k, pipes[0], place, expected, f"{kind}, {name} {n}"))
        shutil.rmtree(place)
    total = sum(map(len, said.values()))
    assert total >= max(20, count) and {word for words in said.values() for word in words} <= set(OUTCOMES)
    counted = {name: {word: words.count(word) for word in OUTCOMES} for name, words in said.items()}
    figures(corruptions=total, detected=total, a_kind={kind: total}, matrix={kind: counted})


OUTCOMES = ("refused", "healed", "unknown")


def outcome(k: Kind, pipe, place: Path, expected, what: str) -> str:
    "refused, healed, or unknown; anything else fails."
    with contextlib.redirect_stderr(io.StringIO()):
        try: found = k.read(pipe, place)
        except VgnbError as e:
            words, file = str(e), Path(k.file)
            assert "\n" not in words, f"{what}: {words}"
            names = [file.name, file.parent.name.removeprefix(".").removesuffix(".parts"),
                     file.stem if "." in file.stem else ""]                     # what a note is about
            assert any(name and name in words for name in names), f"{what} names no file: {words}"
            return "refused"
    if found is None and k.nothing: return "unknown"
    assert found == expected, f"{what}: read as something else"
    return "healed"


# ---- the harness itself, and what it can't show

def test_the_harness_notices_what_is_read_in_silence(tmp_path):
    (tmp_path / "n.txt").write_text("123")
    naive = Kind("n.txt", None, lambda pipe, folder: (folder / "n.txt").read_text())
    with pytest.raises(AssertionError, match="something else"): outcome(naive, None, tmp_path, "124", "naive")


def test_samples_that_changed_are_not_measured(tmp_path):
    "Every array of an npz is compared with its checksum before anything rests on it."
    x = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    file = tmp_path / "x.npz"
    save_samples(file, x, np.arange(40) % 10)
    raw = file.read_bytes()
    for at in np.linspace(200, len(raw) - 400, 60).astype(int):
        file.write_bytes(raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1:])
        with contextlib.suppress(VgnbError):
            found = open_samples(file)
            assert (found.images == x).all() and (found.labels == np.arange(40) % 10).all()


@pytest.mark.fault("F9")
def test_arrays_that_a_table_of_contents_hides_are_missed(tmp_path):
    "A changed length of an entry's comment swallows the entries that follow; no checksum covers it."
    file = tmp_path / "s.npz"
    save_statistics(file, statistics(0))
    raw = file.read_bytes()
    for entry in [at for at in range(len(raw)) if raw[at:at + 4] == b"PK\1\2"][:-1]:
        for at in (entry + 31, entry + 33):                           # high bytes: of an extra field, of the comment
            file.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1:])
            with pytest.raises(VgnbError, match="s.npz"): load_statistics(file)


def test_an_entry_called_a_folder_is_not_read_as_numbers(tmp_path):
    "Its checksum fits, and torch would hand out memory that nobody wrote. Nor are zipfile's own errors what one gets."
    file = tmp_path / "s.pt"
    save_statistics(file, Statistics(12).update(torch.randn(30, 12)))
    raw = file.read_bytes()
    folders = [at + 38 for at in range(len(raw)) if raw[at:at + 4] == b"PK\1\2"]
    last = range(raw.rindex(b"PK\6\6") + 40, len(raw) - 22)
    for at, bit in [(at, 16) for at in folders] + [(at, 1 << at % 8) for at in last]:
        file.write_bytes(raw[:at] + bytes([raw[at] ^ bit]) + raw[at + 1:])
        if at in folders:
            with pytest.raises(VgnbError, match="s.pt"): load_statistics(file)
        else:
            with contextlib.suppress(VgnbError): load_statistics(file)


def test_folders_without_hashes_load_and_say_so(tmp_path, pipes, capsys):
    "Of an older version, or made elsewhere."
    pipes[0].save_pretrained(tmp_path / "p")
    for part in ("p/tokenizer", "p/generator", "p"):
        file = next((tmp_path / part).glob("*.json"))
        card = load_card(file)
        file.write_text(json.dumps({k: v for k, v in card.items() if k not in ("seal", "weights", "parts")}))
    assert weights(Pipeline.from_pretrained(tmp_path / "p").generator) == weights(pipes[0].generator)
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 2 and all("no hashes of its weights; taken as it is" in line for line in said)


def test_a_configuration_changed_by_hand_needs_its_seal_taken_out(tmp_path, pipes):
    pipes[0].save_pretrained(tmp_path / "p")
    file = tmp_path / "p" / "pipeline.json"
    card = load_card(file)
    card["sampling"]["guidance"]["scale"] = 7.0
    file.write_text(json.dumps(card))
    with pytest.raises(VgnbError, match='remove its "seal"'): Pipeline.from_pretrained(tmp_path / "p")
    file.write_text(json.dumps({k: v for k, v in card.items() if k != "seal"}))
    assert Pipeline.from_pretrained(tmp_path / "p").sampling.guidance.scale == 7.0


def test_a_copy_that_lost_its_averages_is_not_the_plain_model(tmp_path, pipes):
    model = pipes[0].generator
    save_model(tmp_path / "m", model, model.config, ema={k: v + 1 for k, v in model.state_dict().items()})
    (tmp_path / "m" / "ema.safetensors").unlink()
    with pytest.raises(VgnbError, match="ema.safetensors"): load_model(tmp_path / "m")
    assert weights(load_model(tmp_path / "m", ema=False)) == weights(model)


def half(pipe):
    "The same pipeline, whose forward passes are in bf16."
    return Pipeline(pipe.tokenizer, pipe.generator, pipe.settings(precision="bf16"), pipe.classes)


@pytest.mark.parametrize("first, second", [(half, lambda pipe: pipe), (lambda pipe: pipe, half)])
def test_a_plan_of_another_precision_is_another_plan(tmp_path, pipes, first, second):
    begun(first(pipes[0]), tmp_path, 0)
    before = {p.name: p.read_bytes() for p in (tmp_path / ".s.npz.parts").iterdir()}
    with pytest.raises(VgnbError, match="sampling.precision=.*another job"): job(second(pipes[0]), tmp_path).begin()
    assert {p.name: p.read_bytes() for p in (tmp_path / ".s.npz.parts").iterdir()} == before


@pytest.mark.parametrize("plan", ["[1]", "3", '{"plan": [1]}'])
def test_a_plan_that_is_no_object_is_unreadable(tmp_path, pipes, plan):
    begun(pipes[0], tmp_path, 0)
    (tmp_path / ".s.npz.parts" / "plan.json").write_text(plan)
    with pytest.raises(VgnbError, match="without a readable plan"): job(pipes[0], tmp_path).begin()


def test_another_plan_is_refused_before_a_shard_is_read(tmp_path, pipes, monkeypatch):
    "An unreadable one is known by the first shards."
    read = []
    def counted(file, plan=""):
        read.append(file)
        return read_sealed(file, plan)

    def extracted(pipe): extract_codes(pipe.tokenizer, SOURCE, tmp_path / "codes", Augment("center", 32), shard_size=4)

    extracted(pipes[0])                                                                                # six shards
    monkeypatch.setattr(shards, "read_sealed", counted)
    with pytest.raises(VgnbError, match="holds another store"): extracted(pipes[1])
    assert read == []
    (tmp_path / "codes" / "plan.json").write_text("{")
    with pytest.raises(VgnbError, match="holds another store"): extracted(pipes[1])
    assert len(read) == 3


FOREIGN = {   # (file, entry): values that another program may have written there
    ("p/generator/config.json", "weights"): [[1], 3, "x", {"model.safetensors": 5}],
    ("p/tokenizer/config.json", "config"): [[1], 3, None],
    ("p/pipeline.json", "parts"): [[1], 3, {"tokenizer": [1]}, {"generator": {"model.safetensors": 5}}],
    ("p/pipeline.json", "tokenizer"): [5, [1], None],
    ("p/pipeline.json", "classes"): [[1, 2], ["a", "a", "a"], 3, {"a": 1}],
    ("p/pipeline.json", "grid"): [3, [0, 4], ["4", 4], [True, 4]],
    ("p/pipeline.json", "sampling"): [[1], 3]}


@pytest.mark.parametrize("file, entry", FOREIGN)
def test_a_card_of_other_types_is_one_clear_error(tmp_path, pipes, file, entry):
    pipes[0].save_pretrained(tmp_path / "p")
    card = load_card(tmp_path / file)
    for value in FOREIGN[file, entry]:
        (tmp_path / file).write_text(json.dumps({k: v for k, v in card.items() if k != "seal"} | {entry: value}))
        with pytest.raises(VgnbError) as e: Pipeline.from_pretrained(tmp_path / "p")
        assert "\n" not in str(e.value) and (entry in str(e.value) or "config" in str(e.value))


def test_names_of_a_pipeline_differ(pipes):
    for classes in (["a", "a"], [1, 2], "ab"):
        with pytest.raises(VgnbError, match="must be a list of different names"):
            Pipeline(pipes[0].tokenizer, pipes[0].generator, classes=classes)


FULL = {   # how something is written that needs more than a few kB
    "pt": lambda place: save_statistics(place / "r.pt", Statistics(64, count=5)),
    "npz": lambda place: save_statistics(place / "r.npz", Statistics(64, count=5)),
    "safetensors": lambda place: save_statistics(place / "r.safetensors", Statistics(64, count=5)),
    "judge": lambda place: save_judge(place / "j.safetensors", Judge(10, 8, 16), JudgeRecipe(1, 8)),
    "samples": lambda place: save_samples(place / "s.npz", np.zeros((9, 32, 32, 3), np.uint8))}


@pytest.mark.fault("F8")
@pytest.mark.parametrize("what", FULL)
def test_a_full_disk_is_an_error_of_the_system(tmp_path, what):
    "Whatever wrote: it names the file that was asked for, and nothing is left."
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, old[1][1]))
    try:
        with pytest.raises(OSError) as e: FULL[what](tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old[1])
        signal.signal(signal.SIGXFSZ, old[0])
    assert e.value.errno == errno.EFBIG and Path(e.value.filename).parent == tmp_path
    assert not list(tmp_path.iterdir())


# ---- growth

def live() -> int:
    "Bytes of all tensors that something still holds."
    gc.collect()
    held = [t.untyped_storage() for t in gc.get_objects() if type(t) in (torch.Tensor, torch.nn.Parameter)]
    return sum({s.data_ptr(): s.nbytes() for s in held}.values())


@pytest.mark.full
@pytest.mark.fault("F22")
def test_new_settings_do_not_stay_in_memory(pipes):
    pipe = pipes[0]
    given = torch.zeros(1, 16, 1, dtype=torch.long), torch.arange(16)[None] < 15          # one cell is left to sample
    def some(scales):
        for scale in scales: pipe.codes([0], guidance=float(scale), seed=1, given=given)

    some(range(1, 11))
    before = live()
    some(range(11, 211))
    assert live() - before < 100_000
    assert pipe.sampler(guidance=210.0) is pipe.sampler(guidance=210.0)       # and are still kept for the next call
