"""Papers' figures: the same bytes for the same data, nothing left out, clipped or made up."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from io import BytesIO
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_rgba
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

from robustbench_lab.errors import LabError
from robustbench_lab.figures.curves import MARKS, STYLES, Panel, Series, curves_figure
from robustbench_lab.figures.features import Cloud, features_figure
from robustbench_lab.figures.paper import CLEAN, WIDTH, broken, files_of, fitting, width_of
from robustbench_lab.figures.pictures import Group, Row, strips_figure
from robustbench_lab.figures.planes import CLASSES, Plane, Points, planes_figure, thinned
from robustbench_lab.figures.scatter import Point, scatter_figure

FOOTER = "n = 10,000 test images; white box, FGSM; costs $5 & <nothing> $x$"


def series(label: str = "GDA & <BReLU>", y: tuple[float | None, ...] = (90, 50, None, 20), **changes: object) -> Series:
    low = [None if value is None else max(0, value - 2) for value in y]
    high = [None if value is None else min(100, value + 2) for value in y]
    return replace(Series(label, [0.1 * (i + 1) for i in range(len(y))], y, low, high), **changes)


def curves(*panels: Panel, columns: int = 2, log_x: bool = False) -> Figure:
    return curves_figure(panels or [Panel("MNIST", [series()])], columns, "eps (fraction of the pixel range)", "accuracy, %", FOOTER, log_x)


def test_an_axis_that_does_not_begin_at_zero_holds_the_figures() -> None:
    panel = Panel("MNIST", [Series("clean", [0, 1], [97.5, 98.5], [97.2, 98.1], [97.8, 98.9])])
    low, high = curves_figure([panel], 1, "epochs", "accuracy, %", FOOTER, from_zero=False).axes[0].get_ylim()
    assert 97 < low < 97.2 < 98.9 < high < 99.1
    assert curves_figure([panel], 1, "epochs", "accuracy, %", FOOTER).axes[0].get_ylim() == (0, 100)


def pictures(count: int = 10, channels: int = 1, side: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, channels, side, side)).astype(np.uint8)


def strips(channels: int = 1, count: int = 10) -> Figure:
    x, captions = pictures(count, channels), [f"automobile → {i}\n0.{i}" for i in range(count)]
    clean = Group("", [Row("clean", x, [str(i) for i in range(count)], marked=True)])
    attacked = Group("Random + FGSM", [Row("undefended", x, captions), Row("a defense with $a long$ name of its own", x, captions)])
    return strips_figure([clean, attacked], FOOTER)


def plane(added: int = 50, size: int = 11) -> Plane:
    """Probability x: the boundary is the line x = 1/2."""
    points = np.random.default_rng(0).random((20 + added, 2))
    classes = (points[:, 0] > 0.5).astype(int)
    probability = np.tile(np.linspace(0, 1, size), (size, 1))
    return Plane(probability, Points(points[:20], classes[:20]), Points(points[20:], classes[20:]) if added else None)


def planes(columns: int = 6, most_added: int = 30) -> Figure:
    rows = [(label, [plane(50 if i else 0) for i in range(columns)]) for label in ("concentric circles", "moons")]
    return planes_figure(rows, [f"augmentation {i}" for i in range(columns)], most_added, FOOTER)


def clouds(columns: int) -> Figure:
    rng = np.random.default_rng(0)
    label = np.arange(60) % 10
    clean = (rng.normal(size=(10, 6))[label] + 0.1 * rng.normal(size=(60, 6))).astype(np.float32)
    found = [Cloud(f"a defense with $a long$ name of its own, {i} / PGD", clean, label, clean[label == 1] + 0.3) for i in range(columns)]
    return features_figure(found, [f"class {k}" for k in range(9)] + ["automobiles & <trucks>"], 9, 5, FOOTER)


def scattered() -> Figure:
    chosen = [[Point(0.2 + 0.01 * i, 99 - 0.1 * i * (j + 1), None, (98.5 - 0.1 * i, 99.3)) for i in range(5)] for j in range(2)]
    named = {"lambda 5 & $x$": chosen[0], "lambda 15": chosen[1], "a defense with $a long$ name": [Point(0.215, 98.75, (0.2, 0.24))]}
    return scatter_figure("LeNet: $x$ against y", named, "rho2", "clean accuracy, %", FOOTER)


def full(panel: int) -> Panel:
    return Panel(
        f"({panel}) a panel with $a rather$ long title", [series(f"defense {i}, beta = 6", published=[(0.2, 33.0)]) for i in range(9)]
    )


FIGURES = {
    "one panel": curves,
    "logarithmic": lambda: curves(log_x=True),
    "logarithmic from 0 on": lambda: curves(Panel("p", [series(x=[0, 0.002, 0.031, 0.3])]), log_x=True),
    "another metric": lambda: curves_figure([Panel("p", [series(y=(0.1, 0.225))])], 1, "epochs", "rho2", FOOTER, False, None),
    "scatter": scattered,
    "features": lambda: clouds(2),
    "features of one model": lambda: clouds(1),
    "nine curves, three panels, the paper": lambda: curves(*(full(i) for i in range(3))),
    "four panels in a row": lambda: curves(*(Panel(f"panel {i}", [series()]) for i in range(4)), columns=4),
    "five panels": lambda: curves(*(Panel(f"panel {i}", [series()]) for i in range(5)), columns=3),
    "strips": strips,
    "strips in colour": lambda: strips(3),
    "two pictures": lambda: strips(count=2),
    "planes": planes,
    "one plane": lambda: planes(1),
}


@pytest.fixture(params=FIGURES, scope="module")
def drawn(request: pytest.FixtureRequest) -> tuple[Figure, bytes, bytes]:
    figure = FIGURES[request.param]()
    return figure, *files_of(figure)


def shown(figure: Figure) -> list[Text]:
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]


def words(figure: Figure) -> str:
    """All of its text, whatever the line breaks."""
    return "\n".join(re.sub(r"\s+", " ", text.get_text()) for text in shown(figure))


def test_the_same_data_give_the_same_bytes(drawn, request):
    figure, png, svg = drawn
    assert files_of(figure) == (png, svg), "written twice"
    assert files_of(FIGURES[request.node.callspec.params["drawn"]]()) == (png, svg), "drawn twice"


def test_a_png_has_200_dots_an_inch_and_no_version(drawn):
    figure, png, _ = drawn
    with Image.open(BytesIO(png)) as image:
        assert image.size[0] == 200 * WIDTH
        assert image.size[1] == pytest.approx(200 * figure.get_size_inches()[1], abs=1)
        assert round(image.info["dpi"][0]) == 200
        assert "Software" not in image.info


def test_an_svg_stands_alone_and_has_its_words(drawn):
    figure, _, svg = drawn
    root = ET.fromstring(svg)
    assert b"<!DOCTYPE" not in svg
    assert b"matplotlib.org" not in svg
    for element in root.iter():
        for name, value in element.attrib.items():
            if name.endswith("href"):
                assert value.startswith(("#", "data:image/png;base64,")), value[:80]
            assert not re.search(r"url\((?!#)", value), value
    titles = [title.text for title in root.iter("{http://www.w3.org/2000/svg}title")]
    for text in shown(figure):
        if in_sight(figure, text):
            assert set(text.get_text().split("\n")) <= set(titles), text.get_text()


def in_sight(figure: Figure, text: Text) -> bool:
    """matplotlib keeps labels of ticks outside an axis, and does not draw them."""
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = axis.get_view_interval()
        if any(tick.label1 is text and not low - 1e-9 <= tick.get_loc() <= high + 1e-9 for tick in axis.get_major_ticks()):
            return False
    return True


def test_no_text_is_clipped_or_lies_on_another(drawn):
    figure = drawn[0]
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [(text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in shown(figure) if in_sight(figure, text)]
    sheet = figure.bbox
    for i, (text, box) in enumerate(boxes):
        assert sheet.x0 <= box.x0 < box.x1 <= sheet.x1, text
        assert sheet.y0 <= box.y0 < box.y1 <= sheet.y1, text
        for other, place in boxes[i + 1 :]:
            wide, high = min(box.x1, place.x1) - max(box.x0, place.x0), min(box.y1, place.y1) - max(box.y0, place.y0)
            assert min(wide, high) <= 1.5, (text, other)  # pixels: the boxes of letters' ascenders and descenders may touch


def test_letters_are_large_enough(drawn):
    figure = drawn[0]
    for axes in figure.axes:
        ticks = [*axes.get_xticklabels(), *axes.get_yticklabels()]
        assert all(text.get_fontsize() >= 8 for text in [axes.title, axes.xaxis.label, axes.yaxis.label, *ticks])
    assert all(text.get_fontsize() >= 8 for legend in figure.legends for text in legend.get_texts())


def test_every_label_of_curves_is_there():
    text = words(
        curves(Panel("MNIST $x$", [series("a"), series("b")]), Panel("CIFAR-10", [series("b"), series("c", published=[(0.2, 40.0)])]))
    )
    for label in ("MNIST $x$", "CIFAR-10", "eps (fraction of the pixel range)", "accuracy, %", FOOTER):
        assert label in text
    legend = curves(Panel("", [series("a"), series("b")]), Panel("", [series("b"), series("c", published=[(0.2, 40.0)])])).legends
    assert [[entry.get_text() for entry in each.get_texts()] for each in legend] == [["a", "b", "c", "paper"]]
    assert "paper" not in [entry.get_text() for entry in curves().legends[0].get_texts()]


def lines(figure: Figure, panel: int = 0) -> dict[str, Line2D]:
    return {str(line.get_label()): line for line in figure.axes[panel].get_lines()}


def test_what_is_missing_is_a_gap():
    figure = curves(Panel("", [series("a", (90, None, 50, None, 20, 0))]))
    line = lines(figure)["a"]
    assert np.array_equal(line.get_ydata(), [90, np.nan, 50, np.nan, 20, 0], equal_nan=True)
    band, alone = figure.axes[0].collections
    areas = [{round(float(x), 6) for x, _ in path.vertices} for path in band.get_paths()]
    assert areas == [{0.1}, {0.3}, {0.5, 0.6}], "no band over what is missing"
    assert isinstance(alone, LineCollection)
    assert [segment.tolist() for segment in alone.get_segments()] == [
        [[0.1, 88], [0.1, 92]],
        [[pytest.approx(0.3), 48], [pytest.approx(0.3), 52]],
    ]


def test_the_same_label_looks_the_same_in_every_panel_and_different_from_the_others():
    figure = curves(Panel("", [series(f"{i}") for i in range(9)]), Panel("", [series("8"), series("2")]))
    first, second = lines(figure), lines(figure, 1)
    for look in (Line2D.get_color, Line2D.get_marker, lambda line: str(line._dash_pattern)):
        assert len({look(line) for line in first.values()}) == len(STYLES) == 9
        assert all(look(second[label]) == look(first[label]) for label in ("8", "2"))


def test_percent_is_drawn_from_0_to_100_and_published_points_are_hollow():
    figure = curves(Panel("", [series("a", published=[(0.15, 0.0), (0.25, 100.0)])]))
    assert figure.axes[0].get_ylim() == (0, 100)
    paper, ours = lines(figure)["a, paper"], lines(figure)["a"]
    assert paper.get_xydata().tolist() == [[0.15, 0], [0.25, 100]]
    assert (paper.get_markerfacecolor(), paper.get_linestyle()) == ("none", "None")
    assert (paper.get_color(), paper.get_marker()) == (ours.get_color(), ours.get_marker())


def test_another_metric_is_drawn_from_0_to_above_its_largest_figure():
    axes = curves_figure([Panel("", [series(y=(0.1, 0.2), low=[0.05, 0.1], high=[0.2, 0.4])])], 1, "x", "rho2", "", False, None).axes[0]
    assert axes.get_ylim() == (0, pytest.approx(0.42))
    assert curves_figure([Panel("", [series(y=(120, 200), high=[130, 200])])], 1, "x", "s", "", False, None).axes[0].get_ylim() == (0, 210)
    with pytest.raises(LabError, match=r"expected numbers >= 0, or None, got \[-1\]"):
        curves_figure([Panel("", [series(y=(-1, 2), low=[None] * 2, high=[None] * 2)])], 1, "x", "y", "", False, None)


def test_points_of_a_scatter_plot_are_where_they_are_and_a_single_one_has_no_line():
    figure = scattered()
    drawn = lines(figure)
    assert drawn["lambda 15"].get_xydata().tolist() == [[pytest.approx(0.2 + 0.01 * i), pytest.approx(99 - 0.2 * i)] for i in range(5)]
    assert (drawn["lambda 15, first"].get_xydata().tolist(), drawn["lambda 15, first"].get_markerfacecolor()) == ([[0.2, 99]], "white")
    assert "a defense with $a long$ name, first" not in drawn
    segments = [segment.tolist() for bars in figure.axes[0].collections for segment in bars.get_segments()]
    assert len(segments) == 11
    assert [[0.2, 98.75], [0.24, 98.75]] in segments
    shown = figure.legends[0].get_lines()
    assert [line.get_linestyle() for line in shown][-1] == "None"
    for point in (0.2, 98.4), (0.24, 99.3):
        assert axes_hold(figure, *point)
    with pytest.raises(LabError, match="scatter: expected a point"):
        scatter_figure("", {"a": []}, "x", "y", "")


def axes_hold(figure: Figure, x: float, y: float) -> bool:
    (left, right), (low, high) = figure.axes[0].get_xlim(), figure.axes[0].get_ylim()
    return left < x < right and low < y < high


def test_a_long_curve_has_few_markers():
    line = lines(curves(Panel("", [series("a", tuple(range(100)))])))["a"]
    assert len(line.get_xdata()) == 100
    assert 5 < len(line.get_markevery()) <= MARKS
    y = [50.0 if i not in (10, 12) else None for i in range(100)]
    assert set(lines(curves(Panel("", [series("a", tuple(y))])))["a"].get_markevery()) - set(line.get_markevery()) == {11}, (
        "alone, without a line"
    )


def test_a_logarithmic_axis_is_logarithmic():
    assert [curves(log_x=log).axes[0].get_xscale() for log in (True, False)] == ["log", "linear"]


def test_a_logarithmic_axis_may_begin_at_0():
    """As far from 1 to 10 as from 10 to 100, and 0 at the left end, in sight."""
    steps = [0.0, 1.0, 10.0, 100.0]
    axes = curves(Panel("", [series(x=steps)]), log_x=True).axes[0]
    assert axes.get_xscale() == "symlog"
    zero, one, ten, hundred = axes.transData.transform([(x, 0) for x in steps])[:, 0]
    assert ten - one == pytest.approx(hundred - ten)
    assert axes.bbox.x0 < zero < one < axes.bbox.x0 + 0.2 * axes.bbox.width
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [0, 1, 3, 10, 30, 100]


@pytest.mark.parametrize(
    ("panels", "message"),
    [
        ([], "got 0 panels"),
        ([Panel("p", [])], "expected 1 to 9 labels, got 0"),
        ([Panel("p", [series(f"{i}") for i in range(10)])], "expected 1 to 9 labels, got 10"),
        ([Panel("p", [series("a"), series("a")])], "'p': expected each label once"),
        ([Panel("p", [series("a", low=[1.0])])], r"'p', 'a': expected as many y, low and high as x, got 4 x, \[4, 1, 4\]"),
        ([Panel("p", [series("a", (0.5, 101))])], r"expected percent, 0 to 100, or None, got \[101"),
        ([Panel("p", [series("a", (float("nan"),))])], r"expected percent, 0 to 100, or None, got \[nan"),
        ([Panel("p", [series("a", published=[(0.1, -1.0)])])], r"got \[-1.0\]"),
        ([Panel("p", [series("a", (5, 6), low=[5, 6.5])])], r"expected low <= y <= high, and no interval without y, got 6.5, 6, 8 at 0.2"),
        ([Panel("p", [series("a", (None,), low=[1.0])])], "got 1.0, None, None at 0.1"),
        ([Panel("p", [series("a", (1, 2), x=[0.2, 0.2])])], "expected finite x that rises"),
        ([Panel("p", [series("a", (1, 2), x=[-0.1, 0.2])])], "no place for x < 0"),
    ],
)
def test_curves_that_do_not_fit(panels, message):
    with pytest.raises(LabError, match=message):
        curves_figure(panels, 2, "x", "y", "", log_x=True)


def test_strips_show_every_picture_as_it_is():
    for channels in (1, 3):
        figure = strips(channels)
        images = [image for image in figure.axes[0].images if isinstance(image, AxesImage)]
        expected = np.broadcast_to(pictures(channels=channels), (10, 3, 8, 8)).transpose(0, 2, 3, 1)
        assert [np.asarray(image.get_array()).tolist() for image in images] == [*expected.tolist()] * 3
        assert {image.get_interpolation() for image in images} == {"none"}
    text = words(figure)
    for label in (
        "clean",
        "Random + FGSM",
        "undefended",
        "a defense with $a long$ name of its own",
        FOOTER,
        *(f"automobile → {i} 0.{i}" for i in range(10)),
    ):
        assert label in text


def test_marked_pictures_are_framed_in_green():
    frames = [patch for patch in strips().axes[0].patches if isinstance(patch, Rectangle)]
    green = [frame for frame in frames if frame.get_edgecolor() == to_rgba(CLEAN)]
    assert (len(green), len(frames)) == (10, 30)
    assert min(frame.get_linewidth() for frame in green) > max(frame.get_linewidth() for frame in frames if frame not in green)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Row("b", pictures().astype(np.float32), [""] * 10), r"'b': expected images uint8 \[N, 1 or 3, H, W\], got float32"),
        (Row("b", pictures()[0], [""] * 10), r"got uint8 \[1, 8, 8\]"),
        (Row("b", pictures(channels=2), [""] * 10), r"got uint8 \[10, 2, 8, 8\]"),
        (Row("b", pictures(9), [""] * 9), "expected 10 images and captions as in the first row, got 9 and 9"),
        (Row("b", pictures(), [""] * 9), "got 10 and 9"),
    ],
)
def test_strips_that_do_not_fit(row, message):
    with pytest.raises(LabError, match=message):
        strips_figure([Group("", [Row("a", pictures(), [""] * 10)]), Group("", [row])], "")
    with pytest.raises(LabError, match="got none"):
        strips_figure([Group("", [])], "")


def test_planes_have_labels_a_boundary_and_thinned_points():
    figure = planes()
    text = words(figure)
    for label in ("concentric circles", "moons", *(f"augmentation {i}" for i in range(6)), "probability of class 1", "added point", FOOTER):
        assert label in text
    first, second = figure.axes[:2]
    sizes = [[len(points.get_offsets()) for points in axes.collections if isinstance(points, PathCollection)] for axes in (first, second)]
    assert sizes == [[20], [30, 20]], "original, and before it the added ones, thinned"
    added, original = (points for points in second.collections if isinstance(points, PathCollection))
    assert added.get_sizes()[0] < original.get_sizes()[0]
    assert original.get_offsets().tolist() == plane().original.x.tolist()
    assert [tuple(colour) for colour in original.get_facecolors()] == [to_rgba(CLASSES[label]) for label in plane().original.y]
    contours = [each for each in second.collections if isinstance(each, QuadContourSet) and not each.filled]
    assert [contour.levels.tolist() for contour in contours] == [[0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9], [0.5]]
    assert contours[1].get_linewidths()[0] > contours[0].get_linewidths()[0]
    boundary = contours[1].get_paths()[0].vertices
    assert np.allclose(boundary[:, 0], 0.5), "columns of the probability run along x"
    assert np.allclose([boundary[:, 1].min(), boundary[:, 1].max()], [0, 1])
    assert all(axes.get_aspect() == 1 for axes in figure.axes[:12])


def test_a_plane_of_one_colour_has_no_contours():
    figure = planes_figure([("a", [replace(plane(), probability=np.full((5, 5), 0.2))])], ["none"], 5, "")
    assert not [each for each in figure.axes[0].collections if isinstance(each, QuadContourSet) and not each.filled]


def test_thinning_keeps_the_ends_and_the_order():
    points = Points(np.arange(20).reshape(10, 2) / 20, np.arange(10) % 2)
    assert thinned(points, 10) is points
    assert thinned(points, 4).x.tolist() == points.x[[0, 3, 6, 9]].tolist()
    assert thinned(points, 4).y.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probability": np.zeros((3, 4))}, r"'moons', 'none': expected probability \[G, G\], got \[3, 4\]"),
        ({"probability": np.full((3, 3), 1.5)}, "expected probabilities, 0 to 1, got 1.5"),
        ({"probability": np.full((3, 3), np.nan)}, "expected probabilities, 0 to 1, got nan"),
        ({"original": Points(np.zeros((4, 3)), np.zeros(4))}, r"expected original points x \[N, 2\], y \[N\], got \[4, 3\], \[4\]"),
        ({"added": Points(np.zeros((4, 2)), np.zeros(3))}, r"expected added points x \[N, 2\], y \[N\], got \[4, 2\], \[3\]"),
        ({"added": Points(np.zeros((2, 2)), np.array([0, 2]))}, r"expected added points of the classes 0 and 1, got \[0, 2\]"),
    ],
)
def test_planes_that_do_not_fit(changes, message):
    with pytest.raises(LabError, match=message):
        planes_figure([("moons", [replace(plane(), **changes)])], ["none"], 5, "")
    with pytest.raises(LabError, match=r"expected 2 planes in each row, as there are columns, got \[1\]"):
        planes_figure([("moons", [plane()])], ["none", "GDA"], 5, "")


def test_words_are_broken_where_they_do_not_fit():
    text = "one two three four five\nsix"
    lines = broken(text, 8, 0.6).split("\n")
    assert " ".join(lines) == text.replace("\n", " ")
    assert lines[-1] == "six"
    assert all(width_of(line, 8) <= 0.6 for line in lines)
    full = [f"{line} {after.split()[0]}" for line, after in pairwise(lines[:-1])]
    assert all(width_of(line, 8) > 0.6 for line in full), "no line is shorter than it must be"
    assert broken(text, 8, 0.01).split("\n") == text.split()
    assert fitting("a few words", 8, 2) == 8
    assert width_of("automobile", fitting("an automobile", 8, 0.2)) == pytest.approx(0.2, rel=0.05)
