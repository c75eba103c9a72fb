"""Tables as scatter plots, and as curves of another metric than accuracy: from cells to page and report, and what is refused."""

import re
from typing import Any

import fake_records
import pytest

from robustbench_lab.errors import LabError
from robustbench_lab.figures import curves, of_tables, scatter
from robustbench_lab.jobs.tables import write
from robustbench_lab.report.page import write_report
from robustbench_lab.tables.cells import cells_of
from robustbench_lab.tables.reading import read_table

RHO = ["attack=deepfool_deep_defense", "attack.labels=predicted", "budget=box", "attack_misclassified=true", "metric=[rho2_as_published]"]
LABELS = ["Reference", "lambda 15, c 5", "lambda 15, c 25", "lambda 5, c 5", "smoothed"]
SCATTER: dict[str, Any] = {
    "overrides": ["dataset=digits", "backbone=small_resnet", "training=digits", *RHO],
    "rows": [{"label": label, "overrides": [f"seed={i}"]} for i, label in enumerate(LABELS)],
    "columns": [{"label": "rho2", "metric": "metrics.rho2_as_published"}, {"label": "accuracy", "metric": "clean_accuracy"}],
    "published": {"kind": "none"}, "claims": [], "exceptions": [], "figure": {"kind": "scatter"},
}  # fmt: skip


def fill(cells, outputs, clean: dict[str, int]) -> None:
    """Of each row here, the images right when clean; of a hundred, all broken: rho2 .25."""
    for cell in cells:
        if cell.row in clean:
            fake_records.train(cell.evaluation.run, outputs)
            fake_records.evaluate(cell.evaluation, outputs, clean[cell.row], 0, 100)


def test_rows_alike_up_to_the_last_comma_are_a_curve(written, tmp_path, monkeypatch):
    drawn, draw = [], scatter.scatter_figure
    monkeypatch.setattr(scatter, "scatter_figure", lambda *words: drawn.append(words) or draw(*words))
    name = written(**SCATTER)
    assert of_tables.drawn(read_table(name), cells_of(read_table(name), tmp_path), tmp_path) is None
    fill(cells_of(read_table(name), tmp_path), tmp_path, {"Reference": 99, "lambda 15, c 5": 97, "lambda 15, c 25": 98})
    assert of_tables.drawn(read_table(name), cells_of(read_table(name), tmp_path), tmp_path) is not None
    ((title, shown, x_label, y_label, footer),) = drawn
    assert {label: [(point.x, point.y) for point in points] for label, points in shown.items()} == {
        "Reference": [(0.25, 99)], "lambda 15": [(0.25, 97), (0.25, 98)], "lambda 5": [], "smoothed": [],
    }  # fmt: skip
    assert shown["Reference"][0].x_interval == (0.2, 0.3)
    assert (title, x_label, y_label) == ("A table of 2 x 2 & more", "rho2 as published", "clean accuracy, %")
    assert "n = 100 test images" in footer


def test_the_commas_group() -> None:
    assert [scatter.group_of(label) for label in ("lambda 15, c 25", "a, b, c", "Adv. Train I", "d = 5,c 3")] == [
        "lambda 15", "a, b", "Adv. Train I", "d = 5",
    ]  # fmt: skip


def test_page_and_report_have_it(written, tmp_path):
    name = written(**SCATTER)
    fill(cells_of(read_table(name), tmp_path), tmp_path, dict.fromkeys(LABELS, 97))
    page = write(read_table(name), cells_of(read_table(name), tmp_path), tmp_path)
    assert "(grid.png)" in page.read_text()
    assert page.with_suffix(".svg").exists()
    report = write_report(tmp_path, [name]).read_text()
    assert re.search(r'<figure class="paper-figure"><img src="pictures/[\w-]+\.png"', report)


def test_curves_of_rho2_by_epoch(written, tmp_path, monkeypatch):
    drawn, draw = [], curves.curves_figure
    monkeypatch.setattr(curves, "curves_figure", lambda *words: drawn.append(words) or draw(*words))
    columns = [{"label": str(epochs), "overrides": [f"training.epochs={epochs}"]} for epochs in (1, 2)]
    name = written(**SCATTER | {
        "metric": "metrics.rho2_as_published", "columns": columns, "rows": SCATTER["rows"][:2], "figure": {"kind": "curves", "x": "epochs"},
    })  # fmt: skip
    fill(cells_of(read_table(name), tmp_path), tmp_path, {"Reference": 99})
    assert of_tables.drawn(read_table(name), cells_of(read_table(name), tmp_path), tmp_path) is not None
    ((panels, _, x_label, y_label, _, _, top, _),) = drawn
    assert (x_label, y_label, top) == ("epochs", "rho2 as published", None)
    first, second = panels[0].series
    assert (first.y, first.low, first.high) == ([0.25, 0.25], [0.2, 0.2], [0.3, 0.3])
    assert second.y == [None, None]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"columns": SCATTER["columns"][:1]}, r"columns: expected two, x and y, for a scatter plot, got \['rho2'\]"),
        ({"rows": [{"label": f"{i}"} for i in range(10)]}, "rows: expected at most 9 curves and single points"),
        ({"figure": {"kind": "scatter", "x": "rho2"}}, "figure: expected for scatter kind, got"),
        ({"columns": [{**column, "label": str(i)} for i, column in enumerate(SCATTER["columns"])],
          "figure": {"kind": "curves", "x": "epochs"}}, "columns: expected accuracies, or one metric in all of them, for a"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn(written, changed, message):
    with pytest.raises(LabError, match=message):
        read_table(written(**SCATTER | changed))
