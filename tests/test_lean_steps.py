"""What a step costs: no work that nobody asked for, few large temporaries, and the same tokens as with it."""
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vgnb.draws import At, Keyed
from vgnb.generators.adaptive_orders import Confidence
from vgnb.generators.generator import Clock, Prediction
from vgnb.pipeline import from_pretrained
from vgnb.sampling.guidance import CFG, SpatialGuidance
from vgnb.sampling.pick import Pick, log_total

@pytest.fixture(scope="module")
def masked():
    return from_pretrained("tiny-maskgit")


class Watch(TorchDispatchMode):
    "Bytes that operations write to new memory, and how many operations there are."
    def __init__(self):
        super().__init__()
        self.bytes, self.calls = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        fresh = torch.is_tensor(out) and not func.is_view and not func._schema.name.endswith("_")
        self.bytes += out.numel() * out.element_size() if fresh else 0
        self.calls += not func.is_view
        return out


@pytest.mark.parametrize("warmup", [2, -1])
def test_cells_that_chance_chooses_are_the_only_ones_asked(masked, warmup, monkeypatch):
    how = dict(schedule="even", steps=4, seed=5, min_rows=2, keep=("drawn",))
    def run(): return list(masked.stream([1, 8], order=Confidence(warmup=warmup), **how))
    lean = run()
    monkeypatch.setattr(Keyed, "addressed", False)           # so that nobody knows beforehand
    all_asked = run()
    assert torch.equal(lean[-1].codes(), all_asked[-1].codes())
    assert torch.equal(lean[-1].filled(), all_asked[-1].filled())
    asked = [[step.kept["drawn"][0].shape[1] for step in steps] for steps in (lean, all_asked)]
    assert asked == [[16, 16, 32, 16] if warmup == 2 else [16] * 4, [64, 48, 32, 16]]


def test_a_fixed_order_is_not_asked_which_cells_it_wants(masked, monkeypatch):
    monkeypatch.setattr("vgnb.sampling.sampler._Run.decided", lambda *a: pytest.fail("nobody needs that"))
    masked.codes("heart", steps=1, schedule="even", min_rows=1)


@pytest.mark.parametrize("guidance", [CFG(4.0), CFG(4.0, start=1.0, by="column"), SpatialGuidance(3.0, start=1.5)])
def test_guidance_is_the_formula_and_writes_little(guidance):
    g = torch.Generator().manual_seed(0)
    logits, clock = torch.randn(3, 2, 5, 4096, generator=g), Clock(2, 9, 3, 20, count=5)
    full, free, blind = before = logits.clone()
    scale = guidance.ramp()(clock)
    scale = torch.tensor(scale)[:, None] if isinstance(scale, tuple) else scale
    want = free + (full - free) * scale
    if isinstance(guidance, SpatialGuidance):
        want = blind + (full - free) * scale + (free - blind) * guidance.spatial_ramp()(clock)
    with Watch() as watch: mixed = guidance.mix(Prediction(logits), clock)
    assert torch.equal(mixed, want) and torch.equal(logits, before)
    parts = 2 if isinstance(guidance, SpatialGuidance) else 1
    assert watch.bytes < 1.1 * parts * want.numel() * 4


def test_a_plain_pick_copies_no_logits():
    logits = torch.randn(1, 8, 4096, generator=torch.Generator().manual_seed(1))
    at = At(torch.arange(1), torch.arange(8)[None])
    with Watch() as watch: tokens, confidence = Pick(greedy=True)(logits, Clock(0, 1, 0, 8), Keyed(0), at)
    assert watch.bytes < logits.numel() * 4
    assert torch.equal(tokens, logits.argmax(-1))
    assert torch.allclose(confidence, logits.softmax(-1).amax(-1))


def test_sums_in_pieces_are_the_sums():
    "More entries than are summed at once; -inf for what a filter took."
    logits = torch.randn(3, 40, 4099, generator=torch.Generator().manual_seed(2))
    logits[:, 7, 9:] = -torch.inf
    assert logits.numel() > 2 ** 18 and torch.equal(log_total(logits), logits.logsumexp(-1))


@pytest.mark.parametrize("name, most", [("tiny-randar", 265), ("tiny-maskgit", 245), ("tiny-pgm", 315)])
def test_operations_of_a_step(name, most):
    "In the middle of a run; what layers cost, counted draws and glue together. Before: 266, 239 and 309."
    stream = from_pretrained(name).stream(["heart"], seed=1, min_rows=1)
    for _ in range(8): next(stream)
    with Watch() as watch: next(stream)
    assert 100 < watch.calls <= most
