"The VQ-KD framework's whole tokenizers: pixels against a discriminator, features against a teacher, clusters."
import torch

from tests.parity.harness import adapter
from tests.parity.llamagen_tokenizer import filled
from tests.parity.vqkd_teachers import pixels
from vgnb.draws import At
from vgnb.families import published_model
from vgnb.tokenizers.feature_objective import FeatureLoss, FeatureLossConfig
from vgnb.tokenizers.objectives import VQGANLoss, VQGANLossConfig
from vgnb.tokenizers.teachers import Teacher
from vgnb.tokenizers.vqkd_files import VQKD_CLUSTER, VQKD_TOKENIZER
from vgnb.tokenizers.vqkd_teachers import read_teacher, vqkd_teacher_names

def objective(c, training, judged):
    "The losses of a recipe; its discriminator takes part or not yet."
    gain = c.get("adaptive_generator_loss_weight_gain", 0.8)
    weight = c["generator_loss"].get("weight", 1.0)
    kinds = {loss["type"] for loss in c["reconstruct_losses"].values() if loss}
    config = VQGANLossConfig(
        l2=float("MSELoss" in kinds),
        l1=float("L1Loss" in kinds),
        lpips=float("LPIPSLoss" in kinds),
        gan=gain if gain else weight,
        disc=c["discriminator_loss"].get("weight", 1.0),
        start=1 if judged else 2,
        adaptive=gain is not None)
    return VQGANLoss(config, training.lpips, training.discriminator)


@adapter("vqkd", "vq.algorithms.vqgan.VQGAN")
def whole(case):
    training, names = published_model(case.config, system="vqkd", compat="upstream")
    training = filled(case, (training, names)).eval()
    model, x = training.tokenizer, pixels(case)
    with torch.no_grad():
        q = model.quantize(x)
        codes = model.encode(x)
        out = {
            "out.pred_image": model(x).output,
            "out.quant": q.codes.flatten(),
            "out.z": q.z,
            "out.encode_to_quant": codes,
            "out.decode_from_quant": model.decode(codes)}

    for name, judged in (("no_d", False), ("with_d", True)):
        made, carry = model(x), {}
        towards = objective(case.config, training, judged)
        loss, parts = towards.for_tokenizer(x, made, carry, 0)
        out |= parts_of(case.config, name, loss, parts, towards)

    loss.backward()
    moved = {k: p.grad for k, p in training.named_parameters() if p.grad is not None}
    entries = names.export(moved, training)
    for key in case.outs:
        if key.startswith("out.gradnorm."): out[key] = entries[key.removeprefix("out.gradnorm.")].norm()

    against, _ = towards.for_discriminator(x, carry, 0)
    first = next(training.discriminator.parameters())
    out["out.disc.loss"] = against
    out["out.disc.gradnorm_first"] = torch.autograd.grad(against, first)[0].norm()
    return out


def parts_of(c, name, loss, parts, towards):
    "A loss and its parts by their published names."
    gain, weight = c.get("adaptive_generator_loss_weight_gain", 0.8), c["generator_loss"].get("weight", 1.0)
    judged = "gan" in parts
    rebuilt = sum(parts[k] for k in ("l1", "l2", "lpips") if k in parts)
    learnt = sum(v for k, v in parts.items() if k in ("vq", "commit", "entropy"))
    none = torch.zeros(())
    out = {
        "loss": loss,
        "r_loss": rebuilt,
        "q_loss": learnt + none,
        "g_loss": weight * parts["gan"] if judged else none,
        "aglw": (gain * parts["adaptive"] if gain else none + 1) if judged else none}
    out |= {f"{k}_r_loss": parts[k] for k in ("l1", "l2", "lpips") if k in parts}
    return {f"out.{name}.{k}": v for k, v in out.items()}


@adapter("vqkd", "vq.algorithms.vqkd.VQKD")
@torch.no_grad()
def distilled(case):
    c = case.config
    quantizer = c["quantizer"]
    spec = {"type": "VQKD", "encoder": c["encoder"], "decoder": c["decoder"], "quantizer": quantizer}
    model = filled(case, VQKD_TOKENIZER.make(spec, compat="upstream")).eval()
    config = read_teacher(c["teacher"], compat="upstream")
    teacher, names = Teacher(config), vqkd_teacher_names(config)
    kept = {k: v for k, v in names.export(teacher.state_dict(), teacher).items() if k in c["teacher_keep"]}
    entries = case.fill(c["teacher_manifest"], c["teacher_seed"], c["teacher_keep"])
    names.load_into(teacher, kept | entries, case.name)

    x = pixels(case)
    towards = FeatureLoss(FeatureLossConfig(compat="upstream"), teacher)
    towards.check(model, 1)
    made = model(x)
    wanted = towards.wanted(x, made.output)
    loss, parts = towards.loss(towards.phases(0)[0], x, made, {}, None, At(torch.arange(len(x))))
    return {
        "out.losses.r_loss": parts["features"],
        "out.losses.q_loss": parts["commit"],
        "out.loss": loss,
        "out.quant": made.quantized.codes.flatten(),
        "out.z": made.quantized.z,
        "out.x": model.encoder(x),
        "out.pred_features": made.output,
        "out.target": wanted.flatten(2).mT,
    }


@adapter("vqkd", "vq.algorithms.cluster.Cluster")
def clustered(case):
    c, out = case.config, {}
    spec = {"type": "Cluster", "teacher": c["teacher"], "quantizer": c["quantizer"]}
    model = filled(case, VQKD_CLUSTER.make(spec, compat="upstream")).train(c["train"])
    for s in range(sum(name.startswith("in.original_image") for name in case.inputs)):
        x = pixels(case, f"in.original_image{s}")
        with torch.no_grad(): made = model(x, at=At(torch.arange(len(x)), step=s))
        out[f"out.x{s}"] = model.features(x)
        out[f"out.quant{s}"] = made.quantized.codes.flatten()
        out[f"out.loss{s}"] = sum(made.quantized.losses.values())
        out[f"out.weight{s}"] = model.quantizer.table.detach().clone()
        for update in model.quantizer.updates: out[f"out.prob{s}"] = update.probability.clone()
    return out
