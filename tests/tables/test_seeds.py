"""Cells over several training seeds: each seed an evaluation of its own, one figure over all, and what it is compared with."""

import csv
import re
from pathlib import Path
from typing import Any

import fake_records
import pytest

from robustbench_lab.errors import LabError
from robustbench_lab.jobs.tables import write
from robustbench_lab.tables.cells import Cell, cells_of
from robustbench_lab.tables.planning import plan_of
from robustbench_lab.tables.reading import read_table, reshaped
from robustbench_lab.tables.verdicts import claims_of
from robustbench_lab.tables.view import view_of

SEEDS: dict[str, Any] = {"seeds": [0, 1, 2], "claims": []}


def fill(cell: Cell, outputs: Path, *robust: int, n: int = 100) -> None:
    """The cell's first evaluations, with as many images right as these."""
    for measurement, right in zip(cell.measurements, robust, strict=False):
        for run in measurement.runs:
            fake_records.train(run, outputs)
        fake_records.evaluate(measurement.evaluation, outputs, 95, right, n)


def seeds_in(table: Any) -> dict[str, list[str]]:
    """Of each cell, the words about seeds."""
    found: dict[str, list[str]] = {}
    for row, column, words in table.words():
        found.setdefault(f"{row.label} / {column.label}", []).extend(word for word in words if word.startswith("seed="))
    return found


def test_each_seed_is_an_evaluation_of_a_run_of_its_own(written, tmp_path):
    cells = cells_of(read_table(written(**SEEDS)), tmp_path)
    runs = [[measurement.evaluation.run for measurement in cell.measurements] for cell in cells]
    assert [[run.config["seed"] for run in of_cell] for of_cell in runs] == [[0, 1, 2]] * 4
    assert len({run.fingerprint for of_cell in runs for run in of_cell}) == 6, "two rows of three seeds"
    assert cells[0].seeds == [0, 1, 2]


def test_the_figure_is_the_mean_over_the_seeds(written, tmp_path):
    """70, 74 and 78 of 100: mean 74, deviation 4; t(2, .975) x 4 / root 3 = 9.94. Published 82, band 10: 8 points apart."""
    name = written(**SEEDS, published={"kind": "exact", "source": "x", "band": 10, "values": [[None, 82], [None, None]]})
    fill(cells_of(read_table(name), tmp_path)[1], tmp_path, 70, 74, 78)
    table = read_table(name)
    cells = cells_of(table, tmp_path)
    assert cells[1].verdict == "within the band"
    page = write(table, cells, tmp_path).read_text()
    assert "| 74.00 ± 4.00 (paper 82.00) |" in page
    assert "| 74.00 ± 4.00 | 64.06 to 83.94 | 100 | 82.00     | -8.00      | within the band |" in page
    told = "ours is the mean ± the sample standard deviation over the training seeds 0, 1, 2, and the interval Student's of that mean"
    assert f"Every figure (n: test images of each evaluation; {told}):" in page
    tex = (tmp_path / "tables" / "paper" / "grid.tex").read_text()
    assert r"74.00 $\pm$ 4.00 (paper 82.00, $-8.00$, within the band) {\scriptsize[64.06, 83.94]}" in tex
    assert r"mean $\pm$ sample standard deviation over training seeds and Student's interval; n = 100 test images." in tex
    with (tmp_path / "tables" / "paper" / "grid.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert (rows[1]["ours"], rows[1]["ours_std"], rows[1]["seeds"], len(rows[1]["record"].split())) == ("74", "4", "0 1 2", 3)


def test_a_cell_that_lacks_a_seed_is_missing_and_says_which(written, tmp_path):
    name = written(**SEEDS)
    fill(cells_of(read_table(name), tmp_path)[1], tmp_path, 70, 74)
    cell = cells_of(read_table(name), tmp_path)[1]
    assert (cell.missing, cell.value, cell.problem, cell.verdict) == (True, None, "not measured yet: seed 2", "not measured")
    shown = view_of(read_table(name), cells_of(read_table(name), tmp_path), tmp_path).cells[1]
    assert [re.findall(r"(train|evaluate) .*(seed=\d)", command) for command in shown.commands] == [
        [("train", "seed=2")],
        [("evaluate", "seed=2")],
    ]
    assert cells_of(read_table(name), tmp_path)[3].problem is None, "nothing of it is there"


def test_a_damaged_record_of_one_seed_is_named(written, tmp_path):
    name = written(**SEEDS)
    cell = cells_of(read_table(name), tmp_path)[1]
    fill(cell, tmp_path, 70, 74, 78)
    (cell.measurements[1].evaluation.folder(tmp_path) / "record.json").write_text("{}")
    problem = cells_of(read_table(name), tmp_path)[1].problem
    assert problem is not None
    assert problem.startswith("seed 1: ")
    assert "damaged" in problem


def test_a_plan_has_every_seed_and_knows_which_are_finished(written, tmp_path):
    name = written(**SEEDS)
    fill(cells_of(read_table(name), tmp_path)[1], tmp_path, 70, 74)
    plan = plan_of(cells_of(read_table(name), tmp_path), tmp_path)
    jobs = {verb: [job for job in plan.jobs if job.verb == verb] for verb in ("train", "evaluate")}
    assert {verb: len(found) for verb, found in jobs.items()} == {"train": 6, "evaluate": 6}
    assert sorted(job.words[-1] for job in plan.missing("evaluate")) == ["seed=0", "seed=1", "seed=2", "seed=2"]


@pytest.mark.parametrize(
    ("changed", "plain_clean", "plain_fgsm", "other_fgsm"),
    [
        ({"seeds": [5]}, [5], [5], [5]),
        ({"seeds": [5], "columns": [{"label": "clean"}, {"label": "FGSM", "seeds": [1, 2]}]}, [5], [1, 2], [1, 2]),
        ({"rows": [{"label": "plain", "seeds": [3, 4]}, {"label": "LS_0.9"}]}, [3, 4], [3, 4], []),
        (
            {
                "rows": [{"label": "plain", "seeds": [3]}, {"label": "LS_0.9"}],
                "columns": [{"label": "clean"}, {"label": "FGSM", "seeds": [4]}],
                "exceptions": [{"row": "LS*", "column": "FGSM", "overrides": [], "seeds": [7]}],
            },
            [3], [4], [7],
        ),
    ],
)  # fmt: skip
def test_the_nearest_word_about_seeds_counts(written, changed, plain_clean, plain_fgsm, other_fgsm):
    found = seeds_in(read_table(written(**{"claims": [], "published": {"kind": "none"}} | changed)))
    wanted = {"plain / clean": plain_clean, "plain / FGSM": plain_fgsm, "LS_0.9 / FGSM": other_fgsm}
    assert {name: found[name] for name in wanted} == {name: [f"seed={seed}" for seed in seeds] for name, seeds in wanted.items()}


def test_one_seed_is_an_ordinary_cell(written, tmp_path):
    cells = cells_of(read_table(written(seeds=[4], claims=[])), tmp_path)
    assert (cells[1].seeds, cells[1].evaluation.run.config["seed"]) == ([], 4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seeds": [0, 0]}, r"grid.yaml:\d+: seeds: expected training seeds that differ, such as \[0, 1, 2\], got \[0, 0\]"),
        ({"seeds": []}, "seeds: expected training seeds"),
        ({"seeds": 3}, "seeds: expected training seeds"),
        ({"seeds": [0, "1"]}, "seeds: expected training seeds"),
        ({"seeds": [True]}, "seeds: expected training seeds"),
        ({"rows": [{"label": "plain", "seeds": [-1]}, {"label": "b"}]}, r"rows\[0\].seeds: expected training seeds"),
        ({"seeds": [0, 1], "overrides": ["seed=3"]}, "seeds: expected no seed among the words of plain / clean beside them"),
    ],
)
def test_seeds_that_cannot_be(written, changed, message):
    with pytest.raises(LabError, match=message):
        read_table(written(**{"claims": [], "published": {"kind": "none"}} | changed))


# The attacker's other run


def transfer(inner: str) -> dict[str, Any]:
    rows = [{"label": "crafted", "overrides": ["threat_model=black_transfer", f"threat_model.overrides=[{inner}]"]}]
    return {**SEEDS, "rows": rows, "columns": [{"label": "FGSM"}], "published": {"kind": "none"}}


@pytest.mark.parametrize(("inner", "of_source"), [("backbone=mlp", [0, 1, 2]), ("backbone=mlp,seed=7", [7, 7, 7])])
def test_the_attackers_run_has_the_same_seed_unless_its_words_name_one(written, tmp_path, inner, of_source):
    (cell,) = cells_of(read_table(written(**transfer(inner))), tmp_path)
    sources = [measurement.evaluation.source for measurement in cell.measurements]
    assert [source.config["seed"] for source in sources if source is not None] == of_source
    commands = view_of(read_table("paper/grid"), [cell], tmp_path).cells[0].commands
    assert len(commands) == 6 + len(set(of_source))
    assert len(plan_of([cell], tmp_path).missing("train")) == 3 + len(set(of_source))


def test_an_attacker_who_would_see_the_attacked_run_itself_is_an_error_that_names_the_cell(written, tmp_path):
    """A seed of its own tells the two apart for every seed but that one."""
    name = written(**transfer("seed=1"))
    with pytest.raises(LabError, match=r"crafted / FGSM: threat_model.overrides: .* describe the attacked run itself"):
        cells_of(read_table(name), tmp_path)


# Claims


@pytest.mark.parametrize(
    ("comparison", "verdict", "near"),
    [
        ("plain / FGSM > 63", "holds", False),  # the mean 74 against 9.94
        ("plain / FGSM > 65", "holds", True),
        ("plain / FGSM > 75", "does not hold", True),
        ("plain / FGSM - LS_0.9 / FGSM > 29", "holds", True),  # 44 apart, 15 from 29; hypot(9.94, 14.9) = 17.9
        ("plain / FGSM - LS_0.9 / FGSM > 25", "holds", False),
    ],
)
def test_a_claim_is_about_the_mean_and_within_chance_by_the_spread_of_the_seeds(written, tmp_path, comparison, verdict, near):
    """70, 74, 78 against 24, 30, 36: means 74 and 30, half intervals 9.94 and 14.90."""
    claims = [{"text": "t", "source": "s", "holds_if": [comparison]}]
    name = written(**SEEDS | {"claims": claims, "published": {"kind": "none"}})
    first, second = cells_of(read_table(name), tmp_path)[1::2]
    fill(first, tmp_path, 70, 74, 78)
    fill(second, tmp_path, 24, 30, 36)
    table, cells = read_table(name), cells_of(read_table(name), tmp_path)
    (claim,) = claims_of(table, cells)
    assert (claim.verdict, claim.within_chance) == (verdict, near)
    about = view_of(table, cells, tmp_path).about_chance
    assert (about is not None and "Student's interval, from their spread" in about) == near


# Profiles, and the first table with seeds


def test_a_short_profile_has_fewer_seeds(written):
    table = read_table(written(**SEEDS))
    assert seeds_in(reshaped(table, "quick"))["plain / FGSM"] == ["seed=0"]
    assert seeds_in(reshaped(table, "smoke"))["plain / FGSM"] == ["seed=0", "seed=1"]


def test_a_table_that_mixes_says_which_cells_are_means(written, tmp_path):
    columns = [{"label": "clean", "metric": "clean_accuracy"}, {"label": "FGSM", "seeds": [0, 1]}]
    table = read_table(written(columns=columns))
    about = view_of(table, cells_of(table, tmp_path), tmp_path).about_figures
    assert about.startswith(
        "n: test images; interval: Wilson, over the images, for this one trained model; where a cell stands for several"
    )
    assert "over the training seeds 0, 1, and" in about


def test_table_1_of_efficient_defenses_is_over_three_seeds(tmp_path):
    cells = cells_of(read_table("efficient_defenses/table1"), tmp_path)
    assert [cell.seeds for cell in cells] == [[0, 1, 2]] * 16
    assert len({run.fingerprint for cell in cells for run in cell.runs}) == 12
    for cell in cells:
        for measurement in cell.measurements:
            assert {run.config["seed"] for run in measurement.runs} == {measurement.seed}
    fake_records.fill_plausibly(cells, tmp_path)
    assert not [cell.name for cell in cells_of(read_table("efficient_defenses/table1"), tmp_path) if cell.missing]
