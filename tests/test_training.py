"Recipes, scripts and checkpoints: what a page can't hold."
import contextlib
import functools
import importlib.util
import io
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.run_scripts import Ran, Scripts
from tests.train_on_two import generator_recipe, tokenizer_recipe, write_codes
from vgnb.cli import run_main
from vgnb.core import BadInput, Mismatch, VgnbError
from vgnb.data.codes import CodeStore
from vgnb.data.shapes import Shapes
from vgnb.data.text import FeaturePlan, FeatureWriter
from vgnb.draws import Keyed
from vgnb.generators.generator import Cond, Loss
from vgnb.generators.masked import MaskedConfig
from vgnb.generators.partition import PartitionConfig
from vgnb.kinds import changed, from_json, kind_of, kinds, to_json
from vgnb.saved import load_model, load_tensors, save_model, save_tensors
from vgnb.tokenizers.fsq import FSQConfig
from vgnb.tokenizers.vqgan import VQGAN
from vgnb.training.checkpoints import read_checkpoint
from vgnb.training.commands import TrainOptions, build_generator, build_tokenizer, help_text, list_recipes, parse, train
from vgnb.training.feed import Data, Feed, stream
from vgnb.training.previews import teacher_forced
from vgnb.training.recipes import recipe, recipes
from vgnb.training.run_folder import Run
from vgnb.training.trackers import read_log
from vgnb.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
QUIET = Run(progress=False)
PARAMETERS = {                     # as published
    "gpt-b": 110_888_448,
    "gpt-l": 342_910_976,
    "gpt-xl": 774_699_520,
    "gpt-xxl": 1_410_972_672,
    "gpt-xxxl": 3_893_027_840,
    "gpt-1b": 1_199_616_000,
    "gpt-3b": 3_096_659_200,
    "gpt-7b": 6_614_589_440,
    "iar2-b": 143_111_616,
    "iar2-l": 408_220_160,
    "iar2-xl": 884_267_200,
    "iar2-xxl": 1_570_110_336,
    "vq-16": 71_883_403,
    "vq-8": 70_109_835,
    "maskgit-vqgan": 54_515_587}


def script(name, *words, code=0) -> Ran:
    ran = Scripts(ROOT)(f"{name}.py", *words)
    assert ran.code == code, ran.err[-2000:]
    return ran


def weights(run: Path) -> bytes: return (run / "model" / "model.safetensors").read_bytes()


@functools.cache
def listed(kind: str) -> str: return help_text(kind, "")


@pytest.mark.parametrize("name", sorted(recipes))
def test_recipe(name):
    "Builds (without memory), has the published size, survives JSON, explains itself, and names its command."
    r = recipe(name)
    with torch.device("meta"): model = kinds[kind_of(r.model)].build(r.model)
    if name in PARAMETERS: assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert r.name == name and from_json(json.loads(json.dumps(to_json(r)))) == r
    assert f"scripts/train_{r.kind}.py {name}" in recipes[name].__doc__ and name in listed(r.kind)


def test_all_of_the_papers_sizes_are_there():
    assert set(PARAMETERS) | {"gpt-xl-t2i", "shapes-tokenizer", "shapes-generator"} <= set(recipes)
    assert sum(name.startswith("taming") for name in recipes) == 4
    assert set(list_recipes("tokenizer")) | set(list_recipes("generator")) == set(recipes)


def test_dry_runs_touch_nothing(tmp_path):
    write_codes(tmp_path / "codes")
    words = "--out", tmp_path / "run", "--dry-run"
    generator = script("train_generator", "gpt-7b", "--data", tmp_path / "codes", *words).out
    tokenizer = script("train_tokenizer", "shapes-tokenizer", "--batch", 32, *words).out
    for words in ("100 examples", "epochs", "is new"): assert words in generator
    for words in ("611,352 parameters", "3,000 steps x 32", "60,000 examples"): assert words in tokenizer
    assert not (tmp_path / "run").exists()


WRONG = [   # script and arguments, words of the one line on stderr
    ("train_tokenizer vq-61", "recipe='vq-61': must be one of"),
    ("train_tokenizer gpt-b", "recipe='gpt-b': must be of kind tokenizer"),
    ("train_tokenizer vq-16 --data shapes:// --weights {tmp}", "no VGG-16 weights: put vgg16"),
    ("train_tokenizer shapes-tokenizer --data {tmp}/none", "no such folder"),
    ("train_tokenizer shapes-tokenizer --batch 0", "batch=0: must be an integer >= 1"),
    ("train_tokenizer shapes-tokenizer --optim.lr -1", "optim.lr=-1.0: must be a finite number >= 0"),
    ("train_tokenizer shapes-tokenizer --augment.size 30", "augment.size=30: must be a multiple of 8"),
    ("train_tokenizer shapes-tokenizer --accumulate 2", "accumulate=2: must be 1 while dead codes are revived"),
    ("train_tokenizer shapes-tokenizer --tracker jsonlines", "tracker='jsonlines': must be one of aim, clearml"),
    ("train_tokenizer shapes-tokenizer --fresh --resume", "fresh=True: can't be combined with --resume"),
    ("train_tokenizer shapes-tokenizer --resume", "has no checkpoint to resume from"),
    ("train_tokenizer {tmp}/none.json", "no such file"),
    ("train_generator shapes-generator", "data='': must be a folder of extracted codes"),
    ("train_generator shapes-generator --data {tmp}", "holds no store of codes"),
    ("train_generator shapes-generator --data {tmp}/codes --model.vocab 100", "model.vocab=100: must be 48"),
    ("train_generator shapes-generator --data {tmp}/codes --features x", "features='x': must be empty"),
    ("train_generator gpt-xl-t2i --data {tmp}/codes", "features='': must be the folder of caption features"),
    ("train_generator shapes-generator --data {tmp}/codes --precision fp16", "precision='fp16': needs an accelerator"),
    ("extract_codes --tokenizer {tmp}/none --data shapes:// --out {tmp}/x", "must be the folder of a saved model"),
    ("extract_codes --tokenizer {tmp}/model --data shapes:// --out {tmp}/x --size 33",
     "size=33: must be a multiple of 8"),
    ("extract_codes --tokenizer {tmp}/generator --data shapes:// --out {tmp}/x",
     "holds a raster, which is no tokenizer"),
    ("extract_codes --tokenizer {tmp}/model --data shapes://?n=20 --out {tmp}/codes --size 32", "holds another store"),
    ("extract_codes --tokenizer {tmp}/model --data {tmp}/photos --out {tmp}/y --size 32", "b.png: is no JPEG"),
    ("extract_codes --tokenizer {tmp}/model --data shapes:// --out {tmp}/x --flip --ten-crop",
     "flip=True: can't be combined"),
]


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("wrong")
    write_codes(tmp / "codes")
    config = tokenizer_recipe().model
    save_model(tmp / "model", VQGAN(config), config)
    r, task, _ = build_generator(generator_recipe(tmp / "codes"))
    save_model(tmp / "generator", task.modules["generator"], r.model)
    (tmp / "photos").mkdir()
    Shapes(1, 40)[0].image.save(tmp / "photos" / "a.png")
    (tmp / "photos" / "b.png").write_bytes(b"no picture")
    return tmp


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("command,words", WRONG, ids=[words[:40] for _, words in WRONG])
def test_wrong_input_is_one_line(room, monkeypatch, command, words):
    "Run in this process, as the script would: exit code 2, one line that names the argument, nothing left behind."
    monkeypatch.chdir(room)
    monkeypatch.setenv("VGNB_PATHS_RUNS", str(room / "runs"))
    def files(): return {str(p) for p in room.rglob("*.safetensors")}

    name, *args = command.format(tmp=room).split(" ")
    main, before = load_script(name).main, files()
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()):
        assert run_main(main, args) == 2
    assert words in err.getvalue() and len(err.getvalue().splitlines()) == 1, err.getvalue()
    assert files() == before


@pytest.mark.full
def test_scripts_print_that_line(room):
    done = script("train_tokenizer", "vq-61", code=2)
    assert done.err.startswith("recipe='vq-61': must be one of") and len(done.err.splitlines()) == 1
    assert "Unrecognized options" in script("train_tokenizer", "vq-16", "--step", "3", code=2).err


def test_allowed_bad_pictures_are_listed(room):
    done = script("extract_codes", "--tokenizer", room / "model", "--data", room / "photos", "--out", room / "allowed",
                  "--size", 32, "--max-bad", 1)
    assert "left out: b.png: is no JPEG" in done.err and "1 pictures, 1 left out" in done.out
    assert CodeStore(room / "allowed").absent.tolist() == [1]


def test_a_run_json_is_a_recipe(tmp_path):
    r = replace(tokenizer_recipe(name="shapes-tokenizer"), steps=2, free_steps=1)
    train(TrainOptions(r, tmp_path / "run", run=QUIET))
    record = str(tmp_path / "run" / "run.json")
    again = parse("tokenizer", [record, "--out", str(tmp_path / "again")], "")
    assert again.recipe == r
    train(again)
    assert weights(tmp_path / "run") == weights(tmp_path / "again")
    with pytest.raises(Mismatch, match="must be of kind generator"): parse("generator", [record], "")


@pytest.fixture
def model_folder(tmp_path):
    train(TrainOptions(replace(tokenizer_recipe(), steps=2, free_steps=1), tmp_path / "run", run=QUIET))
    return tmp_path / "run" / "model"


def test_a_model_folder_holds_averaged_and_plain_weights(model_folder):
    averaged, plain = load_model(model_folder), load_model(model_folder, ema=False)
    assert averaged.card["recipe"]["steps"] == 2 and not plain.training
    assert not torch.equal(averaged.to_code.weight, plain.to_code.weight)


def test_damaged_model_folders_are_refused(model_folder):
    file, card = model_folder / "model.safetensors", model_folder / "config.json"
    save_tensors(file, dict(list(load_tensors(file).items())[::2]))
    with pytest.raises(Mismatch, match="is not the file that was saved"): load_model(model_folder, ema=False)
    content = {k: v for k, v in json.loads(card.read_text()).items() if k not in ("seal", "weights")}
    card.write_text(json.dumps(content))                                   # as an older version saved it
    with pytest.raises(Mismatch, match="missing"): load_model(model_folder, ema=False)
    file.write_bytes(b"x" * 100)
    with pytest.raises(Mismatch, match="must be a readable safetensors file"): load_model(model_folder, ema=False)

    content["config"]["kind"] = "os.system"
    card.write_text(json.dumps(content))
    with pytest.raises(BadInput, match="kind='os.system': must be one of"): load_model(model_folder)


def test_steps_with_bad_gradients_are_skipped_in_every_phase(tmp_path):
    "One NaN in the discriminator's loss, one in the tokenizer's: that phase changes nothing, the other one goes on."
    r = tokenizer_recipe()
    r = replace(r, loss=replace(r.loss, gan=0.1, start=0), free_steps=0)
    task, data = build_tokenizer(r, tmp_path)
    real, frozen = task.loss, {}
    def loss(phase, batch, carry, draws, at):
        out = real(phase, batch, carry, draws, at)
        if {2: "tokenizer", 4: "discriminator"}.get(at.step) != phase.name: return out
        frozen[phase.name] = {k: v.clone() for k, v in task.modules[phase.name].named_parameters()}
        return Loss(out.total * float("inf"), out.parts)

    task.loss = loss
    trainer = Trainer(task, data, r, tmp_path / "run", Run(progress=False, tracker="none"))
    for stop, name in ((3, "tokenizer"), (5, "discriminator")):
        trainer.fit(stop)
        for k, v in task.modules[name].named_parameters(): assert torch.equal(v, frozen[name][k]), k
    numbers = trainer.state.guard.numbers()
    assert numbers["skipped"] == 2 and numbers["streak"] == 1


def test_kmeans_sets_the_codebook_before_the_first_step_and_never_again(tmp_path):
    r = replace(tokenizer_recipe(), free_steps=0, kmeans=True, steps=4)
    def fitted(stop):
        task, data = build_tokenizer(r, tmp_path)
        tokenizer, set_at = task.modules["tokenizer"], []
        begin, real = tokenizer.quantizer.table.detach().clone(), tokenizer.kmeans_init
        def kmeans_init(*args):
            real(*args)
            set_at.append(not torch.equal(tokenizer.quantizer.table, begin))
        tokenizer.kmeans_init = kmeans_init
        Trainer(task, data, r, tmp_path / "run", Run(progress=False, save_every=1)).fit(stop)
        return set_at
    assert fitted(2) == [True] and fitted(4) == []
    with pytest.raises(BadInput, match="kmeans=True: must be False with start"):
        build_tokenizer(replace(r, start="anything"), tmp_path)
    few = replace(r, batch=1, model=changed(r.model, quantizer=dict(codebook=4096)))
    with pytest.raises(BadInput, match="batch=1: must be at least .* or ask for free_steps=0 and kmeans=false"):
        build_tokenizer(few, tmp_path)
    lattice = replace(r, model=replace(r.model, quantizer=FSQConfig((5, 5))))
    with pytest.raises(BadInput, match="kmeans=True: .* no codebook"): build_tokenizer(lattice, tmp_path)


def test_a_run_begins_with_a_given_checkpoint_of_another(tmp_path):
    "As it was: from its fourth step on both runs are the same; the old one is not touched, and the new one resumes."
    r = replace(tokenizer_recipe(), free_steps=1, steps=6)
    def run(name, until=None, **how):
        task, data = build_tokenizer(r, tmp_path)
        return Trainer(task, data, r, tmp_path / name, Run(progress=False, save_every=2, keep_last=9, **how)).fit(until)
    run("old")
    saves = tmp_path / "old" / "checkpoints"
    earlier, before = sorted(saves.iterdir())[0], sorted(p.name for p in saves.iterdir())
    assert run("new", 5, resume_from=earlier).step == 5 and run("new", resume_from=earlier).step == 6
    files = [read_checkpoint(sorted((tmp_path / name / "checkpoints").iterdir())[-1])[0] for name in ("old", "new")]
    for name, state in files[0].items():
        assert all(torch.equal(v, files[1][name][k]) for k, v in state.items()), name
    assert sorted(p.name for p in saves.iterdir()) == before
    assert read_log(tmp_path / "new" / "log.jsonl")[0]["step"] > 2
    assert run("latest", resume_from=tmp_path / "old").step == 6          # the latest one: nothing is left to do
    with pytest.raises(BadInput, match="resume_from=.*must be a run, or a checkpoint"):
        run("none", resume_from=tmp_path / "old" / "checkpoints")
    with pytest.raises(Mismatch, match="optim.lr=1.0: .*the weights of a finished one: --start RUN"):
        r = replace(r, optim=replace(r.optim, lr=1.0))
        run("other", resume_from=earlier)


def test_more_steps_are_another_run_and_nothing_is_removed(tmp_path):
    "A refused command leaves every checkpoint where it is."
    r = replace(tokenizer_recipe(), free_steps=1, steps=6)
    def run(recipe, **how):
        task, data = build_tokenizer(recipe, tmp_path)
        return Trainer(task, data, recipe, tmp_path / "run", Run(progress=False, save_every=1, **how)).fit()
    run(r, keep_last=5)
    before = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    with pytest.raises(Mismatch, match="steps=9: .*with 6; .*--fresh; .*begins with its finished model: --start RUN"):
        run(replace(r, steps=9))
    with pytest.raises(Mismatch, match="steps=5: .*with 6; use that value, or another folder, or --fresh$"):
        run(replace(r, steps=5))
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == before and len(before) == 5


def test_a_discriminator_has_a_rate_of_its_own(tmp_path):
    r = tokenizer_recipe()
    r = replace(r, loss=replace(r.loss, gan=0.1, start=0), free_steps=0, beside=8.0)
    trainer = Trainer(*build_tokenizer(r, tmp_path), r, tmp_path / "run", Run(progress=False, tracker="none"))
    rates = {name: optim.lr / r.optim.lr for name, optim in trainer.state.optims.items()}
    assert rates == {"tokenizer": 1.0, "discriminator": 8.0}
    trainer.fit(1)
    assert trainer.state.optimizers["discriminator"].param_groups[0]["lr"] == 8 * r.optim.lr
    with pytest.raises(BadInput, match="beside=-1"): replace(r, beside=-1)


def test_workers_do_not_change_the_result(tmp_path):
    write_codes(tmp_path / "codes")
    for workers in (0, 2):
        run = Run(workers=workers, progress=False)
        train(TrainOptions(generator_recipe(tmp_path / "codes"), tmp_path / f"w{workers}", run=run))
    assert weights(tmp_path / "w0") == weights(tmp_path / "w2")


class Fatal(Data):
    fingerprint = "fatal"
    def __len__(self): return 8
    def fetch(self, index, epochs, draws): os._exit(9)


def test_a_dead_worker_is_named():
    with pytest.raises(VgnbError, match="a data worker died"): list(stream(Feed(Fatal(), 4, 0), 0, 2, workers=1))


def test_text_conditional_training(tmp_path):
    "Codes and caption features joined by id, through the real recipe family."
    write_codes(tmp_path / "codes")
    writer = FeatureWriter(tmp_path / "text", FeaturePlan(8, 4, 100, "toy"))
    writer.write(0, [torch.full((1 + i % 4, 8), i / 100) for i in range(100)], range(100))
    writer.finish()

    r = recipe("gpt-xl-t2i", data=str(tmp_path / "codes"), features=str(tmp_path / "text"))
    model = replace(r.model, layers=1, dim=32, heads=2, vocab=48, grid=(4, 4), text_dim=8, text_tokens=4)
    r = replace(r, model=model, steps=3, batch=8, precision="fp32")
    assert train(TrainOptions(r, tmp_path / "run", run=QUIET)).finished
    assert load_model(tmp_path / "run" / "model").config.condition == "text"


@pytest.mark.parametrize("config", [
    MaskedConfig(layers=1, dim=32, heads=2, vocab=48, grid=(4, 4), classes=10),
    PartitionConfig(encoder=1, decoder=1, dim=32, heads=2, vocab=48, grid=(4, 4), classes=10)],
    ids=["masked", "partition"])
def test_generators_without_an_order_are_teacher_forced_by_halves(config):
    "Each cell is said from the other half: its own code does not matter."
    torch.manual_seed(0)
    model = kinds[kind_of(config)].build(config, 0).eval()
    with torch.no_grad():
        for p in model.parameters(): p.add_(0.1 * torch.randn_like(p))
    codes, cond = torch.randint(48, (3, 16, 1)), Cond(labels=torch.arange(3))
    likely = teacher_forced(model, codes, cond, Keyed(0))
    assert likely.shape == codes.shape and likely.max() < 48
    changed = codes.clone()
    changed[:, 5] = (codes[:, 5] + 1) % 48
    again = teacher_forced(model, changed, cond, Keyed(0))
    assert torch.equal(likely[:, 5], again[:, 5]) and not torch.equal(likely, again)
