"Rejection where its page has no room: any company, parts of a job, thresholds, ties, the command line."
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.run_scripts import Scripts
from vgnb.core import BadInput, Mismatch
from vgnb.draws import Keyed
from vgnb.evaluation.features import Extractor, Features
from vgnb.evaluation.judge import ShapesJudge
from vgnb.jobs import SampleJob
from vgnb.pipeline import from_pretrained
from vgnb.rejection import Rejection, check_classifier, probabilities, search

@pytest.fixture(scope="module")
def pipe(): return from_pretrained("tiny-randar")


class Brightness(Extractor):
    "A classifier of ten classes by the mean of the red pixels; it counts the pictures that it sees at once."
    id, dims, classes = "brightness@0", 1, 10

    def __init__(self): self.seen = []

    def look(self, images):
        self.seen.append(len(images))
        mean = images.float().mean((1, 2, 3))[:, None] / 255
        return Features(mean, -(mean * 10 - torch.arange(10)) ** 2)


def candidates(table):
    "Pictures of one pixel that carry a probability in hundredths, from a table (tries, samples)."
    def made(k, rows): return np.array(table, np.uint8)[k, rows.numpy()].reshape(-1, 1, 1, 1).repeat(3, -1)
    return made


def judged(pictures, rows): return torch.from_numpy(pictures[:, 0, 0, 0] / 100).float()


@pytest.mark.parametrize("enough, kept, drawn", [
    (1.0, [0, 2, 1, 0], [3, 3, 3, 1]),
    (0.6, [0, 1, 1, 0], [1, 2, 3, 1]),
    (0.0, [0, 0, 0, 0], [1, 1, 1, 1])])
def test_which_try_is_kept(enough, kept, drawn):
    "The best of all, or the first that is good enough; of equal ones the first."
    table = [[70, 10, 20, 100], [70, 65, 50, 0], [60, 90, 50, 0]]
    found = search(Rejection(3, enough), 4, candidates(table), judged)
    assert found.kept.tolist() == kept and found.drawn.tolist() == drawn
    assert found.images[:, 0, 0, 0].tolist() == [table[k][i] for i, k in enumerate(kept)]
    torch.testing.assert_close(found.probability, torch.tensor([table[k][i] for i, k in enumerate(kept)]) / 100)


def test_tries_have_draws_of_their_own():
    first, second, third = (Rejection().draws(5, k) for k in range(3))
    assert first.path == Keyed(5).path and len({repr(d) for d in (first, second, third)}) == 3


def test_the_same_picture_in_any_company(pipe):
    "Sample 17 of seed 0 alone, among others, in another order."
    judge, how = ShapesJudge(), dict(guidance=1.0, steps=6, rows=8)
    rejection = Rejection(3, enough=0.95)
    alone = pipe.select([3], rejection, judge, ids=[17], **how)
    many = pipe.select([1, 2, 3, 4, 5], rejection, judge, ids=[4, 90, 17, 2, 3], **how)
    assert np.array_equal(alone.images[0], many.images[2])
    assert (alone.kept[0], alone.drawn[0]) == (many.kept[2], many.drawn[2])


def test_the_classifier_sees_full_rows_only():
    looks = Brightness()
    x = np.random.default_rng(0).integers(0, 256, (11, 4, 4, 3), np.uint8)
    labels = torch.arange(11) % 10
    p = probabilities(looks, x, labels, 4)
    assert looks.seen == [4, 4, 4] and p.shape == (11,)
    torch.testing.assert_close(p[9:10], probabilities(looks, x[9:10], labels[9:10], 4), atol=0, rtol=0)


def test_one_try_is_the_plain_sample(pipe):
    one = pipe.select([1, 7], Rejection(1), Brightness(), seed=3, size=48, steps=4)
    assert np.array_equal(one.images, pipe([1, 7], seed=3, size=48, steps=4)) and one.images.shape == (2, 48, 48, 3)


def test_a_job_of_several_parts(pipe, tmp_path):
    "Its bytes don't depend on the parts; a plan without rejection, or with another, is another plan."
    labels, looks = torch.arange(10), Brightness()
    pipe.sampling = pipe.settings(steps=4, rows=4)
    jobs = {part: SampleJob(pipe, labels, tmp_path / f"{part}.npz", part=part, reject=Rejection(2), classifier=looks)
            for part in (4, 64)}
    made = [np.load(job.run(progress=False))["arr_0"] for job in jobs.values()]
    assert np.array_equal(*made)
    assert json.loads(jobs[4].record_file.read_text())["config"]["rejection"] == {
        "tries": 2, "enough": 1.0, "classifier": "brightness@0"}

    records = [json.loads(job.record_file.read_text())["selected"] for job in jobs.values()]
    whole = pipe.select(labels, Rejection(2), looks, min_rows=4)
    assert records[0] == records[1] and records[0]["candidates"] == 20 and sum(records[0]["kept"]) == 10
    assert records[0]["kept"] == whole.kept.bincount().tolist()
    assert records[0]["probability"] == pytest.approx(
        {"mean": float(whole.probability.mean()), "least": float(whole.probability.min())}, rel=1e-5)
    for other in (dict(), dict(reject=Rejection(3), classifier=looks)):
        with pytest.raises(BadInput): SampleJob(pipe, labels, tmp_path / "4.npz", part=4, **other).run(progress=False)


def test_bad_rows(pipe, tmp_path):
    looks = Brightness()
    for wrong in (dict(tries=0), dict(tries=2.5), dict(enough=-0.1), dict(enough=float("nan"))):
        with pytest.raises(BadInput): Rejection(**wrong)
    with pytest.raises(BadInput, match="classifier="):
        SampleJob(pipe, torch.arange(2), tmp_path / "a.npz", reject=Rejection())
    with pytest.raises(BadInput, match="labels="): pipe.select([None, 1], Rejection(), looks)

    looks.classes = 12
    with pytest.raises(Mismatch, match="classifier="): check_classifier(looks, pipe)
    looks.classes, looks.names = 10, tuple(reversed(pipe.classes))
    with pytest.raises(Mismatch, match="classifier="): check_classifier(looks, pipe)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_refused(pipe, bad):
    class Broken(Brightness):
        def look(self, images):
            found = super().look(images)
            found.logits[:, 2] = bad
            return found

    with pytest.raises(BadInput, match="classifier='brightness@0': must give finite scores"):
        pipe.select([1, 7], Rejection(2), Broken(), steps=2)


def test_a_generator_that_is_not_asked_for_classes_is_named():
    pipe = SimpleNamespace(generator=SimpleNamespace(conditioned_on="text"))
    with pytest.raises(BadInput, match="^generator='SimpleNamespace': must be asked for classes"):
        check_classifier(Brightness(), pipe)


@pytest.mark.full
def test_command_line(tmp_path):
    "An option of `sample.py`; its settings alone are refused before anything is sampled."
    out = tmp_path / "a.npz"
    words = ["tiny-randar", "--count", "2", "--steps", "3", "--out", str(out), "--reject-tries", "2"]
    scripts = Scripts(tmp_path, warm=False)
    refused = scripts("sample.py", *words)
    assert refused.code == 2 and "only goes with reject_by" in refused.err and not out.exists()
    done = scripts("sample.py", *words, "--reject-by", "shapes-judge", "--reject-enough", "0.5")
    assert done.code == 0, done.err
    record = json.loads(out.with_suffix(".run.json").read_text())["config"]["rejection"]
    assert record["tries"] == 2 and record["enough"] == 0.5 and record["classifier"].startswith("shapes-judge@")
    said = f"each the one of 2 candidates that {record['classifier']} likes best, or the first above 0.5"
    assert said in done.out
