"""A table's view is plain data, and what a text becomes in Markdown and LaTeX."""

import shlex
from pathlib import Path
from types import SimpleNamespace

import fake_records
import pytest

from robustbench_lab.settings.overrides import parsed
from robustbench_lab.tables.cells import cells_of
from robustbench_lab.tables.letters import first_of_line, md, tex
from robustbench_lab.tables.pages import aligned, grid
from robustbench_lab.tables.reading import read_table, reshaped
from robustbench_lab.tables.view import View, command_of, view_of


@pytest.fixture
def view(written, tmp_path: Path) -> View:
    """9 and 8 of 10 in the first row, nothing in the second."""
    table = read_table(written(findings=["FGSM leaves\n {ours: plain / FGSM}."]))
    evaluation = cells_of(table, tmp_path)[1].evaluation
    assert evaluation is not None
    fake_records.train(evaluation.run, tmp_path, [{"seconds": 9.0, "images_per_second": 1.0}, {"seconds": 2.5, "images_per_second": 40.0}])
    seen = [{"code": "transfer_only", "message": "seen | from afar"}, {"code": "collapsed", "message": ""}]
    fake_records.evaluate(evaluation, tmp_path, 9, 8, warnings=seen)
    return view_of(table, cells_of(table, tmp_path), tmp_path)


def test_a_cell_is_told_in_text(view):
    clean, fgsm = view.rows[0].cells
    assert (clean.ours, clean.interval, clean.n, clean.published, clean.difference) == ("90.00", ("59.58", "98.21"), 10, "95.50", "-5.50")
    assert (fgsm.metric, fgsm.verdict, fgsm.compared, fgsm.marks) == ("robust accuracy, %", "differs", True, ["a", "b"])
    assert fgsm.warnings == "transfer_only collapsed"
    assert (fgsm.commands, fgsm.missing) == ([], False)


def test_a_missing_cell_has_no_figure_and_the_commands_that_fill_it(view):
    missing, _ = view.missing
    assert (missing.name, missing.ours, missing.interval, missing.n, missing.published) == ("LS_0.9 / clean", None, None, None, None)
    train, evaluate = missing.commands
    assert train == "python -m robustbench_lab train backbone=small_cnn defense=label_smoothing"
    assert evaluate.startswith("python -m robustbench_lab evaluate ")


def test_footnotes_say_of_which_cells(view):
    collapsed, transfer = view.footnotes
    assert (collapsed.letter, collapsed.code, collapsed.messages[0].text) == ("a", "collapsed", "no message")
    (message,) = transfer.messages
    assert (message.text, message.cells, message.everywhere) == ("seen | from afar", ["plain / clean", "plain / FGSM"], True)


def test_what_is_said_of_the_whole(view):
    assert (view.title, view.head, view.sizes) == ("A table of 2 x 2 & more", ["defense", "clean", "FGSM"], [10])
    assert view.command == "make reproduce-tables TABLES=paper/grid"
    assert view.banner is None
    assert view.findings == ["FGSM leaves 80.00."]
    assert view.bands == "at most 10 points apart"
    assert view.facts["device"] == "a device"
    (run,) = view.trainings
    assert (run.epochs, run.seconds_per_epoch, run.images_per_second, run.commit) == ("2", "2.5", "40", "0123456789ab")


def test_a_profile_that_reproduces_nothing_has_a_banner_and_another_command(written, tmp_path):
    table = reshaped(read_table(written(findings=["x"], deviations=["y"])), "smoke")
    view = view_of(table, cells_of(table, tmp_path), tmp_path)
    assert view.banner == "SMOKE: NOT A REPRODUCTION"
    assert view.command == "make reproduce-tables TABLES=paper/grid PROFILE=smoke"
    assert (view.findings, view.deviations, view.published, view.compares) == ([], [], None, False)
    assert (view.facts, view.trainings) == ({}, [])


def test_the_grid_alone(view):
    assert grid(view).splitlines() == [
        "| defense | clean                     | FGSM                      |",
        "|---------|---------------------------|---------------------------|",
        "| plain   | 90.00 (paper 95.50) [a,b] | 80.00 (paper 30.00) [a,b] |",
        "| LS_0.9  | -                         | - (paper 41.25)           |",
    ]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("| a | bb |\n| ccc | d |\n", "| a   | bb |\n|-----|----|\n| ccc | d  |\n"),
        ("| a | b |\n|  | 2 |", "| a | b |\n|---|---|\n|   | 2 |\n"),
        (f"| {md('a | b')} | c |\n| 1 | 2 |", "| a \\| b | c |\n|--------|---|\n| 1      | 2 |\n"),
    ],
)
def test_columns_are_as_wide_as_their_widest_cell(lines, expected):
    assert aligned(lines) == expected


def test_the_command_that_makes_a_table_can_be_pasted():
    """make takes a space for the end of a name."""
    plain, odd = (SimpleNamespace(name=name, reshaped=True, profile="quick") for name in ("paper/grid", "my paper/it's"))
    assert command_of(plain) == "make reproduce-tables TABLES=paper/grid PROFILE=quick"
    *start, tables, profile = shlex.split(command_of(odd))
    assert (" ".join(start), profile) == ("python -m robustbench_lab reproduce", "profile=quick")
    assert parsed(tables).value() == [odd.name]


def test_latex_takes_every_text_for_itself():
    assert tex(r"a\b~c^d±e&f%g_h#i$j{k}") == (r"a\textbackslash{}b\textasciitilde{}c\textasciicircum{}d$\pm$e\&f\%g\_h\#i\$j\{k\}")
    assert [first_of_line(text) for text in ("[1]", "* 2", "a [1]")] == ["{}[1]", "{}* 2", "a [1]"]
