"RAR: the transformer in any order, through the cache, generation, training, ratios, guidance scales and rates."
import torch

from tests.parity.harness import adapter
from vgnb.draws import At, Keyed, Race, Recorded
from vgnb.generators.annealed_order import AnnealedOrderTransformer, PowerCosine, annealed_orders, random_ratio
from vgnb.generators.generator import Clock, Cond, Grid, Plan
from vgnb.generators.rar_files import rar_config, rar_names
from vgnb.layers import Noise, dropped
from vgnb.recipes.rar_recipes import UNDECAYED
from vgnb.sampling.guidance import Ramped, Unguided
from vgnb.sampling.pick import Pick
from vgnb.sampling.sampler import Sampler
from vgnb.training.optimizers import gradient_norm, guarded_step, make_optimizer
from vgnb.training.recipes import Optim, Rate, rate_at

CLASS = "modeling.rar.RAR"
YES = torch.tensor(True)


def model(case, **changes):
    "The case's model, loaded through the importer."
    config = rar_config(case.config, **changes)
    return rar_names(config).load_into(AnnealedOrderTransformer(config), case.fill(), case.name).eval()


def published(m, tensors: dict) -> dict:
    "Our names (of parameters or gradients) -> published names."
    return rar_names(m.config).export(tensors)


def calls(function): return lambda spec: spec.get("call", {}).get("function") == function


def plain(what): return lambda spec: "call" not in spec and what in spec["tensors"]


@adapter("rar", CLASS, when=plain("out.labels"))
@torch.no_grad()
def forward(case):
    m, order = model(case), case["in.orders"]
    codes = case["in.idx"].gather(1, order)
    n = codes.shape[1]
    logits = m.head(m.run(m.condition(case["in.labels"]), codes, order, 0, n + 2)[:, 1:])     # and one row behind all
    asked, = m.logits(case["in.idx"][..., None], Cond(case["in.labels"]), Plan(order, [1] * n))
    loss = torch.nn.functional.cross_entropy(asked.flatten(0, 1), codes.flatten())
    whole = torch.cat((asked, logits[:, n:]), 1)
    return {"out.logits": whole, "out.labels": codes, "out.loss": loss,
            "out.accuracy": (asked.argmax(-1) == codes).float().mean()}


@torch.no_grad()
def stepped(m, case, order):
    "Logits (n, b, V) code by code through the cache."
    codes, out = case["in.idx"].gather(1, order)[..., None], []
    state = m.begin((Cond(case["in.labels"]),), Grid(m.grid))
    for cells, tokens in zip(order.split(1, 1), codes.split(1, 1)):
        out.append(m.predict(state, cells, live=1).logits[0, :, 0])
        m.accept(state, cells, tokens)
    return torch.stack(out)


@adapter("rar", CLASS, when=plain("out.logits_order"))
def cached(case):
    raster = torch.arange(case["in.idx"].shape[1]).expand_as(case["in.idx"])
    any_order = model(case, anneal_start=None)
    return {"out.logits_raster": stepped(model(case), case, raster),
            "out.logits_order": stepped(any_order, case, case["in.orders"])}


@adapter("rar", CLASS, when=calls("generate"))
def generate(case):
    m, call, labels = model(case), case.spec["call"], case["in.labels"]
    scale = call["guidance_scale"]
    guidance = Ramped(PowerCosine(scale, call["guidance_scale_pow"])) if scale else Unguided()
    pick = Pick(call["randomize_temperature"], greedy=call["greedy"])
    draws = Recorded({"token": Race(case["in.exp_noise"])}) if "in.exp_noise" in case else Keyed(0)
    sampler = Sampler(m, guidance=guidance, picks=(pick,), rows=len(labels))
    codes = sampler.sample(Cond(labels), torch.arange(len(labels)), draws, grid=Grid(m.grid))
    return {"out.indices": codes[..., 0]}


def settings(c):
    "Optimizer and rate of the authors' configuration."
    o, s = c["optimizer"]["params"], c["lr_scheduler"]
    optim = Optim(
        lr=o["learning_rate"], betas=(o["beta1"], o["beta2"]), weight_decay=o["weight_decay"],
        clip=c["training"]["max_grad_norm"], undecayed=UNDECAYED)
    return optim, rate(s["params"] | {"scheduler": s["scheduler"]})


def rate(c):
    "Our rate for their scheduler's arguments; past the end their cosine rises again."
    shape = {"constant": "constant_with_warmup"}.get(c["scheduler"], c["scheduler"])
    return Rate(shape, c["warmup_steps"], floor=c["end_lr"] / c["learning_rate"], compat="upstream")


@adapter("rar", CLASS, when=lambda spec: "optimizer" in spec["config"])
def training(case):
    m, (optim, moved), total = model(case).train(), settings(case.config), case.config["training"]["max_train_steps"]
    c, params, names = m.config, dict(m.named_parameters()), case.spec["checks"]["param_names"]
    optimizer = make_optimizer(optim, params)
    logs = {k: [] for k in ("random_ratio", "loss", "accuracy", "grad_norm_preclip", "lr", "param_norms")}
    out, n = {}, case["in.idx"].shape[-1]

    for step, (codes, labels) in enumerate(zip(case["in.idx"], case["in.labels"])):
        draws = Recorded({"class_drop": case["in.label_drop_rand"][step], "coin": case["in.order_rand"][step],
                          "order": case["in.perm"][step]})
        at = At(torch.arange(len(codes)), step=step)
        ratio = random_ratio(step, c.anneal_start, c.anneal_end)
        with torch.no_grad():
            order = annealed_orders(ratio, n, draws, at)
            logits = m._logits(codes, Cond(labels), Grid(m.grid), order, Noise(draws, at))
            right = (logits.argmax(-1) == codes.gather(1, order)).float().mean()
        loss = m(codes[..., None], Cond(labels), draws, at).total
        optimizer.zero_grad()
        loss.backward()
        if step == 0: out |= gradients(m, params, names)

        norm, lr = gradient_norm(params.values()), optim.lr * rate_at(moved, step, total)
        torch.nn.utils.clip_grads_with_norm_(params.values(), optim.clip, norm)
        guarded_step(optimizer, YES, lr)
        state = published(m, m.state_dict())
        norms = torch.stack([state[k].norm() for k in names])
        seen = ratio, loss.detach(), right, norm, lr, norms
        for k, v in zip(logs, seen): logs[k].append(torch.as_tensor(v, dtype=torch.float64 if k in WIDE else None))

    decayed = {id(p) for p in optimizer.param_groups[0]["params"]}
    marks = {k: torch.full_like(p, float(id(p) in decayed)) for k, p in params.items()}
    marked, last = published(m, marks), c.layers - 1
    final = {"out.final_proj_last": state[f"blocks.{last}.attn.proj.weight"], "out.final_cls_token": state["cls_token"],
             "out.final_lm_head_bias": state["lm_head.bias"]}
    return {f"out.{k}": torch.stack(v) for k, v in logs.items()} | out | final | {
        "out.decayed": torch.stack([marked[k].bool().all() for k in names])}


WIDE = ("random_ratio", "lr")      # recorded in float64


def gradients(m, params, names):
    "What the fixture looks at after the first backward pass, under published names."
    g = published(m, {k: torch.zeros_like(p) if p.grad is None else p.grad.clone() for k, p in params.items()})
    rows = slice(0, m.positions.shape[1] - m.config.spare + 3)
    return {
        "out.grad_norms_step0": torch.stack([g[k].norm() for k in names]),
        "out.grad_cls_token_step0": g["cls_token"],
        "out.grad_class_rows_step0": g["embeddings.weight"][m.config.vocab + 1:],
        "out.grad_pos_embed_step0": g["pos_embed"][0, rows],
        "out.grad_target_aware_pos_embed_step0": g["target_aware_pos_embed"][0, rows],
        "out.grad_timesteps_step0": g["timesteps_embeddings"][0, rows],
        "out.grad_adaln_first_bias_step0": g["blocks.0.adaLN_modulation.1.bias"],
        "out.grad_q_norm_first_step0": g["blocks.0.attn.q_norm.weight"],
        "out.grad_head_adaln_bias_step0": g["adaln_before_head.adaLN_modulation.1.bias"]}


@adapter("rar", "modeling.rar.RAR (*shuffle*")
def draws(case):
    c = case.config
    n, labels, at = c["image_seq_len"], case["in.labels"], At(torch.arange(len(case["in.labels"])))
    first = c["codebook_size"] + 1
    tape = Recorded({"class_drop": case["in.label_drop_rand"], "coin": case["in.order_rand"], "order": case["in.perm"]})
    out = {"out.null": torch.full_like(labels, first + c["condition_num_classes"])}
    for i, rate in enumerate(c["cond_drop_prob"]):
        gone = dropped(rate, Noise(tape, at))
        known = labels if gone is None else torch.where(gone, c["condition_num_classes"], labels)
        out[f"out.condition_{i}"] = first + known
    for i, ratio in enumerate(c["random_ratio"]):
        order = annealed_orders(ratio, n, tape, at)
        out |= {f"out.orders_{i}": order, f"out.shuffled_{i}": case["in.idx"].gather(1, order)}
    return out


@adapter("rar", "*get_rar_random_ratio")
def ratios(case):
    out = {}
    for run in case.config["runs"]:
        name, ends = run["name"], (run["randomness_anneal_start"], run["randomness_anneal_end"])
        values = [random_ratio(int(step), *ends) for step in case[f"in.step_{name}"]]
        out[f"out.ratio_{name}"] = torch.tensor(values, dtype=torch.float64)
    return out


@adapter("rar", "*RAR.generate (guidance scale)")
def scales(case):
    out = {}
    for c in case.config["settings"]:
        ramp, n = PowerCosine(c["guidance_scale"], c["guidance_scale_pow"]), c["image_seq_len"]
        out[f"out.scale_{c['name']}"] = torch.tensor([ramp(Clock(k, n, k, n)) for k in range(n)])
    return out


@adapter("rar", "*create_lr_scheduler")
def rates(case):
    out = {}
    for run in case.config["runs"]:
        name = run["name"]
        steps = case[f"in.step_{name}"].tolist()
        values = [run["learning_rate"] * rate_at(rate(run), step, run["max_train_steps"]) for step in steps]
        out[f"out.lr_{name}"] = torch.tensor(values, dtype=torch.float64)
    return out
