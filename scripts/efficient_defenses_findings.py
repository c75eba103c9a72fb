#!/usr/bin/env python3
"""The figures in the findings on Efficient Defenses that no cell of a table shows, from the published records, as a list in Markdown.

python scripts/efficient_defenses_findings.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from robustbench_lab.config import project_path
from robustbench_lab.records import OUTCOME_FILE, PLANE_FILE, RECORD_FILE, read_json

REFERENCE = Path(project_path("outputs/reference/efficient_defenses"))


def found(table: str, name: str, attack: str = "*") -> Iterator[tuple[str, Path]]:
    """The defense, and the file of this name, of every evaluation behind a table."""
    for path in sorted((REFERENCE / table).glob(f"runs/*/evaluate/{attack}/{name}")):
        run = read_json(path.parent / RECORD_FILE)["run"]
        yield f"{run['choices']['dataset']}, {run['choices']['defense']}", path


def lines() -> Iterator[str]:
    yield "\n## figure2: the share of the plane with a probability between 0.1 and 0.9\n"
    for who, path in found("figure2", PLANE_FILE):
        probability = np.load(path)["probability"]
        yield f"- {who}: {100 * ((probability > 0.1) & (probability < 0.9)).mean():.1f} %"
    yield "\n## figure2: added points whose nearest original is of another class\n"
    for who, path in found("figure2", PLANE_FILE):
        plane = np.load(path)
        if len(plane["extra"]):
            nearest = ((plane["extra"][:, None] - plane["points"]) ** 2).sum(-1).argmin(1)
            yield f"- {who}: {100 * (plane['labels'][nearest] != plane['extra_labels']).mean():.0f} %"
    yield "\n## figure1: C&W's |x_adv - x| / |x|, image by image\n"
    for who, path in found("figure1", OUTCOME_FILE, "carlini_wagner*"):
        yield f"- {who}: {' '.join(f'{value:.3f}' for value in np.load(path)['metric.empirical_robustness'])}"
    yield "\n## figure4_fgsm_white at eps 1: images that survive, and those of them that were not moved\n"
    for who, path in found("figure4_fgsm_white", OUTCOME_FILE):
        if read_json(path.parent / RECORD_FILE)["config"]["budget"]["eps"] == 1:
            outcome = np.load(path)
            right = outcome["right"] > 0
            yield f"- {who}: {right.sum()}, {(right & (outcome['distance'] == 0)).sum()}"
    yield "\n## table3: the gradient of the loss: its mean over the right images, the wrong ones' share of the sum, exact zeros\n"
    for who, path in found("table3", OUTCOME_FILE):
        outcome = np.load(path)
        size, right = outcome["metric.loss_sensitivity"], outcome["clean"] > 0
        yield f"- {who}: {size[right].mean():.4f}, {100 * size[~right].sum() / size.sum():.0f} %, {100 * (size == 0).mean():.1f} %"
    for table in ("table2", "table3", "white_box"):
        yield f"\n## {table}: the panel, images in a hundred that are left\n"
        for who, path in found(table, RECORD_FILE):
            record = read_json(path)
            if panel := record["panel"]:
                left = ", ".join(f"{attack} {100 * share:.0f}" for attack, share in panel["accuracy"].items())
                yield f"- {who}, {record['choices']['attack']}, eps {panel['eps']:g}: {left}"


if __name__ == "__main__":
    print("# Figures in the findings that no cell shows\n")
    print("Made by `python scripts/efficient_defenses_findings.py` from the records beside it.")
    print("\n".join(lines()))
