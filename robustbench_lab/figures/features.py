"""Where a network puts test images, clean and attacked: its features in two dimensions, one panel for each model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np

from robustbench_lab.errors import LabError
from robustbench_lab.figures.of_tables import arrays_of, footer_of
from robustbench_lab.figures.paper import (
    INK,
    LEGEND_LINE,
    MARGIN,
    MUTED,
    SMALL,
    TEXT,
    WIDTH,
    axes_at,
    broken,
    height_of,
    sheet,
    width_of,
    write,
    write_footer,
    write_legend,
)
from robustbench_lab.knobs import at_least
from robustbench_lab.settings.overrides import parsed
from robustbench_lab.storage.records import FEATURES_FILE
from robustbench_lab.tables.checks import require
from robustbench_lab.tables.drawing import TableFigure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from robustbench_lab.tables.cells import Cell
    from robustbench_lab.tables.grid import Table

# Colours that the colour-blind can tell apart: Paul Tol's "muted", and a grey in the place of the one that it keeps for missing data.
COLOURS = ("#332288", "#ddcc77", "#117733", "#88ccee", "#cc6677", "#999933", "#aa4499", "#44aa99", "#882255", "#777777")
NEIGHBOURS = 30  # t-SNE's perplexity, as its authors use it; fewer points have fewer
LARGEST = 3.0  # inches: a panel's side
MOST_NEIGHBOURS = 100  # images of each class that t-SNE shows


@dataclass(frozen=True)
class Features(TableFigure):
    """An evaluation that kept features is a column: one model on one dataset, named after the last of its cells.

    attacked: the class of the attacked images that are shown; classes: the names of all, in order, or None.
    """

    attacked: Annotated[int, at_least(0)]
    classes: Sequence[str] | None
    files: ClassVar[Sequence[str]] = (FEATURES_FILE,)

    def check(self, table: Table, path: Path) -> None:
        attacked, classes = self.attacked, self.classes
        require(not classes or attacked < len(classes), path, "figure.attacked", "the number of one of figure.classes, from 0", attacked)
        kept = any(parsed(word).key_or_group == "keep" for _, _, words in table.words() for word in words)
        require(kept, path, "figure", "words with keep=[features], for a figure of features", table.overrides)

    def draw(self, table: Table, cells: Sequence[Cell], output_root: Path) -> Figure | None:
        shown_as = {cell.evaluation.folder(output_root): cell for cell in cells if cell.evaluation is not None}
        kept = arrays_of(list(shown_as.values()), FEATURES_FILE, {"label", "clean", "attacked"}, output_root)
        if not kept:
            return None
        others = table.reshaped and table.profile == "smoke"  # other images than the file speaks of
        numbers = [str(k) for k in range(1 + max(int(arrays["label"].max()) for arrays in kept.values()))]
        names = (not others and self.classes) or numbers
        clouds = [
            Cloud(name, arrays["clean"], arrays["label"], arrays["attacked"][arrays["label"] == self.attacked])
            for name, arrays in kept.items()
        ]
        sizes = ", ".join(f"{size:,}" for size in sorted({len(cloud.clean) for cloud in clouds}))
        shown = f" {sizes} clean test images, and those of one class after the attack; t-SNE of the first {MOST_NEIGHBOURS} of each class."
        return features_figure(clouds, names, self.attacked, MOST_NEIGHBOURS, footer_of(table, shown))


@dataclass(frozen=True)
class Cloud:
    """Features of one model's images: clean float [N, F] of the classes label [N], and attacked [A, F], all of one class."""

    title: str
    clean: np.ndarray
    label: np.ndarray
    attacked: np.ndarray


def features_figure(clouds: Sequence[Cloud], names: Sequence[str], attacked: int, most: int, footer: str) -> Figure:
    """A column for each cloud: its principal components above, t-SNE beneath, each fitted to what it shows.

    names: of the classes, in order; attacked: which of them the attacked images belong to; most: of how many images of each class, the
    first ones, there is a t-SNE: it takes minutes where the components take a second.
    Raises LabError for more classes than there are colours, labels without a name, and features that are not finite or do not fit.
    """
    _check(clouds, names, attacked)
    gap = 0.22
    side = min((WIDTH - 2 * MARGIN - gap * (len(clouds) - 1)) / len(clouds), LARGEST)
    left = (WIDTH - len(clouds) * side - gap * (len(clouds) - 1)) / 2
    head = max(height_of(cloud.title, TEXT, side, "bold") for cloud in clouds) + 0.05
    line = height_of("PCA", SMALL) + 0.04
    tops = [MARGIN + head + line, MARGIN + head + line + side + 0.08 + line]
    handles = _handles(names, attacked)
    widest = max(width_of(str(handle.get_label()), TEXT) for handle in handles)
    across = max(1, min(len(handles), int((WIDTH - 2 * MARGIN) / (widest + 0.42))))
    across = math.ceil(len(handles) / math.ceil(len(handles) / across))  # lines of the same length
    bottom = tops[1] + side + 0.1
    figure = sheet(bottom - (-len(handles) // across) * LEGEND_LINE + height_of(footer, SMALL) + 2 * MARGIN)
    for column, cloud in enumerate(clouds):
        x = left + column * (side + gap)
        title = broken(cloud.title, TEXT, side, "bold")
        write(figure, x + side / 2, MARGIN + head - 0.05, title, ha="center", va="bottom", weight="bold")
        few = first_of_each(cloud, most)
        points, share = principal_components(np.concatenate([cloud.clean, cloud.attacked]))
        rows = (("PCA" + share, points, cloud.label), ("t-SNE", neighbours(np.concatenate([few.clean, few.attacked])), few.label))
        for (name, points, label), top in zip(rows, tops, strict=True):
            write(figure, x, top - line, name, SMALL, color=MUTED)
            _draw(axes_at(figure, x, top, side, side), points, label, attacked)
    labels = [str(handle.get_label()) for handle in handles]
    write_legend(figure, handles, labels, across, bottom, handlelength=1.0, handletextpad=0.3, columnspacing=1.2)
    write_footer(figure, footer)
    return figure


def first_of_each(cloud: Cloud, most: int) -> Cloud:
    """The first images of each class, in their order."""
    kept = np.sort(np.concatenate([np.flatnonzero(cloud.label == k)[:most] for k in np.unique(cloud.label)]))
    return Cloud(cloud.title, cloud.clean[kept], cloud.label[kept], cloud.attacked[:most])


def principal_components(features: np.ndarray) -> tuple[np.ndarray, str]:
    """The first two, [N, 2], and in words how much of the variance they hold."""
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    share = float((sizes[:2] ** 2).sum() / (sizes**2).sum())
    return left[:, :2] * sizes[:2], f": {100 * share:.0f} % of the variance"


def neighbours(features: np.ndarray) -> np.ndarray:
    """t-SNE, [N, 2], the same at each call. Source: van der Maaten and Hinton 2008, JMLR 9; scikit-learn's settings."""
    from sklearn.manifold import TSNE

    scaled = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    scaled /= scaled.std()  # features may be of any scale, and near 1e-16 squares vanish
    model = TSNE(perplexity=min(NEIGHBOURS, (len(features) - 1) / 3), init="pca", random_state=0, n_jobs=1)
    return model.fit_transform(scaled)


def _draw(axes: Axes, points: np.ndarray, label: np.ndarray, attacked: int) -> None:
    """The attacked images are the last points, and lie in front."""
    clean, moved = points[: len(label)], points[len(label) :]
    size = 4.0 if len(points) > 500 else 9.0
    colours = [COLOURS[k] for k in label]
    axes.scatter(clean[:, 0], clean[:, 1], s=size, c=colours, linewidths=0, alpha=0.8, rasterized=True, zorder=2)
    axes.scatter(
        moved[:, 0], moved[:, 1], s=2.5 * size, c=COLOURS[attacked], marker="^", edgecolors=INK, linewidths=0.45, rasterized=True, zorder=3
    )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.margins(0.04)


def _handles(names: Sequence[str], attacked: int) -> list[Any]:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="none", marker="o", markersize=4.5, markeredgewidth=0, color=COLOURS[k], label=name)
        for k, name in enumerate(names)
    ]
    triangle = Line2D([], [], linestyle="none", marker="^", markersize=5.5, color=COLOURS[attacked], label=f"{names[attacked]}, attacked")
    triangle.set_markeredgecolor(INK)
    triangle.set_markeredgewidth(0.6)
    return [*handles, triangle]


def _check(clouds: Sequence[Cloud], names: Sequence[str], attacked: int) -> None:
    if not clouds:
        raise LabError("features: expected one cloud or more, got none")
    if len(names) > len(COLOURS):
        raise LabError(f"features: expected at most {len(COLOURS)} classes, one for each colour, got {len(names)}")
    if not 0 <= attacked < len(names):
        raise LabError(f"features: attacked: expected a class from 0 to {len(names) - 1}, got {attacked}")
    for cloud in clouds:
        where, clean, moved, label = f"features: {cloud.title!r}", cloud.clean, cloud.attacked, cloud.label
        if clean.ndim != 2 or clean.shape[1] < 2 or len(clean) < 4 or clean.shape[1:] != moved.shape[1:] or label.shape != clean.shape[:1]:
            shapes = f"{list(clean.shape)}, {list(moved.shape)} and labels {list(label.shape)}"
            raise LabError(f"{where}: expected clean [N, F] and attacked [A, F] with labels [N], N >= 4 and F >= 2, got {shapes}")
        if outside := sorted({int(k) for k in label if not 0 <= k < len(names)}):
            raise LabError(f"{where}: expected labels from 0 to {len(names) - 1}, each with a name, got {outside[0]}")
        if not (np.isfinite(clean).all() and np.isfinite(moved).all()):
            raise LabError(f"{where}: expected finite features, got NaN or inf")
        if not np.ptp(clean, axis=0).any():
            raise LabError(f"{where}: expected images whose features differ, got one point for all {len(clean)}")
