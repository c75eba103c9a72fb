"""The report as a pure function of records and conf/: figures worked out by hand, what may not be shown, what may not be fetched."""

import functools
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import fake_records as fake
import numpy as np
import pytest
import yaml
from PIL import Image

from robustbench_lab.jobs import report as report_job
from robustbench_lab.report import page as report
from robustbench_lab.report.charts import LINES, Pair, Point, Reach, curves_chart, pairs_chart, reaches_chart, ticks
from robustbench_lab.report.entries import Ball
from robustbench_lab.report.page import write_report
from robustbench_lab.report.pictures import Album, examples_of
from robustbench_lab.report.shelf import CLASSES, class_of
from robustbench_lab.settings.conf import CONF, compose
from robustbench_lab.settings.identity import evaluation_of
from robustbench_lab.storage.files import write_json
from robustbench_lab.tables import expansion
from robustbench_lab.tables.cells import Cell, cells_of
from robustbench_lab.tables.reading import chosen_tables, read_table

TABLE: dict[str, Any] = {
    "title": "A table of 2 x 2 & more",
    "source": "a paper, Table 9",
    "profile": "paper",
    "corner": "defense",
    "metric": "robust_accuracy",
    "overrides": ["dataset=mnist", "backbone=small_cnn", "attack=fgsm", "budget=linf", "budget.eps=0.1"],
    "rows": [{"label": "plain", "overrides": ["defense=standard"]}, {"label": "LS_0.9", "overrides": ["defense=label_smoothing"]}],
    "columns": [{"label": "clean", "metric": "clean_accuracy"}, {"label": "FGSM"}],
    "published": {"kind": "exact", "source": "Table 9", "band": 40, "values": [[95.5, 30], [None, 41.25]]},
    "claims": [{"text": "LS is weaker", "source": "section 4", "holds_if": ["LS_0.9 / FGSM < plain / FGSM"]}],
    "findings": ["FGSM leaves {ours: plain / FGSM}."],
    "deviations": ["We differ here."],
}
PLAIN = str.maketrans({"\N{EN DASH}": "-", "\N{MINUS SIGN}": "-", "\N{MULTIPLICATION SIGN}": "x"})
VOID = {"meta", "link", "br", "img", "input"}


@dataclass
class Page(HTMLParser):
    """What a test asks of the page: its tables as text, its attributes, its headings."""

    text: str
    tables: dict[str, list[list[str]]] = field(default_factory=dict)  # caption -> rows of cells
    attributes: list[tuple[str, str, str]] = field(default_factory=list)  # element, attribute, value
    headings: list[tuple[int, str]] = field(default_factory=list)
    words: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self._open: list[str] = []
        self._caption, self._rows = "", list[list[str]]()
        self.feed(self.text.translate(PLAIN).replace("<wbr>", ""))
        assert not self._open, f"left open: {self._open}"
        self.words = " ".join(self.words.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self._caption, self._rows = "", []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
        elif re.fullmatch("h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes nothing"
        if tag == "table":
            self.tables[" ".join(self._caption.split())] = [[" ".join(cell.split()) for cell in row] for row in self._rows]

    def handle_data(self, data: str) -> None:
        if "script" in self._open or "style" in self._open:
            return
        self.words += f"{data} "
        if "caption" in self._open:
            self._caption += data
        elif {"td", "th"} & set(self._open):
            self._rows[-1][-1] += f"{data} "
        elif any(re.fullmatch("h[1-6]", tag) for tag in self._open):
            level, told = self.headings[-1]
            self.headings[-1] = (level, told + data)

    def table(self, starts: str) -> list[list[str]]:
        (found,) = [rows for caption, rows in self.tables.items() if caption.startswith(starts)]
        return found

    def values(self, attribute: str) -> list[str]:
        return [value for _, name, value in self.attributes if name == attribute]


@pytest.fixture
def outputs(tmp_path) -> Path:
    return tmp_path / "outputs"


@functools.cache
def composed(verb: str, words: tuple[str, ...]) -> Any:
    """Hydra's part of a test is most of its time."""
    return compose(verb, words)


@pytest.fixture
def cells(tmp_path, monkeypatch, outputs) -> Callable[..., list[Cell]]:
    """`cells(metric="...")`: the cells of the only table there is, TABLE with these keys changed (None: left out)."""
    monkeypatch.setenv("ROBUSTBENCH_LAB_TABLES", str(tmp_path / "table"))
    monkeypatch.setattr(expansion, "compose", lambda verb, words: composed(verb, tuple(words)))

    def write(profile: str = "paper", **changed: Any) -> list[Cell]:
        path = tmp_path / "table" / "fm" / "grid.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump({key: value for key, value in (TABLE | changed).items() if value is not None}))
        (table,) = chosen_tables([], profile)
        return cells_of(table, outputs)

    return write


def fill(cell: Cell, outputs: Path, clean: int, robust: int, n: int = 10, **more: Any) -> Path:
    """Train and evaluate a cell; the evaluation's folder."""
    fake.train(cell.evaluation.run, outputs, [{"seconds": 40.0, "loss_model": 2.0}, {"seconds": 2.5, "loss_model": 0.5}])
    return fake.evaluate(cell.evaluation, outputs, clean, robust, n, **more)


def other(outputs: Path, clean: int, robust: int, *words: str, n: int = 10) -> Path:
    """An evaluation of the first row's model that is in no table."""
    words = ("dataset=mnist", "backbone=small_cnn", "defense=standard", "budget=linf", "budget.eps=0.1", *words)
    cfg, choices = composed("evaluate", words)
    return fake.evaluate(evaluation_of(cfg, choices, words), outputs, clean, robust, n)


def page_of(outputs: Path) -> Page:
    path = write_report(outputs)
    assert path == outputs / "report" / "index.html"
    return Page(path.read_text())


# A table and what stands under it


def test_the_grid_shows_ours_interval_published_difference_and_verdict(cells, outputs):
    """Wilson by hand, z = 1.96: 9/10 -> 59.58 to 98.21; 8/10 -> 49.02 to 94.33; 5/10 -> 23.66 to 76.34."""
    found = cells()
    fill(found[1], outputs, 9, 8, warnings=[{"code": "transfer_only", "message": "it did not see"}])
    fill(found[3], outputs, 5, 5)
    page = page_of(outputs)
    assert page.table("Ours with its 95 % interval, n = 10 test images; the published figure") == [
        ["defense", "clean", "FGSM"],
        [
            "plain",
            "90.00 a 59.58 to 98.21 paper 95.50 -5.50 within the band",
            "80.00 a 49.02 to 94.33 paper 30.00 +50.00 differs",
        ],
        ["LS_0.9", "50.00 23.66 to 76.34 no published figure", "50.00 23.66 to 76.34 paper 41.25 +8.75 within the band"],
    ]
    assert "a transfer_only : it did not see (2 cells)" in page.words or "a transfer_only : it did not see (plain" in page.words
    assert page.table("Every table")[2] == ["fm/grid", "paper", "4 of 4", "2", "1", "1 of 1", "transfer_only"]
    assert (2, "Feature Matching") in page.headings
    assert (3, "A table of 2 x 2 & more") in page.headings
    assert "FGSM leaves 80.00." in page.words
    assert "We differ here." in page.words
    assert "holds (within chance) LS is weaker (section 4)" in page.words
    assert "LS_0.9 / FGSM (50.00) < plain / FGSM (80.00): yes" in page.words
    assert "Not measured yet" not in page.words


def test_what_is_known_at_a_smaller_size_stands_beside_the_published_figures(cells, outputs, tmp_path):
    """Of a table that is not measured, and of the rows that one still waits for."""
    own = cells()
    nothing = {"published": {"kind": "none"}, "claims": [], "findings": [], "deviations": []}
    small = {**TABLE, **nothing, "title": "A small one", "profile": "quick", "overrides": ["backbone=mlp", "attack=fgsm"]}
    stand_ins = {"plain": ["plain"], "LS_0.9": ["plain", "LS_0.9"]}
    smaller = [{"table": "quick/small", "rows": stand_ins, "columns": {"clean": "clean", "FGSM": "FGSM"}, "note": "It is <small>."}]
    for name, content in (("quick/small", small), ("fm/grid", TABLE | {"smaller": smaller})):
        path = tmp_path / "table" / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(content))
    known = ["plain", "quick/small", "90.00 59.58 to 98.21, n = 10", "80.00 49.02 to 94.33, n = 10"]
    head, waiting = ["Model", "Table", "clean", "FGSM"], ["LS_0.9", "published", "-", "41.25"]
    assert "smaller size" not in page_of(outputs).words
    fill(cells_of(read_table("quick/small"), outputs)[0], outputs, 9, 8)
    page = page_of(outputs)
    unmeasured = page.words.partition("Not measured yet 1 table")[2]
    assert unmeasured.startswith(" A table of 2 x 2 & more make reproduce-tables TABLES=fm/grid What is known today, at a smaller size")
    assert page.table("Below each published row") == [head, ["plain", "published", "95.50", "30.00"], known, waiting, known]
    assert "quick/small (plain; LS_0.9): A small one. It is <small>. Not measured yet: 2 of these 4 figures" in page.words
    fill(own[1], outputs, 7, 6)
    page = page_of(outputs)
    assert "Not measured yet 1 table" not in page.words
    assert page.table("Below each published row") == [head, waiting, known]


def test_a_missing_cell_is_a_dash_that_leads_to_its_command(cells, outputs):
    found = cells()
    fill(found[1], outputs, 9, 8)
    page = page_of(outputs)
    assert page.table("Ours")[2] == ["LS_0.9", "-", "- paper 41.25"]
    assert "2 cells are missing: what fills them" in page.words
    assert "All of them: make reproduce-tables TABLES=fm/grid" in page.words
    assert "python -m robustbench_lab train dataset=mnist backbone=small_cnn defense=label_smoothing" in page.words
    assert (
        "python -m robustbench_lab evaluate dataset=mnist backbone=small_cnn attack=fgsm budget=linf budget.eps=0.1 defense=label_smoothing"
        in page.words
    )
    assert "does not hold LS" not in page.words
    assert "not measured LS is weaker" in page.words


def test_a_missing_transfer_cell_names_the_attackers_run_first(cells, outputs):
    transfer = ["threat_model=black_transfer", "threat_model.overrides=[seed=7]"]
    found = cells(columns=[{"label": "white"}, {"label": "FGSM", "overrides": transfer}])
    fill(found[0], outputs, 9, 8)
    (commands,) = re.findall(r"plain / FGSM ((?:python \S+ \S+ \S+ .*?)) LS_0", page_of(outputs).words)
    verbs = re.findall(r"robustbench_lab (\w+) ([^\n]*?)(?= python|$)", commands)
    assert [verb for verb, _ in verbs] == ["train", "train", "evaluate"]
    assert "seed=7" in verbs[0][1]
    assert "seed=7" not in verbs[1][1]


def test_a_table_without_any_record_names_the_command_that_makes_it(cells, outputs):
    cells()
    page = page_of(outputs)
    assert page.table("Every table")[2] == ["fm/grid", "paper", "not measured yet: make reproduce-tables TABLES=fm/grid"]
    assert (3, "Not measured yet") in page.headings
    assert "There are none yet" in page.words


def test_sizes_that_differ_stand_in_their_cells(cells, outputs):
    found = cells()
    fill(found[1], outputs, 9, 8)
    fill(found[3], outputs, 500, 500, n=1000)
    rows = page_of(outputs).table("Ours with its 95 % interval and n, the number of test images")
    assert rows[1][2].startswith("80.00 49.02 to 94.33 n = 10 paper")
    assert " n = 1,000 " in rows[2][2]


def test_a_smoke_table_says_so_in_large_letters_and_beside_no_published_figure(cells, outputs):
    for cell in cells(profile="smoke"):
        fill(cell, outputs, 9, 8)
    page = page_of(outputs)
    assert '<p class="banner"><strong>SMOKE</strong>' in page.text
    assert "SMOKE embedded data and tiny models, to show that everything runs; it reproduces nothing" in page.words
    assert page.table("Ours")[1] == ["plain", "90.00 59.58 to 98.21", "80.00 49.02 to 94.33"]
    for told in ("paper 95.50", "+50.00", "within the band of", "LS is weaker", "FGSM leaves"):
        assert told not in page.words
    assert page.table("Every table")[2][:5] == ["fm/grid", "SMOKE", "4 of 4", "-", "-"]
    assert "The published figures are left out: these cannot be held against them." in page.words
    assert "-pairs" not in page.text


def test_a_quick_table_says_so_in_large_letters(cells, outputs):
    fill(cells(profile="quick")[1], outputs, 9, 8)
    page = page_of(outputs)
    assert '<p class="banner"><strong>QUICK</strong>' in page.text
    assert "QUICK real data, SHORT SCHEDULE: not the paper's settings" in page.words
    assert page.table("Ours")[1][2] == "80.00 49.02 to 94.33 paper 30.00 +50.00 not compared"
    assert "FGSM leaves" not in page.words, "findings speak of the real figures"


@pytest.mark.parametrize(
    ("words", "recorded"),
    [
        (["defense=fm", "defense.start_epoch=2"], ["defense=fm_quick"]),
        (["defense=fm_quick", "defense.start_epoch=20"], ["defense=fm"]),
        (["attack=pgd", "attack.steps=100", "attack.relative_step_size=0.05", "attack.restarts=2"], ["attack=pgd100"]),
    ],
)
def test_a_record_made_by_other_words_of_the_same_content_is_shown(cells, outputs, words, recorded):
    (cell,) = cells(rows=[{"label": "FM", "overrides": words}], columns=[{"label": "robust"}], published={"kind": "none"},
                    claims=[], findings=[])  # fmt: skip
    words = (*TABLE["overrides"], *recorded)
    cfg, choices = composed("evaluate", words)
    evaluation = evaluation_of(cfg, choices, words)
    assert evaluation.fingerprint == cell.evaluation.fingerprint
    assert (evaluation.name, evaluation.run.name) != (cell.evaluation.name, cell.evaluation.run.name)
    fake.train(evaluation.run, outputs)
    fake.evaluate(evaluation, outputs, 9, 8)
    assert page_of(outputs).table("Ours")[1] == ["FM", "80.00 49.02 to 94.33"]


def test_the_class_behind_a_choice_is_the_one_that_hydra_composes():
    """Of every file that inherits it, one of each group at a time."""
    heirs = {
        group: [file.stem for file in sorted((CONF / group).glob("*.yaml")) if "\n_target_:" not in file.read_text()] for group in CLASSES
    }
    assert heirs["defense"]
    while any(heirs.values()):
        words = [f"{group}={names.pop()}" for group, names in heirs.items() if names]
        cfg, _ = compose("evaluate", words)
        for word in words:
            group = word.partition("=")[0]
            assert class_of(word) == (group, cfg[group]["_target_"])
    assert class_of("attack='pgd100'") == class_of("attack=pgd")
    assert class_of("+attack@attack.attacks.square=square") is None


def test_the_paper_comes_before_its_smaller_profiles(cells, outputs):
    for profile in ("smoke", "paper"):
        fill(cells(profile=profile)[1], outputs, 9, 8)
    page = page_of(outputs)
    assert [row[1] for row in page.table("Every table")[2:]] == ["paper", "SMOKE"]
    places = [page.text.index(told) for told in ('<article id="fm-grid-paper"', '<article id="fm-grid-smoke"', 'class="banner"')]
    assert places == sorted(places)


def test_a_record_of_other_weights_is_not_shown(cells, outputs):
    cell = cells()[1]
    fill(cell, outputs, 9, 8)
    write_json(cell.evaluation.run.folder(outputs) / "run.json", {"schema": 1, "model_digest": "retrained", "config": {}})
    page = page_of(outputs)
    assert page.table("Every table")[2][2].startswith("not measured yet")
    assert len(page.table("Every record")) == 2, "the record itself is still listed"


METRICS: dict[str, Any] = {
    "overrides": [*TABLE["overrides"], "metric=[loss_sensitivity]", "attack_misclassified=true"],
    "columns": [
        {"label": "sensitivity", "metric": "metrics.loss_sensitivity", "form": ".3f"},
        {"label": "attacked", "metric": "attacked_accuracy"},
        {"label": "FGSM"},
    ],
    "published": {"kind": "exact", "source": "Table 9", "band": [0.1, 3, None], "values": [[0.203, 83, 30], [0.2, None, None]]},
    "claims": [], "findings": ["Theirs is {paper: plain / sensitivity}."],
}  # fmt: skip


def test_metrics_are_shown_as_they_are_and_kept_out_of_the_chart_of_percentages(cells, outputs):
    """8 of 10 robust: the metric is 0.25 over the 2 broken images; attacked 8.5 of 10, 54.12 to 96.46 by Wilson."""
    found = cells(**METRICS)
    fill(found[0], outputs, 9, 8)
    nothing = {"metrics": {"loss_sensitivity": {"mean": None, "interval": None, "n": 0}}}
    fill(found[3], outputs, 9, 8, **nothing)
    page = page_of(outputs)
    (caption,) = [caption for caption in page.tables if caption.startswith("Ours")]
    assert caption == (
        "Ours with its 95 % interval, n = 10 test images; where the figure is no percentage, n is of those that count; the published "
        "figure (Table 9), the difference, and whether it is within the band, at most 0.1 apart (sensitivity); at most 3 points apart "
        "(attacked); not compared (FGSM)."
    )
    assert page.table("Ours")[1:] == [
        [
            "plain",
            "0.250 0.200 to 0.300 n = 2 paper 0.203 +0.047 within the band",
            "85.00 54.12 to 96.46 paper 83.00 +2.00 within the band",
            "80.00 49.02 to 94.33 paper 30.00 +50.00 not compared",
        ],
        ["LS_0.9", "- no image counts n = 0 paper 0.200", "85.00 54.12 to 96.46 no published figure",
         "80.00 49.02 to 94.33 no published figure"],
    ]  # fmt: skip
    assert "Theirs is 0.203." in page.words
    assert "1 of 1 cells lie within 3 points of the published figure. The largest difference is +2.00" in page.text
    assert page.table("Every table")[2][:5] == ["fm/grid", "paper", "6 of 6", "2", "0"]


def test_a_table_of_metrics_alone_has_no_chart_of_pairs(cells, outputs):
    published = {"kind": "exact", "source": "Table 9", "band": 0.1, "values": [[0.203], [0.4]]}
    for cell in cells(**METRICS | {"columns": METRICS["columns"][:1], "published": published}):
        fill(cell, outputs, 9, 8)
    page = page_of(outputs)
    assert "-pairs" not in page.text
    (caption,) = [caption for caption in page.tables if caption.startswith("Ours")]
    assert caption.endswith("the difference, and whether it is within the band, at most 0.1 apart.")
    assert page.table("Every table")[2][3:5] == ["1", "1"]


MIXED: dict[str, Any] = {
    "rows": [{"label": "plain", "overrides": ["defense=standard"]}, {"label": "RoCL", "not_run": "no <code> of it"}],
    "columns": [{"label": "FGSM"}, {"label": "PGD", "metric": "accuracy_of_runs", "overrides": ["attack=pgd_fm_five"]}],
    "published": {
        "kind": "exact", "source": "Table 9", "band": 40, "values": [[81.63, "80.03 ± 0.15"], ["49.66 ± 0.3", None]],
        "quoted": [{"cells": "RoCL / *", "source": "Kim <et al.>"}],
    },
    "claims": [{"text": "FM holds", "source": "section 6", "evidence": "Table 1: <81.63>", "holds_if": ["plain / FGSM > 50"]}],
    "findings": [],
}  # fmt: skip


def test_runs_quoted_figures_and_rows_that_are_not_run(cells, outputs):
    """Accuracies 70, 80 and 90 of the runs: 80 ± 10."""
    found = cells(**MIXED)
    fill(found[0], outputs, 9, 8)
    fill(found[1], outputs, 9, 6, runs={"accuracies": [0.7, 0.8, 0.9]})
    page = page_of(outputs)
    assert page.table("Ours with its 95 % interval")[1:] == [
        ["plain", "80.00 49.02 to 94.33 paper 81.63 -1.63 within the band", "80.00 ± 10.00 paper 80.03 ± 0.15 -0.03 within the band"],
        ["RoCL", "- quoted 49.66 ± 0.30", "-"],
    ]
    assert "± is the sample standard deviation over the runs of one attack." in page.words
    assert "not run (no <code> of it): RoCL" in page.words
    assert "quoted from Kim <et al.>: RoCL (FGSM)" in page.words
    assert "holds FM holds (section 6) The paper\N{RIGHT SINGLE QUOTATION MARK}s evidence: Table 1: <81.63>" in page.words
    assert page.table("Every table")[2][:5] == ["fm/grid", "paper", "2 of 2", "2", "0"]
    assert "missing" not in page.words
    assert page.table("Robust accuracy where")[1] == [
        "plain",
        "linf 0.1",
        "pgd_fm_five",
        "80.03",
        "80.00",
        "pgd_fm_five",
        "60.00",
        "-20.03",
    ]


# At first sight


def test_a_card_says_the_published_figure_ours_and_ours_under_the_strongest_attack(cells, outputs):
    found = cells()
    fill(found[1], outputs, 9, 8)
    fill(found[3], outputs, 9, 7)
    other(outputs, 9, 4, "attack=pgd")
    page = page_of(outputs)
    assert page.table("Accuracy under attack, linf 0.1") == [
        ["Model", "", "Paper", "Ours", "Strongest"],
        ["plain", "", "30.00", "80.00", "40.00"],
        ["LS_0.9", "", "41.25", "70.00", "70.00"],
    ]
    assert "no other attack was tried than fgsm" in page.values("title")
    assert page.words.index("Accuracy under attack") < page.words.index("Every table") < page.words.index("Ours with its 95 % interval")


def test_a_headline_is_of_the_ball_with_published_figures_and_else_of_the_datasets_own(cells, outputs):
    """conf/dataset/mnist.yaml: linf 0.3."""
    columns = [{"label": str(eps), "overrides": [f"budget.eps={eps}"]} for eps in (0.1, 0.2, 0.3, 0.4)]
    for values, ball in (([60, 40, None, None], "linf 0.2"), ([None, None, None, None], "linf 0.3")):
        published = {"kind": "exact", "source": "Table 9", "band": 1, "values": [values, values]}
        for cell in cells(columns=columns, published=published, claims=[], findings=[]):
            fill(cell, outputs, 9, 8)
        page = page_of(outputs)
        assert [told for told in page.tables if told.startswith("Accuracy under attack")] == [f"Accuracy under attack, {ball}"]
        assert "plain: " in page.text
        assert page.text.count('<td class="ball">linf 0.4</td>') == 2, "the table of all balls stays whole"


def test_the_headline_of_other_metrics_is_a_column(cells, outputs):
    for cell in cells(**METRICS | {"metric": "metrics.loss_sensitivity", "columns": METRICS["columns"][:2],
                                   "published": {"kind": "none"}, "corner": "model / measure"}):  # fmt: skip
        fill(cell, outputs, 9, 8)
    assert page_of(outputs).table("loss sensitivity, measure sensitivity") == [["Model", "Ours"], ["plain", "0.250"], ["LS_0.9", "0.250"]]


def test_all_but_the_cards_is_folded_away(rich):
    assert re.findall(r"<details([^>]*)\bopen\b", rich.text) == [' class="contents" ']
    before, _, after = rich.text.partition('<section id="overview"')
    assert before.count('<div class="card">') == 2
    assert '<div class="card' not in after
    assert rich.text.count('<details class="table">') == 2


def test_a_table_wider_than_a_page_lies_on_its_side(cells, outputs):
    columns = [{"label": f"{eps / 10}", "overrides": [f"budget.eps={eps / 10}"]} for eps in range(1, 10)]
    found = cells(columns=columns, corner="defense / eps", published={"kind": "none"}, claims=[], findings=[])
    fill(found[10], outputs, 9, 8)  # of the second row, the second column
    rows = page_of(outputs).table("Ours")
    assert rows[0] == ["eps / defense", "plain", "LS_0.9"]
    assert rows[2] == ["0.2", "-", "80.00 49.02 to 94.33"]
    assert len(rows) == 10


# The project's own results


@pytest.fixture
def reference(tmp_path) -> Path:
    return tmp_path / "reference"


def test_the_projects_results_stand_behind_ones_own_and_are_marked(cells, outputs, reference):
    found = cells()
    fill(found[1], outputs, 9, 8)
    for cell in found[1], found[3]:
        fill(cell, reference, 9, 6)
    page = Page(write_report(outputs, reference=reference).read_text())
    assert "1 measured table, 1 record; beside them 1 table that the project measured and publishes with the code" in page.words
    headings = [told for level, told in page.headings if level == 3]
    assert headings[:2] == ["Measured here", "Measured by the project, published with the code"]
    own, theirs = page.text.index('<article id="fm-grid-paper"'), page.text.index('<article id="project-fm-grid-paper"')
    told = page.text.index("Measured by the project, published with the code: not your runs.")
    assert own < theirs < told
    overview = page.table("Every table")
    assert [row[0] for row in overview[2:]] == ["fm/grid", "fm/grid project"]
    assert [row[2] for row in overview[2:]] == ["2 of 4", "4 of 4"]
    head, *rows = page.table("Every record")
    assert head[13] == "By"
    assert [(row[9], row[13]) for row in rows] == [("80.00", "you"), ("60.00", "project"), ("60.00", "project")]
    assert sorted(value[:19] for value in page.values("href") if "record.json" in value)[-1].startswith("../runs/")
    assert any(value.startswith("../../reference/runs/") for value in page.values("href"))


def test_what_the_project_tried_says_nothing_of_ones_own_model(cells, outputs, reference):
    cell = cells()[1]
    fill(cell, outputs, 9, 8)
    fill(cell, reference, 9, 8)
    other(reference, 9, 2, "attack=pgd")
    text = write_report(outputs, reference=reference).read_text()
    own, theirs = text.split('<article id="project-')
    assert "strongest attack (fgsm) 80.00" in own
    assert "pgd" not in own.partition("<article")[2]
    assert "strongest attack (pgd) 20.00" in theirs


def test_a_damaged_file_of_the_projects_is_named_as_such(cells, outputs, reference):
    path = fill(cells()[1], reference, 9, 8) / "record.json"
    path.write_text("{")
    page = Page(write_report(outputs, reference=reference).read_text())
    assert path.relative_to(reference.parent).as_posix() in page.words
    assert "1 file could not be read, 0 jobs failed." in page.words


def packed(cell: Cell, root: Path) -> Path:
    """The cell's evaluation where a published run has it: beside run.json, with others in one file."""
    evaluation = cell.evaluation
    folder = evaluation.at(root)
    evaluation.run.at(root).pack.add({folder.name: (folder.read(), {"examples.npz": folder.arrays("examples.npz")})})
    shutil.rmtree(folder.path)
    return evaluation.run.folder(root) / "evaluations.jsonl"


def test_what_is_published_in_one_file_is_shown_like_what_lies_in_folders(cells, outputs, reference):
    cell = cells()[1]
    fake.draw_examples(fill(cell, outputs, 9, 8))
    alone = page_of(outputs)
    file = packed(cell, outputs)
    page = page_of(outputs)
    assert page.words == alone.words
    assert quote(f"../{file.relative_to(outputs).as_posix()}") in page.values("href")
    file.write_text("{")
    page = page_of(outputs)
    assert f"{file.relative_to(outputs).as_posix()} :1 is damaged" in page.words


def test_no_project_results_are_shown_where_there_are_none_or_they_are_ones_own(cells, outputs, reference):
    fill(cells()[1], outputs, 9, 8)
    alone = page_of(outputs).text
    assert write_report(outputs, reference=reference).read_text() == alone, "an installed package has no such folder"
    assert write_report(outputs, reference=outputs).read_text() == alone
    assert "project" not in Page(alone).words


def test_the_verb_shows_the_projects_results_unless_told_otherwise(monkeypatch, cells, outputs, reference):
    fill(cells()[1], reference, 9, 8)
    monkeypatch.setattr("robustbench_lab.jobs.report.reference_results", lambda: reference)
    for words, shown in ([], True), (["reference=false"], False):
        cfg, _ = compose("report", [f"output_root={outputs}", *words])
        report_job.main(cfg)
        assert ("Measured by the project" in (outputs / "report" / "index.html").read_text()) == shown


# Claimed and strongest


def test_the_strongest_attack_is_that_of_the_same_model_and_ball_seen_by_the_attacker(cells, outputs):
    found = cells()
    fill(found[1], outputs, 9, 8)
    fill(found[3], outputs, 9, 1)  # another model
    other(outputs, 9, 6, "attack=pgd")
    other(outputs, 9, 4, "attack=pgd100")
    other(outputs, 9, 2, "attack=pgd", "budget.eps=0.2")
    other(outputs, 9, 3, "attack=square", "threat_model=black_queries")
    page = page_of(outputs)
    assert page.table("Robust accuracy where the attacker sees everything")[1:] == [
        ["plain", "linf 0.1", "fgsm", "30.00", "80.00", "pgd100", "40.00", "+10.00"],
        ["LS_0.9", "linf 0.1", "fgsm", "41.25", "10.00", "fgsm", "10.00", "-31.25"],
    ]
    assert "plain: paper 30.00, ours 80.00, strongest attack (pgd100) 40.00" in page.text


def test_a_record_of_older_weights_is_no_strongest_attack(cells, outputs):
    fill(cells()[1], outputs, 9, 8)
    path = other(outputs, 9, 1, "attack=pgd") / "record.json"
    path.write_text(path.read_text().replace('"model_digest": "weights of', '"model_digest": "older weights of'))
    assert page_of(outputs).table("Robust accuracy where")[1][5:7] == ["fgsm", "80.00"]


def test_the_papers_own_figure_is_its_lowest(cells, outputs):
    columns = [{"label": "FGSM"}, {"label": "PGD", "overrides": ["attack=pgd"]}, {"label": "MIM", "overrides": ["attack=mim"]}]
    published = {"kind": "exact", "source": "Table 9", "band": 1, "values": [[60, 40, 50], [60, 40, 50]]}
    for cell, robust in zip(cells(columns=columns, published=published)[:3], (5, 8, 3), strict=True):
        fill(cell, outputs, 9, robust)
    row = page_of(outputs).table("Robust accuracy where")[1]
    assert row == ["plain", "linf 0.1", "pgd", "40.00", "80.00", "mim", "30.00", "-10.00"]


def test_a_strongest_attack_on_other_images_says_on_how_many(cells, outputs):
    fill(cells()[1], outputs, 9, 8)
    other(outputs, 500, 100, "attack=pgd", n=1000)
    assert page_of(outputs).table("Robust accuracy where")[1][5] == "pgd, n = 1,000"


def test_a_model_has_the_name_of_its_column_where_rows_are_attacks(cells, outputs):
    rows = [{"label": "one step", "overrides": ["attack=fgsm"]}, {"label": "iterated", "overrides": ["attack=pgd"]}]
    columns = [{"label": "A", "overrides": ["defense=standard"]}, {"label": "B", "overrides": ["defense=label_smoothing"]}]
    published = {"kind": "none"}
    for cell, robust in zip(cells(rows=rows, columns=columns, published=published, claims=[], findings=[]), (8, 7, 6, 5), strict=True):
        fill(cell, outputs, 9, robust)
    page = page_of(outputs)
    assert [row[0] for row in page.table("Robust accuracy where")[1:]] == ["A", "B"]
    assert page.table("Robust accuracy where")[1] == ["A", "linf 0.1", "pgd", "60.00", "pgd", "60.00", "+0.00"]


def test_a_mean_stands_beside_the_papers_mean(cells, outputs):
    """75 % over the draws, 60 % in every draw; the paper counts as the table does, the strongest attack as the verdict does."""
    columns = [{"label": "FGSM", "metric": "robust_accuracy_mean"}]
    published = {"kind": "exact", "source": "Table 9", "band": 1, "values": [[77.5], [None]]}
    found = cells(columns=columns, published=published, claims=[], findings=[])
    fill(found[0], outputs, 9, 6, draws={"count": 10, "clean_accuracy_mean": 0.9, "robust_accuracy_mean": 0.75})
    page = page_of(outputs)
    assert page.table("Robust accuracy where")[1] == ["plain", "linf 0.1", "fgsm", "77.50", "75.00", "fgsm", "60.00", "-17.50"]
    assert "plain: paper 77.50, ours 75.00, strongest attack (fgsm) 60.00" in page.text
    told = "under the strongest attack only images count that are right in every one of them."
    assert page.words.count(told) == 2, "below the chart and the table"
    fill(cells()[1], outputs, 9, 8)
    assert "over draws or runs" not in page_of(outputs).words


def test_a_model_without_its_noise_is_another_model(cells, outputs):
    """Each with its own paper's figure, its own strongest attack and the name of its row."""
    noisy, silent = ["defense=pni"], ["defense=pni", "without_noise=true"]
    rows = [{"label": "PNI", "overrides": noisy}, {"label": "PNI, silent", "overrides": silent}]
    published = {"kind": "exact", "source": "Table 9", "band": 1, "values": [[None, 45], [None, 30]]}
    found = cells(rows=rows, published=published, claims=[], findings=[])
    fake.draw_examples(fill(found[1], outputs, 9, 8, panel=fake.panel("with")))
    fake.draw_examples(fill(found[3], outputs, 9, 5, panel=fake.panel("without")))
    other(outputs, 9, 6, *noisy, "attack=pgd")
    other(outputs, 9, 2, *silent, "attack=pgd100")
    page = page_of(outputs)
    assert page.table("Robust accuracy where")[1:] == [
        ["PNI", "linf 0.1", "fgsm", "45.00", "80.00", "pgd", "60.00", "+15.00"],
        ["PNI, silent", "linf 0.1", "fgsm", "30.00", "50.00", "pgd100", "20.00", "-10.00"],
    ]
    assert [row[0] for row in page.table("Masking panel")[1:]] == ["PNI", "PNI, silent"]
    assert [told for level, told in page.headings if level == 5 and "," in told] == [
        f"{name}, fgsm, white, linf 0.1" for name in ("PNI", "PNI, silent")
    ]
    assert "of 2 of 2 models" in page.words
    assert [row[0] for row in page.table("Training")[1:]] == ["PNI"], "one run"


def test_a_model_without_its_noise_is_told_from_it_where_rows_are_no_models(cells, outputs):
    rows = [{"label": label, "overrides": ["defense=pni", *words]} for label, words in (
        ("FGSM", ["attack=fgsm"]), ("PGD", ["attack=pgd"]), ("PGD, silent", ["attack=pgd", "without_noise=true"]),
    )]  # fmt: skip
    for cell in cells(rows=rows, columns=[{"label": "robust"}], published={"kind": "none"}, claims=[], findings=[]):
        fill(cell, outputs, 9, 8)
    names = [row[0] for row in page_of(outputs).table("Robust accuracy where")[1:]]
    assert names == ["pni", "pni without noise"]


@pytest.mark.parametrize(
    ("norm", "eps", "words"),
    [("linf", 8 / 255, "linf 8/255"), ("linf", 0.2, "linf 0.2"), ("l2", 0.5, "l2 0.5"), ("l0", 5, "l0 5"), ("l2", "inf", "l2, no bound")],
)
def test_a_ball_is_told_as_people_write_it(norm, eps, words):
    assert str(Ball.of({"norm": norm, "eps": eps})) == words


# The panel, examples, training, cost, provenance


def test_the_panel_and_its_signs(cells, outputs):
    sign = {"code": "zero_gradients", "message": "30.00 % of the images have a gradient of zero (n = 100)"}
    warnings = [sign, {"code": "transfer_only", "message": "says nothing of the model"}]
    found = cells()
    fill(found[1], outputs, 9, 8, panel=fake.panel(queries=0.12), warnings=warnings)
    fill(found[3], outputs, 9, 8, panel=fake.panel("def"))
    page = page_of(outputs)
    rows = page.table("Masking panel")
    assert "plain, linf 0.1: zero_gradients : 30.00 % of the images have a gradient of zero (n = 100)" in page.words
    tried = ["clean", "one step", "iterated", "more steps", "margin loss", "larger ball", "no bound", "queries", "random draws"]
    assert rows[0] == ["Model", "Ball", "n", *tried, "Signs found"]
    figures = ["97.0", "60.0", "50.0", "50.0", "50.0", "10.0", "0.0", "12.0", "90.0"]
    assert rows[1] == ["plain", "linf 0.1", "100", *figures, "zero_gradients"]
    assert rows[2][-1] == "none"


def test_examples_are_drawn_pixel_by_pixel(cells, outputs):
    """An image from 0 to 255; up by 0.25 (64) at its first pixel, down by 0.125 (32) at its last; magnified twice around mid grey."""
    fake.draw_examples(fill(cells()[1], outputs, 9, 8))
    page = page_of(outputs)
    assert "plain, fgsm, white, linf 0.1" in [told for _, told in page.headings]
    images = [source for tag, name, source in page.attributes if (tag, name) == ("img", "src")]
    assert len(images) == 3 * report.PICTURES
    assert page.values("loading") == ["lazy"] * len(images)
    clean, adversarial, difference, *_, unchanged = (pixels_of(outputs / "report" / image) for image in images[:6])
    assert clean.shape == (8, 8)
    assert (clean[0, 0], clean[-1, -1]) == (0, 255)
    assert (adversarial[0, 0], adversarial[-1, -1]) == (64, 223)
    assert np.array_equal(clean[0, 1:], adversarial[0, 1:])
    assert (difference[0, 0], difference[-1, -1], difference[3, 3]) == (255, 64, 128)
    assert (unchanged == 128).all()
    assert "0 (test image 100) clean: 0, right attacked: 1, wrong difference x 2, at most 0.25" in page.words
    assert "1 (test image 101) clean: 1, right attacked: 1, right unchanged" in page.words


def pixels_of(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_colour_examples_have_the_names_of_cifar10(tmp_path):
    fake.draw_examples(tmp_path, (6, 3, 4, 4))
    with np.load(tmp_path / "examples.npz") as arrays:
        first = examples_of(dict(arrays), "cifar10", 1, Album(tmp_path))[0]
    assert (first.label, first.clean_prediction, first.prediction) == ("airplane", "airplane", "automobile")
    assert pixels_of(tmp_path / first.clean.address).shape == (4, 4, 3)


def test_points_of_a_toy_dataset_are_no_pictures(tmp_path):
    fake.draw_examples(tmp_path, (6, 2, 1, 1))
    with np.load(tmp_path / "examples.npz") as arrays:
        assert examples_of(dict(arrays), "moons", 4, Album(tmp_path)) == []


def test_pictures_are_made_once_and_those_that_are_no_longer_shown_are_taken_away(cells, outputs):
    folder = fill(cells()[1], outputs, 9, 8)
    fake.draw_examples(folder)
    page_of(outputs)
    album = outputs / "report" / "pictures"
    made = {path.name: path.stat().st_mtime_ns for path in album.iterdir()}
    assert len(made) == 4, "clean, attacked and two differences: every second example is the first again"
    (album / "0123.png").write_bytes(b"of an older page")
    page_of(outputs)
    assert {path.name: path.stat().st_mtime_ns for path in album.iterdir()} == made
    (folder / "examples.npz").unlink()
    page_of(outputs)
    assert list(album.iterdir()) == []


def test_cost_adds_up_what_was_done_once(cells, outputs):
    found = cells()
    fill(found[1], outputs, 9, 8, seconds=3.0)
    fill(found[3], outputs, 9, 8, seconds=4.25)
    page = page_of(outputs)
    assert "Cost 85 s of training, 7 s of attacking" in page.words, "one evaluation fills two cells and counts once"
    assert page.table("Training")[1][2:] == ["2", "12,345", "42", "a device"]
    assert page.table("Attacking")[1] == ["plain / clean; plain / FGSM", "fgsm, white", "21.0", "20.0", "3.0", "a device"]


def test_provenance_is_there_in_full(cells, outputs):
    fill(cells()[1], outputs, 9, 8)
    words = page_of(outputs).words
    assert "Provenance a device; commit 0123456789ab+changes" in words
    assert "commit 0123456789abcdef+changes" in words
    assert "Versions python 3.11.7, torch 2.9 Commits" in words
    for line in ("budget.eps = 0.1", "threat_model.sees = defended", "defense._target_ = robustbench_lab.defenses.base.Defense"):
        assert line in words
    assert "python -m robustbench_lab evaluate" in words


def test_what_several_configs_share_is_told_once(cells, outputs):
    found = cells(columns=[{"label": "FGSM"}, {"label": "PGD", "overrides": ["attack=pgd"]}],
                  published={"kind": "none"}, claims=[], findings=[])  # fmt: skip
    for cell in found[:2]:
        fill(cell, outputs, 9, 8)
    words = page_of(outputs).words
    assert words.count("budget.eps = 0.1") == 1
    assert words.count("attack._target_ = ") == 2
    shared, _, own = words.partition("What all of these evaluations have")[2].partition("plain / FGSM")
    assert "budget.eps = 0.1" in shared
    assert "attack._target_ = robustbench_lab.attacks.pgd.PGD" in own


def test_curves_are_the_validation_accuracy_where_there_is_one(cells, outputs):
    cell = cells()[1]
    epochs = [
        {"seconds": 1.0, "loss_model": 2.0, "validation_accuracy": 0.5},
        {"seconds": 1.0, "loss_model": 1.0, "validation_accuracy": 0.75},
    ]
    fill(cell, outputs, 9, 8)
    assert "training loss, epoch by epoch. plain: 2 at first, 0.5 after epoch 2." in page_of(outputs).text
    fake.train(cell.evaluation.run, outputs, epochs)
    assert "validation accuracy, %, epoch by epoch. plain: 50 at first, 75 after epoch 2." in page_of(outputs).text


# All records


def test_every_record_is_listed(cells, outputs):
    found = cells()
    fill(found[1], outputs, 9, 8, warnings=[{"code": "one", "message": ""}, {"code": "two", "message": ""}])
    other(outputs, 9, 4, "attack=pgd")
    head, *rows = page_of(outputs).table("Every record")
    assert head[:10] == ["Dataset", "Backbone", "Defense", "Seed", "Attack", "Threat model", "Ball", "n", "Clean", "Robust"]
    listed = {row[4]: row for row in rows}
    expected = ["mnist", "small_cnn", "standard", "0", "fgsm", "white", "linf 0.1", "10", "90.00", "80.00", "49.02 to 94.33"]
    assert listed["fgsm"][:13] == [*expected, "2.0", "one, two"]
    assert listed["pgd"][12] == "-"
    path = f"{found[1].evaluation.run.name}/evaluate/{found[1].evaluation.name}"
    assert path in listed["fgsm"][13]
    assert "2026-11-21 10:50, a device, commit 0123456789ab+changes" in listed["fgsm"][13]
    assert "21.0 passes forward and 20.0 backward for each attacked image" in listed["fgsm"][13]
    assert "python -m robustbench_lab evaluate" in listed["pgd"][13], "the others' command lines stand under their tables"
    assert f'href="../runs/{path}/record.json"' in (outputs / "report" / "index.html").read_text()


def test_a_table_can_be_chosen_and_the_list_stays_whole(cells, outputs):
    fill(cells()[1], outputs, 9, 8)
    cfg, _ = compose("report", ["tables=[fm/*]", f"output_root={outputs}"])
    write_report(Path(cfg.output_root), cfg.tables)
    page = Page((outputs / "report" / "index.html").read_text())
    assert len(page.table("Every record")) == 2


def test_a_report_about_nothing(cells, outputs):
    cells()
    assert "0 measured tables, 0 records" in page_of(outputs).words


# What cannot be read


@pytest.mark.parametrize("damage", ["truncated", "a changed figure", "another schema", "no config", "a panel that is none"])
def test_a_damaged_record_is_named_and_counts_as_missing(cells, outputs, damage):
    found = cells()
    fill(found[3], outputs, 9, 8)
    path = fill(found[1], outputs, 9, 8) / "record.json"
    text = path.read_text()
    content = json.loads(text)
    changed = {
        "truncated": text[: len(text) // 2],
        "a changed figure": text.replace('"robust_accuracy": 0.8', '"robust_accuracy": 0.9'),
        "another schema": json.dumps(content | {"schema": 99}),
        "no config": json.dumps(content | {"config": None}),
        "a panel that is none": json.dumps(content | {"panel": [1]}),
    }[damage]
    assert changed != text
    path.write_text(changed)
    page = page_of(outputs)
    assert (3, "Files that could not be read") in page.headings
    assert path.relative_to(outputs).as_posix() in page.words
    assert "force=true" in page.words
    assert len(page.table("Every record")) == 2


@pytest.mark.parametrize("name", ["examples.npz", "metrics.jsonl", "run.json"])
def test_other_damaged_files_are_named(cells, outputs, name):
    cell = cells()[1]
    folder = fill(cell, outputs, 9, 8)
    path = (folder if name == "examples.npz" else cell.evaluation.run.folder(outputs)) / name
    path.write_bytes(b'{"epoch": ')
    page = page_of(outputs)
    assert (3, "Files that could not be read") in page.headings
    assert path.relative_to(outputs).as_posix() in page.words


def test_examples_that_do_not_fit_are_named(cells, outputs):
    folder = fill(cells()[1], outputs, 9, 8)
    np.savez_compressed(folder / "examples.npz", x=np.zeros((2, 1, 8, 8), np.uint8), delta=np.zeros((3, 1, 8, 8), np.float16))
    assert "examples.npz is damaged: it lacks clean_prediction, index, label, prediction" in page_of(outputs).words


def test_failed_jobs_are_listed(cells, outputs):
    cell = cells()[1]
    fill(cell, outputs, 9, 8)
    write_json(
        cell.evaluation.run.folder(outputs) / "evaluate" / "pgd-white-00000000" / "error.json", {"schema": 1, "error": "out of memory"}
    )
    page = page_of(outputs)
    assert (3, "Jobs that failed") in page.headings
    assert "pgd-white-00000000 out of memory" in page.words
    write_json(outputs / "runs" / "another" / "error.json", {"schema": 1, "error": "no such device"})
    assert "runs/another no such device" in page_of(outputs).words


# The page itself


EVIL = '<script>alert("x")</script> & $x_1$'


@pytest.fixture
def rich(cells, outputs) -> Page:
    """A page with everything on it, with labels and messages that would like to be code."""
    rows = [{"label": EVIL, "overrides": ["defense=standard"]}, {"label": "LS_0.9", "overrides": ["defense=label_smoothing"]}]
    found = cells(rows=rows, title=f"A title {EVIL}", claims=[], findings=[EVIL])
    warnings = [{"code": "zero_gradients", "message": EVIL}]
    fake.draw_examples(fill(found[1], outputs, 9, 8, warnings=warnings, panel=fake.panel(), command=EVIL))
    other(outputs, 9, 4, "attack=pgd")
    fill(cells(rows=rows, claims=[], findings=[], profile="smoke")[1], outputs, 9, 8)
    cells(rows=rows, title=f"A title {EVIL}", claims=[], findings=[EVIL])
    write_json(outputs / "runs" / "a-run" / "error.json", {"schema": 1, "error": EVIL})
    return page_of(outputs)


def test_labels_and_messages_are_text(rich):
    assert rich.text.count("<script") == 1, "the page's own"
    assert "alert(" in rich.words
    assert any(rows[1][0] == EVIL for caption, rows in rich.tables.items() if caption.startswith("Ours"))
    assert rich.words.count(EVIL) > 8


def test_nothing_is_fetched(rich):
    loaded = [value for _, name, value in rich.attributes if name in ("src", "srcset", "data", "action", "poster", "background")]
    loaded += [value for tag, name, value in rich.attributes if name == "href" and tag != "a"]
    assert loaded
    assert all(value.startswith(("data:", "#", "pictures/")) for value in loaded)
    assert all(value.startswith(("#", "../runs/")) for tag, name, value in rich.attributes if (tag, name) == ("a", "href"))
    assert not re.search(r"@import|url\((?!#)|https?://", rich.text)
    assert "default-src 'none'" in rich.text, "and a browser would not let it"


def test_every_link_within_the_page_has_its_target(rich):
    ids = rich.values("id")
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    anchors = {value[1:] for value in rich.values("href") if value.startswith("#")}
    references = {name for value in rich.values("aria-labelledby") for name in value.split()}
    assert len(anchors) > 10
    assert anchors | references <= set(ids)


def test_it_can_be_read_aloud(rich):
    assert '<html lang="en">' in rich.text
    levels = [level for level, _ in rich.headings]
    assert levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels)), "no level is left out"
    assert all(told.strip() for _, told in rich.headings)
    assert rich.text.count("<th ") == rich.values("scope").__len__()
    assert rich.text.count("<table") == rich.text.count("<caption")
    assert rich.text.count("<img") == len([value for value in rich.values("alt") if value])
    assert rich.text.count('<svg class="chart" role="img"') == rich.text.count("<desc") == rich.text.count("<svg")


def test_the_same_records_give_the_same_page(rich, outputs):
    assert page_of(outputs).text == rich.text


def test_colours_can_be_told_from_the_page():
    """WCAG 2.2, 1.4.3: 4.5 to 1 for text, in light and in dark."""
    css = (Path(report.__file__).parent / "templates" / "report.css").read_text()
    light, dark = (dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6});", part)) for part in re.findall(r":root \{(.*?)\}", css, re.S))
    assert light.keys() == dark.keys()
    for colours in (light, dark):
        for name in ("--ink", "--muted", "--link", "--ours", "--paper", "--worst", "--good"):
            assert contrast(colours[name], colours["--page"]) >= 4.5, name
        assert contrast(colours["--loud-ink"], colours["--loud-page"]) >= 4.5
        assert contrast(colours["--ink"], colours["--raised"]) >= 4.5
        for i in range(1, LINES + 1):
            assert contrast(colours[f"--series-{i}"], colours["--page"]) >= 3, "lines, 1.4.11"


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


# Charts


def test_a_chart_is_painted_by_the_page_and_places_its_marks():
    """Tracks run from 10 to 330: 50 % is at 170, 25 % at 90."""
    svg = reaches_chart("k", "A & B", [Reach("<b> $x$", "pgd", 75.0, Point(50, 40, 60), Point(25, 20, 30))])
    assert "<title" in svg
    assert "A &amp; B" in svg
    assert "&lt;b&gt; $x$</text>" in svg, "text stays text"
    assert not re.search("#[0-9a-f]{3}|font-family|xmlns", svg)
    marks = dict(re.findall(r'<path class="\w+" transform="translate\(([\d.]+) 53\)"[^>]* stroke="var\((--\w+)\)"', svg))
    assert marks == {"250": "--paper", "170": "--ours", "90": "--worst"}
    assert svg == reaches_chart("k", "A & B", [Reach("<b> $x$", "pgd", 75.0, Point(50, 40, 60), Point(25, 20, 30))])
    assert not set(re.findall(r'id="([^"]+)"', svg)) & set(re.findall(r'id="([^"]+)"', svg.replace("k-", "l-")))


def test_a_point_on_the_diagonal_is_one_that_agrees():
    """Axes from 40 to 60 over 296 pixels, from 34 to 330 across and from 320 to 24 up: 50 is at 182 and at 172."""
    svg = pairs_chart("k", "", [Pair(50, Point(50, 45, 55), True), Pair(60, Point(40, 40, 41), False)], 2)
    (agreeing,) = re.findall(r'<path class="circle" transform="translate\(([\d.]+) ([\d.]+)\)"[^>]* fill="var\(--ours\)"', svg)
    assert agreeing == ("182", "172")
    assert "1 of 2 cells lie within 2 points of the published figure. The largest difference is -20.00" in svg


def test_cells_with_bands_of_their_own_have_no_common_band_to_draw():
    pairs = [Pair(50, Point(50, 45, 55), True), Pair(60, Point(40, 40, 41), False)]
    svg = pairs_chart("k", "", pairs, None)
    assert "1 of 2 cells lie within their band of the published figure." in svg
    assert "var(--band)" not in svg
    assert "var(--band)" in pairs_chart("k", "", pairs, 2)


def test_only_so_many_curves_are_drawn():
    svg = curves_chart("k", "", "loss", [(f"run {i}", [1.0, 2.0], [1.0, 0.5]) for i in range(LINES + 1)])
    assert f"run {LINES - 1}</text>" in svg
    assert f"run {LINES}</text>" not in svg
    assert len(set(re.findall(r"var\((--series-\d)\)", svg))) == LINES


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [
        (0, 100, 5, [0, 20, 40, 60, 80, 100]),
        (40, 60, 5, [40, 45, 50, 55, 60]),
        (1, 8, 6, [2, 4, 6, 8]),
        (0.13, 0.41, 5, [0.15, 0.2, 0.25, 0.3, 0.35, 0.4]),
        (0.5, 0.5, 5, [0.5]),
    ],
)
def test_ticks_are_round_numbers(low, high, most, expected):
    assert ticks(low, high, most) == expected


def test_a_line_that_stays_where_it_is_can_be_drawn():
    assert "var(--series-1)" in curves_chart("k", "", "loss", [("run", [1.0, 2.0, 3.0], [0.5, 0.5, 0.5])])


def test_drawing_is_not_loaded_for_nothing(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom robustbench_lab.jobs.report import write_report\n"
        f"write_report(Path({str(tmp_path)!r}), ['smoke/digits'])\nprint(sorted({{'torch', 'matplotlib', 'sklearn'}} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"
