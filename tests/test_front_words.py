"""What somebody meets who tries things: labels of their own folders, arguments of another kind, names that are none."""
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vgnb.core import BadInput, digest_file, save_card
from vgnb.data.shapes import Shapes
from vgnb.evaluation.features import Extractor, load_extractor
from vgnb.evaluation.measure import graded_labels, label_note, measure
from vgnb.evaluation.samples import Samples, open_samples, save_samples

ROOT = Path(__file__).resolve().parents[1]


# ---- accuracy goes by the classes' names

FOUR = ["crescent", "heart", "ring", "star"]


def four_classes(count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    "Shapes of four classes, and their numbers among these four."
    source = Shapes(n=400, seed=5, size=32, difficulty=0)
    images, labels = source.batch(np.arange(400))
    numbers = [FOUR.index(name) if (name := source.classes[k]) in FOUR else -1 for k in labels]
    chosen = np.flatnonzero(np.array(numbers) >= 0)[:count]
    return images[chosen], np.array(numbers)[chosen]


@pytest.fixture(scope="module")
def judge() -> Extractor: return load_extractor("shapes-judge")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    top = tmp_path_factory.mktemp("four")
    for i, (image, label) in enumerate(zip(*four_classes(), strict=True)):
        place = top / FOUR[label]
        place.mkdir(exist_ok=True)
        Image.fromarray(image).save(place / f"{i}.png")
    return top


def recorded(place: Path, classes: list, sha: str | None = None) -> Path:
    "An npz with its record."
    file = place / "made.npz"
    save_samples(file, *four_classes())
    save_card(place / "made.run.json", {"outputs": {file.name: sha or digest_file(file)}, "classes": classes})
    return file


def accuracy_of(samples, judge) -> tuple[float, list[str]]:
    report = measure(samples, samples, judge, metrics=("accuracy",))
    return report.values["accuracy"], report.notes


def test_accuracy_of_one_s_own_folders_goes_by_name(folder, judge, tmp_path):
    for source in (folder, recorded(tmp_path, FOUR), Samples(*four_classes(), classes=FOUR)):
        right, notes = accuracy_of(open_samples(source), judge)
        assert right > 0.9 and not notes, source

    other = ["heart", "crescent", "star", "ring"]
    assert accuracy_of(Samples(*four_classes(), classes=other), judge)[0] < 0.1


@pytest.mark.parametrize("broken", [dict(classes=[]), dict(classes=[1, 2, 3, 4]), dict(classes=FOUR, sha="0" * 64)])
def test_labels_without_names_are_said_to_be_taken_as_numbers(judge, tmp_path, broken):
    for source in (Samples(*four_classes()), open_samples(recorded(tmp_path, **broken))):
        right, notes = accuracy_of(source, judge)
        assert right < 0.1 and ["taken as the class numbers of shapes-judge" in note for note in notes] == [True]


def test_a_class_that_the_judge_does_not_know_is_refused(judge):
    images, labels = four_classes()
    unknown = Samples(images, labels, classes=["crescent", "heart", "ring", "rabbit"])
    with pytest.raises(BadInput, match=r"labels=\['rabbit'\]: must be classes of shapes-judge.*heart"):
        measure(unknown, unknown, judge, metrics=("accuracy",))

    unused = Samples(images[labels < 3], labels[labels < 3], classes=["crescent", "heart", "ring", "rabbit"])
    assert accuracy_of(unused, judge)[0] > 0.9                          # nobody asked for a rabbit
    with pytest.raises(BadInput, match=r"must lie in \[0, 2\)"):
        graded_labels(Samples(images, labels, classes=FOUR[:2]), judge)


def test_names_in_digits_are_the_numbers_themselves(judge):
    images, labels = four_classes()
    numbers = [str(judge.names.index(name)) for name in FOUR]
    digits = Samples(images, labels, classes=numbers)
    assert [judge.names[k] for k in graded_labels(digits, judge)[:4]] == [FOUR[k] for k in labels[:4]]
    assert "taken as" in label_note(digits, judge)

    nameless = Extractor()
    nameless.id, nameless.classes = "nameless", 10
    assert graded_labels(Samples(images, labels, classes=FOUR), nameless).tolist() == labels.tolist()
    assert "taken as" in label_note(Samples(images, labels, classes=FOUR), nameless)


def test_the_script_tells_too(folder, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("evaluate_script", ROOT / "scripts/evaluate.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    np.savez(tmp_path / "bare.npz", arr_0=four_classes()[0], labels=four_classes()[1])
    for samples, told in ((folder, False), (tmp_path / "bare.npz", True)):
        words = [str(folder), str(samples), "--extractor", "shapes-judge", "--metrics", "accuracy", "--dry-run"]
        assert script.main(words) == 0
        assert ("labels are taken as" in capsys.readouterr().out) == told
