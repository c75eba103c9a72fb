"""Texts in Markdown and in LaTeX stand for themselves: known answers, and a table with every letter that TeX itself sets."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from matplotlib.mathtext import MathTextParser

from robustbench_lab.jobs.tables import table_file, write
from robustbench_lab.tables.cells import cells_of
from robustbench_lab.tables.letters import MATHS, TEXT, code, line, md, tex
from robustbench_lab.tables.reading import read_table


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ε, α, λ, Δ, ∞", r"$\varepsilon$, $\alpha$, $\lambda$, $\Delta$, $\infty$"),
        ("≤ 8, ≥ 4 ± 1", r"$\leq$ 8, $\geq$ 4 $\pm$ 1"),
        ("−1 × 2 <3> |x|", r"$-$1 $\times$ 2 $<$3$>$ $|$x$|$"),
        ('"a" isn\'t `b`', r"\texttt{\char34}a\texttt{\char34} isn\textquotesingle{}t \textasciigrave{}b\textasciigrave{}"),
        ("a-b -- c --- d,,e", r"a-b -{}- c -{}-{}- d,{},e"),
        (r"~ ^ \ % $ # _ { } &", r"\textasciitilde{} \textasciicircum{} \textbackslash{} \% \$ \# \_ \{ \} \&"),
        ("10⁻³ x² d₂ ½ ﬁ 𝛼 µ", r"10$^{-}$$^{3}$ x$^{2}$ d$_{2}$ 1/2 fi $\alpha$ $\mu$"),
        ("cafe\u0301 Łukasz Gauß ế", r"caf\'{e} \L{}ukasz Gau\ss{} \'{\^{e}}"),
        ("“a” – b…", r"``{}a''{} \textendash{} b\ldots{}"),
        ("日 \udce9", "[U+65E5] [U+DCE9]"),
        ("two\nlines\n", "two lines"),
    ],
)
def test_latex_by_known_answers(text, expected):
    assert tex(text) == expected


def test_every_formula_is_one():
    r"""Read by matplotlib's parser of TeX's formulas, which knows the same names."""
    parser = MathTextParser("path")
    for letter in MATHS.keys() - {"√", "°"}:  # TeX's \\surd it does not know; a degree is no formula without its number
        parser.parse(tex(letter))


@pytest.mark.parametrize(
    ("text", "cell", "prose"),
    [
        ("<script>alert(1)</script>", "&lt;script>alert(1)&lt;/script>", "&lt;script>alert(1)&lt;/script>"),
        ("<!-- a --> <?b?>", "&lt;!-- a --> &lt;?b?>", "&lt;!-- a --> &lt;?b?>"),
        ("1 < 2, C&W; A & B", "1 < 2, C&W; A & B", "1 < 2, C&W; A & B"),
        ("&lt;b&#62;", "&amp;lt;b&amp;#62;", "&amp;lt;b&amp;#62;"),
        ("a|b `c` *d*", r"a\|b \`c\` \*d\*", "a|b `c` *d*"),
        ("_e_ small_cnn [f](http://g)", r"\_e\_ small_cnn \[f\](http://g)", "_e_ small_cnn [f](http://g)"),
        (r"a\|b \n", r"a\\\|b \n", r"a\|b \n"),
        ("two\r\nlines", "two lines", "two lines"),
    ],
)
def test_markdown_by_known_answers(text, cell, prose):
    assert (md(text), line(text)) == (cell, prose)


def test_code_in_markdown_ends_where_it_ends():
    assert code("train 'a=[1,2]'") == "`train 'a=[1,2]'`"
    assert code("echo `a` ``b``") == "``` echo `a` ``b`` ```"


LONG = {"title": "A title\nof two lines\n", "source": "nowhere,\nnever\n", "corner": "defense\n/ attack"}


def test_where_one_line_is_meant_there_is_one(written, tmp_path):
    """Also in what names a label elsewhere in the file: an exception's globs, a claim's comparison."""
    name = written(
        **LONG,
        rows=[{"label": "plain\nnet"}, {"label": "soft", "overrides": ["defense=label_smoothing"], "not_run": None}],
        columns=[{"label": "FGSM\n\nattack"}, {"label": "PGD", "overrides": ["attack=pgd"]}],
        exceptions=[{"row": "plain\nnet", "column": "FGSM*", "overrides": ["attack.labels=predicted"]}],
        published={"kind": "claim", "source": "section\n3"},
        claims=[{"text": "it\nholds", "source": "section 3", "holds_if": ["plain\nnet / PGD < soft / PGD"]}],
        findings=["first\n\nand second"],
        deviations=[],
    )
    table = read_table(name)
    assert (table.title, table.corner) == ("A title of two lines", "defense / attack")
    assert [row.label for row in table.rows] + [column.label for column in table.columns] == ["plain net", "soft", "FGSM attack", "PGD"]
    base = table_file(table, tmp_path)
    page = write(table, cells_of(table, tmp_path), tmp_path).read_text()
    assert page.startswith("# A title of two lines\n")
    assert re.search(r"^\| defense / attack +\| FGSM attack +\| PGD", page, re.MULTILINE)
    assert "Source: nowhere, never." in page
    assert '"it holds"' in page
    latex = base.with_name(base.name + ".tex").read_text()
    assert latex.startswith("% A title of two lines (")
    assert "\ndefense / attack & FGSM attack & PGD \\\\\n" in latex


def test_no_html_in_any_page(written, tmp_path):
    evil = "<script>alert('{}')</script>"
    name = written(
        title=evil.format("title"),
        source=evil.format("source"),
        corner=evil.format("corner"),
        rows=[{"label": evil.format("row")}, {"label": "other", "not_run": evil.format("reason")}],
        published={"kind": "exact", "source": evil.format("published"), "values": [[1, None], [1, None]], "band": 1},
        deviations=[evil.format("deviation")],
        findings=[evil.format("finding")],
    )
    page = write(read_table(name), cells_of(read_table(name), tmp_path), tmp_path).read_text()
    assert all(f"&lt;script>alert('{what}')" in page for what in ("title", "source", "corner", "row", "reason", "deviation", "finding"))
    assert not re.search("<[a-z/]", re.sub("`[^`]*`", "", page))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no pdflatex here (Debian: apt install texlive-latex-recommended)")
def test_latex_sets_a_table_of_all_letters(written, tmp_path):
    letters = [chr(number) for number in range(33, 127)] + [letter for letter in (*TEXT, *MATHS) if ord(letter) > 126]
    letters += [
        "--",
        "---",
        ",,",
        "''",
        "``",
        "<<",
        ">>",
        "?`",
        "!`",
        "é",
        "ế",
        "ñ",
        "ç",
        "ő",
        "š",
        "日",
        "x²",
        "10⁻³",
        "½",
        "${x}$",
        r"\\[1cm]",
    ]
    rows = [{"label": " ".join(letters[i : i + 12])} for i in range(0, len(letters), 12)]
    rows += [{"label": f"{letter} first"} for letter in "[*&%-~"]
    columns = [{"label": "ε ≤ 8/255 \\ {%"}, {"label": '"#1" | <b>'}]
    name = written(title="ε\n\\% 日", corner="α / λ\n$", rows=rows, columns=columns, published={"kind": "none"})
    write(read_table(name), cells_of(read_table(name), tmp_path), tmp_path)
    tabular = (tmp_path / "tables" / f"{name}.tex").read_text()
    page = f"\\documentclass{{article}}\\usepackage{{booktabs}}\\begin{{document}}\\small\n{tabular}\\end{{document}}\n"
    (tmp_path / "page.tex").write_text(page)
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "page.tex"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert ended.returncode == 0, ended.stdout[-2000:]
    assert "Missing character" not in Path(tmp_path / "page.log").read_text(errors="replace")
