"""The handwriting: ruff over modules, scripts, tests and the code cells of all pages.

Its rules, and the reason of each exception, stand in pyproject.toml. `python -m tests.test_style [PATH ...]` prints
the offences of each file as a table, `ruff check PATH` each with its line.
"""
import json
import re
import runpy
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PLACES = ("vgnb", "scripts", "tests", "nbs")
RUFF = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "json"]


def offences(*words, text: str | None = None) -> list[dict]:
    "What ruff finds at the paths, or in a text that stands for a file (`--stdin-filename`)."
    found = subprocess.run([*RUFF, *map(str, words)], cwd=ROOT, input=text, capture_output=True, text=True)
    assert found.returncode in (0, 1), found.stderr
    return json.loads(found.stdout)


def name(offence: dict) -> str:
    path = Path(offence["filename"])
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)


def line(offence: dict) -> str:
    "One offence, in the words that `ruff check` would use."
    cell = f"cell {offence['cell']}, " if offence["cell"] else ""
    return f"{name(offence)}: {cell}line {offence['location']['row']}: {offence['code']} {offence['message']}"


def table(found: list[dict]) -> str:
    "Files by rules, the longest bill first."
    counts = Counter((name(o), o["code"]) for o in found)
    files = Counter(name(o) for o in found)
    rules = sorted({rule for _, rule in counts})

    wide = max(map(len, ["all", *files]))
    head = f"{'':{wide}}   all" + "".join(f"{rule:>6}" for rule in rules)
    rows = [f"{file:{wide}}{total:6}" + "".join(f"{counts[file, rule] or '':>6}" for rule in rules)
            for file, total in files.most_common()]
    sums = Counter(o["code"] for o in found)
    return "\n".join([head, *rows, f"{'all':{wide}}{len(found):6}" + "".join(f"{sums[rule]:6}" for rule in rules)])


@pytest.mark.parametrize("place", PLACES)
def test_the_handwriting_is_kept(place):
    found = offences(place)
    first = "\n".join(map(line, found[:20]))
    assert not found, f"{len(found)} offence(s) in {place}:\n{table(found)}\n\nThe first ones:\n{first}"


def test_what_nbdev_writes_is_as_narrow():
    "But for `__all__`, which it wraps by itself: no page has a summary that does not fit on a line."
    wide = []
    for path in sorted((ROOT / "vgnb").rglob("*.py")):
        if path.name == "_modidx.py": continue
        body = re.sub(r"^__all__ = \[.*?\]$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
        wide += [f"{path.relative_to(ROOT)}: {line[:60]}" for line in body.splitlines() if len(line) > 120]
    assert wide == []


WIDE = "x = [" + "1, " * 40 + "1]\n"


@pytest.mark.parametrize("rule, text", [
    ("E501", WIDE),
    ("E702", "x = 1; y = 2\n"),
    ("E703", "x = 1;\nprint(x)\n"),
    ("E731", "double = lambda x: 2 * x\n"),
    ("F401", "import shutil\n"),
    ("F811", "import json\n\ndef json(): pass\n"),
    ("F821", "shutil.copy('a', 'b')\n"),
    ("F841", "def f():\n    unused = 1\n"),
    ("B006", "def f(seen=[]): return seen\n"),
    ("I001", "import json\nimport ast\n\nprint(json, ast)\n"),
])
@pytest.mark.parametrize("file", ["scripts/page.py", "tests/page.py", "nbs/page.ipynb"])
def test_each_rule_notices_a_line_that_breaks_it(file, rule, text):
    if file.endswith(".ipynb"): text = notebook(text)
    assert rule in {o["code"] for o in offences("--stdin-filename", ROOT / file, "-", text=text)}


@pytest.mark.parametrize("file, text", [
    ("scripts/page.py", "for x in 'abc': print(x)\n"),    # short, and of one thought
    ("vgnb/page.py", WIDE),                               # nbdev's `__all__`; the cells are held to 120
    ("vgnb/page.py", "import json\nimport ast\n\nprint(json, ast)\n"),
])
def test_house_style_is_no_offence(file, text):
    assert not offences("--stdin-filename", ROOT / file, "-", text=text)


def notebook(*cells: str) -> str:
    "A page with these code cells, as JSON."
    blank = dict(cell_type="code", execution_count=None, metadata={}, outputs=[])
    made = [dict(blank, id=f"c{i}", source=text.splitlines(True)) for i, text in enumerate(cells)]
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    return json.dumps(dict(cells=made, metadata={"kernelspec": kernel}, nbformat=4, nbformat_minor=5))


def test_a_table_has_a_row_for_each_file_and_a_column_for_each_rule():
    owed = [("a", "E501"), ("b", "E501"), ("b", "E702")]
    rows = table([dict(filename=str(ROOT / f"scripts/{file}.py"), code=rule) for file, rule in owed]).splitlines()
    assert rows[0].split() == ["all", "E501", "E702"]
    assert rows[1].split() == ["scripts/b.py", "2", "1", "1"]
    assert rows[2].split() == ["scripts/a.py", "1", "1"]
    assert rows[3].split() == ["all", "3", "2", "1"]


# ---- scripts/mirror.py

SEEN = '''
# a comment
def one(a, b): return a + b   # a sum

class Thing:
    def grow(self, rows):
        "With a docstring."
        x, y, size = 1, 2, 3
        h, w = rows
        # why

        if size > 2: return [c for row in rows for c in row]
        for row in rows:
            x = 1; y = row
        return x
'''


def test_the_mirror_counts_what_it_says():
    mirror = runpy.run_path(str(ROOT / "scripts/mirror.py"))
    found = mirror["count"](mirror["Text"]("seen", SEEN))
    body = {"inside": 10, "blank": 1, "comments": 2}   # of the one-line def its own line, with its comment
    assert found["lines"] == 10
    assert {k: found[k] for k in body} == body
    assert [found[k] for k in ("semicolons", "tuples", "tuples of three", "nested", "defs", "blocks")] == [1] * 6
    assert (found["letters"], found["names"]) == (7, 10)
    assert mirror["sizes"]([mirror["Text"]("seen", SEEN)])[2] == "1 / 1 / 10"


def test_the_mirror_reads_the_lesson_cells_of_a_page(tmp_path):
    mirror = runpy.run_path(str(ROOT / "scripts/mirror.py"))
    cells = ["#| export\nhidden = 1", "#| eval: false\nx = 1\n%time x", "%%bash\nls", "y = 2"]
    (tmp_path / "page.ipynb").write_text(notebook(*cells))
    (tmp_path / "_modidx.py").write_text("table = 1\n")
    assert [text.code for text in mirror["texts"](tmp_path)] == ["x = 1\npass\ny = 2"]


if __name__ == "__main__":
    bill = offences(*(Path(p).resolve() for p in sys.argv[1:] or PLACES))
    print(table(bill) if bill else "no offences")
