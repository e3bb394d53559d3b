"""One notebook -> one page: nbdev's processors, nbconvert's Markdown and colours, everything else escaped."""
import ast
import base64
import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape, unescape
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from urllib.parse import unquote

import bleach
from bleach.css_sanitizer import CSSSanitizer
from nbconvert.filters.ansi import ansi2html
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbdev import processors
from nbdev.process import NBProcessor
from PIL import Image
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name

from scripts.pages.formulas import formula
from scripts.pages.names import Name, module_of, names_of

PYTHON = get_lexer_by_name("python")
PLAIN = HtmlFormatter(nowrap=True)
KEPT = ("div span p b i em strong small br code pre ul ol li table thead tbody tr th td figure figcaption details "
        "summary img").split()        # of what objects show of themselves
STYLES = CSSSanitizer(allowed_css_properties=[
    "background", "background-color", "border", "border-bottom", "border-collapse", "border-top", "color", "display",
    "font-family", "font-size", "font-weight", "gap", "height", "margin", "max-width", "min-width", "opacity",
    "overflow", "overflow-x", "padding", "text-align", "vertical-align", "white-space", "width"])
EXTERNAL = re.compile(r"(https?|mailto):")


DULL = re.compile(r'<span class="(?:n|p|w|o)">([^<]*)</span>')     # names and signs, which have no colour of their own


def coloured(code: str) -> str:
    html = DULL.sub(r"\1", highlight(code, PYTHON, PLAIN)).rstrip()
    return f'<pre class="code">{html}</pre>'


def slug(text: str, taken: set[str]) -> str:
    "An anchor for a heading that no other heading of the page has."
    base = re.sub(r"[^\w.]+", "-", unescape(re.sub(r"<[^>]*>", "", text)).lower()).strip("-") or "part"
    found = next(name for k in range(len(taken) + 1) if (name := f"{base}-{k}" if k else base) not in taken)
    taken.add(found)
    return found


def words(html: str) -> str: return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", html))).strip()


def folded(code: str, name: str) -> str:
    "Code below a word that unfolds it."
    return f'<details class="source"><summary>{name}</summary>{coloured(code)}</details>' if code else ""


def only_imports(code: str) -> bool:
    try: body = ast.parse(code).body
    except SyntaxError: return False
    return bool(body) and all(isinstance(node, ast.Import | ast.ImportFrom) for node in body)


def code_of(code: str) -> str:
    "A cell's code; what only imports is folded."
    if only_imports(code): return folded(code, "imports")
    return coloured(code) if code else ""


@dataclass
class Part:
    "A part of a page, from one heading to the next: what is searched."
    anchor: str
    title: str
    text: str = ""


def url_of(path: str) -> str: return path.removesuffix(".ipynb") + ".html"


@dataclass
class Source:
    "A notebook before it is a page."
    path: str                              # below nbs/, as in "views/840_films.ipynb"
    title: str
    summary: str
    module: str                            # "" = exports nothing
    cells: list = field(repr=False)        # through nbdev's processors
    digest: str = ""                       # of the file

    @property
    def url(self) -> str: return url_of(self.path)

    @property
    def number(self) -> str: return (re.match(r"\d+[a-z]?(?=_)", Path(self.path).name) or [""])[0]

    def exported(self) -> list[Name]:
        "The names of its exported cells."
        return [name for cell in self.cells if is_exported(cell) for name in names_of(cell.source)]

    def targets(self) -> set[str]:
        "What its prose, answers in Markdown and documents may link: notebooks, words in backticks."
        cells = [c.source for c in self.cells if c.cell_type == "markdown"]
        data = [output.get("data", {}) for c in self.cells for output in c.get("outputs") or ()]
        cells += ["".join(found["text/markdown"]) for found in data if "text/markdown" in found]
        names = self.exported()
        abouts = [name.about for owner in names for name in (owner, *owner.members)]
        prose = "\n\n".join([self.summary, *cells, *abouts])
        return set(re.findall(r"\]\(\s*<?([^)\s>]+)", prose)) | set(re.findall(r"`([A-Za-z_][\w.]*)(?:\(\))?`", prose))


def is_exported(cell) -> bool:
    return cell.cell_type == "code" and bool({"export", "exports"} & set(cell.directives_ or {}))


def default_exp_(cell, *name):
    "A cell that only names its module says nothing to a reader."
    del cell["source"]


def read(nbs: Path, path: str) -> Source:
    "A notebook through nbdev's processors: hidden cells, directives and colours of terminals are gone."
    file = (nbs / path).read_bytes()
    procs = [processors.populate_language, processors.strip_ansi, processors.hide_line, processors.rm_header_dash,
             processors.hide_, default_exp_, processors.clean_magics]
    done = NBProcessor(nbs / path, procs, rm_directives=False)
    module = module_of(done.nb.cells)
    done.process()
    cells = done.nb.cells
    for cell in cells:
        if cell.cell_type == "code": cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M).strip("\n")
    first = cells.pop(0).source if cells and cells[0].cell_type == "markdown" else ""
    title, _, below = first.strip().partition("\n")
    title, summary = title.lstrip("# ").strip() or Path(path).stem, below.strip().lstrip("> ").strip()
    return Source(path, title, summary, module, cells, hashlib.sha256(file).hexdigest())


def picture_beside(nbs: Path, path: str, url: str) -> Path | None:
    "The picture below nbs/ that a page's prose shows; None if there is none."
    target = normpath(join(dirname(path), url))
    fine = not EXTERNAL.match(url) and not target.startswith(("..", "/")) and target.endswith((".png", ".gif", ".svg"))
    return nbs / target if fine and (nbs / target).is_file() else None


class Renderer(IPythonRenderer):
    "Markdown with our links and formulas; HTML that stands in it is shown as text."
    def __init__(self, page: "Writer"):
        super().__init__(escape=True, allow_harmful_protocols=False, exclude_anchor_links=True)
        self.page = page

    def heading(self, text, level, **attrs):
        anchor = slug(text, self.page.anchors)
        self.page.parts.append(Part(anchor, words(text)))
        if level == 2: self.page.headings.append((anchor, words(text)))
        here = f'<a class="here" href="#{anchor}" aria-label="this part">#</a>'
        return f'<h{level} id="{anchor}">{text} {here}</h{level}>\n'

    def link(self, text, url, title=None):
        href = self.page.resolve(url)
        if href is None: return text
        said = f' title="{escape(title)}"' if title else ""
        return f'<a href="{escape(href)}"{said}>{text}</a>'

    def codespan(self, text):
        href = self.page.named(text)
        code = f"<code>{escape(text)}</code>"
        return f'<a class="name" href="{escape(href)}">{code}</a>' if href else code

    def image(self, text, url, title=None):
        picture = self.page.beside(url)
        return self.page.image(picture.read_bytes(), picture.suffix[1:], alt=words(text)) if picture else escape(text)
    def block_html(self, html): return f"<p>{escape(html.strip())}</p>\n"
    def inline_html(self, html): return escape(html)
    def block_math(self, body): return f'<div class="formula">{formula(body.strip(), True)}</div>'
    def multiline_math(self, text): return self.block_math(text.strip().strip("$"))
    def latex_environment(self, name, body): return self.block_math(body)
    def inline_math(self, body): return formula(body)


class Writer:
    "Writes the body of a page."
    def __init__(self,
        source: Source,
        pages: dict[str, str],             # of the site: path of the notebook -> address
        named: dict[str, str],             # name -> address with anchor
        keep: Callable[[bytes, str], str], # takes a picture's bytes and the ending of its name, gives its address
        nbs: Path,                         # where pictures lie that its prose shows
    ):
        self.source, self.pages, self.all_names, self.keep, self.nbs = source, pages, named, keep, nbs
        self.here = dirname(source.url)
        self.anchors: set[str] = set()
        self.headings: list[tuple[str, str]] = []
        self.parts = [Part("", source.title, source.summary)]
        self.renderer = Renderer(self)
        self.markdown = MarkdownWithMath(renderer=self.renderer)

    # ---- links

    def to(self, url: str) -> str:
        "An address of the site as seen from this page."
        path, hash, anchor = url.partition("#")
        return relpath(path, self.here or ".") + hash + anchor

    def resolve(self, url: str) -> str | None:
        "Where a link of the prose leads; None: nowhere in this site."
        if EXTERNAL.match(url): return url
        path, hash, heading = url.partition("#")
        anchor = hash and hash + slug(escape(unquote(heading)), set())      # a notebook's has the heading's capitals
        if not path: return anchor
        target = normpath(join(dirname(self.source.path), path))
        return self.to(self.pages[target] + anchor) if target in self.pages else None

    def beside(self, url: str) -> Path | None:
        "A picture that lies among the notebooks; None for anything else."
        return picture_beside(self.nbs, self.source.path, url)

    def named(self, text: str) -> str | None:
        "Where a name in backticks is described."
        url = self.all_names.get(text.removesuffix("()"))
        return self.to(url) if url else None

    # ---- cells

    def body(self) -> str: return "\n".join(filter(None, map(self.cell, self.source.cells)))

    def cell(self, cell) -> str:
        if cell.cell_type == "markdown": return self.prose(cell.source)
        if cell.cell_type != "code": return ""
        shown = self.exported(cell) if is_exported(cell) else code_of(cell.source)
        outputs = "\n".join(filter(None, map(self.output, cell.get("outputs", []))))
        return f'{shown}\n<div class="outputs">{outputs}</div>' if outputs else shown

    def prose(self, text: str) -> str:
        "Markdown, searched part by part."
        html = self.markdown.render(text)
        blocks = re.split(r'(?=<h[1-6] id=")', html)
        headed = [bool(re.match(r"<h[1-6] id=", block)) for block in blocks]       # <hr /> heads nothing
        started = self.parts[len(self.parts) - sum(headed):]
        if not headed[0]: (self.parts[-len(started) - 1]).text += " " + words(blocks.pop(0))
        for part, block in zip(started, blocks): part.text += " " + words(block.split("</h", 1)[1][2:])
        return html

    def exported(self, cell) -> str:
        "Signatures and documents of what a cell exports; its source folds out."
        names = names_of(cell.source)
        source = code_of(cell.source) if only_imports(cell.source) else folded(cell.source, "source")
        if not names: return source
        return f'<div class="exported">{"".join(map(self.described, names))}{source}</div>'

    def described(self, name: Name) -> str:
        self.anchors.add(name.name)
        self.parts[-1].text += f" {name.name} {name.about}"
        about = self.markdown.render(name.about) if name.about else ""
        members = "".join(map(self.described, name.members))
        anchor = escape(name.name)
        here = f'<a class="here" href="#{anchor}" aria-label="{anchor}">#</a>'
        inside = f'{here}{coloured(name.signature)}<div class="about">{about}</div>{members}'
        return f'<section class="api {name.kind}" id="{anchor}">{inside}</section>'

    def output(self, output) -> str:
        "The richest form that needs neither scripts nor other places."
        kind = output["output_type"]
        if kind == "stream": return f'<pre class="printed">{ansi2html("".join(output["text"]))}</pre>'
        if kind == "error": return f'<pre class="printed">{ansi2html(chr(10).join(output["traceback"]))}</pre>'
        data = {mime: "".join(value) if isinstance(value, list) else value for mime, value in output["data"].items()}
        if "image/png" in data: return self.picture(base64.b64decode(data["image/png"]))
        if "image/svg+xml" in data: return self.image(data["image/svg+xml"].encode(), "svg")
        if "text/html" in data: return self.shown(data["text/html"])
        if "text/markdown" in data: return f'<div class="table">{self.markdown.render(data["text/markdown"])}</div>'
        return f'<pre class="printed">{ansi2html(data["text/plain"])}</pre>' if "text/plain" in data else ""

    def picture(self, png: bytes) -> str:
        with Image.open(io.BytesIO(png)) as image: w, h = image.size
        return self.image(png, "png", f' width="{w}" height="{h}"')

    def image(self, data: bytes, ending: str, size: str = "", alt: str = "") -> str:
        alt = escape(alt or f"figure: {self.parts[-1].title}")
        return f'<img src="{self.to(self.keep(data, ending))}"{size} loading="lazy" alt="{alt}">'

    def shown(self, html: str) -> str:
        "What an object shows of itself, without anything that runs or fetches."
        html = re.sub(r"<style\b.*?</style>|<script\b.*?</script>", "", html, flags=re.S | re.I)
        html = re.sub(r"<svg\b.*?</svg>", lambda m: self.image(m[0].encode(), "svg"), html, flags=re.S | re.I)
        kept = {"*": ["style", "class", "title"], "img": ["src", "alt", "width", "height"], "details": ["open"],
                "td": ["colspan", "rowspan", "style"], "th": ["colspan", "rowspan", "style"]}
        clean = bleach.clean(html, KEPT, kept, protocols=["data"], css_sanitizer=STYLES)
        clean = re.sub(r'(<img[^>]*?)\ssrc="(?!data:image/(?:png|svg)|(?:\.\./)*figures/)[^"]*"', r"\1", clean)
        return f'<div class="shown">{clean}</div>'
