"What people did on their first evening that nobody had thought of."
import io
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from tests.test_registering import script
from vgnb.core import BadInput
from vgnb.data.export import plan_export
from vgnb.data.images import open_images
from vgnb.data.shapes import Shapes
from vgnb.generators.raster import RasterConfig, RasterTransformer
from vgnb.jobs import open_masks
from vgnb.saved import save_model

def photos(folder):
    for item in (Shapes(n=6, size=16)[i] for i in range(6)):
        place = folder / ("a" if item.id % 2 else "b")
        place.mkdir(parents=True, exist_ok=True)
        item.image.save(place / f"{item.id}.png")
    return folder


def test_an_export_lies_outside_its_source(tmp_path):
    source = open_images(photos(tmp_path / "photos"))
    for out in (tmp_path / "photos" / "again", tmp_path / "photos" / "deep" / "again.tar"):
        with pytest.raises(BadInput, match="out=.*must lie outside"): plan_export(source, out)
    plan_export(source, tmp_path / "photos-again")


@pytest.mark.parametrize("name", ["x.tar.gz", "x.zip", "x.tgz", "x.npz"])
def test_a_packed_name_is_no_folder(tmp_path, name):
    with pytest.raises(BadInput, match="must be a folder, NAME.tar or wds"): plan_export(Shapes(n=20), tmp_path / name)


def test_a_shard_is_not_taken_for_a_tar_of_one_class(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for i in range(3):
            file = io.BytesIO()
            Shapes(n=3, size=16)[i].image.save(file, "PNG")
            for name, data in ((f"{i}.png", file.getvalue()), (f"{i}.cls", str(i).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    assert any("labels of a shard, which are read as wds://" in note for note in open_images(tmp_path / "s.tar").notes)
    assert [int(v) for v in open_images(f"wds://{tmp_path}").labels] == [0, 1, 2]


def test_a_mask_on_a_transparent_layer_is_refused(tmp_path):
    brush = np.zeros((8, 8, 4), np.uint8)
    brush[..., :3] = 255
    brush[:, 4:, 3] = 255
    (tmp_path / "masks").mkdir()
    for place in (tmp_path / "m.png", tmp_path / "masks" / "m.png"):
        Image.fromarray(brush).save(place)
    for where in (tmp_path / "m.png", tmp_path / "masks"):
        with pytest.raises(BadInput, match="mask='m.png': must be opaque"): open_masks(where)
    brush[..., 3] = 255
    brush[:, :4, :3] = 0
    Image.fromarray(brush).save(tmp_path / "m.png")
    assert open_masks(tmp_path / "m.png").mean() == 0.5


@pytest.mark.parametrize("words, message", [
    (["tiny-randar", "--generator", "elsewhere"], "generator='elsewhere': can't be combined with the pipeline"),
    (["tiny-randar", "--sheet", "sheet.xyz"], "sheet=.*must end in .png"),
])
def test_options_of_sample_that_would_be_ignored_or_fail_late(words, message, tmp_path, monkeypatch):
    sample = script("sample", monkeypatch)
    with pytest.raises(BadInput, match=message): sample.main([*words, "--out", str(tmp_path / "a.npz"), "--dry-run"])


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_a_saved_model_is_as_readable_as_other_files(tmp_path, monkeypatch, mask):
    monkeypatch.setattr("vgnb.saved._MASK", mask)      # read at import, once for all threads
    config = RasterConfig(1, 32, 1, vocab=8, grid=(2, 2), classes=2)
    before = os.umask(mask)
    try: save_model(tmp_path / "model", RasterTransformer(config), config)
    finally: os.umask(before)
    assert {f.stat().st_mode & 0o777 for f in (tmp_path / "model").iterdir()} == {0o666 & ~mask}
