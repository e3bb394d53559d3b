"PGM's partition transformer: training mode and sampling mode, partitions, training steps, samplers, tokens a step."
import math
import re

import torch

from tests.parity import halton_generator
from tests.parity.halton_generator import by_step, chosen_by, surest_first
from tests.parity.harness import adapter
from tests.parity.llamagen_tokenizer import filled
from vgnb.draws import At, Inverse, Recorded
from vgnb.families import published_model
from vgnb.generators.generator import Cond, Grid
from vgnb.generators.masks import draw_mask
from vgnb.generators.orders import ORDERS, Redrawn
from vgnb.generators.partition import PartitionTransformer, pgm_config, pgm_names
from vgnb.generators.schedules import halton_steps, pgm_steps
from vgnb.sampling.guidance import Sharpened
from vgnb.sampling.pick import Pick
from vgnb.sampling.sampler import Sampler

CLASS = "models.encoder_decoder.PartitionDIT"


def loaded(case, spec, **changes):
    "The case's model, loaded through the importer; what the fixture keeps stays as constructed."
    config = pgm_config(spec, compat="upstream", **changes)
    model, names = PartitionTransformer(config), pgm_names(config)
    made = names.export(model.state_dict(), model)
    state = case.fill() | {name: made[name] for name in case.spec["keep"]}
    return names.load_into(model, state, case.name).eval(), names


def labels_of(m, case):
    "The case's classes, the dropped ones as the null class."
    return torch.where(case["in.drop"], m.config.classes, case["in.y"])


@adapter("pgm", CLASS, when=lambda spec: "in.group" in spec["tensors"])
@torch.no_grad()
def training_mode(case):
    m, _ = loaded(case, case.config)
    codes, groups = case["in.x"][:, 1:], case["in.group"][:, 1:].bool()
    return {"out.logits": m.all_logits(codes, groups, labels_of(m, case))}


@adapter("pgm", CLASS, when=lambda spec: "in.clean_positions" in spec["tensors"])
@torch.no_grad()
def sampling_mode(case):
    m, _ = loaded(case, case.config)
    n = math.prod(m.grid)
    modulations = m.modulations(m.modulation_rows(labels_of(m, case)))
    codes, cells = case["in.x"][:, 1:], case["in.clean_positions"][:, 1:] - 1
    places = m.config.registers + case["in.noisy_positions"]

    def answers(visible):
        memory = m.encode(codes, cells, modulations, n, visible)
        return m.head_logits(m.decode(memory, places, modulations, n), modulations)

    given = case["in.concrete_lengths"]
    equal = bool((given == given[0]).all())
    out = {"out.logits": answers(int(given[0]) if equal else given), "out.logits_fixed": answers(None)}
    if "in.concrete_lengths_nonuniform" in case:
        out["out.logits_nonuniform"] = answers(case["in.concrete_lengths_nonuniform"])
    return out


class ByStep(Recorded):
    "Draws recorded a step, their columns for the cells asked for, in this order. Categories by the inverse CDF."
    def _rows(self, name, at):
        rows = at.ids % self.tape[name].shape[1]
        return self.tape[name][at.step][rows, :at.positions.shape[1]]

    def categorical(self, name, at, logits):
        p = logits.double().softmax(-1)
        below = p.cumsum(-1) <= self._rows(name, at).double()[..., None]
        return below.sum(-1).clamp(max=p.shape[-1] - 1)


def sampled(case, m, order, schedule, pick, draws):
    "The codes (b, h, w) of the real sampler."
    c, b = case.config["sampler"], len(case["in.labels"])
    sampler = Sampler(m, order, schedule, by_step(c["w"]), (pick,), c["step"], rows=b, compat="upstream")
    codes = sampler.sample(Cond(case["in.labels"]), torch.arange(b), draws, grid=Grid(m.grid))
    return codes.view(b, *m.grid)


@adapter("pgm", "sampler.halton_sampler_pgm.HaltonSamplerPGM")
def by_halton(case):
    (m, _), c = loaded(case, case.config["model"]), case.config["sampler"]
    n = math.prod(case.outs["out.codes"][0][1:])
    tape = {"token": Inverse(case["in.u"].T)}
    if "in.shift" in case: tape["order.roll"] = (case["in.shift"] + 0.5) / n
    order = ORDERS["halton-rolled" if c["randomize"] else "halton"]
    pick = Pick(Sharpened(c["sm_temp_max"], c["sm_temp_min"], c["temp_pow"], c["temp_warmup"]))
    codes = sampled(case, m, order, halton_steps, pick, Recorded(tape))
    return {"out.codes": codes, "out.new_per_step": torch.tensor(halton_steps(n, c["step"]))}


@adapter("pgm", "sampler.confidence_sampler_pgm.ConfidenceSampler")
def by_confidence(case):
    (m, _), c = loaded(case, case.config["model"]), case.config["sampler"]
    tape = {"token": case["in.u"]} | chosen_by(case)
    schedule, pick = pgm_steps(c["sched_mode"]), Pick(Sharpened(c["sm_temp"]))
    return {"out.codes": sampled(case, m, surest_first(c), schedule, pick, ByStep(tape))}


@adapter("pgm", "sampler.*_pgm")
def counts(case):
    out = {}
    for name in case.outs:
        found = re.fullmatch(r"out\.(halton|confidence)_?(\w*?)_(clean|queries)_(\d+)_(\d+)", name)
        kind, curve, what, side, steps = found.groups()
        n = int(side) ** 2
        schedule = halton_steps if kind == "halton" else pgm_steps(curve)
        sizes = schedule(n, int(steps))
        known = [sum(sizes[:i]) for i in range(len(sizes))]
        asked = sizes if kind == "halton" else [n - k for k in known]
        out[name] = torch.tensor([k + 1 for k in known] if what == "clean" else asked, dtype=torch.int16)
    return out


@adapter("pgm", "utils.masking_scheduler.get_mask_code (bos given)")
def partitions(case):
    codes, n = case["in.code"].flatten(1), case["in.u"].shape[1]
    draws, at = Recorded({"mask.ratio": case["in.r"], "mask.cells": case["in.u"]}), At(torch.arange(len(codes)))
    out = {"out.code_with_bos": torch.cat((torch.full_like(codes[:, :1], case.config["bos"]), codes), 1)}
    for name in case.outs:
        if name.startswith("out.group_"): out[name] = draw_mask(draws, at, n, name.rsplit("_", 1)[1])
    return out


@adapter("pgm", "models.vq_model.VQ_models*")
@torch.no_grad()
def tokenizer(case):
    spec = {"model": re.search(r"VQ-\d+", case.spec["upstream_class"])[0], **case.config}
    model = filled(case, published_model(spec, system="pgm", compat="upstream")).eval()
    q = model.quantize(case["in.x"])
    row = torch.cat((torch.tensor([case.config["codebook_size"] + 1]), q.codes.flatten())).int()
    return {
        "out.h": model.features(case["in.x"]),
        "out.idx": q.codes.flatten(),
        "out.quant": q.z,
        "out.dec": model.decode(case["in.code"]),
        "out.row": row,
    }


@adapter("pgm", "trainer.cls_trainer.MaskGIT.train_one_epoch*", when=lambda spec: "model" in spec["config"]["model"])
def training(case):
    c = case.config
    m, names = loaded(case, c["model"], class_dropout=c["drop_label"], mask_rate=c["sched_mode"])
    return halton_generator.trained(case, m, names, lambda u: u[:, 1:])


adapter("pgm", "sampler.confidence_sampler.ConfidenceSampler")(halton_generator.confidence_sampler)


@adapter("pgm", "sampler.halton_sampler.HaltonSampler")
def redrawn(case): return halton_generator.halton_sampler(case, Redrawn)
