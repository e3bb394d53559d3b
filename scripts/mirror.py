"""The handwriting in a mirror: how large functions are and how dense lines, beside houses we admire.

    python scripts/mirror.py                                     # vgnb, scripts, and the lesson cells of nbs
    python scripts/mirror.py vgnb/data nbs/data/120_codes.ipynb  # some of it: a row for each path
    python scripts/mirror.py vgnb --worst 5                      # also the largest functions and the widest lines

It is a mirror, not a quota: it prints, and never fails. Of a notebook it reads the lesson cells; the exported ones are
seen in their module. Lines of code are those that are neither empty nor only a comment; densities are counted per
1,000 of them.
"""
import ast
import io
import json
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parents[1]
WIDE = 120
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
BLOCKS = (ast.If, ast.For, ast.While, ast.With)

# The houses, measured in the same way; the first row is this one on the day when it was first held before the mirror.
# The columns are those of the heads below; of functions: median / 90% / largest.
SIZE_HEAD = ("", "files", "lines", "function lines", "function nodes", "docstring %", "w95", f">{WIDE}")
SIZES = {
    "vgnb, ff548fb": (77, 13805, "5 / 13 / 40", "79 / 235 / 865", 64, 134, 1112),
    "miniai": (16, 1464, "3 / 10 / 26", "38 / 129 / 348", 2, 86, 6),
    "fastcore": (30, 8374, "4 / 12 / 53", "37 / 132 / 483", 53, 109, 202),
    "nanochat": (36, 7775, "9 / 41 / 147", "75 / 339 / 1338", 42, 103, 132),
    "gpt-fast": (16, 3564, "6 / 33 / 166", "62 / 219 / 1145", 4, 97, 61),
    "DiT": (10, 2224, "11 / 48 / 141", "71 / 263 / 1018", 51, 88, 3),
    "ml-flextok": (40, 4762, "11 / 35 / 117", "77 / 216 / 610", 28, 91, 6),
}
DENSITY_HEAD = ("", "nodes a line", ";", "tuples", "(of 3+)", "nested", "one-line def", "one-line block", "blank %",
                "comment %", "one-letter %")
DENSITIES = {
    "vgnb, ff548fb": (14.3, 19.3, 39.5, 8.2, 4.6, 18, 60, 0.3, 2.9, 32),
    "miniai": (11.1, 0, 11.9, 4.6, 1.8, 64, 81, 1.1, 0.7, 36),
    "fastcore": (9.6, 1.1, 12.5, 3.8, 1.6, 34, 121, 1.4, 1.9, 35),
    "nanochat": (7.6, 0, 6.1, "", 0.2, 0, 0, 7, 17, 11),
    "gpt-fast": (8.4, 0, 2.9, "", 0, 0, 0.4, 11, 6, 17),
    "DiT": (6.7, 0, 0.6, "", 1.1, 0, 0, 5.5, 8, 17),
    "ml-flextok": (6.0, 0, 4.0, "", 0.5, 0, 0, 10, 7, 21),
}


@dataclass
class Options:
    "What to look at."
    paths: tyro.conf.Positional[tuple[Path, ...]] = ()
    "folders, modules or notebooks, a row for each; without any: vgnb, scripts and nbs"
    worst: int = 0
    "also list this many of the largest functions and of the widest lines"


@dataclass
class Text:
    "The code of a module, or of all lesson cells of a page."
    name: str
    code: str

    @cached_property
    def lines(self) -> list[str]: return self.code.splitlines()

    @cached_property
    def tree(self) -> ast.Module: return ast.parse(self.code)

    @cached_property
    def nodes(self) -> list[ast.AST]: return list(ast.walk(self.tree))

    @cached_property
    def tokens(self) -> list[tokenize.TokenInfo]: return list(tokenize.generate_tokens(io.StringIO(self.code).readline))

    @property
    def functions(self) -> list[ast.AST]: return [n for n in self.nodes if isinstance(n, FUNCTIONS)]


# ---- reading

def lesson(cell: dict) -> str:
    "A lesson cell's Python, its directives and magics left out; nothing for any other cell."
    code = "".join(cell["source"])
    exported = re.search(r"^#\|\s*(export|exporti|exports|exec_export)\b", code, re.M)
    if cell["cell_type"] != "code" or exported or code.startswith("%%"): return ""
    python = re.sub(r"^(\s*)[%!].*", r"\1pass", code, flags=re.M)
    return re.sub(r"^#\|.*\n?", "", python, flags=re.M)


def read(file: Path) -> Text:
    code = file.read_text(encoding="utf-8")
    if file.suffix == ".ipynb": code = "\n".join(filter(None, map(lesson, json.loads(code)["cells"])))
    return Text(str(file), code)


def parses(text: Text) -> bool:
    try: return bool(text.tree)
    except SyntaxError as e: print(f"{text.name} is left out: {e}", file=sys.stderr)
    return False


def is_read(file: Path, top: Path) -> bool:
    "Everything Python but nbdev's index and what lies in hidden folders."
    hidden = any(part.startswith(".") for part in file.relative_to(top).parts)
    return file.suffix in (".py", ".ipynb") and file.name != "_modidx.py" and not hidden


def texts(path: Path) -> list[Text]:
    "All there is to see at a path; a file that is no Python is named and left out."
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*.*") if is_read(f, path))
    return [text for text in map(read, files) if parses(text)]


# ---- measuring

def nodes(tree: ast.AST) -> int: return sum(1 for _ in ast.walk(tree))


def length(function: ast.AST) -> int: return function.end_lineno - function.lineno + 1


def is_code(line: str) -> bool: return bool(line.strip()) and not line.strip().startswith("#")


def tuple_assigned(node: ast.AST) -> int:
    "How many targets get their values side by side, `a, b = x, y`; unpacking one value is none."
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple): return 0
    return max((len(t.elts) for t in node.targets if isinstance(t, ast.Tuple)), default=0)


def is_nested(node: ast.AST) -> bool:
    "A comprehension with a second `for`, or with a comprehension inside."
    if not isinstance(node, COMPREHENSIONS): return False
    return len(node.generators) > 1 or sum(isinstance(n, COMPREHENSIONS) for n in ast.walk(node)) > 1


def is_one_line_def(node: ast.AST) -> bool: return isinstance(node, FUNCTIONS) and length(node) == 1


def is_one_line_block(node: ast.AST, lines: list[str]) -> bool:
    "`if x: return y`: the body begins on the line of the head."
    if not isinstance(node, BLOCKS): return False
    first = node.body[0]
    return bool(lines[first.lineno - 1].encode()[:first.col_offset].strip())


def inside_functions(text: Text) -> set[int]:
    "Numbers of the lines from a function's first statement to its end."
    spans = [range(f.body[0].lineno, f.end_lineno + 1) for f in text.functions]
    return set().union(*spans)


def count(text: Text) -> Counter:
    "What the densities are made of."
    found = Counter(lines=sum(map(is_code, text.lines)), nodes=len(text.nodes))
    for node in text.nodes:
        side_by_side = tuple_assigned(node)
        found["tuples"] += side_by_side > 0
        found["tuples of three"] += side_by_side > 2
        found["nested"] += is_nested(node)
        found["defs"] += is_one_line_def(node)
        found["blocks"] += is_one_line_block(node, text.lines)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found["names"] += 1
            found["letters"] += len(node.id) == 1

    body = inside_functions(text)
    found["inside"] = len(body)
    found["blank"] = sum(not text.lines[row - 1].strip() for row in body)
    for token in text.tokens:
        found["semicolons"] += token.type == tokenize.OP and token.string == ";"
        found["comments"] += token.type == tokenize.COMMENT and token.start[0] in body
    return found


def at(values: list[int], share: float) -> int:
    "The value that this share of all does not exceed."
    return sorted(values)[int(share * (len(values) - 1))] if values else 0


def three(values: list[int]) -> str: return f"{at(values, 0.5)} / {at(values, 0.9)} / {at(values, 1)}"


def sizes(found: list[Text]) -> tuple:
    "The row of the first table."
    lines = [line for text in found for line in text.lines]
    functions = [f for text in found for f in text.functions]
    widths = [len(line) for line in lines if line.strip()]

    documented = sum(ast.get_docstring(f) is not None for f in functions)
    percent = round(100 * documented / max(1, len(functions)))
    wide = sum(width > WIDE for width in widths)
    in_lines, in_nodes = three([length(f) for f in functions]), three([nodes(f) for f in functions])
    return len(found), len(lines), in_lines, in_nodes, percent, at(widths, 0.95), wide


def densities(found: list[Text]) -> tuple:
    "The row of the second table."
    total = sum(map(count, found), Counter())

    def ratio(part: str, whole: str, times: int) -> float:
        return round(times * total[part] / max(1, total[whole]), 1)

    counted = [ratio(k, "lines", 1000) for k in ("semicolons", "tuples", "tuples of three", "nested", "defs", "blocks")]
    inside = [ratio(k, "inside", 100) for k in ("blank", "comments")]
    return ratio("nodes", "lines", 1), *counted, *inside, round(ratio("letters", "names", 100))


# ---- showing

def shown(value: int | float | str) -> str: return value if isinstance(value, str) else f"{value:,}"


def table(head: tuple, rows: dict[str, tuple]) -> str:
    "Columns as wide as they need, names at the left."
    cells = [head, *((name, *map(shown, row)) for name, row in rows.items())]
    first, *widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join("  ".join([name.ljust(first), *map(str.rjust, row, widths)]).rstrip() for name, *row in cells)


def large_functions(text: Text) -> Iterator[tuple[int, int, str]]:
    "(AST nodes, line, what it is) of each."
    for f in text.functions: yield nodes(f), f.lineno, f"{f.name}, {length(f)} lines"


def wide_lines(text: Text) -> Iterator[tuple[int, int, str]]:
    "(width, line, how it begins) of each."
    for row, line in enumerate(text.lines, 1): yield len(line), row, line.strip()[:60]


def worst(found: list[Text], items: Callable[[Text], Iterator], limit: int) -> str:
    "The largest of what `items` finds."
    ranked = []
    for text in found: ranked += [(much, f"{text.name}:{row}", what) for much, row, what in items(text)]
    return "\n".join(f"{much:6}  {where}  {what}" for much, where, what in sorted(ranked, reverse=True)[:limit])


def label(path: Path) -> str: return (path.relative_to(ROOT) if path.is_relative_to(ROOT) else path).as_posix()


def main(o: Options) -> int:
    paths = o.paths or [ROOT / name for name in ("vgnb", "scripts", "nbs")]
    missing = [p for p in paths if not p.exists()]
    if missing:
        print(f"{missing[0]}: no such file or folder", file=sys.stderr)
        return 2

    seen = {label(p): texts(p) for p in paths}
    print("Size; functions: median / 90% / largest, in lines and in AST nodes")
    print(table(SIZE_HEAD, {name: sizes(found) for name, found in seen.items()} | SIZES))
    print("\nDensity: AST nodes a line; counts per 1,000 lines of code; % of lines in functions, of names bound")
    print(table(DENSITY_HEAD, {name: densities(found) for name, found in seen.items()} | DENSITIES))

    every = [text for found in seen.values() for text in found]
    if o.worst:
        print("\nFunctions of the most AST nodes", worst(every, large_functions, o.worst), sep="\n")
        print("\nWidest lines", worst(every, wide_lines, o.worst), sep="\n")
    return 0


if __name__ == "__main__":
    from vgnb.cli import typed_cli
    sys.exit(main(typed_cli(Options, description=__doc__)))
