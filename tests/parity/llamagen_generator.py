"LlamaGen's generator side: the transformer with and without cache, training steps, generation, rotary tables, filters, stochastic depth."
import torch

from tests.parity.harness import adapter
from vgnb.data.text import left_pad
from vgnb.draws import At, Keyed, Race, Recorded
from vgnb.generators.generator import Cond, Grid
from vgnb.generators.raster import RasterTransformer, llamagen_config, llamagen_gpt_names
from vgnb.layers import drop_path, drop_path_rates, rotary_1d, rotary_2d, rotate, zero_prefix
from vgnb.sampling.guidance import cfg
from vgnb.sampling.pick import Pick, filtered
from vgnb.sampling.sampler import Sampler
from vgnb.training.optimizers import Average, gradient_norm, guarded_step, make_optimizer
from vgnb.training.recipes import Optim

YES = torch.tensor(True)


def model(case, **changes):
    "The case's model, loaded through the importer."
    return llamagen_gpt_names.load_into(RasterTransformer(llamagen_config(case.config, compat="upstream", **changes)), case.fill(), case.name).eval()


def published(tensors: dict) -> dict:
    "Our names (of parameters or gradients) → published names."
    return llamagen_gpt_names.export(tensors)


def grid_of(m): return Grid(m.config.grid)


@torch.no_grad()
def cached(m, codes, cond):
    "Logits (b, n, V) code by code through the cache."
    grid = grid_of(m)
    state, out, cells = m.begin((cond,), grid), [], torch.arange(grid.n).expand(len(codes), -1)
    for i in range(grid.n):
        out.append(m.predict(state, cells[:, i:i + 1], live=1).logits[0])
        m.accept(state, cells[:, i:i + 1], codes[:, i:i + 1, None])
    return torch.cat(out, 1)


@adapter("llamagen", "autoregressive.models.gpt.Transformer")
@torch.no_grad()
def transformer(case):
    m, codes, cond = model(case), case["in.idx"], Cond(case["in.cond"])
    return {"out.logits": m.logits(codes, cond)[0], "out.logits_cached": cached(m, codes, cond)}


@adapter("llamagen", "autoregressive.models.gpt.Transformer + creat_optimizer + update_ema *")
def training(case):
    c = case.config
    m, steps, out = model(case).train(), sum(k.startswith("in.idx") for k in case.inputs), {}
    params = dict(m.named_parameters())
    optim = Optim(lr=c["lr"], betas=tuple(c["betas"]), weight_decay=c["weight_decay"], clip=c["max_grad_norm"])
    optimizer, ema, losses, norms = make_optimizer(optim, params), Average(m, c["ema_decay"]), [], []
    for s in range(steps):
        codes, at = case[f"in.idx{s}"], At(torch.arange(len(case[f"in.idx{s}"])), step=s)
        draws = Recorded({"class_drop": case[f"in.u{s}"]})
        if s == 0:
            labels = torch.where(case["in.u0"] < c["class_dropout_prob"], c["num_classes"], case["in.y0"])
            with torch.no_grad(): out["out.logits0"] = m.logits(codes, Cond(labels))[0]
        loss = m(codes, Cond(case[f"in.y{s}"]), draws, at).total
        optimizer.zero_grad(); loss.backward()
        if s == 0: out |= {f"out.grad0.{k}": g.clone() for k, g in published({k: p.grad for k, p in params.items()}).items()}
        norms.append(gradient_norm(params.values())); losses.append(loss.detach())
        torch.nn.utils.clip_grads_with_norm_(params.values(), optim.clip, norms[-1])
        guarded_step(optimizer, YES, optim.lr); ema.update(YES)
    out |= {f"out.param.{k}": v for k, v in published(m.state_dict()).items()} | {f"out.ema.{k}": v for k, v in published(ema.state()).items()}
    return out | {"out.losses": torch.stack(losses), "out.grad_norms": torch.stack(norms)}


@adapter("llamagen", "autoregressive.models.gpt.Transformer (t2i training)")
def text_training(case):
    m, codes, text = model(case).train(), case["in.idx"], case["in.cond"]
    cond = Cond(text=text, mask=case["in.mask"][:, 0, -1, :text.shape[1]])              # the last row sees all that is no padding
    loss = m(codes, cond, Recorded({"class_drop": case["in.u"]}), At(torch.arange(len(codes))), valid=case["in.valid"]).total
    loss.backward()
    gone = (case["in.u"] < case.config["class_dropout_prob"])[:, None, None]
    with torch.no_grad():
        logits = m.logits(codes, Cond(text=torch.where(gone, m.condition.null, text), mask=cond.mask))[0]
        caption = m.condition(text)[:, ::text.shape[1] // case.outs["out.caption_embedding"][0][1]]      # every tenth of 120 tokens
    return {"out.loss": loss, "out.logits": logits, "out.caption_embedding": caption,
            "out.grad.cap_proj_fc1": m.condition.fc1.weight.grad, "out.grad.wqkv0": m.blocks[0].attention.qkv.weight.grad}


def generated(case, cond):
    "Codes of the case's sampler settings, int32 as published."
    c, m = {"cfg_interval": -1, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "sample_logits": False} | case.config, model(case)
    pick = Pick(c["temperature"], c["top_k"], c["top_p"], greedy=not c["sample_logits"])
    draws = Recorded({"token": Race(case["in.exp_noise"])}) if "in.exp_noise" in case else Keyed(0)
    sampler = Sampler(m, guidance=cfg(c["cfg_scale"], c["cfg_interval"]), picks=(pick,), rows=cond.b, compat="upstream")
    return sampler.sample(cond, torch.arange(cond.b), draws, grid=Grid((c["max_new_tokens"] // m.config.grid[1], m.config.grid[1])))[..., 0].int()


@adapter("llamagen", "autoregressive.models.generate.generate")
def generate(case): return {"out.tokens": generated(case, Cond(case["in.cond"]))}


@adapter("llamagen", "autoregressive.models.generate.generate (t2i)")
def generate_text(case):
    text, mask = left_pad(case["in.caption_embs"], case["in.masks"])
    tokens = generated(case, Cond(text=text, mask=mask if case.config["use_masks"] else None))
    return {"out.left_padded": text, "out.left_mask": mask, "out.tokens": tokens}


@adapter("llamagen", "autoregressive.models.gpt.precompute_freqs_cis_2d / apply_rotary_emb")
def rotary(case):
    tables = {}
    for grid, channels, base, prefix in next(v for k, v in case.config.items() if k.startswith("sets")):
        tables[f"out.freqs2d_g{grid}_hd{channels}_b{base}_c{prefix}"] = zero_prefix(rotary_2d(grid, grid, channels, base), prefix)
    rows, planes, _ = case.outs["out.freqs1d"][0]
    return tables | {"out.rotated": rotate(case["in.x"], next(iter(tables.values()))), "out.freqs1d": zero_prefix(rotary_1d(rows - 2, 2 * planes), 2)}


@adapter("llamagen", "autoregressive.models.generate.sample")
def sample(case):
    out = {}
    for name in case.outs:
        parts = dict(zip("kpt", (0, 1.0, 1.0))) | {p[0]: float(p[1:]) for p in name.split("probs_")[1].split("_")}
        out[name] = filtered(case["in.tie_logits" if ".tie_" in name else "in.logits"], parts["t"], int(parts["k"]), parts["p"]).softmax(-1)
    return out


@adapter("llamagen", "utils.drop_path.drop_path")
def stochastic_depth(case):
    rate = case.config["drop_prob"]
    return {"out.y": drop_path(case["in.x"], case["in.mask"].flatten(), rate), "out.rates": torch.tensor(drop_path_rates(rate, case.outs["out.rates"][0][0]))}
