"scripts/prepare.py: what names need, files from a server of this process, and what it says where there is none."
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.run_scripts import main_of
from tests.test_downloads import CONTENT, HASH, Handler, left, server  # noqa: F401  (a fixture)
from vgnb import downloads
from vgnb.cli import run_main
from vgnb.core import BadInput
from vgnb.downloads import Remote, remotes
from vgnb.preparation import IMAGENET_NAME, files_for, needed_by, sanity
from vgnb.tokenizers.lpips import LPIPS
from vgnb.training.recipes import recipes
from vgnb.zoo import checkpoints

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def prepare(monkeypatch, tmp_path):
    "Runs the script with these words -> its exit code."
    main = main_of("prepare.py")
    monkeypatch.setenv("VGNB_PATHS_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(downloads, "_PAUSE", 0.001)
    return lambda *words: run_main(main, list(words))


@pytest.mark.parametrize("name, found", [
    ("RandAR-L", ["RandAR-L", "VQ-16"]), ("VQ-8", ["VQ-8"]), ("lpips", ["lpips"]),
    ("vq-16", ["lpips", IMAGENET_NAME]), ("dar-tokenizer", ["lpips", "dinov2", IMAGENET_NAME]),
    ("randar-xl-maskgit", ["maskgit-vqgan-f16", IMAGENET_NAME]), ("gpt-7b", ["VQ-16", IMAGENET_NAME]),
    ("pgm-maskgit", ["VQ-8", IMAGENET_NAME]), ("iar2-xl-fsdp", ["iar2-VQ-16", IMAGENET_NAME]),
    ("gpt-xl-t2i", ["VQ-16-t2i"]), ("shapes-generator", []), ("cifar-dar-tokenizer", []),
    ("vqkd/clip_8192_imagenet_ddp", ["clip", IMAGENET_NAME])])
def test_what_a_name_needs(name, found):
    assert needed_by(name) == found


def test_every_recipe_and_every_name_is_answered():
    for name in recipes: assert set(needed_by(name)) <= {*checkpoints(), *remotes, IMAGENET_NAME}, name
    files = [file for part in files_for([*checkpoints(), *remotes, *recipes]).values() for file in part]
    assert len({file.file for file in files}) == len(files), "no two files have one place"
    assert all(file.address.startswith("https://") for file in files)
    with pytest.raises(BadInput, match="name='randar-xs'"): needed_by("randar-xs")


def test_files_arrive_and_the_same_command_finds_them(server, prepare, monkeypatch, tmp_path, capsys):  # noqa: F811
    for name in ("dinov2", "mae"):
        file = remotes[name][0]
        monkeypatch.setitem(remotes, name, (Remote(file.file, url=f"{server}/{name}", hash=f"sha256:{HASH}"),))
    assert prepare("dinov2", "mae", "--jobs", "2") == 0 == prepare("mae", "dinov2")
    assert left(tmp_path / "weights") == ["dinov2_vitb14_pretrain.pth", "mae_pretrain_vit_base.pth"]
    assert len(Handler.asked) == 2 and "mae: " in capsys.readouterr().out
    assert prepare("mae", "--to", str(tmp_path / "b"), "--check") == 2, "768,000 bytes of no network"
    assert "mae: does not work: weights=" in capsys.readouterr().err


def test_without_a_network_it_says_what_to_put_where(prepare, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(remotes, "mae", (Remote("mae.pth", url="http://127.0.0.1:9/mae.pth", page="https://m.org"),))
    assert prepare("RandAR-L", "mae", "vqgan_openimage_f8_256") == 2
    said, place = capsys.readouterr().err, tmp_path / "weights"
    for line in ("VQ-16: by hand: vq_ds16_c2i.pt of https://huggingface.co/FoundationVision/LlamaGen -> "
                 f"{place}/vq_ds16_c2i.pt", f"mae: by hand: mae.pth of https://m.org -> {place}/mae.pth",
                 "by hand: model.ckpt of https://ommer-lab.com/files/latent-diffusion/vq-f8-n256.zip -> "
                 f"{place}/vqgan_openimage_f8_256/model.ckpt (out of the archive)"):
        assert line in said
    assert left(tmp_path) == []


def test_names_options_and_tokens(prepare, capsys):
    assert prepare() == 2 and "--list" in capsys.readouterr().err
    assert prepare("RandAR-XS") == 2 and "RandAR-XS" in capsys.readouterr().err
    assert prepare("rar-b", "--dry-run") == 0
    assert "maskgit-vqgan-imagenet-f16-256.bin of https://huggingface.co/fun-research/TiTok" in capsys.readouterr().out
    with pytest.raises(SystemExit): prepare("lpips", "--token", "hf_x")
    assert "token" in capsys.readouterr().err.lower() and prepare("lpips", "--jobs", "0") == 2


def test_imagenet_is_said_to_be_gated(prepare, monkeypatch, capsys):
    import datasets
    def gated(*args, **kw): raise datasets.exceptions.DatasetNotFoundError("Dataset 'x' is a gated dataset on the Hub.")
    monkeypatch.setattr(datasets, "load_dataset", gated)
    assert prepare(IMAGENET_NAME) == 2
    assert "accept its terms on its page, then log in" in capsys.readouterr().err


def test_what_was_fetched_is_tried(tmp_path):
    state = LPIPS().state_dict()
    trunk = {k.replace("vgg.", "features."): v for k, v in state.items() if k.startswith("vgg.")}
    torch.save(trunk, tmp_path / "vgg16-397923af.pth")
    for sign in (1, 0):
        heads = {f"lin{k}.model.1.weight": sign * state[f"heads.{k}"].abs()[..., None, None] for k in range(5)}
        torch.save(heads, tmp_path / "vgg.pth")
        if sign: sanity("lpips", tmp_path)
        else:
            with pytest.raises(BadInput, match="finds a picture unlike itself, or like another"):
                sanity("lpips", tmp_path)


def test_a_killed_command_goes_on(server, monkeypatch, tmp_path):  # noqa: F811
    "The process dies while bytes arrive; the next one asks for the rest."
    Handler.cuts = [400_000]
    program = ("import sys; from vgnb import downloads as d; "
               "r = d.Remote('rows.bin', url=sys.argv[1], hash=sys.argv[2]); "
               "d._PAUSE = 60; d.fetch(r, sys.argv[3])")
    command = [sys.executable, "-c", program, f"{server}/rows", f"sha256:{HASH}", str(tmp_path)]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)})
    part = tmp_path / "rows.bin.part"
    end = time.monotonic() + 120
    while not (part.exists() and part.stat().st_size == 400_000) and time.monotonic() < end: time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert left(tmp_path) == [".rows.bin.lock", "rows.bin.part", "rows.bin.part.tag"]
    place = downloads.fetch(Remote("rows.bin", url=f"{server}/rows", hash=f"sha256:{HASH}"), tmp_path)
    assert hashlib.sha256(place.read_bytes()).hexdigest() == HASH and len(CONTENT) == place.stat().st_size
    assert Handler.asked[-1][1] == "bytes=400000-" and left(tmp_path) == ["rows.bin"]
