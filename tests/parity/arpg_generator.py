"ARPG: both streams, groups through the cache, generation, training, classes, rotary tables, schedules, filters."
import torch

from tests.parity.harness import adapter
from vgnb.draws import At, Keyed, Race, Recorded
from vgnb.generators.generator import Clock, Cond, Grid, Plan
from vgnb.generators.orders import Given
from vgnb.generators.schedules import SCHEDULES
from vgnb.generators.two_streams import TwoStreamTransformer, arpg_config, arpg_names
from vgnb.layers import Noise, dropped, rotary_2d, rotate, zero_prefix
from vgnb.sampling.guidance import CFG
from vgnb.sampling.pick import Pick, filtered
from vgnb.sampling.sampler import Sampler
from vgnb.training.optimizers import Average, gradient_norm, guarded_step, make_optimizer
from vgnb.training.recipes import Optim, Rate, rate_at

CLASS = "models.arpg.Transformer"
YES = torch.tensor(True)


def model(case, **changes):
    "The case's model, loaded through the importer. Cases give the null class to models that never learnt it."
    rate = case.config.get("class_dropout_prob") or 0.1
    config = arpg_config(case.config, **({"class_dropout": rate} | changes))
    return arpg_names(config).load_into(TwoStreamTransformer(config), case.fill(), case.name).eval()


def published(m, tensors: dict) -> dict:
    "Our names (of parameters or gradients) -> published names."
    return arpg_names(m.config).export({"unused": m.unused} | tensors)


def calls(function): return lambda spec: spec.get("call", {}).get("function") == function


def labels_of(case, rate):
    "The classes of a case, those that are dropped as the null class."
    labels, draws = case["in.cond"], Recorded({"class_drop": case["in.label_drop_rand"]})
    gone = dropped(rate, Noise(draws, At(torch.arange(len(labels)))))
    return labels if gone is None else torch.where(gone, case.config["num_classes"], labels)


@adapter("arpg", CLASS, when=calls("forward"))
@torch.no_grad()
def forward(case):
    m, codes, order = model(case), case["in.idx"], case["in.token_order"]
    cond = Cond(labels_of(case, case.config["class_dropout_prob"]))
    logits, = m.logits(codes[..., None], cond, Plan(order, [1] * codes.shape[1]))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), codes.gather(1, order).flatten())
    return {"out.logits": logits, "out.loss": loss}


@torch.no_grad()
def walked(m, case, counts, superset=None):
    "Logits (b, n, V) of groups through the cache; with `superset` those of all unknown cells at that group."
    order, codes, out = case["in.token_order"], case["in.idx"], []
    state = m.begin((Cond(case["in.cond"]),), Grid(m.grid))
    for step, group in enumerate(Plan(order, counts).groups()):
        cells = order[:, group]
        if step == superset: return m.predict(state, order[:, group.start:], live=1).logits[0]
        out.append(m.predict(state, cells, live=1).logits[0])
        m.accept(state, cells, codes.gather(1, cells)[..., None])
    return torch.cat(out, 1)


@adapter("arpg", CLASS, when=calls("cached_groups"))
@torch.no_grad()
def groups(case):
    ours, theirs, call = model(case), model(case, compat="upstream"), case.spec["call"]
    order = case["in.token_order"]
    ones = Plan(order, [1] * order.shape[1])
    out = {"out.logits_train": ours.logits(case["in.idx"][..., None], Cond(case["in.cond"]), ones)[0]}
    for name, counts in call["counts"].items():
        out[f"out.logits.{name}"] = walked(theirs, case, counts)
        out[f"out.logits_causal.{name}"] = walked(ours, case, counts)
    name, group = call["superset"]["counts"], call["superset"]["group"]
    out[f"out.logits_superset.{name}.group{group}"] = walked(theirs, case, call["counts"][name], group)
    return out


@adapter("arpg", CLASS, when=calls("classes"))
@torch.no_grad()
def classes(case):
    m, c, call = model(case), case.config, case.spec["call"]
    first, ids = c["vocab_size"] + 1, []
    for rate in call["cond_drop_probs"]: ids.append(labels_of(case, rate)[:, None])
    table, cells = m.condition.table.weight, case["in.cells"]
    state = m.begin((Cond(ids[0][:, 0]),), Grid(m.grid))
    logits = m.predict(state, cells.expand(len(ids[0]), -1), live=1).logits[0]
    out = {f"out.ids{i}": first + labels for i, labels in enumerate(ids)}
    return out | {
        "out.vectors": m.condition(ids[1][:, 0]), "out.mask_vector": m.query[0], "out.null_vector": table[-1],
        "out.unused_vector": m.unused[0], "out.token_vectors": m.tokens.weight[[0, -1]], "out.logits_first": logits}


def in_order(name, case):
    "Recorded rows (n, ...) of a run, which the case lists in generation order."
    return case[name] if name in case else None


@adapter("arpg", CLASS, when=calls("generate"))
def generate(case):
    m, call, cond = model(case, compat="upstream"), case.spec["call"], case["in.cond"]
    scale = call["guidance_scale"]
    guidance = CFG(scale, start=1.0, by="after") if call["cfg_schedule"] == "linear" else CFG(scale)
    pick = Pick(call["temperature"], call["top_k"], call["top_p"], greedy=call["top_k"] == 1)
    noise = in_order("in.exp_noise", case)
    draws = Keyed(0) if noise is None else Recorded({"token": Race(noise)})
    sampler = Sampler(m, Given(case["in.token_order"]), SCHEDULES[f"arpg-{call['sample_schedule']}"], guidance, (pick,),
                      call["num_iter"], rows=len(cond), compat="upstream")
    steps = sampler.stream(Cond(cond), torch.arange(len(cond)), draws, grid=Grid(m.grid), keep=("logits",))
    logits = []
    for step in steps: logits += step.kept["logits"][0].transpose(0, 1)                # (k, b, V)
    return {"out.indices": step.codes()[..., 0], "out.logits": torch.stack(logits)}


@adapter("arpg", CLASS, when=calls("train"))
def training(case):
    c, o, names = case.config, case.config["optimizer"], case.spec["checks"]["param_names"]
    m = model(case).train()
    params = dict(m.named_parameters())
    optim = Optim(lr=c["lr_scheduler"]["lr"], betas=(o["beta1"], o["beta2"]), weight_decay=o["weight_decay"],
                  clip=o["max_grad_norm"])
    optimizer, average, out = make_optimizer(optim, params), Average(m, c["ema_decay"]), {}
    logs = {k: [] for k in ("loss", "grad_norm_preclip", "lr", "param_norms")}
    for step, (codes, labels) in enumerate(zip(case["in.idx"], case["in.cond"])):
        draws = Recorded({"class_drop": case["in.label_drop_rand"][step], "order": case["in.token_order"][step]})
        loss = m(codes[..., None], Cond(labels), draws, At(torch.arange(len(codes)), step=step)).total
        optimizer.zero_grad()
        loss.backward()
        if step == 0: out |= gradients(m, params, names)
        norm, lr = gradient_norm(params.values()), rate(c["lr_scheduler"], step)
        torch.nn.utils.clip_grads_with_norm_(params.values(), optim.clip, norm)
        guarded_step(optimizer, YES, lr)
        average.update(YES)
        state = published(m, m.state_dict())
        norms = torch.stack([state[k].norm() for k in names])
        for k, v in zip(logs, (loss.detach(), norm, torch.tensor(lr, dtype=torch.float64), norms)): logs[k].append(v)

    mean, v = published(m, average.state()), m.config.vocab
    return out | {f"out.{k}": torch.stack(v) for k, v in logs.items()} | {
        "out.final.norm.weight": state["norm.weight"], "out.final.layers.norm.weight": state["layers.norm.weight"],
        "out.final.head.weight.rows4": state["head.weight"][:4],
        "out.final.embeddings.mask_row": state["embeddings.weight"][v],
        "out.final.embeddings.unused_row": state["embeddings.weight"][-1],
        "out.ema.norm.weight": mean["norm.weight"], "out.ema.embeddings.mask_row": mean["embeddings.weight"][v]}


def gradients(m, params, names):
    "What the fixture looks at after the first backward pass, under published names."
    g = published(m, {"unused": torch.zeros_like(m.unused)} | {k: p.grad.clone() for k, p in params.items()})
    table, v = g["embeddings.weight"], m.config.vocab
    rows = {"out.grad.head.weight.rows4": "head.weight",
            "out.grad.layers.self_dec.0.attn.to_v.weight.rows4": "layers.self_dec.0.attn.to_v.weight",
            "out.grad.layers.cross_dec.0.attn.to_q.weight.rows4": "layers.cross_dec.0.attn.to_q.weight"}
    return {name: g[theirs][:4] for name, theirs in rows.items()} | {
        "out.grad_norms_step0": torch.stack([g[k].norm() for k in names]),
        "out.grad.norm.weight": g["norm.weight"], "out.grad.layers.to_k.weight": g["layers.to_k.weight"],
        "out.grad.embeddings.mask_row": table[v], "out.grad.embeddings.null_row": table[-2],
        "out.grad.embeddings.rows_nonzero": table.abs().sum(1) > 0}


def rate(c, step=None, epoch=None):
    "The rate at a step, or at a fractional epoch; theirs is a function of epochs alone."
    fine = 10 ** 6                                            # steps of an epoch, so fine that none is between two
    shape = {"constant": "constant_with_warmup"}.get(c["lr_schedule"], c["lr_schedule"])
    per_epoch = fine if step is None else c["steps_per_epoch"]
    ours = Rate(shape, c["warmup_epochs"] * per_epoch, floor=c["min_lr"] / c["lr"])
    at = epoch * fine if step is None else step
    return c["lr"] * rate_at(ours, at, c["epochs"] * per_epoch)


@adapter("arpg", "*adjust_learning_rate")
def schedules(case):
    c, out = case.config, {}
    ramp = CFG(c["guidance_scale"], start=1.0, by="after").ramp()
    for curve in ("arccos", "cosine"):
        for n, steps in c["pairs"]:
            counts, done, scales = SCHEDULES[f"arpg-{curve}"](n, steps, 0), 0, []
            for step, count in enumerate(counts):
                scales.append(ramp(Clock(step, len(counts), done, n, count=count)))
                done += count
            out[f"out.counts.{curve}.n{n}.steps{steps}"] = torch.tensor(counts)
            out[f"out.cfg_linear.{curve}.n{n}.steps{steps}"] = torch.tensor(scales, dtype=torch.float64)
    for name, settings in c["lr"].items():
        values = [rate(settings, epoch=float(e)) for e in case[f"in.{name}.epochs"]]
        out[f"out.{name}.values"] = torch.tensor(values, dtype=torch.float64)
    return out


@adapter("arpg", "*precompute_freqs_cis_2d*")
def rotary(case):
    out = {}
    for name, c in case.config.items():
        which, side = name[5:], c["grid_size"]
        table = zero_prefix(rotary_2d(side, side, c["n_elem"], c["base"]), c["cls_token_num"])
        out[f"out.{name}"] = table
        out[f"out.rot{which}"] = rotate(case[f"in.x{which}"], table[case[f"in.rows{which}"]])
    return out


@adapter("arpg", "*top_k_top_p_filtering")
def filters(case):
    out = {}
    for i, c in case.config.items():
        logits = case[f"in.logits{i}"][:, None]
        kept = filtered(logits, **c)
        draws = Recorded({"token": Race(case[f"in.exp_noise{i}"][None])})
        pick = Pick(max(c["temperature"], 1e-5), c["top_k"], c["top_p"])
        tokens, _ = pick(logits, Clock(0, 1, 0, 1), draws, At(torch.arange(len(logits))))
        out |= {f"out.filtered{i}": kept[:, 0], f"out.probs{i}": kept.softmax(-1)[:, 0], f"out.idx{i}": tokens}
    return out
