"""The pictures at the top of the README: samples that grow, by a model that comes with the package.

    python scripts/front_picture.py                    # nbs/front.png: a strip, and two of each class
    python scripts/front_picture.py --animation nbs/front.gif      # one sample, token by token in several orders
    python scripts/front_picture.py --model tiny-pgm --label star --out star.png
"""
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

MOST = 1_500_000    # bytes of an animation
STEP, REST = 160, 2200     # milliseconds of a step, and of the finished picture

@dataclass
class Options:
    "What is drawn, and where to."
    out: Path = Path("nbs/front.png")
    "the PNG"
    animation: Path | None = None
    "a GIF instead: one sample in several orders"
    model: str = "tiny-randar"
    "a shipped model, or the folder of a pipeline"
    label: str = "heart"
    "the class of the sample that grows"
    seed: int = 0
    "of all samples"
    orders: tuple[str, ...] = ("raster", "halton", "spiral-out", "random")
    "of the animation"
    steps: int = 16
    "of the animation"


def still(pipe, o: Options):
    "A sample that grows, and two of each class."
    from PIL import Image

    from vgnb.figures import TONES, image_grid
    from vgnb.moments import moments, sampling_strip

    def decode(codes): return pipe.decode(codes.reshape(1, pipe.grid.n, -1))
    steps = list(moments(pipe.stream(o.label, seed=o.seed)))
    count = sum(p.numel() for p in pipe.generator.parameters()) / 1e6
    title = f"{o.model} ({count:.1f} million parameters) draws a {o.label} in {len(steps)} steps"
    strip = sampling_strip(steps, decode, pipe.grid.shape, count=7, title=title)
    twice = [name for name in pipe.classes for _ in range(2)]
    sheet = image_grid(pipe.sample(twice, seed=o.seed), twice, columns=10, side=64, title="two of each class")

    picture = Image.new("RGB", (max(strip.width, sheet.width), strip.height + sheet.height), TONES["paper"])
    picture.paste(strip)
    picture.paste(sheet, (0, strip.height))
    return picture


def frames(pipe, o: Options) -> list:
    "After each step: above the tokens in every order, below what they decode to."
    from vgnb.figures import tile_sheet
    from vgnb.moments import moments, preview, token_picture

    def decode(codes): return pipe.decode(codes.reshape(1, pipe.grid.n, -1))

    def column(order):
        seen = list(moments(pipe.stream(o.label, seed=o.seed, order=order, steps=o.steps)))
        shape = pipe.grid.shape
        return [(token_picture(m, 0, shape, side=128), preview(m, 0, decode, shape, side=128)) for m in seen]

    columns = [column(order) for order in o.orders]
    title = f"One {o.label} of {o.model}, the same noise, token by token in {len(o.orders)} orders"
    names = [list(o.orders), [""] * len(o.orders)]
    out = []
    for k in range(max(map(len, columns))):
        now = [column[min(k, len(column) - 1)] for column in columns]
        rows = [[tokens for tokens, _ in now], [picture for _, picture in now]]
        out.append(tile_sheet(rows, names, ["tokens", "picture"], side=128, title=title))
    return out


def save_animation(pictures: list, place: Path):
    "A GIF that plays for ever; all frames share the colours of the last one."
    from PIL import Image
    palette = pictures[-1].quantize(256, dither=Image.Dither.NONE)
    small = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    times = [STEP] * (len(small) - 1) + [REST]
    small[0].save(place, save_all=True, append_images=small[1:], duration=times, loop=0, optimize=False)


def main(o: Options) -> int:
    from vgnb.core import check, check_place
    from vgnb.figures import png_bytes
    from vgnb.pipeline import from_pretrained
    place = o.animation or o.out
    check_place("animation" if o.animation else "out", place.parent)
    pipe = from_pretrained(o.model)
    if o.animation:
        pictures = frames(pipe, o)
        save_animation(pictures, place)
        check(place.stat().st_size <= MOST, "animation", place, f"must have at most {MOST:,} bytes: take fewer --steps")
    else:
        pictures = [still(pipe, o)]
        place.write_bytes(png_bytes(pictures[0], None))
    print(f"{place}: {pictures[0].width}x{pictures[0].height}, {place.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    from vgnb.cli import run_main, typed_cli
    sys.exit(run_main(lambda argv: main(typed_cli(Options, args=argv, description=__doc__))))
