"The shipped D-AR: tokens as denoising steps, previews that come nearer, beginnings that are shared."
import numpy as np
import pytest
import torch

from vgnb.core import load_json
from vgnb.data.shapes import Shapes
from vgnb.data.transforms import to_tensor
from vgnb.draws import At, Keyed
from vgnb.pipeline import from_pretrained
from vgnb.shipped import shipped_root

ASKED = ["heart", "star", "ring", "disc", "plus"]


@pytest.fixture(scope="module")
def pipe(): return from_pretrained("tiny-dar")


@pytest.fixture(scope="module")
def drawn(): return to_tensor(Shapes(200, 32, seed=1).batch(range(200))[0])


@pytest.fixture(scope="module")
def codes(pipe, drawn):
    with torch.no_grad(): return pipe.tokenizer.encode(drawn)                       # (200, 64)


def apart(a, b) -> float: return float((a - b).square().mean())


def test_its_line_is_cut_into_four_groups(pipe):
    plan = pipe.tokenizer.plan()
    assert [plan.needs(k) for k in range(1, plan.steps + 1)] == [16, 32, 48, 64]
    assert pipe.generator.grid == (64,) and pipe.tokenizer.vocab == pipe.generator.vocab


def test_previews_come_nearer_at_every_group(pipe, drawn, codes):
    "To the finished picture, as the card says, and to the picture that was coded."
    with torch.no_grad(): seen = pipe.tokenizer.previews(codes).clamp(-1, 1)         # (200, 4, 3, 32, 32)
    to_last = [apart(seen[:, k], seen[:, -1]) for k in range(4)]
    to_original = [apart(seen[:, k], drawn) for k in range(4)]
    assert all(a > b for a, b in zip(to_last, to_last[1:], strict=False)) and to_last[-1] == 0
    assert all(a > b for a, b in zip(to_original, to_original[1:], strict=False))
    card = load_json(shipped_root() / "dar-tokenizer" / "config.json")
    assert to_last == pytest.approx(card["preview_distances"], abs=2e-4)


def test_each_group_has_a_say(pipe, codes):
    "A group of another picture changes this one: none is said again by the others altogether."
    some, tokenizer = codes[:60], pipe.tokenizer
    how = dict(draws=Keyed(0), at=At(torch.arange(60)))
    with torch.no_grad():
        whole = tokenizer.decode(some, **how)
        changes = []
        for first in (0, 16, 32, 48):
            mixed = some.clone()
            mixed[:, first:first + 16] = some.roll(1, 0)[:, first:first + 16]
            changes.append(apart(tokenizer.decode(mixed, **how), whole))
    assert min(changes) > 0.002


def test_the_last_preview_is_the_sample(pipe):
    *early, last = pipe.stream_previews(ASKED, seed=3)
    assert [preview.tokens for preview in (*early, last)] == [16, 32, 48, 64]
    assert last.last and np.array_equal(last.images, pipe.sample(ASKED, seed=3))
    assert np.array_equal(early[1].images, pipe.preview(ASKED, 2, seed=3))


def test_previews_are_the_same_in_any_company(pipe):
    together = pipe.previews(ASKED, seed=5)
    for i, label in enumerate(ASKED): assert np.array_equal(pipe.previews([label], seed=5, ids=[i])[0], together[i])


def test_shared_beginnings_keep_the_layout(pipe):
    "Of one class: pictures are nearer to each other the more tokens they share."
    spread = []
    for count in (0, 16, 48):
        images = pipe.prefix(["disc"] * 8, count, seed=2) if count else pipe.sample(["disc"] * 8, seed=2)
        spread.append(float(images.astype(float).std(0).mean()))
    assert spread[0] > spread[1] > spread[2]


def test_other_numbers_of_steps(pipe, codes, drawn):
    "Twice the steps still show the picture; one step alone is the first preview."
    tokenizer, how = pipe.tokenizer, dict(draws=Keyed(0), at=At(torch.arange(60)))
    with torch.no_grad():
        once, twice = (tokenizer.decode(codes[:60], steps=steps, **how).clamp(-1, 1) for steps in (1, 8))
        first = tokenizer.preview(codes[:60], 1, **how).clamp(-1, 1)
    assert torch.allclose(once, first, atol=1e-5)
    assert apart(twice, drawn[:60]) < apart(once, drawn[:60])


