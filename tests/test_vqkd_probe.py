"The VQ-KD framework's probe of codes, held-out pictures, labels, windows, and its FID network."
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.run_scripts import Scripts, main_of
from tests.test_tokenizers import Together, in_threads
from vgnb.core import BadInput, BadItem, Mismatch, load_json
from vgnb.data.annotated import read_classes
from vgnb.data.images import open_images
from vgnb.data.shapes import Shapes
from vgnb.data.sources import held_out, ranked_classes, relabelling
from vgnb.data.transforms import Augment, cut_resize, to_tensor
from vgnb.evaluation.code_probe import ProbeHead, ProbeRecipe, mean_rows, probe_head_names, train_probe
from vgnb.evaluation.feature_passes import Passes, cluster_dataset, dataset_rows
from vgnb.evaluation.features import (
    InceptionConfig,
    bare_inception,
    load_extractor,
    pooled_inception,
    pooled_inception_names,
)
from vgnb.saved import load_model, save_model
from vgnb.shipped import open_part
from vgnb.tokenizers.feature_tokenizer import Cluster
from vgnb.tokenizers.quantizers import VectorConfig
from vgnb.tokenizers.streamed_kmeans import Clusters
from vgnb.tokenizers.teachers import Teacher, TeacherConfig
from vgnb.tokenizers.vit import ViTConfig
from vgnb.tokenizers.vqgan import VQGAN, VQGANConfig
from vgnb.views.codebook import PatchGallery, codebook_map, gallery_picture, rows_of

SHORT = ProbeRecipe(steps=150, batch=64)


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    return VQGAN(VQGANConfig(VectorConfig(64, 8), width=32, mults=(1, 1, 2), attention=(), z=16)).eval()


@pytest.fixture(scope="module")
def points():
    "Rows that hold their class in two entries, among entries of very different size."
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 3
    rows = torch.randn(600, 8, generator=g) * 0.3
    for k, entry in ((1, 2), (2, 6)): rows[:, entry] += labels == k
    return rows * torch.logspace(-3, 3, 8) + 5, labels


def test_codes_of_shapes_are_probed_and_the_tokenizer_stays(tokenizer):
    pictures, labels = Shapes(n=60, size=16).batch(np.arange(60))
    x, labels = to_tensor(pictures), torch.from_numpy(labels)
    before = {k: v.clone() for k, v in tokenizer.state_dict().items()}
    rows = mean_rows(tokenizer, x, rows=7)
    probe = train_probe(rows[:40], labels[:40], rows[40:], labels[40:], 10, ProbeRecipe(steps=5, batch=16))
    assert rows.shape == (60, 8) and probe.losses.isfinite().all() and 0 <= probe.accuracy <= 1
    assert all(torch.equal(v, before[k]) for k, v in tokenizer.state_dict().items())
    assert torch.allclose(rows, tokenizer.lookup(tokenizer.encode(x)).mean((2, 3)), atol=1e-6)


def test_a_linear_class_is_found_and_a_shuffled_one_is_not(points):
    rows, labels = points
    found = train_probe(rows[:400], labels[:400], rows[400:], labels[400:], 3, SHORT)
    mixed = labels[torch.randperm(600, generator=torch.Generator().manual_seed(1))]
    nothing = train_probe(rows[:400], mixed[:400], rows[400:], mixed[400:], 3, SHORT)
    assert found.accuracy > 0.8 and found.losses[-20:].mean() < found.losses[:20].mean() / 1.5
    assert nothing.accuracy < 0.45


def test_a_run_is_a_function_of_its_recipe(points):
    rows, labels = points
    def losses(seed): return train_probe(rows, labels, rows, labels, 3, ProbeRecipe(steps=20, seed=seed)).losses
    torch.manual_seed(1)
    once = losses(0)
    torch.manual_seed(2)
    assert torch.equal(once, losses(0)) and not torch.equal(once, losses(1))


@pytest.mark.parametrize("field", ["optim", "rate", "seed"])
def test_a_recipe_of_something_else_is_refused(field):
    with pytest.raises(BadInput, match=f"{field}='x'"): ProbeRecipe(**{field: "x"})


def test_no_batch_is_of_one_row(points):
    rows, labels = points
    few = train_probe(rows[:65], labels[:65], rows, labels, 3, ProbeRecipe(steps=9, batch=64))
    assert few.losses.isfinite().all()
    assert few.head.norm.num_batches_tracked == 9


def test_a_grade_does_not_depend_on_what_else_is_graded(points):
    rows, labels = points
    head = train_probe(rows, labels, rows, labels, 3, SHORT).head
    assert not head.training
    assert torch.allclose(head(rows)[:1], head(rows[:1]), atol=1e-5)


@pytest.mark.parametrize("what,change", [
    ("training rows", dict(rows=torch.zeros(0, 8))),
    ("training rows", dict(rows=torch.full((600, 8), float("nan")))),
    ("training rows", dict(rows=torch.zeros(600, 8, dtype=torch.int64))),
    ("training labels", dict(labels=torch.zeros(599, dtype=torch.int64))),
    ("training labels", dict(labels=torch.full((600,), 3))),
    ("training labels", dict(labels=torch.full((600,), -1))),
    ("held-out rows", dict(val_rows=torch.zeros(600, 7))),
    ("held-out labels", dict(val_labels=torch.zeros(600))),
    ("classes", dict(classes=1)),
])
def test_what_does_not_belong_together_is_refused(points, what, change):
    rows, labels = points
    asked = dict(rows=rows, labels=labels, val_rows=rows, val_labels=labels, classes=3, recipe=SHORT)
    with pytest.raises(BadInput, match=what): train_probe(**asked | change)


def test_a_tokenizer_in_training_mode_is_refused(tokenizer):
    x = torch.zeros(1, 3, 16, 16)
    tokenizer.train()
    try:
        with pytest.raises(BadInput, match="eval mode"): mean_rows(tokenizer, x)
    finally: tokenizer.eval()


def test_a_head_goes_through_its_published_names():
    head, table = ProbeHead(5, 4), probe_head_names()
    head(torch.randn(9, 5))
    entries = table.export(head.state_dict(), head)
    assert set(entries) == {"0.running_mean", "0.running_var", "0.num_batches_tracked", "1.weight", "1.bias"}
    other = table.load_into(ProbeHead(5, 4, seed=1), entries)
    assert all(torch.equal(a, b) for a, b in zip(head.state_dict().values(), other.state_dict().values()))


# ---- data

@pytest.mark.parametrize("spread", (False, True))
@pytest.mark.parametrize("total,count", [(47, 6), (12, 6), (13, 6), (5, 0), (3, 1), (6, 6), (1000, 499), (1, 1)])
def test_a_set_falls_into_two_without_loss(total, count, spread):
    train, val = held_out(total, count, spread)
    assert len(val) == count and train.dtype == val.dtype == np.int64
    assert sorted([*train, *val]) == list(range(total))


def test_spread_pictures_are_equally_far_apart():
    _, val = held_out(103, 10, spread=True)
    assert set(np.diff(val)) == {10}


@pytest.mark.parametrize("asked", [(0, 0), (5, 6), (5, -1), (5, 3)])
def test_impossible_parts_are_refused(asked):
    with pytest.raises(BadInput): held_out(*asked, spread=True)


def test_labels_go_from_one_order_to_another_and_back():
    numbers = {"n03": 9, "n01": 700, "n02": 2}
    kit, names = ranked_classes(numbers), sorted(numbers)
    assert kit == ["n02", "n03", "n01"]
    there, back = relabelling(kit, names), relabelling(names, kit)
    assert [names[k] for k in there] == kit
    assert there[back].tolist() == back[there].tolist() == [0, 1, 2]
    with pytest.raises(BadInput, match="n03"): relabelling(kit, ["n01", "n02"])
    with pytest.raises(BadInput, match="numbers"): ranked_classes({"a": 1, "b": 1})


@pytest.fixture
def annotated(tmp_path):
    "Two splits in the framework's layout: classes whose numbers run against their names."
    kit = {"7": {"WNID": "n00000001"}, "3": {"WNID": "n00000002"}, "5": {"WNID": "n00000003"}}
    (tmp_path / "annotations").mkdir()
    (tmp_path / "synsets.json").write_text(json.dumps(kit))
    for split in ("train", "val"):
        listed = []
        for i in range(6):
            number = list(kit)[i % 3]
            wnid = kit[number]["WNID"]
            (tmp_path / split / wnid).mkdir(parents=True, exist_ok=True)
            Shapes(6, 16)[i].image.save(tmp_path / split / wnid / f"{i}.png")
            listed.append({"name": f"{i}.png", "synset_id": int(number)})
        (tmp_path / "annotations" / f"{split}.json").write_text(json.dumps(listed))
    return tmp_path


def test_annotated_pictures_have_the_labels_of_either_order(annotated):
    usual, devkit = (open_images(f"annotated://{annotated}?split=val&order={order}") for order in ("wnid", "synset"))
    assert usual.classes == [f"n0000000{k}" for k in (1, 2, 3)] and usual.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert devkit.classes == [f"n0000000{k}" for k in (2, 3, 1)] and devkit.labels.tolist() == [2, 2, 0, 0, 1, 1]
    there = relabelling(usual.classes, devkit.classes)
    assert (there[usual.labels] == devkit.labels).all() and usual.fingerprint != devkit.fingerprint
    folders = open_images(annotated / "val")
    assert folders.names == usual.names and (folders.labels == usual.labels).all()
    assert usual[3].image.tobytes() == folders[3].image.tobytes()
    (annotated / "val" / "n00000003" / "2.png").unlink()
    with pytest.raises(BadItem, match="2.png"): usual[4]


def test_a_part_of_a_set_has_the_labels_of_the_whole(annotated):
    (annotated / "classes.txt").write_text("n00000009 unseen\nn00000003 c\n\nn00000002 b\nn00000001 a\n")
    part = open_images(f"folder://{annotated / 'train'}?classes={annotated / 'classes.txt'}")
    assert part.labels.tolist() == [3, 3, 2, 2, 1, 1] and "classes without a picture" in part.notes[0]
    same = open_images(f"annotated://{annotated}?classes={annotated / 'classes.txt'}")
    assert (same.labels == part.labels).all() and same.classes == part.classes


@pytest.mark.parametrize("content, words", [
    ("", "must list different classes"), ("a\nb\na\n", "must list different classes"), ('["a", 3]', "must list"),
    ('{"0": "a", "x": "b"}', "must list"),
    ('{"\u00b2": "a"}', "must list"), ('{"0": "a", "1": "a"}', "must list"), ("[", "valid JSON"),
    (None, "no such file")])
def test_a_list_of_classes_that_is_none_is_named(tmp_path, content, words):
    file = tmp_path / ("classes.json" if content and content[0] in "[{" else "classes.txt")
    if content is not None: file.write_text(content)
    with pytest.raises(BadInput, match=words): read_classes(file)


@pytest.mark.parametrize("content, names", [
    ("n01440764 tench, Tinca tinca\nn01443537 goldfish\n", ["n01440764", "n01443537"]),
    ("white shark\n\nwhite wolf \n", ["white shark", "white wolf"]),
    ("n01440764\nhot dog\n", ["n01440764", "hot dog"])])
def test_a_name_of_several_words_stays_whole(tmp_path, content, names):
    (tmp_path / "classes.txt").write_text(content)
    assert read_classes(tmp_path / "classes.txt") == names


@pytest.mark.parametrize("uri, words", [
    ("?split=test", "annotations/test.json"), ("?order=name", "order='name'"),
    ("?classes={root}/none.txt", "no such file"), ("?labels=1", "uri option")])
def test_an_address_of_annotated_pictures_is_checked(annotated, uri, words):
    with pytest.raises(BadInput, match=words): open_images(f"annotated://{annotated}{uri.format(root=annotated)}")


@pytest.mark.parametrize("box", [(0, 0, 17, 5), (-1, 0, 3, 3), (3, 0, 3, 3), (0, 4, 3, 2)])
def test_a_window_outside_the_picture_is_refused(box):
    picture = Shapes(n=1, size=16)[0].image
    with pytest.raises(BadInput, match="box"): cut_resize(picture, box, 8)


# ---- the FID network

@pytest.mark.full
def test_the_trunk_is_read_under_both_names_and_has_its_own_id(tmp_path):
    net = bare_inception(InceptionConfig(("2048",)))
    whole = net.state_dict()
    framework = pooled_inception_names().export(pooled_inception().state_dict() | {
        k: v for k, v in whole.items() if not k.startswith("fc.")}, net)
    pictures = torch.randint(0, 256, (2, 40, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    seen = {}
    for name, state in (("whole", whole), ("framework", framework)):
        save_file(state, tmp_path / f"{name}.safetensors")
        look = load_extractor("inception-pytorch", tmp_path / f"{name}.safetensors")
        assert look.id.startswith("inception-v3-pytorch@") and look.classes is None
        seen[name] = look(pictures).pool
    assert torch.equal(seen["whole"], seen["framework"])

    graph = load_extractor("inception", tmp_path / "whole.safetensors")(pictures).pool
    apart = (graph - seen["whole"]).norm() / graph.norm()             # features of random weights are tiny
    assert 1e-3 < apart < 1


def test_a_file_that_is_not_the_trunk_is_named(tmp_path):
    save_file({"fc.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(Mismatch, match="other"): load_extractor("inception-pytorch", tmp_path / "other.safetensors")


# ---- over a data set, by commands

class InStep:
    "Threads that play processes, with all that a pass over a data set asks of them."
    def __init__(self, world): self.world, self.meeting, self.box = world, Together(world), [None]

    def rank(self, n):
        sync = self.meeting.rank(n)
        class One:
            rank, world, main, device = n, self.world, n == 0, torch.device("cpu")
            def sum(self, x): return sync.sum(x)
            def gather(self, x): return sync.gather(x)
            def together(self, work):
                if n == 0: self.box[0] = work()
                sync.gather(torch.zeros(1))
                return self.box[0]
            box = self.box
        return One()


EYE = TeacherConfig(ViTConfig(16, 8, 12, 1, 2))
CENTRE = Augment("center", 16)


def clustered(eye, place, processes=None, batch=7, **how):
    passes = Passes(Shapes(45, 16), CENTRE, batch=batch, processes=processes)
    return cluster_dataset(eye, Clusters(10, 12, by="cosine"), passes, place, {}, iterations=2, **how).table


def test_two_processes_cluster_a_data_set_as_one_does(tmp_path):
    torch.manual_seed(0)
    eye, found, both = Teacher(EYE), {}, InStep(2)
    def work(n): found[n] = clustered(eye, tmp_path / f"{n}.safetensors", both.rank(n), every=2)
    in_threads(work, (0,), (1,))
    one = clustered(eye, tmp_path / "one.safetensors", every=0)
    assert torch.equal(found[0], one) and torch.equal(found[1], one)


def test_rows_of_two_processes_are_those_of_one_in_its_order(tokenizer):
    def passes(processes=None):
        return Passes(Shapes(21, 16), Augment("center", 16, flip=True), batch=4, processes=processes)
    found, both = {}, InStep(2)
    def work(n): found[n] = dataset_rows(tokenizer, passes(both.rank(n)))
    in_threads(work, (0,), (1,))
    rows, labels = dataset_rows(tokenizer, passes())
    assert len(rows) == 42 and labels[::2].tolist() == [Shapes(21, 16)[i].label for i in range(21)]
    for other, same in found.values(): assert torch.equal(other, rows) and torch.equal(same, labels)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("commands")
    torch.manual_seed(0)
    save_model(place / "eye", Teacher(EYE), EYE)
    return place


@pytest.fixture(scope="module")
def scripts(place): return Scripts(place)


PICTURES = ["--data", "shapes://?n=60&size=16", "--size", 16]
PROBE = ["probe_codes.py", *PICTURES, "--tokenizer", "tiny-randar", "--val", PICTURES[1]]


@pytest.mark.full
def test_a_teacher_becomes_a_cluster_tokenizer_and_is_probed(place, scripts):
    words = ["cluster_features.py", "--teacher", "eye", *PICTURES, "--codes", 12, "--iterations", 2, "--out", "cluster"]
    first = scripts(*words)
    assert first.code == 0 and "240 features" in first.out, first
    tokenizer = load_model(place / "cluster" / "model")
    assert isinstance(tokenizer, Cluster) and tokenizer.card["size"] == 16
    table = tokenizer.quantizer.table.clone()
    assert scripts(*words).code == 0 and torch.equal(load_model(place / "cluster" / "model").quantizer.table, table)
    other = scripts(*words, "--seed", 3)
    assert other.code == 2 and "clusters of something else (seed)" in other.err
    assert scripts(*words, "--seed", 3, "--fresh").code == 0

    probe = ["probe_codes.py", "--tokenizer", "cluster", *PICTURES, "--val", "shapes://?n=30&size=16&seed=1",
             "--steps", 20, "--json", "probe.json"]
    done = scripts(*probe)
    assert done.code == 0 and "accuracy" in done.out, done
    report = load_json(place / "probe.json")
    assert report["held_out"] == 30 and report["recipe"]["optim"]["name"] == "lars" and report["run"]["seed"] == 0
    assert "json" in scripts(*probe).err and scripts(*probe, "--overwrite", "--dry-run").code == 0


@pytest.mark.parametrize("words, says", [
    (["cluster_features.py", *PICTURES, "--out", "x"], "teacher='': must be given"),
    (["cluster_features.py", *PICTURES, "--out", "x", "--teacher", "clip"], "no weights of the teacher clip"),
    (["cluster_features.py", *PICTURES, "--out", "x", "--teacher", "eye"], "codes=8192: must be at most 240"),
    (["cluster_features.py", *PICTURES, "--out", "x", "--tokenizer", "tiny-iar2"], "has no table of rows"),
    (["cluster_features.py", *PICTURES, "--out", "x", "--teacher", "eye", "--codes", 4, "--size", 20], "multiple of 8"),
    (["cluster_features.py", *PICTURES, "--out", "x", "--tokenizer", "tiny-randar", "--codes", 9], "has 256 rows"),
    ([*PROBE, "--rows", 1], "rows=1: must be"),
    ([*PROBE, "--lr", -1], "lr=-1.0: must be"),
    ([*PROBE, "--momentum", 1], "momentum=1.0"),
    ([*PROBE, "--seed", -1], "seed=-1"),
    (["probe_codes.py", *PICTURES, "--tokenizer", "tiny-randar", "--val", "nowhere"], "nowhere"),
    (["probe_codes.py", *PICTURES, "--tokenizer", "tiny-randar", "--val", PICTURES[1], "--steps", 0], "steps=0"),
    (["probe_codes.py", *PICTURES, "--tokenizer", "tiny-randar", "--val", "pictures"], "classes of the training set")])
def test_commands_over_a_data_set_name_what_is_wrong(place, scripts, words, says):
    for name in ("a", "b"):
        (place / "pictures" / name).mkdir(parents=True, exist_ok=True)
        Shapes(1, 16)[0].image.save(place / "pictures" / name / "one.png")
    done = scripts(*words)
    assert done.code == 2 and says in done.err and len(done.err.strip().splitlines()) == 1, done


@pytest.mark.parametrize("word", ["iterations", "every", "seed"])
def test_what_lies_there_outlives_a_word_that_is_refused(tmp_path, word):
    "With --fresh, too: nothing is removed before all is known to be right."
    kept = tmp_path / "out" / "clusters.safetensors"
    kept.parent.mkdir()
    kept.write_text("of yesterday")
    words = [*map(str, PICTURES), "--out", str(kept.parent), "--teacher", "shapes", "--codes", "4", "--fresh"]
    words += [f"--{word}", "-1"]
    with pytest.raises(BadInput, match=f"{word}=-1"): main_of("cluster_features.py")(words)
    assert kept.read_text() == "of yesterday" and len(list(kept.parent.iterdir())) == 1


# ---- what a code looks like

def test_a_gallery_is_the_same_however_it_is_filled():
    g = torch.Generator().manual_seed(0)
    codes = torch.randint(12, (9, 4, 2), generator=g)
    images = torch.randint(0, 256, (9, 16, 12, 3), dtype=torch.uint8, generator=g).numpy()
    whole, parts = PatchGallery(12, per=5).add(codes, images), PatchGallery(12, per=5)
    for k in range(0, 9, 2): parts.add(codes[k:k + 2], images[k:k + 2])
    assert (whole.count == parts.count).all() and whole.count.sum() == codes.numel()
    np.testing.assert_allclose(whole.colours(), parts.colours())
    assert all(len(kept) == min(5, whole.count[code]) for code, kept in whole.patches.items())
    first = int(codes[0, 1, 1])
    assert any((patch == images[0, 4:8, 6:12]).all() for patch in whole.patches[first])
    assert gallery_picture(whole, [first, 3], columns=2).width > 0


@pytest.mark.parametrize("codes, images", [
    (torch.zeros(1, 2, 2), np.zeros((1, 8, 8, 3))), (torch.zeros(2, 2, 2).long(), np.zeros((1, 8, 8, 3), np.uint8)),
    (torch.full((1, 2, 2), -1), np.zeros((1, 8, 8, 3), np.uint8)),
    (torch.zeros(1, 4), np.zeros((1, 8, 8, 3), np.uint8))])
def test_codes_that_are_not_of_the_pictures_are_refused(codes, images):
    with pytest.raises(BadInput): PatchGallery(4).add(codes, images)


@pytest.mark.parametrize("name, level", [("tiny-randar", 0), ("tiny-iar2", 0), ("tiny-iar2", 1)])
def test_a_map_has_a_point_for_every_code(name, level):
    tokenizer = open_part(name, "tokenizer")
    rows = rows_of(tokenizer, level)
    state = codebook_map(rows)
    assert state.points.shape == (tokenizer.vocab[level], 2) and np.isfinite(state.points).all()
    centred = (rows - rows.mean(0)).double()
    assert abs(state.share - np.square(state.points).sum() / float(centred.square().sum())) < 1e-6
    turned = codebook_map(rows @ torch.linalg.qr(torch.randn(rows.shape[1], rows.shape[1])).Q)
    np.testing.assert_allclose(np.abs(turned.points), np.abs(state.points), atol=1e-3)
    with pytest.raises(BadInput): rows_of(tokenizer, len(tokenizer.vocab))
