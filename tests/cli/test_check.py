"""The panel, and lists of attacks, from the command line."""

import json

import numpy as np
import pytest


def small(*more):
    return ["panel.images=20", "panel.queries.queries=20", "panel.random.draws=5", "panel.longer.steps=12", *more]


def record_of(trained, name):
    (path,) = trained.glob(f"evaluate/{name}-*/record.json")
    return json.loads(path.read_text())


def test_check_prints_the_panel_and_its_signs(lab, trained, tiny):
    ended = lab("check", *tiny, "panel=default", *small())
    assert ended.status == 0, ended.err
    for words in ("linf 0.1, n = 20", "clean ", "one step ", "iterated, no bound ", "queries only", "random draws", "gradient of zero"):
        assert words in ended.out, words
    assert "AutoAttack" not in ended.out
    assert "warning " in ended.out or "no sign of hidden gradients" in ended.out
    (path,) = (trained / "panel").glob("*.json")
    facts = json.loads(path.read_text())
    assert len(set(facts["ids"])) == 20
    assert facts["accuracy"]["iterated"] == sum(facts["right"]["iterated"]) / 20


def test_the_whole_panel_has_autoattack(lab, trained, tiny):
    words = ["panel.strongest.attacks.apgd_ce.steps=3", "panel.strongest.attacks.apgd_t.steps=3", "panel.strongest.attacks.fab_t.steps=2"]
    ended = lab("check", *tiny, *small("panel.images=6", "panel.strongest.attacks.square.queries=5", *words))
    assert ended.status == 0, ended.err
    assert "AutoAttack " in ended.out


def test_an_evaluation_carries_the_panel_which_is_made_once(lab, trained, tiny, monkeypatch):
    assert lab("evaluate", *tiny, "attack=fgsm", *small()).status == 0
    monkeypatch.setattr("robustbench_lab.evaluation.panel.Panel.run", None)  # a second run would fail
    assert lab("evaluate", *tiny, "attack=pgd", "attack.steps=3", *small()).status == 0
    first, second = record_of(trained, "fgsm-white"), record_of(trained, "pgd-white")
    assert first["panel"] == second["panel"]
    assert first["panel"]["n"] == 20
    assert set(first["panel"]["accuracy"]) == {"one_step", "iterated", "longer", "margin", "larger", "unbounded", "queries", "random"}
    assert not {"ids", "right"} & set(first["panel"])


def test_another_panel_is_added_to_a_finished_evaluation(lab, trained, tiny, monkeypatch):
    assert lab("evaluate", *tiny, "attack=fgsm", "panel=none").status == 0
    before = record_of(trained, "fgsm-white")
    monkeypatch.setattr("robustbench_lab.jobs.evaluate.evaluate", None)  # the attack itself is not repeated
    assert lab("evaluate", *tiny, "attack=fgsm", *small()).status == 0
    after = record_of(trained, "fgsm-white")
    assert {name: after[name] for name in before if name != "warnings"} == {name: before[name] for name in before if name != "warnings"}
    assert after["panel"]["n"] == 20
    ended = lab("evaluate", *tiny, "attack=fgsm", *small())
    assert "finished already" in ended.out + ended.err
    assert lab("evaluate", *tiny, "attack=fgsm", "panel=none").status == 0  # none is not less than one
    assert record_of(trained, "fgsm-white") == after


def test_force_repeats_the_panel_and_a_damaged_one_is_named_and_made_anew(lab, trained, tiny):
    assert lab("check", *tiny, "panel=default", *small()).status == 0
    (path,) = (trained / "panel").glob("*.json")
    whole = json.loads(path.read_text())
    for content in ("{", '{"schema": 1}', json.dumps({**whole, "ids": 3}), json.dumps({**whole, "eps": 1e308}), "[" * 100_000):
        path.write_text(content)
        ended = lab("check", *tiny, "panel=default", *small())
        assert ended.status == 0
        assert f"made anew: {path}" in ended.err
        assert json.loads(path.read_text()) == whole
    path.write_text(json.dumps({**whole, "run": "of before"}))
    assert lab("check", *tiny, "panel=default", *small()).status == 0
    assert json.loads(path.read_text())["run"] == "of before"
    assert lab("check", *tiny, "panel=default", *small(), "force=true").status == 0
    assert json.loads(path.read_text()) == whole


def test_a_panel_that_fails_says_so_before_the_attack(lab, trained, tiny):
    ended = lab("evaluate", *tiny, "attack=fgsm", "attack@panel.one_step=random_fgsm", "budget=l2")
    assert ended.status == 2
    assert "error: panel.one_step: budget.norm: expected linf" in ended.err
    assert "panel=none leaves the panel out" in ended.err
    assert not (trained / "evaluate").exists()


def test_the_order_of_a_list_is_part_of_its_name(lab, trained, tiny):
    for order in (("fgsm", "pgd"), ("pgd", "fgsm")):
        defined = [f"+attack@attack.attacks.{name}_again={name}" for name in order]
        assert lab("evaluate", *tiny, "attack=worst_of", *defined, "attack.attacks.pgd.steps=2", "panel=none").status == 0
    assert len(list((trained / "evaluate").iterdir())) == 2


def test_no_panel(lab, trained, tiny):
    assert lab("evaluate", *tiny, "attack=fgsm", "panel=none").status == 0
    assert "panel" not in record_of(trained, "fgsm-white")
    assert not (trained / "panel").exists()
    ended = lab("check", *tiny, "panel=none")
    assert ended.status == 2
    assert "error: panel.images: expected at least 1" in ended.err


def test_the_panel_of_an_unbounded_evaluation_has_the_datasets_ball(lab, trained, tiny):
    assert lab("evaluate", *tiny, "attack=deepfool", "budget=box", *small()).status == 0
    record = record_of(trained, "deepfool-white")
    assert record["config"]["budget"]["eps"] == "inf"
    assert (record["panel"]["norm"], record["panel"]["eps"]) == ("linf", 0.1)


def test_a_list_of_attacks_tells_who_broke_what(lab, trained, tiny):
    ended = lab("evaluate", *tiny, "attack=worst_of", "attack.attacks.pgd.steps=5", "+attack@attack.attacks.square=square",
                "attack.attacks.square.queries=10", "panel=none")  # fmt: skip
    assert ended.status == 0, ended.err
    record = record_of(trained, "worst_of-white")
    stages = record["stages"]
    assert [stage["attack"] for stage in stages] == ["fgsm", "pgd", "square"]
    assert record["attacked"] >= stages[0]["survivors"] >= stages[1]["survivors"] >= stages[2]["survivors"] == record["robust_correct"]
    assert stages[0]["forward_per_attacked_image"] == 1
    assert stages[2]["backward_per_attacked_image"] == 0
    assert sum(stage["forward_per_attacked_image"] for stage in stages) == record["forward_per_attacked_image"]
    assert sum(stage["seconds"] for stage in stages) == record["seconds"]


def test_wrong_words_for_a_panel(lab, trained, tiny):
    for word, message in {
        "panel.tolerance=-1": "panel.tolerance: expected a whole number >= 0, got -1",
        "panel.iterated.steps=0": "panel.iterated.steps: expected a whole number >= 1, got 0",
        "eot_samples=0": "eot_samples: expected a whole number >= 1, got 0",
        "verdict_draws=x": "verdict_draws: expected a whole number >= 1, got 'x'",
        "search_precision=fp16": "search_precision: expected fp32 or bf16, got 'fp16'",
    }.items():
        ended = lab("evaluate", *tiny, "attack=fgsm", word)
        assert ended.status == 2
        assert f"error: {message}" in ended.err
    assert not (trained / "evaluate").exists()


def test_a_search_in_bf16_is_another_evaluation(lab, trained, tiny):
    for precision in ("fp32", "bf16"):
        assert lab("evaluate", *tiny, "attack.steps=3", f"search_precision={precision}", "panel=none").status == 0
    assert len(list((trained / "evaluate").iterdir())) == 2


def test_an_attack_that_asks_for_what_the_threat_model_hides(lab, trained, tiny):
    ended = lab("evaluate", *tiny, "attack=square", "threat_model=black_queries", "threat_model.answers=labels")
    assert ended.status == 2
    assert "error: threat_model.answers=labels hides the logits, but the attack needs them; choose an attack on labels" in ended.err
    ended = lab("evaluate", *tiny, "attack=autoattack", "threat_model=black_queries")
    assert ended.status == 2
    assert "error: threat_model.sees=queries gives no gradient" in ended.err
    assert lab("evaluate", *tiny, "attack=rays", "attack.queries=20", "threat_model=black_queries", "threat_model.answers=labels",
               "panel=none").status == 0  # fmt: skip


def test_metrics_stand_in_the_record_and_per_image(lab, trained, tiny):
    words = ["attack=deepfool", "attack.steps=5", "budget=box", "panel=none"]
    ended = lab("evaluate", *tiny, *words, "metric=[empirical_robustness,loss_sensitivity,training_set_distance]")
    assert ended.status == 0, ended.err
    (path,) = trained.glob("evaluate/*/record.json")
    record = json.loads(path.read_text())
    arrays = np.load(path.with_name("outcome.npz"), allow_pickle=False)
    for name in ("empirical_robustness", "loss_sensitivity", "training_set_distance"):
        values, told = arrays[f"metric.{name}"], record["metrics"][name]
        counted = values[~np.isnan(values)]
        assert told["n"] == len(counted) > 0
        assert told["mean"] == pytest.approx(counted.mean())
        half = 1.959963984540054 * counted.std(ddof=1) / len(counted) ** 0.5
        assert told["interval"] == pytest.approx([counted.mean() - half, counted.mean() + half])
    assert record["metrics"]["loss_sensitivity"]["n"] == 40
    plain = lab("evaluate", *tiny, *words)
    assert plain.status == 0
    assert len(list(trained.glob("evaluate/*"))) == 2, "an evaluation with metrics has a name of its own"


def test_a_metric_of_the_smallest_perturbation_needs_an_attack_that_looks_for_it(lab, trained, tiny):
    for name in ("empirical_robustness", "empirical_robustness_as_published", "training_set_distance_as_published"):
        ended = lab("evaluate", *tiny, "attack=fgsm", f"metric=[{name}]")
        assert ended.status == 2
        assert f"error: metric.{name} speaks of the smallest perturbation, which attack FGSM does not look for" in ended.err
        assert "attack=deepfool budget=box" in ended.err
    assert not (trained / "evaluate").exists()
