"Recipes, scripts and checkpoints: what a page can't hold."
import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.train_on_two import generator_recipe, tokenizer_recipe, write_codes
from vgnb.core import BadInput, Mismatch, VgnbError
from vgnb.data.codes import CodeStore
from vgnb.saved import load_model, load_tensors, save_model, save_tensors
from vgnb.training.commands import TrainOptions, build_generator, build_tokenizer, help_text, list_recipes, parse, train
from vgnb.cli import run_main
from vgnb.training.recipes import recipe, recipes
from vgnb.kinds import from_json, kind_of, kinds, to_json

ROOT = Path(__file__).resolve().parents[1]
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
PARAMETERS = {"gpt-b": 110_888_448, "gpt-l": 342_910_976, "gpt-xl": 774_699_520, "gpt-xxl": 1_410_972_672, "gpt-xxxl": 3_893_027_840, "gpt-1b": 1_199_616_000, "gpt-3b": 3_096_659_200,
              "gpt-7b": 6_614_589_440, "vq-16": 71_883_403, "vq-8": 70_109_835, "maskgit-vqgan": 54_515_587}    # as published


def script(name, *args, code=0):
    done = subprocess.run([sys.executable, f"scripts/{name}.py", *map(str, args)], cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr[-2000:]
    return done


@pytest.mark.parametrize("name", sorted(recipes))
def test_recipe(name):
    "Builds (without memory), has the published number of parameters, survives JSON, explains itself, and its command names it."
    r = recipe(name)
    with torch.device("meta"): model = kinds[kind_of(r.model)].build(r.model)
    if name in PARAMETERS: assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert from_json(json.loads(json.dumps(to_json(r)))) == r and r.name == name
    assert f"scripts/train_{r.kind}.py {name}" in recipes[name].__doc__ and name in help_text(r.kind, "")


def test_all_of_the_papers_sizes_are_there():
    assert set(PARAMETERS) < set(recipes) and {"gpt-xl-t2i", "shapes-tokenizer", "shapes-generator"} < set(recipes)
    assert sum(n.startswith("taming") for n in recipes) == 4 and set(list_recipes("tokenizer")) | set(list_recipes("generator")) == set(recipes)


@pytest.mark.parametrize("name", ["train_tokenizer", "train_generator", "extract_codes", "extract_text", "search_guidance"])
def test_help_is_light(name):
    "`--help` explains and does not load data-set, model or launcher libraries."
    program = f"import sys, runpy; sys.argv = ['{name}.py', '--help']\ntry: runpy.run_path('scripts/{name}.py', run_name='__main__')\nexcept SystemExit as e: print('code', e.code)\n" \
              "print('heavy', [m for m in ('accelerate', 'datasets', 'transformers', 'torchvision', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=60)
    assert "code 0" in done.stdout and "heavy []" in done.stdout and f"python scripts/{name}.py" in done.stdout, done.stdout + done.stderr


def test_dry_runs_touch_nothing(tmp_path):
    write_codes(tmp_path / "codes")
    said = script("train_generator", "gpt-7b", "--data", tmp_path / "codes", "--out", tmp_path / "run", "--dry-run").stdout
    assert "100 examples" in said and "epochs" in said and "is new" in said and not (tmp_path / "run").exists()
    said = script("train_tokenizer", "shapes-tokenizer", "--out", tmp_path / "run", "--dry-run", "--batch", 32).stdout
    assert "611,352 parameters" in said and "3,000 steps x 32" in said and "60,000 examples" in said and not (tmp_path / "run").exists()


WRONG = [   # script, arguments, words of the one line on stderr
    ("train_tokenizer", ["vq-61"], "recipe='vq-61': must be one of"),
    ("train_tokenizer", ["gpt-b"], "recipe='gpt-b': must be one of"),
    ("train_tokenizer", ["vq-16", "--data", "shapes://", "--weights", "{tmp}"], "no VGG-16 weights: put vgg16"),
    ("train_tokenizer", ["shapes-tokenizer", "--data", "{tmp}/none"], "no such folder"),
    ("train_tokenizer", ["shapes-tokenizer", "--batch", "0"], "batch=0: must be an integer >= 1"),
    ("train_tokenizer", ["shapes-tokenizer", "--optim.lr", "-1"], "optim.lr=-1.0: must be a finite number >= 0"),
    ("train_tokenizer", ["shapes-tokenizer", "--augment.size", "30"], "augment.size=30: must be a multiple of 8"),
    ("train_tokenizer", ["shapes-tokenizer", "--accumulate", "2"], "accumulate=2: must be 1 while dead codes are revived"),
    ("train_tokenizer", ["shapes-tokenizer", "--tracker", "jsonlines"], "tracker='jsonlines': must be one of jsonl, none"),
    ("train_tokenizer", ["shapes-tokenizer", "--fresh", "--resume"], "fresh=True: can't be combined with --resume"),
    ("train_tokenizer", ["shapes-tokenizer", "--resume"], "has no checkpoint to resume from"),
    ("train_tokenizer", ["{tmp}/none.json"], "no such file"),
    ("train_generator", ["shapes-generator"], "data='': must be a folder of extracted codes"),
    ("train_generator", ["shapes-generator", "--data", "{tmp}"], "holds no store of codes"),
    ("train_generator", ["shapes-generator", "--data", "{tmp}/codes", "--model.vocab", "100"], "model.vocab=100: must be 48"),
    ("train_generator", ["shapes-generator", "--data", "{tmp}/codes", "--features", "x"], "features='x': must be empty"),
    ("train_generator", ["gpt-xl-t2i", "--data", "{tmp}/codes"], "features='': must be the folder of caption features"),
    ("train_generator", ["shapes-generator", "--data", "{tmp}/codes", "--precision", "fp16"], "precision='fp16': needs an accelerator"),
    ("extract_codes", ["--tokenizer", "{tmp}/none", "--data", "shapes://", "--out", "{tmp}/x"], "must be the folder of a saved model"),
    ("extract_codes", ["--tokenizer", "{tmp}/model", "--data", "shapes://", "--out", "{tmp}/x", "--size", "33"], "size=33: must be a multiple of 8"),
    ("extract_codes", ["--tokenizer", "{tmp}/generator", "--data", "shapes://", "--out", "{tmp}/x"], "holds a RasterTransformer, which is no tokenizer"),
    ("extract_codes", ["--tokenizer", "{tmp}/model", "--data", "shapes://?n=20", "--out", "{tmp}/codes", "--size", "32"], "holds another store"),
    ("extract_codes", ["--tokenizer", "{tmp}/model", "--data", "{tmp}/photos", "--out", "{tmp}/y", "--size", "32"], "b.png: is no JPEG"),
    ("extract_codes", ["--tokenizer", "{tmp}/model", "--data", "shapes://", "--out", "{tmp}/x", "--flip", "--ten-crop"], "flip=True: can't be combined"),
]


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    from vgnb.data.shapes import Shapes
    from vgnb.tokenizers.vqgan import VQGAN
    tmp = tmp_path_factory.mktemp("wrong")
    write_codes(tmp / "codes")
    config = tokenizer_recipe().model
    save_model(tmp / "model", VQGAN(config), config)
    r, task, _ = build_generator(generator_recipe(tmp / "codes"))
    save_model(tmp / "generator", task.modules["generator"], r.model)
    (tmp / "photos").mkdir()
    Shapes(1, 40)[0].image.save(tmp / "photos" / "a.png"); (tmp / "photos" / "b.png").write_bytes(b"no picture")
    return tmp


@pytest.mark.parametrize("name,args,words", WRONG, ids=[w[2][:40] for w in WRONG])
def test_wrong_input_is_one_line(room, monkeypatch, name, args, words):
    "Run in this process, as the script would: exit code 2, one line that names the argument, nothing left behind."
    import importlib.util
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec); sys.modules[name] = module; spec.loader.exec_module(module)
    monkeypatch.chdir(room); monkeypatch.setenv("VGNB_PATHS_RUNS", str(room / "runs"))
    before = {str(p) for p in room.rglob("*.safetensors")}
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()):
        assert run_main(module.main, [a.format(tmp=room) for a in args]) == 2
    assert words in err.getvalue() and len(err.getvalue().splitlines()) == 1, err.getvalue()
    assert {str(p) for p in room.rglob("*.safetensors")} == before


def test_scripts_print_that_line(room):
    done = script("train_tokenizer", "vq-61", code=2)
    assert done.stderr.startswith("recipe='vq-61': must be one of") and len(done.stderr.splitlines()) == 1
    assert "Unrecognized options" in script("train_tokenizer", "vq-16", "--step", "3", code=2).stderr


def test_allowed_bad_pictures_are_listed(room):
    done = script("extract_codes", "--tokenizer", room / "model", "--data", room / "photos", "--out", room / "allowed", "--size", 32, "--max-bad", 1)
    assert "left out: b.png: is no JPEG" in done.stderr and "1 pictures, 1 left out" in done.stdout and CodeStore(room / "allowed").absent.tolist() == [1]


def test_a_run_json_is_a_recipe(tmp_path):
    r = tokenizer_recipe(name="shapes-tokenizer")
    train(TrainOptions(replace(r, steps=2), tmp_path / "run", progress=False))
    again = parse("tokenizer", [str(tmp_path / "run" / "run.json"), "--out", str(tmp_path / "again")], "")
    assert again.recipe == replace(r, steps=2)
    train(again)
    a, b = (tmp_path / d / "model" / "model.safetensors" for d in ("run", "again"))
    assert a.read_bytes() == b.read_bytes()
    with pytest.raises(Mismatch, match="must be of kind generator"): parse("generator", [str(tmp_path / "run" / "run.json")], "")


def test_model_folders(tmp_path):
    r = tokenizer_recipe(); train(TrainOptions(replace(r, steps=2), tmp_path / "run", progress=False))
    folder = tmp_path / "run" / "model"
    averaged, plain = load_model(folder), load_model(folder, ema=False)
    assert averaged.card["recipe"]["steps"] == 2 and not torch.equal(averaged.to_code.weight, plain.to_code.weight) and not plain.training
    state = load_tensors(folder / "model.safetensors")
    save_tensors(folder / "model.safetensors", dict(list(state.items())[::2]))
    with pytest.raises(Mismatch, match="missing"): load_model(folder, ema=False)
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(Mismatch, match="must be a readable safetensors file"): load_model(folder, ema=False)
    card = json.loads((folder / "config.json").read_text()); card["config"]["kind"] = "os.system"; (folder / "config.json").write_text(json.dumps(card))
    with pytest.raises(BadInput, match="kind='os.system': must be one of"): load_model(folder)


def test_steps_with_bad_gradients_are_skipped_in_every_phase(tmp_path):
    "One NaN in the discriminator's loss, one in the tokenizer's: that phase changes nothing, the other one goes on."
    from vgnb.training.trainer import Run, Trainer
    from vgnb.generators.generator import Loss
    r = tokenizer_recipe(); r = replace(r, loss=replace(r.loss, gan=0.1, start=0), free_steps=0)
    task, data = build_tokenizer(r, tmp_path)
    real, frozen = task.loss, {}
    def loss(phase, batch, carry, draws, at):
        out = real(phase, batch, carry, draws, at)
        broken = {2: "tokenizer", 4: "discriminator"}.get(at.step) == phase.name
        if broken: frozen[phase.name] = {k: v.clone() for k, v in task.modules[phase.name].named_parameters()}
        return Loss(out.total * float("inf"), out.parts) if broken else out
    task.loss = loss
    t = Trainer(task, data, r, tmp_path / "run", Run(progress=False, tracker="none"))
    for stop, name in ((3, "tokenizer"), (5, "discriminator")):
        t.fit(stop)
        assert all(torch.equal(v, frozen[name][k]) for k, v in task.modules[name].named_parameters())
    assert t.guard.numbers()["skipped"] == 2 and t.guard.numbers()["streak"] == 1


def test_workers_do_not_change_the_result(tmp_path):
    write_codes(tmp_path / "codes")
    for w in (0, 2): train(TrainOptions(generator_recipe(tmp_path / "codes"), tmp_path / f"w{w}", workers=w, progress=False))
    assert (tmp_path / "w0" / "model" / "model.safetensors").read_bytes() == (tmp_path / "w2" / "model" / "model.safetensors").read_bytes()


def test_a_dead_worker_is_named(tmp_path):
    from vgnb.training.feed import Feed, stream
    class Fatal:
        fingerprint = "fatal"
        def __len__(self): return 8
        def fetch(self, index, epochs, draws): os._exit(9)
    with pytest.raises(VgnbError, match="a data worker died"): list(stream(Feed(Fatal(), 4, 0), 0, 2, workers=1))


def test_text_conditional_training(tmp_path):
    "Codes and caption features joined by id, through the real recipe family."
    from vgnb.data.text import FeaturePlan, FeatureWriter
    write_codes(tmp_path / "codes")
    writer = FeatureWriter(tmp_path / "text", FeaturePlan(8, 4, 100, "toy"))
    writer.write(0, [torch.full((1 + i % 4, 8), i / 100) for i in range(100)], range(100)); writer.finish()
    r = recipe("gpt-xl-t2i", data=str(tmp_path / "codes"), features=str(tmp_path / "text"), steps=3, batch=8, precision="fp32")
    r = replace(r, model=replace(r.model, layers=1, dim=32, heads=2, vocab=48, grid=(4, 4), text_dim=8, text_tokens=4))
    assert train(TrainOptions(r, tmp_path / "run", progress=False)).finished and load_model(tmp_path / "run" / "model").config.condition == "text"


@pytest.mark.parametrize("told", [False, True])
def test_slurm_template(tmp_path, told):
    "With stand-ins for the cluster's commands: the launcher gets the words, SIGTERM is passed on and the job queues itself again; otherwise the exit code is the program's."
    import signal, time
    (tmp_path / "srun").write_text(f"#!/bin/bash\necho \"$@\" > {tmp_path}/words\ntrap 'echo came > {tmp_path}/signal; exit 1' TERM\nfor i in $(seq {100 if told else 1}); do sleep 0.1; done\nexit 7\n")
    (tmp_path / "scontrol").write_text(f"#!/bin/bash\n[ $1 = show ] && echo node1 || echo \"$@\" > {tmp_path}/queued\n")
    for name in ("srun", "scontrol"): (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "12", "SLURM_GPUS_ON_NODE": "4", "SLURM_SUBMIT_DIR": str(tmp_path)}
    process = subprocess.Popen(["bash", str(ROOT / "scripts" / "slurm" / "run.sbatch"), "scripts/train_generator.py", "gpt-b"], env=env, stdout=subprocess.PIPE)
    if told:
        for _ in range(100):
            if (tmp_path / "words").exists(): break
            time.sleep(0.05)
        time.sleep(0.2); process.send_signal(signal.SIGTERM)
    assert process.wait(20) == (0 if told else 7)
    words = (tmp_path / "words").read_text()
    assert "--nproc_per_node 4" in words and "node1:20012" in words and words.strip().endswith("scripts/train_generator.py gpt-b")
    assert (tmp_path / "queued").exists() == (tmp_path / "signal").exists() == told
