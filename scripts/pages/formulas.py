"""Formulas of the pages as MathML, which browsers draw without a library: the part of LaTeX that our pages use."""
import re
from html import escape

TOKEN = re.compile(r"\\[a-zA-Z]+|\\.|\s+|.", re.S)
GREEK = {"alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ϵ", "eta": "η", "theta": "θ", "lambda": "λ",
         "mu": "μ", "nu": "ν", "pi": "π", "rho": "ρ", "sigma": "σ", "tau": "τ", "phi": "ϕ", "omega": "ω", "ell": "ℓ",
         "Gamma": "Γ", "Delta": "Δ", "Sigma": "Σ", "Omega": "Ω", "infty": "∞", "varnothing": "∅", "nabla": "∇"}
OPERATORS = {"cdot": "·", "times": "×", "approx": "≈", "le": "≤", "ge": "≥", "ne": "≠", "in": "∈", "to": "→",
             "leftarrow": "←", "rightarrow": "→", "lfloor": "⌊", "rfloor": "⌋", "sum": "∑", "prod": "∏", "|": "‖",
             "{": "{", "}": "}", "ldots": "…", "pm": "±", "sim": "∼", "mid": "|"}
FUNCTIONS = {"cos", "sin", "tanh", "arccos", "exp", "log", "ln", "max", "min", "arg"}
SPACES = {",": "0.17em", ";": "0.28em", ":": "0.22em", " ": "0.25em", "!": "-0.17em", "quad": "1em", "qquad": "2em"}
OVER = {"bar": "‾", "overline": "‾", "hat": "^", "tilde": "~"}
LETTERS = {("mathcal", "L"): "ℒ", ("mathbb", "E"): "𝔼", ("mathbb", "R"): "ℝ"}
FENCES = "()[]|⌊⌋‖{}"


class Unknown(ValueError):
    "LaTeX that is not read here; the message names it."


class Reader:
    "Reads LaTeX from left to right and writes MathML."
    def __init__(self, text: str): self.tokens, self.at = TOKEN.findall(text), 0

    def peek(self) -> str:
        "The next token that is no blank; empty at the end."
        while self.at < len(self.tokens) and self.tokens[self.at].isspace(): self.at += 1
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.at += 1
        return token

    def row(self, end: str = "") -> str:
        "Everything up to a token, or to the end."
        parts = []
        while self.peek() != end:
            if not self.peek(): raise Unknown(f"{end} is missing")
            parts.append(self.scripted())
        self.take()
        return parts[0] if len(parts) == 1 else f"<mrow>{''.join(parts)}</mrow>"

    def argument(self) -> str:
        "A group in braces, or one token."
        if self.peek() != "{": return self.atom(single=True)
        self.take()
        return self.row("}")

    def words(self) -> str:
        "A group in braces as it is written."
        if self.peek() != "{": return self.take()
        self.take()
        inside = self.tokens[self.at:]
        if "}" not in inside: raise Unknown("} is missing")
        self.at += inside.index("}") + 1
        return "".join(inside[:inside.index("}")])

    def scripted(self) -> str:
        "An atom with what stands below and above it."
        base, below, above = self.atom(), "", ""
        while (mark := self.peek()) in ("_", "^", "'"):
            if not mark: break
            self.take()
            if mark == "_": below = self.argument()
            elif mark == "^": above = self.argument()
            else: above = "<mo>′</mo>"
        if below and above: return f"<msubsup>{base}{below}{above}</msubsup>"
        if below: return f"<msub>{base}{below}</msub>"
        return f"<msup>{base}{above}</msup>" if above else base

    def atom(self, single: bool = False) -> str:
        token = self.take()
        if token == "{": return self.row("}")
        if token.startswith("\\"): return self.command(token[1:])
        if token.isdigit() or token == ".":
            while not single and self.at < len(self.tokens) and re.fullmatch(r"[\d.]", self.tokens[self.at]):
                token += self.take()
            return f"<mn>{token}</mn>"
        if token.isalpha(): return f"<mi>{escape(token)}</mi>"
        if token in ("}", "_", "^", "&", ""): raise Unknown(f"{token or 'the end'} in an odd place")
        shown = "−" if token == "-" else token
        return operator(shown)

    def command(self, name: str) -> str:
        if name in GREEK: return f"<mi>{GREEK[name]}</mi>"
        if name in OPERATORS: return operator(OPERATORS[name])
        if name in FUNCTIONS: return f"<mi>{name}</mi><mspace width='0.1em'/>"
        if name in SPACES: return f"<mspace width='{SPACES[name]}'/>"
        if name in ("left", "right"): return self.atom()            # fences stretch by themselves
        if name in ("frac", "tfrac"): return f"<mfrac>{self.argument()}{self.argument()}</mfrac>"
        if name == "sqrt": return f"<msqrt>{self.argument()}</msqrt>"
        if name in OVER: return f"<mover accent='true'>{self.argument()}<mo>{OVER[name]}</mo></mover>"
        if name in ("mathrm", "operatorname"): return f"<mi mathvariant='normal'>{escape(self.words())}</mi>"
        if name == "text": return f"<mtext>{escape(self.words())}</mtext>"
        if name in ("mathcal", "mathbb"):
            letter = self.words()
            if (name, letter) not in LETTERS: raise Unknown(f"\\{name}{{{letter}}}")
            return f"<mi>{LETTERS[name, letter]}</mi>"
        raise Unknown(f"\\{name}")


def operator(sign: str) -> str:
    "An operator; fences are as high as their line, not as the page."
    return f"<mo stretchy='false'>{escape(sign)}</mo>" if sign in FENCES else f"<mo>{escape(sign)}</mo>"


def mathml(text: str, display: bool = False) -> str:
    "A formula as MathML. Errors: `Unknown` for LaTeX that is not read here."
    block = " display='block'" if display else ""
    return f"<math{block}>{Reader(text).row()}</math>"


def formula(text: str, display: bool = False) -> str:
    "A formula as MathML; as it is written where it can't be read."
    try: return mathml(text, display)
    except Unknown: return f"<code>{escape(text)}</code>"
