"Figures as functions: same state, same bytes; sizes; text from data is only ever text; nothing outside is disturbed."
import io
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image

from vgnb.charts import codebook_figure, curves_figure, fold, order_figure, order_steps, read_records, running_mean
from vgnb.core import BadInput, Missing
from vgnb.figures import (
    error_map,
    hatch,
    heat,
    house_figure,
    house_style,
    image_grid,
    plain_text,
    png_bytes,
    png_uri,
    reconstruction_sheet,
    tile_sheet,
    to_image,
    to_pixels,
    use_house_style,
)
from vgnb.moments import Moment, moments, preview, sampling_strip, token_picture
from vgnb.report import html_figure, html_page, html_table

HOSTILE = ["$\\frac$", "$x^2", "_hidden", "<script>alert(1)</script>", "a\nb\tc", "\u202egnp", "\ud800", "", "🙂 漢字",
           "x" * 500, None, 3]
G = np.random.default_rng(0)
PIXELS = G.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
RECORDS = [dict(step=i, loss=1 / (i + 1), note="text", ok=True) for i in range(50)]


def fake_steps(b=3, n=16, k=4, start=0):
    "A stream of n / k steps in raster order, as a sampler yields them."
    for i in range(n // k):
        codes = torch.full((b, n, 1), -1)
        codes[:, :(i + 1) * k] = torch.arange((i + 1) * k)[None, :, None]
        yield SimpleNamespace(clock=SimpleNamespace(step=i, steps=n // k, done=i * k, total=n, level=0),
                              positions=torch.arange(i * k, (i + 1) * k).expand(b, k),
                              confidence=torch.full((b, k), (i + 1) / 10),
                              ids=torch.arange(start, start + b),
                              kept={},
                              codes=lambda codes=codes: codes.clone())


def hostile_records(names): return [{"step": i, **{str(name): float(i) for name in names}} for i in range(9)]


def decode(codes): return codes.numpy().astype(np.uint8)[..., None].repeat(3, -1).repeat(4, 1).repeat(4, 2) * 10


PICTURES = {
    "image_grid": lambda text: image_grid(PIXELS, text, marks=[i % 3 > 0 for i in range(12)], title=text[3]),
    "reconstruction_sheet": lambda text: reconstruction_sheet(PIXELS, 255 - PIXELS, text, title=text[0]),
    "codebook_figure": lambda text: codebook_figure(np.arange(40), text[0]),
    "order_figure": lambda text: order_figure({str(t): np.arange(16) for t in text[:4]}, (4, 4)),
    "curves_figure": lambda text: curves_figure({str(t): RECORDS for t in text[:5]}, log=("loss",)),
    "curves_keys": lambda text: curves_figure(hostile_records(text[:4]), keep=0),
    "sampling_strip": lambda text: sampling_strip(list(moments(fake_steps())), decode, (4, 4), title=text[3]),
}


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.filterwarnings("ignore:Glyph")
def test_same_state_same_bytes_and_small(name):
    a, b = (png_bytes(PICTURES[name](HOSTILE)) for _ in range(2))
    assert a == b and len(a) <= 200_000 and a[:4] == b"\x89PNG"
    assert Image.open(io.BytesIO(a)).width > 100


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.filterwarnings("ignore:Glyph")
def test_text_shows_in_the_picture_as_it_is(name):
    "`$x$` and `<b>` are drawn, not interpreted: another text of the same kind gives another picture."
    plain, other = [f"name {i}" for i in range(12)], [f"${i}$" for i in range(12)]
    assert png_bytes(PICTURES[name](plain)) != png_bytes(PICTURES[name](other))


def test_a_figure_shows_itself_small_where_no_plotting_backend_is_set_up():
    assert codebook_figure(np.arange(40))._repr_png_() == png_bytes(codebook_figure(np.arange(40)))


def test_dollars_are_drawn_as_dollars():
    "If mathematics were on, `$a$` would be narrower than `$a$$` is wide; here every character takes its own room."
    fig, axes = house_figure(size=(4, 1))
    with house_style(): texts = [axes[0, 0].text(0, 0, t) for t in ("$aaaa$", "aaaa")]
    to_image(fig)
    assert not any(t.get_parse_math() for t in texts)
    assert texts[0].get_window_extent().width > texts[1].get_window_extent().width + 5


@pytest.mark.parametrize("rc", [
    {"axes.facecolor": "red", "font.size": 30},
    {"text.parse_math": True, "figure.dpi": 300},
    {"axes.grid": False, "savefig.dpi": 300}])
def test_the_callers_matplotlib_settings_neither_matter_nor_change(rc):
    want = png_bytes(codebook_figure(np.arange(40)))
    with mpl.rc_context(rc):
        before = dict(mpl.rcParams)
        assert png_bytes(codebook_figure(np.arange(40))) == want
        assert dict(mpl.rcParams) == before


def test_a_page_in_house_style_shows_pyplots_figures_alike():
    import matplotlib.pyplot as plt
    with mpl.rc_context({"axes.facecolor": "red", "font.size": 30}):
        use_house_style()
        fig, ax = plt.subplots(figsize=(3, 2))
        ax.plot([0, 1])
        plt.close(fig)
        page = png_bytes(fig)
    house, axes = house_figure(size=(3, 2))
    with house_style(): axes[0, 0].plot([0, 1])
    assert page == png_bytes(house)


def printed_by(*lines):
    "What a new Python prints that has no screen."
    env = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "MPLBACKEND")}
    command = [sys.executable, "-c", "\n".join(lines)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=env, timeout=120).stdout.strip()


def test_drawing_needs_no_pyplot_no_screen_and_only_the_rooms_below():
    seen = printed_by("import sys, numpy, vgnb.charts",
                      "print(*sorted(m for m in sys.modules if m.startswith('vgnb.')))",
                      "from vgnb.charts import codebook_figure",
                      "from vgnb.figures import png_bytes",
                      "png_bytes(codebook_figure(numpy.arange(9)))",
                      "print('matplotlib.pyplot' in sys.modules)")
    assert seen.splitlines() == ["vgnb.charts vgnb.core vgnb.figures vgnb.pngs vgnb.upright", "False"]


def test_plain_text_is_one_short_visible_line():
    for t in HOSTILE:
        shown = plain_text(t, 20)
        assert len(shown) <= 20 and shown.isprintable() and shown == shown.strip()
        shown.encode("utf-8")


def test_to_pixels_takes_every_usual_picture_and_agrees():
    x = torch.from_numpy(PIXELS).permute(0, 3, 1, 2).float() / 127.5 - 1
    pictures = [Image.fromarray(p) for p in PIXELS]
    for given in (PIXELS, torch.from_numpy(PIXELS), x, x.double().numpy(), pictures, list(PIXELS), list(x)):
        assert np.array_equal(to_pixels(given), PIXELS)
    assert to_pixels(Image.fromarray(PIXELS[0])).shape == (1, 16, 16, 3)
    assert to_pixels(torch.full((3, 2, 2), torch.inf)).reshape(-1, 3).tolist() == [[213, 94, 0]] * 4
    assert PIXELS.flags.writeable and to_pixels(x.bfloat16()).dtype == np.uint8


@pytest.mark.parametrize("bad", [
    np.zeros((4, 4), np.uint8),
    np.zeros((2, 4, 4, 4), np.uint8),
    torch.zeros(2, 4, 4, 3),
    np.zeros((1, 3, 8, 8), np.int64),
    [],
    [PIXELS[0], PIXELS[0, :8]]])
def test_to_pixels_refuses_what_is_no_picture(bad):
    with pytest.raises(BadInput, match="images="): to_pixels(bad)


@pytest.mark.parametrize("call, argument", [
    (lambda: image_grid(PIXELS, ["a"]), "labels"),
    (lambda: image_grid(PIXELS, marks=[True]), "marks"),
    (lambda: image_grid(PIXELS, columns=-1), "columns"),
    (lambda: error_map(PIXELS, PIXELS[:3]), "reconstructions"),
    (lambda: codebook_figure([0, 0]), "counts"),
    (lambda: codebook_figure([1, -1]), "counts"),
    (lambda: order_steps([0, 2]), "order"),
    (lambda: order_steps([0, 1], [1, 2]), "counts"),
    (lambda: fold(range(5), (2, 2)), "shape"),
    (lambda: curves_figure([{"step": 1}]), "runs"),
    (lambda: curves_figure(RECORDS, ["lost"]), "keys"),
    (lambda: running_mean([1], 1.), "keep"),
    (lambda: tile_sheet([[]]), "rows"),
    (lambda: png_bytes("x"), "picture"),
    (lambda: png_bytes(image_grid(PIXELS), 10), "limit"),
    (lambda: sampling_strip([], decode, (4, 4)), "seen"),
    (lambda: sampling_strip(list(moments(fake_steps())), decode, (4, 4), sample=3), "sample"),
    (lambda: token_picture(next(moments(fake_steps())), 0, (4, 4), by="colour"), "by"),
    (lambda: html_table([]), "rows"),
    (lambda: html_page("t", ("style", "x")), "part")])
def test_bad_input_names_the_argument(call, argument):
    with pytest.raises(BadInput) as e: call()
    assert e.value.argument == argument


def test_a_grid_holds_the_pixels_it_was_given():
    sheet = np.asarray(image_grid(PIXELS[:6], columns=6, side=32))
    for i in range(6): assert np.array_equal(sheet[6:38, 6 + 38 * i:38 + 38 * i], PIXELS[i].repeat(2, 0).repeat(2, 1))


def test_orders_and_folding():
    perm = torch.tensor([3, 1, 0, 2])
    assert order_steps(perm).tolist() == [2, 1, 3, 0] and order_steps(perm, [1, 3]).tolist() == [1, 1, 1, 0]
    assert np.isnan(fold(range(7), (7,))).sum() == 2 and fold(range(6), (2, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]
    for shape, n in (((1, 5), 5), ((32, 32), 1024), ((257,), 257)):
        assert to_image(order_figure({"a": np.arange(n)}, shape)).width > 100


def test_curves_survive_what_logs_contain(tmp_path):
    odd = [dict(step=i, loss=v) for i, v in enumerate((1., float("nan"), float("inf"), None, "x", 2.))]
    assert to_image(curves_figure([*odd, dict(loss=3.), {}])).width > 100
    runs = {"one": [dict(step=0, loss=1.)], "none": [], "other": [dict(step=0, accuracy=1)]}
    assert to_image(curves_figure(runs)).width > 100
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1}\n\n{"step": 2}\n{"st')
    assert read_records(log) == [{"step": 1}, {"step": 2}]
    log.write_text('{"step": 1}\n[]\n{"step": 2}\n')
    with pytest.raises(BadInput, match="line 2"): read_records(log)
    with pytest.raises(Missing): read_records(tmp_path / "none.jsonl")


def test_running_mean_of_a_constant_is_the_constant_from_the_start():
    assert np.allclose(running_mean([3.] * 5 + [np.nan, np.inf, 3.], .99), 3)
    assert np.isnan(running_mean([np.nan, np.nan])).all()


def test_moments_follow_the_stream_lazily_and_start_afresh_with_a_micro_batch():
    taken = []
    def counted():
        for s in [*fake_steps(start=0), *fake_steps(b=2, start=3)]:
            taken.append(s)
            yield s
    stream = moments(counted())
    first = next(stream)
    assert len(taken) == 1 and isinstance(first, Moment) and first.drawn[0].tolist() == [0] * 4 + [-1] * 12
    seen = [first, *stream]
    assert [m.step for m in seen] == [0, 1, 2, 3] * 2
    assert seen[3].known.all() and seen[3].drawn[0].tolist() == np.arange(4).repeat(4).tolist()
    assert seen[4].codes.shape == (2, 16, 1)
    assert (seen[4].drawn[:, 4:] == -1).all() and np.isnan(seen[4].confidence[:, 4:]).all()
    assert first.drawn[0, 4] == -1                                   # earlier moments stay what they were


def test_given_cells_are_never_drawn_and_forgotten_cells_are_unknown():
    def step(i, positions, codes):
        positions = torch.tensor([positions])
        return SimpleNamespace(clock=SimpleNamespace(step=i, steps=3),
                               positions=positions,
                               confidence=torch.ones(positions.shape),
                               ids=torch.tensor([0]),
                               codes=lambda: torch.tensor(codes)[None, :, None])
    seen = list(moments([step(0, [1], [9, 5, -1, -1]),
                         step(1, [0, 2], [9, 5, 7, -1]),
                         step(2, [3], [9, 5, -1, 8])]))
    assert [m.drawn[0].tolist() for m in seen] == [[-1, 0, -1, -1], [-1, 0, 1, -1], [-1, 0, -1, 2]]
    assert seen[2].known[0].tolist() == [True, True, False, True]


def test_previews_cover_exactly_what_is_unknown():
    seen = list(moments(fake_steps()))
    picture = np.asarray(preview(seen[1], 0, decode, (4, 4), side=16))
    assert np.array_equal(picture[:8], decode(torch.arange(16).view(1, 4, 4))[0][:8])
    assert set(np.unique(picture[8:])) <= {178, 216}
    bare = np.asarray(preview(seen[1], 0, decode, (4, 4), side=16, cover=False))
    assert (bare[8:] == 0).all()
    shapes = []
    preview(seen[1], 0, lambda c: shapes.append(tuple(c.shape)) or PIXELS[:1], (16,))
    two = Moment(step=0, steps=1, codes=np.zeros((1, 16, 2), np.int32), drawn=np.zeros((1, 16), np.int32),
                 confidence=np.ones((1, 16), np.float32), ids=np.zeros(1))
    preview(two, 0, lambda c: shapes.append(tuple(c.shape)) or PIXELS[:1], (4, 4))
    assert shapes == [(1, 16), (1, 4, 4, 2)]


def test_hatch_and_heat():
    out = hatch(np.zeros((9, 9, 3), np.uint8), [[False, True], [False, False]])
    assert (out[:4, 5:] > 0).all() and (out[5:] == 0).all()
    assert heat(2.).tolist() == heat(1.).tolist() and heat([[0.]]).shape == (1, 1, 3)


@pytest.mark.fault("F17")
def test_reports_escape_everything():
    evil = '"><script>alert(1)</script>'
    page = html_page(evil, ("h2", evil), ("p", evil), ("pre", evil),
                     html_table([{evil: evil, "n": 1}]), html_figure(image_grid(PIXELS), evil))
    assert "<script" not in page and '""' not in page and page.count("&lt;script&gt;") >= 7
    assert "src=" in page and "http:" not in page and "https:" not in page
    assert json.dumps(png_uri(image_grid(PIXELS))).startswith('"data:image/png;base64,')
