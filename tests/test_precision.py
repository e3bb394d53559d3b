"""In which numbers networks compute: what is cast, what never is, that results say so, and what is refused."""
import json

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from scripts.extract_codes import main as extract
from vgnb.core import BadInput
from vgnb.data.codes import CodeStore
from vgnb.data.shapes import Shapes
from vgnb.data.transforms import Augment
from vgnb.draws import At, Keyed
from vgnb.generators.schedules import even
from vgnb.jobs import SampleJob
from vgnb.kinds import from_json, to_json
from vgnb.layers import RMSNorm, rotary_1d, rotate
from vgnb.pipeline import from_pretrained
from vgnb.precision import PRECISIONS, arithmetic, check_precision
from vgnb.reopened import reopen
from vgnb.sampling.sampler import Sampler
from vgnb.sampling.settings import Sampling
from vgnb.shipped import shipped
from vgnb.tokenizers.pictures import codes_of, pictures
from vgnb.training.extract import code_plan, extract_codes

OTHERS = [name for name in shipped() if name.startswith("tiny-") and name != "tiny-randar"]
SHIPPED = ["tiny-randar", *(pytest.param(name, marks=pytest.mark.full) for name in OTHERS)]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pipes():
    return {name: from_pretrained(name) for name in ("tiny-randar", *OTHERS)}


class Casts(TorchDispatchMode):
    "Which tensors of one shape are cast to half precision, and how often."
    def __init__(self, shape):
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        dtype = (kwargs or {}).get("dtype")
        is_cast = func is torch.ops.aten._to_copy.default and dtype in (torch.bfloat16, torch.float16)
        self.count += is_cast and tuple(args[0].shape) == self.shape
        return func(*args, **(kwargs or {}))


# ---- what it is

def test_what_was_allowed_is_allowed_again():
    torch.set_float32_matmul_precision("high")
    try:
        for word in ("fp32", "bf16", "fp16"):
            with pytest.raises(ZeroDivisionError), arithmetic(CPU, word):
                assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
                assert torch.is_autocast_enabled("cpu") == (word != "fp32")
                raise ZeroDivisionError
            assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32
            assert not torch.is_autocast_enabled("cpu")
    finally: torch.set_float32_matmul_precision("highest")


def test_tf32_is_for_those_who_have_it():
    assert [check_precision(word, "cuda") for word in PRECISIONS] == list(PRECISIONS)
    with pytest.raises(BadInput, match="precision='tf32': needs an NVIDIA GPU"): check_precision("tf32", "cpu")


@pytest.mark.parametrize("word", ["bf16", "fp16"])
def test_norms_turns_and_draws_are_fp32(word):
    torch.manual_seed(0)
    x, table = torch.randn(2, 5, 3, 16), rotary_1d(5, 16)
    norm, draw = RMSNorm(16), lambda: Keyed(3).gumbel("token", At(torch.arange(2)), 64)
    plain = norm(x), rotate(x, table), draw()
    with arithmetic(CPU, word): cast = norm(x), rotate(x, table), draw()
    for one, other in zip(plain, cast): assert other.dtype == torch.float32 and torch.equal(one, other)


# ---- sampling

@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("word", ["bf16", "fp16"])
def test_logits_are_fp32_and_near_and_codes_the_quantizers(pipes, name, word):
    pipe = pipes[name]
    asked = dict(labels=["heart"], keep=("logits",), precision=word, min_rows=1)
    exact = next(pipe.stream(**asked | {"precision": "fp32"})).kept["logits"][0]
    found = next(pipe.stream(**asked)).kept["logits"][0]
    assert found.dtype == torch.float32 and not torch.equal(found, exact)
    assert (found - exact).abs().mean() < 0.05 * exact.std()
    assert {p.dtype for p in pipe.generator.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_same_codes_and_pixels_at_two_sizes_in_bf16(pipes, name):
    "Of micro-batches; the wider comparison is in the front door's tests."
    pipe, how = pipes[name], dict(seed=3, steps=2, schedule="even", precision="bf16", min_rows=2)
    if pipe.generator.most == 1: how = dict(seed=3, precision="bf16", min_rows=2, given=first_half(pipe))
    labels, whole = [0, 3, 6, 9], pipe.codes([0, 3, 6, 9], **how)
    alone = dict(how, given=tuple(t[3:] for t in how["given"])) if "given" in how else how
    assert torch.equal(pipe.codes(labels[3:], ids=[3], **alone), whole[3:])
    images = pipe.decode(whole, precision="bf16", seed=3)
    assert (pipe.decode(whole[3:], ids=[3], precision="bf16", seed=3, min_rows=2) == images[3:]).all()
    assert (images != pipe.decode(whole, precision="fp32", seed=3)).any()


def first_half(pipe):
    "Most cells are known: the rest is soon drawn."
    n = pipe.grid.n
    codes = torch.arange(n).remainder(7)[None, :, None].expand(4, n, len(pipe.generator.vocab))
    return codes, (torch.arange(n) < n - 8)[None].expand(4, n)


def test_a_weight_is_cast_once_a_run_and_watchers_see_no_cast(pipes):
    pipe, seen = pipes["tiny-randar"], []
    shape = tuple(pipe.generator.head.weight.shape)
    same_shape = sum(tuple(p.shape) == shape for p in pipe.generator.parameters())
    with Casts(shape) as casts:
        def watch(step): seen.append(torch.is_autocast_enabled("cpu"))
        pipe.codes("heart", steps=3, schedule="even", min_rows=1, precision="bf16", watch=watch)
    assert 0 < casts.count <= same_shape and seen == [False] * 3


def test_a_sampler_of_no_precision_is_as_whoever_calls_has_it(pipes):
    pipe, ids = pipes["tiny-randar"], torch.arange(1)
    cond, parts = pipe.condition([0]), pipe.settings()
    def codes(sampler): return sampler.sample(cond, ids, Keyed(0), grid=pipe.grid)
    bare = Sampler(pipe.generator, parts.order, even, parts.guidance, steps=2, rows=1)
    with torch.autocast("cpu", torch.bfloat16): low = codes(bare)
    bare.precision = "bf16"
    assert torch.equal(codes(bare), low)


# ---- results say it

def test_settings_pictures_and_jobs_say_it(pipes, tmp_path):
    pipe = pipes["tiny-randar"]
    half = pipe.settings(precision="bf16", steps=2, rows=2)
    assert from_json(json.loads(json.dumps(to_json(half))), Sampling) == half
    pipe.save(tmp_path / "a.png", "heart", precision="fp16", steps=2, min_rows=1)
    opened = reopen(tmp_path / "a.png")
    assert opened.settings.precision == "fp16" and "fp16" in repr(opened) and opened.again().same

    before, pipe.sampling = pipe.sampling, half
    try:
        job = SampleJob(pipe, torch.tensor([6, 2]), tmp_path / "s.npz", part=2)
        job.run()
        record = json.loads(job.record_file.read_text())
        assert record["sampler"]["precision"] == "bf16"
        made = np.load(tmp_path / "s.npz")["arr_0"]
        assert (made == pipe.sample([6, 2])).all() and (made != pipe.sample([6, 2], precision="fp32")).any()
    finally: pipe.sampling = before


def test_codes_say_it(pipes, tmp_path):
    tokenizer, source, views = pipes["tiny-randar"].tokenizer, Shapes(3, 32), Augment("center", 32)
    def store(word): return extract_codes(tokenizer, source, tmp_path / word, views, batch=3, precision=word)
    exact, half = store("fp32"), store("bf16")
    assert exact.fingerprint != half.fingerprint and exact.coding == half.coding
    assert "bf16" in half.plan.preprocessing and code_plan(tokenizer, source, views) == exact.plan
    one, other = (s.batch(np.arange(3))[0] for s in (exact, half))
    assert 0.8 < (one == other).float().mean()


def test_a_store_of_one_precision_is_not_completed_in_another(tmp_path, capsys):
    words = ["--tokenizer", "tiny-randar", "--data", "shapes://?n=2", "--out", str(tmp_path / "s"), "--batch", "2"]
    assert extract([*words, "--precision", "bf16"]) == 0
    assert "bf16" in CodeStore(tmp_path / "s").plan.preprocessing
    with pytest.raises(BadInput): extract(words)


@pytest.mark.parametrize("name", SHIPPED)
def test_convolutions_see_the_channels_last(pipes, name):
    "The layout that half precision is fast in: pictures and codes arrive in it, and on a CPU no layer leaves it."
    tokenizer, seen = pipes[name].tokenizer, []
    def look(layer, args, out): seen.append(args[0].is_contiguous(memory_format=torch.channels_last))
    hooks = [m.register_forward_hook(look) for m in tokenizer.modules() if isinstance(m, torch.nn.Conv2d)]
    try:
        codes = codes_of(tokenizer, torch.zeros(1, 32, 32, 3, dtype=torch.uint8), rows=1)
        if tokenizer.dims == 2: pictures(tokenizer, codes, rows=1)
    finally:
        for hook in hooks: hook.remove()
    assert all(seen) and seen
