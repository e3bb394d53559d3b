"Captions and their features: cleaning against its reference packages, padding, damaged and interrupted feature stores."
import importlib.util
import json
import random
import shutil

import ftfy
import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup

import vgnb.data.text as text
from vgnb.core import BadInput, BadItem, Mismatch, Missing, VgnbError
from vgnb.data.text import (
    Captions,
    FeaturePlan,
    FeatureStore,
    FeatureWriter,
    PublishedFeatures,
    clean_caption,
    extract_features,
    html_text,
    left_pad,
    repair_text,
    text_mask,
    use_short,
)

SOUP = ["a cat", " ", "<b>", "</b>", "<br>", "</br>", "<br/>", "<i>", "</p>", "<p class='x>y'>",
        "<script>", "</script>", "<style>s", "</style>", "<rt>r", "</rt>", "<ruby>", "</ruby>",
        "&amp;", "&quot;", "&eacute;", "&#39;", "&#x41;", "&#8217; ", "&nosuch; ", "&", " < ", " > ", "<3", "é",
        "<!-- no -->", "<img src=x>", "<template>", "</template>", "1 & 2", "&lt;b&gt;"]


def test_page_text_is_that_of_a_real_parser():
    "Random soups of tags, entities and stray brackets say what BeautifulSoup hears, up to white space."
    g = random.Random(0)
    for _ in range(3000):
        soup = "".join(g.choice(SOUP) for _ in range(g.randint(1, 9))) + " end"
        heard = BeautifulSoup(soup, features="html.parser").text
        assert "".join(html_text(soup).split()) == "".join(heard.split()), soup


def test_plain_text_needs_no_repair():
    "Where the package is not asked, it would have changed nothing."
    g = random.Random(0)
    letters, asked = [chr(c) for c in range(0xC0, 0x250)] + list("äöüéèçñõåø"), 0
    for _ in range(20_000):
        size = g.randint(1, 10)
        s = "".join(g.choice(letters) if g.random() < 0.3 else g.choice("aeb .,'-1$\"") for _ in range(size))
        if text._ODD.search(s): asked += 1
        else: assert ftfy.fix_text(s) == s
    assert 2000 < asked < 19_000
    assert repair_text("schÃ¶n") == "schön"
    assert clean_caption("a ﬁsh bar") == "a fish bar"


@pytest.mark.parametrize("given, cleaned", [
    ("", ""),
    ("   ", ""),
    ("Don't stop!", "don't stop!"),
    ("a%20red+car", "a red car"),
    ("visit shop.com/item-1 now", "visit now"),
    ("mail@me.com", "mail"),
    ("one–two — three", "one-two - three"),
    ("‘single’ and “double”", "single' and \"double"),
    ("page 12 of a book", "of a book"),
    ("img1234 and jc6640vc and 6640vc231", "and and"),
    ("a_b-c_d-e", "a b c d e"),
    ("a_b-c_d", "a_b-c_d"),
    ("wait...what", "wait what"),
    ("10x20 cm", "cm"),
    ("#5 bolts #12345 at 192.168.0.1", "bolts at"),
    ("worldwide free shipping on shoes", "on shoes"),
    ("free download of png images here", "of here"),
    ("**wow** [great] (yes)", "wow great yes"),
    ("good : better", "good: better"),
    ("a,b", "a, b"),
    ("- a list -", "a list"),
    ("photo.jpeg", ""),
    ("日本 castle", "castle"),
    ("line\\nbreak", "line break"),
    ("tabs\tand\nlines", "tabs and lines"),
    (".hidden", ""),
])
def test_cleaning(given, cleaned): assert clean_caption(given) == cleaned


def test_missing_packages_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert clean_caption("A café & a BAR.") == "a café a bar."
    with pytest.raises(Missing, match=r"package='ftfy'.*pip install 'vgnb\[text\]'"):
        clean_caption("a ﬁsh bar")
    with pytest.raises(Missing, match=r"package='transformers'.*pip install 'vgnb\[text\]'"):
        text.TextEncoder(tmp_path)


def test_an_encoder_that_is_not_one(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(Missing, match="must be a T5 model"): text.TextEncoder(tmp_path)


def test_left_padding_and_mask_by_definition():
    g = torch.Generator().manual_seed(0)
    x, valid = torch.randn(5, 7, 3, generator=g), [1, 7, 3, 0, 6]
    mask = torch.tensor([[int(t < v) for t in range(7)] for v in valid])
    y, flipped = left_pad(x, mask)
    for i, v in enumerate(valid):
        assert torch.equal(y[i, 7 - v:], x[i, :v])
        assert not y[i, :7 - v].any()
        assert flipped[i].tolist() == [0] * (7 - v) + [1] * v

    may = text_mask(flipped, 4)
    def expected(b, q, k): return q == k or (k <= q and (k >= 7 or bool(flipped[b, k])))
    for b, q, k in np.ndindex(5, 11, 11): assert bool(may[b, 0, q, k]) == expected(b, q, k)
    with pytest.raises(BadInput, match="mask"): left_pad(x, mask[:, :6])
    with pytest.raises(BadInput, match="ones, then zeros"): left_pad(x, flipped)


class Encoder:
    "Stands in for T5: feature k of a caption is a function of its k-th word."
    width, tokens, fingerprint = 4, 6, "e" * 64
    calls = 0

    def __call__(self, captions):
        self.calls += 1
        x, mask = torch.zeros(len(captions), 6, 4), torch.zeros(len(captions), 6, dtype=torch.bool)
        for i, c in enumerate(captions):
            for k, word in enumerate(["<s>", *c.split()][:6]):
                x[i, k] = len(word) + torch.arange(4) / 4
                mask[i, k] = True
        return x, mask


class Dying(Encoder):
    "Is interrupted at its fourth call."
    def __call__(self, captions):
        if self.calls == 3: raise KeyboardInterrupt
        return super().__call__(captions)


@pytest.fixture
def captions(tmp_path):
    file, lines = tmp_path / "c.jsonl", []
    for i in range(25):
        row = {"image_path": f"{i}.png", "text": ["a", "word " * (i % 7), f"no {i}. more"]}
        lines.append(json.dumps(row) + "\n" + "\n" * (i % 3 == 0))             # with empty lines between
    file.write_text("".join(lines))
    return Captions(file, caption="llava")


@pytest.fixture
def store(captions, tmp_path):
    extract_features(Encoder(), captions, tmp_path / "whole", shard_size=4).finish()
    return tmp_path / "whole"


def contents(folder): return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_interrupted_extraction_of_features(captions, store, tmp_path):
    path = tmp_path / "store"
    for rank in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            extract_features(Dying(), captions, path, shard_size=4, batch=2, rank=rank, world=2)
    with pytest.raises(BadInput, match="unfinished"): FeatureStore(path)
    extract_features(Encoder(), captions, path, shard_size=4).finish()
    assert contents(path) == contents(store)

    again = FeatureStore(path, encoder="e" * 64)
    features, mask = Encoder()([c.text for c in captions])
    for a, b in zip(again.batch(range(25)), left_pad(features, mask)): assert torch.equal(a, b)
    assert [len(f) for f, _ in again] == mask.sum(1).tolist()


def test_damaged_features_are_found(store, tmp_path):
    g = random.Random(0)
    for n in range(30):
        copy = tmp_path / f"{n}"
        shutil.copytree(store, copy)
        file = copy / f"{g.randrange(7):05d}.features"
        raw = bytearray(file.read_bytes())
        if n % 2: raw[g.randrange(len(raw))] ^= 1 << g.randrange(8)
        else: del raw[g.randrange(len(raw)):]
        file.write_bytes(raw)
        with pytest.raises(VgnbError): FeatureStore(copy)
    with pytest.raises(Mismatch, match="eeee.*not by ffff"): FeatureStore(store, encoder="f" * 64)


@pytest.mark.parametrize("words, features", [
    ("must be", torch.zeros(2, 5)),
    ("must be", torch.zeros(7, 4)),
    ("must be", torch.zeros(0, 4)),
    ("must be finite", torch.full((1, 4), 1e6)),
    ("must be finite", torch.full((1, 4), float("nan"))),
])
def test_bad_features_are_refused(tmp_path, words, features):
    writer = FeatureWriter(tmp_path / "s", FeaturePlan(4, 6, 9, "e"))
    with pytest.raises(BadInput, match=words): writer.write(0, [features], [0])
    assert [p.name for p in (tmp_path / "s").iterdir()] == ["plan.json"]


def test_features_have_one_of_two_dtypes():
    with pytest.raises(BadInput, match="dtype='int8'"): FeaturePlan(4, 6, 9, "e", dtype="int8")


def test_bad_captions(captions, tmp_path):
    assert captions[9].key == "c/9"
    assert captions[9].image == tmp_path / "9.png"
    assert Captions(tmp_path, caption="llava_first", first_sentence=True)[9].text == "no 9"
    with open(tmp_path / "c.jsonl", "a") as f:
        f.write('{"text": ["only one"]}\n[1, 2]\n{"text": [1, 2]}\n{"text"\n')
    bad = Captions(tmp_path, caption="llava")
    for i in range(25, 29):
        with pytest.raises(BadItem, match=f"c.jsonl:{i + 1}: must be JSON with a text"): bad[i]
    with pytest.raises(BadItem): extract_features(Encoder(), bad, tmp_path / "s", max_bad=3)
    extract_features(Encoder(), bad, tmp_path / "s", max_bad=4).finish()
    assert FeatureStore(tmp_path / "s").ids.tolist() == list(range(25))
    with pytest.raises(Missing, match="no such file or folder"): Captions(tmp_path / "none")
    with pytest.raises(BadInput, match="holds no .jsonl files"): Captions(tmp_path / "s")


@pytest.mark.parametrize("array", [
    np.zeros((1, 3, 5), np.float32),
    np.zeros((3, 4), np.float32),
    np.zeros((1, 0, 4), np.float32),
    np.zeros((1, 3, 4), int),
    np.array([{}], dtype=object),
])
def test_published_features_are_checked(captions, tmp_path, array):
    (tmp_path / "t5/c").mkdir(parents=True)
    np.save(tmp_path / "t5/c/0.npy", np.ones((1, 3, 4), np.float32))
    np.save(tmp_path / "t5/c/1.npy", array)
    features = PublishedFeatures(tmp_path / "t5", captions, width=4, tokens=6)
    assert features.batch([0])[1].tolist() == [[False] * 3 + [True] * 3]
    for i in (1, 2):
        with pytest.raises(BadItem, match=f"c/{i}.npy"): features[i]


def test_short_captions():
    rows = use_short(1, 2, range(20_000))
    assert abs(float(rows.float().mean()) - 0.3) < 0.01
    assert torch.equal(torch.cat([use_short(1, 2, [i]) for i in range(30)]), rows[:30])
    assert not use_short(0, 0, range(99), 0.0).any()
    assert use_short(0, 0, range(99), 1.0).all()
    with pytest.raises(BadInput, match="share"): use_short(0, 0, [1], 1.5)
