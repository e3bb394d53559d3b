"Sampling with compiled blocks: the same tokens, whole graphs, and only a few of them a run."
import pytest
import torch
from torch._dynamo.utils import counters

from vgnb.core import BadInput
from vgnb.draws import Keyed
from vgnb.pipeline import from_pretrained
from vgnb.sampling.settings import Sampling

QUICK = "tiny-vqkd"
TRACED = [QUICK, "tiny-dar", "tiny-lpd", "tiny-maskgit", "tiny-randar"]     # others: not counted yet
MOST = 6      # graphs a run: the first, and at most five more


def run(pipe, compile):
    "Tokens of two samples."
    sampler = pipe.settings(min_rows=2).sampler(pipe.generator)
    sampler.compile = compile
    return sampler.sample(pipe.condition([6, 8]), torch.arange(2), Keyed(1), grid=pipe.grid)


@pytest.mark.parametrize("name", [n if n == QUICK else pytest.param(n, marks=pytest.mark.full) for n in TRACED])
def test_a_run_is_a_few_whole_graphs(name):
    pipe = from_pretrained(name)
    exact = run(pipe, None)
    torch._dynamo.reset()
    counters.clear()
    assert torch.equal(run(pipe, "eager"), exact)
    graphs = counters["stats"]["unique_graphs"]
    assert 0 < graphs <= MOST and not counters["graph_break"]
    run(pipe, "eager")
    assert counters["stats"]["unique_graphs"] == graphs                     # another run needs no more
    blocks = [m for m in pipe.generator.modules() if m._compiled_call_impl is not None]
    assert not blocks and torch.equal(run(pipe, None), exact)


@pytest.mark.full
def test_the_default_compiler_compiles_it():
    pipe = from_pretrained(QUICK)
    exact, made = (pipe.codes(["heart", "star"], min_rows=2, compile=word) for word in (False, True))
    assert (exact == made).float().mean() > 0.9                              # other low bits


def test_what_is_no_answer_is_refused():
    with pytest.raises(BadInput, match="compile='inductor': must be True or False"): Sampling(compile="inductor")
