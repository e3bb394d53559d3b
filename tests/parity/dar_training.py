"D-AR's training side: LPIPS, DINOv2, the time-conditioned discriminator, losses, three training steps."
import numpy as np
import torch
from torch import nn

from tests.parity.harness import adapter
from tests.parity.llamagen_tokenizer import filled
from vgnb.data.transforms import Augment
from vgnb.draws import At, Recorded
from vgnb.families import published_model
from vgnb.processes import Processes
from vgnb.tokenizers.dar_tokenizer import DAR_TOKENIZER
from vgnb.tokenizers.dinov2 import dino_view
from vgnb.tokenizers.flow_objective import FlowLoss, FlowLossConfig, repa_loss, timed_critic_loss, timed_guess_loss
from vgnb.tokenizers.losses import discriminator_loss
from vgnb.tokenizers.lpips import LPIPS, lpips_names
from vgnb.tokenizers.objectives import Phase
from vgnb.tokenizers.tokenizer import Quantized, Reconstruction
from vgnb.training.recipes import Optim, Rate, TokenizerRecipe
from vgnb.training.step import Stepper, TrainState
from vgnb.training.tasks import TokenizerTask

@adapter("dar", "tokenizer.tokenizer_image.lpips.LPIPS")
@torch.no_grad()
def lpips(case):
    model = filled(case, (LPIPS("upstream"), lpips_names())).eval()
    a, b = case["in.a"], case["in.b"]
    return {"out.lpips": model(a, b)[:, None, None, None], "out.lpips_self": model(a, a)[:, None, None, None]}


@adapter("dar", "dinov2.models.vision_transformer.DinoVisionTransformer")
@torch.no_grad()
def dinov2(case):
    model = filled(case, published_model(case.config, case.spec["upstream_class"], "dar")).eval()
    whole, patches = model.features(case["in.x"])
    return {"out.x_norm_clstoken": whole, "out.x_norm_patchtokens": patches}


@adapter("dar", "tokenizer.tokenizer_image.discriminator_patchgan.NLayerDiscriminator")
@torch.no_grad()
def patchgan(case):
    critic = filled(case, published_model(case.config, case.spec["upstream_class"], "dar")).eval()
    x, time = case["in.x"], case["in.t"]
    real, fake = critic(x, time), critic(-x, time)
    game = FlowLoss(FlowLossConfig(lpips=0, repa=0, gan=0.5, start=20_000), discriminator=critic)
    joined = [game.config.gan * game.active(step - 1) for step in (0, 19_999, 20_000, 30_000)]
    return {
        "out.logits": real,
        "out.logits_neg": fake,
        "out.hinge_d": discriminator_loss("hinge", real, fake),
        "out.vanilla_d": discriminator_loss("vanilla", real, fake),
        "out.nonsat_d": discriminator_loss("non-saturating", real, fake),
        "out.nonsat_d_weighted": timed_critic_loss(real, fake, time, "upstream"),
        "out.hinge_g": -fake.mean(),
        "out.nonsat_g": timed_guess_loss(fake, time, "upstream"),
        "out.adopt": torch.tensor(joined),
    }


class Told(nn.Module):
    "A teacher that says what it is told to, and keeps what it was shown."
    def __init__(self, features):
        super().__init__()
        self.features = features

    def forward(self, images):
        self.shown = dino_view(images)
        return self.features


def rebuilt(text, batch):
    "`numpy.random.default_rng(6).standard_normal((B,256,768)) ...` as a tensor."
    seed = int(text.split("default_rng(")[1].split(")")[0])
    shape = text.split("standard_normal((")[1].split(")")[0].replace("B", str(batch))
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(tuple(map(int, shape.split(",")))).astype("f4"))


@adapter("dar", "tokenizer.tokenizer_image.vq_loss.VQLoss")
def vq_loss(case):
    c, images, emb = case.config, case["in.image"], case["in.emb"]
    ours, theirs = (rebuilt(case.spec["rebuild"][k], len(images)) for k in ("h_repa", "dino_features"))
    eye, teacher = filled(case, (LPIPS("upstream"), lpips_names())), Told(theirs)
    weight = c["perceptual_weight"]
    config = FlowLossConfig(lpips=abs(weight), weighting="even" if weight >= 0 else "time", repa=c["dino_weight"])
    objective = FlowLoss(config, eye, teacher)

    clean, ours = (x.clone().requires_grad_() for x in (case["in.predict_x1"], ours))
    flow = {"velocity": emb[5].sqrt().view(1), "target": torch.zeros(1), "data_std": 1.0}     # whose loss is emb[5]
    extras = flow | {"time": case["in.t"], "features": ours}
    made = Reconstruction(clean, Quantized(None, None, dict(zip(("vq", "commit", "entropy"), emb))), extras)
    at = At(torch.arange(len(images)), step=c["global_step"])
    total, _ = objective.loss(Phase("tokenizer"), images, made, {}, None, at)
    total.backward()
    return {
        "out.loss": total,
        "out.grad_x1": clean.grad,
        "out.grad_h_norm": ours.grad.flatten(1).norm(dim=1),
        "out.lpips": eye(images, clean)[:, None, None, None],
        "out.repa_loss": repa_loss(ours, theirs),
        "out.dino_input_sub": teacher.shown[..., ::7, ::7],
    }


class Taped(Recorded):
    "Recorded draws that a step can seed torch from, though nothing here asks torch."
    def key(self, name): return 0, 0


class StandIn(FlowLoss):
    "The fixture's objective: flow, codebook, and the features' power in the teacher's place."
    def make(self, phase, tokenizer, images, draws, at, quantize=True):
        made = tokenizer(images, draws, at, quantize)
        return made._replace(extras=made.extras | {"data_std": tokenizer.config.flow.data_std})

    def for_tokenizer(self, images, made, carry, step):
        total, parts = super().for_tokenizer(images, made, carry, step)
        self.made = made
        return total + 0.5 * made.extras["features"].square().mean(), parts


@adapter("dar", "tokenizer.tokenizer_image.vq_model.VQModel", lambda spec: "watch" in spec)
def tok_train_steps(case):
    model = filled(case, DAR_TOKENIZER.make(case.config, compat="upstream")).train()
    names = DAR_TOKENIZER.table(model.config)
    objective = StandIn(FlowLossConfig(lpips=0, repa=0))
    optim = Optim("adamw", lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05, decay_vectors=True, clip=1.0)
    images = case["in.image"]
    recipe = TokenizerRecipe(
        model=model.config, loss=objective.config, augment=Augment("center", images.shape[-1]), optim=optim,
        rate=Rate("constant_with_warmup", warmup=2), precision="fp32", ema=0.999, compat="upstream")
    stepper = Stepper(TrainState(TokenizerTask(model, objective), recipe, Processes()))
    out, rows, ids = {}, [], torch.arange(len(images))

    def spy(phase, step, params, bad):
        "The gradients before and after clipping."
        grads = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
        judge(phase, step, params, bad)
        if step: return
        clipped = dict(zip(stepper.state.groups["tokenizer"], stepper.waiting["tokenizer"]))
        clipped = names.export({k.removeprefix("tokenizer."): g for k, g in clipped.items() if g is not None})
        norms = {k: g.norm() for k, g in names.export(grads).items()}
        out["out.grad_norms"] = torch.tensor([norms.get(k, -1.0) for k in case.spec["watch"]])
        out["out.grad_quant_in_conv"] = clipped["quant_in_conv.weight"]
        out["out.grad_codebook"] = clipped["quantize.embedding.weight"]

    judge, stepper._judge = stepper._judge, spy
    for step in range(sum(k.startswith("in.time") for k in case.inputs)):
        stepper.draws = Taped({"time": case[f"in.time{step}"], "noise": case[f"in.noise{step}"]})
        stepper(step, [(At(ids, step=step), {"images": images})])
        read = stepper.meter.read(stepper.processes)
        rows.append([read["tokenizer.loss"], read["norm.tokenizer"]])
        if step == 0: out |= seen(case, model, objective.made, read)

    average = stepper.state.averages["tokenizer"].state()
    out["out.param_after_quant_in_conv"] = names.export(model.state_dict(), model)["quant_in_conv.weight"]
    out["out.ema_after_quant_in_conv"] = names.export(average, model)["quant_in_conv.weight"]
    return out | {"out.loss_gradnorm_per_step": torch.tensor(rows)}


def seen(case, model, made, read):
    "What the first step made."
    c, e, time = model.config, made.extras, case["in.time0"]
    features, codes = e["features"], made.quantized.codes
    first = model.first_tokens(time)
    t = e["time"].view(-1, 1, 1, 1)
    noisy = made.output - (1 - t) * e["velocity"] / c.flow.data_std
    spread = codes.float().std(0)
    emb = [read["vq"], read["commit"], 0.0, model.quantizer.usage.share(), (spread < 1e-5).float().mean(), read["flow"]]
    return {
        "out.query_ids": first[:, None] + torch.arange(c.window_size),
        "out.predict_x1": made.output[:4],
        "out.xt": noisy[:2],
        "out.t_shifted": e["time"],
        "out.h_repa_mean_std": torch.stack((features.mean(-1), features.std(-1)), -1)[:4],
        "out.vq_commit_entropy_usage_dead_fm": torch.tensor(emb),
    }
