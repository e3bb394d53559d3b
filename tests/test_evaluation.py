"""Metrics against independent definitions and against torch-fidelity's own pipeline.

Then files from strangers, the judge, and evaluate.py.
"""
import io
import json
import math
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import scipy.stats
import torch

from tests.run_scripts import Scripts
from vgnb.core import BadInput, Mismatch, Missing, digest_file
from vgnb.data.shapes import Shapes, draw_shapes, nearest_mean_accuracy, shape_ranges
from vgnb.evaluation import code_distance, features, fid, judge, measure, reconstruction, reference, samples
from vgnb.shipped import open_part
from vgnb.tokenizers import dinov2

def cloud(n, d=12, seed=0, shift=0.0):
    "Points of a Gaussian, wider along each axis."
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return x @ torch.linspace(0.3, 2, d).diag() + shift


def pictures(n, size=32, seed=1): return Shapes(seed=seed, size=size).batch(np.arange(n))


# ---- reconstruction

def reference_ssim(x, y, r):
    "SSIM with scipy's uniform filter on (h, w, c) floats: 7x7, sample covariance, borders cropped."
    def box(a): return scipy.ndimage.uniform_filter(a, 7)
    c1, c2 = (0.01 * r) ** 2, (0.03 * r) ** 2
    out = []
    for c in range(x.shape[-1]):
        a, b = x[..., c], y[..., c]
        ma, mb, f = box(a), box(b), 49 / 48
        va, vb, ab = f * (box(a * a) - ma * ma), f * (box(b * b) - mb * mb), f * (box(a * b) - ma * mb)
        score = ((2 * ma * mb + c1) * (2 * ab + c2)) / ((ma ** 2 + mb ** 2 + c1) * (va + vb + c2))
        out.append(score[3:-3, 3:-3].mean())
    return np.mean(out)


@pytest.mark.parametrize("h,w", [(7, 7), (8, 31), (40, 52)])
@pytest.mark.parametrize("compat,r", [(None, 1.0), ("upstream", 2.0)])
def test_ssim_is_the_filter_definition(h, w, compat, r):
    rng = np.random.default_rng(h)
    x, y = rng.random((2, h, w, 3)), rng.integers(0, 256, (2, h, w, 3)).astype(np.uint8)
    y[1] = (x[1] * 255).round()
    got = reconstruction.ssim(torch.from_numpy(y), torch.from_numpy(x).permute(0, 3, 1, 2), compat=compat)
    assert np.allclose(got, [reference_ssim(b / 255, a, r) for a, b in zip(x, y)], atol=1e-9)
    assert got[1] > 0.99 > got[0]


def test_pictures_on_another_scale_are_refused():
    x = torch.rand(1, 3, 16, 16)
    for bad, word in ((2 * x - 1, "floats must lie in [0, 1]"),
                      (x[0], "four axes"),
                      (x.int(), "uint8"),
                      ((x * 255).byte(), "(b, h, w, 3)"),
                      (x[..., :8], "shape of original")):
        with pytest.raises(BadInput) as e: reconstruction.psnr(bad, x)
        assert word in str(e.value)
    for window in (2, 8, 17):
        with pytest.raises(BadInput, match="window="): reconstruction.ssim(x, x, window=window)


def test_codebook_numbers_are_what_they_are_called():
    codes = torch.multinomial(torch.arange(1., 51), 4000, True, generator=torch.Generator().manual_seed(0))
    meter = reconstruction.CodebookMeter(64).update(codes[:1000]).update(codes[1000:].reshape(50, 60))
    p = np.bincount(codes, minlength=64) / 4000
    assert math.isclose(meter.entropy, scipy.stats.entropy(p), rel_tol=1e-9)
    assert math.isclose(meter.perplexity, math.exp(scipy.stats.entropy(p)), rel_tol=1e-9)
    assert meter.compute()["dead"] == (p == 0).sum() and "codebook_ppl" not in meter.compute()
    assert meter.compute("upstream")["codebook_ppl"] == meter.entropy
    with pytest.raises(BadInput, match="codebook"): meter.update(torch.tensor([64]))


# ---- feature clouds

def test_histograms_of_codes_against_the_definition():
    g = torch.Generator().manual_seed(0)
    a, b = (reconstruction.CodebookMeter(9).update(torch.randint(k, (500,), generator=g)) for k in (9, 5))
    p, q = (np.array([float(n) for n in m.counts]) / 500 for m in (a, b))
    assert reconstruction.codebook_distance(a, b) == pytest.approx(math.sqrt(1 - np.sqrt(p * q).sum()))
    assert reconstruction.codebook_distance(a, b) == reconstruction.codebook_distance(b, a)
    twice = reconstruction.CodebookMeter(9, 2 * b.counts)
    assert reconstruction.codebook_distance(b, twice) == 0, "how many there are does not count"
    for vocab, words in ((8, "b=8: must count"), (9, "b=0: needs at least one code")):
        other = reconstruction.CodebookMeter(vocab)
        with pytest.raises(BadInput, match=words): reconstruction.codebook_distance(a, other)


def test_frechet_distance_is_the_matrix_square_root():
    a, b = cloud(200), cloud(230, seed=1, shift=0.4)
    ca, cb = (np.cov(x.numpy(), rowvar=False) for x in (a, b))
    want = ((a.mean(0) - b.mean(0)) ** 2).sum().item() + np.trace(ca + cb - 2 * scipy.linalg.sqrtm(ca @ cb).real)
    s = [samples.Statistics(12).update(x) for x in (a, b)]
    assert math.isclose(fid.frechet_distance(*s), want, rel_tol=1e-5)
    assert abs(fid.frechet_distance(s[0], s[0])) < 1e-6
    few = samples.Statistics(12).update(cloud(5, seed=3))                      # singular covariance
    assert np.isfinite(fid.frechet_distance(few, s[0]))


def test_precision_recall_is_the_loop_over_balls():
    a, b = cloud(150).double().numpy(), cloud(170, seed=1, shift=0.5).double().numpy()
    def share(inner, outer, k):
        radius = [np.sort(((outer - p) ** 2).sum(1))[k] for p in outer]
        return np.mean([any(((outer - p) ** 2).sum(1) <= radius) for p in inner])
    for k in (1, 3, 7):
        got = fid.precision_recall(torch.from_numpy(a).float(), torch.from_numpy(b).float(), k)
        a32, b32 = a.astype(np.float32).astype(float), b.astype(np.float32).astype(float)
        assert got == pytest.approx((share(a32, b32, k), share(b32, a32, k)), abs=1e-6) and got[0] != got[1]


def test_kernel_distance_is_the_unbiased_estimate():
    a, b = cloud(60).double().numpy(), cloud(60, seed=1, shift=0.3).double().numpy()
    def kernel(x, y): return (x @ y.T / 12 + 1) ** 3
    def within(x): return (kernel(x, x).sum() - np.trace(kernel(x, x))) / (60 * 59)
    want = within(a) + within(b) - 2 * kernel(a, b).mean()
    mean, std = fid.kernel_distance(torch.from_numpy(a), torch.from_numpy(b), subsets=3, subset_size=60)
    assert math.isclose(mean, want, rel_tol=1e-8) and std < 1e-9


def test_inception_score_cuts_parts_by_size():
    logits = cloud(230, 30, seed=4)
    p = logits.double().softmax(1).numpy()
    def score(p): return np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean())
    parts = [score(p[i:i + 100]) for i in (0, 100, 200)]
    assert fid.inception_score(logits, 100) == pytest.approx((np.mean(parts), np.std(parts)), rel=1e-6)
    assert fid.inception_score(logits) == pytest.approx((score(p), 0), rel=1e-6)
    assert fid.inception_score(logits, shuffle=1)[0] == pytest.approx(score(p), rel=1e-6)
    assert fid.inception_score(logits, 100, 1) != fid.inception_score(logits, 100)


def test_measure_agrees_with_torch_fidelity_end_to_end():
    "The judge, registered there as an extractor, through calculate_metrics on the same pictures."
    engine, net = features.fidelity(), features.load_extractor("shapes-judge")

    class Theirs(engine.FeatureExtractorBase):
        def __init__(self, name, features_list, **kw):
            super().__init__(name, features_list)
            self.net = net.net
        def forward(self, x):
            out = net(x.permute(0, 2, 3, 1))._asdict()
            return tuple(out[f] for f in self.features_list)
        get_provided_features_list = staticmethod(lambda: ("pool", "logits"))
        get_default_feature_layer_for_metric = staticmethod(lambda m: "logits" if m == "isc" else "pool")
        can_be_compiled = staticmethod(lambda: False)

    class Set(torch.utils.data.Dataset):
        def __init__(self, x): self.x = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()
        def __len__(self): return len(self.x)
        def __getitem__(self, i): return self.x[i]

    engine.register_feature_extractor("vgnb-judge", Theirs)
    a, b = pictures(160, seed=5)[0], pictures(200, seed=6)[0]
    theirs = engine.calculate_metrics(
        input1=Set(a), input2=Set(b), feature_extractor="vgnb-judge", fid=True, isc=True, kid=True, prc=True,
        isc_splits=4, samples_shuffle=False, kid_subsets=5, kid_subset_size=50, cuda=False, verbose=False, cache=False)
    ours = measure.measure(a, b, net, is_split=40, kid_subsets=5, kid_size=50).values
    names = dict(fid="frechet_inception_distance",
                 is_mean="inception_score_mean",
                 is_std="inception_score_std",
                 kid_mean="kernel_inception_distance_mean",
                 kid_std="kernel_inception_distance_std",
                 precision="precision",
                 recall="recall")
    wanted = {k: theirs[v] for k, v in names.items()}
    assert {k: ours[k] for k in names} == pytest.approx(wanted, rel=1e-3, abs=1e-4)


def test_protocol_is_recorded_and_stored_statistics_serve_only_their_extractor(tmp_path):
    net = features.load_extractor("shapes-judge")
    (a, la), b = pictures(120, seed=7), pictures(150, seed=8)[0]
    statistics = samples.Statistics(64, net.id, "b").update(net(b).pool)
    samples.save_statistics(tmp_path / "b.safetensors", statistics)
    full = measure.measure(samples.Samples(a, la), b, net, metrics=("fid", "accuracy"), seed=3, sampler={"cfg": 2.0},
                       uint8_rule="round")
    stored = measure.measure(a, tmp_path / "b.safetensors", net, metrics=("fid",))
    assert math.isclose(full.values["fid"], stored.values["fid"], rel_tol=1e-6) and full.values["accuracy"] == 1
    p = full.protocol
    assert (p.count, p.reference_count, p.extractor) == (120, 150, net.id)
    assert (p.seed, p.sampler, p.uint8_rule) == (3, {"cfg": 2.0}, "round") and p.labels == "10 classes, 12 of each"
    assert stored.protocol.reference_statistics == "stored" and stored.protocol.reference_count == 150
    assert "reference_statistics" in full.differences(stored)
    statistics.extractor = "another@12345678"
    samples.save_statistics(tmp_path / "c.npz", statistics)
    with pytest.raises(Mismatch, match="another extractor"):
        measure.measure(a, tmp_path / "c.npz", net, metrics=("fid",))
    # Inception's: not for this extractor
    np.savez(tmp_path / "adm.npz", arr_0=b, mu=np.zeros(2048), sigma=np.eye(2048))
    adm = measure.measure(a, tmp_path / "adm.npz", net, metrics=("fid",))
    assert adm.protocol.reference_statistics == "computed"
    assert math.isclose(adm.values["fid"], stored.values["fid"], rel_tol=1e-6)


@pytest.mark.parametrize("bad,words", [
    (dict(metrics=()), "at least one"),
    (dict(metrics=("fid", "sfid")), "metrics='sfid': needs features of places"),
    (dict(metrics=("fid", "fod")), "metrics='fod'"),
    (dict(mind_size=61, metrics=("mind",)), "mind_size=61"),
    (dict(mind_size=1), "mind_size=1"),
    (dict(is_split=0), "is_split=0"),
    (dict(is_shuffle=-1), "is_shuffle=-1"),
    (dict(kid_size=61), "kid_size=61"),
    (dict(kid_subsets=0), "kid_subsets=0"),
    (dict(k=60, metrics=("pr",)), "k=60"),
    (dict(batch=0), "batch=0"),
    (dict(metrics=("accuracy",)), "needs the labels"),
    (dict(samples=np.zeros((4, 8, 8), np.uint8)), "must be (n, h, w, 3)"),
    (dict(samples=np.zeros((4, 8, 8, 3), np.float32)), "must be uint8"),
    (dict(samples=np.zeros((1, 8, 8, 3), np.uint8)), "number of samples=1"),
    (dict(samples=samples.Samples(np.zeros((4, 8, 8, 3), np.uint8), [0, 1, 2, 10]), metrics=("accuracy",)),
     "labels=[0, 10]")])
def test_impossible_requests_are_named_before_any_picture_is_looked_at(bad, words):
    class Untouched(features.Extractor):
        id, dims, classes = "untouched@0", 4, 10
        def look(self, images): pytest.fail("a picture was looked at")
    good = dict(samples=np.zeros((60, 8, 8, 3), np.uint8),
                reference=np.zeros((80, 8, 8, 3), np.uint8),
                extractor=Untouched())
    with pytest.raises(BadInput) as e: measure.measure(**{**good, **bad})
    assert words in str(e.value)


def test_sliced_distance_is_the_mean_gap_of_sorted_projections():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 5, generator=g), torch.randn(60, 5, generator=g)
    moved = x + torch.tensor([2.0, 0, 0, 0, 0])
    # along a unit vector u a shift s moves every point by s . u, on average s^2 / d of its square
    assert fid.sliced_distance(x, moved, directions=20_000) == pytest.approx(3 * 5 * 4 / 5, rel=0.02)
    assert fid.sliced_distance(x, x[torch.randperm(40, generator=g)]) == pytest.approx(0, abs=1e-9)
    assert fid.sliced_distance(x, y) == pytest.approx(fid.sliced_distance(x, y, rows=7), rel=1e-12)
    assert fid.sliced_distance(x, y, size=30) != fid.sliced_distance(x, y)
    line = fid.sliced_distance(x[:, :1], y[:40, :1], size=40)
    by_hand = 3 * (x[:, 0].sort().values - y[:40, 0].sort().values).square().mean()
    assert line == pytest.approx(float(by_hand), rel=1e-5), "there is one direction, to either side"
    for bad, words in ((dict(size=41), "size=41"), (dict(directions=0), "directions=0"), (dict(size=1), "size=1")):
        with pytest.raises(BadInput, match=words): fid.sliced_distance(x, y, **bad)


def test_spatial_statistics_serve_sfid_as_pictures_do(tmp_path):
    net = features.load_extractor("shapes-judge")
    (a, _), b = pictures(120, seed=7), pictures(150, seed=8)[0]
    whole = measure.measure(a, b, net, metrics=("fid", "sfid"))
    reference.extract_reference(b, tmp_path / "b.npz", net, spatial=True, shard_size=64, progress=False)
    stored = measure.measure(a, tmp_path / "b.npz", net, metrics=("fid", "sfid"))
    assert stored.values == pytest.approx(whole.values, rel=1e-5) and whole.values["sfid"] != whole.values["fid"]
    theirs = np.load(tmp_path / "b.npz")
    assert theirs["mu_s"].shape == (448,) and theirs["sigma_s"].shape == (448, 448)
    reference.extract_reference(b, tmp_path / "plain.npz", net, progress=False)
    with pytest.raises(BadInput, match="mu_s and sigma_s"):
        measure.measure(a, tmp_path / "plain.npz", net, metrics=("sfid",))
    with pytest.raises(BadInput, match="rests on something else"):
        reference.extract_reference(b, tmp_path / "plain.npz", net, spatial=True, progress=False)
    with pytest.raises(BadInput, match="spatial=True: can be kept in an .npz only"):
        reference.extract_reference(b, tmp_path / "b.pt", net, spatial=True, progress=False)
    # a file with fid's statistics and pictures, but none for sfid: those are looked at, and it says so
    np.savez(tmp_path / "both.npz", arr_0=b[:100], mu=theirs["mu"], sigma=theirs["sigma"])
    mixed = measure.measure(a, tmp_path / "both.npz", net, metrics=("fid", "sfid"))
    alone = measure.measure(a, tmp_path / "both.npz", net, metrics=("sfid",)).protocol
    assert (alone.reference_count, alone.reference_statistics) == (100, "computed")
    assert any("none for sFID: it rests on 100 pictures" in note for note in mixed.notes)
    once = measure.look_at(net, samples.open_samples(b))
    with pytest.raises(BadInput, match="spatial=True"): measure.measure(a, b, net, metrics=("sfid",), base=once)


def test_mind_is_of_5000_pictures_or_says_so():
    net = features.load_extractor("shapes-judge")
    a, b = pictures(60, seed=7)[0], pictures(80, seed=8)[0]
    report = measure.measure(a, b, net, metrics=("mind",))
    assert report.values["mind"] == fid.sliced_distance(net(a).pool, net(b).pool, 60)
    assert report.protocol.settings["mind_size"] == 60 and any("MIND of 60 pictures" in n for n in report.notes)


def test_code_distance_counts_codes_on_any_number_of_processes():
    tokenizer = open_part("tiny-maskgit", "tokenizer")
    a, b = (samples.open_samples(pictures(n, seed=n)[0]) for n in (50, 70))
    report = code_distance.measure_codes(a, b, tokenizer)
    both = [code_distance.code_counts(side, tokenizer, batch=13)[0] for side in (a, b)]
    assert report.values == {"code_distance": reconstruction.codebook_distance(*both)}
    assert report.protocol.extractor == code_distance.coder_id(tokenizer)
    class Rank:
        device, total = torch.device("cpu"), 0
        def __init__(self, rank, world): self.rank, self.world = rank, world
        def sum(self, x): return x
    for world in (3, 60):
        shares = [code_distance.code_counts(a, tokenizer, processes=Rank(r, world))[0].counts for r in range(world)]
        assert torch.equal(sum(shares), both[0].counts), world
    layered = open_part("tiny-iar2", "tokenizer")
    found = code_distance.measure_codes(a, b, layered)
    assert any("3,200 codes of a codebook of 64:" in note for note in found.notes), "the level with too few is named"
    values = found.values
    mean = (values["code_distance_1"] + values["code_distance_2"]) / 2
    assert values["code_distance"] == pytest.approx(mean)
    odd = np.zeros((3, 30, 31, 3), np.uint8)
    with pytest.raises(BadInput, match="^reference=.*multiples of 4"): code_distance.measure_codes(a, odd, tokenizer)
    with pytest.raises(BadInput, match="must hold pictures"):
        code_distance.measure_codes(samples.Samples(None, statistics=samples.Statistics(4), id="s"), b, tokenizer)


# ---- files

def npz(path, **arrays):
    "An npz of raw npy bytes."
    with zipfile.ZipFile(path, "w") as z:
        for name, data in arrays.items(): z.writestr(f"{name}.npy", data)
    return path


def npy(array, shape=None):
    "npy bytes whose header may claim another shape."
    f = io.BytesIO()
    head = dict(descr=array.dtype.str, fortran_order=False, shape=shape or array.shape)
    np.lib.format.write_array_header_1_0(f, head)
    f.write(array.tobytes())
    return f.getvalue()


class Trap:
    "A pickle that leaves a mark when it is loaded."
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return open, (self.path, "w")


def test_foreign_npz_files_cannot_run_code_lie_or_explode(tmp_path):
    ok, mark = np.zeros((2, 4, 4, 3), np.uint8), tmp_path / "mark"
    np.savez(tmp_path / "trap.npz", arr_0=np.array([Trap(mark)], dtype=object))
    files = {"objects": tmp_path / "trap.npz",
             "claims": npz(tmp_path / "lie.npz", arr_0=npy(ok, (900, 4, 4, 3))),
             "not an npz": tmp_path / "text.npz",
             "uint8 (n, h, w, 3)": npz(tmp_path / "wide.npz", arr_0=npy(ok.astype(np.uint16))),
             "must hold arr_0": npz(tmp_path / "other.npz", pictures=npy(ok)),
             "not an npz of plain": npz(tmp_path / "garbage.npz", arr_0=b"\x93NUMPY\x01\x00\x10\x00{'descr': 1")}
    (tmp_path / "text.npz").write_text("no zip")
    for words, path in files.items():
        with pytest.raises(Mismatch) as e: samples.open_samples(path)
        assert words in str(e.value) and path.name in str(e.value)
    assert not mark.exists()
    np.savez_compressed(tmp_path / "bomb.npz", arr_0=np.zeros((4096, 16, 16, 3), np.uint8))
    assert (tmp_path / "bomb.npz").stat().st_size < 10_000
    with pytest.raises(Mismatch, match="would take 3145728 bytes"):
        samples.read_npz(tmp_path / "bomb.npz", "arr_0", limit=1_000_000)
    whole = (tmp_path / "wide.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(Mismatch, match="cut.npz"): samples.open_samples(tmp_path / "cut.npz")
    with pytest.raises(Missing, match="no such file"): samples.open_samples(tmp_path / "none.npz")


def test_npz_reads_back_every_layout(tmp_path):
    x, y = pictures(30)
    for name, save in (("a.npz", np.savez), ("b.npz", np.savez_compressed)):
        save(tmp_path / name, arr_0=x, arr_1=y)
        s = samples.open_samples(tmp_path / name)
        assert (s.images == x).all() and (s.labels == y).all()
        assert isinstance(s.images, np.memmap) == (name == "a.npz")
        assert s.id == f"{name}@{digest_file(tmp_path / name)[:12]}"
    np.savez(tmp_path / "f.npz", arr_0=np.asfortranarray(x))
    assert (samples.open_samples(tmp_path / "f.npz").images == x).all()
    samples.save_samples(tmp_path / "c.npz", samples.open_samples(tmp_path / "b.npz"))
    with np.load(tmp_path / "c.npz", allow_pickle=False) as z:
        assert (z["arr_0"] == x).all() and (z["labels"] == y).all()


def test_a_sampler_that_dies_leaves_no_file_and_keeps_the_old_one(tmp_path):
    x, y = pictures(8)
    samples.save_samples(tmp_path / "s.npz", x, y)
    before = (tmp_path / "s.npz").read_bytes()
    def dies():
        yield x[:4]
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        samples.save_samples(tmp_path / "s.npz", dies(), y, count=8)
    for batches, count, labels in ((iter([x[:4], x[:4, :16]]), 8, None),
                                   (iter([x]), 9, None),
                                   (iter([x.astype(float)]), 8, None),
                                   (x, None, y[:3]),
                                   (iter([x]), None, None)):
        with pytest.raises(BadInput):
            samples.save_samples(tmp_path / "s.npz", batches, labels, count)
    assert (tmp_path / "s.npz").read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["s.npz"]


def test_statistics_do_not_depend_on_batches_and_survive_their_files(tmp_path):
    x = cloud(301, 5, shift=1e4).double()
    whole = samples.Statistics(5).update(x)
    for sizes in ([301], [1] * 301, [100, 200, 1]):
        s = samples.Statistics(5)
        for part in x.split(sizes): s.update(part)
        assert torch.allclose(s.cov, torch.cov(x.T), rtol=1e-8)
        assert torch.allclose(s.mean, x.mean(0), rtol=1e-12) and s.count == 301
    two = samples.Statistics(5).update(x[:120]).merge(samples.Statistics(5).update(x[120:]))
    assert torch.allclose(two.cov, whole.cov, rtol=1e-8)
    torch.save({"mu": whole.mean.float(), "cov": whole.cov.float()}, tmp_path / "h.pt")
    np.savez(tmp_path / "a.npz", mu=whole.mean, sigma=whole.cov)
    for f in ("h.pt", "a.npz"):
        s = samples.load_statistics(tmp_path / f)
        assert s.count is None and torch.allclose(s.cov, whole.cov, rtol=1e-4)
        with pytest.raises(BadInput, match="count"): s.update(x)
    with open(tmp_path / "trap.pt", "wb") as f: pickle.dump(Trap(tmp_path / "mark"), f)
    np.savez(tmp_path / "odd.npz", mu=np.zeros(5), sigma=np.eye(4))
    np.savez(tmp_path / "nan.npz", mu=np.full(5, np.nan), sigma=np.eye(5))
    for f in ("trap.pt", "odd.npz", "nan.npz"):
        with pytest.raises(Mismatch, match=f): samples.load_statistics(tmp_path / f)
    assert not (tmp_path / "mark").exists()
    one = samples.Statistics(5).update(x[:1])
    with pytest.raises(BadInput, match="number of pictures=1"): torch.trace(one.cov)


# ---- extractors

@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    "A random InceptionV3 in the layout of the published file."
    class Unloaded(features.fidelity("feature_extractor_inceptionv3").FeatureExtractorInceptionV3):
        def load_state_dict(self, state): pass
    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Unloaded("random", ["2048"], feature_extractor_weights_path=empty)
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save(net.state_dict(), path)
    return path


@pytest.mark.full
def test_inception_is_torch_fidelitys_with_the_weights_of_the_file(inception_file, tmp_path):
    engine = features.fidelity("feature_extractor_inceptionv3")
    plain = engine.FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"],
                                               feature_extractor_weights_path=str(inception_file))
    ours, x = features.load_extractor("inception", inception_file), pictures(2, size=24)[0]
    with torch.inference_mode(): pool, logits = plain(torch.from_numpy(x).permute(0, 3, 1, 2))
    seen = ours(x)
    assert torch.equal(seen.pool, pool) and torch.equal(seen.logits, logits)
    assert ours.id == f"inception-v3@{digest_file(inception_file)[:8]}"
    from safetensors.torch import save_file
    save_file(torch.load(inception_file, weights_only=True), tmp_path / "i.safetensors")
    assert torch.equal(features.load_extractor("inception", tmp_path / "i.safetensors")(x).pool, pool)
    report = measure.measure(pictures(3)[0], pictures(3, seed=2)[0], ours, kid_subsets=2, k=1)
    assert report.protocol.extractor == ours.id and all(np.isfinite(list(report.values.values())))
    assert any("singular" in n for n in report.notes)


def test_a_pickle_with_code_is_refused_and_not_run(inception_file, tmp_path):
    state = torch.load(inception_file, weights_only=True)
    torch.save({**state, "extra": Trap(tmp_path / "mark")}, tmp_path / "trap.pth")
    with pytest.raises(Mismatch, match="trap.pth"):
        features.load_extractor("inception", tmp_path / "trap.pth")
    assert not (tmp_path / "mark").exists()
    del state["fc.weight"]
    torch.save(state, tmp_path / "half.pth")
    with pytest.raises(Mismatch, match="half.pth"):
        features.load_extractor("inception", tmp_path / "half.pth")


def run_python(code, path):
    env = {**os.environ, "PYTHONPATH": str(path)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)


@pytest.mark.full
def test_dinov2_names_its_file(tmp_path, monkeypatch):
    monkeypatch.setenv("VGNB_PATHS_WEIGHTS", str(tmp_path))
    with pytest.raises(Missing, match="dinov2_vitb14_pretrain.pth"): features.load_extractor("dinov2")
    with pytest.raises(Missing, match="dinov2_vitl14_pretrain.pth"):
        features.load_extractor("dinov2", tmp_path / "dinov2_vitl14_pretrain.pth")
    with pytest.raises(BadInput, match="must be called as it was published"):
        features.load_extractor("dinov2", tmp_path / "x.pth")


@pytest.mark.full
def test_dinov2_looks_with_its_class_token(tmp_path):
    torch.manual_seed(0)
    net = dinov2.load_dinov2(None, "vits14")
    state = {k: v.contiguous() for k, v in dinov2.dinov2_names().export(net.state_dict(), net).items()}
    torch.save(state, tmp_path / "dinov2_vits14_pretrain.pth")
    looks, x = features.load_extractor("dinov2", tmp_path / "dinov2_vits14_pretrain.pth"), pictures(2, size=224)[0]
    seen = looks(x)
    assert looks.id.startswith("dinov2-vits14@") and looks.dims == 384 == seen.pool.shape[1] and seen.logits is None
    direct = net.features(dinov2.dino_view(torch.from_numpy(x).permute(0, 3, 1, 2) / 127.5 - 1))[0]
    torch.testing.assert_close(seen.pool, direct, atol=1e-4, rtol=1e-4)


def test_torchvision_is_helped_only_where_it_cannot_load(tmp_path, root):
    "With a torchvision that fails as CUDA builds do on a CPU torch; with a healthy one; with one that fails otherwise."
    package = tmp_path / "torchvision"
    package.mkdir()
    ask = "\n".join(["from vgnb.evaluation.features import import_torchvision, _STANDINS",
                     "helped = import_torchvision()",
                     "print(helped, import_torchvision() == helped, len(_STANDINS))",
                     "import torchvision",
                     "print(torchvision.ok)"])
    path = f"{tmp_path}{os.pathsep}{root}"
    broken = "import torch\ntorch.library.register_fake('torchvision::nms')(lambda d, s, i: d)\nok = 1"
    for source, printed in ((broken, ["True True 1", "1"]), ("ok = 1", ["False True 0", "1"])):
        (package / "__init__.py").write_text(source)
        done = run_python(ask, path)
        assert done.stdout.split("\n")[:2] == printed, done.stderr
    (package / "__init__.py").write_text("raise RuntimeError('something else')")
    assert "something else" in run_python(ask, path).stderr


@pytest.mark.full
def test_torch_fidelity_imports_in_a_fresh_process(root):
    done = run_python("from vgnb.evaluation.features import fidelity; print(fidelity().__version__)", root)
    assert done.returncode == 0 and done.stdout.startswith("0."), done.stderr


# ---- the judge

@pytest.mark.full
def test_shipped_judge_meets_its_contract():
    net, card = judge.load_judge()
    right, sure = judge.examine(net, 2000, seed=0)
    assert card["bytes"] < 1_000_000 and card["recipe"]["seed"] != 0
    assert card["data"] == Shapes(seed=card["recipe"]["seed"], difficulty=Shapes().difficulty).fingerprint
    assert right["clean"] >= 0.99 and right["vq-like"] >= 0.97 and right["noise 0.2"] >= 0.95
    assert max(share for _, share in sure.values()) < 0.05
    assert abs(right["clean"] - card["held_out"]["clean"]) < 0.01
    extractor, labels = features.load_extractor("shapes-judge"), Shapes().labels(np.arange(200))
    for size in (16, 64):
        logits = extractor(pictures(200, size=size, seed=0)[0]).logits
        assert features.accuracy(logits, labels) >= 0.98
    assert nearest_mean_accuracy(pictures(5000, seed=3), pictures(1000, seed=4)) <= 0.5


def test_judge_is_not_sure_of_the_sets_own_backgrounds():
    "Backgrounds as the set draws them: the shape is shrunk below a pixel."
    u = np.random.default_rng(0).random((400, 32))
    low, high = shape_ranges()["radius"]
    u[:, 1] = (1e-5 - low) / (high - low)
    u[:, 2:4] = 0.5
    ground = draw_shapes(np.zeros(400, int), u)
    assert (ground == draw_shapes(np.full(400, 3), u)).all()
    p = features.load_extractor("shapes-judge")(ground).logits.softmax(1).amax(1)
    assert p.mean() < 0.2 and p.max() < 0.6


# ---- evaluate.py

def evaluate(root, *arguments):
    return Scripts(root)("evaluate.py", *arguments)


def test_evaluate_script_end_to_end(root, tmp_path):
    (x, y), (a, _) = pictures(120, seed=2), pictures(150, seed=3)
    samples.save_samples(tmp_path / "samples.npz", x, y)
    np.savez(tmp_path / "ref.npz", arr_0=a)
    facts = {"seed": 5, "config": {"cfg": 3.0}, "uint8_rule": "round",
             "outputs": {"samples.npz": digest_file(tmp_path / "samples.npz")}}
    (tmp_path / "samples.run.json").write_text(json.dumps(facts))
    asked = (tmp_path / "ref.npz", tmp_path / "samples.npz", "--extractor", "shapes-judge",
             "--metrics", "fid", "is", "kid", "pr", "accuracy", "--json", tmp_path / "out.json")
    dry = evaluate(root, *asked, "--dry-run")
    assert dry.code == 0 and "120 samples" in dry.out and not (tmp_path / "out.json").exists(), dry.err
    done = evaluate(root, *asked)
    assert done.code == 0, done.err
    out = json.loads((tmp_path / "out.json").read_text())
    direct = measure.measure(x, a, features.load_extractor("shapes-judge")).values
    assert {k: out["values"][k] for k in direct} == pytest.approx(direct) and out["values"]["accuracy"] == 1
    p = out["protocol"]
    assert p["seed"] == 5 and p["sampler"] == {"cfg": 3.0} and p["uint8_rule"] == "round"
    assert p["reference"].startswith("ref.npz@") and "shapes-judge@" in done.out


def test_evaluate_script_counts_codes_with_and_without_a_network(root, tmp_path):
    for name, n, seed in (("ref.npz", 70, 3), ("samples.npz", 60, 2)):
        samples.save_samples(tmp_path / name, pictures(n, seed=seed)[0])
    both = tmp_path / "ref.npz", tmp_path / "samples.npz"
    coder = "--tokenizer", "tiny-maskgit"
    alone = evaluate(root, *both, "--metrics", "codes", *coder, "--json", tmp_path / "codes.json")
    assert alone.code == 0 and "through vqgan@" in alone.out, alone.err
    asked = (*both, "--metrics", "sfid", "mind", "codes", *coder, "--extractor", "shapes-judge")
    done = evaluate(root, *asked, "--json", tmp_path / "all.json")
    assert done.code == 0, done.err
    values = json.loads((tmp_path / "all.json").read_text())
    codes = json.loads((tmp_path / "codes.json").read_text())
    assert values["values"].keys() == {"sfid", "mind", "code_distance"} and codes["values"].keys() == {"code_distance"}
    assert values["values"]["code_distance"] == codes["values"]["code_distance"]
    assert values["protocol"]["settings"]["tokenizer"] == codes["protocol"]["extractor"]
    again = evaluate(root, *asked, "--json", tmp_path / "all.json")
    assert again.code == 0 and "finished already" in again.out, again.err
    judge = "--extractor", "shapes-judge"
    wrong = {"tokenizer=None": ("--metrics", "codes"),
             "only goes with --metrics codes": ("--metrics", "fid", *coder, *judge),
             "only goes with metrics that a network looks for": ("--metrics", "codes", *coder, *judge)}
    for words, more in wrong.items():
        bad = evaluate(root, *both, *more)
        assert bad.code == 2 and words in bad.err and len(bad.err.strip().splitlines()) == 1, bad.err


def test_evaluate_script_says_what_is_no_plain_sample(root, tmp_path):
    samples.save_samples(tmp_path / "early.npz", *pictures(20))
    facts = {"seed": 0, "sampler": {"guidance": 3.0}, "config": {"preview": 2, "denoise": None, "count": 20},
             "outputs": {"early.npz": digest_file(tmp_path / "early.npz")}}
    (tmp_path / "early.run.json").write_text(json.dumps(facts))
    done = evaluate(root, tmp_path / "early.npz", tmp_path / "early.npz", "--extractor", "shapes-judge",
                    "--metrics", "fid", "--json", tmp_path / "out.json")
    assert done.code == 0 and "samples: seed 0, guidance 3.0, preview 2\n" in done.out, done.err
    known = json.loads((tmp_path / "out.json").read_text())["protocol"]["sampler"]
    assert known == {"guidance": 3.0, "preview": 2}


def test_evaluate_script_names_wrong_input_in_one_line(root, tmp_path):
    np.savez(tmp_path / "a.npz", arr_0=pictures(5)[0])
    same = tmp_path / "a.npz", tmp_path / "a.npz"
    cases = {"no such file": (tmp_path / "none.npz", tmp_path / "a.npz"),
             "kid_size=50": (*same, "--extractor", "shapes-judge", "--kid-size", "50"),
             "weights=": (*same, "--weights", tmp_path / "none.pth")}
    for words, arguments in cases.items():
        done = evaluate(root, *arguments, "--json", tmp_path / "out.json")
        assert done.code == 2 and words in done.err
        assert len(done.err.strip().splitlines()) == 1 and "Traceback" not in done.err
    assert not (tmp_path / "out.json").exists()
