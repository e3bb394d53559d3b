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
from vgnb.sampling.guidance import CFG, cfg, linear, sharpened
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
    return halton_names.load_into(MaskedTransformer(halton_config(spec, compat="upstream", **changes)), state, case.name).eval()


class Cells(Recorded):
    "Draws recorded for each (step, sample, cell): uniforms that pick by inverse CDF (among the kept tokens from the likeliest down, where a filter is on), noise for the choice of cells."
    def _at(self, name, at): return self.tape[name][int(at.step)][at.ids].gather(1, at.positions)

    def uniform(self, name, at, *shape): return self._at(name, at) if at.positions is not None else super().uniform(name, at, *shape)
    gumbel = uniform

    def categorical(self, name, at, logits):
        p, by = logits.float().softmax(-1).sort(dim=-1, descending=True, stable=True) if logits.isinf().any() else (logits.float().softmax(-1), None)
        c = (p / p.sum(-1, keepdim=True)).double().cumsum(-1)
        index = (c <= self._at(name, at).double()[..., None]).sum(-1).clamp(max=p.shape[-1] - 1)
        return index if by is None else by.gather(-1, index[..., None])[..., 0]


@adapter("halton", "Network.transformer.Transformer")
@torch.no_grad()
def transformer(case):
    m, codes = loaded(case), case["in.x"].flatten(1)
    hidden, out = codes == m.config.vocab, {}
    for name, gone in (("out.logits", case["in.drop"]), ("out.logits_flip", ~case["in.drop"])):
        cond = Cond(torch.where(gone, m.config.classes, case["in.y"]))
        out[name], = m.logits(codes.masked_fill(hidden, 0), cond, hidden, seen=case.inputs.get("in.mask"))
    return out


def run(case, sampler, given=None):
    "(final codes, tokens drawn in each step at all cells that were asked (-1 elsewhere), cells written in each step, canvas after each step)."
    ids, g = torch.arange(len(case["in.labels"])), sampler.generator
    shape, n = g.config.grid, g.config.grid[0] * g.config.grid[1]
    tape = {"token": case["in.u"].unflatten(1, (len(ids), n))}
    tape |= {"choice": case[k] for k in ("in.gumbel", "in.rand_like") if k in case} | ({"order.roll": (case["in.shift"] + 0.5) / n} if "in.shift" in case else {})
    drawn, written, canvas = [], [], []
    for s in sampler.stream(Cond(case["in.labels"]), ids, Cells(tape), grid=Grid(shape), given=given, keep=("drawn",)):
        cells, tokens = s.kept["drawn"]
        drawn.append(torch.full((len(ids), n), -1).scatter(1, cells, tokens[..., 0]))
        written.append(torch.zeros(len(ids), n).scatter(1, s.positions, 1.0))
        canvas.append(s.codes()[..., 0])
    last = canvas[-1].clamp(max=g.config.vocab - 1)
    return tuple(t.unflatten(-1, shape) for t in (last, *map(torch.stack, (drawn, written, canvas))))


@adapter("halton", "Sampler.halton_sampler.HaltonSampler")
def halton_sampler(case, around=lambda order: order):
    m, s = loaded(case, case.config["model"]), case.config["sampler"]
    pick = Pick(sharpened(s["sm_temp_max"], s["sm_temp_min"], s["temp_pow"], s["temp_warmup"]), top_k=max(s["top_k"], 0))
    sampler = Sampler(m, around(ORDERS["halton-rolled" if s["randomize"] else "halton"]), halton_steps, cfg(1 + s["w"]), (pick,), s["step"], len(case["in.labels"]), "upstream")
    codes, drawn, written, _ = run(case, sampler)
    return {"out.codes": codes, "out.l_codes": drawn, "out.l_mask": written}


@adapter("halton", "Sampler.confidence_sampler.ConfidenceSampler")
def confidence_sampler(case):
    m, s = loaded(case, case.config["model"]), case.config["sampler"]
    noise = linear(s["r_temp"], 0.0, "step") if s["randomize"] == "linear" else 0.0
    order = Confidence(noise, {"warm_up": 2, "random": -1}.get(s["randomize"], 0), redraw=True)

    def counts(n, steps, start):
        upto = [min(max(t, i + 1), n) for i, t in enumerate(targets(s["sched_mode"], n, steps))]
        return [b - a for a, b in zip([0, *upto], upto)]
    guidance = CFG(linear(1.0, 1.0 + s["w"], "step")) if s["w"] else cfg(1.0)
    sampler = Sampler(m, order, counts, guidance, (Pick(sharpened(s["sm_temp"])),), s["step"], len(case["in.labels"]), "upstream")
    given = None
    if "in.init_code" in case:
        known = case["in.init_code"] != m.config.vocab
        given = (case["in.init_code"].masked_fill(~known, 0)[..., None], known)
    codes, drawn, _, canvas = run(case, sampler, given)
    return {"out.codes": codes, "out.l_codes": drawn, "out.l_mask": ((canvas < 0) | (canvas == m.config.vocab)).float()}


@adapter("halton", "Sampler.confidence_sampler.ConfidenceSampler.build_sequence")
def sequences(case):
    return {k: torch.tensor(targets(m[1], int(m[2]) ** 2, int(m[3]))) for k in case.outs if (m := re.fullmatch(r"out\.seq_([a-z]+)_(\d+)_(\d+)", k))}


@adapter("halton", "Sampler.halton_sampler.HaltonSampler.__call__")
def tokens_per_step(case):
    return {k: torch.tensor(halton_steps(int(m[1]) ** 2, int(m[2]))) for k in case.outs if (m := re.fullmatch(r"out\.new_(\d+)_(\d+)", k))}


@adapter("halton", "Sampler.halton_sampler.HaltonSampler.build_halton_mask")
def orders(case):
    return {k: torch.stack((c // n, c % n), 1) for k in case.outs for n in [int(k.rsplit("_", 1)[1])] for c in [torch.from_numpy(halton(n, n))]}


@adapter("halton", "Utils.masking_scheduler.get_mask_code")
def masks(case):
    draws, codes, out = Recorded({"mask.ratio": case["in.r"], "mask.cells": case["in.u"].flatten(1)}), case["in.code"], {}
    for name in {k.rsplit("_", 1)[1] for k in case.outs}:
        mask = draw_mask(draws, At(torch.arange(len(codes))), codes[0].numel(), name).view_as(codes)
        out |= {f"out.mask_{name}": mask, f"out.masked_{name}": codes.masked_fill(mask, case.config["value"])}
    return out


@adapter("halton", "Trainer.abstract_trainer.Trainer.adapt_learning_rate")
def learning_rate(case):
    c = case.config
    rate = Rate("cosine_end", c["warm_up"], floor=0.01)
    return {"out.lr64": torch.tensor([c["lr"] * rate_at(rate, int(i), c["max_iter"]) for i in case["in.iter"]], dtype=torch.float64)}


def trained(case, m, names, places=lambda u: u.flatten(1)):
    "Losses, norms, rates and weights of the case's steps on a model; `places` turns the recorded uniforms into those of the cells (b, n)."
    c, steps = case.config, sum(k.endswith(".code") for k in case.inputs)
    params, logs = dict(m.train().named_parameters()), {k: [] for k in ("losses", "accs", "grad_norms", "lrs64")}
    optim = Optim(lr=c["lr"], betas=tuple(c["betas"]), eps=c["adam_eps"], weight_decay=c["weight_decay"], decay_vectors=True, clip=c["grad_clip"])
    rate, optimizer, ema = Rate("cosine_end", c["warm_up"], floor=0.01), make_optimizer(optim, params), Average(m, c["ema_decay"])
    for s in range(steps):
        get = lambda k: case[f"in.step{s}.{k}"]
        codes, draws = get("code").flatten(1), Recorded({"class_drop": get("u_drop"), "mask.ratio": get("r"), "mask.cells": places(get("u_mask"))})
        loss = m(codes, Cond(get("y")), draws, At(torch.arange(len(codes)), step=s))
        optimizer.zero_grad(); loss.total.backward()
        norm, lr = gradient_norm(params.values()), optim.lr * rate_at(rate, c["start_iter"] + s, c["max_iter"])
        torch.nn.utils.clip_grads_with_norm_(params.values(), optim.clip, norm)
        guarded_step(optimizer, YES, lr); ema.update(YES)
        for k, v in zip(logs, (loss.total.detach(), loss.parts["accuracy"], norm, torch.tensor(lr, dtype=torch.float64))): logs[k].append(v)
    out = {f"out.{k}": torch.stack(v) for k, v in logs.items()}
    for kind, state in (("param", m.state_dict()), ("ema", ema.state())):
        out |= {f"out.{kind}.{k}": v for k, v in names.export(state, m).items()}
    return {k: v[:case.outs[k][0][0]] if v.dim() else v for k, v in out.items() if k in case.outs}


@adapter("halton", "Trainer.cls_trainer.MaskGIT.train_one_epoch*")
def training(case):
    m = loaded(case, case.config["model"], class_dropout=case.config["drop_label"], mask_rate=case.config["sched_mode"])
    return trained(case, m, halton_names)
