"""What a cell shows: the same pixels in a page that is saved and in a kernel, and widgets only where there is one."""
import base64
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest
from PIL import Image

from tests.test_style import notebook
from vgnb.figures import image_grid, png_bytes
from vgnb.views.live import VIEW

CELLS = {
    "start": "import matplotlib.pyplot as plt\nimport numpy as np\nfrom PIL import Image\n"
             "from vgnb.figures import house_figure, image_grid, use_house_style\n"
             "from vgnb.views.desk import ReconstructionDesk",
    "house before the style": "fig, _ = house_figure(size=(3, 1))\nfig",
    "style": "use_house_style()",
    "pyplot": "fig, ax = plt.subplots(figsize=(3, 1.5))\n_ = ax.plot([1, 2])",
    "pyplot again": "fig, ax = plt.subplots(figsize=(3, 1.5))\n_ = ax.imshow(np.eye(4))",
    "house": "fig, _ = house_figure(size=(3, 1))\nfig",
    "sheet": "image_grid(np.random.default_rng(0).integers(0, 255, (4, 9, 9, 3), dtype=np.uint8))",
    "desk": "ReconstructionDesk(np.zeros((2, 8, 8, 3), np.uint8), {'same': lambda x: x}, side=32)",
}


def shown(path: Path) -> dict[str, dict]:
    "{cell: what it shows, by MIME type} of a page that was run."
    cells = json.loads(path.read_text())["cells"]
    return {name: {mime: data for o in cell["outputs"] for mime, data in o.get("data", {}).items()}
            for name, cell in zip(CELLS, cells, strict=True)}

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[dict, dict]:
    "The page as `nbdev-test --save` saves it, and as a kernel answers."
    place = tmp_path_factory.mktemp("shown")
    page = place / "000_page.ipynb"
    page.write_text(notebook(*CELLS.values()))
    (place / "pyproject.toml").write_text('[project]\nname = "shown"\n[tool.nbdev]\nnbs_path = "."\n')
    env = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}
    tool = [Path(sys.executable).parent / "nbdev-test", page, "--save", "--n-workers", "0"]
    done = subprocess.run(tool, cwd=place, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr

    live = nbformat.reads(notebook(*CELLS.values()), 4)
    nbclient.NotebookClient(live, kernel_name="python3").execute(env=env, cwd=str(place))
    nbformat.write(live, place / "live.ipynb")
    return shown(page), shown(place / "live.ipynb")


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in CELLS if name not in ("start", "style")])
def test_a_saved_page_and_a_kernel_show_the_same_pixels(both, name):
    saved, live = (page[name]["image/png"].replace("\n", "") for page in both)
    assert saved == live
    with Image.open(io.BytesIO(base64.b64decode(saved))) as picture: assert picture.mode == "RGB"
    assert not any("image/jpeg" in page[name] for page in both)


def test_a_view_is_live_in_a_kernel_only(both):
    saved, live = (page["desk"] for page in both)
    assert set(saved) == {"text/plain", "image/png"} and set(live) == {*saved, VIEW}
    assert len(json.dumps(live[VIEW])) < 200                        # which widget, nothing of its state


def test_a_sheet_keeps_every_colour():
    "Thousands of them: more than a palette holds."
    y, x = np.mgrid[:64, :64].astype(np.uint8)
    pictures = np.stack([np.stack([3 * x, 3 * y, x ^ y + i], -1) for i in range(10)])
    sheet = image_grid(pictures, side=64)
    assert len(sheet.getcolors(1 << 20)) > 4_000
    with Image.open(io.BytesIO(png_bytes(sheet))) as packed:
        assert packed.mode == "RGB" and packed.tobytes() == sheet.tobytes()


def test_what_is_too_large_gets_fewer_pixels_and_keeps_its_colours():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (400, 400, 3), dtype=np.uint8))
    with Image.open(io.BytesIO(png_bytes(noise, 100_000))) as packed:
        assert packed.mode == "RGB" and packed.width < 400 and len(packed.getcolors(1 << 20)) > 4_000
    assert len(png_bytes(noise, None)) > 400_000
