"LlamaGen's tokenizer side: VQ models, quantizer, discriminators, LPIPS, loss, three training steps, code extraction."
import re

import torch
import torch.nn.functional as F
from PIL import Image

from tests.parity.harness import adapter
from vgnb.data.transforms import center_crop, flip, ten_crop, to_tensor
from vgnb.families import published_model
from vgnb.names import NameTable, Rename
from vgnb.tokenizers.discriminators import Blur
from vgnb.tokenizers.losses import discriminator_loss, generator_loss
from vgnb.tokenizers.lpips import LPIPS, lpips_names
from vgnb.tokenizers.objectives import VQGANLoss, VQGANLossConfig
from vgnb.tokenizers.quantizers import VectorConfig, VectorQuantizer
from vgnb.tokenizers.tokenizer import Quantized, Reconstruction

def filled(case, build, prefix="", called=None):
    """The model of `build` = (model, names) from the entries below `prefix`, drawn under names that start with
    `called`; what the case keeps stays as constructed."""
    model, names = build
    called = prefix if called is None else called

    def drawn(name): return called + name.removeprefix(prefix)
    entries = {drawn(k): v for k, v in case.spec["manifest"].items() if k.startswith(prefix)}
    keep = {drawn(k) for k in case.spec["keep"] if k.startswith(prefix)}

    made = {called + k: v for k, v in names.export(model.state_dict(), model).items()}
    state = {k: made[k] for k in keep} | case.fill(entries, keep=keep)
    return names.load_into(model, {k.removeprefix(called): v for k, v in state.items()}, case.name)


def vqgan(case):
    return filled(case, published_model(case.config, system="llamagen", compat="upstream")).eval()


@adapter("llamagen", "tokenizer.tokenizer_image.vq_model.VQModel")
@torch.no_grad()
def vq_model(case):
    model, x = vqgan(case), case["in.x"]
    q = model.quantize(x)
    entry = model.lookup(q.codes)
    rows = entry.movedim(1, -1)
    return {
        "out.indices": q.codes.flatten(),
        "out.quant": q.z,
        "out.decode_code": model.decode(model.encode(x)),
        "out.forward": model(x).output,
        "out.codebook_entry": entry,
        "out.codebook_entry_nhwc": rows,
        "out.codebook_entry_flat": rows.flatten(0, 2),
    }


@adapter("llamagen", "tokenizer.vqgan.model.VQModel*")
@torch.no_grad()
def taming(case):
    model = vqgan(case)
    q = model.quantize(case["in.x"])
    return {
        "out.indices": q.codes.flatten(),
        "out.quant": q.z,
        "out.loss": sum(q.losses.values()),
        "out.decode_code": model.decode(q.codes),
    }


@adapter("llamagen", "tokenizer.tokenizer_image.vq_model.VectorQuantizer")
def quantizer(case):
    c = case.config
    config = VectorConfig(c["n_e"], c["e_dim"], c["l2_norm"], c["beta"], c["entropy_loss_ratio"], compat="upstream")
    names = NameTable(Rename("embedding.weight", "table"), Rename("codebook_used", "usage.recent"))
    model = filled(case, (VectorQuantizer(config), names)).train()
    z = case["in.z"].clone().requires_grad_()
    q = model(z)
    (sum(q.losses.values()) + (q.z * case["in.cotangent"]).sum()).backward()

    tail = case.outs["out.codebook_used_tail"][0][0]
    recent = names.export(model.state_dict(), model)["codebook_used"]
    return {
        "out.z_q": q.z,
        "out.indices": q.codes.flatten(),
        "out.vq_loss": q.losses["vq"],
        "out.commit_loss": q.losses["commit"],
        "out.entropy_loss": q.losses.get("entropy", torch.zeros(())),
        "out.usage": torch.tensor(model.usage.share()),
        "out.grad_z": z.grad,
        "out.grad_embedding": model.table.grad,
        "out.codebook_used_tail": recent[-tail:],
    }


@adapter("llamagen", "tokenizer.tokenizer_image.discriminator_patchgan.NLayerDiscriminator")
def patchgan(case):
    model = filled(case, published_model(case.config, system="llamagen")).eval()
    x = case["in.x"].clone().requires_grad_()
    with torch.no_grad(): still = model(x)
    logits = model.train()(x)
    logits.sum().backward()
    norm = model.layers[3]
    return {
        "out.eval": still,
        "out.train": logits,
        "out.grad_x": x.grad,
        "out.bn_running_mean": norm.running_mean,
        "out.bn_running_var": norm.running_var,
    }


@adapter("llamagen", "tokenizer.tokenizer_image.discriminator_stylegan.Discriminator")
@torch.no_grad()
def stylegan(case):
    critic = filled(case, published_model(case.config, system="llamagen"))
    return {"out.logits": critic(case["in.x"]), "out.blur": Blur()(case["in.blur_x"])}


@adapter("llamagen", "tokenizer.tokenizer_image.lpips.LPIPS")
def lpips(case):
    model = filled(case, (LPIPS(), lpips_names())).eval()
    b = case["in.b"].clone().requires_grad_()
    value = model(case["in.a"], b)
    value.sum().backward()
    return {"out.value": value[:, None, None, None], "out.grad_b": b.grad}


def loss_config(c, **kw):
    "Our weights for the published constructor's arguments; `reconstruction` = l2 or l1 is set by the caller."
    theirs = dict(
        lpips=c.get("perceptual_weight", 1.0),
        gan=c.get("disc_weight", 0.5),
        start=c["disc_start"],
        compat="upstream",
    )
    return VQGANLossConfig(**(theirs | kw))


_LOSS_KEY = re.compile(r"out\.gen\.([a-z-]+)_([a-z-]+)_(fixed|adapt)_(l1|l2)_step(\d+)")


@adapter("llamagen", "tokenizer.tokenizer_image.vq_loss.VQLoss")
def vq_loss(case):
    c, out = case.config, {}
    spec = {"ndf": c.get("disc_dim", 64), "n_layers": c.get("disc_num_layers", 3)}
    critic = filled(case, published_model(spec, system="llamagen"), "discriminator.").eval()
    perception = filled(case, (LPIPS("upstream"), lpips_names()), "perceptual_loss.")
    last = case["in.last_layer"].clone().requires_grad_()
    parts = dict(zip(("vq", "commit", "entropy"), case["in.codebook_loss"]))

    for key in case.outs:
        if not (m := _LOSS_KEY.fullmatch(key)): continue
        d, g, weight, pixels, step = m.groups()
        amount = {"l1": 0.0, "l2": 0.0} | {pixels: c.get("reconstruction_weight", 1.0)}
        config = loss_config(c, **amount, disc_loss=d, gen_loss=g, adaptive=weight == "adapt")
        objective = VQGANLoss(config, perception, critic)
        output, carry, done = F.conv2d(case["in.rec_base"], last), {}, int(step) - 1
        made = Reconstruction(output, Quantized(None, None, parts), {"last_layer": last})
        out[key], log = objective.for_tokenizer(case["in.real"], made, carry, done)
        against = objective.for_discriminator(case["in.real"], carry, done)
        out[key.replace(".gen.", ".disc.")] = against[0]
        if "adaptive" in log: out[key.replace(".gen.", ".adaptive.")] = log["adaptive"]

    real, fake = case["in.logits_real"], case["in.logits_fake"]
    for short, name in (("hinge", "hinge"), ("vanilla", "vanilla"), ("nonsat", "non-saturating")):
        out[f"out.d_{short}"] = discriminator_loss(name, real, fake, "upstream")
        if name != "vanilla": out[f"out.g_{short}"] = generator_loss(name, fake, "upstream")
    return out


@adapter("llamagen", "training loop of tokenizer/tokenizer_image/vq_train.py")
def vq_train_steps(case):
    c = case.config
    logs = {k: [] for k in ("gen_loss", "disc_loss", "gen_grad_norm", "disc_grad_norm", "codebook_losses")}
    model = filled(case, published_model(c, system="llamagen", compat="upstream"), "model.", "").train()
    judge = published_model({}, "NLayerDiscriminator", "llamagen")
    critic = filled(case, judge, "loss.discriminator.", "discriminator.").train()
    perception = filled(case, (LPIPS("upstream"), lpips_names()), "loss.perceptual_loss.", "perceptual_loss.")
    objective = VQGANLoss(loss_config(c), perception, critic)
    adam = dict(lr=c["lr"], betas=tuple(c["betas"]))
    players = {
        "gen": (model, torch.optim.Adam(model.parameters(), **adam)),
        "disc": (critic, torch.optim.Adam(critic.parameters(), **adam)),
    }
    average = {k: p.detach().clone() for k, p in model.named_parameters()}

    for step in range(sum(k.startswith("in.x") for k in case.inputs)):
        x, carry = case[f"in.x{step}"], {}
        made = model(x)
        for who, (module, optimizer) in players.items():
            if who == "gen": total, _ = objective.for_tokenizer(x, made, carry, step)
            else: total, _ = objective.for_discriminator(x, carry, step)
            optimizer.zero_grad()
            total.backward()
            logs[f"{who}_loss"].append(total.detach())
            norm = torch.nn.utils.clip_grad_norm_(module.parameters(), c["max_grad_norm"])
            logs[f"{who}_grad_norm"].append(norm)
            optimizer.step()

        for k, p in model.named_parameters(): average[k].lerp_(p.detach(), 1 - c["ema_decay"])
        losses = made.quantized.losses
        shown = [losses.get(k, torch.zeros(())).detach() for k in ("vq", "commit", "entropy")]
        logs["codebook_losses"].append(torch.stack([*shown, torch.tensor(model.quantizer.usage.share())]))

    full = {
        "out.param_decoder_conv_out": model.decoder.head.weight,
        "out.param_embedding": model.quantizer.table,
        "out.ema_decoder_conv_out": average["decoder.head.weight"],
        "out.param_disc_last": critic.layers[-1].weight,
        "out.disc_bn_running_mean": critic.layers[3].running_mean,
    }
    cut = {k: v[tuple(map(slice, case.outs[k][0]))] for k, v in full.items()}
    return {f"out.{k}": torch.stack(v) for k, v in logs.items()} | cut


@adapter("llamagen", "autoregressive/train/extract_codes_c2i.py")
@torch.no_grad()
def extract_codes(case):
    model, size, out = vqgan(case), case.config["image_size"], {}
    for key in case.outs:
        n = re.search(r"\d+$", key)[0]
        image = Image.fromarray(case[f"in.img{n}"].numpy())
        still = center_crop(image, size)
        views = ten_crop(image, size, case.config["crop_range"]) if "tencrop" in key else [still, flip(still)]
        codes = model.encode(torch.stack([to_tensor(v) for v in views]))
        out[key] = model.tokens(codes)[None, ..., 0]
    return out
