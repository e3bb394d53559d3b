"RandAR's generator side: the transformer, generation in groups, known cells, features, training steps, schedules, rotary tables, filters, larger grids."
import math
import re

import torch

from tests.parity.harness import adapter
from vgnb.draws import At, Keyed, Race, Recorded
from vgnb.generators.generator import Clock, Cond, Grid
from vgnb.generators.orders import Given, Raster
from vgnb.generators.random_order import RandomOrderTransformer, mixed_angles, randar_config, randar_names
from vgnb.generators.schedules import randar
from vgnb.layers import rotary_2d, rotary_table, rotate, zero_prefix
from vgnb.sampling.applications import inpaint
from vgnb.sampling.extrapolation import Extrapolation, extrapolate
from vgnb.sampling.guidance import CFG, Unguided, linear
from vgnb.sampling.pick import Pick, filtered
from vgnb.sampling.sampler import Sampler
from vgnb.training.optimizers import clipped_sum, gradient_norm, guarded_step, make_optimizer
from vgnb.training.recipes import Optim, Rate, rate_at

CLASS, YES = "RandAR.model.randar_gpt.RandARTransformer", torch.tensor(True)


def model(case):
    "The case's model, loaded through the importer."
    return randar_names.load_into(RandomOrderTransformer(randar_config(case.config, compat="upstream")), case.fill(), case.name).eval()


def condition(m, given): return Cond(given) if m.config.condition == "class" else Cond(text=given)


def ramp(scales): return CFG(linear(*scales)) if scales[-1] > 1 else Unguided()


def pick(call): return Pick(call["temperature"], call["top_k"], call["top_p"])


def noise(case, **more):
    "The recorded draws. Where none were recorded the filters leave one token, and cells that the published loop never decides have no draw: there any will do."
    any_will_do = torch.ones(4 * case.config["block_size"], len(case["in.cond"]), case.config["vocab_size"])
    return Recorded({"token": Race(torch.cat((case["in.exp_noise"], any_will_do)) if "in.exp_noise" in case else any_will_do)} | more)


@adapter("randar", CLASS, when=lambda spec: "call" not in spec and "optimizer" not in spec["config"])
@torch.no_grad()
def forward(case):
    m, codes = model(case), case["in.idx"]
    order = None if m.config.order == "raster" else case["in.token_order"]
    logits, = m.logits(codes, condition(m, case["in.cond"]), order)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), codes.gather(1, case["in.token_order"]).flatten())
    return {"out.logits": logits, "out.loss": loss}


def drawn(case, m, schedule, guidance, picks, order):
    "Codes (b, n) of the real sampler."
    b, n = len(case["in.cond"]), math.prod(m.config.grid)
    sampler = Sampler(m, order, schedule, guidance, picks, rows=b, compat="upstream")
    return sampler.sample(condition(m, case["in.cond"]), torch.arange(b), noise(case), grid=Grid(m.config.grid))[..., 0]


@adapter("randar", CLASS, when=lambda spec: spec.get("call", {}).get("function") == "generate")
def generate(case):
    m, call = model(case), case.spec["call"]
    steps, order = call["num_inference_steps"], Raster() if m.config.order == "raster" else Given(case["in.token_order"])
    schedule = lambda n, _, start: randar(n, n if steps == -1 else steps, start)
    return {"out.indices": drawn(case, m, schedule, ramp(call["cfg_scales"]), (pick(call),), order)}


@adapter("randar", f"{CLASS} (composed*", when=lambda spec: spec.get("call", {}).get("function") == "prefix_conditioned_generate")
def paint(case):
    m, call, codes = model(case), case.spec["call"], case["in.tokens"]
    marked = torch.ones_like(codes, dtype=torch.bool); marked[:, case["in.known_pos"]] = False
    counts, b, grid = case["in.group_sizes"].tolist(), len(codes), Grid(m.config.grid)
    picks, order = (Pick(greedy=call["top_k"] == 1),), Given(case["in.token_order"])
    sampler = Sampler(m, order, lambda n, steps, start: counts if start else [1] * n, ramp(call["cfg_scales"]), picks, rows=b, compat="upstream")
    return {"out.indices": inpaint(sampler, condition(m, case["in.cond"]), torch.arange(b), noise(case), codes, marked.view(b, *grid.shape), grid).sample()[..., 0]}


@adapter("randar", f"{CLASS} (composed*", when=lambda spec: "call" not in spec)
def features(case):
    m, codes = model(case), case["in.idx"]
    first, second = m.features(codes, m.null(Cond(codes[:, 0])), case["in.token_order"])
    return {"out.first_pass_image_feat": first, "out.second_pass_image_feat": second}


def published_rate(c):
    "Our rate for the arguments of the published scheduler; its cosine counts whole waves, its polynomial ends at 1e-7."
    name, waves = c["name"], c.get("num_cycles", 0.5 if c["name"] == "cosine" else 1)
    floor = {"cosine": c.get("min_lr_ratio", 0.05), "polynomial": 1e-7 / c["base_lr"]}.get(name, 0.0)
    return Rate(name, c.get("num_warmup_steps", 0), floor=floor, waves=2 * waves if name == "cosine" else waves, power=c.get("power", 1.0), rules=c.get("step_rules", ""))


@adapter("randar", CLASS, when=lambda spec: "optimizer" in spec["config"])
def training(case):
    c, o, s = case.config, case.config["optimizer"], case.config["lr_scheduler"]
    m, logs = model(case).train(), {k: [] for k in ("loss", "grad_norm_preclip", "sum_param_grad_norms_postclip", "lr", "param_norms")}
    params = dict(m.named_parameters())
    optim = Optim(lr=o["lr"], betas=(o["beta1"], o["beta2"]), weight_decay=o["weight_decay"], clip=o["max_grad_norm"])
    rate = published_rate(s | {"base_lr": o["lr"]})
    optimizer = make_optimizer(optim, params)
    for step, (codes, labels, order) in enumerate(zip(case["in.idx"], case["in.cond"], case["in.token_order"])):
        draws = Recorded({"order": order} | ({"class_drop": case["in.label_drop_rand"][step]} if "in.label_drop_rand" in case else {}))
        loss = m(codes, Cond(labels), draws, At(torch.arange(len(codes)), step=step)).total
        optimizer.zero_grad(); loss.backward()
        norm, lr = gradient_norm(params.values()), optim.lr * rate_at(rate, step, s.get("num_training_steps", 1))
        spread = clipped_sum(params.values(), norm, optim.clip)
        torch.nn.utils.clip_grads_with_norm_(params.values(), optim.clip, norm)
        guarded_step(optimizer, YES, lr)
        state = randar_names.export(params)
        norms = torch.stack([state[k].detach().norm() for k in case.spec["manifest"]])
        for k, v in zip(logs, (loss.detach(), norm, spread, torch.tensor(lr, dtype=torch.float64), norms)): logs[k].append(v)
    final = {"out.final_norm_weight": m.norm.weight, "out.final_pos_instruct": m.instruction, "out.final_wo_last": m.blocks[-1].attention.out.weight}
    return {f"out.{k}": torch.stack(v) for k, v in logs.items()} | final


@adapter("randar", "RandAR.applications.resolution_extrapolation.generate_resolution_extrapolation")
def larger(case):
    m, call, order = model(case), case.spec["call"], case["in.token_order"]
    b, side, low = len(order), math.isqrt(order.shape[1]), math.prod(m.config.grid)
    steps = call["num_inference_steps"]
    tape = {f"order.{k}": part.argsort(1).argsort(1) for k, part in zip(("coarse", "fine"), order.tensor_split([low], 1))}    # the i-th of the part's cells in raster order
    if "in.drop_idx" in case:
        dropped = torch.zeros(b, low, dtype=torch.bool).scatter_(1, case["in.drop_idx"], True)
        tape["blind"] = dropped.long().argsort(dim=1, descending=True, stable=True)
    how = Extrapolation(tuple(call["cfg_scales"]), tuple(call["spatial_cfg_scales"]), call["spatial_masking_ratio"], call["ntk_boundary"], None if steps == -1 else steps,
                        picks=(pick(call),), rows=b, compat="upstream")
    codes = extrapolate(m, Cond(case["in.cond"]), torch.arange(b), noise(case, **tape), (side, side), how)[..., 0]
    return {"out.indices": codes.clamp(min=0), "out.decoded": codes >= 0}


@adapter("randar", "*calculate_num_query_tokens_for_parallel_decoding*")
def schedules(case):
    out = {}
    for name in case.outs:
        n, start, steps = (int(m[1]) if (m := re.search(rf"{word}(-?\d+)", name)) else 0 for word in ("block", "start", "steps"))
        if not n: continue
        counts = randar(n, steps if steps > 0 else n, start)
        if ".tokens_per_step." in name: out[name] = torch.tensor(counts)
        elif ".ext_tokens_per_step." in name: out[name] = torch.tensor(counts[:-1])
        elif ".ext_undecoded" in name: out[name] = torch.tensor(counts[-1])
        else: out[name] = torch.tensor([linear(1.0, 4.0)(Clock(i, len(counts), sum(counts[:i]), n)) for i in range(len(counts))], dtype=torch.float64)
    for name, c in case.config["lr"].items():
        rate = published_rate(c)
        out[f"out.{name}.values"] = torch.tensor([c["base_lr"] * rate_at(rate, int(s), c.get("num_training_steps", 1)) for s in case[f"in.{name}.steps"]], dtype=torch.float64)
    return out


@adapter("randar", "*precompute_freqs_cis_2d*")
def rotary(case):
    out = {}
    for name, c in case.config.items():
        side, p, channels = c["grid_size"], c["cls_token_num"], c["n_elem"]
        if "extrapolation_factor" in c:
            one = mixed_angles(side, int(side // c["extrapolation_factor"]), channels // 2, c["base"], c["ntk_boundary"])
            cells = rotary_table(torch.cat((one.repeat_interleave(side, 0), one.repeat(side, 1)), -1))
        else: cells = rotary_2d(side, side, channels, c["base"])
        table = zero_prefix(cells, p)
        out[f"out.{name}"] = torch.cat((table[:3], table[3::7])) if "stored" in c else table
        if f"in.x{name[5:]}" in case: out[f"out.rot{name[5:]}"] = rotate(case[f"in.x{name[5:]}"], cells[case[f"in.pos{name[5:]}"]])
    return out


@adapter("randar", "RandAR.model.generate.sample")
def sample(case):
    out = {}
    for i, c in case.config.items():
        logits, clock, at = case[f"in.logits{i}"][:, -1:], Clock(0, 1, 0, 1), At(torch.arange(len(case[f"in.logits{i}"])))
        out[f"out.probs{i}"] = filtered(logits, **c).softmax(-1)[:, 0]
        for name, greedy in (("idx", False), ("argmax", True)):
            temperature = max(c["temperature"], 1e-5)
            out[f"out.{name}{i}"] = Pick(temperature, c["top_k"], c["top_p"], greedy)(logits, clock, Recorded({"token": Race(case[f"in.exp_noise{i}"][None])}), at)[0]
    return out
