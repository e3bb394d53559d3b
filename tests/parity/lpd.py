"LPD: masks, group sizes, orders, the transformer, its memory, generation, known cells, training, pixels."
import torch
import torch.nn.functional as F

from tests.parity.harness import adapter
from vgnb.data.transforms import to_uint8
from vgnb.draws import At, Race, Recorded
from vgnb.generators.generator import Clock, Cond, Grid, Plan
from vgnb.generators.joint_layers import sampling_mask, training_mask
from vgnb.generators.joint_queries import JointQueryTransformer, lpd_config, lpd_names, resized
from vgnb.generators.locality import LocalityAware, lpd_sizes
from vgnb.generators.orders import Given
from vgnb.generators.schedules import SCHEDULES
from vgnb.sampling.guidance import CFG, Linear
from vgnb.sampling.pick import Pick
from vgnb.sampling.sampler import Sampler
from vgnb.training.optimizers import gradient_norm, guarded_step, make_optimizer
from vgnb.training.recipes import Optim, Rate, rate_at

CLASS = "models.lpd.LPD"
YES = torch.tensor(True)


def model(case, **changes):
    "The case's model, loaded through the importer."
    config = lpd_config(case.config, **changes)
    return lpd_names.load_into(JointQueryTransformer(config), case.fill(), case.name).eval()


def calls(*functions): return lambda spec: spec.get("call", {}).get("function") in functions
def sizes_of(case, name="in.group_sizes"): return case[name].tolist()


def guidance(call):
    linear = call["cfg_schedule"] == "linear" and call["cfg"] != 1
    return CFG(call["cfg"], start=1.0, by="column") if linear else CFG(call["cfg"])


@adapter("lpd", "models.mask.generate_mask_mod*")
def masks(case):
    out = {}
    for name in case.outs:
        what, i = name.removeprefix("out.").rstrip("0123456789"), name[len(name.rstrip("0123456789")):]
        sizes = tuple(sizes_of(case, f"in.group_sizes{i}"))
        mask = training_mask(sizes) if what.startswith("train") else sampling_mask((1, *sizes), 0)
        out[name] = mask.sum(1) if "rowsum" in what else mask.sum(0) if "colsum" in what else mask
    return out


def published_rate(c):
    "Our rate for the published arguments, in epochs."
    held = c["lr_decay_start_epoch"] if c["lr_schedule"] == "constant+cosine" else 0
    shape = "constant_with_warmup" if c["lr_schedule"] == "constant" else "cosine"
    return Rate(shape, c["warmup_epochs"], hold=held, floor=c["min_lr"] / c["lr"])


@adapter("lpd", "orders/group_sizes_lookup.json*")
def schedules(case):
    out = {}
    for resolution, steps in case.config["tables"]:
        cells = (int(resolution) // 16) ** 2
        out[f"out.group_sizes.{resolution}.{steps}"] = torch.tensor(lpd_sizes(cells, int(steps)))
    for i, c in enumerate(case.config["ramps"]):
        sizes, done, scale = sizes_of(case, f"in.ramp{i}.group_sizes"), 0, []
        for step, count in enumerate(sizes):
            scale += Linear(1.0, c["cfg"], "column")(Clock(step, len(sizes), done, sum(sizes), count=count))
            done += count
        out[f"out.ramp{i}.scale"] = torch.tensor(scale)
    for name, c in case.config["lr"].items():
        values = [c["lr"] * rate_at(published_rate(c), e, c["epochs"]) for e in case[f"in.{name}.epochs"].tolist()]
        out[f"out.{name}.values"] = torch.tensor(values, dtype=torch.float64)
    return out


class Ranks:
    "Recorded ranks (b, steps, n) of cells, the first of which wins; and the first cell (b, steps) where one was drawn."
    def __init__(self, ties, first):
        first = F.one_hot(first.clamp(min=0), ties.shape[2]) * (first[..., None] >= 0)
        self.tape = {"order.ties": (0.5 - ties / 2 ** 15) / 2 + 0.25, "order.first": first / 2}

    def uniform(self, name, at, *shape): return self.tape[name][at.ids, at.step].float()


def sizes_as(counts): return lambda n, steps, start: counts


@adapter("lpd", "orders.lpd_order.lpd_order_schedule")
def orders(case):
    out = {}
    for i, run in enumerate(case.spec["runs"]):
        counts, first = sizes_of(case, f"in.group_sizes{i}"), case[f"in.first{i}"]
        later = case[f"in.fallback{i}"] if f"in.fallback{i}" in case else torch.full((len(counts),), -1)
        draws = Ranks(case[f"in.rank{i}"][None], torch.cat((first, later[1:]))[None])
        order = LocalityAware(run["proximity_threshold"], run["repulsion_threshold"])
        grid = Grid((run["grid"], run["grid"]))
        out[f"out.order{i}"] = order.plan(grid, None, sizes_as(counts), 1, draws, At(torch.arange(1))).perm[0]
    return out


@adapter("lpd", f"{CLASS} (embedding part)*")
@torch.no_grad()
def embeddings(case):
    m, ids, cells = model(case), case["in.ids"], case["in.cells"]
    labels = torch.cat((case["in.cond"], torch.tensor([m.classes])))
    none = torch.zeros(len(labels), 0, dtype=torch.long)
    classes = m.inputs(m.condition(labels), none, none, none)[:, 0]
    x = m.inputs(m.condition(labels[:len(ids)]), ids, cells, cells)[:, 1:]
    tokens, queries = x.chunk(2, 1)
    out = {"out.class": classes[:-1], "out.null": classes[-1:], "out.tokens": tokens, "out.queries": queries}
    return out | {f"out.pos_embed.{side}": resized(m, (side, side)).positions for side in case.spec["call"]["resize"]}


@adapter("lpd", CLASS, when=calls("forward"))
@torch.no_grad()
def forward(case):
    m, codes, order = model(case), case["in.idx"], case["in.token_order"]
    labels, sizes = case["in.cond"], sizes_of(case)
    if "in.label_drop_rand" not in case:
        logits, = m.logits(codes[..., None], Cond(labels), Plan(order, sizes))
        loss = F.cross_entropy(logits.flatten(0, 1), codes.gather(1, order).flatten())
        return {"out.logits": logits, "out.loss": loss[None]}

    dropped = case["in.label_drop_rand"] < m.config.class_dropout
    logits, = m.logits(codes[..., None], Cond(labels.masked_fill(dropped, m.classes)), Plan(order, sizes))
    draws = Recorded({"order": order, "class_drop": case["in.label_drop_rand"], "groups": torch.tensor([0.5])})
    with recorded_groups([sizes]):
        trained = model(case, schedule="recorded", steps=(1,)).train()
        loss = trained(codes[..., None], Cond(labels), draws, At(torch.arange(len(codes)))).total
    return {"out.logits": logits, "out.loss": loss[None]}


class recorded_groups:
    "A schedule by the name `recorded`: with `k` steps the k-th list, counted from 1."
    def __init__(self, lists): self.lists = lists
    def __enter__(self): dict.__setitem__(SCHEDULES, "recorded", lambda n, steps, start: self.lists[steps - 1])
    def __exit__(self, *error): dict.pop(SCHEDULES, "recorded")


@adapter("lpd", CLASS, when=lambda spec: spec.get("call", {}).get("forced"))
@torch.no_grad()
def forced(case):
    "Step by step with the tokens given, and at once."
    m, codes, order, sizes = model(case), case["in.idx"][..., None], case["in.token_order"], sizes_of(case)
    cond, plan, guide = Cond(case["in.cond"]), Plan(order, sizes), guidance(case.spec["call"])
    branches = cond, m.null(cond)
    state, parts, done = m.begin(branches, Grid(m.grid)), [], 0
    for step, columns in enumerate(plan.groups()):
        cells = order[:, columns]
        p = m.predict(state, cells, live=2)
        m.accept(state, cells, codes.gather(1, cells[..., None]))
        mixed = guide.mix(p, Clock(step, len(sizes), done, len(order[0]), count=sizes[step]))
        parts.append(torch.stack((*p.logits, mixed)))
        done += sizes[step]
    logits = torch.cat(parts, 2)
    full = [m.logits(codes, c, plan)[0] for c in branches]
    names = "cond", "null", "guided", "cond_full", "null_full"
    return {f"out.logits_{name}": value for name, value in zip(names, (*logits, *full))}


@adapter("lpd", CLASS, when=lambda spec: calls("sample_tokens")(spec) and not spec["call"].get("forced"))
def generate(case):
    m, call, order = model(case), case.spec["call"], case["in.token_order"]
    b = len(order)
    labels = case["in.cond"] if call["labels"] else torch.full((b,), m.classes)
    noise = case["in.exp_noise"] if "in.exp_noise" in case else torch.ones(*order.shape, *m.vocab)
    draws = Recorded({"token": Race(noise.transpose(0, 1))})
    pick = Pick(call["temperature"], call["top_k"], call["top_p"])
    sampler = Sampler(m, Given(order), sizes_as(sizes_of(case)), guidance(call), (pick,), rows=b)
    steps = list(sampler.stream(Cond(labels), torch.arange(b), draws, grid=Grid(m.grid), keep=("logits",)))
    logits = torch.cat([step.kept["logits"][0] for step in steps], 1)
    return {"out.indices": steps[-1].codes()[..., 0], "out.logits": logits}


@adapter("lpd", f"{CLASS}, orders.lpd_order rules*")
def paint(case):
    m, call, codes, cells = model(case), case.spec["call"], case["in.tokens"], case["in.known_pos"]
    b, n = codes.shape
    known = torch.zeros(b, n, dtype=torch.bool).index_fill_(1, cells, True)
    draws = Ranks(case["in.rank"], torch.full(case["in.rank"].shape[:2], -1))
    order = LocalityAware(call["proximity_threshold"], call["repulsion_threshold"])
    pick = Pick(greedy=call["top_k"] == 1)
    sampler = Sampler(m, order, sizes_as(sizes_of(case)), guidance(call), (pick,), rows=b)
    given = (codes[..., None], known)
    steps = list(sampler.stream(Cond(case["in.cond"]), torch.arange(b), draws, given=given, grid=Grid(m.grid),
                                keep=("logits",)))
    logits = torch.cat([step.kept["logits"][0] for step in steps], 1)
    decided = torch.cat([step.positions for step in steps], 1)
    whole = torch.cat((cells.expand(b, -1), decided), 1)                # known ones in the order of the list
    return {"out.token_order": whole, "out.logits": logits, "out.indices": steps[-1].codes()[..., 0]}


@adapter("lpd", f"{CLASS}; engine.train_one_epoch*")
def training(case):
    o, c = case.config["optimizer"], case.config["lr"]
    steps = len(case["in.idx"])
    lists = [sizes_of(case, f"in.group_sizes{k}") for k in range(steps)]
    optim = Optim(lr=c["lr"], betas=(o["beta1"], o["beta2"]), weight_decay=o["weight_decay"], clip=o["grad_clip"])
    logs, gradients = {k: [] for k in ("loss", "grad_norm_preclip", "lr", "param_norms")}, {}
    with recorded_groups(lists):
        m = model(case, schedule="recorded", steps=tuple(range(1, steps + 1))).train()
        params = dict(m.named_parameters())
        optimizer = make_optimizer(optim, params)
        for step in range(steps):
            codes, labels = case["in.idx"][step], case["in.cond"][step]
            draws = Recorded({"order": case["in.token_order"][step], "class_drop": case["in.label_drop_rand"][step],
                              "groups": torch.tensor([(step + 0.5) / steps])})
            loss = m(codes[..., None], Cond(labels), draws, At(torch.arange(len(codes)), step=step)).total
            optimizer.zero_grad()
            loss.backward()

            norm = gradient_norm(params.values())
            if not step: gradients = lpd_names.export({k: p.grad.clone() for k, p in params.items()})
            lr = c["lr"] * rate_at(published_rate(c), c["first_epoch"] + step / c["steps_per_epoch"], c["epochs"])
            torch.nn.utils.clip_grads_with_norm_(params.values(), optim.clip, norm)
            guarded_step(optimizer, YES, lr)

            state = lpd_names.export(params)
            norms = torch.stack([state[k].detach().norm() for k in case.spec["manifest"]])
            seen = loss.detach(), norm, torch.tensor(lr, dtype=torch.float64), norms
            for k, v in zip(logs, seen): logs[k].append(v)

    final = lpd_names.export(m.state_dict())
    out = {f"out.{k}": torch.stack(v) for k, v in logs.items()}
    for name, (shape, _) in case.outs.items():
        for start, entries in (("out.grad.", gradients), ("out.final.", final)):
            if name.startswith(start): out[name] = entries[name.removeprefix(start)][:shape[0]]
    return out


@adapter("lpd", "engine.evaluate (pixel rule)")
def pixels(case):
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    return {f"out.{name}": to_uint8(case[f"in.decoded_{name}"].to(dtypes[name]), "even") for name in dtypes}
