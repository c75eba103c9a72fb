"""The few cells that stand for all: nothing is left out, little is taken, and always the same."""

import re
from pathlib import Path

import pytest

from robustbench_lab.settings.conf import choices
from robustbench_lab.settings.overrides import parsed
from robustbench_lab.tables.cells import Cell, cells_of, filled
from robustbench_lab.tables.covering import covering
from robustbench_lab.tables.grid import Table
from robustbench_lab.tables.planning import plan_of
from robustbench_lab.tables.reading import chosen_tables, read_table


@pytest.fixture(scope="module")
def smoke() -> list[tuple[Table, list[Cell]]]:
    return filled(chosen_tables([], "smoke"), Path("nothing"))


def asked_for(cells: list[Cell]) -> set[str]:
    """In words: every choice that a cell's words name or its evaluation has by default, its metric, and its flags."""
    found = set()
    for cell in cells:
        evaluation = cell.evaluation
        if evaluation is None:
            continue
        found.add(f"metric {cell.metric}")
        found |= {f"{group}={choice}" for group, choice in evaluation.choices.items()}
        for run in [*cell.runs, *(run.teacher for run in cell.runs if run.teacher is not None)]:
            found |= {f"{group}={choice}" for group, choice in run.choices.items() if "." not in group}
        for word in (word for one in cell.measurements for word in one.overrides):
            if choices(parsed(word).key_or_group) and not word.startswith("metric="):
                value = parsed(word).value()
                found |= {f"{parsed(word).key_or_group}={choice}" for choice in (value if isinstance(value, list) else [value])}
            found |= set(re.findall(r"keep\w*|test_first|attack_misclassified|without_noise|panel=\w+", word))
        found |= {f"metric={name}" for name in evaluation.config.get("metric", {})}
    return {word for word in found if not word.startswith("profile=")}


def test_everything_that_some_cell_has_one_of_the_few_has(smoke):
    few = covering(smoke)
    every, covered = (
        asked_for([cell for _, cells in smoke for cell in cells]),
        asked_for([cell for cells in few.values() for cell in cells]),
    )
    assert {"defense=adv_bnn", "attack=autoattack", "threat_model=gray_twin", "metric=loss_sensitivity", "dataset=moons"} <= every
    assert covered == every


def test_every_table_has_a_cell_and_each_kind_of_figure_a_row(smoke):
    few = covering(smoke)
    assert all(few[table.name] for table, cells in smoke if any(cell.evaluation for cell in cells))
    kinds, drawn = set(), set()
    for table, cells in smoke:
        if table.figure:
            kinds.add(table.figure["kind"])
        for row in {cell.row for cell in cells if table.figure and cell.evaluation is not None}:
            whole = [cell for cell in cells if cell.row == row]
            if whole == [cell for cell in few[table.name] if cell.row == row]:
                drawn.add(table.figure["kind"])
    assert drawn == kinds >= {"curves", "pictures", "planes", "features"}


def test_they_are_few_and_always_the_same(smoke):
    few, whole = covering(smoke), plan_of([cell for _, cells in smoke for cell in cells], Path("nothing"))
    plan = plan_of([cell for cells in few.values() for cell in cells], Path("nothing"))
    assert len(plan.runs) < 0.6 * len(whole.runs)
    assert len(plan.evaluations) < 0.15 * len(whole.evaluations)
    again = covering(filled(chosen_tables([], "smoke"), Path("nothing")))
    assert {name: [cell.name for cell in cells] for name, cells in again.items()} == {
        name: [cell.name for cell in cells] for name, cells in few.items()
    }


def test_none_is_needless(smoke):
    few = covering(smoke)
    rows = {table.name for table, _ in smoke if table.figure}  # theirs are taken a row at a time
    left = {cell.name: (name, cell) for name, cells in few.items() for cell in cells if name not in rows and len(cells) > 1}
    every = [cell for cells in few.values() for cell in cells]
    for name, cell in left.values():
        assert asked_for([other for other in every if other is not cell]) != asked_for(every), f"{name}: {cell.name} adds nothing"


def test_the_cheaper_of_two_alike_is_taken_and_what_is_trained_is_used_again(written, tmp_path):
    """Two networks and two attacks: PGD comes from the row that is trained anyway, and the longer attack of one name is not taken."""
    rows = [
        {"label": "plain"},
        {"label": "smooth", "overrides": ["defense=label_smoothing"]},
        {"label": "long", "overrides": ["defense=label_smoothing", "training.epochs=500"]},
    ]
    columns = [
        {"label": "FGSM", "overrides": ["attack=fgsm"]},
        {"label": "PGD", "overrides": ["attack=pgd", "attack.steps=9000"]},
        {"label": "short", "overrides": ["attack=pgd", "attack.steps=2"]},
    ]
    table = read_table(written(rows=rows, columns=columns, published={"kind": "none"}, exceptions=[]))
    cells = cells_of(table, tmp_path)
    few = covering([(table, cells)])[table.name]
    assert {cell.row for cell in few} == {"plain", "smooth"}
    assert {cell.column for cell in few} == {"FGSM", "short"}
    assert len(few) == 2


def test_a_run_that_others_need_costs_nothing_more(written, tmp_path):
    """MIM is there with eight epochs alone; PGD then comes from the same run, though seven epochs are fewer."""
    rows = [{"label": str(epochs), "overrides": [f"training.epochs={epochs}"]} for epochs in (7, 8)]
    columns = [{"label": "A", "overrides": ["attack=pgd"]}, {"label": "B", "overrides": ["attack=pgd"]}]
    exceptions = [{"row": "8", "column": "B", "overrides": ["attack=mim", "attack_misclassified=true"]}]
    table = read_table(written(rows=rows, columns=columns, published={"kind": "none"}, exceptions=exceptions))
    few = covering([(table, cells_of(table, tmp_path))])[table.name]
    assert [cell.name for cell in few] == ["8 / A", "8 / B"]
