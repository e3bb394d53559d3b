"Foreign files in the VQ-KD framework: taming's and BEiT v2's entries, read as files are, run and exported."
import torch

from tests.parity.harness import adapter
from tests.parity.llamagen_tokenizer import filled
from tests.parity.vqkd_teachers import pixels
from vgnb.families import find, recognised, the_one
from vgnb.kinds import changed
from vgnb.tokenizers.beitv2 import BEITV2
from vgnb.tokenizers.discriminators import VQKD_PATCHGAN
from vgnb.tokenizers.feature_tokenizer import VQKD
from vgnb.tokenizers.vqgan import TAMING, VQGAN
from vgnb.tokenizers.vqkd_files import VQKD_VQGAN

def through(model, table, other):
    "The model's weights once written under a table's names and read again into another one."
    return table.load_into(other, table.export(model.state_dict(), model)).eval()


@adapter("vqkd", "*TamingTransformersConverter*")
@torch.no_grad()
def taming(case):
    state = case.fill()
    judge = {k: v for k, v in state.items() if k.startswith("loss.discriminator.")}
    weights = {k: v for k, v in state.items() if k not in judge}
    family, spec = the_one(recognised(weights, "taming"))
    assert family is TAMING
    model, names = family.make(spec)
    names.load_into(model, weights, case.name)
    config = changed(model.config, quantizer=dict(legacy=False))
    model = through(model, VQKD_VQGAN.table(config), VQGAN(config))

    critic = VQKD_PATCHGAN.build(VQKD_PATCHGAN.read(case.config["discriminator"]))
    entries = {k.replace("loss.discriminator.main.", "_discriminator."): v for k, v in judge.items()}
    kept = {k: v for k, v in VQKD_PATCHGAN.table(None).export(critic.state_dict()).items() if k not in entries}
    VQKD_PATCHGAN.table(None).load_into(critic, kept | entries)

    x = pixels(case)
    q = model.quantize(x)
    made = model.render(q.z)
    return {
        "out.x": model.features(x),
        "out.quant": q.codes.flatten(),
        "out.pred_image": made,
        "out.disc_logits": critic.eval()(x),
    }


@adapter("vqkd", "*BEiTv2Converter*")
@torch.no_grad()
def beitv2(case):
    c = case.config
    spec = {"encoder_config": c["encoder"], "decoder_config": c["decoder"], "n_embed": c["K"], "embed_dim": c["D"],
            "decoder_out_dim": c["decoder"]["out_chans"]}
    family = find(spec, system="beitv2")
    assert family is BEITV2
    model = filled(case, family.make(spec))
    model = through(model, find({"type": "VQKD"}, system="vqkd").table(model.config), VQKD(model.config))
    x = pixels(case)
    q = model.quantize(x)
    return {
        "out.z": model.features(x),
        "out.quant": q.codes.flatten(),
        "out.commitment": sum(q.losses.values()),
        "out.features": model.render(q.z),
    }
