"""What a page exports, read from its cells: signatures with their comments, documents, sources. Nothing is run."""
import ast
import io
import re
import tokenize
from dataclasses import dataclass, field

from nbdev.doclinks import patch_name

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
LONGEST = 12     # lines of a value that are shown whole


@dataclass(frozen=True)
class Name:
    "Something that a page exports."
    name: str                 # `Film`, or `Film.picture`
    kind: str                 # "class", "function", "method", "value"
    signature: str            # as it is written, comments included
    about: str = ""           # its document
    members: tuple["Name", ...] = field(default=(), repr=False)


def head(code: str) -> str:
    "A definition up to the colon that ends its head."
    depth, lines = 0, code.splitlines(keepends=True)
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type != tokenize.OP: continue
        depth += (token.string in "([{") - (token.string in ")]}")
        if token.string == ":" and not depth:
            row, column = token.end
            return "".join(lines[:row - 1]) + lines[row - 1][:column]
    return code


def dedented(code: str, column: int) -> str:
    "Lines without the blanks that a class or a block gave them."
    first, *rest = code.splitlines()
    return "\n".join([first, *(line[column:] if not line[:column].strip() else line for line in rest)])


class Cell:
    "An exported cell."
    def __init__(self, source: str):
        self.source, self.lines = source, source.splitlines()
        try: self.tree = ast.parse(source)
        except SyntaxError: self.tree = ast.Module([], [])

    def text(self, node: ast.AST) -> str:
        "A node as it is written, to the end of its last line."
        lines = self.lines[node.lineno - 1:node.end_lineno]
        lines[0] = lines[0][len(lines[0].encode()[:node.col_offset].decode()):]
        return dedented("\n".join(lines), node.col_offset)

    def names(self) -> list[Name]:
        "The public ones."
        found = [name for node in self.tree.body for name in self.named(node)]
        return [name for name in found if not any(part.startswith("_") for part in name.name.split("."))]

    def named(self, node: ast.AST) -> list[Name]:
        if isinstance(node, FUNCTIONS): return [self.function(node)]
        if isinstance(node, ast.ClassDef): return [self.klass(node)]
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        if not isinstance(node, ast.Assign | ast.AnnAssign): return []
        return [self.value(node, target.id) for target in targets if isinstance(target, ast.Name)]

    def function(self, node: ast.AST, owner: str = "") -> Name:
        patched = patch_name(node)                   # `Class.method`, of several classes a list
        patched = patched[0] if isinstance(patched, list) else patched
        name = f"{owner}.{node.name}" if owner else patched or node.name
        kind = "method" if "." in name else "function"
        return Name(name, kind, head(self.text(node)), ast.get_docstring(node) or "")

    def klass(self, node: ast.ClassDef) -> Name:
        fields = [self.text(n) for n in node.body if isinstance(n, ast.AnnAssign) and not is_private(n.target)]
        lines = [head(self.text(node)), *("    " + text.replace("\n", "\n    ") for text in fields)]
        methods = [n for n in node.body if isinstance(n, FUNCTIONS)]
        shown = [n for n in methods if n.name == "__init__" or not n.name.startswith("_")]
        members = tuple(self.function(n, node.name) for n in shown)
        return Name(node.name, "class", "\n".join(lines), ast.get_docstring(node) or "", members)

    def value(self, node: ast.AST, name: str) -> Name:
        lines = self.text(node).splitlines()
        if len(lines) > LONGEST: lines = [*lines[:LONGEST - 4], "..."]
        return Name(name, "value", "\n".join(lines))


def is_private(target: ast.AST) -> bool: return getattr(target, "id", "_").startswith("_")


def names_of(source: str) -> list[Name]: return Cell(source).names()


def module_of(cells) -> str:
    "`views.films`, or nothing for a page that exports nothing."
    found = (re.search(r"^#\|\s*default_exp\s+([\w.]+)", "".join(c["source"]), re.M) for c in cells)
    return next((m[1] for m in found if m), "")
