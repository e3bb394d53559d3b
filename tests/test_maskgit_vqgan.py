"MaskGIT-VQGAN: what its page can't hold. Spans through every consumer, training, files."
import importlib.util
import io
import pickle
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vgnb.core import BadInput, BadItem, Mismatch, Missing
from vgnb.data.codes import CodeStore
from vgnb.data.images import open_images
from vgnb.data.layouts import store_from
from vgnb.data.shapes import Shapes
from vgnb.data.transforms import Augment, to_tensor
from vgnb.draws import At, Keyed
from vgnb.families import recognised, the_one
from vgnb.generators.raster import RasterConfig, RasterTransformer
from vgnb.kinds import changed
from vgnb.pipeline import Pipeline
from vgnb.saved import load_model
from vgnb.tokenizers.maskgit_vqgan import MaskGITVQGAN, MaskGITVQGANConfig, maskgit_vqgan, soften
from vgnb.tokenizers.pictures import codes_of
from vgnb.tokenizers.quantizers import Revive, VectorConfig
from vgnb.tokenizers.vqgan import VQGAN, VQGANConfig
from vgnb.training.commands import TrainOptions, build_tokenizer, open_codes, train
from vgnb.training.extract import extract_codes
from vgnb.training.recipes import Optim, Rate, recipe
from vgnb.training.run_folder import Run
from vgnb.training.trackers import read_log
from vgnb.training.trainer import Trainer
from vgnb.views.desk import reconstruct
from vgnb.zoo import build, export_published, load_published, published

CODES = VectorConfig(32, 8, l2=False, usage=0)
TINY = MaskGITVQGANConfig(CODES, width=16, mults=(1, 2, 2), depth=1, groups=8)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return MaskGITVQGAN(TINY).eval()


@pytest.fixture(scope="module")
def pictures(): return Shapes(6, 32).batch(range(6))[0]


def test_everyone_who_calls_it_speaks_its_span(model, pictures):
    "Pipeline, extraction, a widget: each gives the codes and bytes that [0, 1] by hand gives."
    by_hand = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    codes = model.encode(by_hand)
    generator = RasterTransformer(RasterConfig(layers=1, dim=16, heads=2, ffn_multiple=8, vocab=32, grid=(8, 8),
                                               classes=10))
    pipe = Pipeline(model, generator)
    pixels = (model.decode(codes) * 255 + 0.5).clamp(0, 255)
    bytes_ = pixels.byte().permute(0, 2, 3, 1).numpy()

    def off(images): return np.abs(images.astype(int) - bytes_).max()
    assert torch.equal(pipe.encode(pictures)[..., 0], codes.flatten(1))
    assert off(pipe.decode(pipe.encode(pictures))) <= 1
    assert torch.equal(codes_of(model, to_tensor(pictures))[..., 0], codes.flatten(1))
    assert off(reconstruct(model, pictures)) <= 1


def test_enter_and_leave_are_inverse_and_free_where_spans_agree(model):
    x = torch.rand(2, 3, 4, 4) * 2 - 1
    torch.testing.assert_close(model.leave(model.enter(x)), x)
    assert model.enter(x).min() >= 0 and model.enter(x).max() <= 1
    vq = VQGAN(VQGANConfig(VectorConfig(8), width=16, mults=(1, 2), attention=(), z=8, groups=8))
    assert vq.enter(x) is x and vq.leave(x) is x


@pytest.mark.full
def test_training_learns_on_its_span(tmp_path):
    "Through the recipe family, with k-means and revival: the loss falls, the model comes back from its folder."
    r = recipe("shapes-tokenizer")
    model = changed(TINY, quantizer=dict(usage=1024, updates=(Revive(10),)))
    r = replace(r, model=model, data="shapes://?n=200&size=32", steps=60, batch=16, free_steps=20, precision="fp32",
                ema=0.9, optim=Optim("adamw", lr=4e-3), rate=Rate())
    assert train(TrainOptions(r, tmp_path / "run", run=Run(log_every=5, progress=False))).finished
    log = read_log(tmp_path / "run" / "log.jsonl")
    assert log[-1]["l2"] < 0.6 * log[0]["l2"] and log[-1]["usage"] > 0.2
    back = load_model(tmp_path / "run" / "model")
    assert isinstance(back, MaskGITVQGAN) and back.config == r.model
    exported = export_published(back, tmp_path / "flat.safetensors")
    assert not any(k.startswith("quantizer.") for k in exported)


@pytest.mark.full
def test_training_through_the_discriminator_is_resumed_to_the_bit(tmp_path):
    r = recipe("maskgit-vqgan")
    model = changed(TINY, quantizer=dict(usage=256, updates=(Revive(4),)))
    r = replace(r, model=model, data="shapes://?n=64&size=32", steps=8, batch=8, precision="fp32",
                augment=Augment("center", 32), loss=replace(r.loss, lpips=0.0, start=2))

    run = Run(progress=False, save_every=3, tracker="none")
    def options(where): return TrainOptions(r, tmp_path / where, run=run)
    train(options("whole"))
    Trainer(*build_tokenizer(r, tmp_path), r, tmp_path / "parts", run).fit(5)
    train(options("parts"))
    whole, parts = ((tmp_path / d / "model" / "model.safetensors").read_bytes() for d in ("whole", "parts"))
    assert whole == parts


def test_published_files(tmp_path):
    "Recognised from its names, loaded, exported, round; a block that keeps its input has other shapes."
    torch.manual_seed(1)
    made = MaskGITVQGAN(TINY)
    file = tmp_path / "published.safetensors"
    export_published(made, file)
    back = load_published(file, groups=8)
    assert back.config == made.config
    assert the_one(recognised(export_published(back))).spec["num_resolutions"] == 3
    assert all(torch.equal(v, back.state_dict()[k]) for k, v in made.state_dict().items())
    with pytest.raises(Mismatch, match="of another shape"): load_published(file, groups=8, shortcut="input")


def test_the_published_size():
    with torch.device("meta"): model, table = build("maskgit-vqgan-f16")
    assert sum(p.numel() for p in model.parameters()) == 54_515_587
    assert len(table.export(model.state_dict())) == 168
    file, = published()["maskgit-vqgan-f16"][1].files
    assert str(file) == "fun-research/TiTok: maskgit-vqgan-imagenet-f16-256.bin"


def test_soft_codes_follow_their_probabilities():
    "Drawn codes have the frequencies of the softmax, and are the same for the same sample in any batch."
    torch.manual_seed(0)
    z, table = torch.randn(1, 4, 1, 1).expand(4000, 4, 1, 1), torch.randn(6, 4)
    p, codes = soften(z, table, 2.0, Keyed(0), At(torch.arange(4000)))
    distances = torch.cdist(z[:1, :, 0, 0], table)[0].square()
    torch.testing.assert_close(p[0, 0, 0], (-distances / 2).softmax(0))
    torch.testing.assert_close(codes.flatten().bincount(minlength=6) / 4000, p[0, 0, 0], atol=0.03, rtol=0)
    few = soften(z[:7], table, 2.0, Keyed(0), At(torch.arange(100, 107)))[1]
    assert torch.equal(few, codes[100:107])


def test_compat_trades_the_weights_of_the_two_terms(model):
    theirs = maskgit_vqgan(TINY, compat="upstream")
    theirs.load_state_dict(model.state_dict())
    h = torch.randn(2, 8, 4, 4)
    ours, quirky = (m.quantizer(h.clone().requires_grad_()).losses for m in (model, theirs))
    torch.testing.assert_close(ours["commit"], quirky["vq"])
    torch.testing.assert_close(ours["vq"], quirky["commit"])


def npy(value):
    "The bytes of a .npy file."
    with io.BytesIO() as f:
        np.save(f, value)
        return f.getvalue()


def png(image):
    "The bytes of a PNG."
    with io.BytesIO() as f:
        image.save(f, "PNG")
        return f.getvalue()


def archive(path, items):
    "A tar of (name, bytes)."
    with tarfile.open(path, "w") as tar:
        for name, data in items:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_archives_are_read_where_they_lie(tmp_path):
    "The authors' layout with and without ./, other files left alone; also through the training script's address."
    codes = torch.randint(1024, (6, 2, 16), generator=torch.Generator().manual_seed(0)).numpy()
    order = (4, 1, 0, 5, 3, 2)
    path = tmp_path / "imagenet-maskgit-adm-64_codes.tar"
    files = [(f"./imagenet-maskgit-adm-64_codes/{i % 3}/{i}.npy", npy(codes[i])) for i in order]
    others = [("imagenet-maskgit-adm-64_codes/README.txt", b"hello"),
              ("imagenet-maskgit-adm-64_codes/0/x.npy", b"no number")]
    archive(path, files + others)

    store = store_from("randar", path, classes=3)
    assert store.vocab == (1024,) and store.ids.tolist() == [0, 1, 2, 3, 4, 5]
    assert store.grid == (4, 4) and store.augs == ("row 0", "row 1")
    for i in range(6):
        found, label = store[i][:2]
        assert torch.equal(found[..., 0], torch.from_numpy(codes[i])) and label == i % 3
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name], "nothing is unpacked"
    assert open_codes(f"randar://{path}?vocab=2048&classes=4").vocab == (2048,)
    again = pickle.loads(pickle.dumps(store))
    assert torch.equal(again.batch([3], 1)[0], store.batch([3], 1)[0]), "workers read it too"


def test_damaged_archives_are_named(tmp_path):
    codes = np.zeros((2, 16), np.int64)
    path = tmp_path / "imagenet-maskgit-adm-64_codes.tar"
    folder = "./imagenet-maskgit-adm-64_codes"
    archive(path, [(f"{folder}/0/0.npy", npy(codes)), (f"{folder}/1/1.npy", b"\x93NUMPY broken")])
    with pytest.raises(BadItem, match="1/1.npy"): store_from("randar", path).batch([0, 1])
    for wrong in ("?vocab=many", "?grid=4"):
        with pytest.raises(BadInput): open_codes(f"randar://{path}{wrong}")

    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(BadInput, match="whole, uncompressed tar"): store_from("randar", path)
    with pytest.raises(Missing, match="no such folder or tar"): store_from("randar", tmp_path / "none.tar")
    archive(path, [("readme.txt", b"x")])
    with pytest.raises(Missing, match="holds no <label>/<index>.npy"): store_from("randar", path)


def pictures_in_a_tar(path, folder, labels):
    "Drawings of shapes in the ImageNet layout."
    archive(path, [(f"{folder}/{label}/im{i}.png", png(Shapes(3, 40)[i].image)) for i, label in enumerate(labels)])


def test_extraction_from_a_tar(tmp_path, model):
    "Pictures in the ImageNet layout inside a tar, to ten views each."
    pictures_in_a_tar(tmp_path / "train.tar", "train", ("n02", "n01", "n02"))
    crops = Augment("ten-crop", 32)
    store = extract_codes(model, open_images(tmp_path / "train.tar"), tmp_path / "codes", crops, progress=False)
    assert store.vocab == (32,) and len(store.augs) == 10 and store.classes == ("n01", "n02")
    assert [store[i][1] for i in range(3)] == [0, 1, 1], "in the order of the folder that the tar unpacks to"
    views = torch.stack([to_tensor(v) for v in crops.views(Shapes(3, 40)[2].image)])
    assert torch.equal(store[2][0][..., 0], model.encode(model.enter(views)).flatten(1))


def test_the_script_takes_a_published_file(tmp_path, monkeypatch):
    "A flat pickled state dict, as TiTok's .bin is, and pictures in a tar: codes of the published size's shape."
    torch.manual_seed(2)
    made = MaskGITVQGAN(MaskGITVQGANConfig(CODES, width=32, mults=(1, 2, 2), depth=1)).eval()
    torch.save(export_published(made), tmp_path / "maskgit.bin")
    pictures_in_a_tar(tmp_path / "val.tar", "val", ("n1", "n2"))

    script = Path(__file__).resolve().parents[1] / "scripts" / "extract_codes.py"
    spec = importlib.util.spec_from_file_location("extract_codes", script)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "extract_codes", module)
    spec.loader.exec_module(module)
    words = ["--tokenizer", tmp_path / "maskgit.bin", "--data", tmp_path / "val.tar", "--out", tmp_path / "codes",
             "--size", 32, "--flip"]
    assert module.main([str(w) for w in words]) == 0

    store = CodeStore(tmp_path / "codes")
    x = made.enter(to_tensor(Augment("center", 32).views(Shapes(3, 40)[1].image)[0]))
    assert store.vocab == (32,) and store.classes == ("n1", "n2")
    assert torch.equal(store[1][0][0, :, 0], made.encode(x[None]).flatten())
