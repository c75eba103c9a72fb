"""What is known at a smaller size of rows that wait for full size: hand-made records beside published figures."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_records
import pytest
import yaml

from robustbench_lab.errors import LabError
from robustbench_lab.tables.cells import Cell, cells_of
from robustbench_lab.tables.pages import markdown
from robustbench_lab.tables.reading import read_table, reshaped
from robustbench_lab.tables.view import View, view_of

SMALL: dict[str, Any] = {
    "title": "A small one",
    "source": "no paper",
    "profile": "quick",
    "corner": "network",
    "metric": "robust_accuracy",
    "overrides": ["backbone=mlp", "attack=fgsm"],
    "rows": [
        {"label": "thin"},
        {"label": "soft", "overrides": ["defense=label_smoothing"]},
        {"label": "softer", "overrides": ["defense=label_smoothing", "seed=7"]},
    ],
    "columns": [{"label": "clean", "metric": "clean_accuracy"}, {"label": "one | step"}, {"label": "size", "metric": "parameters"}],
    "published": {"kind": "none"},
}
ENTRY = {
    "table": "quick/small",
    "rows": {"plain": ["thin"], "LS_0.9": ["softer", "soft"]},
    "columns": {"clean": "clean", "FGSM": "one | step"},
}
PUBLISHED = {
    "kind": "exact",
    "source": "Table 9",
    "band": 10,
    "values": [[95.5, 30], [None, 41.25]],
    "quoted": [{"cells": "LS_0.9 / *", "source": "another"}],
}
SECTION = "## What is known today, at a smaller size"


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., str]:
    """`small(profile="smoke")`: SMALL with these keys changed, as the file of quick/small."""

    def write(**changed: Any) -> str:
        path = tmp_path / "table" / "quick" / "small.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(SMALL | changed))
        return "quick/small"

    return write


@pytest.fixture
def whole(written, small) -> Callable[..., str]:
    """`whole(note="...")`: the table at full size, beside whose rows those of quick/small stand, by ENTRY with these keys changed."""

    def write(**changed: Any) -> str:
        small()
        entry = {key: value for key, value in (ENTRY | changed).items() if value is not None}
        return str(written(smaller=[entry], published=PUBLISHED))

    return write


def fill(outputs: Path, name: str, row: str, clean: int, robust: int, **more: Any) -> None:
    for cell in cells_of(read_table(name), outputs):
        if cell.row == row and cell.measurements:
            fill_cell(cell, outputs, clean, robust, **more)


def fill_cell(cell: Cell, outputs: Path, clean: int, robust: int, **more: Any) -> None:
    for one in cell.measurements:
        fake_records.train(one.evaluation.run, outputs, [{"seconds": 2.0}])
        fake_records.evaluate(one.evaluation, outputs, clean, robust, **more)


def view(name: str, outputs: Path, profile: str = "paper") -> View:
    table = reshaped(read_table(name), profile)
    return view_of(table, cells_of(table, outputs), outputs)


def test_measured_models_stand_below_the_published_row_that_they_stand_in_for(whole, tmp_path):
    """Wilson by hand, z = 1.96: 8/10 -> 49.02 to 94.33; 9/10 -> 59.58 to 98.21; 5/10 -> 23.66 to 76.34."""
    name = whole(note="Soft is 0.9.")
    fill(tmp_path, "quick/small", "thin", 9, 8)
    fill(tmp_path, "quick/small", "soft", 8, 5, warnings=[{"code": "transfer_only", "message": "seen from afar"}])
    known = view(name, tmp_path).smaller
    assert known is not None
    assert known.columns == ["clean", "FGSM"]
    assert [(line.label, line.table, line.figures) for line in known.lines] == [
        ("plain", None, [("95.50", ""), ("30.00", "")]),
        ("thin", "quick/small", [("90.00", "59.58 to 98.21, n = 10"), ("80.00", "49.02 to 94.33, n = 10")]),
        ("LS_0.9", None, [None, ("41.25", "quoted")]),
        (
            "soft",
            "quick/small",
            [("80.00", "49.02 to 94.33, n = 10, transfer_only"), ("50.00", "23.66 to 76.34, n = 10, transfer_only")],
        ),
    ], "softer is not measured"
    (source,) = known.sources
    assert (source.table.name, source.rows, source.note) == ("quick/small", ["thin", "softer", "soft"], "Soft is 0.9.")
    assert (source.renamed, source.waiting, source.asked) == ([("FGSM", "one | step")], 2, 6)
    assert "±" not in known.about


def test_the_page_has_them_under_their_own_heading(whole, tmp_path):
    name = whole(note="Soft\n is <b>0.9</b>.")
    fill(tmp_path, "quick/small", "thin", 9, 8)
    page = markdown(view(name, tmp_path))
    before, _, rest = page.partition(f"\n{SECTION}\n")
    section = rest.partition("\n## The table's own figures\n\nEvery figure (")[0]
    assert "4 cells are not measured at this size yet: [what is known" in before
    rows = [[entry.strip() for entry in line.strip("|").split(" | ")] for line in section.splitlines() if line.startswith("|")]
    assert rows[0] == ["model", "table", "clean", "FGSM"]
    assert rows[2:] == [
        ["**plain**", "**published**", "95.50", "30.00"],
        ["thin", "[quick/small](../quick/small.md)", "90.00 (59.58 to 98.21, n = 10)", "80.00 (49.02 to 94.33, n = 10)"],
    ]
    assert (
        '- quick/small (thin; softer; soft): A small one. FGSM is there "one | step". Soft is &lt;b>0.9&lt;/b>. '
        "Not measured yet: 4 of these 6 figures, by `make reproduce-tables TABLES=quick/small`.\n"
    ) in section


def test_a_column_that_nothing_stands_in_for_is_left_out(whole, small, tmp_path):
    name = whole(columns={"clean": "clean", "FGSM": "PGD"})
    small(columns=[SMALL["columns"][0], {"label": "PGD", "overrides": ["attack=pgd"]}])
    fill_cell(cells_of(read_table("quick/small"), tmp_path)[0], tmp_path, 9, 8)
    known = view(name, tmp_path).smaller
    assert known is not None
    assert (known.columns, known.lines[1].figures) == (["clean"], [("90.00", "59.58 to 98.21, n = 10")])
    assert (known.sources[0].waiting, known.sources[0].asked) == (5, 6)


def test_over_seeds_the_mean_has_its_deviation(whole, small, tmp_path):
    """80 and 60 of 100: mean 70, deviation sqrt(200) = 14.14; Student's interval, of one degree of freedom, 12.706 * 10 to each side."""
    name = whole()
    small(rows=[{"label": "thin", "seeds": [0, 1]}, *SMALL["rows"][1:]])
    (cell,) = (cell for cell in cells_of(read_table("quick/small"), tmp_path) if (cell.row, cell.column) == ("thin", "one | step"))
    for one, robust in zip(cell.measurements, (80, 60), strict=True):
        fake_records.train(one.evaluation.run, tmp_path, [{"seconds": 2.0}])
        fake_records.evaluate(one.evaluation, tmp_path, 90, robust, n=100)
    known = view(name, tmp_path).smaller
    assert known is not None
    assert known.lines[1].figures[1] == ("70.00 ± 14.14", "-57.06 to 197.06, n = 100")
    assert known.about.endswith("n, the number of test images; ± the sample standard deviation over training seeds.")


def test_a_row_that_is_measured_itself_needs_nothing_in_its_place(whole, tmp_path):
    name = whole()
    fill(tmp_path, "quick/small", "thin", 9, 8)
    fill(tmp_path, "quick/small", "soft", 8, 5)
    fill(tmp_path, name, "plain", 7, 6)
    known = view(name, tmp_path).smaller
    assert known is not None
    assert [line.label for line in known.lines] == ["LS_0.9", "soft"]
    assert known.sources[0].rows == ["softer", "soft"]
    fill(tmp_path, name, "LS_0.9", 7, 6)
    whole_page = view(name, tmp_path)
    assert whole_page.smaller is None
    assert "smaller size" not in markdown(whole_page)


def test_nothing_is_said_where_nothing_is_measured_or_the_page_is_no_reproduction(whole, tmp_path):
    """A smoke run of the small table is not the small table."""
    name = whole()
    assert view(name, tmp_path).smaller is None
    for cell in cells_of(reshaped(read_table("quick/small"), "smoke"), tmp_path):
        fill_cell(cell, tmp_path, 9, 8)
    assert view(name, tmp_path).smaller is None
    fill(tmp_path, "quick/small", "thin", 9, 8)
    assert view(name, tmp_path).smaller is not None
    for profile in ("quick", "smoke"):
        assert view(name, tmp_path, profile).smaller is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"table": "quick/none"}, ".table: expected the name of another table, got 'quick/none'"),
        ({"table": "paper/grid"}, ".table: expected the name of another table, got 'paper/grid'"),
        ({"table": ["quick/small"]}, ".table: expected the name of another table, got ['quick/small']"),
        ({"rows": None}, ": missing 1 required keyword-only argument: 'rows'"),
        ({"more": 1}, ": got an unexpected keyword argument 'more'"),
        ({"rows": {"bold": ["thin"]}}, ".rows: expected rows of this table, each with what stands in for it there, got {'bold': ['thin']}"),
        ({"rows": ["thin"]}, ".rows: expected rows of this table"),
        ({"rows": {"plain": ["fat"]}}, ".rows: expected for plain a list of rows of quick/small that are run, got ['fat']"),
        ({"rows": {"plain": "thin"}}, ".rows: expected for plain a list of rows of quick/small that are run, got 'thin'"),
        ({"columns": {"PGD": "clean"}}, ".columns: expected columns of this table"),
        ({"columns": {"FGSM": "PGD"}}, ".columns: expected for FGSM a column of quick/small, got 'PGD'"),
        ({"columns": {"FGSM": ["clean"]}}, ".columns: expected for FGSM a column of quick/small, got ['clean']"),
        ({"columns": {"FGSM": "size"}}, ".columns: expected for FGSM a column in its unit, got 'size'"),
        ({"note": 3}, ".note: expected a text, got 3"),
    ],
)
def test_what_cannot_stand_in_is_named_with_its_line(whole, tmp_path, changed, message):
    name = whole(**changed)
    with pytest.raises(LabError, match=r"paper/grid.yaml:\d+: smaller\[0\]" + re.escape(message)) as told:
        read_table(name)
    line = int(re.findall(r"\.yaml:(\d+)", str(told.value))[0])
    (key,) = changed
    of_entry = changed[key] is None or key == "more"  # the fault is the whole entry's
    assert ("- " if of_entry else f"{key}:") in (tmp_path / "table" / f"{name}.yaml").read_text().splitlines()[line - 1]


def test_only_a_short_schedule_stands_in_and_only_for_full_size(whole, written, small):
    name = whole()
    small(profile="smoke")
    with pytest.raises(LabError, match=r"smaller\[0\].table: expected a table of the profile quick, got 'quick/small, of smoke'"):
        read_table(name)
    small(
        rows=[*SMALL["rows"], {"label": "x", "not_run": "why"}],
        published={"kind": "exact", "source": "s", "band": 1, "values": [[1, 1, 1]] * 4},
    )
    with pytest.raises(LabError, match=re.escape("rows of quick/small that are run, got ['x']")):
        read_table(written(smaller=[ENTRY | {"rows": {"plain": ["x"]}}]))
    small()
    with pytest.raises(LabError, match=r"grid.yaml:\d+: smaller: expected in a table of the profile paper alone; .*, got 'quick'"):
        read_table(written(smaller=[ENTRY], profile="quick"))
