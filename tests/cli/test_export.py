"""`export`: a folder that another can evaluate from, with every verdict in it."""

import json
import shlex

import pytest

from robustbench_lab.jobs.export import _written, model_infos

COUNTS = ("n", "clean_correct", "robust_correct")


def record(n: int, robust: float, attack: str = "autoattack", norm: str = "linf", eps: object = 8 / 255, sees: str = "defended") -> dict:
    return {
        "config": {"budget": {"norm": norm, "eps": eps}, "threat_model": {"sees": sees}}, "choices": {"attack": attack}, "n": n,
        "clean_accuracy": 0.9, "robust_accuracy": robust, "warnings": [{"code": "c", "message": "two passes differ"}],
    }  # fmt: skip


def test_what_is_written_gives_the_same_verdicts_again(lab, trained, tiny, outputs, tmp_path, monkeypatch):
    attack = ["attack=apgd_ce", "attack.steps=5", "budget.eps=0.1", "panel=none", "dataset.test_size=40", "device=cpu"]
    assert lab("evaluate", *tiny, *attack).status == 0
    ended = lab("export", trained.name.rpartition("-")[2], f"to={tmp_path / 'given'}")
    assert ended.status == 0, ended.err
    given = tmp_path / "given"
    assert sorted(path.name for path in given.iterdir()) == ["README.md", "config.yaml", "model.safetensors", "records.json"]
    (ours,) = json.loads((given / "records.json").read_text())
    card = (given / "README.md").read_text()
    assert f"| apgd_ce | defended | linf 0.1 | 40 | {100 * ours['clean_accuracy']:.2f} | {100 * ours['robust_accuracy']:.2f} |" in card
    (line,) = (line for line in card.splitlines() if "weights=model.safetensors" in line)
    words = [word.replace("weights=", f"weights={given}/") for word in shlex.split(line)[4:] if not word.startswith("attack=")]
    ended = lab("evaluate", *words, *attack, f"output_root={tmp_path / 'theirs'}")
    assert ended.status == 0, ended.err
    (path,) = (tmp_path / "theirs").glob("runs/*/evaluate/*/record.json")
    theirs = json.loads(path.read_text())
    assert {key: theirs[key] for key in ("n", "clean_correct", "robust_correct")} == {
        key: ours[key] for key in ("n", "clean_correct", "robust_correct")
    }
    assert theirs["warnings"] == []


def test_by_the_words_of_train_into_the_output_folder(lab, trained, tiny, outputs):
    ended = lab("export", *tiny)
    assert ended.status == 0, ended.err
    assert (outputs / "exported" / trained.name / "README.md").exists()
    assert "Not evaluated yet" in (outputs / "exported" / trained.name / "README.md").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "export: expected a run: its name, its fingerprint or the words of train"),
        (["nothing"], "export nothing: expected one of the 1 runs in"),
        (["seed=7"], "is not there"),
    ],
)
def test_a_run_that_is_not_there(lab, trained, words, said):
    ended = lab("export", *words)
    assert ended.status == 2
    assert said in ended.err


def test_robustbenchs_entry_is_of_autoattack_on_most_images():
    run = {"choices": {"dataset": "cifar10", "backbone": "resnet20"}, "config": {"defense": {"passes": 10}, "backbone": {}}}
    records = [
        record(100, 0.4), record(1000, 0.45), record(2000, 0.1, attack="pgd"), record(2000, 0.2, sees="twin"),
        record(500, 0.3, norm="l2", eps=0.5), record(9000, 0.3, norm="linf", eps="inf"),
    ]  # fmt: skip
    infos = model_infos(run, records)
    assert sorted(infos) == ["L2", "Linf"]
    linf = infos["Linf"]
    assert (linf["autoattack_acc"], linf["clean_acc"], linf["eps"], linf["n"], linf["number_forward_passes"]) == (
        "45.00",
        "90.00",
        "8/255",
        1000,
        10,
    )
    assert (infos["L2"]["eps"], linf["footnote"], linf["architecture"]) == ("0.5", "two passes differ", "resnet20")


VALUES = [(None, "null"), (True, "true"), (0.5, "0.5"), ([1, 2], "[1,2]"), ("a b", "'a b'"), ({"k": [1]}, "{k:[1]}"), ("abc.d", "abc.d")]


@pytest.mark.parametrize(("value", "word"), VALUES)
def test_values_as_words(value, word):
    assert _written(value) == word
