"""What the drawings of papers' figures share: a sheet as wide as a page of two columns, words that are broken to fit, and files.

The same data give the same bytes. matplotlib is loaded when the first figure is drawn; it comes with the font that everything is set in.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 7.0  # inches: both columns of a page
MARGIN = 0.08  # inches around everything
TEXT, SMALL = 8.0, 7.0  # points: axes, legends and headings; the footer
LINE = 1.25  # the height of a line of text, in sizes of its letters
PNG_DPI, RASTER_DPI = 200, 150  # the PNG's; that of areas and points inside the SVG
INK, MUTED, RULE = "#1a1a1a", "#595959", "#d9d9d9"
LEGEND_LINE = 0.158  # inches: the height of a line of a legend
CLEAN = "#009e3d"  # the frame around what was not attacked


def sheet(height: float) -> Figure:
    """An empty figure, WIDTH x height inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), dpi=PNG_DPI, facecolor="white")


def axes_at(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place in inches from the figure's top left corner, with thin lines and letters of TEXT points."""
    wide, high = figure.get_size_inches()
    axes = figure.add_axes((left / wide, 1 - (top + height) / high, width / wide, height / high))
    axes.tick_params(labelsize=TEXT, width=0.6, length=2.5, pad=2, color=MUTED, labelcolor=INK)
    for spine in axes.spines.values():
        spine.set(linewidth=0.6, color=MUTED)
    return axes


def write(figure: Figure, x: float, y: float, words: str, size: float = TEXT, **options: Any) -> None:
    """Words at a place in inches from the top left corner: their top left corner, unless `options` of matplotlib's Text say otherwise."""
    wide, high = figure.get_size_inches()
    kind = {"ha": "left", "va": "top", "color": INK, "linespacing": LINE, **options}
    figure.text(x / wide, 1 - y / high, words, fontsize=size, parse_math=False, **kind)


def write_footer(figure: Figure, footer: str) -> None:
    """At the sheet's foot, as high as `height_of(footer, SMALL)`."""
    high = figure.get_size_inches()[1]
    write(figure, MARGIN, high - MARGIN, broken(footer, SMALL, WIDTH - 2 * MARGIN), SMALL, va="bottom", color=MUTED)


def write_legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str], across: int, top: float, **spaces: float) -> None:
    """So many entries a line, centred, `top` inches from the figure's top; spaces: of matplotlib's legends, in sizes of its letters."""
    legend = figure.legend(
        list(handles), list(labels), loc="upper center", bbox_to_anchor=(0.5, 1 - top / figure.get_size_inches()[1]), ncols=across,
        fontsize=TEXT, labelcolor=INK, frameon=False, borderpad=0, borderaxespad=0, labelspacing=0.35, **spaces,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)


def width_of(words: str, size: float, weight: str = "normal") -> float:
    """The width of the longest line, in inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=size, weight=weight)
    return max(text_to_path.get_text_width_height_descent(line or " ", font, ismath=False)[0] for line in words.split("\n")) / 72


def height_of(words: str, size: float, inches: float = WIDTH - 2 * MARGIN, weight: str = "normal") -> float:
    """The height in inches of words broken into lines of at most so many inches; 0 where there are none."""
    return LINE * size / 72 * (1 + broken(words, size, inches, weight).count("\n")) if words else 0.0


def broken(words: str, size: float, inches: float, weight: str = "normal") -> str:
    """The same words in lines of at most so many inches; a single word may be longer."""
    lines = []
    for paragraph in words.split("\n"):
        line = ""
        for word in paragraph.split(" "):
            longer = f"{line} {word}" if line else word
            if line and width_of(longer, size, weight) > inches:
                lines.append(line)
                line = word
            else:
                line = longer
        lines.append(line)
    return "\n".join(lines)


def fitting(words: str, size: float, inches: float) -> float:
    """The size, or what is left of it for the longest single word to fit."""
    widest = max((width_of(word, size) for word in words.split()), default=0.0)
    return size * min(1.0, inches / widest) if widest else size


def files_of(figure: Figure) -> tuple[bytes, bytes]:
    """The figure as PNG of 200 dpi and as SVG, without date or version, so that the same figure gives the same bytes.

    The SVG stands alone: letters are outlines, so that it looks the same everywhere, and each line of text has its words as <title>, which
    searches and screen readers find.
    """
    import matplotlib

    png, svg = png_of(figure), io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "robustbench_lab", "image.composite_image": False}):
        figure.savefig(svg, format="svg", dpi=RASTER_DPI, metadata=nothing)
    drawing = re.sub(r"<!DOCTYPE[^>]*>\s*", "", svg.getvalue())  # it names a file on the web
    drawing = re.sub(r"<!-- (.*?) -->\s*(<g\b[^>]*>)", r"\2<title>\1</title>", drawing)  # the words, escaped already
    return png, drawing.encode(errors="backslashreplace")


def png_of(figure: Figure, dpi: int = PNG_DPI) -> bytes:
    """The figure as PNG, without date or version."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=dpi, metadata={"Software": None}, pil_kwargs={"optimize": True})
    return png.getvalue()
