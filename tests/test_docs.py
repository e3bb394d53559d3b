"""The part of `nbdev-docs` that needs no quarto: every page passes nbdev's processor, every name can be shown.

The processor runs what a page exports and imports (no lesson), then describes each exported name with its arguments.
"""
import importlib
import inspect
import json
import os
import pkgutil
import shutil
import subprocess
import sys

import pytest
import yaml

import vgnb
from tests.test_style import ROOT

PROCESS = """
from nbdev.serve import proc_nbs
if __name__ == "__main__": proc_nbs(force=True, n_workers=0)
"""
MADE = ("nbdev.yml", "sidebar.yml")     # by nbdev, beside the notebooks


def processed(place, pages) -> dict[str, list]:
    "{page: cells} of the documentation, from a copy of the project with these pages only."
    shutil.copytree(ROOT / "vgnb", place / "vgnb", ignore=shutil.ignore_patterns("__pycache__", "weights"))
    (place / "vgnb" / "weights").symlink_to(ROOT / "vgnb" / "weights")
    for file in ("pyproject.toml", "settings.ini", "README.md"): shutil.copy(ROOT / file, place)
    for page in pages:
        (place / "nbs" / page).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "nbs" / page, place / "nbs" / page)
    (place / "process.py").write_text(PROCESS)

    env = {**os.environ, "PYTHONPATH": str(place), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    done = subprocess.run([sys.executable, "process.py"], cwd=place, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "imports and other code" not in done.stderr, done.stderr
    return {page: json.loads((place / "_proc" / page).read_text())["cells"] for page in pages}


def words(cells) -> str: return "\n".join("".join(c["source"]) for c in cells)


def described(cells) -> str:
    "What `show_doc` wrote."
    data = [o.get("data", {}) for c in cells for o in c.get("outputs", [])]
    return "\n".join("".join(d.get("text/markdown", "")) for d in data)


@pytest.mark.full
def test_pages_pass_the_processor(tmp_path):
    found = processed(tmp_path, ["000_core.ipynb", "views/790_live.ipynb", "tutorials/910_any_order.ipynb"])
    core, live, lesson = map(words, found.values())
    assert "show_doc(BadInput" in core and "show_doc(Live" in live                  # the names it exports
    assert "\nuse_house_style()" not in live and "class Dial(Live)" in live          # hidden cells are, lessons are not
    assert "## Morphing" in lesson

    names = described(found["000_core.ipynb"])
    assert "### get_settings\n" in names and "->Settings" in names                   # not `__main__.Settings`
    assert "[source]" not in names and "blob/" not in names                          # there is no address to link to


@pytest.mark.full
def test_all_pages_pass_the_processor(tmp_path):
    pages = sorted(p.relative_to(ROOT / "nbs") for p in (ROOT / "nbs").rglob("[!_.]*.ipynb")
                   if ".ipynb_checkpoints" not in p.parts)
    assert len(processed(tmp_path, [p.as_posix() for p in pages])) == len(pages)


def modules():
    "Every module of the package."
    found = [m.name for m in pkgutil.walk_packages(vgnb.__path__, "vgnb.") if not m.name.endswith("._modidx")]
    return map(importlib.import_module, found)


@pytest.mark.full
def test_every_exported_name_can_be_shown_with_its_arguments():
    from nbdev.showdoc import show_doc
    failed = []
    for module in modules():
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            if not (inspect.isclass(thing) or inspect.isfunction(thing)): continue
            try: show_doc(thing)
            except Exception as e: failed.append(f"{module.__name__}.{name}: {type(e).__name__}: {e}")
    assert not failed, "\n".join(failed)


def test_a_decorated_method_is_shown_with_its_class():
    from vgnb._documents import shown
    from vgnb.generators.random_order import RandomOrderTransformer
    assert shown(RandomOrderTransformer.features).nm == "RandomOrderTransformer.features"      # below `no_grad`
    assert shown(RandomOrderTransformer.logits).nm == "RandomOrderTransformer.logits"
    assert shown(RandomOrderTransformer).nm == "RandomOrderTransformer"


def test_the_site_asks_for_files_that_are_there():
    site = yaml.safe_load((ROOT / "nbs/_quarto.yml").read_text())
    asked = [site["format"]["html"]["css"], *site["metadata-files"]]
    assert [name for name in asked if name not in MADE and not (ROOT / "nbs" / name).is_file()] == []


def test_the_site_offers_no_link_that_needs_an_address():
    "Links to the repository, and the cards that other sites show for a page, would lead nowhere."
    website = yaml.safe_load((ROOT / "nbs/_quarto.yml").read_text())["website"]
    assert not {"repo-actions", "repo-url", "open-graph", "twitter-card"} & set(website)


def test_what_nbdev_makes_is_ignored_by_git():
    ignored = set((ROOT / ".gitignore").read_text().splitlines())
    assert {f"nbs/{name}" for name in MADE} | {"/_docs/", "/_proc/"} <= ignored
    assert "nbs/_quarto.yml" not in ignored     # the site's own, which nbdev leaves as it is
