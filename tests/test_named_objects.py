"""A name where the thing itself belongs, and one name where several may stand."""
from pathlib import Path

import numpy as np
import pytest
import torch

import vgnb
from vgnb.agreement import agreement
from vgnb.charts import curves_figure
from vgnb.core import BadInput, names_of
from vgnb.data.shapes import Shapes
from vgnb.data.transforms import Augment
from vgnb.draws import Keyed
from vgnb.evaluation.code_distance import code_counts, coder_id, measure_codes
from vgnb.evaluation.code_probe import mean_rows
from vgnb.evaluation.features import extract, load_extractor
from vgnb.evaluation.measure import look_at, measure
from vgnb.evaluation.reference import extract_reference
from vgnb.evaluation.samples import open_samples
from vgnb.generators.generator import Cond, Grid
from vgnb.jobs import SampleJob
from vgnb.preparation import files_for
from vgnb.rejection import Rejection
from vgnb.report import curves_svg
from vgnb.sampling.branches import Branching
from vgnb.sampling.sampler import Sampler
from vgnb.sampling.settings import Sampling
from vgnb.search import GuidanceSearch
from vgnb.tokenizers.pictures import pictures
from vgnb.training.extract import code_plan, extract_codes
from vgnb.views.atlas import Atlas, LiveAtlas
from vgnb.views.branch import LiveBranches
from vgnb.views.codebook import rows_of
from vgnb.views.compare import LivePair
from vgnb.views.details import Detailing
from vgnb.views.editor import LiveEditor
from vgnb.views.edits import Editing
from vgnb.views.play import LiveSampler
from vgnb.views.race import lanes
from vgnb.views.sight import sights
from vgnb.views.sweep import LiveSweep, sweep
from vgnb.zoo import unwrap

PHOTOS = Shapes(n=8, size=32).batch(np.arange(8))[0]
ONE = Cond(labels=torch.tensor([0]))
NAME = "tiny-randar"


def pipe(): return vgnb.from_pretrained(NAME)


TOKENIZERS = {
    "measure_codes": lambda x: measure_codes(PHOTOS, PHOTOS, x),
    "code_counts": lambda x: code_counts(open_samples(PHOTOS), x),
    "coder_id": coder_id,
    "mean_rows": lambda x: mean_rows(x, torch.zeros(1, 3, 32, 32)),
    "code_plan": lambda x: code_plan(x, Shapes(8, 32), Augment("center", 32)),
    "extract_codes": lambda x: extract_codes(x, Shapes(8, 32), "nowhere", Augment("center", 32)),
    "pictures": lambda x: pictures(x, torch.zeros(1, 64, 1, dtype=torch.long)),
    "rows_of": rows_of,
    "Atlas": Atlas,
    "LiveAtlas": LiveAtlas,
    "Pipeline": lambda x: vgnb.Pipeline(x, pipe().generator)}
EXTRACTORS = {
    "measure": lambda x: measure(PHOTOS, PHOTOS, x),
    "look_at": lambda x: look_at(x, open_samples(PHOTOS)),
    "extract": lambda x: extract(x, [PHOTOS]),
    "extract_reference": lambda x: extract_reference(PHOTOS, "nowhere.npz", x),
    "GuidanceSearch": lambda x: GuidanceSearch(pipe(), PHOTOS, x, "nowhere", (1.0, 2.0), count=4, final=0)}
GENERATORS = {
    "Sampler": Sampler,
    "Sampling": lambda x: Sampling().sampler(x),
    "Pipeline": lambda x: vgnb.Pipeline(pipe().tokenizer, x)}
PIPES = {
    "agreement": lambda x: agreement(x, ["heart"], "bf16"),
    "SampleJob": lambda x: SampleJob(x, torch.tensor([0]), "nowhere/s.npz"),
    "LiveSampler": LiveSampler, "LivePair": LivePair, "LiveBranches": LiveBranches, "Detailing": Detailing,
    "LiveEditor": LiveEditor, "Editing": Editing, "LiveSweep": LiveSweep,
    "lanes": lambda x: lanes({"one": x}),
    "sights": lambda x: next(sights(x)),
    "sweep": lambda x: next(sweep(x))}
CALLS = [pytest.param(call, argument, how, id=f"{argument}-{name}")
         for argument, how, calls in (("tokenizer", "open_part(NAME, 'tokenizer')", TOKENIZERS),
                                      ("generator", "open_part(NAME, 'generator')", GENERATORS),
                                      ("extractor", "load_extractor(NAME)", EXTRACTORS),
                                      ("pipe", "from_pretrained(NAME)", PIPES))
         for name, call in calls.items()]


@pytest.mark.parametrize("call, argument, how", CALLS)
def test_a_name_is_refused_with_what_opens_it(call, argument, how):
    for given, shown in ((NAME, repr(NAME)), (Path(NAME), NAME), (None, "'NoneType'")):
        with pytest.raises(BadInput) as e: call(given)
        message = str(e.value)
        assert message.startswith((f"{argument}={shown}: must be a", f"{argument}s={shown}: must be a")), message
        assert how in message


class Wrapped:
    "Another extractor, counted."
    def __init__(self, judge): self.judge, self.calls = judge, 0
    def __getattr__(self, name): return getattr(self.judge, name)

    def __call__(self, images):
        self.calls += 1
        return self.judge(images)


def test_what_acts_like_an_extractor_is_one():
    judge = Wrapped(load_extractor("shapes-judge"))
    assert measure(PHOTOS, PHOTOS[::-1], judge, metrics="mind").values.keys() == {"mind"} and judge.calls == 2


def test_so_are_a_classifier_and_a_sampler_by_name():
    with pytest.raises(BadInput, match="classifier='shapes-judge': must be an extractor itself"):
        pipe().select(["heart"], Rejection(), "shapes-judge")
    with pytest.raises(BadInput, match="sampler='tiny-randar': must be a sampler itself: pipe.sampler"):
        Branching(NAME, ONE, Keyed(0), grid=Grid((8, 8)))


def test_one_name_is_never_read_letter_by_letter():
    judge = load_extractor("shapes-judge")
    alone, listed = (measure(PHOTOS, PHOTOS[::-1], judge, metrics=m) for m in ("mind", ["mind"]))
    assert alone.values == listed.values and alone.values.keys() == {"mind"}
    assert alone.protocol.settings == listed.protocol.settings
    with pytest.raises(BadInput, match="^metrics='fad': must be one of fid"):
        measure(PHOTOS, PHOTOS, judge, metrics="fad")
    with pytest.raises(BadInput, match="^metrics=3: must be a name or a list of names"):
        measure(PHOTOS, PHOTOS, judge, metrics=3)

    log = [{"step": k, "loss": 1.0 / k, "lr": 0.1} for k in range(1, 4)]
    assert curves_svg(log, "loss") == curves_svg(log, ["loss"])
    assert len(curves_figure(log, "loss").axes) == len(curves_figure(log, ["loss"]).axes)
    held = {"ema": {"w": torch.ones(1)}, "model": {"w": torch.zeros(1)}}
    assert unwrap(held, "model")["w"] == 0 and unwrap(held, ("model",))["w"] == 0
    assert files_for("VQ-16").keys() == files_for(["VQ-16"]).keys()
    step = next(pipe().stream("heart", steps=4, keep="logits"))
    assert step.kept.keys() == {"logits"}
    assert names_of("names", {"a": 1, "b": 2}) == ("a", "b")
