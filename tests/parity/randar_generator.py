"RandAR's generator side: the transformer, generation, known cells, features, training, schedules, larger grids."
import math
import re

import torch

from tests.parity.harness import adapter
from vgnb.draws import At, Race, Recorded
from vgnb.generators.generator import Clock, Cond, Grid, Plan
from vgnb.generators.orders import Given, Random, Raster
from vgnb.generators.random_order import RandomOrderTransformer, mixed_angles, randar_config, randar_names
from vgnb.generators.schedules import randar
from vgnb.layers import grid_angles, rotary_2d, rotary_table, rotate, zero_prefix
from vgnb.sampling.applications import Inpaint
from vgnb.sampling.extrapolation import Extrapolate
from vgnb.sampling.guidance import CFG, Linear, Unguided
from vgnb.sampling.painting import Request
from vgnb.sampling.pick import Pick, filtered
from vgnb.sampling.sampler import Sampler
from vgnb.training.optimizers import clipped_sum, gradient_norm, guarded_step, make_optimizer
from vgnb.training.recipes import Optim, Rate, rate_at

CLASS = "RandAR.model.randar_gpt.RandARTransformer"
YES = torch.tensor(True)


def model(case):
    "The case's model, loaded through the importer."
    config = randar_config(case.config, compat="upstream")
    return randar_names.load_into(RandomOrderTransformer(config), case.fill(), case.name).eval()


def condition(m, given): return Cond(given) if m.conditioned_on == "class" else Cond(text=given)


def guidance(scales):
    "Of a call's `cfg_scales`: at the first and at the last cell."
    return CFG(scales[-1], start=scales[0]) if scales[-1] > 1 else Unguided()


def pick(call): return Pick(call["temperature"], call["top_k"], call["top_p"])


def noise(case, **more):
    "The recorded draws. Where none were recorded, or for cells that the published loop never decides, any will do."
    any_will_do = torch.ones(4 * case.config["block_size"], len(case["in.cond"]), case.config["vocab_size"])
    race = torch.cat((case["in.exp_noise"], any_will_do)) if "in.exp_noise" in case else any_will_do
    return Recorded({"token": Race(race)} | more)


def is_forward(spec): return "call" not in spec and "optimizer" not in spec["config"]


def calls(function): return lambda spec: spec.get("call", {}).get("function") == function


@adapter("randar", CLASS, when=is_forward)
@torch.no_grad()
def forward(case):
    m, codes, order = model(case), case["in.idx"], case["in.token_order"]
    plan = None if m.config.order == "raster" else Plan(order, [1] * codes.shape[1])
    logits, = m.logits(codes[..., None], condition(m, case["in.cond"]), plan)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), codes.gather(1, order).flatten())
    return {"out.logits": logits, "out.loss": loss}


@adapter("randar", CLASS, when=calls("generate"))
def generate(case):
    m, call = model(case), case.spec["call"]
    order = Raster() if m.config.order == "raster" else Given(case["in.token_order"])
    steps = call["num_inference_steps"]

    def schedule(n, _, start): return randar(n, n if steps == -1 else steps, start)

    b = len(case["in.cond"])
    sampler = Sampler(m, order, schedule, guidance(call["cfg_scales"]), (pick(call),), rows=b, compat="upstream")
    codes = sampler.sample(condition(m, case["in.cond"]), torch.arange(b), noise(case), grid=Grid(m.grid))
    return {"out.indices": codes[..., 0]}


@adapter("randar", f"{CLASS} (composed*", when=calls("prefix_conditioned_generate"))
def paint(case):
    m, call, codes = model(case), case.spec["call"], case["in.tokens"]
    marked = torch.ones_like(codes, dtype=torch.bool)
    marked[:, case["in.known_pos"]] = False
    counts, b, grid = case["in.group_sizes"].tolist(), len(codes), Grid(m.grid)

    def schedule(n, steps, start): return counts if start else [1] * n

    order, picks = Given(case["in.token_order"]), (Pick(greedy=call["top_k"] == 1),)
    sampler = Sampler(m, order, schedule, guidance(call["cfg_scales"]), picks, rows=b, compat="upstream")
    request = Request(sampler, condition(m, case["in.cond"]), torch.arange(b), noise(case), codes[..., None], grid)
    painting = Inpaint(marked.view(b, *grid.shape)).paint(request)
    return {"out.indices": painting.sample()[..., 0]}


@adapter("randar", f"{CLASS} (composed*", when=lambda spec: "call" not in spec)
def features(case):
    m, codes = model(case), case["in.idx"]
    first, second = m.features(codes[..., None], m.null(Cond(codes[:, 0])), case["in.token_order"])
    return {"out.first_pass_image_feat": first, "out.second_pass_image_feat": second}


def published_rate(c):
    "Our rate for the published scheduler's arguments; its cosine counts whole waves, its polynomial ends at 1e-7."
    name = c["name"]
    waves = c.get("num_cycles", 0.5 if name == "cosine" else 1)
    floor = {"cosine": c.get("min_lr_ratio", 0.05), "polynomial": 1e-7 / c["base_lr"]}.get(name, 0.0)
    return Rate(
        name, c.get("num_warmup_steps", 0), floor=floor, waves=2 * waves if name == "cosine" else waves,
        power=c.get("power", 1.0), rules=c.get("step_rules", ""))


LOGS = ("loss", "grad_norm_preclip", "sum_param_grad_norms_postclip", "lr", "param_norms")


@adapter("randar", CLASS, when=lambda spec: "optimizer" in spec["config"])
def training(case):
    o, s = case.config["optimizer"], case.config["lr_scheduler"]
    m, logs = model(case).train(), {k: [] for k in LOGS}
    params = dict(m.named_parameters())
    optim = Optim(
        lr=o["lr"], betas=(o["beta1"], o["beta2"]), weight_decay=o["weight_decay"], clip=o["max_grad_norm"])
    rate = published_rate(s | {"base_lr": o["lr"]})
    optimizer = make_optimizer(optim, params)

    for step, (codes, labels, order) in enumerate(zip(case["in.idx"], case["in.cond"], case["in.token_order"])):
        recorded = {"order": order}
        if "in.label_drop_rand" in case: recorded["class_drop"] = case["in.label_drop_rand"][step]
        at = At(torch.arange(len(codes)), step=step)
        loss = m(codes[..., None], Cond(labels), Recorded(recorded), at).total
        optimizer.zero_grad()
        loss.backward()

        norm = gradient_norm(params.values())
        spread = clipped_sum(params.values(), norm, optim.clip)
        lr = optim.lr * rate_at(rate, step, s.get("num_training_steps", 1))
        torch.nn.utils.clip_grads_with_norm_(params.values(), optim.clip, norm)
        guarded_step(optimizer, YES, lr)

        state = randar_names.export(params)
        norms = torch.stack([state[k].detach().norm() for k in case.spec["manifest"]])
        seen = (loss.detach(), norm, spread, torch.tensor(lr, dtype=torch.float64), norms)
        for k, v in zip(LOGS, seen): logs[k].append(v)

    final = {
        "out.final_norm_weight": m.norm.weight,
        "out.final_pos_instruct": m.instruction,
        "out.final_wo_last": m.blocks[-1].attention.out.weight}
    return {f"out.{k}": torch.stack(v) for k, v in logs.items()} | final


def ranks(cells):
    "Cells (b, k) of a part of the grid -> which of the part's cells, in raster order, each is."
    return cells.argsort(1).argsort(1)


@adapter("randar", "RandAR.applications.resolution_extrapolation.generate_resolution_extrapolation")
def larger(case):
    m, call, order = model(case), case.spec["call"], case["in.token_order"]
    b, n = order.shape
    side, low = math.isqrt(n), math.prod(m.grid)
    coarse, fine = order.tensor_split([low], 1)
    tape = {"order.coarse": ranks(coarse), "order.fine": ranks(fine)}
    if "in.drop_idx" in case:
        dropped = torch.zeros(b, low, dtype=torch.bool).scatter_(1, case["in.drop_idx"], True)
        tape["blind"] = dropped.long().argsort(dim=1, descending=True, stable=True)

    steps = n if call["num_inference_steps"] == -1 else call["num_inference_steps"]
    sampler = Sampler(
        m, Random(), randar, guidance(call["cfg_scales"]), (pick(call),), steps=steps, rows=b, compat="upstream")
    what = Extrapolate((side, side), call["spatial_cfg_scales"], call["spatial_masking_ratio"], call["ntk_boundary"])
    request = Request(sampler, Cond(case["in.cond"]), torch.arange(b), noise(case, **tape))
    codes = what.codes(what.paint(request))[..., 0]
    return {"out.indices": codes.clamp(min=0), "out.decoded": codes >= 0}


def scales(counts, n):
    "Guidance from 1 to 4 at each group."
    ramp, done = Linear(1.0, 4.0), 0
    out = []
    for step, count in enumerate(counts):
        out.append(ramp(Clock(step, len(counts), done, n)))
        done += count
    return torch.tensor(out, dtype=torch.float64)


def number(name, word):
    "The number behind a word in a fixture's name, or 0."
    found = re.search(rf"{word}(-?\d+)", name)
    return int(found[1]) if found else 0


@adapter("randar", "*calculate_num_query_tokens_for_parallel_decoding*")
def schedules(case):
    out = {}
    for name in case.outs:
        n, start, steps = (number(name, word) for word in ("block", "start", "steps"))
        if not n: continue
        counts = randar(n, steps if steps > 0 else n, start)
        if ".tokens_per_step." in name: out[name] = torch.tensor(counts)
        elif ".ext_tokens_per_step." in name: out[name] = torch.tensor(counts[:-1])
        elif ".ext_undecoded" in name: out[name] = torch.tensor(counts[-1])
        else: out[name] = scales(counts, n)

    for name, c in case.config["lr"].items():
        rate, steps = published_rate(c), c.get("num_training_steps", 1)
        values = [c["base_lr"] * rate_at(rate, int(s), steps) for s in case[f"in.{name}.steps"]]
        out[f"out.{name}.values"] = torch.tensor(values, dtype=torch.float64)
    return out


def rotary_cells(c):
    "The table of a square grid, without the condition's places."
    side, channels = c["grid_size"], c["n_elem"]
    if "extrapolation_factor" not in c: return rotary_2d(side, side, channels, c["base"])
    base = int(side // c["extrapolation_factor"])
    axis = mixed_angles(side, base, channels // 2, c["base"], c["ntk_boundary"])
    return rotary_table(grid_angles(axis, axis))


@adapter("randar", "*precompute_freqs_cis_2d*")
def rotary(case):
    out = {}
    for name, c in case.config.items():
        cells, which = rotary_cells(c), name[5:]
        table = zero_prefix(cells, c["cls_token_num"])
        out[f"out.{name}"] = torch.cat((table[:3], table[3::7])) if "stored" in c else table
        if f"in.x{which}" in case:
            out[f"out.rot{which}"] = rotate(case[f"in.x{which}"], cells[case[f"in.pos{which}"]])
    return out


@adapter("randar", "RandAR.model.generate.sample")
def sample(case):
    out, clock = {}, Clock(0, 1, 0, 1)
    for i, c in case.config.items():
        logits = case[f"in.logits{i}"][:, -1:]
        at = At(torch.arange(len(logits)))
        out[f"out.probs{i}"] = filtered(logits, **c).softmax(-1)[:, 0]
        temperature = max(c["temperature"], 1e-5)
        for name, greedy in (("idx", False), ("argmax", True)):
            draws = Recorded({"token": Race(case[f"in.exp_noise{i}"][None])})
            choose = Pick(temperature, c["top_k"], c["top_p"], greedy)
            out[f"out.{name}{i}"] = choose(logits, clock, draws, at)[0]
    return out
