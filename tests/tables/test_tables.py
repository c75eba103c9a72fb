"""Tables as a pure function of records and conf/table/: figures worked out by hand, and what may not be shown."""

import csv
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import fake_records as fake
import pytest

from robustbench_lab.contract.tables import demand_grid
from robustbench_lab.errors import LabError
from robustbench_lab.intervals import wilson_interval
from robustbench_lab.jobs.tables import write
from robustbench_lab.settings.conf import CONF
from robustbench_lab.storage.files import read_json, write_json
from robustbench_lab.tables.cells import Cell, cells_of
from robustbench_lab.tables.profiles import PROFILES
from robustbench_lab.tables.reading import chosen_tables, read_table
from robustbench_lab.tables.verdicts import WITHIN_CHANCE

EVERY = sorted(str(path.relative_to(CONF / "table").with_suffix("")) for path in (CONF / "table").glob("*/*.yaml"))
PAPERS = CONF.parents[1] / "shared" / "papers"


@pytest.fixture
def outputs(tmp_path) -> Path:
    return tmp_path / "outputs"


def fill(cell: Cell, outputs: Path, clean: int, robust: int, n: int = 10, **more: Any) -> Path:
    """Write the run.json and record.json that training and attacking this cell would leave."""
    run, evaluation = cell.evaluation.run, cell.evaluation
    digest = f"weights of {run.fingerprint}"
    trained = {
        "schema": 1,
        "model_digest": digest,
        "config": run.config,
        "epochs": 4,
        "seconds": 98.7,
        "device": "a GPU",
        "commit": "0123456789abcdef",
    }
    write_json(run.folder(outputs) / "run.json", trained)
    epochs = [(90.0, 1), (2.0, 500), (3.0, 400), (2.5, 450)]  # the first one compiled: it does not count
    lines = [json.dumps({"epoch": i, "seconds": s, "images_per_second": speed}) for i, (s, speed) in enumerate(epochs, 1)]
    (run.folder(outputs) / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    path = evaluation.folder(outputs) / "record.json"
    record = {
        "schema": 1, "fingerprint": evaluation.fingerprint, "source": None, "warnings": [], "seconds": 2.0, "n": n,
        "run": {**fake.about(run), "model_digest": digest}, "config": evaluation.config, "choices": evaluation.choices,
        "clean_correct": clean, "clean_accuracy": clean / n, "clean_interval": wilson_interval(clean, n),
        "robust_correct": robust, "robust_accuracy": robust / n, "robust_interval": wilson_interval(robust, n),
        "device": "a device", "commit": "abc", "platform": "a platform", "versions": {"torch": "2.9"},
    }  # fmt: skip
    write_json(path, record | more)
    return path


def pages(name: str, outputs: Path) -> tuple[str, list[dict[str, str]], str]:
    """The written table as Markdown, rows of the CSV and LaTeX."""
    table = read_table(name)
    path = write(table, cells_of(table, outputs), outputs)
    assert path == outputs / "tables" / f"{name}.md"
    assert {file.suffix for file in path.parent.iterdir()} == {".md", ".csv", ".tex"}
    with path.with_suffix(".csv").open() as file:
        return path.read_text(), list(csv.DictReader(file)), path.with_suffix(".tex").read_text()


def row_of(page: str, *starts: str) -> list[str]:
    """The cells of the one Markdown row that begins with these cells."""
    rows = [[entry.strip() for entry in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    (row,) = [row for row in rows if row[: len(starts)] == list(starts)]
    return row


# What a table shows


def test_a_full_table(written, outputs, capsys):
    """9/10 clean and 8/10 robust for the first row, 5/10 and 5/10 for the second, against 95.5, 30, nothing and 41.25."""
    name = written()
    cells = cells_of(read_table(name), outputs)
    fill(cells[1], outputs, 9, 8, warnings=[{"code": "transfer_only", "message": "seen from afar"}])
    fill(cells[3], outputs, 5, 5)
    page, rows, tex = pages(name, outputs)

    row = ["plain", "90.00 (paper 95.50) [a]", "80.00 (paper 30.00) [a]"]
    assert row_of(page, "plain", row[1]) == row
    assert "- [a] transfer_only: seen from afar (plain / clean, plain / FGSM)\n" in page
    assert row_of(page, "LS_0.9", "50.00") == ["LS_0.9", "50.00", "50.00 (paper 41.25)"]
    # Wilson by hand, z = 1.96: 8/10 -> 49.02 to 94.33; 9/10 -> 59.58 to 98.21; 5/10 -> 23.66 to 76.34.
    assert row_of(page, "plain", "FGSM") == [
        "plain", "FGSM", "robust accuracy, %", "80.00", "49.02 to 94.33", "10", "30.00", "+50.00", "differs", "transfer_only",
    ]  # fmt: skip
    assert row_of(page, "plain", "clean")[2:] == [
        "clean accuracy, %",
        "90.00",
        "59.58 to 98.21",
        "10",
        "95.50",
        "-5.50",
        "within the band",
        "transfer_only",
    ]
    assert row_of(page, "LS_0.9", "clean")[2:] == ["clean accuracy, %", "50.00", "23.66 to 76.34", "10", "-", "-", "-", "-"]
    assert row_of(page, "LS_0.9", "FGSM")[3:] == ["50.00", "23.66 to 76.34", "10", "41.25", "+8.75", "within the band", "-"]
    assert "# A table of 2 x 2 & more" in page
    assert "Published figures: exact, Table 9; within the band: at most 10 points apart." in page
    assert "Missing" not in page
    assert "- seconds of attacking: 4" in page, "one evaluation fills two cells and counts once"
    first, second = (cell.evaluation.run.name for cell in cells[1::2])
    assert row_of(page, first) == [first, "4", "2.5", "450", "99", "a GPU", "0123456789ab"]
    assert row_of(page, second)[1:] == ["4", "2.5", "450", "99", "a GPU", "0123456789ab"]
    assert "- device: a device\n- commit: abc\n- platform: a platform\n- versions: torch 2.9" in page

    assert [row["ours"] for row in rows] == ["90", "80", "50", "50"]
    first = {**rows[1], "record": ""}
    assert first == {
        "row": "plain", "column": "FGSM", "metric": "robust_accuracy", "unit": "%", "ours": "80", "interval_low": "49.016247",
        "interval_high": "94.331785", "n": "10", "published": "30", "difference": "50", "verdict": "differs",
        "warnings": "transfer_only", "problem": "", "record": "",
    }  # fmt: skip
    assert rows[2]["published"] == rows[2]["difference"] == ""
    assert rows[1]["record"] == f"{cells[1].evaluation.run.name}/evaluate/{cells[1].evaluation.name}"

    assert r"\begin{tabular}{lrr}" in tex
    small, mark = r"{\scriptsize[23.66, 76.34]}", r"\textsuperscript{a}"
    clean = rf"90.00 (paper 95.50, $-5.50$, within the band) {{\scriptsize[59.58, 98.21]}}{mark}"
    assert rf"plain & {clean} & 80.00 (paper 30.00, $+50.00$, differs) {{\scriptsize[49.02, 94.33]}}{mark} \\" in tex
    assert rf"LS\_0.9 & 50.00 {small} & 50.00 (paper 41.25, $+8.75$, within the band) {small} \\" in tex
    assert r"n = 10 test images." in tex
    assert r"\textsuperscript{a} transfer\_only" in tex
    assert "80.00 (paper 30.00)" in capsys.readouterr().out


def test_the_same_records_give_the_same_files(written, outputs, tmp_path):
    name = written()
    for cell in cells_of(read_table(name), outputs)[1::2]:
        fill(cell, outputs, 9, 8)
    first = pages(name, outputs)
    assert pages(name, outputs) == first


def test_what_is_missing_is_a_dash_with_the_commands_that_fill_it(written, outputs):
    name = written(published={"kind": "none"})
    cells = cells_of(read_table(name), outputs)
    fill(cells[1], outputs, 9, 8)
    page, rows, tex = pages(name, outputs)
    assert row_of(page, "LS_0.9", "-") == ["LS_0.9", "-", "-"]
    assert row_of(page, "LS_0.9", "FGSM")[3:] == ["-"] * 7
    assert rows[3]["ours"] == rows[3]["n"] == rows[3]["record"] == ""
    assert r"LS\_0.9 & - & - \\" in tex
    missing = page.partition("## Missing cells")[2]
    train = "python -m robustbench_lab train backbone=small_cnn defense=label_smoothing"
    evaluate = "python -m robustbench_lab evaluate backbone=small_cnn attack=fgsm defense=label_smoothing"
    assert f"- LS_0.9, FGSM: `{train}`, then `{evaluate}`" in missing
    assert "plain" not in missing.partition("## Provenance")[0]


def test_a_missing_transfer_cell_names_the_attackers_run_too(written, outputs):
    rows = [{"label": "crafted", "overrides": ["threat_model=black_transfer", "threat_model.overrides=[seed=7,backbone=mlp]"]}]
    name = written(rows=rows, published={"kind": "none"})
    missing = pages(name, outputs)[0].partition("## Missing cells")[2]
    assert "`python -m robustbench_lab train seed=7 backbone=mlp`, then `python -m robustbench_lab train " in missing


def test_findings_name_their_figures(written, outputs):
    name = written(findings=["FGSM leaves {ours: plain / FGSM}, paper {paper: plain / FGSM}."])
    fill(cells_of(read_table(name), outputs)[1], outputs, 9, 8)
    assert "- FGSM leaves 80.00, paper 30.00." in pages(name, outputs)[0]
    with pytest.raises(LabError, match="which is no cell of the table"):
        pages(written(findings=["{ours: plain / nothing}"]), outputs)


def test_an_empty_table_is_all_dashes(written, outputs):
    page, rows, _ = pages(written(), outputs)
    assert row_of(page, "plain", "- (paper 95.50)") == ["plain", "- (paper 95.50)", "- (paper 30.00)"]
    assert all(row["ours"] == "" for row in rows)
    assert "No records yet." in page


def test_a_record_of_other_weights_is_not_shown(written, outputs):
    name = written()
    cell = cells_of(read_table(name), outputs)[1]
    path = fill(cell, outputs, 9, 8)
    run = cell.evaluation.run
    write_json(run.folder(outputs) / "run.json", {"schema": 1, "model_digest": "retrained", "config": run.config})
    page, rows, _ = pages(name, outputs)
    assert rows[1]["ours"] == ""
    assert f"{path} speaks of other weights than {run.name} has now" in page


def test_the_parameters_are_those_of_the_run(written, outputs):
    columns = [{"label": "parameters", "metric": "parameters"}]
    name = written(columns=columns, published={"kind": "none"}, claims=[], findings=[], exceptions=[])
    cell = cells_of(read_table(name), outputs)[0]
    fill(cell, outputs, 9, 8)
    run_file = cell.evaluation.run.folder(outputs) / "run.json"
    write_json(run_file, read_json(run_file) | {"parameters": 123})
    assert cells_of(read_table(name), outputs)[0].value == 123


def test_a_record_without_its_run_is_not_shown(written, outputs):
    name = written()
    cell = cells_of(read_table(name), outputs)[1]
    fill(cell, outputs, 9, 8)
    run = cell.evaluation.run.folder(outputs) / "run.json"
    run.unlink()
    page, rows, _ = pages(name, outputs)
    assert rows[1]["ours"] == ""
    assert str(run) in page


@pytest.mark.parametrize("damage", ["truncated", "a changed figure", "an empty object", "no run"])
def test_a_damaged_record_is_not_shown_and_named(written, outputs, damage):
    name = written()
    path = fill(cells_of(read_table(name), outputs)[1], outputs, 9, 8)
    text = path.read_text()
    changed = {
        "truncated": text[: len(text) // 2],
        "a changed figure": text.replace('"robust_accuracy": 0.8', '"robust_accuracy": 0.9'),
        "an empty object": '{"schema": 1}',
        "no run": json.dumps({**json.loads(text), "run": None}),
    }[damage]
    assert changed != text
    path.write_text(changed)
    page, rows, _ = pages(name, outputs)
    assert rows[1]["ours"] == ""
    missing = page.partition("## Missing cells")[2]
    assert str(path) in missing
    assert "force=true" in missing


def test_a_transfer_record_needs_the_source_it_was_made_with(written, outputs):
    row = {"label": "plain", "overrides": ["threat_model=black_transfer", "threat_model.overrides=[seed=1]"]}
    name = written(rows=[row], columns=[{"label": "FGSM"}], published={"kind": "none"})
    (cell,) = cells_of(read_table(name), outputs)
    source = cell.evaluation.source
    assert source is not None
    assert source.config["seed"] == 1
    fill(cell, outputs, 9, 8, source={**fake.about(source), "model_digest": "theirs"})
    write_json(source.folder(outputs) / "run.json", {"schema": 1, "model_digest": "theirs", "config": source.config})
    assert pages(name, outputs)[1][0]["ours"] == "80"
    write_json(source.folder(outputs) / "run.json", {"schema": 1, "model_digest": "retrained", "config": source.config})
    page, rows, _ = pages(name, outputs)
    assert rows[0]["ours"] == ""
    assert source.name in page


def test_exceptions_change_single_cells(written, outputs):
    name = written(exceptions=[{"row": "plain", "column": "FGSM", "overrides": ["attack=pgd", "attack.steps=3"]}])
    attacks = [cell.evaluation.choices["attack"] for cell in cells_of(read_table(name), outputs)]
    assert attacks == ["fgsm", "pgd", "fgsm", "fgsm"]


@pytest.mark.parametrize("profile", PROFILES)
def test_the_words_of_the_profile_are_on_every_page(written, outputs, capsys, profile):
    page, _, tex = pages(written(profile=profile), outputs)
    assert f"Profile: {PROFILES[profile]}." in page
    assert PROFILES[profile] in tex
    assert f"({PROFILES[profile]})" in capsys.readouterr().out


def test_a_shortened_table_says_so_in_capitals():
    assert "SHORT SCHEDULE" in PROFILES["quick"]
    assert "SMOKE" in PROFILES["smoke"]


def test_deviations_and_findings_are_told(written, outputs):
    page, _, _ = pages(written(deviations=["We differ\n  here."], findings=["We found this."]), outputs)
    assert "## Where we differ from the paper\n\n- We differ here.\n" in page
    assert "## Findings\n\n- We found this.\n" in page


# What a table's YAML may say

LABELS = [{"label": "a"}, {"label": "a"}]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"typo": 1}, "typo"),
        ({"rows": None}, "rows is missing"),
        ({"title": None}, "title"),
        ({"rows": [{"label": "x", "overides": []}]}, "overides"),
        ({"rows": [{"overrides": []}]}, "label"),
        ({"rows": ["plain"]}, "rows\\[0\\]: expected a mapping"),
        ({"rows": LABELS}, "rows: expected labels that differ"),
        ({"columns": LABELS}, "columns: expected labels that differ"),
        (
            {"metric": "accuracy"},
            r"metric: expected one of robust_accuracy, .*clean_accuracy, .*metrics\.loss_sensitivity, .*got 'accuracy'",
        ),
        ({"columns": [{"label": "c", "metric": "mean"}, {"label": "d"}]}, r"columns\[0\].metric: expected one of .*, got 'mean'"),
        ({"columns": [{"label": "c", "metric": "metrics.x"}]}, r"columns\[0\].metric: expected one of .*, got 'metrics.x'"),
        ({"rows": [{"label": "r", "metric": "clean_accuracy"}]}, r"rows\[0\]: got an unexpected keyword argument 'metric'"),
        ({"profile": "fast"}, "profile: expected one of paper, quick, smoke, got 'fast'"),
        ({"exceptions": [{"row": "plain", "column": "PGD", "overrides": []}]}, r"exceptions\[0\]: expected .*'PGD'"),
        ({"exceptions": [{"row": "plain", "column": "FGSM"}]}, r"exceptions\[0\]: expected row, column, overrides"),
        ({"published": "Table 9"}, "published: expected kind"),
        ({"published": {"kind": "approximate"}}, "published.kind: expected one of exact, claim, none, got 'approximate'"),
        ({"published": {"kind": "exact", "source": "x"}}, "published.values: expected 2 rows of 2"),
        ({"published": {"kind": "exact", "source": "x", "values": [[1, 2]]}}, r"published.values: expected 2 rows of 2, got \[2\]"),
        ({"published": {"kind": "exact", "source": "x", "values": [[1, 2], [3]]}}, r"published.values: expected 2 rows of 2, got \[2, 1\]"),
        ({"published": {"kind": "exact", "source": "x", "values": [1, 2]}}, "published.values: expected 2 rows of 2"),
        ({"published": {"kind": "exact", "source": "x", "values": [[1, "2"], [3, 4]]}}, "published.values.*: expected numbers .*, got '2'"),
        ({"published": {"kind": "exact", "values": [[1, 2], [3, 4]]}}, "published.source: expected"),
    ],
)
def test_a_wrong_table_is_named_with_its_key(written, tmp_path, changed, message):
    name = written(**changed)
    with pytest.raises(LabError, match=message) as error:
        read_table(name)
    assert str(tmp_path / "table" / "paper" / "grid.yaml") in str(error.value)


@pytest.mark.parametrize("text", ["", "rows: [", "- a\n- b\n", "title: ${nowhere}\n"])
def test_a_file_that_is_no_table_is_named(written, tmp_path, text):
    name = written()
    path = tmp_path / "table" / "paper" / "grid.yaml"
    path.write_text(text)
    with pytest.raises(LabError, match=r"paper/grid\.yaml"):
        read_table(name)


def test_tables_are_chosen_by_name_or_glob(written):
    written()
    assert [table.name for table in chosen_tables([])] == ["paper/grid"]
    for pattern in (["paper/grid"], ["paper/*"], ["*"], ["nothing/*", "*"][1:], "paper/grid"):
        assert [table.name for table in chosen_tables(pattern)] == ["paper/grid"]


@pytest.mark.parametrize("pattern", [["paper/other"], ["paper/grid", "x*"], "x"])
def test_a_pattern_that_matches_nothing_lists_the_tables(written, pattern):
    written()
    with pytest.raises(LabError, match=r"tables: nothing matches '(paper/other|x.?)'; there are paper/grid"):
        chosen_tables(pattern)


# The tables of conf/table/


@cache
def composed(name: str) -> list[Cell]:
    return cells_of(read_table(name), Path("/nowhere"))


@pytest.mark.parametrize("name", EVERY)
def test_every_table_reads_and_its_cells_compose(name):
    table = read_table(name)
    cells = composed(name)
    demand_grid(table, cells)
    assert all(cell.record is None for cell in cells)
    for cell in cells:
        if table.profile == "paper" and cell.evaluation is not None:
            assert cell.evaluation.run.config["dataset"]["train_size"] is None, "a paper's table trains on everything"


def test_the_papers_sixteen_figures_of_efficient_defenses_table_1():
    values = read_table("efficient_defenses/table1").published["values"]
    assert [len(row) for row in values] == [4, 4, 4, 4]
    path = PAPERS / "efficient_defenses.md"
    if not path.exists():
        pytest.skip(f"no {path}: the figures as they were read from the paper")
    lines = iter(path.read_text().splitlines())
    assert any(line.startswith("**Table 1**") for line in lines)
    rows = {}
    for line in lines:
        entries = [entry.strip() for entry in line.strip("|").split("|")]
        if re.fullmatch(r"(CNN|ResNet)\+B?ReLU", entries[0]):
            rows[entries[0]] = [float(entry) for entry in entries[1:]]
        if line.startswith("**"):
            break
    table = read_table("efficient_defenses/table1")
    assert {row.label: list(figures) for row, figures in zip(table.rows, values, strict=True)} == rows
    assert [column.label for column in table.columns] == list(rows)


def test_table_1_of_efficient_defenses_is_white_box_on_its_diagonal_alone():
    for cell in composed("efficient_defenses/table1"):
        run, source = cell.evaluation.run, cell.evaluation.source
        assert cell.evaluation.choices["attack"] == "fgsm_predicted"
        assert (cell.evaluation.config["budget"]["norm"], cell.evaluation.config["budget"]["eps"]) == ("linf", 0.1)
        names = {"CNN": "efficient_defenses_cnn", "ResNet": "efficient_defenses_resnet", "ReLU": "standard", "BReLU": "bounded_relu"}
        for label, attacked in ((cell.column, run), (cell.row, source or run)):
            backbone, activation = label.split("+")
            assert (attacked.choices["backbone"], attacked.choices["defense"]) == (names[backbone], names[activation])
            assert (attacked.choices["dataset"], attacked.choices["training"]) == ("mnist", "efficient_defenses")
        assert (source is None) == (cell.row == cell.column)


# Metrics that are no robust accuracy

METRICS: dict[str, Any] = {
    "overrides": ["backbone=small_cnn", "attack=fgsm", "metric=[loss_sensitivity]", "attack_misclassified=true"],
    "columns": [
        {"label": "sensitivity", "metric": "metrics.loss_sensitivity"},
        {"label": "short", "metric": "metrics.loss_sensitivity", "form": ".2f"},
        {"label": "attacked", "metric": "attacked_accuracy", "form": ".1f"},
        {"label": "mean", "metric": "robust_accuracy_mean"},
    ],
    "published": {
        "kind": "exact", "source": "Table 9", "band": [0.02, None, 2, 2], "values": [[0.203, 0.3, 85, None], [0.25, 1, 60, 50]],
    },
}  # fmt: skip
SENSITIVITY = {"metrics": {"loss_sensitivity": {"mean": 0.2217834, "interval": [0.21, 0.2335668], "n": 7}}}
ATTACKED = {"attacked_accuracy": 0.84, "attacked_interval": [0.5, 0.95]}


def test_figures_are_told_in_their_columns_unit_and_form(written, outputs):
    """0.2217834 - 0.203 = 0.0187834, within 0.02; 84.0 - 85 = -1.0, within 2 points."""
    claims = [claim("plain / sensitivity < plain / short + 0.5", "plain / sensitivity > 0.25")]
    findings = ["Ours is {ours: plain / sensitivity}, theirs {paper: plain / sensitivity}; attacked {ours: plain / attacked}."]
    name = written(**METRICS, claims=claims, findings=findings)
    fill(cells_of(read_table(name), outputs)[0], outputs, 9, 8, draws={"robust_accuracy_mean": 0.865}, **SENSITIVITY, **ATTACKED)
    page, rows, tex = pages(name, outputs)

    first = ["0.2218 (paper 0.203)", "0.22 (paper 0.30)", "84.0 (paper 85.0)", "86.50"]
    assert row_of(page, "plain", first[0]) == ["plain", *first]
    assert row_of(page, "plain", "sensitivity")[2:] == [
        "loss sensitivity", "0.2218", "0.21 to 0.2336", "7", "0.203", "+0.01878", "within the band", "-",
    ]  # fmt: skip
    assert row_of(page, "plain", "short")[2:9] == ["loss sensitivity", "0.22", "0.21 to 0.23", "7", "0.30", "-0.08", "not compared"]
    assert row_of(page, "plain", "attacked")[2:9] == [
        "attacked accuracy, %", "84.0", "50.0 to 95.0", "10", "85.0", "-1.0", "within the band",
    ]  # fmt: skip
    assert row_of(page, "plain", "mean")[2:9] == ["robust accuracy mean, %", "86.50", "-", "10", "-", "-", "-"]
    assert (
        "Every figure (n: test images, and for what is not in percent those that count; interval: over these images, for this one trained "
        "model, Wilson for percentages, normal approximation to the mean for the others):"
    ) in page
    band = "at most 0.02 apart (sensitivity); not compared (short); at most 2 points apart (attacked, mean)"
    assert f"Published figures: exact, Table 9; within the band: {band}." in page
    assert "plain / sensitivity (0.2218) < plain / short (0.22) + 0.5: yes; plain / sensitivity (0.2218) > 0.25: no" in page
    assert "- Ours is 0.2218, theirs 0.203; attacked 84.0." in page

    assert [rows[0][key] for key in ("metric", "unit", "ours", "n")] == ["metrics.loss_sensitivity", "loss_sensitivity", "0.2217834", "7"]
    assert [rows[2][key] for key in ("unit", "ours", "interval_high", "difference")] == ["%", "84", "95", "-1"]

    assert r"0.2218 (paper 0.203, $+0.01878$, within the band) {\scriptsize[0.21, 0.2336]}" in tex
    assert r"0.22 (paper 0.30, $-0.08$) {\scriptsize[0.21, 0.23]}" in tex
    assert "n = 10 test images, of which those that count where figures are not in percent." in tex


def test_a_table_of_metrics_alone_speaks_of_no_percentage(written, outputs):
    """The band is in the metric's unit."""
    published = {"kind": "exact", "source": "Table 9", "band": [0.03, None], "values": [[0.2, None], [0.3, None]]}
    columns = [{"label": "FGSM"}, {"label": "same", "form": ".1e"}]
    name = written(metric="metrics.loss_sensitivity", overrides=METRICS["overrides"], columns=columns, published=published)
    for cell in cells_of(read_table(name), outputs):
        fill(cell, outputs, 9, 8, **SENSITIVITY)
    page, rows, _ = pages(name, outputs)
    assert [row["verdict"] for row in rows[::2]] == ["within the band", "differs"]
    assert "within the band: at most 0.03 apart." in page, "of the column that has published figures"
    assert row_of(page, "plain", "same")[3] == "2.2e-01"
    assert "(n: test images that count; interval: normal approximation to the mean, over these images" in page
    assert not re.search("Wilson|points|percent|%", page.replace("95 %", ""))


def test_where_no_image_counts_there_is_a_dash_with_the_reason(written, outputs):
    name = written(**METRICS)
    nothing = {"metrics": {"loss_sensitivity": {"mean": None, "interval": None, "n": 0}}}
    fill(cells_of(read_table(name), outputs)[0], outputs, 9, 8, **nothing, **ATTACKED)
    page, rows, tex = pages(name, outputs)
    assert row_of(page, "plain", "- (paper 0.203)")[1:4] == ["- (paper 0.203)", "- (paper 0.30)", "84.0 (paper 85.0)"]
    assert row_of(page, "plain", "sensitivity")[3:] == ["-", "-", "0", "0.203", "-", "no image counts", "-"]
    assert "- no figure for plain / sensitivity: no image counts\n" in page
    assert "plain / sensitivity: no image counts" in tex
    assert (rows[0]["ours"], rows[0]["n"], rows[0]["verdict"]) == ("", "0", "no image counts")
    assert "plain" not in page.partition("## Missing cells")[2].partition("## Provenance")[0], "measured it is"


def test_one_image_has_no_interval_and_a_mean_without_draws_that_of_the_verdict(written, outputs):
    one = {"metrics": {"loss_sensitivity": {"mean": 0.2, "interval": ["nan", "nan"], "n": 1}}}
    name = written(**METRICS)
    fill(cells_of(read_table(name), outputs)[0], outputs, 9, 8, draws=None, **one, **ATTACKED)
    page = pages(name, outputs)[0]
    assert row_of(page, "plain", "sensitivity")[3:6] == ["0.2", "-", "1"]
    assert row_of(page, "plain", "mean")[3:6] == ["80.00", "49.02 to 94.33", "10"], (
        "a deterministic model is right in every draw or in none"
    )


@pytest.mark.parametrize(
    ("column", "more", "remedy"),
    [
        ("attacked", SENSITIVITY, "attacked_accuracy: the cell's words need attack_misclassified=true; where they have it, evaluate again"),
        (
            "sensitivity",
            ATTACKED,
            "metrics.loss_sensitivity: the cell's words need metric=[loss_sensitivity]; where they have it, evaluate",
        ),
        (
            "sensitivity",
            {**ATTACKED, "metrics": {"loss_sensitivity": {"mean": "x", "interval": None, "n": 1}}},
            "the record says nothing of",
        ),
        ("sensitivity", {**ATTACKED, "metrics": None}, "the record says nothing of metrics.loss_sensitivity"),
    ],
)
def test_a_record_that_lacks_a_columns_metric_is_a_missing_cell_with_its_remedy(written, outputs, column, more, remedy):
    name = written(**METRICS)
    fill(cells_of(read_table(name), outputs)[0], outputs, 9, 8, **more)
    page, rows, _ = pages(name, outputs)
    (row,) = [row for row in rows if (row["row"], row["column"]) == ("plain", column)]
    assert (row["ours"], row["verdict"]) == ("", "not measured")
    assert remedy in row["problem"]
    assert f"- plain, {column} (" in page.partition("## Missing cells")[2]
    assert row_of(page, "plain", "mean")[3] == "80.00", "what the record has is shown"


# Means over runs, figures that the paper quotes, rows that are not run

MIXED: dict[str, Any] = {
    "overrides": ["backbone=small_cnn", "attack=fgsm"],
    "rows": [{"label": "plain"}, {"label": "RoCL_1", "not_run": "No code of it\n  is at hand."}],
    "columns": [
        {"label": "size", "metric": "parameters"},
        {"label": "PGD", "metric": "accuracy_of_runs", "overrides": ["attack=pgd_fm_five"]},
        {"label": "FGSM"},
    ],
    "published": {
        "kind": "exact", "source": "Table 3", "band": 5, "values": [[None, "80.03 ± 0.15", 81], [11173962, "49.66 ± 0.3", None]],
        "quoted": [
            {"cells": "RoCL_1 / *", "source": "Kim et al. 2020, Table 1"}, {"cells": "plain / FGSM", "source": "PNI & al., Table 3"},
        ],
    },
    "claims": [],
}  # fmt: skip
RUNS = {"runs": {"accuracies": [0.7, 0.8, 0.9]}}


def filled_mixture(written, outputs, **changed: Any) -> str:
    """Accuracies 70, 80 and 90 of the runs: mean 80, sample standard deviation 10; 12,345 parameters; FGSM 8 of 10."""
    name = written(**MIXED | changed)
    size, pgd, fgsm = cells_of(read_table(name), outputs)[:3]
    for cell, more in ((pgd, RUNS), (fgsm, {})):
        fill(cell, outputs, 9, 8, **more)
    run_file = size.evaluation.run.folder(outputs) / "run.json"
    write_json(run_file, read_json(run_file) | {"parameters": 12345})
    assert size.evaluation.fingerprint == fgsm.evaluation.fingerprint
    return name


def test_means_over_runs_are_told_with_their_deviation(written, outputs):
    page, rows, tex = pages(filled_mixture(written, outputs, findings=["{ours: plain / PGD}, paper {paper: plain / PGD}."]), outputs)
    assert row_of(page, "plain", "12,345") == [
        "plain", "12,345", "80.00 ± 10.00 (paper 80.03 ± 0.15)", "80.00 (quoted 81.00)",
    ]  # fmt: skip
    assert row_of(page, "plain", "PGD")[2:] == [
        "accuracy of runs, %", "80.00 ± 10.00", "-", "10", "80.03 ± 0.15", "-0.03", "within the band", "-",
    ]  # fmt: skip
    assert row_of(page, "plain", "size")[2:5] == ["parameters", "12,345", "-"]
    assert "(n: test images; interval: Wilson, over the images, for this one trained model; ours ± the sample standard deviation" in page
    assert "- 80.00 ± 10.00, paper 80.03 ± 0.15." in page
    assert [rows[1][key] for key in ("ours", "ours_std", "published", "published_std")] == ["80", "10", "80.03", "0.15"]
    assert rows[2]["ours_std"] == rows[2]["published_std"] == ""
    assert rows[0]["unit"] == "parameters"
    assert r"80.00 $\pm$ 10.00 (paper 80.03 $\pm$ 0.15, $-0.03$, within the band) &" in tex
    assert "±" not in tex


def test_figures_that_the_paper_quotes_are_told_with_their_source(written, outputs):
    page, rows, tex = pages(filled_mixture(written, outputs), outputs)
    assert "- quoted from Kim et al. 2020, Table 1: RoCL_1 (size, PGD)\n" in page, "FGSM has no figure"
    assert "- quoted from PNI & al., Table 3: plain (FGSM)\n" in page
    assert row_of(page, "plain", "FGSM")[6:9] == ["81.00 (quoted)", "-1.00", "within the band"]
    sources = ["", "", "PNI & al., Table 3", *["Kim et al. 2020, Table 1"] * 2, ""]
    assert [row["quoted_from"] for row in rows] == sources
    assert "80.00 (quoted 81.00, $-1.00$, within the band) " in tex
    assert r"quoted from PNI \& al., Table 3: plain (FGSM)" in tex


def test_a_row_that_is_not_run_shows_its_published_figures_and_why(written, outputs):
    page, rows, tex = pages(filled_mixture(written, outputs), outputs)
    assert row_of(page, "RoCL_1", "- (quoted 11,173,962)") == ["RoCL_1", "- (quoted 11,173,962)", "- (quoted 49.66 ± 0.30)", "-"]
    assert "- not run (No code of it is at hand): RoCL_1\n" in page
    assert row_of(page, "RoCL_1", "PGD")[3:] == ["-", "-", "-", "49.66 ± 0.30 (quoted)", "-", "not run", "-"]
    assert "Missing cells" not in page
    assert [(row["verdict"], row["record"], row["problem"]) for row in rows[3:]] == [("not run", "", "")] * 3
    assert r"RoCL\_1 & - (quoted 11,173,962) & - (quoted 49.66 $\pm$ 0.30) & - \\" in tex
    assert r"not run (No code of it is at hand): RoCL\_1" in tex
    assert "not measured" not in tex


def test_a_table_of_old_has_no_new_columns(written, outputs):
    name = written()
    fill(cells_of(read_table(name), outputs)[1], outputs, 9, 8)
    assert not {"ours_std", "published_std", "quoted_from"} & set(pages(name, outputs)[1][0])


def test_smoke_shows_no_quoted_figure(written, outputs):
    page, rows, tex = pages(filled_mixture(written, outputs, profile="smoke"), outputs)
    assert "quoted" not in page + tex
    assert row_of(page, "RoCL_1", "-") == ["RoCL_1", "-", "-", "-"]
    assert "not run (No code of it is at hand): RoCL_1" in page
    assert "quoted_from" not in rows[0]


# Claims, footnotes, profiles


def claim(*holds_if: str) -> dict[str, Any]:
    return {"text": "smoothing helps", "source": "section 5", "holds_if": list(holds_if)}


@pytest.mark.parametrize(
    ("comparisons", "verdict"),
    [
        (["LS_0.9 / clean >= 90"], "holds"),
        (["LS_0.9 / clean > 90"], "does not hold"),
        (["LS_0.9 / clean - 20 > LS_0.9 / FGSM - 1", "LS_0.9 / clean > 10"], "does not hold"),
        (["LS_0.9 / clean > LS_0.9 / FGSM * 1.1"], "holds"),
        (["LS_0.9 / clean > LS_0.9 / FGSM * 1.2"], "does not hold"),
        (["LS_0.9 / clean > plain / clean"], "not measured"),
        (["LS_0.9 / clean > plain / clean", "LS_0.9 / FGSM > 99"], "does not hold"),
    ],
)
def test_claims_are_checked_on_our_figures(written, outputs, comparisons, verdict):
    """Clean 90, FGSM 80; the other row has no figures."""
    name = written(claims=[claim(*comparisons)], published={"kind": "claim", "source": "section 5"})
    fill(cells_of(read_table(name), outputs)[3], outputs, 9, 8)
    page = pages(name, outputs)[0].replace(WITHIN_CHANCE, "")
    assert f'- **{verdict}**: "smoothing helps" (section 5). ' in page
    assert "LS_0.9 / clean (90.00)" in page


@pytest.mark.parametrize(("comparison", "verdict"), [
    ("plain / clean >= plain / FGSM + 1", "holds"),  # 15.0 against 15.000000000000002
    ("plain / clean > plain / FGSM + 1", "does not hold"),
    ("plain / clean - plain / FGSM <= 1", "holds"),
])  # fmt: skip
def test_a_claim_at_its_boundary_is_not_decided_by_rounding(written, outputs, comparison, verdict):
    """15 of 100 and 14 of 100."""
    name = written(claims=[claim(comparison)], published={"kind": "none"})
    fill(cells_of(read_table(name), outputs)[1], outputs, 15, 14, n=100)
    assert f"- **{verdict}** (within chance): " in pages(name, outputs)[0]


@pytest.mark.parametrize(("n", "comparisons", "told"), [
    (10, ["LS_0.9 / FGSM < LS_0.9 / clean"], "holds** (within chance)"),  # 9 and 8 of 10: 59.6 to 98.2, 49.0 to 94.3
    (1000, ["LS_0.9 / FGSM < LS_0.9 / clean"], "holds**"),  # 90.0 ± 1.9, 80.0 ± 2.5: 10 points against 3.1
    (1000, ["LS_0.9 / FGSM < LS_0.9 / clean", "LS_0.9 / FGSM > 78"], "holds** (within chance)"),  # one comparison is enough to turn it
    (1000, ["LS_0.9 / FGSM > 82"], "does not hold** (within chance)"),
    (1000, ["LS_0.9 / FGSM > 82", "LS_0.9 / FGSM > 90"], "does not hold**"),  # the second one fails anyway
    (1000, ["LS_0.9 / clean - LS_0.9 / FGSM > 7"], "holds** (within chance)"),
    (1000, ["LS_0.9 / clean - LS_0.9 / FGSM > 6"], "holds**"),
])  # fmt: skip
def test_a_verdict_says_when_it_is_within_chance(written, outputs, n, comparisons, told):
    name = written(claims=[claim(*comparisons)], published={"kind": "none"})
    fill(cells_of(read_table(name), outputs)[3], outputs, 9 * n // 10, 8 * n // 10, n=n)
    page = pages(name, outputs)[0]
    assert f'- **{told}: "smoothing helps"' in page
    assert ("Within chance: the two figures" in page) == ("(within chance)" in page)


def test_a_claim_is_told_with_the_papers_evidence(written, outputs):
    evidence = "Table 1: FGSM leaves 81.63,\n PGD 80.03."
    claims = [{**claim("LS_0.9 / clean >= 90"), "evidence": evidence}, claim("LS_0.9 / FGSM < 1")]
    name = written(claims=claims, published={"kind": "none"})
    fill(cells_of(read_table(name), outputs)[3], outputs, 9, 8)
    page = pages(name, outputs)[0].replace(WITHIN_CHANCE, "")
    begins = '- **holds**: "smoothing helps" (section 5). '
    assert f"{begins}The paper's evidence: Table 1: FGSM leaves 81.63, PGD 80.03. Ours: LS_0.9 / clean (90.00) >= 90: yes\n" in page
    assert '- **does not hold**: "smoothing helps" (section 5). LS_0.9 / FGSM (80.00) < 1: no\n' in page


@pytest.mark.parametrize(("comparison", "verdict"), [
    ("LS_0.9 / clean - LS_0.9 / FGSM > 9.9", "holds"),
    ("LS_0.9 / clean - LS_0.9 / FGSM > 10", "does not hold"),
    ("LS_0.9 / clean - plain / FGSM > 10", "not measured"),
])  # fmt: skip
def test_a_claim_may_compare_a_difference_of_two_cells(written, outputs, comparison, verdict):
    name = written(claims=[claim(comparison)], published={"kind": "none"})
    fill(cells_of(read_table(name), outputs)[3], outputs, 9, 8)
    page = pages(name, outputs)[0].replace(WITHIN_CHANCE, "")
    assert f'- **{verdict}**: "smoothing helps"' in page
    assert "LS_0.9 / clean (90.00) - " in page


@pytest.mark.parametrize("profile", ["paper", "smoke"])
def test_signs_of_obfuscated_gradients_are_a_table_under_every_profile(written, outputs, profile):
    """They are about the model at hand; a claim that denies one and holds says that the sign is absent."""
    signs = [{**claim(comparison), "sign": sign, "evidence": "Table 1"} for sign, comparison in (
        ("1. One step", "LS_0.9 / FGSM < LS_0.9 / clean"), ("2. Queries", "LS_0.9 / FGSM > 80"), ("3. No bound", "plain / FGSM > 1"),
    )]  # fmt: skip
    name = written(profile=profile, claims=signs, published={"kind": "none"})
    fill(cells_of(read_table(name), outputs)[3], outputs, 9, 8)
    page = pages(name, outputs)[0].replace(WITHIN_CHANCE, "")
    _, _, table = page.partition("## The signs of obfuscated gradients, on our figures\n\n")
    rows = [[entry.strip() for entry in line.strip("|").split("|")] for line in table.splitlines()[:5]]
    assert [row[0] for row in rows[2:]] == ["1. One step", "2. Queries", "3. No bound"]
    assert [row[-1] for row in rows[2:]] == ["absent", "present", "not measured"]
    assert rows[2][1:4] == ['"smoothing helps" (section 5)', "Table 1", "LS_0.9 / FGSM (80.00) < LS_0.9 / clean (90.00): yes"]
    assert "The paper's claims" not in page


def test_a_smoke_table_shows_no_published_figure_and_checks_no_claim(written, outputs):
    name = written(profile="smoke", claims=[claim("LS_0.9 / clean > 1")])
    fill(cells_of(read_table(name), outputs)[3], outputs, 9, 8)
    page, rows, tex = pages(name, outputs)
    assert "PROFILE SMOKE: NOT A REPRODUCTION" in page
    assert "SMOKE: NOT A REPRODUCTION" in tex
    assert "(paper" not in page + tex
    assert "smoothing helps" not in page
    assert {row["published"] for row in rows} == {""}


def test_a_reshaped_table_stands_apart_from_the_real_one(written, outputs):
    written(profile="paper", findings=["All is well."])
    (real,), (small,) = chosen_tables([]), chosen_tables([], "smoke")
    assert write(real, cells_of(real, outputs), outputs) == outputs / "tables" / "paper" / "grid.md"
    path = write(small, cells_of(small, outputs), outputs)
    assert path == outputs / "tables" / "smoke" / "paper" / "grid.md"
    assert "All is well." not in path.read_text()
    assert "PROFILE=smoke" in path.read_text()


def test_a_shortened_table_compares_nothing(written, outputs):
    """The published figure stands there, but nothing says that ours is, or is not, within its band."""
    name = written(profile="quick", claims=[claim("LS_0.9 / clean > 1")])
    fill(cells_of(read_table(name), outputs)[3], outputs, 9, 8)
    page, rows, _ = pages(name, outputs)
    assert rows[3]["verdict"] == "not compared"
    assert "within the band" not in page.replace("within the band: at most", "")
    assert "smoothing helps" not in page


def test_deviations_of_the_real_settings_are_not_told_of_others(written, outputs):
    written(deviations=["Twenty epochs."])
    (real,), (small,) = chosen_tables([]), chosen_tables([], "smoke")
    assert "Twenty epochs." in write(real, cells_of(real, outputs), outputs).read_text()
    assert "Twenty epochs." not in write(small, cells_of(small, outputs), outputs).read_text()


def test_labels_are_escaped_for_latex(written, outputs):
    name = written(rows=[{"label": r"L^2 {50 %} ~ \a"}], published={"kind": "none"})
    assert r"L\textasciicircum{}2 \{50 \%\} \textasciitilde{} \textbackslash{}a & " in pages(name, outputs)[2]


@pytest.mark.parametrize("label", ["[1.5] wide", "* of ours"])
def test_a_label_is_no_argument_of_the_line_above(written, outputs, label):
    r"""LaTeX looks for `*` and `[` after `\\`, for `[` after `\midrule` and `\toprule`."""
    name = written(corner=label, rows=[{"label": "plain"}, {"label": label}], published={"kind": "none"})
    lines = pages(name, outputs)[2].splitlines()
    assert f"{{}}{label} & - & - \\\\" in lines
    assert f"{{}}{label} & clean & FGSM \\\\" in lines
    assert r"plain & - & - \\" in lines


def test_a_bar_in_a_label_is_no_border_of_a_markdown_cell(written, outputs):
    name = written(rows=[{"label": "a | b"}, {"label": "c"}], published={"kind": "none"})
    page = pages(name, outputs)[0]
    assert r"| a \| b  | -     | -    |" in page
    assert "| c       | -     | -    |" in page, "as wide as it is written"


def test_a_record_that_says_less_of_its_origin_is_shown(written, outputs):
    name = written()
    path = fill(cells_of(read_table(name), outputs)[1], outputs, 9, 8)
    record = json.loads(path.read_text())
    for key in ("device", "platform", "commit", "versions", "seconds"):
        del record[key]
    path.write_text(json.dumps(record))
    page, rows, _ = pages(name, outputs)
    assert rows[1]["ours"] == "80"
    assert "- platform: not said" in page


def test_a_record_of_another_schema_is_named_and_not_shown(written, outputs):
    name = written()
    path = fill(cells_of(read_table(name), outputs)[1], outputs, 9, 8, schema=7)
    page, rows, _ = pages(name, outputs)
    assert rows[1]["ours"] == ""
    assert f"- skipped for plain / FGSM: {path} has schema 7, this version reads 1" in page
    assert rows[1]["problem"].startswith(f"{path} has schema 7")
