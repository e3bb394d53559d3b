"IAR2's generator side: training, sampling with two codes a cell, guidance, rotary table, window, learning rates."
import torch

from tests.parity.harness import adapter
from vgnb.draws import At, Keyed, Race, Recorded
from vgnb.generators.generator import Clock, Cond, Grid
from vgnb.generators.semantic_detail import (
    SemanticDetailTransformer,
    half_rate,
    iar2_config,
    iar2_names,
    window_cells,
    windows,
)
from vgnb.layers import rotary_2d, zero_prefix
from vgnb.sampling.attended_guidance import AttendedGuidance, iar2_guidance
from vgnb.sampling.pick import Pick
from vgnb.sampling.sampler import Sampler
from vgnb.training.optimizers import gradient_norm, guarded_step, make_optimizer
from vgnb.training.recipes import Optim, Rate, rate_at

MODELS = "autoregressive.models"
YES = torch.tensor(True)


def model(case, **changes):
    "The case's model, loaded through the importer; the grid is the window's."
    config = iar2_config(case.config, compat="upstream", grid=tuple(case.config["window_grid"]), **changes)
    return iar2_names.load_into(SemanticDetailTransformer(config), case.fill(), case.name).eval()


def published(tensors: dict) -> dict:
    "Our names (of parameters or gradients) → published names."
    return iar2_names.export(tensors)


def shown(tensors: dict, case, prefix: str) -> dict:
    "The asked-for tensors under `prefix`, as many rows as the case holds."
    asked = {name: shape[0] for name, (shape, _) in case.outs.items() if name.startswith(prefix)}
    return {name: tensors[name.removeprefix(prefix)][:rows].clone() for name, rows in asked.items()}


@adapter("iar2", f"{MODELS}.gpt_train.Transformer + train_c2i_ddp.py loop")
def training(case):
    c = case.config
    m = model(case).train()
    params = dict(m.named_parameters())
    optim = Optim(lr=c["lr"], betas=tuple(c["betas"]), weight_decay=c["weight_decay"], clip=c["max_grad_norm"])
    optimizer, rate = make_optimizer(optim, params), Rate("cosine", floor=c["min_lr"] / c["lr"])

    out, losses, norms, rates = {}, [], [], []
    for step in range(sum(k.startswith("in.sem") for k in case.inputs)):
        codes = torch.stack((case[f"in.sem{step}"], case[f"in.det{step}"]), -1)
        labels, dropped = case[f"in.y{step}"], case[f"in.u{step}"]
        if step == 0:
            null = torch.where(dropped < c["class_dropout_prob"], c["num_classes"], labels)
            with torch.no_grad(): out["out.logits_sem0"], out["out.logits_det0"] = m.logits(codes, Cond(null))

        draws, at = Recorded({"class_drop": dropped}), At(torch.arange(len(codes)), step=step)
        loss = m(codes, Cond(labels), draws, at)
        optimizer.zero_grad()
        loss.total.backward()
        if step == 0: out |= shown(published({k: p.grad for k, p in params.items()}), case, "out.grad0.")

        norms.append(gradient_norm(params.values()))
        losses.append(torch.stack((loss.total.detach(), *loss.parts.values())))
        rates.append(optim.lr * rate_at(rate, step, c["cosine_T_max"]))
        torch.nn.utils.clip_grads_with_norm_(params.values(), optim.clip, norms[-1])
        guarded_step(optimizer, YES, rates[-1])

    out |= shown(published(m.state_dict()), case, "out.param.")
    lrs = torch.tensor(rates, dtype=torch.float64)
    return out | {"out.losses": torch.stack(losses), "out.grad_norms": torch.stack(norms), "out.lrs": lrs}


class Noise(Recorded):
    "Exponential races, one tape a level."
    def __init__(self, levels): self.levels = [Recorded({"token": Race(noise)}) for noise in levels]
    def categorical(self, name, at, logits): return self.levels[at.level].categorical(name, at, logits)


@adapter("iar2", f"{MODELS}.generate.sample + gpt_inference.Transformer")
def generate(case):
    c, m, cond = case.config, model(case), Cond(case["in.cond"])
    settings = zip(c["temperature"], c["top_k"], c["top_p"])
    picks = tuple(Pick(temperature, top_k, top_p) for temperature, top_k, top_p in settings)
    drawn = "in.noise_sem" in case
    draws = Noise((case["in.noise_sem"], case["in.noise_det"])) if drawn else Keyed(0)

    rows, columns = m.grid
    grid = Grid((c["steps"] // columns, columns) if c["steps"] != rows * columns else m.grid)
    guidance = iar2_guidance(tuple(map(tuple, c["cfg_scale"])), c["w_attn"])
    sampler = Sampler(m, guidance=guidance, picks=picks, rows=cond.b, compat="upstream")
    codes = sampler.sample(cond, torch.arange(cond.b), draws, grid=grid)
    return {"out.sem": codes[..., 0], "out.det": codes[..., 1]}


@adapter("iar2", "generate.sample (guidance scale)")
def scales(case):
    c, attention = case.config, case["in.attn"]
    start, end = zip(*c["cfg_scale"])
    guidance = AttendedGuidance(start, end, c["w_attn"])
    omega = AttendedGuidance((0.0,), (1.0,), c["w_attn"])        # the scale between 0 and 1 is omega itself
    steps = len(attention)
    clocks = [Clock(i, steps, i, steps) for i in range(steps)]

    def along(part, level=0):
        return torch.stack([part.scales(a, clock._replace(level=level)) for a, clock in zip(attention, clocks)])

    return {"out.omega": along(omega), "out.scale_sem": along(guidance), "out.scale_det": along(guidance, 1)}


@adapter("iar2", f"{MODELS}.gpt_train.precompute_freqs_cis_2d")
@adapter("iar2", "gpt_train.precompute_freqs_cis_2d")
def rotary(case):
    out = {}
    for grid, channels, base, prefix in case.config["sets"]:
        table = zero_prefix(rotary_2d(grid, grid, channels, base), prefix)
        out[f"out.freqs2d_g{grid}_hd{channels}_b{base}_c{prefix}"] = half_rate(table, prefix)
    return out


@adapter("iar2", "gpt_train.WindowExtractor")
def extractor(case):
    out, (first, *_) = {}, case.config["grids"]
    for h, w in case.config["grids"]:
        cells = window_cells(h, w)
        inside = cells < h * w
        out |= {f"out.indices_{h}x{w}": cells.where(inside, 0), f"out.mask_{h}x{w}": inside}
    h = case["in.h"]
    return out | {"out.windows": windows(h, window_cells(*first), torch.zeros(h.shape[-1]))}


@adapter("iar2", "train_c2i_ddp.create_lr_scheduler")
def learning_rates(case):
    c = case.config
    lr, floor, steps = c["lr"], c["min_lr"] / c["lr"], c["total_steps"]
    rates = {
        "cosine": Rate("cosine", floor=floor, compat="upstream"),
        "linear": Rate("linear", floor=floor),
        "step": Rate("step", compat="upstream")}
    rows = {name: shape[0] for name, (shape, _) in case.outs.items()}

    def taken(name):
        used = [lr * rate_at(rates[name.removeprefix("out.")], step, steps) for step in range(rows[name])]
        return torch.tensor(used, dtype=torch.float64)

    return {name: taken(name) for name in rows}
