"The shipped VQ-KD: a teacher that sees, codes of what it sees, pixels of codes, pictures by class."
from dataclasses import replace

import pytest

from vgnb.core import Mismatch, as_json, load_json
from vgnb.kinds import from_json
from vgnb.tokenizers.shapes_teacher import ShapesTeacherRecipe, examine_teacher
from vgnb.tokenizers.teachers import TEACHERS, load_teacher, shipped_teacher


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
