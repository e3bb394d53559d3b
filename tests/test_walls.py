"The seams between rooms: what a part says of itself is what everyone goes by, whoever wrote it."
import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from vgnb import families
from vgnb.core import BadInput, Mismatch
from vgnb.draws import At, Keyed
from vgnb.generators.adaptive_orders import Confidence, Uncertainty
from vgnb.generators.generator import Clock, Cond, Generator, Grid, Plan, Prediction
from vgnb.generators.masked import HALTON, MaskedConfig
from vgnb.generators.masked_text import MaskedTextConfig
from vgnb.generators.orders import ORDERS, FixedPath, Given, Order, Redrawn, known_first
from vgnb.generators.partition import PGM, PartitionConfig
from vgnb.generators.random_order import RANDAR, RandomOrderConfig
from vgnb.generators.raster import LLAMAGEN_GPT, RasterConfig, RasterTransformer, llamagen_gpt_names
from vgnb.generators.schedules import even
from vgnb.jobs import planned_labels
from vgnb.kinds import Kind, called, from_json, kinds, to_json
from vgnb.names import NameTable, Rename
from vgnb.pipeline import Pipeline
from vgnb.sampling.applications import Inpaint, Morph, Outpaint
from vgnb.sampling.extrapolation import Extrapolate
from vgnb.sampling.guidance import CFG, Between, Linear, Ramped, SpatialGuidance
from vgnb.sampling.painting import Application, Leg, Painting
from vgnb.sampling.pick import HaltonPick, Pick
from vgnb.sampling.sampler import Sampler
from vgnb.tokenizers.maskgit_vqgan import MaskGITVQGANConfig
from vgnb.tokenizers.objectives import VQGANLoss, VQGANLossConfig
from vgnb.tokenizers.pictures import codes_of, pictures
from vgnb.tokenizers.quantizers import VectorConfig
from vgnb.tokenizers.tokenizer import Quantized, Reconstruction, Tokenizer
from vgnb.tokenizers.vqgan import VQGANConfig
from vgnb.training.previews import teacher_forced
from vgnb.training.recipes import TokenizerRecipe
from vgnb.training.tasks import TokenizerTask
from vgnb.views.desk import reconstruct

@pytest.fixture(autouse=True)
def no_words_stay():
    "Orders and guidances register themselves; a test's own are gone after it."
    before = dict(kinds)
    yield
    dict.clear(kinds)
    dict.update(kinds, before)


class Likes(Generator):
    "Each cell likes a code of its own, whatever the others are."
    vocab = (6,)
    traits = frozenset({"any_order"})

    def null(self, cond): return cond

    def predict(self, state, positions, given=None, *, live, independent=False):
        logits = torch.nn.functional.one_hot(positions % 6, 6).float()
        return Prediction(logits.expand(live, -1, -1, -1))


GRID = Grid((3, 5))
FAR = torch.arange(3)[:, None] + torch.arange(5)


def diagonal_order():
    class Lines(Order):
        "Whole anti-diagonals."
        def fixed(self, grid, draws, at): return FAR.flatten().argsort(stable=True)

        def counts(self, grid, schedule, steps, known):
            return [count for count in FAR.flatten()[~known].bincount().tolist() if count]

    return Lines()


def known_cells(*rows):
    known = torch.zeros(len(rows), 15, dtype=torch.bool)
    for row, cells in zip(known, rows): row[list(cells)] = True
    return known


def request(known, first=0):
    "What a sampler is asked for some masks, from sample `first` on; known cells hold code 5."
    b = len(known)
    codes = torch.full((b, 15, 1), 5)
    return dict(cond=Cond(torch.zeros(b, dtype=torch.long)), ids=torch.arange(b) + first, draws=Keyed(0), grid=GRID,
                given=(codes, known))


def painting(sampler, known, first=0):
    r = request(known, first)
    return Painting(r["cond"], r["ids"], (3, 5), r["given"][0], known, (Leg(sampler, GRID, r["draws"]),))


MASKS = known_cells([7, 8], [0, 1], [7, 8], [14, 0])


def test_an_order_hears_which_cells_are_known():
    "Not only how many: cells 7 and 8 lie on the fourth and the fifth diagonal."
    sampler = Sampler(Likes(), diagonal_order(), even, rows=2)
    for steps in (list(sampler.stream(**request(MASKS[:1]))), list(painting(sampler, MASKS[:1]).stream())):
        assert [s.positions.shape[1] for s in steps] == [1, 2, 3, 2, 2, 2, 1]
        for k, s in enumerate(steps): assert (FAR.flatten()[s.positions] == k).all()
        assert (steps[-1].codes() >= 0).all()


def test_samples_with_other_groups_run_apart():
    "As many cells known, but others: a diagonal of one sample is not one of the next."
    sampler = Sampler(Likes(), diagonal_order(), even, rows=2)
    for steps in (sampler.stream(**request(MASKS)), painting(sampler, MASKS).stream()):
        met = []
        for s in steps:
            lines = FAR.flatten()[s.positions]
            assert (lines == lines[:, :1]).all()
            met.append(s.ids.tolist())
        assert [ids for n, ids in enumerate(met) if ids not in met[:n]] == [[0, 2], [1], [3]]

    whole = painting(sampler, MASKS).sample()
    alone = torch.cat([painting(sampler, MASKS[[i]], i).sample() for i in range(4)])
    assert torch.equal(whole, alone)


def planned(counts_of, first=known_first):
    class Own(Order):
        "A plan that asks neither schedule nor `counts`."
        def plan(self, grid, known, schedule, steps, draws, at):
            perm = torch.arange(grid.n).expand(len(at.ids), -1)
            return Plan(first(perm, known), counts_of(grid.n - int(known[0].sum())))

    return Own()


def test_the_plan_is_what_counts():
    "A plan of two groups has two steps, in a stream and in a painting."
    sampler = Sampler(Likes(), planned(lambda left: [1, left - 1]), even, steps=9, rows=2)
    for steps in (sampler.stream(**request(MASKS[:1])), painting(sampler, MASKS[:1]).stream()):
        assert [(s.clock.step, s.clock.steps, s.positions.shape[1]) for s in steps] == [(0, 2, 1), (1, 2, 12)]


@pytest.mark.parametrize("order, words", [
    (lambda: planned(lambda left: [1, 1]), r"order=\[1, 1\]: must be positive group sizes that add up to 13"),
    (lambda: planned(lambda left: [left, 0]), "must be positive group sizes"),
    (lambda: planned(lambda left: [1, left - 1], lambda perm, known: perm), "Own.*the cells that are known first"),
    (lambda: planned(lambda left: [1, left - 1], lambda perm, known: perm * 0), "must be a permutation")])
def test_a_plan_that_cannot_be_is_refused(order, words):
    "Before any work, by whoever is asked."
    sampler = Sampler(Likes(), order(), even, rows=2)
    for ask in (lambda: sampler.stream(**request(MASKS[:1])), lambda: sampler.sample(**request(MASKS[:1])),
                lambda: painting(sampler, MASKS[:1])):
        with pytest.raises(BadInput, match=words): ask()


def test_a_plan_may_ask_for_no_more_than_the_generator_answers():
    class Single(Likes):
        most = 1

    sampler = Sampler(Single(), planned(lambda left: [1, left - 1]), even, steps=13)
    with pytest.raises(BadInput, match="order=.*must be groups of one"): sampler.stream(**request(MASKS[:1]))


def test_a_plan_is_the_same_whenever_it_is_asked():
    "Groups that change between the check and the run are an error, not a shorter picture."
    asked = []
    def counts_of(left):
        asked.append(left)
        return [left] if len(asked) == 1 else [1, left - 1]

    steps = Sampler(Likes(), planned(counts_of), even).stream(**request(MASKS[:1]))
    with pytest.raises(BadInput, match="Own.*must plan the same groups"): next(steps)


# ---- ramps: a value a column, or a clear no

BY_CELL = Linear(0.0, 6.0, "column")


@pytest.mark.parametrize("pick", [
    Pick(BY_CELL), HaltonPick(BY_CELL, sharpness=0.5), Pick(Between(0, 1, BY_CELL), 0, 0.99)])
def test_a_temperature_may_move_from_cell_to_cell(pick):
    "Cells asked together get what each gets by itself; at temperature 0 the likeliest code."
    g, ids, cells = torch.Generator().manual_seed(0), torch.arange(40), torch.arange(4).expand(40, -1)
    logits = torch.randn(40, 4, 9, generator=g)
    clock = Clock(0, 2, 0, 8, count=4)
    tokens, confidence = pick(logits, clock, Keyed(0), At(ids, cells, 0, 0))
    for j, degree in enumerate(pick.divisor(clock)):
        alone = Pick(degree, pick.top_k, pick.top_p)
        single = alone(logits[:, [j]], clock._replace(count=1), Keyed(0), At(ids, cells[:, [j]], 0, 0))
        assert torch.equal(tokens[:, j], single[0][:, 0])
        assert torch.allclose(confidence[:, j], single[1][:, 0])
    assert torch.equal(tokens[:, 0], logits[:, 0].argmax(-1))


PARTS = {
    "guidance": dict(guidance=CFG(3.0, 1.0, "column")),
    "ramped": dict(guidance=Ramped(Between(0.2, 0.4, BY_CELL))),
    "spatial": dict(guidance=SpatialGuidance(1.0, by="column", spatial_start=1.0)),
    "picks": dict(picks=(Pick(BY_CELL),)),
    "halton": dict(picks=(HaltonPick(BY_CELL),))}


class Blind(Likes):
    traits = frozenset({"any_order", "blind", "rewrite"})


@pytest.mark.parametrize("order", [Confidence(), Uncertainty(), Confidence(redraw=True), Redrawn()])
@pytest.mark.parametrize("part", PARTS)
def test_an_order_that_asks_for_more_takes_no_value_a_column(part, order):
    "Said by name when the sampler is built, not by a shape that doesn't fit."
    words = f"gives each cell of a step a value of its own, but {called(order)} asks for more"
    with pytest.raises(BadInput, match=words): Sampler(Blind(), order, even, **PARTS[part])


@pytest.mark.parametrize("part", PARTS)
def test_a_fixed_order_takes_them(part):
    steps = list(Sampler(Blind(), FixedPath(), even, steps=4, **PARTS[part]).stream(**request(known_cells([7, 8]))))
    assert len(steps) == 4
    assert (steps[-1].codes() >= 0).all()


def test_noise_of_a_choice_is_a_ramp():
    "In code any ramp of the step, in JSON as well; the two numbers stay what they were."
    clocks = [Clock(i, 5, 3 * i, 15, count=3) for i in range(5)]
    ramp = Confidence(Linear(4.5, 0.5, "step"))
    assert [ramp.noise_at(c) for c in clocks] == [Confidence(4.5, 0.5).noise_at(c) for c in clocks]
    assert from_json(json.loads(json.dumps(to_json(ramp)))) == ramp

    how = dict(schedule=even, steps=4)
    made = [Sampler(Likes(), order, **how).sample(**request(MASKS)) for order in (ramp, Confidence(4.5, 0.5))]
    assert torch.equal(*made)
    with pytest.raises(BadInput, match="noise_end"): Confidence(Linear(4.5, 0.0), 1.0)
    with pytest.raises(BadInput, match="order='confidence': gives each cell"): Sampler(Likes(), Confidence(BY_CELL))


def test_a_ramp_with_too_few_values_says_so():
    class Asks(Order):
        "More candidates than it says."
        def candidates(self, perm, done, count): return perm[:, done:]

        def choose(self, confidence, known, done, count, clock, draws, at):
            return torch.arange(count).expand(len(known), -1)

    sampler = Sampler(Likes(), Asks(), even, steps=4, picks=(Pick(BY_CELL),))
    with pytest.raises(BadInput, match="ramp='3 values': must have one for each of the 13 cells"):
        next(sampler.stream(**request(known_cells([7, 8]))))


# ---- a file's family: every room is asked, none can veto, none need know its children

@dataclass(frozen=True)
class OutsideConfig(RasterConfig):
    "A configuration of one's own."


class Outside(RasterTransformer):
    "LlamaGen's transformer, and a parameter of one's own."
    def __init__(self, config, seed=0):
        super().__init__(config, seed)
        self.own = nn.Parameter(torch.zeros(config.dim))


def outside_family():
    def read(spec, **changes): return OutsideConfig(**spec, **changes)

    def recognise(state):
        if "own.bias" not in state: return None
        vocab, dim = state["tok_embeddings.weight"].shape
        return dict(layers=families.counted(state, "layers."), dim=dim, heads=dim // 64, vocab=vocab)

    names = NameTable(Rename("own.bias", "own"), *llamagen_gpt_names.rules)
    return families.register(families.Family(
        "outside", OutsideConfig, Outside, "generator", "outside", names=names, read=read, recognise=recognise))


@pytest.fixture
def outside():
    family = outside_family()
    yield family
    del families._FAMILIES[family.system, family.kind]


@pytest.mark.parametrize("layers, dim", [(2, 64), (12, 768)])
def test_an_outside_file_is_recognised(outside, layers, dim):
    "At a size that LlamaGen lacks, and at one that it has: its own entry tells."
    with torch.device("meta"): model = Outside(OutsideConfig(layers, dim, dim // 64, vocab=64))
    state = outside.names.export(model.state_dict())
    found = families.recognised(state)
    assert [str(m.family) for m in found] == ["outside outside"]
    assert outside.read(found[0].spec) == model.config

    del state["own.bias"]
    if dim == 768: assert {m.family.system for m in families.recognised(state)} == {"llamagen", "dar"}
    else:
        with pytest.raises(Mismatch, match="2 layers of width 64.*is no published size"): families.recognised(state)


def test_randars_file_is_nobody_elses():
    "Though LlamaGen's room knows nothing of RandAR's."
    with torch.device("meta"): model, table = RANDAR.make(RANDAR.published[0].spec)
    state = table.export(model.state_dict())
    assert LLAMAGEN_GPT.recognise(state) is not None
    assert [m.family for m in families.recognised(state)] == [RANDAR]


def test_a_variational_autoencoder_is_none_of_ours():
    names = ("encoder.conv_in.weight", "encoder.conv_out.weight", "encoder.down.0.block.0.conv1.weight",
             "encoder.conv_blocks.0.res.0.norm1.weight", "quant_conv.weight")
    with pytest.raises(Mismatch, match="is none of the models known here"):
        families.recognised({name: torch.zeros(4, 4, 1, 1) for name in names})


def test_a_room_that_stumbles_is_named_only_if_nobody_answers(outside):
    broken = families.register(replace(outside, system="broken", recognise=lambda state: state["lost"]))
    try:
        with torch.device("meta"): model = Outside(OutsideConfig(2, 64, 1, vocab=64))
        state = outside.names.export(model.state_dict())
        assert [m.family.system for m in families.recognised(state)] == ["outside"]
        with pytest.raises(Mismatch, match=r"give its arguments as spec=.*broken outside: KeyError\('lost'\)"):
            families.recognised({"some.weight": torch.zeros(1), "tok_embeddings.weight": torch.zeros(2, 2)})
    finally: del families._FAMILIES[broken.system, broken.kind]


# ---- pictures: one way to them, whoever shows them

class Noisy(Tokenizer):
    "The mean colour of each patch; its decoder adds noise keyed by sample."
    factor = 4

    def __init__(self, vocab=(8,)):
        super().__init__()
        self.vocab = vocab
        self.modes = []

    def quantize(self, images):
        self.modes.append(self.training)
        z = torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), 4)
        return Quantized(z, None if self.vocab is None else ((z[:, 0] + 1) * 3.5).round().long(), {})

    def lookup(self, codes): return codes[:, None] / 3.5 - 1

    def render(self, z, *, draws=None, at=None, size=None):
        x = z.repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1)
        return (x + 0.1 * draws.normal("noise", at, *x.shape[1:])).clamp(-1, 1)

    def forward(self, images, draws=None, at=None, quantize=True):
        q = self.quantize(images)
        return Reconstruction(self.render(q.z, draws=draws, at=at), q, {})


@pytest.mark.parametrize("vocab", [(8,), None], ids=["codes", "continuous"])
def test_a_decoder_with_noise_stands_on_the_desk(vocab):
    "Keyed by the picture's number, whatever company it is in; discrete or continuous."
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 16, 3)).astype(np.uint8)
    tokenizer = Noisy(vocab).train()
    made = reconstruct(tokenizer, images)
    assert made.shape == images.shape
    assert (made == reconstruct(tokenizer, images)).all()
    assert (made[:2] == reconstruct(tokenizer, images[:2])).all()
    assert tokenizer.training
    assert not any(tokenizer.modes)
    if vocab: assert (made == pictures(tokenizer, codes_of(tokenizer, images), shape=(2, 4))).all()


def test_the_desk_needs_pixels():
    tokenizer = Noisy()
    tokenizer.makes = "features"
    with pytest.raises(BadInput, match="makes features, but a reconstruction needs pixels"):
        reconstruct(tokenizer, np.zeros((1, 8, 8, 3), np.uint8))


# ---- what an application records: all that decides its pixels

@pytest.mark.parametrize("one, other", [
    (Morph(order=ORDERS["hilbert"]), Morph(order=ORDERS["checkerboard"])),
    (Morph(order=FixedPath("hilbert")), Morph(order=FixedPath("hilbert", backwards=True))),
    (Morph(order=Given(range(4))), Morph(order=Given([1, 0, 2, 3]))),
    (Morph(mask=np.eye(4, dtype=bool)), Morph(mask=np.ones((4, 4), bool))),
    (Inpaint(torch.eye(4).bool()), Inpaint(torch.ones(4, 4).bool())),
    (Outpaint((8, 8)), Outpaint((8, 16))),
    (Outpaint((8, 8), ntk_boundary=0), Outpaint((8, 8))),
    (Extrapolate((8, 8)), Extrapolate((8, 8), ratio=0.25))])
def test_other_pixels_are_another_record(one, other):
    records = [json.loads(json.dumps(what.record())) for what in (one, other)]
    assert records[0] != records[1]
    assert json.loads(json.dumps(replace(one).record())) == records[0]


def test_an_application_of_ones_own_records_its_fields():
    @dataclass(frozen=True, eq=False)
    class Tint(Application):
        order: object = ORDERS["hilbert"]
        strength: float = 0.5
        marks: object = None

    assert Tint().record() == {
        "work": "tint", "order": {"kind": "order.fixedpath", "path": "hilbert", "backwards": False}, "strength": 0.5,
        "marks": None}
    assert Tint(marks=np.zeros(3)).record() != Tint(marks=np.ones(3)).record()
    assert set(Inpaint(np.ones((4, 4), bool)).record()) == {"work", "masks", "paste", "seam"}


# ---- captions and classes: whoever asks for the other is told

def text_pipeline():
    config = RasterConfig(1, 32, 1, ffn_multiple=16, vocab=8, grid=(2, 2), condition="text", text_dim=4, text_tokens=3)
    return Pipeline(Noisy(), RasterTransformer(config))


def test_a_text_model_says_how_it_is_asked():
    pipe = text_pipeline()
    for labels in ([3], ["heart"]):
        with pytest.raises(BadInput, match="labels=.*RasterTransformer is asked with caption features, by text="):
            pipe.condition(labels)
    with pytest.raises(BadInput, match="text=None: is needed: RasterTransformer follows captions"): pipe.condition()
    text = torch.zeros(2, 3, 4)
    assert pipe.condition(text=text).b == 2
    assert pipe.condition(Cond(text=text)).b == 2

    of_classes = Pipeline(Noisy(), RasterTransformer(RasterConfig(1, 32, 1, ffn_multiple=16, vocab=8, grid=(2, 2))))
    with pytest.raises(BadInput, match="text='Tensor': must be left out: RasterTransformer is asked for classes"):
        of_classes.condition(text=text)


@pytest.mark.parametrize("how", ["balanced", "random"])
def test_a_model_without_classes_has_none_to_plan(how):
    with pytest.raises(BadInput, match="classes=0: must be at least 1"): planned_labels(4, 0, how)
    with pytest.raises(BadInput, match="classes=0: must be at least 1"): planned_labels(4, 0, how, only=[1])


# ---- what a generator is told besides the codes, it says itself

class Told(Likes):
    "Notes what it is told."
    def __init__(self, plans):
        super().__init__()
        self.plans = plans
        self.told = []

    def logits(self, codes, cond, plan=None, *, grid=None):
        self.told.append(plan)
        return (torch.nn.functional.one_hot(codes[..., 0], 6).float(),)


@pytest.mark.parametrize("traits", [frozenset(), frozenset({"any_order"}), frozenset({"any_order", "cached"})])
def test_no_trait_tells_what_a_generator_is_told(traits):
    codes, cond = torch.arange(30).view(2, 15, 1) % 6, Cond(torch.zeros(2, dtype=torch.long))
    told = {}
    for plans in ("nothing", "order", "mask"):
        model = Told(plans)
        model.traits = traits
        teacher_forced(model, codes, cond, Keyed(0))
        told[plans] = model.told
    assert told["nothing"] == [None]
    assert [type(plan) for plan in told["order"]] == [Plan]
    assert [plan.dtype for plan in told["mask"]] == [torch.bool, torch.bool]
    assert torch.equal(told["mask"][0], ~told["mask"][1])


# ---- what is asked of parts, said when they are put together

def test_a_vqgans_objective_needs_pixels():
    tokenizer = Noisy()
    tokenizer.makes = "features"
    task = TokenizerTask(tokenizer, VQGANLoss(VQGANLossConfig(lpips=0, gan=0)))
    with pytest.raises(BadInput, match="tokenizer='Noisy': makes features, but a VQGAN's objective needs pixels"):
        task.check(1)


def test_an_objective_sees_its_tokenizer():
    class Picky(VQGANLoss):
        def check(self, tokenizer, accumulate): seen.append((tokenizer, accumulate))

    seen, tokenizer = [], Noisy()
    TokenizerTask(tokenizer, Picky(VQGANLossConfig(lpips=0, gan=0))).check(3)
    assert seen == [(tokenizer, 3)]


def test_the_adaptive_weight_needs_the_last_layer_from_the_first_step():
    "Though the discriminator begins much later."
    objective = VQGANLoss(VQGANLossConfig(lpips=0, adaptive=True, start=1000), discriminator=nn.Conv2d(3, 1, 4))
    images, at = torch.zeros(2, 3, 8, 8), At(torch.arange(2), step=0)
    made = Noisy()(images, Keyed(0), at)
    with pytest.raises(BadInput, match="adaptive=True: needs a tokenizer whose forward tells.*last_layer"):
        objective.loss(objective.phases(0)[0], images, made, {}, Keyed(0), at)


def test_a_tokenizers_configuration_says_its_factor():
    @dataclass(frozen=True)
    class Bare:
        width: int = 4

    with pytest.raises(BadInput, match="model='Bare': must say `factor`"):
        TokenizerRecipe(model=Bare(), loss=VQGANLossConfig(lpips=0, gan=0))


@pytest.mark.parametrize("lacking", ["vocab", "dim"])
def test_a_quantizers_configuration_says_its_codes(lacking):
    @dataclass(frozen=True)
    class Half:
        levels: int = 4

    setattr(Half, "dim" if lacking == "vocab" else "vocab", property(lambda self: self.levels))
    kinds.register(Kind(Half), name="quantizer.half")
    for config in (VQGANConfig, MaskGITVQGANConfig):
        with pytest.raises(BadInput, match="quantizer='Half': must say `vocab` and `dim`"): config(Half())


# ---- the authors' arguments: nothing is lost on the way there and back

@pytest.mark.parametrize("word, config", [
    ("llamagen vqgan", VQGANConfig(VectorConfig(48, 4), width=64, groups=16, decoder_depth=4)),
    ("taming vqgan", VQGANConfig(VectorConfig(48, 4, beta=0.5, l2=False, legacy=True), width=32, middle=False)),
    ("randar maskgit-vqgan", MaskGITVQGANConfig(VectorConfig(32, 16, l2=False), width=32, mults=(1, 2), groups=8)),
    ("halton masked", MaskedConfig(2, 128, 2, ffn=352, classes=5)),
    ("halton masked", MaskedConfig(2, 128, 2, ffn=1280, grid=(8, 16), dropout=0, mask_rate="linear", eps=1e-3)),
    ("halton masked", MaskedConfig(2, 128, 2)),
    ("halton masked-text", MaskedTextConfig(2, 32, 2, 64, text_tokens=3, patch=2)),
    ("pgm partition", PartitionConfig(2, 2, 32, 2, mask_rate="linear", class_dropout=0.2, dropout=0, rope_base=20)),
    ("llamagen raster", RasterConfig(2, 64, 2, grid=(4, 4), condition="text", text_tokens=7, class_dropout=0.3)),
    ("dar raster", RasterConfig(2, 64, 2, grid=(16,), rope="sequence", zero_prefix=False)),
    ("randar random-order", RandomOrderConfig(2, 64, 2, grid=(4, 4), order="raster", eps=1e-3))])
def test_arguments_there_and_back(word, config):
    "What the authors' arguments don't say is named, as fields to set on top."
    family = next(f for f in families.families() if str(f) == word)
    spec, changes = family.arguments(config)
    again = family.read(json.loads(json.dumps(to_json(spec))), **changes)
    assert again == config
    assert spec == family.write(config)
    assert families.described(spec, system=family.system)


def test_published_models_need_no_change():
    for f in families.families():
        for p in f.published:
            _, changes = f.arguments(f.read(p.spec))
            assert set(changes) <= {"decoder_mults"}, p.name


def test_training_of_a_partition_is_in_its_arguments():
    "How much is masked and how often the label is dropped, in the authors' words."
    spec, changes = PGM.arguments(PartitionConfig(2, 2, 32, 2, mask_rate="linear", class_dropout=0.2))
    assert (spec["sched_mode"], spec["drop_label"], changes) == ("linear", 0.2, {})


def test_a_width_beyond_the_authors_rounding_is_a_change():
    assert HALTON.arguments(MaskedConfig(2, 128, 2, ffn=512))[1] == {}
    assert HALTON.arguments(MaskedConfig(2, 128, 2, ffn=352))[1] == {"ffn": 352}


def test_a_grid_that_no_argument_says_is_refused():
    with pytest.raises(BadInput, match="block_size=128: must be a square number"):
        LLAMAGEN_GPT.arguments(RasterConfig(2, 64, 2, grid=(8, 16)))
