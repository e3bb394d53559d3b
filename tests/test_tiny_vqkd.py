"The shipped VQ-KD: a teacher that sees, codes of what it sees, pixels of codes."
from dataclasses import replace

import pytest
import torch

from vgnb.core import Mismatch, as_json, load_json
from vgnb.data.shapes import Shapes
from vgnb.data.transforms import to_tensor
from vgnb.evaluation.judge import judge_input, load_judge
from vgnb.kinds import from_json
from vgnb.saved import load_model
from vgnb.shipped import shipped_root
from vgnb.tokenizers.pictures import pictures
from vgnb.tokenizers.pixel_decoder import PixelDecoder
from vgnb.tokenizers.shapes_teacher import ShapesTeacherRecipe, examine_teacher
from vgnb.tokenizers.teachers import TEACHERS, load_teacher, shipped_teacher

@pytest.fixture(scope="module")
def tokenizer() -> PixelDecoder: return load_model(shipped_root() / "vqkd-tokenizer")


@pytest.fixture(scope="module")
def drawn(): return [torch.from_numpy(x) for x in Shapes(200, 32, seed=1).batch(range(200))]


@pytest.fixture(scope="module")
def codes(tokenizer, drawn):
    with torch.no_grad(): return tokenizer.encode(to_tensor(drawn[0].numpy()))


def test_the_teacher_of_shapes_lies_in_the_package(tmp_path):
    "Small, in step with its recipe, and as good as its card says: what is where, of pictures it was not taught by."
    card = load_json(shipped_teacher() / "config.json")
    assert from_json(card["config"]) == TEACHERS["shapes"] and card["recipe"] == as_json(ShapesTeacherRecipe())
    assert card["command"] == "python scripts/train_tiny.py vqkd-teacher"
    assert (shipped_teacher() / "model.safetensors").stat().st_size <= 1_000_000
    found = examine_teacher(load_teacher("shapes", tmp_path / "nowhere"), 200)
    assert min(found["shape_from_all"], card["shape_from_all"]) >= 0.9
    assert min(found["shape_from_one"], card["shape_from_one"]) >= 0.75
    assert min(found["pixels_from_one"], card["pixels_from_one"]) >= 0.8
    with pytest.raises(Mismatch, match="missing"):
        load_teacher("shapes", tmp_path, body=replace(TEACHERS["shapes"].body, depth=4))


def test_pixels_of_codes_show_the_kind_and_the_picture(tokenizer, drawn, codes):
    assert tokenizer.frozen.makes == "nothing", "the decoder of features is left out"
    pictured, labels = drawn
    painted = torch.from_numpy(pictures(tokenizer, tokenizer.tokens(codes)))
    with torch.no_grad(): seen = load_judge()[0](judge_input(painted)).argmax(1)
    assert (seen == labels).double().mean() >= 0.95
    near = (painted.double() - pictured.double()).square().mean()
    far = (painted.double() - pictured.roll(1, 0).double()).square().mean()
    assert near < 0.6 * far, "of this picture, not of its kind"
