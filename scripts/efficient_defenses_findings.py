#!/usr/bin/env python3
"""The figures in the findings on Efficient Defenses that no cell of a table shows, from the published records, as a list in Markdown.

python scripts/efficient_defenses_findings.py
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from robustbench_lab.settings.conf import project_path
from robustbench_lab.storage.folders import EvaluationFolder, RunFolder
from robustbench_lab.storage.records import OUTCOME_FILE, PLANE_FILE
from robustbench_lab.tables.cells import cells_of
from robustbench_lab.tables.reading import read_table

REFERENCE = Path(project_path("outputs/reference"))
Arrays = Mapping[str, np.ndarray]


class Found(NamedTuple):
    """One of a table's evaluations: whose, its record, and its folder."""

    who: str
    record: Mapping[str, Any]
    folder: EvaluationFolder
    run: RunFolder


@cache
def behind(table: str) -> list[Found]:
    """The evaluations of a table of Efficient Defenses, each once, by the names of their folders."""
    found = {}
    for one in (one for cell in cells_of(read_table(f"efficient_defenses/{table}"), REFERENCE) for one in cell.measurements):
        run = one.evaluation.run.at(REFERENCE)
        folder = one.evaluation.within(run)
        choices = one.evaluation.run.choices
        found[run.name, folder.name] = Found(f"{choices['dataset']}, {choices['defense']}", folder.read(), folder, run)
    return [found[names] for names in sorted(found)]


def arrays_of(table: str, file: str, attack: str = "*") -> Iterator[tuple[Found, Arrays]]:
    """The evaluations whose names fit, with the arrays of a file of theirs."""
    for one in behind(table):
        if fnmatchcase(one.folder.name, attack) and (arrays := one.folder.arrays(file)) is not None:
            yield one, arrays


def wrong(probability: np.ndarray, points: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which points [N, 2] a model of the plane gives another class than their label, read at the nearest point of its grid."""
    column, row = np.rint(points * (len(probability) - 1)).astype(int).T
    return np.asarray((probability[row, column] > 0.5) != labels)


def costs(table: str) -> Iterator[str]:
    """What training took, and what it would have taken had every epoch been as fast as the median one of the table's page."""
    took = {}
    for one in behind(table):
        epochs = one.run.epochs()
        images = round(epochs[0]["seconds"] * epochs[0]["images_per_second"])
        even = len(epochs) * float(np.median([epoch["seconds"] for epoch in epochs[1:]]))
        took[one.who] = (len(epochs), images, one.run.record["seconds"], even)
    undefended = next(values for who, values in took.items() if who.endswith(", standard"))
    for who, (count, images, seconds, even) in took.items():
        times = f"{seconds / undefended[2]:.1f} times", f"{even / undefended[3]:.1f} times"
        yield f"- {who}: {count} epochs of {images} images; {seconds:.0f} s, {times[0]}; {even:.0f} s, {times[1]}"


def of_the_same_images(table: str, attack: str, of: tuple[str, ...] = ("*",)) -> Iterator[str]:
    """Eq. 2 and the distance of these defenses (globs), over the images that count for all of them."""
    every = arrays_of(table, OUTCOME_FILE, attack)
    rows = {one.who: outcome for one, outcome in every if any(fnmatchcase(one.who, f"*, {name}") for name in of)}
    shared = np.logical_and.reduce([np.isfinite(outcome["metric.empirical_robustness"]) for outcome in rows.values()])
    for who, outcome in rows.items():
        robustness, distance = (outcome[f"metric.{name}"][shared].mean() for name in ("empirical_robustness", "training_set_distance"))
        yield f"- {who}: {robustness:.4f}, {distance:.3f} (n = {shared.sum()})"


def lines() -> Iterator[str]:
    yield "\n## figure2: the share of the plane with a probability between 0.1 and 0.9\n"
    for one, plane in arrays_of("figure2", PLANE_FILE):
        probability = plane["probability"]
        yield f"- {one.who}: {100 * ((probability > 0.1) & (probability < 0.9)).mean():.1f} %"
    yield "\n## figure2: added points whose nearest original is of another class\n"
    for one, plane in arrays_of("figure2", PLANE_FILE):
        if len(plane["extra"]):
            nearest = ((plane["extra"][:, None] - plane["points"]) ** 2).sum(-1).argmin(1)
            yield f"- {one.who}: {100 * (plane['labels'][nearest] != plane['extra_labels']).mean():.0f} %"
    yield "\n## figure2: added points that the undefended network has wrong\n"
    planes = {one.who: plane for one, plane in arrays_of("figure2", PLANE_FILE)}
    for who, plane in planes.items():
        if len(plane["extra"]):
            undefended = planes[f"{who.split(', ')[0]}, standard"]["probability"]
            yield f"- {who}: {100 * wrong(undefended, plane['extra'], plane['extra_labels']).mean():.0f} %"
    yield "\n## figure1: C&W's |x_adv - x| / |x|, image by image\n"
    for one, outcome in arrays_of("figure1", OUTCOME_FILE, "carlini_wagner*"):
        yield f"- {one.who}: {' '.join(f'{value:.3f}' for value in outcome['metric.empirical_robustness'])}"
    yield "\n## figure4_fgsm_white at eps 1: images that survive, and those of them that were not moved\n"
    for one, outcome in arrays_of("figure4_fgsm_white", OUTCOME_FILE):
        if one.record["config"]["budget"]["eps"] == 1:
            right = outcome["right"] > 0
            yield f"- {one.who}: {right.sum()}, {(right & (outcome['distance'] == 0)).sum()}"
    yield "\n## table2: training: its seconds, beside the undefended run's; the same, had every epoch been as fast as the median one\n"
    yield from costs("table2")
    yield "\n## table2, corrected: Eq. 2 and the distance in l2 over the same images\n"
    yield from of_the_same_images("table2", "minimal_fgsm-*")
    yield "\n## table2, corrected: the same for these two rows alone\n"
    yield from of_the_same_images("table2", "minimal_fgsm-*", of=("feature_squeezing", "gda_bounded_relu"))
    yield "\n## table3: the gradient of the loss: its mean over the right images, the wrong ones' share of the sum, exact zeros\n"
    for one, outcome in arrays_of("table3", OUTCOME_FILE):
        size, right = outcome["metric.loss_sensitivity"], outcome["clean"] > 0
        yield f"- {one.who}: {size[right].mean():.4f}, {100 * size[~right].sum() / size.sum():.0f} %, {100 * (size == 0).mean():.1f} %"
    yield "\n## vat_as_published: how far VAT at l2 2.1 moves the right images: mean, median, share moved by less than 0.5\n"
    for one, outcome in arrays_of("vat_as_published", OUTCOME_FILE, "vat*"):
        moved = outcome["distance"][np.isfinite(outcome["distance"])]
        yield f"- {one.who}, {one.record['choices']['attack']}: {moved.mean():.2f}, {np.median(moved):.4f}, {100 * (moved < 0.5).mean():.0f} %"
    for table in ("table2", "table3", "white_box"):
        yield f"\n## {table}: the panel, images in a hundred that are left\n"
        for one in behind(table):
            if panel := one.record["panel"]:
                left = ", ".join(f"{attack} {100 * share:.0f}" for attack, share in panel["accuracy"].items())
                yield f"- {one.who}, {one.record['choices']['attack']}, eps {panel['eps']:g}: {left}"


if __name__ == "__main__":
    print("# Figures in the findings that no cell shows\n")
    print("Made by `python scripts/efficient_defenses_findings.py` from the records beside it.")
    print("\n".join(lines()))
