"""Features in two dimensions: the components by hand, the same picture at each call, and what of a table's cells is shown."""

from collections.abc import Callable

import fake_records
import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from robustbench_lab.errors import LabError
from robustbench_lab.figures import features, of_tables
from robustbench_lab.figures.features import COLOURS, Cloud, features_figure, first_of_each, neighbours, principal_components
from robustbench_lab.tables.cells import cells_of
from robustbench_lab.tables.reading import read_table, reshaped

WORDS = ["backbone=small_cnn", "attack=fgsm", "keep=[features]", "keep.features.per_class=20"]
TABLE = {"overrides": WORDS, "published": None, "figure": {"kind": "features", "attacked": 1, "classes": ["plane", "car", "bird"]}}


def cloud(title: str = "FM", n: int = 20, classes: int = 3, scale: float = 1.0) -> Cloud:
    """Classes far apart in 8 dimensions; of class 1, attacked images half-way to class 0."""
    rng = np.random.default_rng(0)
    label = np.tile(np.arange(classes), n)
    centres = 6 * rng.normal(size=(classes, 8))
    clean = centres[label] + rng.normal(size=(n * classes, 8))
    attacked = centres[:2].mean(axis=0) + rng.normal(size=(n, 8))
    return Cloud(title, (scale * clean).astype(np.float32), label, (scale * attacked).astype(np.float32))


def drawn(*clouds: Cloud, most: int = 100) -> Figure:
    return features_figure(clouds or [cloud()], ["plane", "car", "bird"], 1, most, "n = 1,000")


def test_components_of_points_on_a_line() -> None:
    """At 0, 1, 2 and 5 along (3, 4, 0): their places less the mean, 2, times 5; nothing across."""
    points, share = principal_components(np.outer([0, 1, 2, 5], [3.0, 4.0, 0.0]) + 7)
    assert share == ": 100 % of the variance"
    np.testing.assert_allclose(points[:, 0] * np.sign(points[3, 0]), [-10, -5, 0, 15], atol=1e-9)
    np.testing.assert_allclose(points[:, 1], 0, atol=1e-9)


def test_components_hold_their_share() -> None:
    """Variances 9, 4 and 3 along the axes: the first two have 13 of 16."""
    features = np.concatenate([size * np.outer([1, -1], axis) for size, axis in zip([3.0, 2.0, 3**0.5], np.eye(3), strict=True)])
    assert principal_components(features)[1] == ": 81 % of the variance"


def test_neighbours_stay_neighbours_whatever_the_scale() -> None:
    for scale in (1.0, 1e-8, 1e8):
        some = cloud(scale=scale)
        points = neighbours(some.clean)
        np.testing.assert_array_equal(points, neighbours(some.clean))
        nearest = np.linalg.norm(points[:, None] - points[None], axis=2) + 1e9 * np.eye(len(points))
        assert (some.label[nearest.argmin(axis=1)] == some.label).mean() > 0.95, scale


def test_the_first_of_each_class() -> None:
    label = np.array([2, 0, 0, 2, 0, 2])
    few = first_of_each(Cloud("", np.arange(12.0).reshape(6, 2), label, np.ones((5, 2))), 2)
    assert few.label.tolist() == [2, 0, 0, 2]
    assert few.clean[:, 0].tolist() == [0, 2, 4, 6]
    assert len(few.attacked) == 2


def test_clean_images_by_class_and_attacked_ones_in_front() -> None:
    figure = drawn(cloud("undefended"), cloud("FM"), most=15)
    assert len(figure.axes) == 4
    for place, axes in enumerate(figure.axes):
        clean, moved = (entry for entry in axes.collections if isinstance(entry, PathCollection))
        most = 15 if place % 2 else 20
        assert (len(clean.get_offsets()), len(moved.get_offsets())) == (3 * most, most)
        assert [to_hex(colour) for colour in clean.get_facecolors()[:3]] == list(COLOURS[:3])
        assert {to_hex(colour) for colour in moved.get_facecolors()} == {COLOURS[1]}
        assert moved.get_zorder() > clean.get_zorder()
        assert not axes.get_xticks().size
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["plane", "car", "bird", "car, attacked"]
    texts = [text.get_text() for text in figure.texts]
    assert [texts.count(word) for word in ("undefended", "FM", "t-SNE")] == [1, 1, 2]
    assert sum("% of the variance" in text for text in texts) == 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"clean": np.full((60, 8), np.nan)}, "'FM': expected finite features"),
        ({"attacked": np.ones((3, 7))}, r"expected clean \[N, F\] and attacked \[A, F\] with labels"),
        ({"label": np.zeros(5, int)}, r"labels \[5\]"),
        ({"label": np.full(60, 3)}, "expected labels from 0 to 2, each with a name, got 3"),
        ({"clean": np.ones((60, 8))}, "expected images whose features differ, got one point for all 60"),
    ],
)
def test_features_that_do_not_fit(changed, message) -> None:
    some = cloud()
    with pytest.raises(LabError, match=message):
        drawn(Cloud(**({"title": "FM", "clean": some.clean, "label": some.label, "attacked": some.attacked} | changed)))


def test_classes_that_cannot_be_shown() -> None:
    with pytest.raises(LabError, match="at most 10 classes, one for each colour, got 11"):
        features_figure([cloud()], [str(k) for k in range(11)], 1, 9, "")
    with pytest.raises(LabError, match="attacked: expected a class from 0 to 2, got 3"):
        features_figure([cloud()], ["a", "b", "c"], 3, 9, "")
    with pytest.raises(LabError, match="expected one cloud or more, got none"):
        features_figure([], ["a"], 0, 9, "")


# Of tables


def with_features(cell, outputs, some: Cloud) -> None:
    attacked = np.where(some.label[:, None] == 1, some.clean + 1, some.clean)
    np.savez(cell.evaluation.folder(outputs) / "features.npz", clean=some.clean, attacked=attacked, label=some.label)


def test_each_cell_that_kept_features_is_a_column(written: Callable[..., str], tmp_path, monkeypatch) -> None:
    outputs = tmp_path / "outputs"
    table = read_table(written(**TABLE))
    fake_records.fill_plausibly(cells_of(table, outputs), outputs)
    cells = cells_of(table, outputs)
    assert of_tables.drawn(table, cells, outputs) is None, "records without features"
    calls: list = []
    monkeypatch.setattr(features, "features_figure", lambda *words: calls.append(words) or features_figure(*words))
    some = cloud()
    with_features(cells[1], outputs, some)
    assert of_tables.drawn(table, cells, outputs) is not None
    (((shown, *_), names, attacked, most, footer),) = calls
    assert (shown.title, names, attacked, most) == (cells[1].name, ["plane", "car", "bird"], 1, 100)
    np.testing.assert_array_equal(shown.attacked, some.clean[some.label == 1] + 1)
    assert "60 clean test images, and those of one class after the attack; t-SNE of the first 100 of each class." in footer


def test_embedded_images_do_not_have_the_papers_names(written: Callable[..., str], tmp_path, monkeypatch) -> None:
    outputs = tmp_path / "outputs"
    table = reshaped(read_table(written(**TABLE)), "smoke")
    fake_records.fill_plausibly(cells_of(table, outputs), outputs)
    cells = cells_of(table, outputs)
    calls: list = []
    monkeypatch.setattr(features, "features_figure", lambda *words: calls.append(words))
    with_features(cells[0], outputs, cloud())
    of_tables.drawn(table, cells, outputs)
    assert calls[0][1] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"figure": {"kind": "features"}}, "figure: expected for features kind, attacked, perhaps classes, got"),
        ({"figure": {"kind": "features", "attacked": -1}}, "figure.attacked: expected a whole number >= 0"),
        ({"figure": {"kind": "features", "attacked": 2, "classes": ["a", "b"]}}, "figure.attacked: expected the number of one"),
        ({"figure": {"kind": "features", "attacked": 0, "classes": "ab"}}, "figure.classes: expected a list"),
        ({"overrides": WORDS[:2]}, "expected words with keep=\\[features\\], for a figure of features"),
        ({"figure": {"kind": "pictures", "x": "eps"}}, "figure: expected for pictures kind, perhaps amplify, perhaps shows, got"),
        ({"figure": {"kind": "curves", "x": "eps", "scale": "linear"}}, "figure.scale: expected log, or null, got 'linear'"),
    ],
)
def test_a_figure_that_is_declared_wrongly(changed, message, written: Callable[..., str]) -> None:
    with pytest.raises(LabError, match=message):
        read_table(written(**(TABLE | changed)))
