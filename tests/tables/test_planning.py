"""Plans: each job once, what is finished, and estimates worked out by hand from like jobs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_records as fake
import pytest
import torch

from robustbench_lab.intervals import wilson_interval
from robustbench_lab.settings.identity import run_at_words
from robustbench_lab.storage.files import write_json
from robustbench_lab.storage.records import MODEL_FILE, RUN_FILE
from robustbench_lab.tables.cells import Cell, cells_of
from robustbench_lab.tables.planning import Costs, Job, Plan, duration, estimate, plan_of
from robustbench_lab.tables.reading import read_table
from robustbench_lab.training.checkpoints import digest, write_tensors

COLUMNS = [{"label": "clean", "metric": "clean_accuracy"}, {"label": "FGSM"}, {"label": "PGD", "overrides": ["attack=pgd"]}]


@pytest.fixture
def cells(written: Callable[..., str], tmp_path: Path) -> Callable[..., list[Cell]]:
    """The cells of a table of two defenses, clean, FGSM and PGD, as they stand now."""
    return lambda **changed: cells_of(read_table(written(**{"columns": COLUMNS, "published": {"kind": "none"}, **changed})), tmp_path)


def train(cell: Cell, output_root: Path, seconds: float) -> None:
    run = cell.evaluation.run
    content = {"schema": 1, "model_digest": model_digest(cell), "choices": run.choices, "config": run.config, "seconds": seconds}
    write_json(run.folder(output_root) / RUN_FILE, content)
    write_tensors(run.folder(output_root) / MODEL_FILE, weights(cell), {})


def weights(cell: Cell) -> dict[str, torch.Tensor]:
    return {"seed": torch.tensor(cell.evaluation.run.config["seed"]), cell.evaluation.run.fingerprint: torch.zeros(1)}


def model_digest(cell: Cell) -> str:
    return digest(weights(cell))


def attack(cell: Cell, output_root: Path, seconds: float) -> Path:
    run, evaluation = cell.evaluation.run, cell.evaluation
    record: dict[str, Any] = {
        "schema": 1, "fingerprint": evaluation.fingerprint, "choices": evaluation.choices, "config": evaluation.config, "source": None,
        "seconds": seconds, "warnings": [], "n": 10, "run": fake.about(run) | {"model_digest": model_digest(cell)},
    }  # fmt: skip
    for kind in ("clean", "robust"):
        record |= {f"{kind}_correct": 5, f"{kind}_accuracy": 0.5, f"{kind}_interval": wilson_interval(5, 10)}
    path = evaluation.folder(output_root) / "record.json"
    write_json(path, record)
    return path


def test_shared_jobs_are_there_once(cells, tmp_path):
    """Two runs; clean and FGSM are one evaluation: four evaluations behind six cells."""
    plan = plan_of(cells(), tmp_path)
    assert len(plan.missing("train")) == 2
    assert len(plan.missing("evaluate")) == 4
    assert [job.words for job in plan.missing("train")] == [
        ["backbone=small_cnn", "defense=standard"],
        ["backbone=small_cnn", "defense=label_smoothing"],
    ]


def test_the_attackers_run_is_a_job_that_its_evaluation_needs(cells, tmp_path):
    row = {"label": "from afar", "overrides": ["threat_model=black_transfer", "threat_model.overrides=[seed=1]"]}
    plan = plan_of(cells(rows=[row]), tmp_path)
    victim, source = plan.missing("train")
    assert {job.needs for job in plan.missing("evaluate")} == {frozenset({victim.fingerprint, source.fingerprint})}
    assert source.words[-1] == "seed=1"


def test_a_teacher_is_a_job_that_comes_first(cells, tmp_path):
    """Two students of the undefended run, and a distillation with a teacher of its own temperature."""
    defenses = (["defense=static_vat"], ["defense=static_adversarial_training"], ["defense=distillation"])
    rows = [{"label": words[0], "overrides": words} for words in defenses]
    trainings = plan_of(cells(rows=rows), tmp_path).missing("train")
    assert [job.name.split("-")[2] for job in trainings] == [
        "standard", "static_vat", "static_adversarial_training", "tempered", "distillation",
    ]  # fmt: skip
    standard, vat, static, tempered, distilled = trainings
    assert vat.needs == static.needs == {standard.fingerprint}
    assert distilled.needs == {tempered.fingerprint}
    assert run_at_words(standard.words) == run_at_words(["backbone=small_cnn", "defense=standard"])


def test_a_row_that_is_not_run_is_no_job(cells, tmp_path):
    rows = [{"label": "plain"}, {"label": "RoCL", "not_run": "we do not have it"}]
    published = {"kind": "exact", "source": "Table 3", "band": 1, "values": [[1, 2, 3], [4, 5, None]]}
    plan = plan_of(cells(rows=rows, published=published), tmp_path)
    assert [job.verb for job in plan.jobs] == ["train", "evaluate", "evaluate"]
    assert next(plan.lines({})).startswith("1 training runs: 0 finished, 1 missing")


def test_what_is_finished_is_no_job(cells, tmp_path):
    found = cells()
    train(found[0], tmp_path, 60)
    attack(found[1], tmp_path, 4)
    plan = plan_of(cells(), tmp_path)
    assert [job.finished for job in plan.jobs if job.verb == "train"] == [True, False]
    assert len(plan.missing("evaluate")) == 3
    assert list(plan.lines({})) == [
        "2 training runs: 1 finished, 1 missing (about 60 s)",
        "4 evaluations: 1 finished, 3 missing (about 4 s and 2 without an estimate)",
    ]


def test_weights_that_are_gone_are_trained_again_only_for_what_needs_them(cells, tmp_path):
    clean, fgsm, pgd = cells()[:3]
    train(clean, tmp_path, 60)
    attack(fgsm, tmp_path, 4)
    (clean.evaluation.run.folder(tmp_path) / MODEL_FILE).unlink()
    first_row = {"rows": [{"label": "plain"}]}
    assert len(plan_of(cells(**first_row), tmp_path).missing("train")) == 1, "PGD is missing"
    attack(pgd, tmp_path, 4)
    assert not plan_of(cells(**first_row), tmp_path).missing("train")


def test_a_truncated_record_is_missing(cells, tmp_path):
    found = cells()
    train(found[0], tmp_path, 60)
    path = attack(found[1], tmp_path, 4)
    path.write_text(path.read_text()[:100])
    assert len(plan_of(cells(), tmp_path).missing("evaluate")) == 4


def test_estimates_come_from_like_jobs(cells, tmp_path):
    """Label smoothing after the plain run of the same network and recipe: 60 s; other epochs or attacks: nothing like it."""
    found = cells()
    train(found[0], tmp_path, 60)
    attack(found[1], tmp_path, 4)
    plan = plan_of(cells(), tmp_path)
    assert [job.seconds for job in plan.missing("train")] == [60]
    assert {job.name.split()[1].partition("-")[0]: job.seconds for job in plan.missing("evaluate")} == {"fgsm": 4, "pgd": None}
    longer = plan_of(cells(overrides=["backbone=small_cnn", "attack=fgsm", "training.epochs=99"]), tmp_path)
    assert [job.seconds for job in longer.missing("train")] == [None, None]


def test_a_damaged_neighbour_spoils_no_estimate(cells, tmp_path):
    found = cells()
    train(found[0], tmp_path, 60)
    path = found[0].evaluation.run.folder(tmp_path) / "evaluate" / "other-white-00000000" / "record.json"
    write_json(path, {"schema": 99})
    (tmp_path / "runs" / "strange").mkdir()
    (tmp_path / "runs" / "strange" / "run.json").write_text(json.dumps({"schema": 1}))
    assert [job.seconds for job in plan_of(cells(), tmp_path).missing("train")] == [60]


def job(seconds: float | None) -> Job:
    return Job("train", "a", [], Path("x"), frozenset(), "f", False, seconds)


def test_estimates_in_words():
    assert estimate([job(None)]) == "no estimate"
    assert estimate([job(30), job(40)]) == "about 70 s"
    assert estimate([job(3600), job(None)]) == "about 60 min and 1 without an estimate"
    assert list(Plan({"f": job(30)}, {}).lines({}, full=True))[:2] == ["1 training runs: 0 finished, 1 missing (about 30 s)", "  a  30 s"]


def test_each_table_has_a_line_and_the_sum_counts_once_what_tables_share(cells, tmp_path):
    """An undefended model, and in a second table a student of it."""
    plain = {"rows": [{"label": "plain"}]}
    first = cells(**plain)
    train(first[0], tmp_path, 3600)
    attack(first[1], tmp_path, 4)
    first, second = cells(**plain), cells(rows=[{"label": "student", "overrides": ["defense=static_vat"]}])
    plan = plan_of([*first, *second], tmp_path)
    assert list(plan.lines({"a": first, "a/longer": second})) == [
        "a         runs   1 finished   0 missing  evaluations    1 finished    1 missing  no estimate",
        "a/longer  runs   1 finished   1 missing  evaluations    0 finished    2 missing  about 60 min and 1 without an estimate",
        "2 training runs: 1 finished, 1 missing (about 60 min)",
        "4 evaluations: 1 finished, 3 missing (about 4 s and 2 without an estimate)",
    ]
    (first[0].evaluation.run.folder(tmp_path) / MODEL_FILE).unlink()
    assert not any(job.finished for job in plan_of([*first, *second], tmp_path).runs.values()), "weights are gone, and needed"


def test_a_finished_plan_reads_no_record_for_estimates(cells, tmp_path, monkeypatch):
    found = cells(rows=[{"label": "plain"}])
    train(found[0], tmp_path, 60)
    for cell in found[1:]:
        attack(cell, tmp_path, 4)
    monkeypatch.setattr(Costs, "_attacking", None)
    assert not any(list(plan_of(cells(rows=[{"label": "plain"}]), tmp_path).missing(verb)) for verb in ("train", "evaluate"))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.4, "3 s"), (89, "89 s"), (90, "2 min"), (5340, "89 min"), (5400, "1 h 30 min"), (172800, "2 d 0 h"), (277000, "3 d 4 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
