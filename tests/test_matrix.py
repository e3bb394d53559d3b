"What the matrix allows trains a step, samples and decodes; what it refuses is refused with the same words."
from dataclasses import fields, replace

import pytest
import torch

from vgnb.core import VgnbError
from vgnb.draws import At, Keyed
from vgnb.generators.generator import Cond
from vgnb.matrix import SAMPLERS, matrix, pair, tiny_parts
from vgnb.pipeline import Pipeline
from vgnb.saved import load_model
from vgnb.shipped import open_part, part_folder

SMALLER = {"layers": 2, "steps": (4,), "encoder": 1, "decoder": 1}


def smaller(config):
    "A generator's configuration of two layers, and of 16 cells on a plane; the steps it is trained for are fewer, too."
    known = {f.name for f in fields(config)}
    changes = {k: v for k, v in SMALLER.items() if k in known and isinstance(getattr(config, k), type(v))}
    plane = {"grid": (4, 4)} if len(config.grid) == 2 else {}
    return replace(config, **changes, **plane)


def parts():
    tokenizers, generators = tiny_parts()
    return tokenizers, {name: smaller(config) for name, config in generators.items()}


def trained(tokenizer, generator) -> Pipeline:
    "Two fresh parts after one step of training; its loss is a number, and something has moved."
    torch.manual_seed(0)
    pipe = pair(tokenizer, generator)
    g = pipe.generator.train()
    codes = torch.stack([torch.randint(n, (2, pipe.grid.n)) for n in g.vocab], -1)
    before = {name: p.clone() for name, p in g.named_parameters()}
    optim = torch.optim.SGD(g.parameters(), lr=0.1)
    loss = g(codes, Cond(labels=torch.tensor([0, 1])), Keyed(0), At(torch.arange(2))).total
    loss.backward()
    optim.step()
    assert loss.isfinite() and any(not torch.equal(p, before[name]) for name, p in g.named_parameters())
    g.eval()
    return pipe


def drawn(pipe, cell):
    "A sample's codes are codes, and a picture."
    settings = {"order": cell.order} | SAMPLERS[cell.sampler]
    codes = pipe.codes([1], seed=0, min_rows=1, **settings)
    assert codes.shape == (1, pipe.grid.n, len(pipe.generator.vocab)), cell
    for level, n in enumerate(pipe.generator.vocab): assert 0 <= codes[..., level].min() <= codes[..., level].max() < n
    picture = pipe.decode(codes, min_rows=1)
    assert picture.shape[0] == 1 and picture.shape[3] == 3 and picture.dtype.name == "uint8", cell


def held(cells, tokenizers, generators):
    "Each combination does what the matrix says of it."
    pipes, apart = {}, {}
    for cell in cells:
        key = cell.tokenizer, cell.generator
        if key not in pipes and key not in apart:
            try: pipes[key] = trained(tokenizers[cell.tokenizer], generators[cell.generator])
            except VgnbError as e: apart[key] = str(e)
        if key in apart: assert apart[key] == cell.reason, cell
        elif not cell.reason: drawn(pipes[key], cell)
        else:
            with pytest.raises(VgnbError) as said:
                pipes[key].codes([1], order=cell.order, **SAMPLERS[cell.sampler])
            assert str(said.value) == cell.reason, cell


def test_a_few_cells_do_what_they_promise():
    tokenizers, generators = parts()
    some = {name: tokenizers[name] for name in ("tokenizer", "iar2-tokenizer")}
    chosen = {name: generators[name] for name in ("tiny-randar", "tiny-iar2", "tiny-rar")}
    words = ("one by one", "in groups", "attended guidance")
    found = matrix(some, chosen, ("raster", "halton", "confidence"), {word: SAMPLERS[word] for word in words})
    assert len(found) == 54 and {c.reason.partition("=")[0] for c in found} == {
        "", "vocab", "guidance", "order", "schedule"}
    held(found, some, chosen)
    assert len(found.of(generator="tiny-iar2", tokenizer="iar2-tokenizer").allowed) == 2


@pytest.mark.full
@pytest.mark.parametrize("tokenizer", sorted(tiny_parts()[0]))
def test_every_cell_does_what_it_promises(tokenizer):
    tokenizers, generators = parts()
    found = matrix({tokenizer: tokenizers[tokenizer]}, generators)
    assert len(found) == len(generators) * 15 * len(SAMPLERS) and found.allowed and found.refused
    held(found, tokenizers, generators)


def test_parts_that_are_trained_are_taken_as_they_are():
    "A generator that learnt other codes is refused as `Pipeline` refuses it."
    folder = part_folder("tiny-randar", "generator")
    generator, tokenizer = load_model(folder), open_part("tiny-randar", "tokenizer")
    generator.card = generator.card | {"coding": "0" * 64}
    found = matrix({"own": tokenizer}, {"other": generator}, ("raster",), {"one by one": {}})
    with pytest.raises(VgnbError) as said: Pipeline(tokenizer, generator)
    assert found.reasons() == {str(said.value): 1} and "learnt the codes of another tokenizer" in str(said.value)
    del generator.card["coding"]
    assert matrix({"own": tokenizer}, {"its": generator}, ("raster",), {"one by one": {}}).allowed
