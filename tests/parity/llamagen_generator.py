"LlamaGen's generator side: the transformer with and without cache, training, generation, rotary tables, filters."
import torch

from tests.parity.harness import adapter
from vgnb.data.text import left_pad
from vgnb.draws import At, Keyed, Race, Recorded
from vgnb.generators.generator import Cond, Grid
from vgnb.generators.raster import RasterTransformer, llamagen_config, llamagen_gpt_names
from vgnb.layers import drop_path, drop_path_rates, rotary_1d, rotary_2d, rotate, zero_prefix
from vgnb.sampling.guidance import CFG
from vgnb.sampling.pick import Pick, filtered
from vgnb.sampling.sampler import Sampler
from vgnb.training.optimizers import Average, gradient_norm, guarded_step, make_optimizer
from vgnb.training.recipes import Optim

GPT = "autoregressive.models.gpt"
YES = torch.tensor(True)


def model(case, **changes):
    "The case's model, loaded through the importer."
    config = llamagen_config(case.config, compat="upstream", **changes)
    return llamagen_gpt_names.load_into(RasterTransformer(config), case.fill(), case.name).eval()


def published(tensors: dict) -> dict:
    "Our names (of parameters or gradients) → published names."
    return llamagen_gpt_names.export(tensors)


@torch.no_grad()
def cached(m, codes, cond):
    "Logits (b, n, V) code by code through the cache."
    grid = Grid(m.grid)
    state = m.begin((cond,), grid)
    cells = torch.arange(grid.n).expand(len(codes), -1)
    out = []
    for i in range(grid.n):
        out.append(m.predict(state, cells[:, i:i + 1], live=1).logits[0])
        m.accept(state, cells[:, i:i + 1], codes[:, i:i + 1])
    return torch.cat(out, 1)


@adapter("llamagen", f"{GPT}.Transformer")
@torch.no_grad()
def transformer(case):
    m = model(case)
    codes, cond = case["in.idx"][..., None], Cond(case["in.cond"])
    return {"out.logits": m.logits(codes, cond)[0], "out.logits_cached": cached(m, codes, cond)}


@adapter("llamagen", f"{GPT}.Transformer + creat_optimizer + update_ema *")
def training(case):
    c = case.config
    m = model(case).train()
    params = dict(m.named_parameters())
    optim = Optim(lr=c["lr"], betas=tuple(c["betas"]), weight_decay=c["weight_decay"], clip=c["max_grad_norm"])
    optimizer = make_optimizer(optim, params)
    ema = Average(m, c["ema_decay"])

    out, losses, norms = {}, [], []
    for step in range(sum(k.startswith("in.idx") for k in case.inputs)):
        codes, dropped = case[f"in.idx{step}"][..., None], case[f"in.u{step}"]
        if step == 0:
            labels = torch.where(dropped < c["class_dropout_prob"], c["num_classes"], case["in.y0"])
            with torch.no_grad(): out["out.logits0"] = m.logits(codes, Cond(labels))[0]

        draws, at = Recorded({"class_drop": dropped}), At(torch.arange(len(codes)), step=step)
        loss = m(codes, Cond(case[f"in.y{step}"]), draws, at).total
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            gradients = published({k: p.grad for k, p in params.items()})
            out |= {f"out.grad0.{k}": g.clone() for k, g in gradients.items()}

        norms.append(gradient_norm(params.values()))
        losses.append(loss.detach())
        torch.nn.utils.clip_grads_with_norm_(params.values(), optim.clip, norms[-1])
        guarded_step(optimizer, YES, optim.lr)
        ema.update(YES)

    out |= {f"out.param.{k}": v for k, v in published(m.state_dict()).items()}
    out |= {f"out.ema.{k}": v for k, v in published(ema.state()).items()}
    return out | {"out.losses": torch.stack(losses), "out.grad_norms": torch.stack(norms)}


@adapter("llamagen", f"{GPT}.Transformer (t2i training)")
def text_training(case):
    m, codes, text = model(case).train(), case["in.idx"][..., None], case["in.cond"]
    last_row = case["in.mask"][:, 0, -1]                                                # it sees all that is no padding
    cond = Cond(text=text, mask=last_row[:, :text.shape[1]])
    draws, at = Recorded({"class_drop": case["in.u"]}), At(torch.arange(len(codes)))
    loss = m(codes, cond, draws, at, valid=case["in.valid"]).total
    loss.backward()

    gone = (case["in.u"] < case.config["class_dropout_prob"])[:, None, None]
    every_tenth = text.shape[1] // case.outs["out.caption_embedding"][0][1]             # of 120 tokens
    with torch.no_grad():
        dropped = Cond(text=torch.where(gone, m.condition.null, text), mask=cond.mask)
        logits, = m.logits(codes, dropped)
        caption = m.condition(text)[:, ::every_tenth]
    return {"out.loss": loss, "out.logits": logits, "out.caption_embedding": caption,
            "out.grad.cap_proj_fc1": m.condition.fc1.weight.grad,
            "out.grad.wqkv0": m.blocks[0].attention.qkv.weight.grad}


def generated(case, cond):
    "Codes (b, n) of the case's sampler settings, int32 as published."
    plain = {"cfg_interval": -1, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "sample_logits": False}
    c, m = plain | case.config, model(case)
    pick = Pick(c["temperature"], c["top_k"], c["top_p"], greedy=not c["sample_logits"])
    guidance = CFG(c["cfg_scale"], interval=c["cfg_interval"])
    draws = Recorded({"token": Race(case["in.exp_noise"])}) if "in.exp_noise" in case else Keyed(0)

    width = m.grid[1]
    grid = Grid((c["max_new_tokens"] // width, width))
    sampler = Sampler(m, guidance=guidance, picks=(pick,), rows=cond.b, compat="upstream")
    return sampler.sample(cond, torch.arange(cond.b), draws, grid=grid)[..., 0].int()


@adapter("llamagen", "autoregressive.models.generate.generate")
def generate(case): return {"out.tokens": generated(case, Cond(case["in.cond"]))}


@adapter("llamagen", "autoregressive.models.generate.generate (t2i)")
def generate_text(case):
    text, mask = left_pad(case["in.caption_embs"], case["in.masks"])
    tokens = generated(case, Cond(text=text, mask=mask if case.config["use_masks"] else None))
    return {"out.left_padded": text, "out.left_mask": mask, "out.tokens": tokens}


@adapter("llamagen", f"{GPT}.precompute_freqs_cis_2d / apply_rotary_emb")
def rotary(case):
    sets = next(v for k, v in case.config.items() if k.startswith("sets"))
    tables = {}
    for grid, channels, base, prefix in sets:
        name = f"out.freqs2d_g{grid}_hd{channels}_b{base}_c{prefix}"
        tables[name] = zero_prefix(rotary_2d(grid, grid, channels, base), prefix)

    rows, planes, _ = case.outs["out.freqs1d"][0]
    line = zero_prefix(rotary_1d(rows - 2, 2 * planes), 2)
    return tables | {"out.rotated": rotate(case["in.x"], next(iter(tables.values()))), "out.freqs1d": line}


@adapter("llamagen", "autoregressive.models.generate.sample")
def sample(case):
    "Probabilities after the filters in a name such as `out.tie_probs_k5_p0.9`."
    out = {}
    for name in case.outs:
        given = {part[0]: float(part[1:]) for part in name.split("probs_")[1].split("_")}
        logits = case["in.tie_logits" if ".tie_" in name else "in.logits"]
        kept = filtered(logits, given.get("t", 1.0), int(given.get("k", 0)), given.get("p", 1.0))
        out[name] = kept.softmax(-1)
    return out


@adapter("llamagen", "utils.drop_path.drop_path")
def stochastic_depth(case):
    rate, layers = case.config["drop_prob"], case.outs["out.rates"][0][0]
    kept = drop_path(case["in.x"], case["in.mask"].flatten(), rate)
    return {"out.y": kept, "out.rates": torch.tensor(drop_path_rates(rate, layers))}
