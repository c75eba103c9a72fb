"""What names runs and evaluations: content alone, what changes nothing left out; and teachers, which words describe."""

import copy
import re
from collections.abc import Sequence
from typing import Any

import pytest
from built_kinds import NEEDED

from robustbench_lab.errors import LabError
from robustbench_lab.settings.conf import CONF, compose
from robustbench_lab.settings.identity import Evaluation, Run, difference, evaluation_of, fingerprint, run_at_words, run_of, says_stochastic
from robustbench_lab.settings.overrides import readable


def evaluation(*words: str) -> Evaluation:
    return evaluation_of(*compose("evaluate", [readable(word) for word in words]), words)


def moved(node: Any) -> Any:
    """The same config, whose classes live elsewhere."""
    if isinstance(node, dict):
        return {k: v.replace("robustbench_lab.", "robustbench_lab.attic.") if k == "_target_" else moved(v) for k, v in node.items()}
    return [moved(entry) for entry in node] if isinstance(node, list) else node


def test_a_name_does_not_depend_on_where_a_class_lives() -> None:
    run = run_at_words(["defense=pni"])
    assert moved(run.config) != run.config
    assert Run(moved(run.config), run.choices).fingerprint == run.fingerprint
    attacked = evaluation("attack=autoattack")
    assert Evaluation(attacked.run, None, moved(attacked.config), attacked.choices).fingerprint == attacked.fingerprint


def test_two_classes_and_two_packages_are_two_contents() -> None:
    one, other, theirs = ({"_target_": target, "steps": 3} for target in ("robustbench_lab.a.PGD", "robustbench_lab.a.MIM", "mylab.PGD"))
    assert len({fingerprint(content) for content in (one, other, theirs)}) == 3


def test_no_two_classes_that_configs_name_share_a_name() -> None:
    """A name says the class and its package, not the module; figures are in no name."""
    texts = [path.read_text() for path in CONF.rglob("*.yaml") if path.parent.name != "figure"]
    targets = {target for text in texts for target in re.findall(r"_target_: (robustbench_lab\.\S+)", text)}
    names = [target.rpartition(".")[2] for target in sorted(targets)]
    assert len(names) > 50
    assert len(set(names)) == len(names)


def test_a_knob_that_is_null_renames_nothing() -> None:
    run = run_at_words([])
    config = copy.deepcopy(run.config)
    config["training"]["brand_new"] = None
    assert Run(config, run.choices).fingerprint == run.fingerprint
    config["training"]["brand_new"] = 0
    assert Run(config, run.choices).fingerprint != run.fingerprint


@pytest.mark.parametrize("word", ["eot_samples=1", "verdict_draws=3"])
def test_draws_are_part_of_an_evaluation_where_output_is_random_and_only_there(word: str) -> None:
    assert evaluation(word).fingerprint == evaluation().fingerprint
    assert evaluation("defense=pni", word).fingerprint != evaluation("defense=pni").fingerprint
    silent = "without_noise=true"
    assert evaluation("defense=pni", silent, word).fingerprint == evaluation("defense=pni", silent).fingerprint
    transfer = ["threat_model=black_transfer", "threat_model.overrides=[seed=1,defense=pni]"]
    assert evaluation(*transfer, word).fingerprint != evaluation(*transfer).fingerprint, "the attacker averages its own model's draws"


def test_a_file_says_that_output_is_random_where_the_model_draws(run_objects: Any) -> None:
    stochastic = {"adv_bnn", "adv_bnn_as_released", "rse", "rse_robustnet", "random_resize_pad", "random_mask"}
    for path in [*sorted((CONF / "defense").glob("*.yaml")), *sorted((CONF / "front").glob("*.yaml"))]:
        alone = [f"defense={path.stem}"] if path.parent.name == "defense" else ["defense=preprocessed", f"defense.fronts=[{path.stem}]"]
        backbone = "pixelcnn_small" if path.stem == "likelihood" else "small_resnet"
        words = [f"backbone={backbone}", *alone, *NEEDED.get((path.parent.name, path.stem), [])]
        said, draws = says_stochastic(run_at_words(words).config["defense"]), run_objects(*words)[1].stochastic
        assert said == draws, path.stem
        stochastic -= {path.stem} if draws else set()
    assert not stochastic, "there is something to say"


def test_a_teacher_is_the_run_that_words_describe_and_part_of_the_name() -> None:
    taught = run_at_words(["training.start=[defense=trades,training.epochs=9]", "seed=3", "training.epochs=2"])
    assert taught.teacher == run_at_words(["defense=trades", "training.epochs=9", "seed=3"])
    assert taught.teacher_words[-2:] == ["defense=trades", "training.epochs=9"]
    assert run_at_words(taught.teacher_words) == taught.teacher
    other = run_at_words(["training.start=[defense=trades,training.epochs=8]", "seed=3", "training.epochs=2"])
    assert taught.fingerprint != other.fingerprint
    spelled = run_at_words(["training.start=[training.epochs=9,defense=trades]", "seed=3", "training.epochs=2"])
    assert spelled.fingerprint == taught.fingerprint, "its content says what it is, not its words"


def test_a_teacher_may_have_a_teacher() -> None:
    first = run_at_words(["training.start=[defense=distillation]"])
    assert first.teacher is not None
    assert first.teacher.teacher is not None
    assert first.teacher.teacher.choices["defense"] == "tempered"


@pytest.mark.parametrize("words", ["[seed=1]", "standard", "[]"])
def test_words_that_choose_no_defense_describe_no_teacher(words: str) -> None:
    with pytest.raises(LabError, match=r"training\.start: expected the words in which that run differs, such as \[defense=standard\]"):
        run_at_words([f"training.start={words}"])


def test_a_run_that_teaches_itself_is_refused() -> None:
    cfg, choices = compose("train", ["defense=distillation"])

    def again(words: Sequence[str]) -> Run:
        return run_of(cfg, choices, words, again)

    with pytest.raises(LabError, match=r"defense\.teacher: .* describe a run that learns from itself"):
        again([])


def test_a_difference_names_the_keys() -> None:
    one, other = run_at_words(["seed=1", "training.epochs=5"]), run_at_words(["training.epochs=5.0", "seed=2", "training.flip=true"])
    assert difference(one.content, other.content) == "seed: 1 != 2, training.flip: False != True"
    assert difference(one.content, one.content) is None
