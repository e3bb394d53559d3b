"The VQ-KD framework's coders, without a quantizer between them: convolutional, BEiT v2's, torchvision's."
import torch
from torch import nn

from tests.parity.harness import adapter
from tests.parity.llamagen_tokenizer import filled
from vgnb.names import Bundle
from vgnb.tokenizers.feature_tokenizer import VQKDConfig
from vgnb.tokenizers.vit import ViTConfig
from vgnb.tokenizers.vit_coder import ViTCoder, beit_coder_names, beit_vit, torchvision_coder_names
from vgnb.tokenizers.vqgan import vqgan_coder
from vgnb.tokenizers.vqkd_words import conv_config, conv_names

def coder(case, encoder, decoder, table):
    "Both halves with their entries."
    halves = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    names = Bundle({"encoder": ("_encoder.", table), "decoder": ("_decoder.", table)})
    return filled(case, (halves, names)).eval().values()


@adapter("vqkd", "*VQKDEncoder / VQKDDecoder")
@torch.no_grad()
def beit(case):
    first, second = case.config["encoder"], case.config["decoder"]
    usual, out = VQKDConfig(), {}
    encoder, decoder = coder(
        case,
        ViTCoder(beit_vit(first, usual.encoder), first["out_chans"]),
        ViTCoder(beit_vit(second, usual.decoder), second["out_chans"], second["out_patch_size"]),
        beit_coder_names())
    for name in case.inputs:
        size = name.removeprefix("in.image")
        out[f"out.z{size}"] = encoder(case[name])
        out[f"out.y{size}"] = decoder(out[f"out.z{size}"])
    return out


@adapter("vqkd", "*ViTEncoder / ViTDecoder")
@torch.no_grad()
def torchvision_pair(case):
    c = case.config
    shared = dict(dim=c["hidden_dim"], depth=c["num_layers"], heads=c["num_heads"], hidden=c["mlp_dim"])
    size, patch = c["image_size"], c["patch_size"]
    encoder, decoder = coder(
        case,
        ViTCoder(ViTConfig(size, patch, **shared)),
        ViTCoder(ViTConfig(size // patch, 1, embed=False, **shared), 3, patch, head_norm=True),
        torchvision_coder_names())
    z = encoder(case["in.image"])
    return {"out.z": z, "out.recon": decoder(z)}


def half(config, name):
    "One half of the convolutional coder in the framework's words."
    words = {f"{name}_width_mults": "width_mults", f"{name}_depth_mult": "depth_mult"}
    spec = {theirs: config[ours] for ours, theirs in words.items()}
    spec |= {k: (config[k] or {}).get(name) for k in ("attention_layer", "refine_layer")}
    channels = {k: config["out_channels"] for k in ("out_channels", "in_channels")}
    return spec | channels | {"width": config["width"]}


@adapter("vqkd", "*VQGANEncoder / VQGANDecoder")
@torch.no_grad()
def convolutional(case):
    config = conv_config({name: half(case.config, name) for name in ("encoder", "decoder")})
    first, _, second = vqgan_coder(config)
    encoder, decoder = coder(case, first, second, conv_names())
    z = encoder(case["in.image"])
    return {"out.z": z, "out.recon": decoder(z)}
