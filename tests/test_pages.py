"""Rules that every page follows, checked over whatever notebooks exist. Each rule is a function from pages to offences, and is itself tried on a page that
breaks it."""
import ast
import base64
import io
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from IPython.core.inputtransformer2 import TransformerManager
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 60_000    # bytes of a picture


@dataclass
class Page:
    "A notebook, read once."
    path: Path                  # below nbs/
    cells: list = field(repr=False)

    @property
    def code(self): return [c for c in self.cells if c["cell_type"] == "code"]

    @property
    def module(self) -> str | None:
        "`tokenizers.vqgan`, or None for a page that exports nothing."
        return next((m[1] for c in self.code if (m := re.search(r"^#\|\s*default_exp\s+([\w.]+)", source(c), re.M))), None)

    @property
    def number(self) -> str: return (re.match(r"\d+[a-z]?(?=_)", self.path.name) or [""])[0]


def source(cell) -> str: return "".join(cell["source"])
def directives(cell) -> list[str]: return [l[2:].strip() for l in source(cell).splitlines() if l.startswith("#|")]
def exports(cell) -> bool: return any(re.match(r"export|exporti|exports|exec_export", d) for d in directives(cell))
def skipped(cell) -> bool: return any(re.fullmatch(r"eval:\s*false", d) for d in directives(cell))


def tree(cell) -> ast.AST:
    "The cell's code, magics translated."
    return ast.parse(TransformerManager().transform_cell(source(cell)))


def read_pages(nbs: Path) -> list[Page]:
    return [Page(p.relative_to(nbs), json.loads(p.read_text(encoding="utf-8"))["cells"]) for p in sorted(nbs.rglob("*.ipynb"))
            if not any(part.startswith((".", "_")) for part in p.relative_to(nbs).parts)]


def public_names(package: Path, module: str) -> list[str]:
    "`__all__` of an exported module."
    for node in ast.parse((package / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__": return ast.literal_eval(node.value)
    return []


def used_names(cell) -> set[str]:
    "What a cell uses; importing a name is not using it."
    nodes = list(ast.walk(tree(cell)))
    return {n.id for n in nodes if isinstance(n, ast.Name)} | {n.attr for n in nodes if isinstance(n, ast.Attribute)}


def shows_something(output: dict) -> bool:
    "A picture, an HTML or markdown table, or text of at least two lines."
    data = output.get("data", {})
    text = "".join(output.get("text", [])) or "".join(data.get("text/plain", []))
    return "image/png" in data or "<table" in "".join(data.get("text/html", [])) or "|" in "".join(data.get("text/markdown", [])) \
        or (output.get("name") != "stderr" and len(text.strip().splitlines()) >= 2)


# The rules: pages -> list of offences

def first_cells(pages, package):
    return [f"{p.path}: the first cell must be '# title', an empty line, '> one-line summary'" for p in pages
            if not p.cells or p.cells[0]["cell_type"] != "markdown" or not re.fullmatch(r"# \S[^\n]*\n\n> \S[^\n]*", source(p.cells[0]).strip())]


def rooms_without_a_picture(pages, package):
    return [f"{p.path}: no executed figure or table" for p in pages if p.module and not any(shows_something(o) for c in p.code for o in c.get("outputs", []))]


def names_without_a_lesson(pages, package):
    out = []
    for p in pages:
        if not p.module or not (package / (p.module.replace(".", "/") + ".py")).is_file(): continue
        used = set().union(*[used_names(c) for c in p.code if not exports(c) and not skipped(c)])
        if missing := [n for n in public_names(package, p.module) if n not in used]: out.append(f"{p.path}: {', '.join(missing)}")
    return out


def cells_never_run(pages):
    "(page, reason or '') of every cell marked `eval: false`."
    for p in pages:
        for c in p.code:
            lines = source(c).splitlines()
            for i, line in enumerate(lines):
                if re.match(r"#\|\s*eval:\s*false", line):
                    reason = lines[i + 1] if i + 1 < len(lines) else ""
                    yield p.path, reason.lstrip("# ").strip() if re.match(r"#(?!\|)", reason) else ""


def cells_without_a_reason(pages, package):
    return [f"{path}: '#| eval: false' needs a comment with the reason on the next line" for path, reason in cells_never_run(pages) if len(reason) < 12]


def see_through(picture: bytes) -> bool:
    "Whether a PNG has pixels that are not opaque."
    if not picture.startswith(b"\x89PNG"): return False
    with Image.open(io.BytesIO(picture)) as image: return image.convert("RGBA").getextrema()[3][0] < 255


def bad_outputs(pages, package):
    out = []
    for p in pages:
        for n, c in enumerate(p.cells):
            for o in c.get("outputs", []):
                if o["output_type"] == "error": out.append(f"{p.path}, cell {n}: an error ({o.get('ename')})")
                picture = base64.b64decode("".join(o.get("data", {}).get("image/png", "")))
                if len(picture) > LIMIT: out.append(f"{p.path}, cell {n}: a picture of {len(picture):,} bytes, at most {LIMIT:,}")
                if see_through(picture): out.append(f"{p.path}, cell {n}: a picture without a ground of its own, unreadable on a dark page")
    return out


def orphans(pages, package):
    "Generated modules whose notebook is not there or exports elsewhere, and rooms whose module is not there."
    made = {p.module.replace(".", "/") + ".py": p for p in pages if p.module}
    out = [f"{p.path}: {module} is not exported" for module, p in made.items() if not (package / module).is_file()]
    for file in sorted(package.rglob("*.py")):
        name = file.relative_to(package).as_posix()
        m = re.search(r"# AUTOGENERATED! DO NOT EDIT! File to edit: (?:\.\./)*nbs/(\S+\.ipynb)\.", file.read_text(encoding="utf-8")[:2000])
        if "AUTOGENERATED" in file.read_text(encoding="utf-8")[:2000] and name != "_modidx.py" and (not m or name not in made or made[name].path.as_posix() != m[1]):
            out.append(f"{name}: no notebook makes it")
    return out


def repeated(pages, package):
    "Notebook numbers and module stems that occur twice; rooms whose file is not named after their module."
    out, seen = [], {}
    for p in pages:
        if p.number:
            if p.number in seen: out.append(f"{p.path}: number {p.number} is also {seen[p.number]}'s")
            seen.setdefault(p.number, p.path)
        if p.module and (not p.number or p.path.with_name(re.sub(r"^\d+[a-z]?_", "", p.path.stem)).as_posix() != p.module.replace(".", "/")):
            out.append(f"{p.path}: exports {p.module}, which is not its own name with a number before it")
    stems = {}
    for file in sorted(package.rglob("*.py")):
        if file.stem == "__init__": continue
        if file.stem in stems: out.append(f"{file.relative_to(package)}: stem also of {stems[file.stem]}")
        stems.setdefault(file.stem, file.relative_to(package))
    return out


def imports_upwards(pages, package):
    "Exported cells that import a room of a higher number (or relatively)."
    numbers, out = {p.module: p.number for p in pages if p.module}, []
    for p in pages:
        for node in (n for c in p.code if exports(c) for n in ast.walk(tree(c))):
            if isinstance(node, ast.ImportFrom) and node.level: out.append(f"{p.path}: relative import of {node.module}")
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom): names += [f"{node.module}.{a.name}" for a in node.names]
            out += [f"{p.path}: imports {n} ({numbers[m]})" for n in names if (m := n.removeprefix("vgnb.")) in numbers and n != m and numbers[m] >= p.number]
    return out


RULES = [first_cells, rooms_without_a_picture, names_without_a_lesson, cells_without_a_reason, bad_outputs, orphans, repeated, imports_upwards]


@pytest.fixture(scope="module")
def pages():
    found = read_pages(ROOT / "nbs")
    assert len(found) >= 3 and sum(p.module is not None for p in found) >= 3, "no notebooks found"
    return found


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_every_page_follows(rule, pages):
    offences = rule(pages, ROOT / "vgnb")
    assert not offences, f"{len(offences)} offence(s) against '{rule.__name__}':\n  " + "\n  ".join(offences)


def test_cells_that_are_never_run_are_listed(pages, capsys):
    "Shown with `pytest -s`; each has its reason."
    listed = list(cells_never_run(pages))
    with capsys.disabled(): print("".join(f"\n  eval: false in {path}: {reason}" for path, reason in listed))
    assert all(reason for _, reason in listed)


BAD = [("markdown", "# title without a summary", []),
       ("code", "#| default_exp zoo", []),
       ("code", "#| export\nfrom vgnb.views.player import SamplingPlayer\ndef lonely(): pass", []),
       ("code", "from vgnb.zoo import lonely\n%time 1\n'lonely'", [{"output_type": "execute_result", "data": {"text/plain": ["one line"]}}]),
       ("code", "#| eval: false\nlonely()", [{"output_type": "error", "ename": "ValueError"}, {"output_type": "display_data", "data": {"image/pdf": ""}}])]


@pytest.mark.parametrize("rule, words", [(first_cells, "first cell"), (rooms_without_a_picture, "no executed"), (names_without_a_lesson, "lonely"),
                                         (cells_without_a_reason, "eval: false"), (bad_outputs, "ValueError"), (orphans, "old.py"), (repeated, "number 100"),
                                         (repeated, "stem"), (repeated, "not its own name"), (imports_upwards, "views.player")])
def test_each_rule_notices_a_page_that_breaks_it(rule, words, tmp_path):
    package, cell = tmp_path / "vgnb", lambda kind, text, outputs: dict(cell_type=kind, source=text.splitlines(True), outputs=outputs)
    (package / "views").mkdir(parents=True)
    for name, text in (("zoo.py", "# AUTOGENERATED! DO NOT EDIT! File to edit: ../nbs/100_room.ipynb.\n__all__ = ['lonely']\n"),
                       ("old.py", "# AUTOGENERATED! DO NOT EDIT! File to edit: ../nbs/009_old.ipynb.\n"), ("views/old.py", "")): (package / name).write_text(text)
    bad = Page(Path("100_room.ipynb"), [cell(*c) for c in BAD])
    other = Page(Path("views/100_player.ipynb"), [cell("code", "#| default_exp views.player", [])])
    assert any(words in offence for offence in rule([bad, other], package)), rule([bad, other], package)


def test_too_large_a_picture_is_noticed():
    big = {"output_type": "display_data", "data": {"image/png": base64.b64encode(bytes(LIMIT + 1)).decode()}}
    assert bad_outputs([Page(Path("001_a.ipynb"), [dict(cell_type="code", source=[], outputs=[big])])], ROOT)


def test_a_picture_without_a_ground_is_noticed():
    def page(picture):
        with io.BytesIO() as f: picture.save(f, "PNG"); data = base64.b64encode(f.getvalue()).decode()
        return [Page(Path("001_a.ipynb"), [dict(cell_type="code", source=[], outputs=[{"output_type": "display_data", "data": {"image/png": data}}])])]
    assert "dark page" in bad_outputs(page(Image.new("RGBA", (4, 4), (0, 0, 0, 254))), ROOT)[0]
    assert not bad_outputs(page(Image.new("RGBA", (4, 4), (0, 0, 0, 255))), ROOT) and not bad_outputs(page(Image.new("P", (4, 4))), ROOT)
