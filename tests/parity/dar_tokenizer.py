"D-AR's tokenizer side: positions, times and windows, the flow decoder and its solver, both bottlenecks, files."
import importlib.util
import re

import torch
import torch.nn.functional as F

from tests.parity.harness import adapter
from tests.parity.llamagen_tokenizer import filled
from vgnb.data.transforms import to_uint8
from vgnb.draws import At, Recorded
from vgnb.generators.generator import Clock
from vgnb.layers import rotate
from vgnb.names import NameTable
from vgnb.sampling.guidance import Linear
from vgnb.tokenizers.dar_tokenizer import DAR_TOKENIZER
from vgnb.tokenizers.flow_decoder import (
    FlowNet,
    FlowState,
    arrived,
    flow_config,
    flow_names,
    flow_plan,
    flow_step,
    shifted,
    shifted_times,
    window_start,
)
from vgnb.tokenizers.quantizers import entropy_loss
from vgnb.tokenizers.token_encoder import rotary_grid
from vgnb.training.recipes import Rate, rate_at
from vgnb.zoo import read_published, unwrap

CPU = torch.device("cpu")


@adapter("dar", "tokenizer.tokenizer_image.tokenizer_transformer.EmbedND2DMaker")
def rope2d(case):
    c, out = case.config, {}
    tables = [rotary_grid(h, w, sum(c["axes"]), c["theta"], CPU) for h, w in c["grids"]]
    for (h, w), table in zip(c["grids"], tables):
        cos, sin = table.unbind(-1)
        matrix = torch.stack((torch.stack((cos, -sin), -1), torch.stack((sin, cos), -1)), -2)
        out[f"out.rope2d_{h}x{w}"] = matrix[None, None]
    return out | {"out.q_rotated": rotate(case["in.q"].transpose(1, 2), tables[0]).transpose(1, 2)}


def windows(spec):
    "(begin, end, unshifted times) of the steps that are taken."
    steps = spec["num_denoising_steps"]
    plan = flow_plan(steps, *line(spec), compat="upstream")
    taken = slice(spec.get("start_steps") or 0, spec.get("clip_steps"))
    first, end = torch.tensor(plan.windows).T
    return first[taken], end[taken], torch.tensor(plan.times[:-1])[taken]


def line(spec):
    "Groups, tokens, and tokens that a step looks at."
    return spec["num_query_groups"], spec["num_all_queries"], spec["queries_per_step"]


def tokenizer_rate(spec):
    warmup, length = spec["warmup_steps"], spec["lr_cosine_end_steps"]
    rate = Rate("cosine" if length else "constant_with_warmup", warmup)
    shares = [rate_at(rate, step, warmup + length) for step in spec["steps"]]
    fallen = [max(share, 0.1) if step > warmup else share for step, share in zip(spec["steps"], shares)]
    return [spec["lr"] * share for share in fallen]


def generator_rate(spec):
    rate = Rate("linear", hold=300_000, floor=0.1)
    return [spec["lr"] * rate_at(rate, step, 360_000) for step in spec["steps"]]


def scales(start, end, count):
    "One guidance scale a token."
    ramp = Linear(1.001 if start == 1 and end > 1 else start, end, "step")
    return [ramp(Clock(step=i, steps=count, done=i, total=count)) for i in range(count)]


@adapter("dar", "schedules")
def schedules(case):
    c, t, out = case.config, case["in.t"], {}
    for i, spec in enumerate(c["windows"]):
        for what, value in zip(("begin", "end", "t"), windows(spec)): out[f"out.win{i}_{what}"] = value
    for i, spec in enumerate(c["train"]): out[f"out.train{i}_first_query"] = window_start(t, *line(spec), "upstream")
    for i, shift in enumerate(c["shift"]): out[f"out.shift{i}"] = shifted(t, shift)
    rows = {"toklr": map(tokenizer_rate, c["tok_lr"]), "arlr": map(generator_rate, c["ar_lr"]),
            "cfg": (scales(*spec) for spec in c["cfg"])}
    for name, values in rows.items():
        out |= {f"out.{name}{i}": torch.tensor(v, dtype=torch.float64) for i, v in enumerate(values)}
    return out


@adapter("dar", "tokenizer.tokenizer_image.diff_decoder.DiffusionCore")
@torch.no_grad()
def diffusion_core(case):
    net = filled(case, (FlowNet(flow_config(case.config)), NameTable(*flow_names()))).eval()
    velocity, features = net(case["in.x"], case["in.t"], case["in.cond"], features=True)
    spread = torch.stack((features.mean(-1), features.std(-1)), -1)
    return {"out.velocity": velocity, "out.h_repa_b0_every8": features[:1, ::8], "out.h_repa_mean_std": spread}


@adapter("dar", "tokenizer.tokenizer_image.diff_decoder.SequentialDiffusionDecoder")
@torch.no_grad()
def diffusion_sampler(case):
    config = flow_config(case.config)
    net = filled(case, (FlowNet(config), NameTable(*flow_names())), "net.").eval()
    ts, conds = case["in.timesteps"], case["in.conds"]

    def sample(method="adams2", clip_steps=None, start_steps=0, start_x=None):
        times = shifted_times(ts[:clip_steps].tolist(), config.shift)[start_steps:]
        x = case["in.noise"]
        if start_x: x = (1 - times[0]) * x + times[0] * config.data_std * case[start_x]
        state = FlowState(x)
        for t, cond in zip(times, conds[start_steps:clip_steps]):
            flow_step(state, net(state.x, torch.tensor([t]), cond)[0], times, method)
        return arrived(state, config.data_std)

    made = {f"out.{name}": sample(**call) for name, call in case.spec["call"].items()}
    return made | {"out.adjusted_schedule": torch.tensor(shifted_times(ts.tolist(), config.shift))}


def is_eval(spec) -> bool:
    "Not the training steps of the same class, nor another system's."
    return "diff_decoder" in spec["config"] and "in.noise" in spec["tensors"]


@adapter("dar", "tokenizer.tokenizer_image.vq_model.VQModel", is_eval)
@torch.no_grad()
def vq_model(case):
    model = filled(case, DAR_TOKENIZER.make(case.config, compat="upstream")).eval()
    images, noise = case["in.image"], case["in.noise"]
    sides = tuple(noise.shape[-2:])
    q = model.quantize(images)

    def noisy(count):
        "As many pictures, from the recorded noise, drawn at its size."
        return dict(draws=Recorded({"noise": noise}), at=At(torch.arange(count)), resolution=sides)

    out = {"out.quant": q.z[:, :, None], "out.cond": model.conditions(q.z)}
    for name in case.outs:
        if re.fullmatch(r"out\.forward(_b0)?", name):
            part = images[:1] if name.endswith("b0") else images
            out[name] = model.render(model.quantize(part).z, **noisy(len(part)))
        if m := re.fullmatch(r"out\.preview_clip(\d+)", name):
            out[name] = model.preview(q.codes[:1], int(m[1]), **noisy(1))
        if m := re.fullmatch(r"out\.start(\d+)", name):
            begun = F.interpolate(images[:1], size=sides, mode="nearest")
            out[name] = model.redraw(q.codes[:1], begun, int(m[1]), **noisy(1))
    if q.codes is None: return out

    pixels = model.decode(q.codes, **noisy(len(images)))
    return out | {"out.indices": q.codes, "out.decoded": pixels, "out.decoded_uint8": to_uint8(pixels).movedim(-1, 1)}


@adapter("dar", "tokenizer.tokenizer_image.vq_model.compute_entropy_loss")
def entropy(case):
    def loss(affinity, temperature):
        "Rows and features whose distances are minus the affinities, up to one number: unit vectors see to that."
        return entropy_loss((1 + affinity) / 2, torch.eye(affinity.shape[1]), temperature)

    return {
        "out.t0.01": loss(case["in.affinity"], 0.01),
        "out.small_t0.01": loss(case["in.affinity_small"], 0.01),
        "out.temp1": loss(case["in.affinity"], 1.0),
    }


@adapter("dar", "torch.save layouts of the two training scripts")
def ckpt_layout(case):
    tokenizer = read_published(case.folder / "ckpt_layout_tokenizer.pt")
    generator = read_published(case.folder / "ckpt_layout_gpt.pt")
    averaged, last = unwrap(tokenizer), unwrap(tokenizer, ("model",))
    spec = DAR_TOKENIZER.carried(tokenizer) or {}
    return {
        "config_util is not importable": importlib.util.find_spec("config_util") is None,
        "the config is read as a mapping": {"encoder_patch_size", "vq_codebook_size", "diff_decoder"} <= spec.keys(),
        "ema is preferred": all(torch.equal(averaged[name], value + 1) for name, value in last.items()),
        "all entries are there": averaged.keys() == last.keys() and len(last) > 0,
        "both files say their step": (tokenizer["steps"], generator["steps"]) == (7, 9),
        "both files hold their options": all(vars(content["args"]) for content in (tokenizer, generator)),
        "_orig_mod. is taken off": all(not name.startswith("_orig_mod.") for name in unwrap(generator)),
    }
