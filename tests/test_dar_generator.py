"D-AR's generator side: ramps across 1, shared beginnings, previews while tokens arrive, codes that stand in a line."
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.extract_codes import main as extract
from scripts.reconstruct import main as reconstruct, named
from scripts.sample import main as sample
from vgnb.core import BadInput, Mismatch, check
from vgnb.data.codes import CodeStore
from vgnb.data.layouts import export_codes
from vgnb.data.shapes import Shapes
from vgnb.data.transforms import resize_bicubic, to_tensor, to_uint8
from vgnb.draws import At, Keyed
from vgnb.families import published_model, recognised, the_one
from vgnb.figures import house_font, tile_sheet
from vgnb.generators.annealed_order import AnnealedOrderConfig
from vgnb.generators.generator import LINES, Cond, Grid
from vgnb.generators.joint_layers import JointQueryConfig
from vgnb.generators.joint_queries import JointQueryTransformer
from vgnb.generators.masked import MaskedTransformer, masked_presets
from vgnb.generators.masked_text import MaskedTextConfig
from vgnb.generators.partition import PartitionTransformer, partition_presets
from vgnb.generators.proposal import ProposalConfig, ProposalTransformer
from vgnb.generators.random_order import RandomOrderConfig, RandomOrderTransformer
from vgnb.generators.raster import RasterConfig, RasterTransformer, dar_config, llamagen_spec
from vgnb.generators.semantic_detail import SemanticDetailConfig
from vgnb.generators.two_streams import TwoStreamConfig
from vgnb.jobs import SampleJob
from vgnb.moments import moments, preview
from vgnb.pipeline import Pipeline
from vgnb.sampling.guidance import CFG, dar_guidance
from vgnb.sampling.painting import Request
from vgnb.sampling.pick import Pick
from vgnb.sampling.prefix import Continue, Prefix
from vgnb.sampling.sampler import Sampler
from vgnb.sampling.streaming import Arriving, arrivals, is_progressive, preview_pictures
from vgnb.saved import load_model, save_model
from vgnb.tokenizers.dar_tokenizer import DARTokenizer, DARTokenizerConfig
from vgnb.tokenizers.flow_decoder import FlowConfig
from vgnb.tokenizers.quantizers import VectorConfig
from vgnb.training.commands import follow_codes, open_codes
from vgnb.training.recipes import GeneratorRecipe
from vgnb.views.play import LiveSampler, _scaled
from vgnb.views.player import SamplingPlayer
from vgnb.zoo import build, load_published, split, unwrap

LINE = RasterConfig(2, 48, 4, kv_heads=2, ffn_multiple=16, vocab=32, grid=(32,), classes=5, rope="sequence",
                    zero_prefix=False)
LABELS = [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]


def generator(config=LINE, seed=0):
    "A model whose head is not zero."
    m = RasterTransformer(config, seed).eval()
    m.head.weight.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(seed))
    return m


def tokenizer(seed=0, **changes):
    "32 tokens in 4 groups of 8; weights large enough that a token is seen."
    sizes = dict(width=64, layers=1, decoder_layers=1, queries=32, groups=4, steps=4, resolution=32) | changes
    flow = FlowConfig(width=64, depth=2, cond=64, teacher_layer=None)
    model = DARTokenizer(DARTokenizerConfig(VectorConfig(32, 8), flow=flow, **sizes)).eval()
    g = torch.Generator().manual_seed(seed)
    for p in model.parameters(): p.data.normal_(0, 0.08, generator=g)
    return model


@pytest.fixture(scope="module")
def pipe(): return Pipeline(tokenizer(), generator())


@pytest.fixture(scope="module")
def saved(pipe, tmp_path_factory):
    return pipe.save_pretrained(tmp_path_factory.mktemp("pipe") / "dar")


# ---- guidance

def by_hand(m, labels, scales, shared=0):
    "Greedy codes (b, n), each from a whole forward pass of condition and no condition."
    b, codes = len(labels), torch.zeros(len(labels), 0, 1, dtype=torch.long)
    for i, scale in enumerate(scales):
        longer = torch.cat((codes, torch.zeros(b, 1, 1, dtype=torch.long)), 1)
        grid = Grid((longer.shape[1],))
        c, u = (m.logits(longer, Cond(y), grid=grid)[0][:, -1] for y in (labels, torch.full_like(labels, 5)))
        token = (u + (c - u) * scale).argmax(-1)
        if i < shared: token = token[:1].expand(b)
        codes = torch.cat((codes, token[:, None, None]), 1)
    return codes[..., 0]


def greedy(m, guidance, labels, n=32, rows=4):
    sampler = Sampler(m, guidance=guidance, picks=(Pick(greedy=True),), rows=rows)
    return sampler.sample(Cond(labels), torch.arange(len(labels)), Keyed(0), grid=Grid((n,)))[..., 0]


@pytest.mark.parametrize("words", ["1.2,8.0", "2.0,0.5", "0.5,8.0", "0.5,1.5", "0,2", "3.0", "0.5"])
def test_a_ramp_may_begin_end_and_pass_anywhere(words):
    "Grouped queries, the cache, and a null branch that rests where the scale is 1."
    m, labels = generator(), torch.tensor(LABELS[:5])
    a, b = (float(words.split(",")[i]) for i in (0, -1))
    wanted = by_hand(m, labels, torch.linspace(a, b, 32).tolist())
    assert torch.equal(greedy(m, dar_guidance(words), labels), wanted)


def test_a_ramp_that_rests_in_the_middle():
    m, labels = generator(), torch.tensor(LABELS[:3])
    scales = [0.5 + i / 30 for i in range(31)]
    assert scales[15] == 1.0
    assert torch.equal(greedy(m, dar_guidance("0.5,1.5"), labels, 31), by_hand(m, labels, scales))


def test_one_token_and_an_interval():
    m, labels = generator(), torch.tensor(LABELS[:3])
    assert torch.equal(greedy(m, dar_guidance("4.0,8.0"), labels, 1), by_hand(m, labels, [4.0]))
    guided = [4.0] * 12 + [1.0] * 20                          # the first token, and those up to the interval
    assert torch.equal(greedy(m, dar_guidance(4.0, 10), labels), by_hand(m, labels, guided))


def test_the_authors_words():
    assert dar_guidance("1,8", compat="upstream") == CFG(8.0, 1.001, "cell")
    assert dar_guidance("0.5", compat="upstream") == CFG(1.0) and dar_guidance("0.5") == CFG(0.5)
    for words in ("1.0,0.5", "0.5,8"): assert dar_guidance(words, compat="upstream") == CFG(1.0)
    assert dar_guidance("1.0,0.5") == CFG(0.5, 1.0, "cell")
    for bad in ("", "1,2,3", "one", "nan,2", "-1,2", None):
        with pytest.raises(BadInput): dar_guidance(bad)


def test_no_batch_size_changes_a_token():
    m, labels, ids = generator(), torch.tensor(LABELS), torch.arange(10)
    sampler = Sampler(m, guidance=dar_guidance("1.2,8.0"), rows=4)
    whole = sampler.sample(Cond(labels), ids, Keyed(3), grid=Grid((32,)))
    for size in (1, 3, 7):
        parts = [sampler.sample(Cond(labels[i:i + size]), ids[i:i + size], Keyed(3), grid=Grid((32,)))
                 for i in range(0, 10, size)]
        assert torch.equal(torch.cat(parts), whole)


# ---- the first codes shared

def test_a_shared_beginning_is_the_first_rows():
    m, labels = generator(), torch.tensor(LABELS[:5])
    sampler = Sampler(m, guidance=dar_guidance("1.5,4"), picks=(Pick(greedy=True),), rows=4)
    request = Request(sampler, Cond(labels), torch.arange(5), Keyed(0), grid=Grid((32,)))
    what = Prefix(8)
    codes = what.codes(what.paint(request))[..., 0]
    assert torch.equal(codes, by_hand(m, labels, torch.linspace(1.5, 4, 32).tolist(), shared=8))


def test_a_shared_beginning_in_a_job_and_in_one_call(pipe, tmp_path):
    whole = pipe.prefix(LABELS, 8, seed=2, min_rows=8)
    for part in (8, 16):
        job = SampleJob(pipe, torch.tensor(LABELS), tmp_path / f"{part}.npz", seed=2, part=part, what=Prefix(8))
        assert (np.load(job.run(progress=False))["arr_0"] == whole).all()
    record = json.loads((tmp_path / "8.run.json").read_text())["config"]
    assert [record[k] for k in ("work", "count", "first", "leader", "label")] == ["prefix", 10, 8, 0, 0]


def test_a_job_knows_how_a_decoder_is_used(pipe, tmp_path):
    "Two decoders of the same weights that take other steps are two plans, and two reports."
    labels, shared = torch.tensor(LABELS), generator()
    few = tokenizer()
    many = DARTokenizer(replace(few.config, steps=8)).eval()
    many.load_state_dict(few.state_dict())
    plans = [SampleJob(Pipeline(t, shared), labels, tmp_path / "a.npz").plan() for t in (few, many)]
    assert plans[0]["tokenizer"] == plans[1]["tokenizer"] and plans[0]["generator_config"]["grid"] == [32]
    assert {k for k in plans[0] if plans[0][k] != plans[1][k]} == {"tokenizer_config"}
    assert named(few)["weights"] == named(many)["weights"] and named(few)["config"] != named(many)["config"]


def test_the_leader_means_the_same_in_a_job_and_in_one_call(pipe, tmp_path):
    labels = torch.tensor(LABELS)
    for what in (Prefix(8, leader=3), Prefix(8, leader=77, label=2)):
        whole = pipe.apply(what, LABELS, seed=2, min_rows=8)
        job = SampleJob(pipe, labels, tmp_path / f"{what.leader}.npz", seed=2, part=8, what=what)
        assert (np.load(job.run(progress=False))["arr_0"] == whole).all()
    for what in (Prefix(8, leader=10), Prefix(8, leader=-1)):
        with pytest.raises(BadInput, match="leader="): SampleJob(pipe, labels, tmp_path / "a.npz", what=what)
        with pytest.raises(BadInput, match="leader="): pipe.apply(what, LABELS)
    with pytest.raises(BadInput): SampleJob(pipe, labels, tmp_path / "a.npz", what=Prefix(8, label=7))


def test_captions_share_the_first_ones_codes_whatever_the_part():
    "What a job hands to each part is the condition of its own first sample."
    text = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0))
    what = Prefix(2).whole(Cond(text=text))
    assert what.leader == 0 and torch.equal(what.cond.text, text[:1]) and "cond" not in what.record()


def test_the_beginning_of_a_picture(pipe):
    photos = Shapes(2, 32, seed=1).batch(range(2))[0]
    painting = pipe.painting(Continue(8), [0, 1], photos)
    assert torch.equal(painting.codes[:, :8], pipe.encode(photos)[:, :8])
    codes = painting.sample()
    assert torch.equal(codes[:, :8], painting.codes[:, :8]) and (codes >= 0).all()
    one = pipe.painting(Continue(8), [0, 1, 2], photos[0])
    assert torch.equal(one.codes[0, :8], one.codes[2, :8])


def test_a_beginning_of_other_families():
    "Rows of a raster, for whoever can go on from there; nobody shares all codes or none."
    small = dict(layers=1, dim=32, heads=2, ffn_multiple=16, vocab=16, grid=(3, 4), classes=5)
    any_order = RandomOrderTransformer(RandomOrderConfig(**small))
    masked = MaskedTransformer(replace(masked_presets["tiny"], layers=1, dim=32, heads=2, vocab=16, grid=(4, 4)))
    for m in (any_order, masked, RasterTransformer(replace(LINE, rope="grid", grid=(4, 8)))):
        n = Grid(m.grid).n
        request = Request(Sampler(m), Cond(torch.arange(3)), torch.arange(3), Keyed(0))
        what = Prefix(n // 2)
        codes = what.codes(what.paint(request))
        assert (codes[:, :n // 2] == codes[:1, :n // 2]).all() and (codes >= 0).all()
        for bad in (0, n, n + 1, 2.5):
            with pytest.raises(BadInput, match="prefix="): Prefix(bad).paint(request)


def test_what_needs_a_plane_says_so(pipe):
    picture = np.zeros((1, 32, 32, 3), np.uint8)
    marked = np.ones((32, 32), bool)
    for work in (lambda: pipe.inpaint(picture, marked, [0]), lambda: pipe.morph(picture, [0]),
                 lambda: pipe.outpaint(picture, (64, 64), [0])):
        with pytest.raises(BadInput, match="must have codes that lie on a grid"): work()
    with pytest.raises(BadInput, match="any_order"): pipe.extrapolate([0], (8, 8))
    for grid in ((4, 8), (16,)):
        with pytest.raises(Mismatch, match="stand in a line"): Pipeline(pipe.tokenizer, pipe.generator, grid=grid)


# ---- previews

def newest(previews, done):
    found = {int(i): image for p in previews if p.done == done for i, image in zip(p.ids, p.images)}
    return np.stack([found[i] for i in sorted(found)])


@pytest.mark.parametrize("denoise", [None, 1, 2, 8])
def test_the_last_preview_is_the_picture(pipe, denoise):
    steps = denoise or 4
    seen = list(pipe.stream_previews(LABELS, seed=5, denoise=denoise))
    assert (newest(seen, steps) == pipe.sample(LABELS, seed=5, denoise=denoise)).all()
    strip = pipe.previews(LABELS, seed=5, denoise=denoise)
    for p in seen: assert (strip[p.ids.numpy(), p.done - 1] == p.images).all()
    assert sorted(p.done for p in seen) == sorted([*range(1, steps + 1)] * 2), "each of them, of two micro-batches"
    for k in {1, -(-steps // 2), steps}:
        assert (pipe.preview(LABELS, k, seed=5, denoise=denoise) == strip[:, k - 1]).all()


@pytest.mark.full
def test_previews_at_any_batch_size_and_with_known_tokens(pipe):
    whole = pipe.sample(LABELS, seed=1)
    for i in (0, 7):
        *_, last = pipe.stream_previews(LABELS[i], seed=1, ids=[i])
        assert last.last and (last.images[0] == whole[i]).all()

    codes = pipe.codes(LABELS, seed=1)
    for known in (3, 8, 20):
        mask = (torch.arange(32) < known).expand(10, -1)
        how = dict(seed=4, given=(codes, mask))
        assert (newest(pipe.stream_previews(LABELS, **how), 4) == pipe.sample(LABELS, **how)).all()
        assert (pipe.preview(LABELS, 3, **how) == pipe.previews(LABELS, **how)[:, 2]).all()


def test_a_setting_of_none_stays_as_it_is(pipe):
    how = dict(seed=3, rows=None, min_rows=None, guidance=None)
    assert (pipe.previews([1, 2], **how) == pipe.previews([1, 2], seed=3)).all()
    assert (pipe.preview([1, 2], 2, **how) == pipe.preview([1, 2], 2, seed=3)).all()


def test_samples_that_know_differently_many_tokens(pipe):
    "Any order, on a line: nothing, a few or all of the tokens are known, each sample's own."
    config = replace(partition_presets["tiny"], encoder=1, decoder=1, dim=32, heads=2, vocab=32, grid=(32,), classes=5)
    line = Pipeline(pipe.tokenizer, PartitionTransformer(config).eval())
    codes, count = pipe.codes([0, 1, 2], seed=1), torch.tensor([0, 4, 32])
    for counts in (count, count.flip(0), torch.tensor([32, 32, 32])):
        how = dict(seed=4, given=(codes, torch.arange(32) < counts[:, None]))
        before, whole, strip = codes.clone(), line.sample([0, 1, 2], **how), line.previews([0, 1, 2], **how)
        for k in (1, 3, 4): assert (line.preview([0, 1, 2], k, **how) == strip[:, k - 1]).all()
        seen = list(line.stream_previews([0, 1, 2], **how))
        assert (newest(seen, 4) == whole).all() and torch.equal(codes, before)
        assert sorted(int(i) for p in seen if p.last for i in p.ids) == [0, 1, 2]


def test_a_tokenizer_in_training_stays_so(pipe):
    codes, ids = pipe.codes([0, 1]), torch.arange(2)
    model = pipe.tokenizer.train()
    try:
        preview_pictures(model, codes, 2, ids=ids, draws=Keyed(0), rows=2)
        assert model.training and len(list(arrivals(pipe.stream([0, 1]), model))) and model.training
        with pytest.raises(ValueError): list(arrivals(_broken(pipe.stream([0])), model))
        assert model.training
    finally: model.eval()


def _broken(steps):
    yield next(steps)
    raise ValueError


def test_a_size_that_cannot_be_is_refused_before_any_token(pipe, tmp_path):
    "A decoder of other patches refuses other sides; none of them waits for the tokens."
    class Asked(RasterTransformer):
        def begin(self, *args, **kwargs): raise AssertionError("sampled")
    fussy = Pipeline(pipe.tokenizer, Asked(LINE).eval())
    def refused(at, size=None, **_): check(size is None or size % 4 == 0, "size", size, "must be a multiple of 4")
    pipe.tokenizer.open = refused
    try:
        for work in (lambda: fussy.sample([1], size=33), lambda: fussy.preview([1], 2, size=33),
                     lambda: fussy.previews([1], size=33), lambda: fussy.stream_previews([1], size=33),
                     lambda: fussy.prefix([1], 8, size=33),
                     lambda: SampleJob(fussy, torch.tensor([1]), tmp_path / "a.npz", size=33)):
            with pytest.raises(BadInput, match="size=33"): work()
    finally: del pipe.tokenizer.open


def test_previews_come_as_soon_as_they_can_and_early_ones_stay_cheap(pipe):
    drawn = []
    class Counting(RasterTransformer):
        def accept(self, state, positions, tokens):
            drawn.append(positions.shape[1])
            super().accept(state, positions, tokens)

    m = Counting(LINE).eval()
    counted = Pipeline(pipe.tokenizer, m)
    first = next(counted.stream_previews([0]))
    assert first.tokens == 8 == sum(drawn) and not first.last
    drawn.clear()
    counted.preview(LABELS, 2)
    assert sum(drawn) == 2 * 16                                       # two micro-batches, half of their tokens


def test_a_tokenizer_that_needs_all_tokens_says_so():
    from vgnb.pipeline import from_pretrained
    plane = from_pretrained("tiny-randar")
    assert not is_progressive(plane.tokenizer)
    for work in (lambda: plane.stream_previews([0]), lambda: plane.preview([0], 1), lambda: plane.previews([0]),
                 lambda: plane.arriving(), lambda: arrivals([], plane.tokenizer)):
        with pytest.raises(BadInput, match="decodes all codes of a picture at once"): work()
    with pytest.raises(BadInput, match="denoise=4"): plane.sample([0], denoise=4)


def test_errors_speak_of_what_the_caller_wrote(pipe):
    codes, how = pipe.codes([0]), dict(ids=torch.arange(1), draws=Keyed(0), rows=1)
    for work, words in (
            (lambda: pipe.preview([0], 5), "k=5: must be an integer >= 1 and <= 4"),
            (lambda: pipe.preview([0], 1, denoise=0), "denoise=0"),
            (lambda: pipe.previews([0], denoise=3), "denoise=3: must be one of 1, 2, or at least 4"),
            (lambda: pipe.stream_previews([0], denoise=0), "denoise=0"),
            (lambda: pipe.sample([0], denoise=3), "denoise=3: must be one of 1, 2, or at least 4"),
            (lambda: pipe.arriving(denoise=2.5), "denoise=2.5"),
            (lambda: arrivals([], pipe.tokenizer, denoise=0), "denoise=0"),
            (lambda: preview_pictures(pipe.tokenizer, codes, 5, **how), "k=5"),
            (lambda: preview_pictures(pipe.tokenizer, codes, 1, denoise=3, **how), "denoise=3"),
            (lambda: preview_pictures(pipe.tokenizer, codes[:, :7], 1, **how), "must have at least 8 tokens for k=1")):
        with pytest.raises(BadInput) as e: work()
        assert words in str(e.value)


def test_players_show_previews(pipe):
    player = SamplingPlayer(pipe.stream([1, 2], seed=3), pipe.arriving(3), pipe.grid.shape, side=64)
    for step in (1, 8, 20, 32): player.step.value = step
    strip = pipe.previews([1, 2], seed=3)
    shown = {m.step: m for m in moments(pipe.stream([1, 2], seed=3))}
    decode = pipe.arriving(3)
    for step, k in ((7, 1), (8, 1), (15, 2), (31, 4)):
        for row in (0, 1):
            assert (np.asarray(preview(shown[step], row, decode, (32,), side=32)) == strip[row, k - 1]).all()
    assert decode.arriving(torch.full((1, 32, 1), -1), torch.tensor([0])) is None

    live = LiveSampler(pipe, 1, seed=3, side=64)
    assert isinstance(live.frames.decode, Arriving)
    last = live.frames.seen[-1]
    assert (np.asarray(preview(last, 0, live.frames.decode, (32,), side=32)) == pipe.sample([1], seed=3)[0]).all()


def test_a_player_shows_one_sample_and_no_other_codes(pipe):
    decode, codes = pipe.arriving(3), pipe.codes([1, 2], seed=3)
    assert (decode(codes[:1]) == pipe.sample([1], seed=3)).all()
    for wrong, found in ((codes, "(2, 32, 1)"), (codes[:0], "(0, 32, 1)"), (codes[:1].float(), "'Tensor'"),
                         (codes[:1].numpy(), "'ndarray'"), (None, "'NoneType'")):
        words = re.escape(f"codes={found}: must be whole numbers of one sample")
        with pytest.raises(BadInput, match=words): decode(wrong)
        with pytest.raises(BadInput, match=words): decode.arriving(wrong, torch.tensor([0]))


@pytest.mark.parametrize("ramp, scale, wanted", [
    (CFG(1.0, start=4.0, by="cell"), 2.0, CFG(2.0, start=4.0, by="cell")),
    (CFG(8.0, start=1.2, by="cell"), 1.0, CFG(1.0, start=1.0, by="cell")),
    (CFG(3.0), 5.0, 5.0)])
def test_a_slider_keeps_a_falling_ramp(ramp, scale, wanted): assert _scaled(ramp, scale) == wanted


# ---- commands

def test_the_sampling_command(pipe, saved, tmp_path, capsys):
    def run(name, *words): return sample([str(saved), "--count", "10", "--out", str(tmp_path / f"{name}.npz"), *words])
    def made(name): return np.load(tmp_path / f"{name}.npz")["arr_0"]
    strip = tmp_path / "strip.png"
    scales = ["--guidance.start", "1.2", "--guidance.scale", "8", "--guidance.by", "cell"]
    assert run("a", "--strip", str(strip), *scales) == 0
    guidance = CFG(8.0, start=1.2, by="cell")
    assert (made("a") == pipe.sample(LABELS, guidance=guidance, min_rows=8)).all() and strip.is_file()
    assert run("a", "--strip", str(strip), *scales) == 0
    assert "finished already" in capsys.readouterr().out

    assert run("b", "--preview", "3", "--denoise", "6") == 0
    assert (made("b") == pipe.preview(LABELS, 3, denoise=6, min_rows=8)).all()
    assert run("c", "--prefix", "8", "--sheet", str(tmp_path / "c.png")) == 0
    assert (made("c") == pipe.prefix(LABELS, 8, min_rows=8)).all()
    assert run("d", "--prefix", "8", "--like", str(tmp_path / "c.png"), "--crop", "32") == 0
    record = json.loads((tmp_path / "d.run.json").read_text())["config"]
    assert record["work"] == "continue" and "pictures" in record

    for words, match in ((["--preview", "5"], "preview=5"), (["--prefix", "32"], "prefix=32"),
                         (["--like", str(strip)], "only goes with prefix"),
                         (["--prefix", "8", "--preview", "1"], "preview=1"),
                         (["--prefix", "8", "--strip", str(tmp_path / "e.png")], "strip="),
                         (["--sheet", str(tmp_path / "e.png"), "--strip", str(tmp_path / "e.png")], "strip="),
                         (["--denoise", "0"], "denoise=0")):
        with pytest.raises(BadInput, match=match): run("e", *words)
    assert not (tmp_path / "e.npz").exists()


@pytest.fixture(scope="module")
def of_ten(pipe, tmp_path_factory):
    "A pipeline of as many classes as the judge of shapes knows."
    ten = Pipeline(pipe.tokenizer, generator(replace(LINE, classes=10)))
    return ten.save_pretrained(tmp_path_factory.mktemp("ten") / "dar")


@pytest.mark.parametrize("words, match", [
    (["--prefix", "8", "--preview", "1"], "preview=1: can't be combined with prefix"),
    (["--prefix", "8", "--denoise", "2"], "denoise=2: can't be combined with prefix"),
    (["--prefix", "8", "--strip", "e.png"], "strip=e.png: can't be combined with prefix"),
    (["--prefix", "8", "--like", "like.png", "--preview", "1"], "preview=1: can't be combined with prefix"),
    (["--prefix", "8", "--reject-by", "shapes-judge"], "reject_by=.*: can't be combined with prefix"),
    (["--reject-by", "shapes-judge", "--preview", "1"], "preview=1: can't be combined with reject_by"),
    (["--reject-by", "shapes-judge", "--strip", "e.png"], "strip=e.png: can't be combined with reject_by"),
    (["--preview", "2", "--denoise", "3"], "denoise=3: must be one of 1, 2, or at least 4"),
    (["--guidance", "1.2,8.0"], "guidance='1.2,8.0': .*--guidance cfg --guidance.start 1.2 --guidance.scale 8 "),
    (["--guidance", "1.2 8"], "--guidance.start 1.2 --guidance.scale 8 --guidance.by cell"),
    (["--guidance", "1.2,8.0,3"], "guidance='1.2,8.0,3': must be one of")])
def test_what_does_not_go_together_is_said_in_the_words_of_the_command(of_ten, tmp_path, monkeypatch, words, match):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save("like.png")
    with pytest.raises(BadInput, match=match): sample([str(of_ten), "--count", "2", "--out", "e.npz", *words])
    assert not (tmp_path / "e.npz").exists()


def test_two_scales_in_python_are_told_how_they_are_said(pipe):
    for words in ("1.2,8.0", "1.2:8", "1.2, 8"):
        with pytest.raises(BadInput, match=r'CFG\(8, start=1.2, by="cell"\)'): pipe.codes([0], guidance=words)


def test_the_strip_is_the_stream_of_previews(pipe, saved, tmp_path):
    "Each preview, as finished codes give them; also where a group of tokens allows two steps."
    words = [str(saved), "--count", "3", "--denoise", "8", "--out", str(tmp_path / "a.npz")]
    assert sample([*words, "--strip", str(tmp_path / "a.png")]) == 0
    strip, tokens = pipe.previews(LABELS[:3], denoise=8, min_rows=8), (8, 16, 16, 24, 24, 32, 32, 32)
    sheet = tile_sheet(list(strip), [[f"{n} tokens" for n in tokens]] * 3, whole=True)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), np.asarray(sheet))


def test_codes_in_a_line_are_extracted_exported_and_learnt_from(saved, tmp_path):
    model = load_model(saved / "tokenizer")
    words = ["--tokenizer", str(saved / "tokenizer"), "--size", "32", "--data", "shapes://?n=12", "--ten-crop"]
    assert extract([*words, "--out", str(tmp_path / "store")]) == 0
    store = CodeStore(tmp_path / "store")
    assert store.grid == (32,) and store.coding == model.coding() and store[0][0].shape == (10, 32, 1)

    out = tmp_path / "shapes32_codes"
    export_codes(store, "llamagen", out)
    assert np.load(out / "0.npy").shape == (1, 10, 32)
    back = open_codes(f"llamagen://{out}?vocab=32&classes=10&grid=32")
    assert back.grid == (32,) and torch.equal(back[3][0], store[3][0])
    with pytest.raises(BadInput, match="grid="): open_codes(f"llamagen://{out}?vocab=32&classes=10&grid=31")

    recipe = GeneratorRecipe(replace(LINE, classes=10))
    assert follow_codes(recipe, back).model.grid == (32,)
    with pytest.raises(Mismatch, match="grid"):
        follow_codes(replace(recipe, model=replace(LINE, classes=10, grid=(16,))), back)


def test_reconstruction_by_the_protocols(tmp_path):
    model = tokenizer()
    save_model(tmp_path / "model", model, model.config)
    words = ["--tokenizer", str(tmp_path / "model"), "--data", "shapes://?n=6&size=40", "--size", "32"]
    def run(name, *more):
        out = tmp_path / f"{name}.npz"
        assert reconstruct([*words, "--out", str(out), *more]) == 0
        return np.load(out)["arr_0"], json.loads(out.with_suffix(".json").read_text())

    made, numbers = run("a", "--strip", str(tmp_path / "a.png"), "--originals", str(tmp_path / "crops.npz"))
    assert made.shape == (6, 32, 32, 3) and 0 <= numbers["levels"][0]["dead_places"] <= 1
    again, _ = run("b", "--crop", "random", "--originals", str(tmp_path / "random.npz"))
    centre, random = (np.load(tmp_path / f"{name}.npz")["arr_0"] for name in ("crops", "random"))
    assert (centre != random).any()
    assert (run("c", "--denoise", "2")[0] != made).any() and (run("d", "--seed", "1")[0] != made).any()
    upstream = run("e", "--compat", "upstream", "--originals", str(tmp_path / "low.npz"))[1]
    lower = centre.astype(int) - np.load(tmp_path / "low.npz")["arr_0"]
    assert set(np.unique(lower)) <= {0, 1} and upstream["protocol"]["ssim_data_range"] == 2.0
    assert upstream["ssim"] > numbers["ssim"]
    assert run("f", "--precision", "bf16")[0].shape == made.shape


def test_a_size_above_the_tokenizers_own_is_drawn_at_that_size(tmp_path, monkeypatch):
    "Reconstructions and the previews beside them."
    model = tokenizer()
    save_model(tmp_path / "model", model, model.config)
    sheets = []
    monkeypatch.setattr("vgnb.figures.tile_sheet", lambda *a, **k: sheets.append((a, k)) or tile_sheet(*a, **k))
    words = ["--tokenizer", str(tmp_path / "model"), "--data", "shapes://?n=3&size=64", "--size", "64"]
    assert reconstruct([*words, "--out", str(tmp_path / "a.npz"), "--strip", str(tmp_path / "a.png")]) == 0
    made = np.load(tmp_path / "a.npz")["arr_0"]
    images = to_tensor(Shapes(3, 64).batch(range(3))[0])
    with torch.no_grad():
        whole = model(images, Keyed(0), At(torch.arange(3)))
        first = model.preview(whole.quantized.codes, 1, draws=Keyed(0), at=At(torch.arange(3)), resolution=64)
        enlarged = model.render(whole.quantized.z, size=64)
    assert np.array_equal(made, to_uint8(whole.output).numpy())
    assert abs(made.astype(int) - to_uint8(enlarged).numpy()).max() > 16
    (rows, captions), how = sheets[0]
    assert captions[0] == ["picture", "8 tokens", "16 tokens", "24 tokens", "reconstruction"] and how["whole"]
    assert all(np.array_equal(row[1], shown) for row, shown in zip(rows, to_uint8(first).numpy()))
    assert all(np.array_equal(row[-1], one) for row, one in zip(rows, made))

    assert reconstruct([*words, "--compare", "32", "--out", str(tmp_path / "b.npz")]) == 0
    smaller = resize_bicubic(whole.output, 32)
    assert np.array_equal(np.load(tmp_path / "b.npz")["arr_0"], to_uint8(smaller).numpy())
    for bad, match in ((["--size", "30"], "size=30: must be a multiple of 16"), (["--denoise", "3"], "denoise=3")):
        with pytest.raises(BadInput, match=match): reconstruct([*words, "--out", str(tmp_path / "c.npz"), *bad])


def test_captions_of_a_strip_are_whole():
    "Their column is as wide as they are, whatever the tile."
    for side in (32, 65, 100):
        picture = np.zeros((side, side, 3), np.uint8)
        sheet = np.asarray(tile_sheet([[picture]], [["reconstruction"]], whole=True))
        ink = np.nonzero((sheet[-20:] < 128).any((0, 2)))[0]                        # columns with letters in them
        width = house_font(11).getlength("reconstruction")
        assert sheet.shape[1] >= width + 6 and ink[-1] - ink[0] > width - 4 and ink[-1] < sheet.shape[1] - 2


# ---- codes in a line

@pytest.mark.parametrize("make", [
    lambda: RandomOrderConfig(grid=(64,)),
    lambda: replace(masked_presets["tiny-shapes"], grid=(64,)),
    lambda: MaskedTextConfig(grid=(64,)),
    lambda: RasterConfig(grid=(64,)),
    lambda: SemanticDetailConfig(grid=(64,)),
    lambda: TwoStreamConfig(grid=(64,)),
    lambda: AnnealedOrderConfig(grid=(64,))])
def test_a_model_of_planes_says_who_takes_a_line(make):
    with pytest.raises(BadInput, match=r'grid=\(64,\): must be \(h, w\).*RasterConfig with rope="sequence"'): make()


def test_who_is_said_to_take_a_line_takes_one():
    small = dict(dim=32, heads=2, vocab=16, classes=5, grid=(16,))
    lines = (RasterTransformer(RasterConfig(1, ffn_multiple=16, rope="sequence", **small)),
             ProposalTransformer(ProposalConfig(1, ffn_multiple=16, **small)),
             PartitionTransformer(replace(partition_presets["tiny"], encoder=1, decoder=1, **small)),
             JointQueryTransformer(JointQueryConfig(1, **small)))
    for m in lines:
        assert type(m.config).__name__ in LINES
        codes = Sampler(m.eval()).sample(Cond(torch.arange(2)), torch.arange(2), Keyed(0), grid=Grid((16,)))
        assert codes.shape == (2, 16, 1)


def test_a_grid_that_is_none_is_refused_by_name(pipe):
    for make in (lambda grid: replace(masked_presets["tiny-shapes"], grid=grid),
                 lambda grid: replace(partition_presets["tiny"], grid=grid), lambda grid: replace(LINE, grid=grid)):
        for grid in (64, "ab", (4, 4, 4), (0, 4), ()):
            with pytest.raises(BadInput, match="^grid="): make(grid)
    plane = RasterTransformer(replace(LINE, rope="grid", grid=(4, 8)))
    with pytest.raises(Mismatch, match="stand in a line; a line of codes"): Pipeline(pipe.tokenizer, plane)


@pytest.mark.parametrize("count", [3, 0, -1, 8, "2", 2.0])
def test_key_value_heads_divide_the_heads(count):
    with pytest.raises(BadInput, match="^kv_heads="): replace(LINE, kv_heads=count)
    assert replace(LINE, kv_heads=1).kv_heads == 1


# ---- published files

@pytest.mark.parametrize("words, match", [
    ({"block_sise": 64}, "'block_sise': must be one of .*did you mean block_size"),
    ({"block_size": "256"}, "^block_size='256'"),
    ({"cls_token_num": 4}, "^cls_token_num=4: must be 1"),
    ({"cls_token_num": "1"}, "^cls_token_num='1'"),
    ({"n_layer": [1]}, "^n_layer=.1."),
    ({"n_kv_head": 5}, "^n_kv_head=5: must divide heads=12"),
    ({"token_dropout_p": "0.1"}, "^token_dropout_p='0.1'"),
    ({"token_dropout_p": 1.0}, "^token_dropout_p=1.0"),
    ({"model": "GPT-M"}, "^model='GPT-M'"),
    ({"model_type": "x2i"}, "^model_type='x2i'"),
    ({"attn_dropout_p": 0.1}, "^attn_dropout_p=0.1: must be 0")])
def test_the_authors_arguments_are_read_word_by_word(words, match):
    with pytest.raises(BadInput, match=match): dar_config({"model": "GPT-B"} | words)


def test_the_authors_arguments_of_all_kinds():
    for spec in (None, [1], "GPT-B"):
        with pytest.raises(BadInput, match="^spec=.*: must be a mapping"): dar_config(spec)
    buffers = {"max_batch_size": 32, "max_seq_len": 2048, "n_kv_head": None, "ffn_dim_multiplier": None}
    assert dar_config({"model": "GPT-B"} | buffers) == dar_config({"model": "B"})
    assert dar_config(llamagen_spec(LINE)) == LINE and dar_config({"model": "GPT-B"}, layers=2).layers == 2
    with pytest.raises(BadInput, match="^layers=0"): dar_config({"n_layer": 3}, layers=0)
    with pytest.raises(BadInput, match="did you mean block_size"):
        published_model({"model": "GPT-B", "block_sise": 64}, system="dar")


def entries(name, system):
    "A published model's state dict without memory."
    with torch.device("meta"): m, table = build(name)
    return table.export(m.state_dict(), m)


@pytest.mark.parametrize("wrap", ["model", "module", "state_dict", None])
@pytest.mark.parametrize("before", ["", "_orig_mod.", "module."])
def test_whose_file_it_is_its_name_says(wrap, before):
    state = {before + k: v for k, v in entries("D-AR-L", "dar").items()}
    content = state if wrap is None else {wrap: state, "optimizer": {}, "steps": 9}
    found = recognised(split(unwrap(content), "loss.")[""])
    assert the_one(found, "runs/D-AR-L-360K.pt").family.system == "dar"
    assert the_one(found, "runs/D-AR-XL-360K.pt").family.system == "dar"
    assert the_one(found, "c2i_L_256.pt").family.system == "llamagen"
    for name in ("0360000.pt", "temp/ar.pt"):
        with pytest.raises(Mismatch, match="system="): the_one(found, name)
    assert the_one(recognised(unwrap(content), "dar"), "0360000.pt").spec["n_layer"] == 24


@pytest.mark.parametrize("wrap", ["model", "module", "state_dict", None])
def test_a_file_of_theirs_is_loaded(wrap, tmp_path):
    spec = dict(dim=48, n_layer=2, n_head=4, n_kv_head=2, multiple_of=16, vocab_size=32, num_classes=5, block_size=32)
    ours, names = published_model(spec, system="dar")
    assert ours.config.rope == "sequence" and ours.config.grid == (32,) and not ours.config.zero_prefix
    state = {f"_orig_mod.{k}": v for k, v in names.export(ours.state_dict()).items()}
    cache = {"_orig_mod.layers.0.attention.kv_cache.k_cache": torch.zeros(2, 2)}      # a model that has sampled
    torch.save(state | cache if wrap is None else {wrap: state | cache, "steps": 9}, tmp_path / "D-AR-small.pt")
    found = load_published(tmp_path / "D-AR-small.pt", spec=spec, system="dar")
    assert found.config == ours.config
    assert all(torch.equal(a, b) for a, b in zip(found.state_dict().values(), ours.state_dict().values()))
    assert load_published(tmp_path / "D-AR-small.pt", spec=spec).config == ours.config     # 32 places fill no square
    with pytest.raises(Mismatch, match="system="):
        load_published(tmp_path / "D-AR-small.pt", spec=spec | {"block_size": 16})
