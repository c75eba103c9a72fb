"""Rows that are not run, in a figure of curves: published points, and nothing where a profile leaves none."""

import fake_records

from robustbench_lab.figures import curves, of_tables
from robustbench_lab.tables.cells import cells_of
from robustbench_lab.tables.reading import read_table, reshaped

CURVES = {
    "rows": [{"label": "plain"}, {"label": "RoCL", "not_run": "we do not have it"}],
    "columns": [{"label": label, "overrides": [f"budget.eps={label}"]} for label in ("0.1", "0.2", "0.3")],
    "published": {"kind": "exact", "source": "Figure 5", "band": 5, "values": [[None, None, None], [30, None, "20.5 ± 0.1"]]},
    "figure": {"kind": "curves", "x": "eps"}, "claims": [], "exceptions": [],
}  # fmt: skip


def test_a_row_that_is_not_run_is_drawn_as_its_published_points(written, tmp_path, monkeypatch):
    drawn, draw = [], curves.curves_figure
    monkeypatch.setattr(curves, "curves_figure", lambda panels, *more: drawn.append(panels) or draw(panels, *more))
    name = written(**CURVES)
    for profile in ("paper", "smoke"):
        table = reshaped(read_table(name), profile)
        fake_records.fill_plausibly(cells_of(table, tmp_path), tmp_path)
        assert of_tables.drawn(table, cells_of(table, tmp_path), tmp_path) is not None
    ((paper,), (smoke,)) = drawn
    assert [series.label for series in paper.series] == ["plain", "RoCL"]
    assert (paper.series[1].y, paper.series[1].published) == ([None] * 3, [(0.1, 30), (0.3, 20.5)])
    assert [series.label for series in smoke.series] == ["plain"]
