"""What a user does at the command line, and what is on disk afterwards."""

import json
import math
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from robustbench_lab import __version__
from robustbench_lab.evaluation import judging
from robustbench_lab.evaluation import loop as evaluation
from robustbench_lab.settings.verbs import groups_and_keys

CONF = Path(__file__).parents[2] / "conf"
OF_RUNS = ("dataset", "backbone", "defense", "training", "profile")
GROUPS = {
    "train": OF_RUNS,
    "evaluate": (*OF_RUNS, "attack", "budget", "threat_model", "panel", "metric"),
    "check": (*OF_RUNS, "budget", "panel"),
    "tables": (),
    "reproduce": (),
    "report": (),
}


def record_in(folder: Path) -> dict:
    (path,) = folder.glob("evaluate/*/record.json")
    return json.loads(path.read_text())


def wilson(successes: int, n: int) -> list[float]:
    """The roots of (p - p0) ** 2 = z ** 2 p0 (1 - p0) / n in p0, which is how Wilson defines the interval."""
    z2, p = 1.959963984540054**2, successes / n
    return sorted(np.roots([1 + z2 / n, -(2 * p + z2 / n), p * p]).real)


# Help


def test_help_names_every_verb_with_examples(lab):
    for arguments in ([], ["--help"], ["-h"]):
        ended = lab(*arguments)
        assert ended.status == 0
        for word in ("train", "evaluate", "tables", "reproduce", "defense=fm", "VERB --help"):
            assert word in ended.out


@pytest.mark.parametrize(("verb", "groups"), GROUPS.items())
def test_help_of_a_verb_shows_its_groups_choices_keys_and_examples(lab, outputs, verb, groups):
    ended = lab(verb, "--help")
    assert ended.status == 0
    assert ended.out.count(f"python -m robustbench_lab {verb}") >= 3, "examples, and Hydra's own options"
    for group in {group for groups in GROUPS.values() for group in groups}:
        choices = ", ".join(sorted(path.stem for path in (CONF / group).glob("*.yaml")))
        assert (f"\n{group}: {choices}\n" in ended.out) == (group in groups)
    for key in set(groups_and_keys(verb)[1]) - {"profile"}:
        assert f"\n{key}:" in ended.out
    assert "\noutput_root:" in ended.out
    assert not outputs.exists()


def test_version(lab):
    assert lab("--version").out == f"{__version__}\n"


def test_unknown_verb_names_the_choices(lab):
    ended = lab("trian", "defense=fm")
    assert ended.status == 2
    assert "'trian'" in ended.err
    assert "train, evaluate, check, tables, reproduce" in ended.err


def test_settings_can_be_looked_at_without_training(lab, outputs):
    ended = lab("train", "defense=fm", "defense.start_epoch=7", "--cfg", "job")
    assert ended.status == 0
    assert "start_epoch: 7" in ended.out
    assert not outputs.exists()


def test_console_script_is_the_same_program():
    script = shutil.which("robustbench-lab", path=str(Path(sys.executable).parent))
    assert script, "pip install -e . puts robustbench-lab beside python"
    ended = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert ended.stdout == f"{__version__}\n"


# Train, evaluate, and again


def test_train_and_evaluate_as_real_processes_from_a_foreign_directory(start, outputs, tiny, tmp_path):
    train = start("train", *tiny)
    assert train.wait() == 0, train.stderr.read()
    (run,) = (outputs / "runs").iterdir()
    assert run.name.startswith("digits-small_cnn-standard-s0-")
    assert {path.name for path in run.iterdir()} == {".lock", ".hydra", "model.safetensors", "run.json", "metrics.jsonl"}
    assert "Traceback" not in train.stderr.read()
    evaluate = start("evaluate", *tiny, "attack=fgsm", "panel=none")
    assert evaluate.wait() == 0, evaluate.stderr.read()
    assert len(list(run.glob("evaluate/fgsm-white-*/record.json"))) == 1
    assert not list((tmp_path / "elsewhere").iterdir())


def test_run_json_says_what_was_trained(trained):
    run = json.loads((trained / "run.json").read_text())
    assert trained.name.endswith(run["fingerprint"])
    assert run["choices"] == {"dataset": "digits", "backbone": "small_cnn", "defense": "standard", "training": "digits"}
    assert run["parameters"] == 25_866
    assert (run["train_images"], run["epochs"], run["kept_epoch"]) == (200, 3, 3)
    assert run["config"]["training"]["epochs"] == 3
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert all(row["loss_model"] > 0 for row in rows)


def test_train_again_returns_at_once(lab, outputs, trained, tiny, snapshot):
    before = snapshot(outputs)
    ended = lab("train", *tiny)
    assert ended.status == 0
    assert f"finished already: {trained}" in ended.err
    assert snapshot(outputs) == before


def test_train_with_force_repeats_to_the_same_weights(lab, trained, tiny):
    weights, changed = (trained / "model.safetensors").read_bytes(), (trained / "run.json").stat().st_mtime_ns
    ended = lab("train", *tiny, "force=true")
    assert ended.status == 0
    assert "finished already" not in ended.err
    assert (trained / "run.json").stat().st_mtime_ns > changed
    assert (trained / "model.safetensors").read_bytes() == weights


def test_what_changes_no_result_changes_no_name(lab, trained, tiny, tmp_path):
    others = ["device=auto", f"data.root={tmp_path}", "data.download=false", "data.workers=0", "dataset.test_size=50", "profile=smoke"]
    ended = lab("train", *others, *tiny[:-2])
    assert f"finished already: {trained}" in ended.err


@pytest.mark.parametrize(
    "change", ["seed=1", "training.batch_size=32", "dataset.train_size=199", "defense=label_smoothing", "backbone=mlp", "training=quick"]
)
def test_what_changes_a_result_changes_the_name(lab, trained, tiny, change):
    ended = lab("evaluate", *tiny, change)
    assert ended.status == 2
    assert "no finished run" in ended.err


def test_evaluate_finds_the_run_and_writes_its_record(lab, trained, tiny):
    ended = lab("evaluate", *tiny, "attack.steps=3", "panel=none", "attack.keep=last", "budget.eps=8/255")
    assert ended.status == 0, ended.err
    (folder,) = (trained / "evaluate").iterdir()
    assert {path.name for path in folder.iterdir()} == {".lock", "record.json", "outcome.npz", "examples.npz"}
    run, record = json.loads((trained / "run.json").read_text()), record_in(trained)
    assert folder.name == f"pgd-white-{record['fingerprint']}"
    assert record["run"] == {
        "name": trained.name,
        "fingerprint": run["fingerprint"],
        "choices": run["choices"],
        "seed": 0,
        "model_digest": run["model_digest"],
    }
    assert record["source"] is None
    assert record["config"]["attack"]["steps"] == 3
    assert record["config"]["budget"] == {"_target_": "robustbench_lab.threats.Budget", "norm": "linf", "eps": 8 / 255}
    assert record["config"]["threat_model"]["sees"] == "defended"
    assert (record["n"], record["config"]["test_size"]) == (40, 40)
    assert record["forward_per_attacked_image"] == 3
    assert record["backward_per_attacked_image"] == 3
    assert record["seconds"] > 0
    assert {"device", "versions", "platform", "commit", "command", "finished_at", "warnings", "schema"} <= record.keys()
    assert record["command"].startswith("python -m robustbench_lab evaluate ")

    with np.load(folder / "outcome.npz", allow_pickle=False) as archive:
        outcome = {name: archive[name] for name in archive.files}
    assert {name: array.dtype for name, array in outcome.items()} == {
        "index": np.int64,
        "clean": np.bool_,
        "robust": np.bool_,
        "distance": np.float32,
        "right": np.float64,
        "broken_by": np.int64,
        "stages": np.dtype("<U3"),
    }
    assert outcome["stages"].tolist() == ["PGD"]
    assert np.array_equal(outcome["broken_by"] == 0, outcome["clean"] & ~outcome["robust"])
    clean, robust = int(outcome["clean"].sum()), int(outcome["robust"].sum())
    assert clean > 20, "a model that is near chance would test nothing here"
    assert (record["clean_correct"], record["robust_correct"], record["attacked"]) == (clean, robust, clean)
    assert (record["clean_accuracy"], record["robust_accuracy"]) == (clean / 40, robust / 40)
    assert record["clean_interval"] == pytest.approx(wilson(clean, 40))
    assert record["robust_interval"] == pytest.approx(wilson(robust, 40))
    assert not (outcome["robust"] & ~outcome["clean"]).any(), "robust means right both clean and attacked"
    assert np.array_equal(np.isnan(outcome["distance"]), ~outcome["clean"])
    assert len(set(outcome["index"].tolist())) == 40
    broken = outcome["distance"][outcome["clean"] & ~outcome["robust"]]
    if len(broken):
        assert record["distance_of_broken"]["mean"] == pytest.approx(broken.mean())


def test_an_evaluation_leaves_its_first_images_whether_it_was_interrupted_or_not(lab, trained, tiny, monkeypatch):
    command = ["evaluate", *tiny, "attack.steps=3", "batch_size=4", "panel=none"]
    assert lab(*command).status == 0
    (folder,) = (trained / "evaluate").iterdir()
    outcome, expected = (dict(np.load(folder / f"{name}.npz", allow_pickle=False)) for name in ("outcome", "examples"))
    assert {name: (array.dtype, array.shape) for name, array in expected.items()} == {
        "index": (np.int64, (10,)), "x": (np.uint8, (10, 1, 8, 8)), "delta": (np.float16, (10, 1, 8, 8)),
        "label": (np.int64, (10,)), "clean_prediction": (np.int64, (10,)), "prediction": (np.int64, (10,)),
    }  # fmt: skip
    assert expected["index"].tolist() == outcome["index"][:10].tolist()
    assert (expected["clean_prediction"] == expected["label"]).tolist() == outcome["clean"][:10].tolist()
    assert (expected["prediction"] == expected["label"]).tolist() == outcome["robust"][:10].tolist()
    distance = np.abs(expected["delta"]).max(axis=(1, 2, 3))
    np.testing.assert_allclose(distance, np.nan_to_num(outcome["distance"][:10]), atol=1e-3)
    for path in folder.iterdir():
        path.unlink()

    predictions, calls = judging.predictions, []

    def stop_in_the_third_batch(*arguments):
        calls.append(arguments)
        if len(calls) == 5:  # each batch is judged clean and attacked
            raise KeyboardInterrupt
        return predictions(*arguments)

    partial = folder / "outcome.partial.npz"
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "SAVE_EVERY", 0.0)
        patch.setattr(judging, "predictions", stop_in_the_third_batch)
        assert lab(*command).status == 130
    saved = dict(np.load(partial, allow_pickle=False))
    assert not (folder / "examples.npz").exists()
    ended = lab(*command)
    assert "going on after 8 of 40 images" in ended.err
    for name, array in np.load(folder / "examples.npz", allow_pickle=False).items():
        np.testing.assert_array_equal(array, expected[name])

    (folder / "record.json").unlink()  # and what an older version left, without examples, is of no use
    np.savez_compressed(partial, **{name: array for name, array in saved.items() if not name.startswith("examples.")})
    ended = lab(*command)
    assert ended.status == 0
    assert "starting afresh" in ended.err
    assert "going on" not in ended.err


def test_nothing_that_is_written_is_a_pickle(lab, outputs, trained, tiny):
    assert lab("evaluate", *tiny, "attack=fgsm", "panel=none").status == 0
    for path in outputs.rglob("*"):
        assert path.suffix not in (".pt", ".pth", ".pkl", ".pickle", ".ckpt")
        if path.is_file() and zipfile.is_zipfile(path):
            for entry in zipfile.ZipFile(path).infolist():
                header = zipfile.ZipFile(path).read(entry)[:128]
                assert header.startswith(b"\x93NUMPY")
                assert b"|O" not in header, "an array of objects would be a pickle"


def test_evaluate_again_returns_at_once_and_force_repeats(lab, outputs, trained, tiny, snapshot):
    command = ["evaluate", *tiny, "attack=fgsm", "panel=none"]
    assert lab(*command).status == 0
    before, record = snapshot(outputs), record_in(trained)
    ended = lab(*command, "batch_size=7", "device=auto")
    assert ended.status == 0
    assert "finished already" in ended.err
    assert snapshot(outputs) == before
    ended = lab(*command, "batch_size=7", "force=true")
    assert ended.status == 0
    assert "finished already" not in ended.err
    again = record_in(trained)
    assert again["command"].endswith("force=true")
    kept = ("fingerprint", "clean_correct", "robust_correct", "run", "config")
    assert {key: again[key] for key in kept} == {key: record[key] for key in kept}


def test_evaluation_of_a_retrained_model_is_made_anew(lab, trained, tiny):
    assert lab("evaluate", *tiny, "attack=fgsm", "panel=none").status == 0
    (path,) = trained.glob("evaluate/*/record.json")
    stale = json.loads(path.read_text())
    stale["run"]["model_digest"] = "of other weights"
    path.write_text(json.dumps(stale))
    ended = lab("evaluate", *tiny, "attack=fgsm", "panel=none")
    assert "finished already" not in ended.err
    assert record_in(trained)["run"]["model_digest"] == json.loads((trained / "run.json").read_text())["model_digest"]


def test_test_size_and_attack_seed_name_the_evaluation(lab, trained, tiny):
    words = ["attack.steps=1", "attack.relative_step_size=0.01", "panel=none"]  # near its random start, where the draw shows
    commands = [[*tiny, *words], [*tiny, *words, "attack_seed=1"], [*tiny[:-2], "device=cpu", "dataset.test_size=30", *words]]
    for command in commands:
        assert lab("evaluate", *command).status == 0
    found = {}
    for path in trained.glob("evaluate/*/record.json"):
        record = json.loads(path.read_text())
        found[record["n"], record["config"]["attack_seed"]] = path
    assert set(found) == {(40, 0), (40, 1), (30, 0)}
    distances = [np.load(found[key].with_name("outcome.npz"))["distance"] for key in ((40, 0), (40, 1))]
    attacked = ~np.isnan(distances[0])  # the largest of 64 changes, cut off at eps: some may agree
    assert (distances[0] != distances[1])[attacked].mean() > 0.5, "another seed draws other starts"


def test_numbers_written_in_two_ways_name_one_run(lab, outputs, tiny):
    words = [*tiny, "training.epochs=1", "defense=trades", "dataset.budget.eps=8/255"]
    assert lab("train", *words, "defense.beta=3").status == 0
    ended = lab("train", *words[:-1], "defense.beta=3.0", f"dataset.budget.eps={8 / 255}")
    assert "finished already" in ended.err
    assert lab("evaluate", *words, "defense.beta=3.0", "attack=fgsm", "panel=none", "budget=linf", "budget.eps=8/255").status == 0
    ended = lab("evaluate", *words, "defense.beta=3", "attack=fgsm", "panel=none", "budget=linf", f"budget.eps={8 / 255}")
    assert "finished already" in ended.err
    assert len(list(outputs.glob("runs/*"))) == len(list(outputs.glob("runs/*/evaluate/*"))) == 1


def test_evaluate_of_a_missing_run_names_the_nearest(lab, outputs, trained, tiny, snapshot):
    assert lab("train", *tiny, "seed=5", "defense=label_smoothing", "training.epochs=1").status == 0
    before = snapshot(outputs)
    ended = lab("evaluate", *tiny, "training.batch_size=32")
    assert ended.status == 2
    assert "Traceback" not in ended.err
    first, second = ended.err.index(trained.name), ended.err.index("digits-small_cnn-label_smoothing-s5")
    assert first < second, "the run that differs least comes first"
    assert "training.batch_size: 20 != 32" in ended.err
    assert "seed: 5 != 0" in ended.err
    assert "test_size" not in ended.err
    assert snapshot(outputs) == before


def test_evaluate_without_any_run_says_so(lab, outputs, tiny):
    ended = lab("evaluate", *tiny)
    assert ended.status == 2
    assert f"there are no finished runs in {outputs / 'runs'}" in ended.err
    assert not outputs.exists()


# Threat models


def test_gray_twin_attacks_through_the_undefended_run(lab, trained, tiny):
    words = [*tiny, "defense=label_smoothing", "defense.true_weight=0.8"]
    assert lab("train", *words).status == 0
    assert lab("evaluate", *words, "attack=fgsm", "threat_model=gray_twin").status == 0
    (run,) = trained.parent.glob("*-label_smoothing-*")
    record = record_in(run)
    assert record["source"]["name"] == trained.name
    assert record["source"]["model_digest"] == json.loads((trained / "run.json").read_text())["model_digest"]
    assert record["run"]["name"] == run.name
    assert [warning["code"] for warning in record["warnings"]] == ["transfer_only"]


def test_black_transfer_needs_the_other_run(lab, outputs, trained, tiny, snapshot):
    command = ["evaluate", *tiny, "attack=fgsm", "panel=none", "threat_model=black_transfer", "threat_model.overrides=[seed=1]"]
    before = snapshot(outputs)
    ended = lab(*command)
    assert ended.status == 2
    assert "no finished run for digits/small_cnn/standard seed 1" in ended.err
    assert snapshot(outputs) == before
    assert lab("train", *tiny, "seed=1").status == 0
    ended = lab(*command)
    assert ended.status == 0, ended.err
    assert record_in(trained)["source"]["seed"] == 1


def test_a_costly_transfer_is_searched_once(lab, trained, tiny, monkeypatch):
    """Two models, one source: the second one is tried on what was found for the first; images that only it has right are searched."""
    monkeypatch.setattr("robustbench_lab.evaluation.crafted.WORTH_KEEPING", 0.0)
    models = [["defense=label_smoothing"], ["defense=label_smoothing", "seed=1"]]
    how = ["attack=fgsm", "threat_model=black_transfer", "threat_model.overrides=[defense=standard,seed=0]", "panel=none"]
    for words in models:
        assert lab("train", *tiny, *words).status == 0
        assert lab("evaluate", *tiny, *words, *how).status == 0
    first, second = (record_in(run) for run in sorted(trained.parent.glob("*-label_smoothing-*"), key=lambda run: "-s1-" in run.name))
    assert first["examples_from_before"] == [0]
    assert 0 < second["examples_from_before"][0] <= second["attacked"]
    (file,) = (trained / "crafted").glob("fgsm-*.npz")
    assert np.load(file)["made.FGSM"].sum() >= second["attacked"]
    (run,) = trained.parent.glob("*-label_smoothing-s1-*")
    kept = np.load(next((run / "evaluate").glob("*/outcome.npz")))["right"]
    arrays = dict(np.load(file))
    np.savez(file, **(arrays | {"x_adv.FGSM": np.zeros_like(arrays["x_adv.FGSM"])}))  # what a faulty attack may have left
    assert lab("evaluate", *tiny, *models[1], *how, "force=true").status == 0
    np.testing.assert_array_equal(np.load(next((run / "evaluate").glob("*/outcome.npz")))["right"], kept)


def test_the_first_images_alone(lab, trained, tiny):
    assert lab("evaluate", *tiny, "attack=fgsm", "panel=none").status == 0
    assert lab("evaluate", *tiny, "attack=fgsm", "panel=none", "test_first=7").status == 0
    few, whole = sorted((np.load(path) for path in (trained / "evaluate").glob("*/outcome.npz")), key=lambda arrays: len(arrays["index"]))
    assert few["index"].tolist() == whole["index"][:7].tolist()
    np.testing.assert_array_equal(few["right"], whole["right"][:7])
    assert lab("evaluate", *tiny, "attack=fgsm", "test_first=3").status == 0
    (panel,) = (trained / "panel").glob("*.json")
    assert json.loads(panel.read_text())["n"] == 40, "the panel is the model's, not that of three images"
    ended = lab("evaluate", *tiny, "attack=fgsm", "test_first=0")
    assert (ended.status, "test_first: expected a whole number >= 1" in ended.err) == (2, True)


def test_points_in_the_plane_leave_what_was_learned_for_pictures(lab, outputs):
    words = [
        "dataset=moons",
        "dataset.samples=50",
        "backbone=mlp_toy",
        "training=plane",
        "training.epochs=2",
        "defense=static_vat",
        "defense.budget.eps=0.1",
    ]
    assert lab("train", *words).status == 0
    assert lab("evaluate", *words, "attack=fgsm", "budget=l2", "budget.eps=0.1", "panel=none").status == 0
    (path,) = (outputs / "runs").glob("*-static_vat-*/evaluate/*/plane.npz")
    arrays = np.load(path)
    assert arrays["points"].shape == arrays["extra"].shape == (50, 2)
    assert ((arrays["probability"] >= 0) & (arrays["probability"] <= 1)).all()


def test_images_that_are_wrong_when_clean_are_attacked_on_request(lab, trained, tiny):
    assert lab("evaluate", *tiny, "attack=fgsm", "panel=none").status == 0
    assert lab("evaluate", *tiny, "attack=fgsm", "panel=none", "attack_misclassified=true").status == 0
    folders = sorted((trained / "evaluate").iterdir(), key=lambda folder: "attacked_accuracy" in (folder / "record.json").read_text())
    usual, more = (json.loads((folder / "record.json").read_text()) for folder in folders)
    assert usual["robust_accuracy"] == more["robust_accuracy"] <= more["attacked_accuracy"]
    assert (usual["attacked"], more["attacked"]) == (usual["clean_correct"], usual["n"])
    assert "attacked_accuracy" not in usual
    ended = lab("evaluate", *tiny, "attack=fgsm", "attack_misclassified=maybe")
    assert ended.status == 2
    assert "attack_misclassified: expected true or false" in ended.err


def test_black_transfer_from_the_attacked_run_itself_is_an_error(lab, outputs, trained, tiny, snapshot):
    before = snapshot(outputs)
    ended = lab("evaluate", *tiny, "threat_model=black_transfer", "threat_model.overrides=[seed=0]")
    assert ended.status == 2
    assert "threat_model.overrides" in ended.err
    assert "threat_model=white" in ended.err
    assert snapshot(outputs) == before


def test_black_queries_gives_no_gradient(lab, trained, tiny):
    ended = lab("evaluate", *tiny, "attack=pgd", "threat_model=black_queries")
    assert ended.status == 2
    assert "threat_model.sees=queries gives no gradient" in ended.err
    assert "Traceback" not in ended.err
    assert not (trained / "evaluate").exists(), "refused before anything is written"


def test_gray_learned_is_refused_where_it_hides_nothing(lab, trained, tiny):
    words = [*tiny, "defense=label_smoothing", "training.epochs=1"]
    assert lab("train", *words).status == 0
    ended = lab("evaluate", *words, "threat_model=gray_learned")
    assert ended.status == 2
    assert "threat_model.sees=learned" in ended.err
    ended = lab("evaluate", *tiny, "attack=fgsm", "panel=none", "threat_model=gray_learned")
    assert ended.status == 0, "for undefended rows, learned equals defended"


# Multirun


def test_a_failing_job_of_a_multirun_does_not_stop_the_others(lab, outputs, tiny):
    ended = lab("train", "-m", *tiny, "training.epochs=1", "training.optimizer.lr=0.05,1e30,0.04")
    assert ended.status == 1
    finished = sorted(json.loads(path.read_text())["config"]["training"]["optimizer"]["lr"] for path in outputs.glob("runs/*/run.json"))
    assert finished == [0.04, 0.05]
    head, _, listed = ended.err.rpartition("jobs failed:")
    assert head.endswith("\n1 ")
    assert "training.optimizer.lr=1e+30" in listed
    assert "0.04" not in listed
    assert "loss of player 'model' is not finite" in listed
    assert "Traceback" not in ended.err
    left = [path for path in outputs.rglob("error.json") if path.is_relative_to(outputs / "sweeps")]
    assert str(left[0]) in listed
    error = json.loads(left[0].read_text())
    assert "training.optimizer.lr=1e+30" in error["overrides"]
    assert "not finite" in error["error"]
    (in_run,) = outputs.glob("runs/*/error.json")
    assert "not finite" in json.loads(in_run.read_text())["error"]


def test_a_multirun_trains_every_combination(lab, outputs, tiny):
    ended = lab("train", "-m", *tiny, "training.epochs=1", "seed=0,1", "defense=standard,label_smoothing")
    assert ended.status == 0, ended.err
    runs = [json.loads(path.read_text()) for path in outputs.glob("runs/*/run.json")]
    assert sorted((run["choices"]["defense"], run["config"]["seed"]) for run in runs) == [
        ("label_smoothing", 0), ("label_smoothing", 1), ("standard", 0), ("standard", 1),
    ]  # fmt: skip
    assert len({run["model_digest"] for run in runs}) == 4


# Tables


def test_reproduce_fills_what_is_missing_and_nothing_else(lab, outputs, small_table):
    ended = lab("tables", "tables=paper/small")
    assert ended.status == 0
    assert "| plain   | -     | -    |" in ended.out
    ended = lab("reproduce", "tables=[paper/*]", "device=cpu")
    assert ended.status == 0, ended.err
    assert "1 training runs: 0 finished, 1 missing" in ended.out
    assert "1 evaluations: 0 finished, 1 missing" in ended.out
    (path,) = outputs.glob("runs/*/evaluate/*/record.json")
    record, made = json.loads(path.read_text()), path.stat().st_mtime_ns
    assert f"{100 * record['robust_accuracy']:.2f}" in ended.out
    ended = lab("reproduce")
    assert "1 training runs: 1 finished, 0 missing" in ended.out
    assert path.stat().st_mtime_ns == made
    assert not list(outputs.glob("runs/*/*.partial"))
    assert (outputs / "report" / "index.html").exists()


def test_a_plan_is_printed_and_nothing_done(lab, outputs, small_table):
    for words in (["--dry-run"], ["plan=true"], ["--dry-run=full"], ["plan=full"]):
        ended = lab("reproduce", *words)
        assert ended.status == 0, ended.err
        assert "\npaper/small  runs   0 finished   1 missing  evaluations    0 finished    1 missing  no estimate\n" in ended.out
        assert ("\n  digits-small_cnn-standard-s0-" in ended.out) == ("full" in words[0]), "the jobs are listed on demand"
        assert "1 training runs: 0 finished, 1 missing" in ended.out
        assert not (outputs / "runs").exists()
        assert not (outputs / "tables").exists()


def test_pages_whose_records_settings_and_files_are_the_same_are_not_made_again(lab, outputs, small_table):
    assert lab("reproduce", "device=cpu").status == 0
    page, report = outputs / "tables" / "paper" / "small.md", outputs / "report" / "index.html"
    (record,) = outputs.glob("runs/*/evaluate/*/record.json")
    content = page.read_text()

    def made_again(*words: str) -> tuple[bool, bool]:
        before = [path.stat().st_mtime_ns for path in (page, report)]
        ended = lab("reproduce", "device=cpu", *words)
        assert ended.status == 0, ended.err
        assert "| plain " in ended.out, "the table is told in any case"
        first, second = (path.stat().st_mtime_ns != time for path, time in zip((page, report), before, strict=True))
        return first, second

    assert made_again() == (False, False)
    page.write_text("scribbled")
    assert made_again() == (True, False)
    assert page.read_text() == content
    page.with_suffix(".csv").unlink()
    assert made_again() == (True, False)
    (outputs / "report" / "index.html").write_text("scribbled")
    assert made_again("report=false") == (False, False)
    assert made_again() == (False, True)
    record.write_text(record.read_text().replace('"seconds"', '"seconds" '))
    assert made_again() == (True, True)
    assert made_again() == (False, False)
    small_table.write_text(small_table.read_text().replace("title: Small", "title: Large"))
    assert made_again() == (True, True)
    assert "Large" in page.read_text()
    (outputs / ".made.json").write_text("{")
    assert made_again() == (True, True)


@pytest.mark.parametrize("words", [["tables"], ["reproduce", "--dry-run"], ["tables", "--help"], ["--help"]], ids=" ".join)
def test_a_reader_that_leaves_stops_nothing(start, outputs, small_table, words):
    process = start(*words)
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert "BrokenPipe" not in err
    if words == ["tables"]:
        assert sorted(path.name for path in (outputs / "tables" / "paper").iterdir()) == ["small.csv", "small.md", "small.tex"]


def test_covering_cells_are_measured_and_the_others_are_missing(lab, outputs, small_table):
    """Two rows that differ in a number alone: the second one shows nothing new."""
    rows = "rows:\n- label: plain\n- {label: longer, overrides: [training.epochs=4]}\n"
    small_table.write_text(small_table.read_text().replace("rows:\n- label: plain\n", rows))
    ended = lab("reproduce", "cells=covering", "device=cpu")
    assert ended.status == 0, ended.err
    assert "1 training runs: 0 finished, 1 missing" in ended.out
    lines = (outputs / "tables" / "paper" / "small.csv").read_text().splitlines()[1:]
    assert {line.partition(",")[0] for line in lines if "not measured" in line} == {"longer"}
    assert {line.partition(",")[0] for line in lines if "not measured" not in line} == {"plain"}
    assert "2 training runs: 1 finished, 1 missing" in lab("reproduce", "--dry-run").out


def test_a_profile_writes_its_own_tables(lab, outputs, small_table):
    small_table.write_text(small_table.read_text().replace("profile: smoke", "profile: paper"))
    ended = lab("tables", "profile=smoke")
    assert ended.status == 0, ended.err
    assert [str(path.relative_to(outputs / "tables")) for path in outputs.glob("tables/**/*.md")] == ["smoke/paper/small.md"]
    ended = lab("tables", "profile=fast")
    assert ended.status == 2
    assert "profile: expected one of paper, quick, smoke, got 'fast'" in ended.err


def test_reproduce_goes_on_after_a_failing_job_and_ends_with_a_list(lab, outputs, small_table):
    rows = "rows:\n- {label: broken, overrides: [training.optimizer.lr=1e30]}\n- label: plain\n"
    small_table.write_text(small_table.read_text().replace("rows:\n- label: plain\n", rows))
    ended = lab("reproduce")
    assert ended.status == 1
    head, _, listed = ended.err.rpartition("jobs failed:")
    assert head.endswith("\n1 "), "the evaluation that the failed training leaves without a model is no second failure"
    assert "not finite in epoch 1" in listed
    assert "1 evaluations wait for runs that could not be trained" in head
    page = (outputs / "tables" / "paper" / "small.md").read_text()
    (path,) = outputs.glob("runs/*/evaluate/*/record.json")
    assert f"{100 * json.loads(path.read_text())['robust_accuracy']:.2f}" in page
    assert "\n| broken  | - " in page


def test_an_unknown_table_lists_the_tables(lab, outputs, small_table):
    for words in ("tables=[paper/big]", "tables=big"):
        ended = lab("tables", words)
        assert ended.status == 2
        assert "nothing matches" in ended.err
        assert "there are paper/small" in ended.err
    assert not outputs.exists()


# Ctrl-C


def test_ctrl_c_stops_with_130_and_the_run_goes_on_later(forked, lab, outputs, tiny):
    command = ["train", *tiny, "training.epochs=6", "dataset.train_size=600", "defense=fm", "defense.start_epoch=0"]
    process = forked(*command)
    folder = process.wait_for("runs/*/metrics.jsonl", outputs).parent
    process.send(signal.SIGINT)
    status, err = process.wait()
    assert status == 130, err
    assert "Traceback" not in err
    assert "interrupted" in err
    assert not (folder / "run.json").exists()
    assert not list(folder.glob(".*.partial"))
    done = len((folder / "metrics.jsonl").read_text().splitlines())
    ended = lab(*command)
    assert ended.status == 0, ended.err
    assert f"resuming {folder.name} after epoch {done}" in ended.err
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, 7))
    assert all(math.isfinite(row["loss_model"]) for row in rows)
