"Eight bits a number: a setting that is recorded, changes few tokens, leaves no trace and is refused where it can't be."
import pytest
import torch
from torch import nn

from vgnb.agreement import agreement
from vgnb.core import BadInput
from vgnb.draws import Keyed
from vgnb.generators.masked_text import MaskedTextConfig, MaskedTextTransformer
from vgnb.kinds import from_json, to_json
from vgnb.pipeline import from_pretrained
from vgnb.sampling.eight_bits import Int8, int8_layers, int8_weights
from vgnb.sampling.settings import Sampling

torch.set_num_threads(1)
FEW = dict(steps=6, schedule="even")


@pytest.fixture(scope="module")
def randar(): return from_pretrained("tiny-randar")


@pytest.mark.parametrize("eight", [dict(layers="int8"), dict(cache="fp8"), dict(layers="int8", cache="fp8")])
def test_few_tokens_change_and_nothing_stays(randar, eight):
    before = randar.codes(["heart", "star"], **FEW)
    found = agreement(randar, ["heart", "star"], "fp32", seeds=(0,), **eight, **FEW)
    least = 0.5 if "cache" in eight else 0.9               # fp8 has a digit less than bf16
    assert least < found.forced <= 1 and found.free <= found.forced and found.tokens == 128
    assert (found.layers, found.cache) == (eight.get("layers", "whole"), eight.get("cache", "whole"))
    assert torch.equal(randar.codes(["heart", "star"], **FEW), before)
    assert not any("forward" in vars(layer) for layer in int8_layers(randar.generator))


def test_the_memory_of_keys_is_a_quarter(randar):
    "And what is made of it is what a run without it makes, but for a few tokens."
    for cache, size in (("whole", 4), ("fp8", 1)):
        sampler, ids = randar.sampler(cache=cache, **FEW), torch.zeros(1).long()
        sampler.sample(randar.condition(["heart"]), ids, Keyed(0), grid=randar.grid)
        assert sampler._state.cache.keys.element_size() == size


def test_two_streams_reads_its_memory_itself():
    pipe = from_pretrained("tiny-arpg")
    assert agreement(pipe, ["heart"], "fp32", seeds=(0,), cache="fp8").forced > 0.5


def test_refused_by_name(randar):
    masked = from_pretrained("tiny-maskgit")
    with pytest.raises(BadInput, match="cache='fp8'.*MaskedTransformer keeps no keys"): masked.codes(1, cache="fp8")
    assert masked.codes(1, layers="int8").shape == (1, 64, 1)
    with pytest.raises(BadInput, match="layers='int4'.*int8"): randar.codes(1, layers="int4")
    with pytest.raises(BadInput, match="layers='int8'.*compile"): randar.sampler(layers="int8", compile=True)
    small = MaskedTextConfig(layers=1, dim=16, heads=2, grid=(4, 4), vocab=12, text_dim=8, text_tokens=3)
    with pytest.raises(BadInput, match="MaskedTextTransformer takes its matrices apart"):
        Sampling(layers="int8").sampler(MaskedTextTransformer(small))


def test_a_setting_as_others():
    how = Sampling(layers="int8", cache="fp8")
    assert from_json(to_json(how), Sampling) == how


def test_rows_are_scaled_by_themselves():
    weight = torch.tensor([[1.0, -0.5, 0.0], [100.0, 1.0, -100.0]])
    eight = Int8.of(weight)
    assert torch.allclose(eight.scale, torch.tensor([1.0, 100.0]) / 127) and eight.q.dtype == torch.int8
    assert torch.allclose(eight.whole(), weight, atol=0.4)
    layer = nn.Linear(3, 2)
    with pytest.raises(ZeroDivisionError), int8_weights(layer): 1 / 0  # noqa: B018
    assert "forward" not in vars(layer), "also after an error"
