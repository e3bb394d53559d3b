"Halton-MaskGIT's generator side: the masked transformer, both samplers, orders, schedules, masks, training steps."
import re

import torch

from tests.parity.harness import adapter
from vgnb.draws import At, Recorded
from vgnb.generators.adaptive_orders import Confidence
from vgnb.generators.generator import Cond, Grid
from vgnb.generators.masked import MaskedTransformer, halton_config, halton_names
from vgnb.generators.masks import draw_mask
from vgnb.generators.orders import ORDERS, halton
from vgnb.generators.schedules import halton_steps, targets
from vgnb.sampling.guidance import CFG, Sharpened
from vgnb.sampling.pick import Pick
from vgnb.sampling.sampler import Sampler
from vgnb.training.optimizers import Average, gradient_norm, guarded_step, make_optimizer
from vgnb.training.recipes import Optim, Rate, rate_at

YES = torch.tensor(True)


def loaded(case, spec=None, **changes):
    "The case's model, loaded through the importer; single entries are set as the case says."
    state = case.fill()
    for name, o in (case.spec.get("override") or {}).items(): state[name][o["index"]] = o["value"]
    spec = case.config if spec is None else spec
    model = MaskedTransformer(halton_config(spec, compat="upstream", **changes))
    return halton_names.load_into(model, state, case.name).eval()


class Cells(Recorded):
    """Draws recorded for each (step, sample, cell): uniforms that pick by inverse CDF (among the kept tokens from the
    likeliest down, where a filter is on), noise for the choice of cells."""
    def _of_cells(self, name, at): return self.tape[name][int(at.step)][at.ids].gather(1, at.positions)

    def uniform(self, name, at, *shape):
        if at.positions is None: return super().uniform(name, at, *shape)
        return self._of_cells(name, at)
    gumbel = uniform

    def categorical(self, name, at, logits):
        p = logits.float().softmax(-1)
        by_rank = None
        if logits.isinf().any(): p, by_rank = p.sort(dim=-1, descending=True, stable=True)
        cumulative = (p / p.sum(-1, keepdim=True)).double().cumsum(-1)
        below = cumulative <= self._of_cells(name, at).double()[..., None]
        index = below.sum(-1).clamp(max=p.shape[-1] - 1)
        return index if by_rank is None else by_rank.gather(-1, index[..., None])[..., 0]


@adapter("halton", "Network.transformer.Transformer")
@torch.no_grad()
def transformer(case):
    m, codes = loaded(case), case["in.x"].flatten(1)
    hidden = codes == m.config.vocab
    known = codes.masked_fill(hidden, 0)[..., None]
    out = {}
    for name, gone in (("out.logits", case["in.drop"]), ("out.logits_flip", ~case["in.drop"])):
        cond = Cond(torch.where(gone, m.config.classes, case["in.y"]))
        out[name], = m.logits(known, cond, hidden, visible=case.inputs.get("in.mask"))
    return out


def chosen_by(case):
    "What was recorded of the choice of cells: Gumbel noise or uniforms."
    name = next((name for name in ("in.gumbel", "in.rand_like") if name in case), None)
    return {} if name is None else {"choice": case[name]}


def run(case, sampler, given=None):
    "Final codes; of each step: tokens drawn at all cells that were asked (-1 elsewhere), cells written, canvas."
    grid, ids = Grid(sampler.generator.grid), torch.arange(len(case["in.labels"]))
    tape = {"token": case["in.u"].unflatten(1, (len(ids), grid.n))}
    tape |= chosen_by(case)
    if "in.shift" in case: tape["order.roll"] = (case["in.shift"] + 0.5) / grid.n

    drawn, written, canvas = [], [], []
    steps = sampler.stream(Cond(case["in.labels"]), ids, Cells(tape), grid=grid, given=given, keep=("drawn",))
    for step in steps:
        cells, tokens = step.kept["drawn"]
        drawn.append(torch.full((len(ids), grid.n), -1).scatter(1, cells, tokens[..., 0]))
        written.append(torch.zeros(len(ids), grid.n).scatter(1, step.positions, 1.0))
        canvas.append(step.codes()[..., 0])
    last = canvas[-1].clamp(max=sampler.generator.config.vocab - 1)
    return tuple(t.unflatten(-1, grid.shape) for t in (last, *map(torch.stack, (drawn, written, canvas))))


@adapter("halton", "Sampler.halton_sampler.HaltonSampler")
def halton_sampler(case, around=lambda order: order):
    m, s = loaded(case, case.config["model"]), case.config["sampler"]
    order = around(ORDERS["halton-rolled" if s["randomize"] else "halton"])
    temperature = Sharpened(s["sm_temp_max"], s["sm_temp_min"], s["temp_pow"], s["temp_warmup"])
    pick = Pick(temperature, top_k=max(s["top_k"], 0))
    rows = len(case["in.labels"])
    sampler = Sampler(m, order, halton_steps, CFG(1.0 + s["w"]), (pick,), s["step"], rows, "upstream")
    codes, drawn, written, _ = run(case, sampler)
    return {"out.codes": codes, "out.l_codes": drawn, "out.l_mask": written}


def by_step(w):
    "Published guidance of confidence samplers: a scale that grows with the steps from 1 to 1 + w."
    return CFG(1.0 + w, start=1.0, by="step") if w else CFG(1.0)


def surest_first(s, **changes):
    "The order of the published confidence samplers: `randomize` says how cells are chosen, `r_temp` is the noise."
    noise = s["r_temp"] if s["randomize"] == "linear" else 0.0
    warmup = {"warm_up": 2, "random": -1}.get(s["randomize"], 0)
    return Confidence(noise, warmup=warmup, **changes)


@adapter("halton", "Sampler.confidence_sampler.ConfidenceSampler")
def confidence_sampler(case):
    m, s = loaded(case, case.config["model"]), case.config["sampler"]

    def counts(n, steps, start):
        "As in the original's loop, where a step may decide no cell."
        upto = [min(max(t, i + 1), n) for i, t in enumerate(targets(s["sched_mode"], n, steps))]
        return [b - a for a, b in zip([0, *upto], upto)]

    pick, rows = Pick(Sharpened(s["sm_temp"])), len(case["in.labels"])
    sampler = Sampler(m, surest_first(s, redraw=True), counts, by_step(s["w"]), (pick,), s["step"], rows, "upstream")
    given = None
    if "in.init_code" in case:
        known = case["in.init_code"] != m.config.vocab
        given = case["in.init_code"].masked_fill(~known, 0)[..., None], known
    codes, drawn, _, canvas = run(case, sampler, given)
    unknown = (canvas < 0) | (canvas == m.config.vocab)
    return {"out.codes": codes, "out.l_codes": drawn, "out.l_mask": unknown.float()}


@adapter("halton", "Sampler.confidence_sampler.ConfidenceSampler.build_sequence")
def sequences(case):
    out = {}
    for name in case.outs:
        m = re.fullmatch(r"out\.seq_([a-z]+)_(\d+)_(\d+)", name)
        if m: out[name] = torch.tensor(targets(m[1], int(m[2]) ** 2, int(m[3])))
    return out


@adapter("halton", "Sampler.halton_sampler.HaltonSampler.__call__")
def tokens_per_step(case):
    out = {}
    for name in case.outs:
        m = re.fullmatch(r"out\.new_(\d+)_(\d+)", name)
        if m: out[name] = torch.tensor(halton_steps(int(m[1]) ** 2, int(m[2])))
    return out


@adapter("halton", "Sampler.halton_sampler.HaltonSampler.build_halton_mask")
def orders(case):
    out = {}
    for name in case.outs:
        side = int(name.rsplit("_", 1)[1])
        cells = torch.from_numpy(halton(side, side))
        out[name] = torch.stack((cells // side, cells % side), 1)
    return out


@adapter("halton", "Utils.masking_scheduler.get_mask_code")
def masks(case):
    draws, codes = Recorded({"mask.ratio": case["in.r"], "mask.cells": case["in.u"].flatten(1)}), case["in.code"]
    at, out = At(torch.arange(len(codes))), {}
    for name in {k.rsplit("_", 1)[1] for k in case.outs}:
        mask = draw_mask(draws, at, codes[0].numel(), name).view_as(codes)
        out[f"out.mask_{name}"] = mask
        out[f"out.masked_{name}"] = codes.masked_fill(mask, case.config["value"])
    return out


@adapter("halton", "Trainer.abstract_trainer.Trainer.adapt_learning_rate")
def learning_rate(case):
    c = case.config
    rate = Rate("cosine_end", c["warm_up"], floor=0.01)
    values = [c["lr"] * rate_at(rate, int(i), c["max_iter"]) for i in case["in.iter"]]
    return {"out.lr64": torch.tensor(values, dtype=torch.float64)}


def trained(case, m, names, places=lambda u: u.flatten(1)):
    "What the case's steps make of a model; `places` turns the recorded uniforms into those of the cells (b, n)."
    c = case.config
    params = dict(m.train().named_parameters())
    optim = Optim(lr=c["lr"], betas=tuple(c["betas"]), eps=c["adam_eps"], weight_decay=c["weight_decay"],
                  decay_vectors=True, clip=c["grad_clip"])
    rate = Rate("cosine_end", c["warm_up"], floor=0.01)
    optimizer, average = make_optimizer(optim, params), Average(m, c["ema_decay"])

    logs = {name: [] for name in ("losses", "accs", "grad_norms", "lrs64")}
    for s in range(sum(name.endswith(".code") for name in case.inputs)):
        codes, y, u_drop, r, u_mask = (case[f"in.step{s}.{name}"] for name in ("code", "y", "u_drop", "r", "u_mask"))
        draws = Recorded({"class_drop": u_drop, "mask.ratio": r, "mask.cells": places(u_mask)})
        loss = m(codes.flatten(1)[..., None], Cond(y), draws, At(torch.arange(len(codes)), step=s))
        optimizer.zero_grad()
        loss.total.backward()

        norm = gradient_norm(params.values())
        lr = optim.lr * rate_at(rate, c["start_iter"] + s, c["max_iter"])
        torch.nn.utils.clip_grads_with_norm_(params.values(), optim.clip, norm)
        guarded_step(optimizer, YES, lr)
        average.update(YES)
        values = loss.total.detach(), loss.parts["accuracy"], norm, torch.tensor(lr, dtype=torch.float64)
        for log, value in zip(logs.values(), values): log.append(value)

    out = {f"out.{name}": torch.stack(log) for name, log in logs.items()}
    for kind, state in (("param", m.state_dict()), ("ema", average.state())):
        out |= {f"out.{kind}.{name}": v for name, v in names.export(state, m).items()}
    return {name: v[:case.outs[name][0][0]] if v.dim() else v for name, v in out.items() if name in case.outs}


@adapter("halton", "Trainer.cls_trainer.MaskGIT.train_one_epoch*")
def training(case):
    m = loaded(case, case.config["model"], class_dropout=case.config["drop_label"], mask_rate=case.config["sched_mode"])
    return trained(case, m, halton_names)
