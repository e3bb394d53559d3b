"""The picture at the top of the README: a sample grows, and two of each class, by a model that comes with the package.

    python scripts/front_picture.py                    # nbs/front.png
    python scripts/front_picture.py --model tiny-pgm --label star --out star.png
"""
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

@dataclass
class Options:
    "What is drawn, and where to."
    out: Path = Path("nbs/front.png")
    "the PNG"
    model: str = "tiny-randar"
    "a shipped model, or the folder of a pipeline"
    label: str = "heart"
    "the class of the sample that grows"
    seed: int = 0
    "of all samples"


def main(o: Options) -> int:
    from PIL import Image

    from vgnb.core import check_place
    from vgnb.figures import TONES, image_grid, png_bytes
    from vgnb.moments import moments, sampling_strip
    from vgnb.pipeline import from_pretrained
    check_place("out", o.out.parent)
    pipe = from_pretrained(o.model)

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
    o.out.write_bytes(png_bytes(picture, None))
    print(f"{o.out}: {picture.width}x{picture.height}, {o.out.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    from vgnb.cli import run_main, typed_cli
    sys.exit(run_main(lambda argv: main(typed_cli(Options, args=argv, description=__doc__))))
