"The VQ-KD framework's proposal networks: logits, memory, generation, filters, a whole class-to-image model."
import torch

from tests.parity.harness import adapter
from tests.parity.llamagen_tokenizer import filled
from tests.parity.vqkd_teachers import pixels
from vgnb.data.transforms import to_uint8
from vgnb.draws import At, Keyed, Race, Recorded
from vgnb.generators.generator import Clock, Cond, Grid, Prediction
from vgnb.generators.proposal import VQKD_PROPOSAL
from vgnb.layers import Noise, dropped
from vgnb.sampling.guidance import CFG
from vgnb.sampling.pick import Pick, filtered
from vgnb.sampling.sampler import Sampler
from vgnb.tokenizers.vqkd_files import VQKD_VQGAN

NETWORKS = "vq.algorithms.ar.transformers"
START = Clock(0, 1, 0, 1)


def proposal(case, words, cells, before=""):
    "The network of some arguments; `before` is what its entries lack in front of a file's names."
    model, names = VQKD_PROPOSAL.make(words, grid=(cells,))
    state = {before + k: v for k, v in case.fill().items() if k.startswith("_transformer.")}
    inside = "_transformer._transformer."
    if "n_embd" in words: state[inside + "lm_head.weight"] = state[inside + "transformer.wte.weight"]    # tied
    return names.load_into(model, state, case.name).eval()


def whole_logits(m, codes, cond):
    "Logits (b, 1 + n, words) of every place, the last code's included."
    longer = torch.cat((codes, codes[:, :1]), 1)                        # the last code is never an input: one more
    return m.words(m.states(m.cell_codes(longer), cond, Grid((longer.shape[1],))))


def cached_logits(m, codes, cond):
    "The same, token by token through the memory."
    longer, heard = torch.cat((codes, codes[:, :1]), 1), []
    state = m.begin((cond,), Grid((longer.shape[1],)))
    hook = m.blocks.register_forward_hook(lambda blocks, args, states: heard.append(states))
    for i in range(longer.shape[1]):
        cell = torch.full((len(codes), 1), i)
        m.predict(state, cell, live=1)
        m.accept(state, cell, longer[:, i:i + 1])
    hook.remove()
    return m.words(torch.cat(heard, 1))


def generated(m, cond, alpha=1.0, given=None):
    "The likeliest codes (b, n), one after the other."
    sampler = Sampler(m, guidance=CFG(alpha), picks=(Pick(greedy=True),), rows=cond.b)
    return sampler.sample(cond, torch.arange(cond.b), Keyed(0), grid=Grid(m.grid), given=given)[..., 0]


def completed(m, cond, codes):
    "The second half of the codes (b, n), the first half given."
    n = codes.shape[1]
    given = (torch.arange(n) < n // 2).expand(len(codes), -1)
    return generated(m, cond, given=(codes, given))


def sentence(m, labels, codes):
    "Words (b, 1 + n) of classes (b,) and codes (b, n)."
    return torch.cat((labels[:, None], codes + m.config.class_words), 1)


@adapter("vqkd", f"{NETWORKS}.*Transformer")
@torch.no_grad()
def network(case):
    c, codes = case.config, case["in.codes"][..., None]
    words = c["transformer"] | {
        "vocab_size": c["vocabulary_size"],
        "num_categories": c["num_categories"] - 1,                      # the last one is the null class
        "image_codebook_size": c["image_codebook_size"]}
    m, labels = proposal(case, words, codes.shape[1], "_transformer."), case["in.category"]
    cond = Cond(labels)
    logits = whole_logits(m, codes, cond)
    guided, null = generated(m, cond, 1.75), m.null(cond).labels
    return {
        "out.logits": logits,
        "out.loss": m.loss((logits[:, :-1],), codes[..., 0] + m.config.class_words, None).total,
        "out.logits_cached": cached_logits(m, codes, cond),
        "out.generate": sentence(m, labels, generated(m, cond)),
        "out.half_generate": sentence(m, labels, completed(m, cond, codes)),
        "out.cfg_generate": sentence(m, torch.cat((null, labels)), guided.repeat(2, 1)),
    }


def drawn(logits, pick, noise):
    "A token (b, 1) of logits (b, n), by recorded draws."
    return pick(logits[:, None], START, Recorded({"token": Race(noise[None])}), At(torch.arange(len(logits))))[0]


@adapter("vqkd", "samplers")
def samplers(case):
    c = case.config
    start, end = c["start"], c["end"]
    logits = case["in.logits"].flatten(0, 1)[:, start:end]
    out = {"out.base_sample": start + drawn(logits, Pick(), case["in.base_noise"])}
    for j, (temperature, top_k, top_p) in enumerate(c["sets"]):
        kept = filtered(logits, temperature, top_k, top_p)
        token = drawn(logits, Pick(temperature, top_k, top_p), case[f"in.noise{j}"])
        out |= {f"out.filtered{j}": kept, f"out.probs{j}": kept.softmax(-1), f"out.sample{j}": start + token}

    without, with_class = logits.chunk(2)
    for j, alpha in enumerate(c["cfg_alphas"]):
        branches = torch.stack((with_class, without))[:, :, None]
        mixed = CFG(alpha).mix(Prediction(branches), START)[:, 0]
        token = drawn(mixed, Pick(**c["cfg_inner"]), case[f"in.cfg_noise{j}"])
        out |= {f"out.cfg_logits{j}": mixed, f"out.cfg_sample{j}": start + token.repeat(2, 1)}
    return out


@adapter("vqkd", "vq.algorithms.ar.ARC2I")
@torch.no_grad()
def class_to_image(case):
    c, labels = case.config, case["in.category"]
    tokenizer = filled(case, VQKD_VQGAN.make({"type": "VQGAN"} | c["ir"], compat="upstream"), "_ir.").eval()
    codes = tokenizer.encode(pixels(case))
    flat = codes.flatten(1)
    words = c["llama"] | {
        "vocab_size": c["vocabulary_size"],
        "num_categories": c["num_categories"],
        "image_codebook_size": c["K"],
        "cond_dropout": c["cond_dropout"]}
    m, cond = proposal(case, words, flat.shape[1]), Cond(labels)

    logits = whole_logits(m, flat[..., None], cond)
    made = generated(m, cond, c["alpha"] or 1.0)
    image = tokenizer.decode(made.view_as(codes))
    out = {
        "out.image_tokens": codes,
        "out.sequence": sentence(m, labels, flat),
        "out.logits": logits,
        "out.loss": m.loss((logits[:, :-1],), flat + m.config.class_words, None).total[None],
        "out.generated_image": image,
        "out.generated_uint8": to_uint8(image, "truncate").movedim(-1, 1),
        "out.reconstructed_image": tokenizer.decode(codes),
    }
    if c["alpha"] is None:
        guessed = logits[:, :-1, m.config.class_words:].argmax(-1)
        halves = completed(m, cond, flat[..., None])
        return out | {"out.generated_tokens": made, "out.sampled_tokens": guessed, "out.half_generated_tokens": halves}

    category, u = case["in.dropout_category"], case["in.dropout_uniform"]
    noise = Noise(Recorded({"class_drop": u}), At(torch.arange(len(u))))
    gone = dropped(m.config.class_dropout, noise)
    return out | {
        "out.cfg_tokens": torch.cat((m.null(cond).labels, labels)),
        "out.generated_tokens": made.repeat(2, 1),
        "out.dropout_tokens": torch.where(gone, m.null(Cond(category)).labels, category),
    }
