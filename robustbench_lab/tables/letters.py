"""A text as Markdown and as LaTeX, where each of its letters stands for itself."""

from __future__ import annotations

import html
import re
import unicodedata

from robustbench_lab.output import one_line

MARKUP = re.compile(r"[`*\[\]|]|~(?=~)|(?<!\w)_|_(?!\w)|\\(?=[!-/:-@\[-`{-~])")  # what may begin or end something in a cell
TAG, ENTITY = re.compile(r"<(?=[A-Za-z/!?])"), re.compile(r"&(#?\w+;)")

TEXT = {sign: f"\\{sign}" for sign in "&%_#${}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", '"': r"\texttt{\char34}", "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}", "–": r"\textendash{}", "—": r"\textemdash{}", "‘": "`{}", "’": "'{}", "“": "``{}", "”": "''{}",
    "…": r"\ldots{}", "§": r"\S{}", "¶": r"\P{}", "†": r"\dag{}", "‡": r"\ddag{}", "©": r"\copyright{}", "£": r"\pounds{}", "¡": "!`{}",
    "¿": "?`{}", "ß": r"\ss{}", "æ": r"\ae{}", "Æ": r"\AE{}", "œ": r"\oe{}", "Œ": r"\OE{}", "ø": r"\o{}", "Ø": r"\O{}", "ł": r"\l{}",
    "Ł": r"\L{}", "ı": r"\i{}", "⁄": "/", "‐": "-", "‑": "-", "\u00ad": "",
}  # fmt: skip
ACCENTS = {  # combining ones
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": ".", "\u0308": '"', "\u030a": "r",
    "\u030b": "H", "\u030c": "v", "\u0323": "d", "\u0327": "c", "\u0331": "b",
}  # fmt: skip
GREEK = {letter: unicodedata.name(letter).split()[-1].lower().replace("lamda", "lambda") for letter in "αβγδζηθικλμνξπρστυχψω"}
GREEK |= {letter: unicodedata.name(letter).split()[-1].capitalize().replace("Lamda", "Lambda") for letter in "ΓΔΘΛΞΠΣΥΦΨΩ"}
GREEK |= {"ε": "varepsilon", "ϵ": "epsilon", "φ": "varphi", "ϕ": "phi", "ϑ": "vartheta", "ϖ": "varpi", "ϱ": "varrho", "ς": "varsigma"}
SIGNS = {
    "∞": "infty", "≤": "leq", "≥": "geq", "≠": "neq", "≈": "approx", "≡": "equiv", "∼": "sim", "≪": "ll", "≫": "gg", "∝": "propto",
    "±": "pm", "∓": "mp", "×": "times", "÷": "div", "·": "cdot", "⋅": "cdot", "∘": "circ", "∇": "nabla", "∂": "partial",
    "∑": "sum", "∏": "prod", "∫": "int", "√": "surd", "∈": "in", "∉": "notin", "⊂": "subset", "⊆": "subseteq", "∪": "cup", "∩": "cap",
    "∅": "emptyset", "∀": "forall", "∃": "exists", "¬": "neg", "∧": "wedge", "∨": "vee", "→": "rightarrow", "←": "leftarrow",
    "↔": "leftrightarrow", "↑": "uparrow", "↓": "downarrow", "⇒": "Rightarrow", "⇐": "Leftarrow", "⇔": "Leftrightarrow", "↦": "mapsto",
    "‖": "|", "∥": "parallel", "⊥": "perp", "⊕": "oplus", "⊗": "otimes", "ℓ": "ell", "ℏ": "hbar", "′": "prime", "•": "bullet",
    "⟨": "langle", "⟩": "rangle", "⌊": "lfloor", "⌋": "rfloor", "⌈": "lceil", "⌉": "rceil", "★": "star", "⋆": "star",
}  # fmt: skip
MATHS = {"<": "<", ">": ">", "|": "|", "−": "-", "∗": "*", "ο": "o"} | {letter: f"\\{name}" for letter, name in (GREEK | SIGNS).items()}
MATHS |= {"°": r"^\circ"} | dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΧ", (rf"\mathrm{{{letter}}}" for letter in "ABEZHIKMNOPTX"), strict=True))


def line(text: str) -> str:
    """A text in Markdown that may have its code and emphasis, but neither ends of lines nor HTML."""
    return _without_html(one_line(text))


def md(text: str) -> str:
    """A text inside a cell of a Markdown table."""
    return _without_html(MARKUP.sub(r"\\\g<0>", one_line(text)))


def _without_html(text: str) -> str:
    """What a reader of Markdown would take for a tag or for a letter's name is escaped; `a < b` and `C&W` are neither."""
    return TAG.sub("&lt;", ENTITY.sub(lambda name: f"&amp;{name[1]}" if html.unescape(name[0]) != name[0] else name[0], text))


def code(text: str) -> str:
    """A text as code in Markdown: between more backticks than it has in a row."""
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if len(ticks) > 1 else ""
    return f"{ticks}{space}{one_line(text)}{space}{ticks}"


def tex(text: str) -> str:
    """A text in LaTeX, of a preamble that loads nothing for it: letters of formulas as maths, and what LaTeX does not have by its number.

    LaTeX before 2020 needs textcomp for straight single quotes and backticks.
    """
    written = "".join(map(_tex, unicodedata.normalize("NFC", one_line(text))))
    return re.sub(r"([-,])(?=\1)", r"\1{}", written)  # which would be joined to one sign


def _tex(letter: str) -> str:
    if letter in TEXT:
        return TEXT[letter]
    if letter in MATHS:
        return f"${MATHS[letter]}$"
    if " " <= letter <= "~":
        return letter
    kind, _, parts = unicodedata.decomposition(letter).rpartition(">")
    inner = "".join(chr(int(part, 16)) for part in parts.split())
    if kind in ("<super", "<sub") and (" " < inner[0] <= "~" or inner == "−"):
        return f"${'^' if kind == '<super' else '_'}{{{inner.replace('−', '-')}}}$"
    if not kind and len(inner) == 2 and inner[1] in ACCENTS and "$" not in (base := _tex(inner[0])):
        return f"\\{ACCENTS[inner[1]]}{{{base}}}"
    if (kind or len(inner) == 1) and inner:
        return "".join(map(_tex, inner))
    return f"[U+{ord(letter):04X}]"


def first_of_line(text: str) -> str:
    r"""What begins a line of a tabular: a `[` or `*` there would be an argument of the `\\` that ends the line above."""
    return "{}" + text if text.startswith(("[", "*")) else text
