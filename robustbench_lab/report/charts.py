"""Charts as SVG text for a page: drawn by matplotlib, in the page's own colours and fonts; the same bytes for the same figures.

A chart is as wide as a phone; its figures stand in the page's tables too. matplotlib is loaded when the first chart is drawn.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

WIDTH = 340  # CSS pixels
MARGIN = 10
LINES = 8  # curves in one chart; more cannot be told apart
LONGEST = 44  # characters of a label

# matplotlib knows no CSS variables: it draws in colours that nobody uses, and _svg puts the page's variables in their place.
INK, MUTED, RULE, OURS, PAPER, WORST, BAND, PAGE = (f"#0000{i:02x}" for i in range(1, 9))
SERIES = [f"#0001{i:02x}" for i in range(LINES)]
PAINT = {
    INK: "--ink", MUTED: "--muted", RULE: "--rule", OURS: "--ours", PAPER: "--paper", WORST: "--worst", BAND: "--band", PAGE: "--page",
    **{paint: f"--series-{i + 1}" for i, paint in enumerate(SERIES)},
}  # fmt: skip
DASHES: list[Any] = ["-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1.5, 2))]


@dataclass(frozen=True)
class Point:
    """A figure with its 95 % interval, all in percent."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Reach:
    """One model in one ball: the paper's figure, ours under the paper's attack, and ours under the strongest attack that was tried."""

    label: str
    strongest_label: str
    claimed: float | None
    ours: Point | None
    strongest: Point


@dataclass(frozen=True)
class Pair:
    """A cell's published figure, in percent, and ours."""

    published: float
    ours: Point
    agrees: bool


def reaches_chart(key: str, title: str, reaches: Sequence[Reach]) -> str:
    """Claimed against strongest: a track from 0 to 100 % for each model, its name above it."""
    top, step, foot = 26, 38, 22
    sheet = _Sheet(top + step * len(reaches) + foot)
    x = _scale(0, 100, MARGIN, WIDTH - MARGIN)
    bottom = top + step * len(reaches)
    for percent in (0, 25, 50, 75, 100):
        sheet.line([x(percent)] * 2, [top, bottom], RULE, 0.8)
        words, anchor = (f"{percent} %", "end") if percent == 100 else (str(percent), "middle")
        sheet.text(x(percent), bottom + 13, words, MUTED, anchor)
    place = MARGIN + 4.0
    for marker, paint, words in (("D", PAPER, "paper"), ("o", OURS, "ours"), ("v", WORST, "ours, strongest attack")):
        if marker != "D" or any(reach.claimed is not None for reach in reaches):
            sheet.marker(place, 9, marker, paint)
            sheet.text(place + 9, 13, words, MUTED)
            place += 24 + 6.4 * len(words)
    for i, reach in enumerate(reaches):
        text, track = top + step * i + 14, top + step * i + 27
        sheet.text(MARGIN, text, _cut(reach.label, LONGEST - len(reach.strongest_label) - 2), INK)
        sheet.text(WIDTH - MARGIN, text, reach.strongest_label, WORST, "end")
        sheet.line([x(0), x(100)], [track, track], RULE, 0.8)
        ends = [value for value in (reach.claimed, reach.ours.value if reach.ours else None) if value is not None]
        if ends:
            sheet.line([x(reach.strongest.value), x(max(ends))], [track, track], MUTED, 1.2)
        for point, marker, paint in ((reach.ours, "o", OURS), (reach.strongest, "v", WORST)):
            if point is not None:
                sheet.line([x(point.low), x(point.high)], [track, track], paint, 3.4)
                sheet.marker(x(point.value), track, marker, paint)
        if reach.claimed is not None:
            sheet.marker(x(reach.claimed), track, "D", PAPER)
    told = "; ".join(
        f"{reach.label}: "
        + (f"paper {reach.claimed:.2f}, " if reach.claimed is not None else "")
        + (f"ours {reach.ours.value:.2f}, " if reach.ours else "")
        + f"strongest attack ({reach.strongest_label}) {reach.strongest.value:.2f}"
        for reach in reaches
    )
    return sheet.svg(key, title, f"Robust accuracy in percent. {told}.")


def pairs_chart(key: str, title: str, pairs: Sequence[Pair], band: float | None) -> str:
    """Ours against the published figure, a point for each cell; on the diagonal they are the same. band: None where cells have several."""
    figures = [value for pair in pairs for value in (pair.published, pair.ours.value)]
    low, high = max(0, 10 * math.floor(min(figures) / 10)), min(100, 10 * math.ceil(max(figures) / 10))
    low, high = (low, high) if high > low else (low - 5, high + 5)
    left, top, side = 34, 24, WIDTH - 34 - MARGIN
    sheet = _Sheet(top + side + 36)
    x, y = _scale(low, high, left, left + side), _scale(low, high, top + side, top)
    for tick in _ticks(low, high, 5):
        sheet.line([x(tick)] * 2, [top, top + side], RULE, 0.8)
        sheet.line([left, left + side], [y(tick)] * 2, RULE, 0.8)
        sheet.text(x(tick), top + side + 14, f"{tick:g}", MUTED, "middle")
        sheet.text(left - 5, y(tick) + 4, f"{tick:g}", MUTED, "end")
    if band is not None:
        near = min(band, high - low)
        corners = [(low, low), (low, low + near), (high - near, high), (high, high), (high, high - near), (low + near, low)]
        sheet.area([x(published) for published, _ in corners], [y(ours) for _, ours in corners], BAND)
    sheet.line([x(low), x(high)], [y(low), y(high)], MUTED, 0.8)
    for pair in sorted(pairs, key=lambda pair: pair.agrees):
        paint = OURS if pair.agrees else WORST
        sheet.line([x(pair.published)] * 2, [y(max(pair.ours.low, low)), y(min(pair.ours.high, high))], paint, 1.2)
        sheet.marker(x(pair.published), y(pair.ours.value), "o" if pair.agrees else "s", paint, hollow=not pair.agrees)
    sheet.text(left, 12, "ours, %", MUTED)
    sheet.text(left + side, top + side + 29, "published, %", MUTED, "end")
    within = sum(pair.agrees for pair in pairs)
    furthest = max(pairs, key=lambda pair: abs(pair.ours.value - pair.published))
    return sheet.svg(
        key, title,
        f"{within} of {len(pairs)} cells lie within {'their band' if band is None else f'{band:g} points'} of the published figure. "
        "The largest difference is "
        f"{furthest.ours.value - furthest.published:+.2f}: ours {furthest.ours.value:.2f}, published {furthest.published:.2f}.",
    )  # fmt: skip


def curves_chart(key: str, title: str, measure: str, curves: Sequence[tuple[str, Sequence[float], Sequence[float]]]) -> str:
    """Label, epochs and values of each run, at most LINES of them; `measure` names the values and their unit."""
    curves = curves[:LINES]
    left, top, height, step = 40, 24, 190, 17
    sheet = _Sheet(top + height + 42 + step * len(curves))
    values = [value for _, _, line in curves for value in line]
    ticks = _ticks(min(values), max(values), 5)
    low, high = min(*values, *ticks), max(*values, *ticks)
    last = max(epoch for _, epochs, _ in curves for epoch in epochs)
    x, y = _scale(1, max(last, 2), left, WIDTH - MARGIN), _scale(low, high, top + height, top)
    for tick in ticks:
        sheet.line([left, WIDTH - MARGIN], [y(tick)] * 2, RULE, 0.8)
        sheet.text(left - 5, y(tick) + 4, f"{tick:g}", MUTED, "end")
    for tick in _ticks(1, max(last, 2), 6):
        if tick >= 1 and tick == int(tick):
            sheet.text(x(tick), top + height + 15, f"{tick:g}", MUTED, "middle")
    for i, (label, epochs, line) in enumerate(curves):
        sheet.line([x(epoch) for epoch in epochs], [y(value) for value in line], SERIES[i], 1.6, DASHES[i % len(DASHES)])
        if len(line) == 1:
            sheet.marker(x(epochs[0]), y(line[0]), "o", SERIES[i])
        below = top + height + 46 + step * i
        sheet.line([MARGIN, MARGIN + 24], [below - 4, below - 4], SERIES[i], 1.8, DASHES[i % len(DASHES)])
        sheet.text(MARGIN + 31, below, _cut(label, LONGEST - 5), INK)
    sheet.text(left, 12, measure, MUTED)
    sheet.text(WIDTH - MARGIN, top + height + 28, "epoch", MUTED, "end")
    told = "; ".join(f"{label}: {line[0]:.4g} at first, {line[-1]:.4g} after epoch {epochs[-1]:g}" for label, epochs, line in curves)
    return sheet.svg(key, title, f"{measure}, epoch by epoch. {told}.")


def _scale(low: float, high: float, start: float, end: float) -> Any:
    return lambda value: start + (end - start) * (value - low) / (high - low)


def _ticks(low: float, high: float, most: int) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    ticks = MaxNLocator(nbins=most, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(tick) for tick in ticks if low - 1e-9 <= tick <= high + 1e-9]


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"


class _Sheet:
    """A matplotlib figure in CSS pixels from the top left corner."""

    def __init__(self, height: float) -> None:
        from matplotlib.figure import Figure

        self.height = height
        self.figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72, facecolor="none")
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_axis_off()
        self.axes.set_xlim(0, WIDTH)
        self.axes.set_ylim(height, 0)

    def line(self, x: Sequence[float], y: Sequence[float], paint: str, width: float, dashes: Any = "-") -> None:
        from matplotlib.lines import Line2D

        line = Line2D(x, y, color=paint, linewidth=width, linestyle=dashes, solid_capstyle="butt", dash_capstyle="butt")
        self.axes.add_artist(line).set_clip_path(None)

    def marker(self, x: float, y: float, marker: str, paint: str, hollow: bool | None = None) -> None:
        """The paper's diamond is hollow, so that ours can be seen through it."""
        from matplotlib.lines import Line2D

        fill = ("none" if marker == "D" else paint) if hollow is None else PAGE if hollow else paint
        size = 7.5 if marker == "v" else 6
        point = Line2D([x], [y], linestyle="none", marker=marker, markersize=size, color=paint, markerfacecolor=fill, markeredgewidth=1.4)
        self.axes.add_artist(point).set_clip_path(None)

    def area(self, x: Sequence[float], y: Sequence[float], paint: str) -> None:
        from matplotlib.patches import Polygon

        self.axes.add_artist(Polygon(list(zip(x, y, strict=True)), closed=True, facecolor=paint, edgecolor="none")).set_clip_path(None)

    def text(self, x: float, y: float, words: str, paint: str, anchor: str = "start") -> None:
        align = {"start": "left", "middle": "center", "end": "right"}[anchor]
        self.axes.text(x, y, words, color=paint, fontsize=12, ha=align, va="baseline", parse_math=False)

    def svg(self, key: str, title: str, description: str) -> str:
        """The chart as an <svg> for an HTML page; `key`: a name that no other chart of the page has."""
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG

        buffer = io.StringIO()
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": key}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # the page's font may have what matplotlib's lacks
            FigureCanvasSVG(self.figure).print_svg(buffer, metadata={"Date": None})
        drawing = re.search(r"<svg\b[^>]*>(.*)</svg>", buffer.getvalue(), re.S)
        assert drawing is not None, "matplotlib wrote no SVG"
        body = re.sub(r"<metadata>.*?</metadata>|<style\b.*?</style>", "", drawing[1], flags=re.S)
        body = re.sub(r'<g id="[^"]*">', "<g>", body)  # counters, the same in every chart
        body = re.sub(r'((?: id="|href="#|url\(#))', rf"\g<1>{key}-", body).replace("xlink:href", "href")
        body = re.sub(r"font: ([\d.]+px) [^;\"]*|font-family: [^;\"]*", _inherited, body)
        body = re.sub(r"\s*\n\s*", " ", re.sub(r"#000[01]0\d", lambda paint: f"var({PAINT[paint[0]]})", body))
        return (
            f'<svg class="chart" role="img" aria-labelledby="{key}-title {key}-text" viewBox="0 0 {WIDTH} {self.height:g}" width="{WIDTH}" '
            f'height="{self.height:g}"><title id="{key}-title">{escape(title)}</title><desc id="{key}-text">{escape(description)}</desc>'
            f"{body.strip()}</svg>"
        )


def _inherited(font: re.Match[str]) -> str:
    return f"font-size: {font[1]}; font-family: inherit" if font[1] else "font-family: inherit"
