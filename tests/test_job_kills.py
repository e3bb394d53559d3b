"""Killed at every point: sampling jobs, extractions, references, exports, saved models and pipelines.

A *point* is each call that changes the disk (flush, rename, remove, make). At the n-th of them the process is dead:
that call and every one after it do nothing but raise, `finally` blocks included, as after SIGKILL. Then the same
command runs again, or another one, and what it leaves is what it leaves when nothing happened.
"""
import contextlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from vgnb import core, places
from vgnb.core import VgnbError, digest
from vgnb.data.codes import CodeStore
from vgnb.data.export import contents, export_images
from vgnb.data.images import open_images
from vgnb.data.layouts import awaits_its_place, export_codes, finish_export, layouts, store_from
from vgnb.data.shapes import Shapes
from vgnb.data.transforms import Augment
from vgnb.evaluation.features import load_extractor
from vgnb.evaluation.reference import extract_reference
from vgnb.evaluation.samples import load_statistics
from vgnb.generators.raster import RasterConfig, RasterTransformer
from vgnb.jobs import Part, SampleJob, planned_labels
from vgnb.pipeline import Pipeline
from vgnb.sampling.settings import Sampling
from vgnb.saved import load_model, save_model
from vgnb.tokenizers.vqgan import vqgan
from vgnb.training.extract import extract_codes, extract_published

CALLS = ("replace", "rename", "unlink", "rmdir", "mkdir", "remove")


class Killed(BaseException): "Nothing in the package catches it."


class Disk:
    "Counts the calls that change the disk; dead from number `at` on."
    def __init__(self, at: int | None = None):
        self.at, self.count, self.dead = at, 0, False

    def call(self, real, *args, **kw):
        if self.dead or self.count == self.at:
            self.dead = True
            raise Killed
        self.count += 1
        return real(*args, **kw)

    @contextlib.contextmanager
    def watch(self):
        "Inside `with`; afterwards what a dead process held is free, as the kernel would see to."
        with pytest.MonkeyPatch.context() as patch:
            for name in CALLS: patch.setattr(os, name, self._wrapped(getattr(os, name)))
            patch.setattr(os, "fsync", self._wrapped(lambda fd: None))      # a point, but no wait
            patch.setattr(os, "sync", self._wrapped(lambda: None))
            patch.setattr(core, "_git", lambda *args: None)                 # a subprocess a call
            try: yield
            except Killed: pass
        places._LOCKED.clear()

    def _wrapped(self, real): return lambda *args, **kw: self.call(real, *args, **kw)


def points(work, folder: Path) -> int:
    "How many calls `work(folder)` makes."
    disk = Disk()
    with disk.watch(): work(folder)
    return disk.count


def killed_everywhere(work, room: Path, prepare=None):
    "(n, folder) after `work` was killed at its n-th call, for every n."
    first = room / "first"
    first.mkdir(parents=True)
    if prepare: prepare(first)
    total = points(work, first)
    assert total > 3
    for n in range(total):
        folder = room / f"killed-{n}"
        folder.mkdir()
        if prepare: prepare(folder)
        disk = Disk(n)
        with disk.watch(): work(folder)
        assert disk.dead, f"point {n} was not reached"
        yield n, folder


def left(folder: Path) -> list[str]: return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))
def quietly(work, folder):
    with Disk().watch(): return work(folder)


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    tokenizer = vqgan("tiny-shapes", width=16, z=8, groups=8, quantizer=dict(codebook=32, usage=0))
    generator = RasterTransformer(RasterConfig(1, 32, 2, ffn_multiple=16, vocab=32, grid=(4, 4), classes=10), 0)
    return Pipeline(tokenizer, generator, Sampling(rows=4), Shapes(10).classes)


# ---- sampling

class Job(SampleJob):
    "Pictures that are quickly made, each a function of seed and id."
    def make(self, start):
        ids = np.arange(start, min(start + self.part, self.count))
        return Part(np.stack([np.full((4, 4, 3), 17 * i + 101 * self.seed, np.int64).astype(np.uint8) for i in ids]))


def sampler(pipe, seed=0, **kw):
    "Work for the harness."
    return lambda folder: Job(pipe, planned_labels(10, 4), folder / "s.npz", seed, part=4, **kw).run(progress=False)


def same_but_for_time(a: Path, b: Path) -> bool:
    def facts(file): return {k: v for k, v in core.load_card(file).items() if k not in ("time", "cwd", "seal")}
    return facts(a) == facts(b)


@pytest.fixture(scope="module")
def finished(pipe, tmp_path_factory):
    "What seeds 0 and 1 give when nothing happens."
    found = []
    for seed in (0, 1):
        folder = tmp_path_factory.mktemp(f"seed-{seed}")
        quietly(sampler(pipe, seed), folder)
        assert left(folder) == ["s.npz", "s.run.json"]
        found.append(folder)
    assert (found[0] / "s.npz").read_bytes() != (found[1] / "s.npz").read_bytes()
    return found


def check_done(folder, whole):
    assert left(folder) == ["s.npz", "s.run.json"]
    assert (folder / "s.npz").read_bytes() == (whole / "s.npz").read_bytes()
    assert same_but_for_time(folder / "s.run.json", whole / "s.run.json")


@pytest.mark.fault("F21")
def test_a_job_killed_anywhere_and_run_again(pipe, tmp_path, finished):
    for n, folder in killed_everywhere(sampler(pipe), tmp_path):
        if (folder / "s.npz").exists():                                    # never half a file, never without its record
            assert (folder / "s.npz").read_bytes() == (finished[0] / "s.npz").read_bytes(), n
            assert same_but_for_time(folder / "s.run.json", finished[0] / "s.run.json"), n
        quietly(sampler(pipe), folder)
        check_done(folder, finished[0])


def test_the_next_job_has_exactly_its_own_pictures(pipe, tmp_path, finished):
    "Another seed after a kill at any point, the clean-up included: refused while something is there, or all its own."
    refused = 0
    for _, folder in killed_everywhere(sampler(pipe), tmp_path):
        try: quietly(sampler(pipe, 1), folder)
        except VgnbError as e:
            refused += 1
            assert "--overwrite" in str(e)
            quietly(sampler(pipe, 1, overwrite=True), folder)
        check_done(folder, finished[1])
    assert refused > 10


def test_a_finished_file_that_is_overwritten_is_one_or_the_other(pipe, tmp_path, finished):
    both = [(folder / "s.npz").read_bytes() for folder in finished]
    def prepare(folder):
        for name in ("s.npz", "s.run.json"): shutil.copy(finished[0] / name, folder / name)

    for n, folder in killed_everywhere(sampler(pipe, 1, overwrite=True), tmp_path, prepare):
        assert (folder / "s.npz").read_bytes() in both, n
        quietly(sampler(pipe, 1, overwrite=True), folder)
        check_done(folder, finished[1])


@pytest.mark.fault("F21")
def test_a_job_killed_again_and_again(pipe, tmp_path, finished):
    "Each start gets one call further than it would alone."
    folder = tmp_path / "often"
    folder.mkdir()
    for n in range(1, 60):
        disk = Disk(n)
        with disk.watch(): sampler(pipe)(folder)
        if not disk.dead: break
    check_done(folder, finished[0])


@pytest.mark.parametrize("settings", [dict(seed=1), dict(size=16)])
def test_other_settings_never_write_over_what_is_finished(pipe, tmp_path, finished, settings):
    for name in ("s.npz", "s.run.json"): shutil.copy(finished[0] / name, tmp_path / name)
    with pytest.raises(VgnbError, match="exists already"): quietly(sampler(pipe, **settings), tmp_path)
    check_done(tmp_path, finished[0])


def test_a_finished_job_does_nothing_unless_its_file_changed(pipe, tmp_path, finished):
    for name in ("s.npz", "s.run.json"): shutil.copy(finished[0] / name, tmp_path / name)
    before = (tmp_path / "s.npz").stat().st_mtime_ns
    quietly(sampler(pipe), tmp_path)
    assert (tmp_path / "s.npz").stat().st_mtime_ns == before
    shutil.copy(finished[1] / "s.npz", tmp_path / "s.npz")
    with pytest.raises(VgnbError, match="is not the file that s.run.json describes"): quietly(sampler(pipe), tmp_path)
    quietly(sampler(pipe, overwrite=True), tmp_path)
    check_done(tmp_path, finished[0])


def test_parts_without_a_plan_are_refused(pipe, tmp_path):
    disk = Disk(12)
    with disk.watch(): sampler(pipe)(tmp_path)
    parts = tmp_path / ".s.npz.parts"
    assert list(parts.glob("*.part"))
    (parts / "plan.json").unlink()
    for seed in (0, 1):
        with pytest.raises(VgnbError, match="without a readable plan"): quietly(sampler(pipe, seed), tmp_path)


def test_parts_of_another_seed_are_made_anew(pipe, tmp_path, finished, capsys):
    "Somebody copied them: whole, of the right size, and of another plan."
    folders = [tmp_path / name for name in "ab"]
    for seed, folder in enumerate(folders):
        folder.mkdir()
        with Disk(14).watch(): sampler(pipe, seed)(folder)
    ours, theirs = (sorted((f / ".s.npz.parts").glob("*.part")) for f in folders)
    shutil.copy(theirs[0], ours[0])
    quietly(sampler(pipe), folders[0])
    check_done(folders[0], finished[0])
    assert capsys.readouterr().err.count("damaged, or of another job; made anew") == 1


# ---- extraction

def extraction(pipe, size=8):
    def work(folder):
        store = extract_codes(pipe.tokenizer, Shapes(24, 32), folder / "codes", Augment("center", 32), shard_size=size)
        return digest(*store.batch(range(24)), store.ids)
    return work


@pytest.mark.fault("F20")
def test_an_extraction_killed_anywhere(pipe, tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    quietly(extraction(pipe), whole)
    def stored(folder): return {p.name: p.read_bytes() for p in (folder / "codes").iterdir()}

    for n, folder in killed_everywhere(extraction(pipe), tmp_path):
        quietly(extraction(pipe), folder)
        assert stored(folder) == stored(whole), n
    with pytest.raises(VgnbError, match="shard_size is 8, not 12"): quietly(extraction(pipe, 12), whole)
    assert len(CodeStore(whole / "codes")) == 24


LAYOUTS = [pytest.param(layout, marks=pytest.mark.full) for layout in ("llamagen", "randar", "halton", "pgm")]


def seen(layout, folder) -> dict[str, int]:
    "The folders of a layout that can be seen, and how many files each holds."
    places = layouts[layout].targets(folder / "x_codes", "train")
    return {p.name: len(left(p)) for p in places if p.exists()}


def read(layout, folder):
    "Codes and labels, by whoever reads this layout."
    again = store_from(layout, folder / "x_codes", vocab=32, classes=10)
    return digest(*(t for codes, label, _ in (again[i] for i in range(len(again))) for t in (codes.long(), label)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_extraction_into_a_published_layout_killed_anywhere(pipe, tmp_path, layout):
    "Folders are seen whole or not at all; the same command puts in its place what a kill between two of them left."
    def work(folder):
        uri = f"{layout}://{folder}/x_codes"
        return extract_published(pipe.tokenizer, Shapes(6, 32), uri, Augment("center", 32), shard_size=4)

    whole, between = tmp_path / "whole", 0
    whole.mkdir()
    quietly(work, whole)
    places = seen(layout, whole)
    for n, folder in killed_everywhere(work, tmp_path):
        there = seen(layout, folder)
        assert there.items() <= places.items(), n
        between += 0 < len(there) < len(places)
        quietly(work, folder)
        assert left(folder) == left(whole) and read(layout, folder) == read(layout, whole), n
    assert bool(between) == (len(places) > 1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_export_of_codes_killed_anywhere(pipe, tmp_path, layout):
    codes = extract_codes(pipe.tokenizer, Shapes(6, 32), tmp_path / "store", Augment("center", 32))
    def work(folder): return export_codes(codes, layout, folder / "x_codes")

    whole = tmp_path / "whole"
    whole.mkdir()
    quietly(work, whole)
    for n, folder in killed_everywhere(work, tmp_path):
        waits = awaits_its_place(layout, folder / "x_codes")
        assert quietly(lambda folder: finish_export(layout, folder / "x_codes"), folder) == waits, n
        if not seen(layout, folder): quietly(work, folder)
        assert left(folder) == left(whole) and read(layout, folder) == read(layout, whole), n
        with pytest.raises(VgnbError, match="exists already"): quietly(work, folder)


def test_an_export_over_what_another_left_says_so(pipe, tmp_path):
    "What was interrupted is whole then, and is not the codes that are asked for."
    codes = extract_codes(pipe.tokenizer, Shapes(6, 32), tmp_path / "store", Augment("center", 32))
    def work(folder): return export_codes(codes, "llamagen", folder / "x_codes")
    killed = (folder for _, folder in killed_everywhere(work, tmp_path))
    folder = next(folder for folder in killed if awaits_its_place("llamagen", folder / "x_codes"))
    with pytest.raises(VgnbError, match="holds what an interrupted export had written, whole now"): work(folder)
    assert len(seen("llamagen", folder)) == 2 and not awaits_its_place("llamagen", folder / "x_codes")


@pytest.mark.parametrize("name", ["ref.npz", "ref.safetensors", "ref.pt"])
def test_a_reference_killed_anywhere(name, tmp_path):
    judge = load_extractor("shapes-judge")
    keep = 6 if name == "ref.npz" else 0
    def work(folder):
        extract_reference(Shapes(24, 32), folder / name, judge, keep=keep, shard_size=12, progress=False)

    whole = tmp_path / "whole"
    whole.mkdir()
    quietly(work, whole)
    for n, folder in killed_everywhere(work, tmp_path):
        try: quietly(work, folder)
        except VgnbError as e:                                             # a torch file tells nothing of itself
            assert name == "ref.pt" and "exists already" in str(e), n
        note = ["ref.pt.json"] if name == "ref.pt" else []                  # what a torch file rests on, sealed
        assert [f for f in left(folder) if f[0] != "."] == [name, *note], n
        ours, theirs = (load_statistics(place / name) for place in (folder, whole))
        assert torch.equal(ours.cov, theirs.cov) and ours.count == theirs.count, n


@pytest.mark.parametrize("out", ["moved", "moved.tar", "wds://moved"])
def test_an_export_killed_anywhere(out, tmp_path):
    source = Shapes(12, 32)
    def place(folder): return out.replace("moved", str(folder / "moved"))
    def work(folder): return export_images(source, place(folder), shard_size=8)

    expected = contents(source)
    for n, folder in killed_everywhere(work, tmp_path):
        with contextlib.suppress(VgnbError): quietly(work, folder)         # refused where all of it is there
        assert contents(open_images(place(folder))) == expected, n
        assert [p.name for p in folder.iterdir() if p.name[0] != "."] == [out.removeprefix("wds://")], n


# ---- models

def test_a_model_that_is_replaced_is_one_or_the_other(pipe, tmp_path):
    old = pipe.generator
    new = RasterTransformer(old.config, 1)
    hashes = [digest(m.state_dict()) for m in (old, new)]
    assert hashes[0] != hashes[1]
    def save(model): return lambda folder: save_model(folder / "m", model, model.config)

    for n, folder in killed_everywhere(save(new), tmp_path, prepare=save(old)):
        try: assert digest(load_model(folder / "m").state_dict()) in hashes, n
        except VgnbError as e:
            assert ".was-m" in str(e)                                      # between two renames: the old one is there
            assert digest(load_model(folder / ".was-m").state_dict()) == hashes[0]
        quietly(save(new), folder)
        assert digest(load_model(folder / "m").state_dict()) == hashes[1]
        assert left(folder) == ["m", "m/config.json", "m/model.safetensors"], n


@pytest.mark.full
def test_a_pipeline_that_is_replaced_is_never_half_of_each(pipe, tmp_path):
    torch.manual_seed(1)
    tokenizer = vqgan("tiny-shapes", width=16, z=8, groups=8, quantizer=dict(codebook=32, usage=0))
    other = Pipeline(tokenizer, RasterTransformer(pipe.generator.config, 1), Sampling(rows=2), pipe.classes)
    def save(pipe): return lambda folder: pipe.save_pretrained(folder / "p")
    def facts(p): return digest(p.tokenizer.state_dict(), p.generator.state_dict(), p.sampling)

    known, mixed = [facts(pipe), facts(other)], 0
    for n, folder in killed_everywhere(save(other), tmp_path, prepare=save(pipe)):
        try: assert facts(Pipeline.from_pretrained(folder / "p")) in known, n
        except VgnbError: mixed += 1
        quietly(save(other), folder)
        assert facts(Pipeline.from_pretrained(folder / "p")) == known[1], n
    assert mixed


# ---- two at once

@pytest.mark.fault("F19")
def test_a_second_one_in_the_same_place_is_one_clear_line(pipe, tmp_path):
    judge = load_extractor("shapes-judge")
    work = {
        "s.npz": (places.locked_file, sampler(pipe)),
        "codes": (lambda place: places.locked(place, ".lock"), extraction(pipe)),
        "ref.npz": (places.locked_file,
                    lambda folder: extract_reference(Shapes(24, 32), folder / "ref.npz", judge, progress=False)),
        "moved.tar": (places.locked_file, lambda folder: export_images(Shapes(12, 32), folder / "moved.tar")),
        "m": (places.locked_file, lambda folder: save_model(folder / "m", pipe.generator, pipe.generator.config))}
    for name, (own, second) in work.items():
        with own(tmp_path / name):
            with pytest.raises(VgnbError, match=f"is in use by this process \\({os.getpid()}\\)"): second(tmp_path)
        second(tmp_path)
    assert not [p for p in tmp_path.rglob("*") if p.name.endswith("lock")]


# ---- the harness itself

def test_the_harness_kills_for_good(tmp_path):
    "A write that isn't published by a rename is left torn, and the clean-up after it does not happen."
    def work(folder):
        with core.write_aside(folder / "a.txt") as aside: aside.write_text("whole")

    seen = set()
    for n in range(1, 5):
        folder = tmp_path / str(n)
        folder.mkdir()
        with Disk(n).watch(): work(folder)
        seen |= {tuple("a.txt" if p.name == "a.txt" else "left over" for p in folder.iterdir())}
    assert seen == {("left over",), ("a.txt",)}
