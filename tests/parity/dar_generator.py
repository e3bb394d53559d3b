"D-AR's generator side: the transformer, generation with shared prefixes, filters, metrics, preprocessing."
import re

import torch
from PIL import Image

from tests.parity.harness import adapter
from tests.parity.llamagen_data import pixels
from tests.parity.llamagen_generator import cached
from vgnb.data.transforms import center_crop, chosen_crop, ten_crop, to_tensor, to_uint8
from vgnb.draws import At, Keyed, Race, Recorded
from vgnb.evaluation.fid import frechet_distance, inception_score, precision_recall
from vgnb.evaluation.reconstruction import ReconstructionMeter
from vgnb.evaluation.samples import Statistics
from vgnb.generators.generator import Cond, Grid
from vgnb.generators.raster import RasterTransformer, dar_config, llamagen_gpt_names
from vgnb.sampling.guidance import dar_guidance
from vgnb.sampling.painting import Request
from vgnb.sampling.pick import Pick, filtered
from vgnb.sampling.prefix import Prefix
from vgnb.sampling.sampler import Sampler
from vgnb.training.optimizers import gradient_norm, guarded_step, make_optimizer
from vgnb.training.recipes import Optim

GPT = "autoregressive.models.gpt.Transformer"
NO_DROPOUT = {"token_dropout": 0, "residual_dropout": 0, "ffn_dropout": 0}
YES = torch.tensor(True)


def model(case, **changes):
    "The case's model, loaded through the importer."
    config = dar_config(case.config, compat="upstream", **changes)
    return llamagen_gpt_names.load_into(RasterTransformer(config), case.fill(), case.name).eval()


@torch.no_grad()
def whole_logits(m, codes, cond):
    "Logits (b, 1 + n, V) of every place, the class's and the last code's included."
    longer = torch.cat((codes, codes[:, :1]), 1)                        # the last code is never an input: one more
    return m.logits(longer, cond, grid=Grid((longer.shape[1],)))[0]


def asked(case, m, cond, kwargs):
    "Sampler, draws and grid of one run of the published `generate`."
    plain = {"cfg_scale": 1.0, "cfg_interval": -1, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "sample_logits": True}
    c = plain | {"max_new_tokens": case.config["block_size"]} | kwargs
    greedy = not c["sample_logits"]
    picks = (Pick(c["temperature"], c["top_k"], c["top_p"], greedy=greedy),)
    guidance = dar_guidance(c["cfg_scale"], c["cfg_interval"], compat="upstream")
    sampler = Sampler(m, guidance=guidance, picks=picks, rows=cond.b, compat="upstream")
    draws = Keyed(0) if greedy else Recorded({"token": Race(case["in.exp_noise"])})
    return sampler, draws, Grid((c["max_new_tokens"],))


def generated(case, m, cond, kwargs):
    "Codes (b, n) of one run, int32 as published."
    kwargs = dict(kwargs)
    shared = kwargs.pop("prefix_token", 0)
    sampler, draws, grid = asked(case, m, cond, kwargs)
    ids = torch.arange(cond.b)
    if not shared: return sampler.sample(cond, ids, draws, grid=grid)[..., 0].int()
    what = Prefix(shared)
    return what.codes(what.paint(Request(sampler, cond, ids, draws, grid=grid)))[..., 0].int()


def runs(case, m, cond):
    "Every run of the case, under the name of its output."
    asked_for = {f"out.gen_{name}": run["kwargs"] for name, run in case.spec["runs"].items()}
    return {name: generated(case, m, cond, kwargs) for name, kwargs in asked_for.items() if name in case.outs}


def training(case):
    "Three steps of AdamW on one batch, and the forward pass of the first."
    m = model(case, **NO_DROPOUT).train()
    c, codes, u = m.config, case["in.idx"][..., None], case["in.label_drop_uniform"]
    labels = case["in.train_labels"]
    known = torch.where(u < c.class_dropout, c.classes, labels)
    with torch.no_grad(): logits, = m.logits(codes, Cond(known))

    params = dict(m.named_parameters())
    optim = Optim(lr=0.01, betas=(0.9, 0.95), weight_decay=0.05, clip=1.0)
    optimizer, draws, rows = make_optimizer(optim, params), Recorded({"class_drop": u}), []
    for step in range(3):
        loss = m(codes, Cond(labels), draws, At(torch.arange(len(codes)), step=step)).total
        optimizer.zero_grad()
        loss.backward()
        norm = gradient_norm(params.values())
        rows.append(torch.stack((loss.detach(), norm)))
        torch.nn.utils.clip_grads_with_norm_(params.values(), optim.clip, norm)
        guarded_step(optimizer, YES, optim.lr)

    after = llamagen_gpt_names.export(m.state_dict())
    return {"out.train_logits": logits, "out.train_loss": rows[0][0], "out.loss_gradnorm_3steps": torch.stack(rows),
            "out.param_after_norm": after["norm.weight"],
            "out.param_after_wo_row0": after["layers.0.attention.wo.weight"][0]}


def cache_mask_shape(case):
    "Theirs: a square over class and codes, rounded up to a multiple of 8, for each row."
    c = case.config
    side = -(-(c["cls_token_num"] + c["block_size"]) // 8) * 8
    return torch.tensor([len(case["in.idx"]), side, side])


@adapter("dar", GPT, lambda spec: spec["config"].get("model_type", "c2i") == "c2i")
def class_to_image(case):
    m, codes, cond = model(case), case["in.idx"][..., None], Cond(case["in.labels"])
    logits = whole_logits(m, codes, cond)
    assert torch.allclose(cached(m, codes, cond), logits[:, :-1], atol=1e-4)            # grouped queries, too

    out = {"out.logits_eval_full": logits, "out.freqs_cis": m.table(Grid(m.grid), "cpu")} | training(case)
    if "in.gen_labels" in case: out |= runs(case, m, Cond(case["in.gen_labels"]))
    if "out.causal_mask_shape" in case.outs: out["out.causal_mask_shape"] = cache_mask_shape(case)
    return out


@torch.no_grad()
def text_training(case):
    m, codes, text = model(case, **NO_DROPOUT).train(), case["in.idx"][..., None], case["in.caption"]
    mask = case["in.attn_mask"][:, 0, -1, :text.shape[1]]                           # the last row sees all but padding
    u = case["in.drop_uniform"]
    draws, at = Recorded({"class_drop": u}), At(torch.arange(len(codes)))
    loss = m(codes, Cond(text=text, mask=mask), draws, at, valid=case["in.valid"]).total

    gone = (u < m.config.class_dropout)[:, None, None]
    logits, = m.logits(codes, Cond(text=torch.where(gone, m.condition.null, text), mask=mask))
    return {"out.train_logits": logits, "out.train_loss": loss}


@adapter("dar", GPT, lambda spec: spec["config"].get("model_type") == "t2i")
def text_to_image(case):
    cond = Cond(text=case["in.caption"], mask=case["in.emb_masks"].bool())
    return runs(case, model(case), cond) | text_training(case)


@adapter("dar", "autoregressive.models.generate.sample")
def sample(case):
    out = {}
    for i, c in case.config["settings"].items():
        kept = filtered(case["in.logits"], c["temperature"], c["top_k"], c["top_p"])
        out |= {f"out.probs{i}": kept.softmax(-1), f"out.kept{i}": kept.isfinite()}
    return out


@adapter("dar", "reconstruction_vq_ddp metrics / evaluations.c2i.evaluator")
def metrics(case):
    ref, made, logits = case["in.acts_ref"], case["in.acts_sample"], case["in.probs"].log()
    of_ref, of_made = (Statistics(x.shape[1]).update(x) for x in (ref, made))
    out = {"out.fid": frechet_distance(of_ref, of_made), "out.is_one_split": inception_score(logits)[0],
           "out.precision_recall": precision_recall(made, ref)}
    for name in case.outs:
        if m := re.fullmatch(r"out\.is_split(\d+)", name): out[name] = inception_score(logits, int(m[1]))[0]

    meter = ReconstructionMeter(compat="upstream")
    restored = case["in.rec_uint8"].movedim(-1, 1).double() / 255
    each = meter.update(restored, case["in.gt"].movedim(-1, 1))
    out = {name: torch.tensor(value, dtype=torch.float64) for name, value in out.items()}
    return out | {"out.psnr": each["psnr"], "out.ssim": each["ssim"]}


def drawn_crop(case, i, size):
    "A random crop of picture i whose three draws (short side, row, column) were written down."
    short, row, column = case[f"in.randcrop{i}_draws"].tolist()
    draws = iter((short - size, row, column))
    return chosen_crop(Image.fromarray(case[f"in.img{i}"].numpy()), size, lambda n: next(draws))


def as_bytes(values, rule):
    "Numbers (n,) in [-1, 1] as bytes (n,)."
    return to_uint8(values.view(1, 1, 1, -1), rule).flatten()


@adapter("dar", "dataset.augmentation")
def preprocess(case):
    size, out = case.config["target"], {}
    images = {k[len("in.img"):]: Image.fromarray(case[k].numpy()) for k in case.inputs if k.startswith("in.img")}
    for name in case.outs:
        kind, i, tail = re.fullmatch(r"out\.([a-z]+)(\d*)(_\w+)?", name).groups()
        if kind == "center":
            crop = center_crop(images[i], size)
            out[name] = to_tensor(crop) if tail else pixels([crop])[0]
        elif kind == "randcrop":
            out[name] = pixels([drawn_crop(case, i, size)])[0]
        elif kind == "tencrop":
            views = ten_crop(images["0"], size, (case.config["tencrop_size"] + 0.5) / size)
            out[name] = to_tensor(views[int(i)]) if tail else pixels(views)

    greys = torch.arange(256) / 255 * 2 - 1
    return out | {"out.values_uint8": as_bytes(case["in.values"], "round"), "out.gt_uint8": as_bytes(greys, "truncate")}
