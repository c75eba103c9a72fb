"""Tables as papers' figures: what is taken from which record, and what is left out."""

import json
import re
from dataclasses import replace
from pathlib import Path

import fake_records
import numpy as np
import pytest

from robustbench_lab.errors import LabError
from robustbench_lab.figures import curves, of_tables, pictures, planes
from robustbench_lab.intervals import wilson_interval
from robustbench_lab.jobs.tables import write
from robustbench_lab.storage.records import PLANE_FILE
from robustbench_lab.tables.cells import cells_of
from robustbench_lab.tables.reading import read_table, reshaped


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return tmp_path / "outputs"


def filled(name: str, outputs: Path, every: int = 1, profile: str = "paper"):
    """The table with every so many of its cells measured."""
    table = reshaped(read_table(name), profile)
    fake_records.fill_plausibly(cells_of(table, outputs)[::every], outputs)
    return table, cells_of(table, outputs)


def told(monkeypatch: pytest.MonkeyPatch, function: str) -> list:
    """What the drawing function is given."""
    (module,) = (module for module in (curves, pictures, planes) if hasattr(module, function))
    calls, draw = [], getattr(module, function)
    monkeypatch.setattr(module, function, lambda *words: calls.append(words) or draw(*words))
    return calls


def test_a_row_is_a_curve_and_a_missing_cell_a_gap(outputs, monkeypatch):
    table, cells = filled("efficient_defenses/figure3", outputs, every=2)
    calls = told(monkeypatch, "curves_figure")
    assert of_tables.drawn(table, cells, outputs) is not None
    (((panel,), columns, x_label, y_label, footer, _, top, _),) = calls
    assert (columns, x_label, y_label, top) == (1, table.figure["x"], "accuracy, %", 100)
    assert [series.label for series in panel.series] == [row.label for row in table.rows]
    first = [cell for cell in cells if cell.row == "CNN+ReLU"]
    assert panel.series[0].x[:4] == [0, 0.01, 0.02, 0.05]
    assert panel.series[0].y == [cell.value for cell in first]
    assert panel.series[0].y[1] is None
    assert panel.series[0].low[0] == pytest.approx(first[0].interval[0])
    assert "n = 10,000 test images" in footer
    assert "NOT A REPRODUCTION" not in footer


def test_an_axis_is_logarithmic_where_the_table_says_so(outputs, monkeypatch):
    table, cells = filled("efficient_defenses/figure3", outputs)
    calls = told(monkeypatch, "curves_figure")
    of_tables.drawn(replace(table, figure={**table.figure, "scale": "log"}), cells, outputs)
    of_tables.drawn(table, cells, outputs)
    assert [call[5] for call in calls] == [True, False]


def test_a_figure_of_a_smaller_profile_says_so(outputs, monkeypatch):
    table, cells = filled("efficient_defenses/figure3", outputs, profile="smoke")
    calls = told(monkeypatch, "curves_figure")
    of_tables.drawn(table, cells, outputs)
    assert "PROFILE SMOKE: NOT A REPRODUCTION" in calls[0][4]


def test_strips_show_what_each_attack_made_of_the_same_images(outputs, monkeypatch):
    table, cells = filled("efficient_defenses/figure1", outputs)
    calls = told(monkeypatch, "strips_figure")
    of_tables.drawn(table, cells, outputs)
    clean, *groups = calls[0][0]
    assert (clean.rows[0].marked, clean.rows[0].captions) == (True, ["0", "1", "2", "3", "4", "5"])
    assert [group.heading for group in groups] == [row.label for row in table.rows]
    assert [row.label for row in groups[0].rows] == ["CNN", "GDA+ReLU", "GDA+BReLU"]
    strip = groups[0].rows[0]
    x = clean.rows[0].images.astype(int)
    assert strip.images[0, 0, 0, 0] == x[0, 0, 0, 0] + 64, "0.25 of 255, rounded"
    assert strip.images[0, 0, -1, -1] == x[0, 0, -1, -1] - 32
    assert (strip.images[1] == x[1]).all()
    size = np.sqrt(0.25**2 + 0.125**2) / np.linalg.norm(x[0] / 255)
    assert strip.captions[:2] == [f"0 → 1 {size:.2f}", "1 → 1 0.00"]


def test_strips_of_other_images_are_an_error(outputs):
    table, cells = filled("efficient_defenses/figure1", outputs)
    path = cells[4].evaluation.folder(outputs) / "examples.npz"
    arrays = dict(np.load(path))
    np.savez(path, **(arrays | {"index": arrays["index"] + 1}))
    with pytest.raises(LabError, match="the cells show other images than each other"):
        of_tables.drawn(table, cells, outputs)


def draw_plane(folder: Path, added: int) -> None:
    points = np.random.default_rng(0).uniform(size=(20, 2)).astype(np.float32)
    labels = np.arange(20) % 2
    probability = np.tile(np.linspace(0, 1, 11, dtype=np.float32), (11, 1))
    extra = {"extra": points[:added], "extra_labels": labels[:added]}
    np.savez(folder / PLANE_FILE, probability=probability, points=points, labels=labels, **extra)


def test_planes_are_those_of_models_that_every_problem_has(outputs, monkeypatch):
    table, cells = filled("efficient_defenses/figure2", outputs)
    calls = told(monkeypatch, "planes_figure")
    assert of_tables.drawn(table, cells, outputs) is None, "records of other images than points"
    for cell in cells[:-1]:
        draw_plane(cell.evaluation.folder(outputs), 0 if cell.row == "none" else 5)
    assert of_tables.drawn(table, cells, outputs) is not None
    ((problems, shown, _, _),) = calls
    assert [label for label, _ in problems] == ["circles", "moons"]
    assert shown == ["none", "FGSM", "VAT", "JSMA", "uniform"], "Gaussian lacks moons"
    assert problems[0][1][0].added is None
    assert len(problems[0][1][1].added.y) == 5


def test_the_figure_stands_beside_the_table(outputs):
    table, cells = filled("efficient_defenses/figure3", outputs)
    path = write(table, cells, outputs)
    assert f"![{table.title}](figure3.png)" in path.read_text()
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert path.with_suffix(".svg").read_text().startswith("<?xml")


def test_a_figure_that_fails_stops_no_table(outputs, caplog):
    table, cells = filled("efficient_defenses/figure1", outputs)
    path = write(table, cells, outputs)
    assert path.with_suffix(".png").exists()
    np.savez(cells[0].evaluation.folder(outputs) / "examples.npz", x=np.zeros(3))
    path = write(table, cells, outputs)
    assert "has no figure" in caplog.text
    assert "it lacks clean_prediction, delta, index, label, prediction" in caplog.text
    assert not path.with_suffix(".png").exists(), "one of earlier records does not stay"
    assert "figure1.png" not in path.read_text()


def test_a_curve_may_touch_the_ends_of_the_axis(outputs):
    table = read_table("efficient_defenses/figure3")
    for cell, robust in zip(cells_of(table, outputs)[1:3], (0, 360), strict=True):
        low, high = wilson_interval(robust, 360)
        fake_records.train(cell.evaluation.run, outputs)
        off = [max(low, 2.7e-20), min(high, 0.99999999999999)]  # as older records have it
        fake_records.evaluate(cell.evaluation, outputs, 360, robust, 360, robust_interval=off)
    assert [cell.value for cell in cells_of(table, outputs)[1:3]] == [0, 100]
    assert of_tables.drawn(table, cells_of(table, outputs), outputs) is not None


def test_nothing_measured_is_nothing_drawn(outputs):
    table = read_table("efficient_defenses/figure3")
    path = write(table, cells_of(table, outputs), outputs)
    assert not path.with_suffix(".png").exists()
    assert "figure3.png" not in path.read_text()


def test_the_report_draws_the_figure_once_shows_it_and_names_a_damaged_file(outputs, monkeypatch):
    from robustbench_lab.report import pictures
    from robustbench_lab.report.page import write_report

    drawings = []
    monkeypatch.setattr(pictures, "drawn", lambda *of: drawings.append(of) or of_tables.drawn(*of))
    _, cells = filled("efficient_defenses/figure1", outputs)
    for _ in range(2):
        page = write_report(outputs, ["efficient_defenses/figure1"]).read_text()
        (address,) = re.findall(r'<figure class="paper-figure"><img src="(pictures/[\w-]+\.png)"', page)
        assert (outputs / "report" / address).read_bytes().startswith(b"\x89PNG")
    assert len(drawings) == 1
    (cells[0].evaluation.folder(outputs) / "examples.npz").write_bytes(b"damaged")
    page = write_report(outputs, ["efficient_defenses/figure1"]).read_text()
    assert '<figure class="paper-figure">' not in page
    assert "figure of efficient_defenses/figure1" in page
    assert json.dumps("examples.npz").strip('"') in page


def test_a_kind_is_a_file_of_its_own(outputs, monkeypatch, tmp_path):
    """A class, and a choice that names it: table, profile, drawing and the files that are published take it, and no other file knows it."""
    from robustbench_lab.tables import drawing

    class Dots(drawing.TableFigure):
        files = ("dots.npz",)
        thinned = True

        def __init__(self, colour: str, size: int) -> None:
            object.__setattr__(self, "said", (colour, size))

        def check(self, table, path):
            if self.said[1] < 1:
                raise LabError(f"{path}: figure.size: too small")

        def draw(self, table, cells, output_root):
            return self.said

    curved = read_table("efficient_defenses/figure3")
    conf = tmp_path / "conf" / "figure"
    conf.mkdir(parents=True)
    (conf / "dots.yaml").write_text("_target_: robustbench_lab.figures.curves.Dots\nsize: 3\n")
    monkeypatch.setattr(drawing, "choice_file", lambda group, choice: conf / f"{choice}.yaml")
    monkeypatch.setattr(drawing, "choices", lambda group: ["dots"])
    monkeypatch.setattr(curves, "Dots", Dots, raising=False)
    Dots.__module__ = curves.__name__  # where its file would be
    assert drawing.figure_kinds() == ["dots"]
    table = replace(curved, figure={"kind": "dots", "colour": "red"})
    fake_records.fill_plausibly(cells_of(table, outputs)[:1], outputs)
    cells = cells_of(table, outputs)
    assert of_tables.drawn(table, cells, outputs) == ("red", 3)
    assert (len(table.columns) > 2, len(reshaped(table, "smoke").columns)) == (True, 2)
    assert drawing.kind_of(table.figure).files == ("dots.npz",)
    with pytest.raises(LabError, match=r"figure: expected for dots kind, colour, perhaps size, got \['kind', 'size'\]"):
        drawing.kind_of({"kind": "dots", "size": 2})


def test_every_kind_says_what_it_is_drawn_from():
    from robustbench_lab.tables.drawing import figure_kinds, kind_of

    keys = {"curves": {"x": "eps"}, "features": {"attacked": 0}}
    files = {kind: tuple(kind_of({"kind": kind, **keys.get(kind, {})}).files) for kind in figure_kinds()}
    assert files == {
        "curves": (),
        "features": ("features.npz",),
        "pictures": ("examples.npz", "defended_images.npz"),
        "planes": ("plane.npz",),
        "scatter": (),
    }
