"PGM's partition transformer: training mode and sampling mode, partitions, training steps, samplers, tokens a step."
import math
import re

import torch

from tests.parity import halton_generator
from tests.parity.harness import adapter
from tests.parity.llamagen_tokenizer import filled
from vgnb.draws import At, Inverse, Recorded
from vgnb.generators.adaptive_orders import Confidence
from vgnb.generators.generator import Cond, Grid
from vgnb.generators.masks import draw_mask
from vgnb.generators.orders import ORDERS, Redrawn
from vgnb.generators.partition import PartitionTransformer, pgm_config, pgm_names
from vgnb.generators.schedules import halton_steps, pgm_steps
from vgnb.sampling.guidance import CFG, Unguided, linear, sharpened
from vgnb.sampling.pick import Pick
from vgnb.sampling.sampler import Sampler
from vgnb.families import published_model

CLASS = "models.encoder_decoder.PartitionDIT"


def loaded(case, spec, **changes):
    "The case's model, loaded through the importer; what the fixture keeps stays as constructed."
    config = pgm_config(spec, compat="upstream", **changes)
    model, names = PartitionTransformer(config), pgm_names(config)
    made = names.export(model.state_dict(), model)
    return names.load_into(model, case.fill() | {k: made[k] for k in case.spec["keep"]}, case.name).eval(), names


def steered(m, case):
    return m._parts(m._steer(torch.where(case["in.drop"], m.config.classes, case["in.y"])))


@adapter("pgm", CLASS, when=lambda spec: "in.group" in spec["tensors"])
@torch.no_grad()
def training_mode(case):
    m, _ = loaded(case, case.config)
    labels = torch.where(case["in.drop"], m.config.classes, case["in.y"])
    return {"out.logits": m.everywhere(case["in.x"][:, 1:], case["in.group"][:, 1:].bool(), labels)}


@adapter("pgm", CLASS, when=lambda spec: "in.clean_positions" in spec["tensors"])
@torch.no_grad()
def sampling_mode(case):
    (m, _), n = loaded(case, case.config), math.prod(pgm_config(case.config).grid)
    steer = steered(m, case)

    def answers(lengths):
        memory = m.remember(case["in.x"][:, 1:], case["in.clean_positions"][:, 1:] - 1, steer, n, lengths)
        return m._head(m.ask(memory, m.config.registers + case["in.noisy_positions"], steer, n), steer)
    given = case["in.concrete_lengths"]
    out = {"out.logits": answers(int(given[0]) if (given == given[0]).all() else given), "out.logits_fixed": answers(None)}
    return out | ({"out.logits_nonuniform": answers(case["in.concrete_lengths_nonuniform"])} if "in.concrete_lengths_nonuniform" in case else {})


class ByStep(Recorded):
    "Draws recorded a step: the columns of a step belong to the cells asked for, in their order. Categories by the inverse CDF, in float64."
    def _rows(self, name, at): return self.tape[name][at.step][at.ids % self.tape[name].shape[1], :at.positions.shape[1]]

    def categorical(self, name, at, logits):
        p = logits.double().softmax(-1)
        return (p.cumsum(-1) <= self._rows(name, at).double()[..., None]).sum(-1).clamp(max=p.shape[-1] - 1)


def guidance(w):
    "Published guidance: (1 + w i/(steps - 1)) conditional - w i/(steps - 1) unconditional."
    return CFG(linear(1.0, 1.0 + w, "step")) if w else Unguided()


def sampled(case, m, order, schedule, pick, draws):
    "The steps of a run of the real sampler, and its codes (b, N, N)."
    c, b = case.config["sampler"], len(case["in.labels"])
    sampler = Sampler(m, order, schedule, guidance(c["w"]), (pick,), c["step"], rows=b, compat="upstream")
    codes = sampler.sample(Cond(case["in.labels"]), torch.arange(b), draws, grid=Grid(m.config.grid))
    return codes.view(b, *m.config.grid)


@adapter("pgm", "sampler.halton_sampler_pgm.HaltonSamplerPGM")
def by_halton(case):
    (m, _), c, n = loaded(case, case.config["model"]), case.config["sampler"], math.prod(case.outs["out.codes"][0][1:])
    tape = {"token": Inverse(case["in.u"].T)} | ({"order.roll": (case["in.shift"] + 0.5) / n} if "in.shift" in case else {})
    pick = Pick(sharpened(c["sm_temp_max"], c["sm_temp_min"], c["temp_pow"], c["temp_warmup"]))
    codes = sampled(case, m, ORDERS["halton-rolled" if c["randomize"] else "halton"], halton_steps, pick, Recorded(tape))
    return {"out.codes": codes, "out.new_per_step": torch.tensor(halton_steps(n, c["step"]))}


@adapter("pgm", "sampler.confidence_sampler_pgm.ConfidenceSampler")
def by_confidence(case):
    (m, _), c = loaded(case, case.config["model"]), case.config["sampler"]
    noise = linear(c["r_temp"], 0.0, "step") if c["randomize"] == "linear" else 0.0
    order = Confidence(noise, {"warm_up": 2, "random": -1}.get(c["randomize"], 0))
    draws = ByStep({"token": case["in.u"]} | {"choice": case[k] for k in ("in.gumbel", "in.rand_like") if k in case})
    return {"out.codes": sampled(case, m, order, pgm_steps(c["sched_mode"]), Pick(sharpened(c["sm_temp"])), draws)}


@adapter("pgm", "sampler.*_pgm")
def counts(case):
    out = {}
    for name in case.outs:
        kind, curve, what, side, steps = re.fullmatch(r"out\.(halton|confidence)_?(\w*?)_(clean|queries)_(\d+)_(\d+)", name).groups()
        n = int(side) ** 2
        sizes = (halton_steps if kind == "halton" else pgm_steps(curve))(n, int(steps))
        known = [sum(sizes[:i]) for i in range(len(sizes))]
        asked = sizes if kind == "halton" else [n - k for k in known]
        out[name] = torch.tensor([k + 1 for k in known] if what == "clean" else asked, dtype=torch.int16)
    return out


@adapter("pgm", "utils.masking_scheduler.get_mask_code (bos given)")
def partitions(case):
    codes, at = case["in.code"].flatten(1), At(torch.arange(len(case["in.code"])))
    draws, n = Recorded({"mask.ratio": case["in.r"], "mask.cells": case["in.u"]}), case["in.u"].shape[1]
    groups = {name: draw_mask(draws, at, n, name.rsplit("_", 1)[1]) for name in case.outs if name.startswith("out.group_")}
    return groups | {"out.code_with_bos": torch.cat((torch.full_like(codes[:, :1], case.config["bos"]), codes), 1)}


@adapter("pgm", "models.vq_model.VQ_models*")
@torch.no_grad()
def tokenizer(case):
    spec = {"model": re.search(r"VQ-\d+", case.spec["upstream_class"])[0], **case.config}
    model = filled(case, published_model(spec, system="pgm", compat="upstream")).eval()
    q = model.quantize(case["in.x"])
    row = torch.cat((torch.tensor([case.config["codebook_size"] + 1]), q.codes.flatten())).int()
    return {"out.h": model.features(case["in.x"]), "out.idx": q.codes.flatten(), "out.quant": q.z, "out.dec": model.decode(case["in.code"]), "out.row": row}


@adapter("pgm", "trainer.cls_trainer.MaskGIT.train_one_epoch*", when=lambda spec: "model" in spec["config"]["model"])
def training(case):
    m, names = loaded(case, case.config["model"], class_dropout=case.config["drop_label"], rate=case.config["sched_mode"])
    return halton_generator.trained(case, m, names, lambda u: u[:, 1:])


adapter("pgm", "sampler.confidence_sampler.ConfidenceSampler")(halton_generator.confidence_sampler)


@adapter("pgm", "sampler.halton_sampler.HaltonSampler")
def redrawn(case): return halton_generator.halton_sampler(case, Redrawn)
