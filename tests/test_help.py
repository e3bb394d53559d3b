"""What `--help` says: as wide as the window, each default once, every name that an option takes."""
import re
from pathlib import Path

import pytest

from tests.run_scripts import Scripts
from tests.test_scripts import ALL, OF_A_RECIPE

ROOT = Path(__file__).resolve().parents[1]
STUDIES = sorted(f"studies/{p.name}" for p in (ROOT / "scripts/studies").glob("*.py") if p.name != "pieces.py")
WIDE = 80     # columns of the window that Scripts pretends


@pytest.fixture(scope="module")
def helped(tmp_path_factory):
    return Scripts(tmp_path_factory.mktemp("help"))


def entries(text: str) -> list[str]:
    "What tyro's boxes say of each option, on one line."
    inside = [line.strip("│ ") for line in text.splitlines() if line.startswith("│")]
    return re.split(r"\n(?=--?[a-z])", "\n".join(inside))


def paragraphs(text: str) -> list[str]:
    "The lines outside of boxes that are no commands (these are indented: copied as they stand)."
    return [line for line in text.splitlines() if not line.startswith(("│", "╭", "╰", "    "))]


@pytest.mark.parametrize("words", [[name] for name in ALL + STUDIES] + OF_A_RECIPE, ids=" ".join)
def test_help_fits_the_window_and_says_each_default_once(helped, words):
    ran = helped(*words, "--help")
    assert ran.code == 0 and "╭" in ran.out or "recipes:" in ran.out, ran
    assert [line for line in paragraphs(ran.out) if len(line) > WIDE] == []
    assert "\n\n\n" not in ran.out
    assert [entry for entry in entries(ran.out) if len(re.findall(r"\(default|or \(default", entry)) > 1] == []


def boxes(text: str) -> dict[str, str]:
    "{title: what stands in it} of tyro's boxes."
    found = re.findall(r"╭─ (.+?) ─+╮\n(.*?)╰", text, re.S)
    return dict(found)


def test_sampling_options_stand_in_groups(helped):
    found = boxes(helped("sample.py", "--help").out)
    one_each = {"how tokens are drawn": "--steps", "source options": "--classes", "painting options": "--inpaint",
                "larger options": "--extrapolate", "output options": "--sheet", "guidance options": "--guidance.scale"}
    for title, option in one_each.items():
        assert [other for other, text in found.items() if f"{option} " in text] == [title], (option, list(found))


def names(text: str) -> dict[str, list[str]]:
    "{option: what it takes} from below the boxes."
    below = re.sub(r",\s+", ", ", text.split("names to choose from")[1])
    return {option: taken.split(", ") for option, taken in re.findall(r"^  (--\S+) +(.+)$", below, re.M)}


@pytest.mark.parametrize("script, words", [("sample.py", []), ("search_guidance.py", ["tiny-randar", "REF"])])
def test_help_names_the_parts_and_every_name_is_taken(helped, script, words):
    from vgnb.cli import typed_cli
    from vgnb.generators.schedules import SCHEDULES
    from vgnb.sampling.settings import Sampling
    found = names(helped(script, *words, "--help").out)
    assert set(found) == {"--order", "--guidance", "--schedule", "--picks.0", "--picks.0.temperature", "--picks.1"}
    assert {"confidence", "halton", "raster"} <= set(found["--order"])
    assert sorted(found["--schedule"]) == sorted(SCHEDULES)        # their order is that of imports
    assert {"spatial", "cfg"} <= set(found["--guidance"])
    for option, taken in found.items():
        for name in taken: assert isinstance(typed_cli(Sampling, [option, name], Sampling()), Sampling)


def test_a_tokenizers_help_names_its_quantizers(helped):
    found = names(helped("train_tokenizer.py", "vq-16", "--help").out)
    assert any("fsq" in taken for taken in found.values()), found


@pytest.mark.parametrize("kind", ["tokenizer", "generator"])
def test_recipes_stand_in_a_column_of_their_own(helped, kind):
    "No name runs into what is said of it."
    from vgnb.training.commands import list_recipes
    listed = helped(f"train_{kind}.py", "--help").out.split("recipes:\n")[1].splitlines()
    found = [match for line in listed if (match := re.match(r"  (\S+) +(?=\S)", line))]
    assert {match[1] for match in found} == set(list_recipes(kind))
    assert len({match.end() for match in found}) == 1


@pytest.mark.parametrize("kind", ["tokenizer", "generator"])
def test_a_recipes_command_can_be_copied(kind):
    "One blank between words; a line that goes on ends in a backslash."
    from vgnb.training.commands import list_recipes
    from vgnb.training.recipes import recipes
    for name in list_recipes(kind):
        lines = (recipes[name].__doc__ or "").splitlines()
        assert [line for line in lines if re.search(r"\S {2,}\S", line)] == [], name
        command = "\n".join(line for line in lines if line.startswith("    " * 2))
        broken = [line for line in command.splitlines()[:-1] if not line.endswith("\\")]
        assert broken == [] or "Command:" not in "".join(lines), name


def test_each_training_lists_its_own_options_only(helped):
    of_pictures, of_codes = {"--max-bad", "--weights"}, {"--preview-every", "--preview-tokenizer", "--preview-count"}
    for words, own, others in ((OF_A_RECIPE[0], of_pictures, of_codes), (OF_A_RECIPE[1], of_codes, of_pictures)):
        listed = set(re.findall(r"--[a-z-]+", helped(*words, "--help").out))
        assert own <= listed and not others & listed, words


def test_a_chosen_parts_fields_are_options(helped):
    assert "--order.noise" in helped("sample.py", "--order", "confidence", "--help").out
    wrong = helped("sample.py", "--order", "confidense", "--help")
    assert wrong.code == 2 and "did you mean confidence" in wrong.err


@pytest.mark.parametrize("script, name", [
    ("check_parity.py", "llamagen/case"), ("check_manifests.py", "llamagen-model")])
def test_a_dry_run_of_a_check_names_what_it_would_compare(helped, tmp_path, script, name):
    asked = tmp_path / f"{name}.json"
    asked.parent.mkdir(exist_ok=True)
    asked.write_text("not JSON: nobody opens it")
    ran = helped(script, tmp_path, "--dry-run")
    first, last = ran.out.splitlines()
    assert ran.code == 0 and first == name and last.startswith("1 "), ran
    none = helped(script, tmp_path, "--system", "other", "--dry-run")
    assert none.code == 1 and none.out.startswith("0 "), none


@pytest.mark.parametrize("words, said", [
    (("tiny-llamagen",), "in 64 steps with Sampling(order=Raster(), guidance="),        # one cell a step, not "steps=1"
    (("tiny-randar", "--steps", 12), "in 12 steps with Sampling(order=Random(), schedule='cosine', steps=12"),
    (("tiny-randar", "--order", "raster", "--schedule", "one-by-one"), "in 64 steps with Sampling(order=Raster()")])
def test_a_sampling_says_in_how_many_steps_it_draws(helped, tmp_path, words, said):
    ran = helped("sample.py", *words, "--count", 2, "--out", tmp_path / "s.npz", "--dry-run")
    assert ran.code == 0 and said in ran.out and "steps=1," not in ran.out, ran
