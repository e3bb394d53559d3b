"Every notebook is on the tour, and every relative link of a page or of the README leads somewhere."
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def prose(path: Path) -> str:
    "The text of a page: its markdown cells and its code's answers in Markdown, or the whole file."
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb": return text
    cells = json.loads(text)["cells"]
    written = [c["source"] for c in cells if c["cell_type"] == "markdown"]
    data = [output.get("data", {}) for c in cells for output in c.get("outputs", ())]
    answered = [found["text/markdown"] for found in data if "text/markdown" in found]
    return "\n\n".join("".join(part) for part in written + answered)


def links(path: Path) -> list[str]:
    "Targets of a page's relative links, without their anchors; code is not prose."
    text = re.sub(r"```.*?```|`[^`\n]*`", "", prose(path), flags=re.S)
    found = re.findall(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)", text)
    files = [target.split("#")[0] for target in found if not re.match(r"[a-z]+:", target)]
    return [f for f in files if f]


def notebooks(folder: Path) -> list[Path]:
    "All notebooks below a folder but hidden ones."
    found = sorted(folder.rglob("*.ipynb"))
    return [p for p in found if not any(part.startswith((".", "_")) for part in p.relative_to(folder).parts)]


def broken(pages: list[Path]) -> list[str]:
    return [f"{p.name} -> {t}" for p in pages for t in links(p) if not (p.parent / t).exists()]


def missing_from(index: Path, pages: list[Path]) -> list[str]:
    "The pages that `index` does not link."
    there = {(index.parent / t).resolve() for t in links(index)}
    return [str(p.relative_to(index.parent)) for p in pages if p != index and p.resolve() not in there]


def test_every_relative_link_leads_somewhere():
    pages = [ROOT / "README.md", *notebooks(ROOT / "nbs")]
    assert sum(len(links(p)) for p in pages) > 40
    assert broken(pages) == []


def test_the_index_links_every_notebook():
    missing = missing_from(ROOT / "nbs" / "index.ipynb", notebooks(ROOT / "nbs"))
    assert not missing, f"nbs/index.ipynb must link {', '.join(missing)}"


@pytest.mark.parametrize("text, wrong", [
    ("[a](there.md) and [b](gone.md#part)", ["page.md -> gone.md"]),
    ("`[x](code.md)`\n```\n[y](code.md)\n```", []),
    ("[web](https://example.org/x) [here](#anchor)", []),
    ("![p](<no such.png>)", []),
    ("![p](no.png \"title\")", ["page.md -> no.png"])])
def test_what_counts_as_a_broken_link(text, wrong, tmp_path):
    (tmp_path / "there.md").write_text("")
    page = tmp_path / "page.md"
    page.write_text(text)
    assert broken([page]) == wrong


def test_what_code_answers_in_markdown_is_prose(tmp_path):
    (tmp_path / "there.md").write_text("")
    table = ["| [a](there.md) |\n", "| [b](gone.md) |"]
    answers = [{"data": {"text/markdown": table}}, {"text": ["[c](stdout.md)"]}]
    page = tmp_path / "page.ipynb"
    cell = {"cell_type": "code", "source": ["x"], "outputs": answers}
    page.write_text(json.dumps({"cells": [cell]}))
    assert broken([page]) == ["page.ipynb -> gone.md"]


def test_a_notebook_that_the_index_forgets_is_noticed(tmp_path):
    for name, text in (("index", "[a](a.ipynb)"), ("a", ""), ("b", "")):
        page = {"cells": [{"cell_type": "markdown", "source": [text]}]}
        (tmp_path / f"{name}.ipynb").write_text(json.dumps(page))
    assert missing_from(tmp_path / "index.ipynb", notebooks(tmp_path)) == ["b.ipynb"]
