"Published files by name: from the folder of weights, from the hub, and what is said where neither has them."
import html
import http.server
import threading
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch

import vgnb
from vgnb import families, shipped, zoo
from vgnb.core import BadInput, Mismatch, Missing
from vgnb.families import Checkpoint, Published
from vgnb.generators.masked import MaskedConfig, MaskedTransformer, masked_presets
from vgnb.generators.raster import LLAMAGEN_GPT, RasterConfig, RasterTransformer
from vgnb.layers import ffn_width
from vgnb.model_cards import stated
from vgnb.pipeline import saved_levels, saved_sampling
from vgnb.sampling.guidance import CFG
from vgnb.saved import save_safetensors
from vgnb.tokenizers.quantizers import UsageMeter, VectorConfig
from vgnb.tokenizers.vqgan import LLAMAGEN_VQ, VQGAN, VQGANConfig
from vgnb.training.recipes import recipe
from vgnb.training.start import begin_with
from vgnb.training.tasks import Task

GPT = RasterConfig(2, 64, 2, ffn_multiple=32, vocab=32, grid=(2, 2), classes=5)
VQ = VQGANConfig(replace(VQGANConfig().quantizer, codebook=32), width=32, z=32)
NAMES = ("Toy-VQ", "Toy-GPT")


def same(a, b):
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.fixture
def toys(monkeypatch, tmp_path):
    "Two small published models of a system of their own, and their files in a folder that is not that of weights."
    monkeypatch.setenv("VGNB_PATHS_WEIGHTS", str(tmp_path / "weights"))
    families.families()              # all rooms have registered theirs before the list is copied
    monkeypatch.setattr(families, "_FAMILIES", dict(families._FAMILIES))
    gpt_spec = LLAMAGEN_GPT.write(GPT)
    gpt_file = Checkpoint("toy_gpt.pt", hub="toys/rows", codes="Toy-VQ", sampling={"guidance": 1.5},
                          spec={"block_size": 4})
    gpt = replace(LLAMAGEN_GPT, system="toys", also=(), published=(
        Published("Toy-GPT", gpt_spec | {"block_size": 16}, (gpt_file,)),))
    vq = replace(LLAMAGEN_VQ, system="toys", also=(), read=lambda spec, **kw: VQ, published=(
        Published("Toy-VQ", {"model": "toy"}, (Checkpoint("toy_vq.pt", hub="toys/rows"),)),))
    for family in (gpt, vq): families._FAMILIES["toys", family.kind] = family
    models = {"toy_vq.pt": VQGAN(VQ), "toy_gpt.pt": RasterTransformer(GPT, seed=2)}
    (tmp_path / "published").mkdir()
    for name, model in models.items():
        entries = zoo.export_published(model, system="toys")
        torch.save({"model": entries}, tmp_path / "published" / name)
    return tmp_path, models


def test_a_shipped_name_that_is_nearly_right_is_suggested():
    with pytest.raises(Missing, match="did you mean tiny-maskgit"): vgnb.from_pretrained("tiny-maskgti")


def test_a_name_loads_from_the_folder_of_weights(toys):
    home, models = toys
    (home / "published").rename(home / "weights")
    assert same(zoo.load_published("Toy-GPT"), models["toy_gpt.pt"])
    assert same(shipped.open_part("Toy-VQ", "tokenizer"), models["toy_vq.pt"])
    pipe = vgnb.from_pretrained("Toy-GPT")
    assert same(pipe.generator, models["toy_gpt.pt"]) and same(pipe.tokenizer, models["toy_vq.pt"])
    assert pipe.where == "Toy-GPT" and pipe.sampling.guidance == CFG(1.5) and pipe.grid.shape == (2, 2)
    assert pipe(3).shape == (1, 32, 32, 3)
    again = vgnb.from_pretrained(pipe.save_pretrained(home / "again"))
    assert "huggingface.co/toys/rows" in (home / "again" / "README.md").read_text()
    for part, name in ((again.generator, "toy_gpt.pt"), (again.tokenizer, "toy_vq.pt")):
        entries = torch.load(home / "weights" / name, weights_only=True)["model"]
        back = zoo.export_published(part, system="toys")
        assert back.keys() == entries.keys() and all(torch.equal(back[k], entries[k]) for k in entries), "to the bit"
    assert saved_sampling("Toy-GPT") == pipe.sampling and saved_levels("Toy-GPT") == 1
    with pytest.raises(Mismatch, match="where='Toy-VQ': names a published tokenizer: .*load_published"):
        vgnb.from_pretrained("Toy-VQ")
    with pytest.raises(Mismatch, match="generator=Toy-VQ: holds a vqgan, which is no generator"):
        shipped.open_part("Toy-VQ", "generator")


def test_a_file_of_that_name_comes_first(toys, monkeypatch):
    home, models = toys
    monkeypatch.chdir(home)
    Path("Toy-GPT").mkdir()
    assert zoo.checkpoint("Toy-GPT") is None and zoo.checkpoint("Toy-VQ").file.original == "toy_vq.pt"
    with pytest.raises(Missing, match="has no pipeline.json"): vgnb.from_pretrained("Toy-GPT")


def test_offline_one_line_says_what_to_put_where(toys):
    home, _ = toys
    place = home / "weights" / "toy_vq.pt"
    with pytest.raises(Missing) as said: zoo.load_published("Toy-VQ")
    assert "name='Toy-VQ': its file is not here: toy_vq.pt of https://huggingface.co/toys/rows ->" in str(said.value)
    assert f"-> {place}; " in str(said.value) and "scripts/prepare.py Toy-VQ" in str(said.value)
    with pytest.raises(BadInput, match="GPT-B-256"): zoo.checkpoint_file("GPT-B-257")


def rewritten(path, change):
    "The entries of a published file, changed and written again."
    content = torch.load(path, weights_only=True)
    torch.save({"model": change(content["model"])}, path)


def test_names_with_something_in_front(toys, capsys):
    home, models = toys
    file = home / "published" / "toy_gpt.pt"
    rewritten(file, lambda m: {f"module.net.{k}": v for k, v in m.items()} | {"ema.decay": torch.ones(1)})
    (home / "published").rename(home / "weights")
    file, how = home / "weights" / "toy_gpt.pt", dict(spec=LLAMAGEN_GPT.write(GPT), system="toys")
    with pytest.raises(Mismatch, match=r"unexpected.*entries begin with net\. \(\d+\), ema\. \(1\)"):
        zoo.load_published(file, **how)
    for prefix in ("net.", "module.net."):
        assert same(zoo.load_published(file, prefix=prefix, **how), models["toy_gpt.pt"])
    assert capsys.readouterr().err.count("entries: ema.decay") == 2
    assert same(shipped.open_part("Toy-GPT", "generator", prefix="net."), models["toy_gpt.pt"])
    wrong = {"model.": r"begins no entry of .*toy_gpt.pt; they begin with net\. ", "net": "must end with the dot: net."}
    for prefix, words in wrong.items():
        with pytest.raises(BadInput, match=f"prefix='{prefix}': {words}"):
            zoo.load_published(file, prefix=prefix, **how)
    with pytest.raises(BadInput, match="generator_prefix='net.': only goes with a published file"):
        shipped.open_part("tiny-randar", "generator", prefix="net.")


def test_what_fits_is_taken_and_the_rest_is_told(toys, capsys):
    home, models = toys
    def change(m):
        m = m | {"extra": torch.ones(2), "tok_embeddings.weight": m["tok_embeddings.weight"][:5]}
        return {k: v for k, v in m.items() if k not in ("norm.weight", "layers.0.feed_forward.w1.weight")}
    rewritten(home / "published" / "toy_gpt.pt", change)
    (home / "published").rename(home / "weights")
    with pytest.raises(Mismatch, match="2 missing .*; 1 unexpected .*; 1 of another shape"):
        zoo.load_published("Toy-GPT")
    pipe = vgnb.from_pretrained("Toy-GPT", strict=False)
    fit, ours, theirs = pipe.fits["generator"], pipe.generator.state_dict(), models["toy_gpt.pt"].state_dict()
    assert pipe.fits["tokenizer"].whole and same(pipe.tokenizer, models["toy_vq.pt"])
    assert set(fit.loaded) | set(fit.missing) | fit.misshapen.keys() == ours.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in fit.loaded)
    assert not any(torch.equal(ours[k], theirs[k]) for k in fit.misshapen)
    assert "norm.weight" in fit.missing and "extra" in fit.unexpected
    assert "(5, 64) instead of (32, 64)" in " ".join(fit.misshapen.values())
    said = capsys.readouterr().err
    assert said.count("loaded in part: ") == 1 and "extra" in said and "norm.weight" in said
    assert f"only {fit.share} entries loaded" in repr(pipe) and "(5, 64)" in fit._repr_html_()

    pipe.save_pretrained(home / "saved")
    capsys.readouterr()
    whole = vgnb.from_pretrained(home / "saved", strict=False)
    assert all(f.whole for f in whole.fits.values()) and "in part" not in capsys.readouterr().err
    assert not vgnb.from_pretrained(home / "saved").fits
    with pytest.raises(BadInput, match="strict='no': must be true or false"): zoo.load_published("Toy-GPT", strict="no")


def test_a_model_in_part_is_not_the_one_that_was_measured(toys):
    home, _ = toys
    rewritten(home / "published" / "toy_gpt.pt", lambda m: {k: v for k, v in m.items() if k != "norm.weight"})
    (home / "published").rename(home / "weights")
    pipe = vgnb.from_pretrained("Toy-GPT", strict=False)
    pipe.generator.card["about"] |= {"result": "FID 1.5", "table": [{"fid": 1.5}]}
    pipe.tokenizer.card["about"] |= {"result": "rFID 2.5"}
    pipe.save_pretrained(home / "saved")
    again, page = vgnb.from_pretrained(home / "saved"), (home / "saved" / "README.md").read_text()
    facts, share = stated(again.generator), pipe.fits["generator"].share
    assert facts["made"] == f"its authors; loaded in part: {share} entries" and "huggingface.co" in facts["page"]
    assert not facts.keys() & {"result", "table"} and "FID 1.5" not in page
    assert stated(again.tokenizer)["result"] == "rFID 2.5" and "in part" not in stated(again.tokenizer)["made"]


def test_a_meter_beside_a_fused_entry_that_lacks_a_third(toys, capsys):
    home, models = toys
    assert any(isinstance(m, UsageMeter) for m in models["toy_vq.pt"].modules())
    lost = "encoder.mid.1.k.weight"
    rewritten(home / "published" / "toy_vq.pt", lambda m: {k: v for k, v in m.items() if k != lost})
    (home / "published").rename(home / "weights")
    with pytest.raises(Mismatch, match="needs all of"): zoo.load_published("Toy-VQ")
    part = zoo.load_published("Toy-VQ", strict=False)
    ours, theirs = part.state_dict(), models["toy_vq.pt"].state_dict()
    assert part.fit.missing == ("encoder.middle.1.qkv.weight",) and len(part.fit.loaded) == len(ours) - 1
    assert part.fit.unexpected.keys() == {"encoder.mid.1.q.weight", "encoder.mid.1.v.weight"}
    assert all(torch.equal(ours[k], theirs[k]) for k in part.fit.loaded) and "in part" in capsys.readouterr().err


def test_where_nothing_fits_nothing_is_loaded(toys):
    home, _ = toys
    rewritten(home / "published" / "toy_gpt.pt", lambda m: {f"a.b.{k}": v for k, v in m.items()})
    (home / "published").rename(home / "weights")
    with pytest.raises(Mismatch, match=r"nothing that fits .*entries begin with a\.b\. \("):
        zoo.load_published("Toy-GPT", strict=False)


class Hub(http.server.BaseHTTPRequestHandler):
    "As much of the hub as one file needs."
    folder, asked = None, []
    def log_message(self, *args): pass
    def do_HEAD(self): self.answer(False)
    def do_GET(self): self.answer(True)
    def answer(self, body:bool):
        self.asked.append((self.command, self.path))
        file = self.folder / self.path.rsplit("/", 1)[-1]
        if "/resolve/main/" not in self.path or not file.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
            return
        data = file.read_bytes()
        self.send_response(200)
        for name, value in {"ETag": f'"{len(data):040x}"', "X-Repo-Commit": "1" * 40}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body: self.wfile.write(data)


@pytest.fixture
def hub(toys, monkeypatch):
    "The toys' files on a hub that is this process."
    home, models = toys
    Hub.folder, Hub.asked = home / "published", []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home / "cache"))
    yield home, models
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_name_loads_from_the_hub(hub, monkeypatch):
    home, models = hub
    pipe = vgnb.from_pretrained("Toy-GPT")
    assert same(pipe.generator, models["toy_gpt.pt"]) and same(pipe.tokenizer, models["toy_vq.pt"])
    assert {path for _, path in Hub.asked} == {f"/toys/rows/resolve/main/{name}" for name in models}
    assert not (home / "weights").exists(), "the hub keeps its own copies"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert same(zoo.load_published("Toy-GPT"), models["toy_gpt.pt"]), "from the hub's own copies"


def test_a_file_that_left_the_hub(hub):
    home, _ = hub
    (home / "published" / "toy_vq.pt").unlink()
    with pytest.raises(Missing, match="is not on the hub"): zoo.load_published("Toy-VQ")


def settled(model) -> dict:
    "The fields of a model that its weights depend on: of a configuration, or of a recipe with options behind it."
    if isinstance(model, str):
        word, *options = model.split(" --model.")
        model = recipe(word).model
        for name, *values in map(str.split, options):
            value = tuple(map(int, values)) if values[0].isdigit() else values[0]
            model = replace(model, **{name.replace("-", "_"): value})
    if isinstance(model, MaskedConfig): model = replace(model, ffn=model.ffn or ffn_width(model.dim))
    if isinstance(getattr(model, "quantizer", None), VectorConfig):    # which codes a training watches and revives
        model = replace(model, quantizer=replace(model.quantizer, usage=0, updates=()))
    return {k: v for k, v in vars(model).items() if k != "recompute"}


def test_the_stated_is_consistent():
    "Names, tokenizers, recipes and samplers of all published files fit one another."
    known = zoo.checkpoints()
    assert len(known) == 52 == sum(len(p.files) for _, p in zoo.published().values()), "each has a name of its own"
    for name, k in known.items():
        assert k.file.hub or k.file.page or k.file.url, name
        assert bool(k.file.codes) == (k.family.role == "generator"), name
        if k.file.size: assert k.system == "rar", "the only sizes that a source states"
        assert not k.file.hash, "no source states one"
        if k.file.codes:
            codes = known[k.file.codes].config
            vocab = getattr(codes.quantizer, "codebook", None) or (codes.quantizer.semantic, codes.quantizer.detail)
            assert k.config.vocab == vocab, name
        if k.file.recipe: assert settled(k.file.recipe) == settled(k.config), name


def test_the_table_tells_what_is_stated_and_what_is_not():
    table = zoo.table()
    assert len(table) == 52 and "RAR-XL" in table and table["RAR-XL"].system == "rar"
    row = next(row for row in table.rows() if row["name"] == "RAR-XL")
    assert (row["size"], row["licence"], row["codes"]) == ("3,822 MB", "Apache-2.0", "maskgit-vqgan-f16")
    assert "FID 1.50" in row["result"] and "Ramped" in row["sampler"] and "temperature=1.02" in row["sampler"]
    page = zoo.table(system="iar2")._repr_html_()
    assert page.count("<tr>") == 6 and page.count("not stated") >= 10 and "&lt;" not in page
    lines = str(table).splitlines()
    assert len(lines) == 52
    for line, row in zip(lines, table.rows(), strict=True):
        told = line.split(None, 3)                   # whatever their length, columns don't run into each other
        assert told == [row["name"], row["system"], row["role"], row["file"]]
    assert len({line.index(f" {row['system']} ") for line, row in zip(lines, table.rows())}) == 1, "a straight column"
    page = table._repr_html_()
    for row in table.rows():                         # what is cut is whole in a tooltip
        file = html.escape(row["file"])
        assert f">{file}</td>" in page or f'title="{file}"' in page
    assert str(zoo.Table({})) == "" and "no such file" in zoo.Table({})._repr_html_()
    assert set(zoo.table(role="tokenizer")) < set(table)
    assert {k.system for k in zoo.table("pgm").known.values()} == {"pgm"}
    with pytest.raises(BadInput, match="system='rarr'"): zoo.table("rarr")
    with pytest.raises(BadInput, match="role='painter'"): zoo.table(role="painter")


class Alone(Task):
    "A task of one module."
    def __init__(self, module): self.modules = {"generator": module}


def test_a_training_begins_with_a_file_whose_names_have_something_in_front(tmp_path):
    config, file = replace(masked_presets["tiny-shapes"], grid=(4, 4), ffn=512), tmp_path / "halton.safetensors"
    theirs, ours = MaskedTransformer(config, seed=1), MaskedTransformer(config, seed=2)
    state = {f"net.model.{k}": v.clone() for k, v in zoo.export_published(theirs, system="halton").items()}
    save_safetensors(file, state)
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    with pytest.raises(Mismatch, match='say prefix="net.model.", .* or --start-prefix to take it off'):
        begin_with(Alone(ours), file)
    with pytest.raises(Mismatch, match="prefix='other.': begins no entry"):
        begin_with(Alone(ours), file, prefix="other.")
    assert all(torch.equal(v, before[k]) for k, v in ours.state_dict().items())

    taken = begin_with(Alone(ours), file, prefix="net.model.")["generator"]
    assert not taken.skipped and same(ours, theirs)
