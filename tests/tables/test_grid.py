"""Grids: what a profile makes of a table, claims, and evaluations put together from pieces exactly as Hydra composes them."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from robustbench_lab.errors import LabError
from robustbench_lab.settings import pieces
from robustbench_lab.settings.conf import CONF, choice_file, choices, compose, tables_folder
from robustbench_lab.settings.identity import evaluation_of, run_at_words
from robustbench_lab.settings.overrides import parsed, readable
from robustbench_lab.settings.pieces import piece
from robustbench_lab.settings.values import Unresolved
from robustbench_lab.settings.yaml_files import read_yaml
from robustbench_lab.tables import expansion
from robustbench_lab.tables.cells import cells_of
from robustbench_lab.tables.claims import sides_of
from robustbench_lab.tables.expansion import GROUPS, Expansion
from robustbench_lab.tables.profiles import Rules
from robustbench_lab.tables.reading import chosen_tables, read_table, reshaped, table_names
from robustbench_lab.tables.verdicts import claims_of

SETTINGS = [
    [],
    ["attack=pgd", "attack.steps=3", "budget.eps=1/255"],
    ["profile=smoke", "defense=fm", "seed=3"],
    ["dataset=cifar10", "backbone=resnet18", "defense=trades", "training=fm", "dataset.test_size=100", "budget=linf"],
    ["defense=adversarial_training_pni", "attack=autoattack", "verdict_draws=2", "panel=none"],
    ["attack=worst_of", "+attack@attack.attacks.square=square"],
    ["dataset=mnist", "threat_model=gray_twin", "defense=fm"],
    ["dataset=mnist", "threat_model=black_transfer", "threat_model.overrides=[seed=1,defense=trades]", "attack=mim"],
    ["attack=deepfool", "budget=box", "metric=[loss_sensitivity,empirical_robustness]", "dataset=mnist"],
    ["attack=pgd", "attack.steps=${training.epochs}", "training=quick"],
    ["defense=distillation", "defense.temperature=3"],
    ["defense=fm", "attack@defense.attack=fgsm_predicted", "defense.attack.labels=true"],
    ["attack=worst_of", "attack@attack.attacks.pgd=pgd_fm", "attack.attacks.pgd.loss=own", "dataset=mnist"],
    ["dataset=mnist", "dataset.budget.eps=3/255", "budget.norm=l2", "training.optimizer={lr: 3}"],
    ["training.epochs=3", "training.optimizer.lr=0.5", "defense=gda_bounded_relu", "budget=l2", "budget.eps=0.5"],
]


@pytest.mark.parametrize("words", SETTINGS, ids=" ".join)
def test_an_evaluation_is_the_one_that_hydra_composes(words):
    words = [readable(word) for word in words]
    found = Expansion().evaluation(words)
    wanted = evaluation_of(*compose("evaluate", words), words)
    assert found == wanted
    assert (found.fingerprint, found.name, found.source_words) == (wanted.fingerprint, wanted.name, wanted.source_words)


def test_the_tables_evaluations_are_those_that_hydra_composes(words_of_cells):
    """The fewest cells in which each choice and each key of all tables' words occurs, in any profile; expanded together with all others."""
    cells = {words: set(map(telling, words)) for every in words_of_cells.values() for words in every}
    found, left = Expansion(), set().union(*cells.values())
    assert len(left) > 100
    while left:
        words = max(cells, key=lambda words: len(left & cells[words]))
        assert found.evaluation(words) == evaluation_of(*compose("evaluate", words), words)
        left -= cells[words]


def telling(word: str) -> str:
    """The whole word where it makes a choice, else its key."""
    override = parsed(word)
    return word if override.package or "." not in override.key_or_group else override.key_or_group


def test_files_are_read_as_omegaconf_reads_them(tmp_path):
    for path in CONF.rglob("*.yaml"):
        assert repr(read_yaml(path)) == repr(OmegaConf.to_container(OmegaConf.load(path)))
    path = tmp_path / "odd.yaml"
    for odd in ("a: 1e-3\nb: 2026-01-01\nc: !!float 1\nd: 0o17\ne: 1_000\n", "- a\n", "", "a: ${b}\nb: 1\n", "a: on\nb: ~\n1: 2\n"):
        path.write_text(odd)
        assert repr(read_yaml(path)) == repr(OmegaConf.to_container(OmegaConf.load(path)))
    for wrong in ("a: 1\na: 2\n", "a: [\n", "a: ${b\n", "\ta: 1\n", "a:\tb: c\n", "a: !!python/name:os.system\n"):
        path.write_text(wrong)
        with pytest.raises(Exception) as theirs:  # noqa: PT011
            OmegaConf.load(path)
        with pytest.raises(type(theirs.value), match=re.escape(str(theirs.value))):
            read_yaml(path)


@pytest.fixture(scope="module")
def every_choice() -> tuple[Any, dict[str, Any]]:
    """What Hydra makes of every choice, side by side, and the choices within them."""
    words = [f"+{group}@pieces.{group}.{choice}={choice}" for group in (*GROUPS, "metric") for choice in choices(group)]
    cfg, within = compose("evaluate", words)
    return OmegaConf.to_container(cfg.pieces), within


@pytest.mark.parametrize("group", [*GROUPS, "metric"])
def test_a_piece_is_what_hydra_makes_of_the_choice(group, every_choice):
    content, within = every_choice
    for choice in choices(group):
        here = f"@pieces.{group}.{choice}."
        assert piece(group, choice).content == content[group][choice]
        assert list(piece(group, choice).content) == list(content[group][choice]), "the same order"
        assert piece(group, choice).choices == {k.replace(here, f"@{group}."): v for k, v in within.items() if here in k}
        assert len(choices(group)) > 1


def test_several_choices_side_by_side_are_merged_as_hydra_does() -> None:
    words = ["defense=preprocessed", "front@defense.fronts=[median,bit_depth]"]
    cfg, _ = compose("train", words)
    found = piece("defense", "preprocessed", ("front@fronts", ("median", "bit_depth")))
    assert found.content == OmegaConf.to_container(cfg.defense)
    assert list(found.content["fronts"]) == ["median", "bit_depth"]
    with pytest.raises(Unresolved):
        piece("defense", "preprocessed", ("front@fronts", ("median", "blur")))


@pytest.mark.parametrize("written", [
    "# @package _global_\nsteps: 3\n",
    "defaults:\n- override /training: quick\nsteps: 3\n",
    "defaults:\n- /attack@_here_: pgd\n",
    "defaults:\n- optional /attack@attack: pgd\n",
    "defaults:\n- {pgd: null, fgsm: null}\n",
])  # fmt: skip
def test_a_choice_that_reaches_further_is_left_to_hydra(written, tmp_path, monkeypatch):
    path = tmp_path / "further.yaml"
    path.write_text(written)
    monkeypatch.setattr(pieces, "choice_file", lambda group, choice: path if choice == "further" else choice_file(group, choice))
    with pytest.raises(Unresolved):
        piece("attack", "further")


def test_what_cells_share_is_composed_once(monkeypatch):
    """One base for each verb."""
    asked = []
    monkeypatch.setattr(expansion, "compose", lambda verb, words: asked.append((verb, *words)) or compose(verb, words))
    cells = [[f"attack={attack}", f"dataset={data}"] for attack in ("pgd", "fgsm", "mim", "square") for data in ("digits", "moons")]
    found = Expansion()
    fingerprints = {found.evaluation(words).fingerprint for words in cells}
    assert len(fingerprints) == 8
    assert sorted(asked) == [("evaluate",), ("train",)]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("attack.stepz=3", r"attack\.stepz"),
        ("attack@attack.own=fgsm", "attack@attack.own"),
        ("attack=none", "^attack: expected one of .* got .none.$"),
    ],
)
def test_a_wrong_word_is_named(word, said):
    with pytest.raises(LabError, match=said):
        Expansion().evaluation(["attack=pgd", word])


# Profiles


RULES = Rules(
    choices={"dataset": {"mnist": "digits", "*": "moons"}, "backbone": {"*resnet*": "small_resnet", "*": "small_cnn"}},
    words={"attack=carlini*": ["attack.steps=2"], "dataset=digits": ["seed=5"]},
    everywhere=[],
)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["dataset=mnist"], ["dataset=digits", "seed=5"]),
        (["dataset=cifar10", "dataset.test_size=3", "seed=1"], ["dataset=moons", "seed=1"]),
        (["backbone=resnet20_w4"], ["backbone=small_resnet"]),
        (["backbone=small_cnn", "backbone.width=7"], ["backbone=small_cnn", "backbone.width=7"]),
        (["backbone=small_resnet", "backbone.width=7"], ["backbone=small_resnet", "backbone.width=7"]),
        (["defense=fm", "defense.beta=2"], ["defense=fm", "defense.beta=2"]),
        (["attack=carlini_wagner_fm", "attack.steps=1000"], ["attack=carlini_wagner_fm", "attack.steps=2"]),
        (
            ["backbone@a.b=resnet18", "backbone.width=7", "a.b.width=3", "a.bc=1"],
            ["backbone@a.b=small_resnet", "backbone.width=7", "a.bc=1"],
        ),
        (["threat_model.overrides=[backbone=vgg19,seed=2]"], [r"threat_model.overrides=[backbone\=small_cnn,seed\=2]"]),
    ],
)
def test_rules_change_words(words, expected):
    assert RULES.applied(words) == expected


def test_a_profile_reshapes_what_is_larger_and_leaves_the_rest(written):
    paper, smoke = read_table(written(profile="paper")), read_table(written(profile="smoke"))
    small = reshaped(paper, "smoke")
    assert (small.profile, small.reshaped, small.name) == ("smoke", True, "paper/grid")
    assert reshaped(paper, "paper") is paper
    assert reshaped(smoke, "quick") is smoke
    with pytest.raises(LabError, match="profile: expected one of paper, quick, smoke, got 'fast'"):
        chosen_tables([], "fast")


def test_a_profile_changes_whole_cells(written, monkeypatch):
    """A row's images replace the table's, and what the row says of its own recipe goes with it; what every cell gets, every cell gets."""
    rules = Rules(choices={"training": {"*": "quick"}}, words={}, everywhere=["dataset.test_size=9"])
    monkeypatch.setattr(Rules, "read", lambda profile: rules)
    rows = [{"label": "a", "overrides": ["dataset=moons", "training.epochs=100"]}]
    name = written(overrides=["training=fm", "attack=fgsm"], rows=rows, published={"kind": "none"})
    words = [words for _, _, words in reshaped(read_table(name), "quick").words()]
    assert words == [["training=quick", "attack=fgsm", "dataset=moons", "dataset.test_size=9"]] * 2


def test_a_rule_for_an_attack_wins_over_what_every_cell_gets():
    rules = Rules(choices={}, words={"attack=slow*": ["dataset.test_size=3"]}, everywhere=["dataset.test_size=9"])
    assert rules.applied(["attack=slowest", "dataset.test_size=20"]) == ["attack=slowest", "dataset.test_size=3"]
    assert rules.applied(["attack=fgsm", "dataset.test_size=20"]) == ["attack=fgsm", "dataset.test_size=9"]
    source = r"threat_model.overrides=[seed\=2]"  # its words are not a cell's
    assert rules.applied([source]) == [source, "dataset.test_size=9"]


@pytest.mark.parametrize("name", table_names())
def test_smoke_needs_embedded_data_only(name):
    cells = [words for _, _, words in reshaped(read_table(name), "smoke").words()]
    expansion = Expansion()
    for evaluation in map(expansion.evaluation, cells):
        for run in (evaluation.run, evaluation.source):
            assert run is None or run.choices["dataset"] in ("digits", "digits_mean_subtracted", "circles", "moons")


def test_a_claim_compares_figures_of_one_unit(written):
    columns = [{"label": "a", "overrides": ["metric=[loss_sensitivity]"]}, {"label": "b", "metric": "metrics.loss_sensitivity"}]
    claims = [{"text": "t", "source": "s", "holds_if": ["plain / a > plain / b"]}]
    rows = [{"label": "plain", "overrides": ["metric=[loss_sensitivity]"]}]
    with pytest.raises(LabError, match=re.escape("claims[0].holds_if: expected figures of one unit")):
        read_table(written(rows=rows, columns=columns, claims=claims, published={"kind": "none"}, exceptions=[]))


def test_a_curve_has_two_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("robustbench_lab.tables.profiles.RULES", tmp_path)
    (tmp_path / "smoke.yaml").write_text("{choices: {}, words: {}, everywhere: [], curve_points: 1}")
    with pytest.raises(LabError, match="curve_points: expected 2 or more, or null, got 1"):
        Rules.read("smoke")


def curves(written, *labels, **more):
    columns = [{"label": label, "overrides": [f"budget.eps={label}"]} for label in labels]
    given = {"figure": {"kind": "curves", "x": "eps"}, "columns": columns, "published": {"kind": "none"}, "claims": [], "exceptions": []}
    return written(**(given | more))


def test_smoke_leaves_the_ends_of_a_curve(written):
    table = read_table(curves(written, "0.1", "0.2", "0.3", "0.4"))
    assert [column.label for column in reshaped(table, "smoke").columns] == ["0.1", "0.4"]
    assert reshaped(table, "quick").columns == table.columns


def test_exceptions_by_globs_stay_with_the_columns_that_they_fit(written):
    exceptions = [{"row": "plain", "column": column, "overrides": ["seed=1"]} for column in ("0.1", "0.2*", "*.4", "*")]
    table = reshaped(read_table(curves(written, "0.1", "0.2", "0.3", "0.4", exceptions=exceptions)), "smoke")
    assert [exception["column"] for exception in table.exceptions] == ["0.1", "*.4", "*"]


def test_smoke_attacks_random_models_by_attacks_for_these():
    table = reshaped(read_table("quick/cifar10_resnet20"), "smoke")
    attacks = {(row.label, column.label): word for row, column, words in table.words() for word in words if word.startswith("attack=")}
    for row in ("PNI-W", "L2P"):
        assert {attacks[row, column] for column in ("strongest", "strongest, mean of draws")} == {"attack=strongest_rand"}
    assert attacks["FM, root over the length", "strongest"] == "attack=strongest"


def test_a_claim_goes_with_the_columns_that_it_compares(written, tmp_path):
    """Those that deny a sign of obfuscated gradients are checked under every profile."""
    held = ["plain / 0.4 < plain / 0.1", "plain / 0.1 > 5"]
    claims = [{"text": "t", "source": "s", "sign": "1", "holds_if": holds} for holds in (held, [*held, "plain / 0.2 < plain / 0.1"])]
    table = reshaped(read_table(curves(written, "0.1", "0.2", "0.3", "0.4", claims=claims)), "smoke")
    assert [claim.holds_if for claim in table.claims] == [held]
    assert [claim.verdict for claim in claims_of(table, cells_of(table, tmp_path))] == ["not measured"]


@pytest.mark.parametrize(
    ("figure", "labels", "message"),
    [
        ({"kind": "pie"}, ["1"], "figure.kind: expected one of curves, features, pictures, planes, scatter, got 'pie'"),
        ({"kind": "curves"}, ["1"], "figure: expected for curves kind, x, perhaps from_zero, perhaps scale, got ['kind']"),
        ({"kind": "planes", "x": "eps"}, ["1"], "figure: expected for planes kind, got ['kind', 'x']"),
        ({"kind": "curves", "x": 3}, ["1"], "figure.x: expected a text, got 3"),
        ({"kind": "curves", "x": "eps"}, ["0.2", "0.1"], "columns: expected labels that are numbers, rising, for a figure of curves"),
        ({"kind": "curves", "x": "eps"}, ["0.1", "0.1x"], "columns: expected labels that are numbers, rising, for a figure of curves"),
    ],
)
def test_a_figure_that_cannot_be_drawn(written, figure, labels, message):
    columns = [{"label": label} for label in labels]
    name = written(figure=figure, columns=columns, published={"kind": "none"}, claims=[], exceptions=[])
    with pytest.raises(LabError, match=re.escape(message)):
        read_table(name)


def test_curves_are_of_accuracies_or_of_one_metric(written):
    """One axis has one name: a success rate among accuracies would stand on it upside down."""
    given = {"figure": {"kind": "curves", "x": "eps"}, "published": {"kind": "none"}, "claims": [], "exceptions": []}
    for metric in ("attack_success_rate", "parameters"):
        read_table(written(metric=metric, columns=[{"label": "0.1"}, {"label": "0.2"}], **given))
        with pytest.raises(LabError, match="columns: expected accuracies, or one metric in all of them, for a figure of curves"):
            read_table(written(columns=[{"label": "0.1"}, {"label": "0.2", "metric": metric}], **given))
    mixed = [{"label": "0.1"}, {"label": "0.2", "metric": "accuracy_of_runs", "overrides": ["attack=pgd_fm_five"]}]
    assert read_table(written(columns=mixed, **given)).figure["kind"] == "curves"


def test_every_rule_names_what_exists():
    cells = []
    for path in sorted((CONF / "grid").glob("*.yaml")):
        rules = Rules.read(path.stem)
        for group, patterns in rules.choices.items():
            for choice in patterns.values():
                assert (CONF / group.partition("@")[0] / f"{choice}.yaml").exists(), f"{path}: {group}={choice}"
        for pattern, words in rules.words.items():
            key, _, choice = pattern.partition("=")
            group, _, package = key.removeprefix("+").partition("@")
            if not (CONF / group).is_dir():  # a key of the verb's own
                cells.append([pattern, *words])
                continue
            fitting = sorted((CONF / group).glob(f"{choice}.yaml"))
            if group == "front":  # one of a list
                assert fitting, f"{path}: nothing fits {pattern}"
                cells.extend(["defense=preprocessed", f"{key}=[{file.stem}]", *words] for file in fitting)
                continue
            if package:  # a part of a list of attacks
                fitting = [file for file in fitting if file.stem.startswith(package.rpartition(".")[2])]
            assert fitting, f"{path}: nothing fits {pattern}"
            cells.extend([*(["attack=worst_of"] if package else []), f"{key}={file.stem}", *words] for file in fitting)
    found = Expansion()
    for words in cells:
        found.evaluation(words)


# What a table's YAML may say


@pytest.mark.parametrize(
    ("comparison", "sides"),
    [
        ("a / b > c / d", (("a / b", "+", 0.0), ">", ("c / d", "+", 0.0))),
        ("PGD-20 / my row <= 90.5", (("PGD-20 / my row", "+", 0.0), "<=", 90.5)),
        ("a / b + 3 >= c / d - 1.5", (("a / b", "+", 3.0), ">=", ("c / d", "-", 1.5))),
        ("a / b < c / d * 2", (("a / b", "+", 0.0), "<", ("c / d", "*", 2.0))),
        ("a / b", None),
        ("a > b", None),
    ],
)
def test_comparisons(comparison, sides):
    assert sides_of(comparison) == sides


CLAIM = {"text": "larger is better", "source": "section 4", "holds_if": ["plain / clean > LS_0.9 / FGSM"]}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"overrides": ["attack=pgdd"]}, r"overrides: expected attack to be one of apgd_ce, .*, got 'pgdd'"),
        ({"rows": [{"label": "a", "overrides": ["defense=none"]}]}, r"rows\[0\].overrides: expected defense to be one of .*, got 'none'"),
        ({"columns": [{"label": "a", "overrides": "attack=pgd"}]}, r"columns\[0\].overrides: expected a list of words, got 'attack=pgd'"),
        ({"overrides": ["threat_model.overrides=[backbone=resnet19]"]}, r"overrides: expected backbone to be one of .*, got 'resnet19'"),
        (
            {"overrides": ["+hydra.callbacks.more={_target_:os.system}"]},
            r"overrides: expected words for the groups and keys of evaluate, .*",
        ),
        ({"overrides": ["hydra/launcher=joblib"]}, r"overrides: expected words for the groups and keys of evaluate, .*"),
        ({"overrides": ["output_root=/elsewhere"]}, r"overrides: expected words for the groups and keys of evaluate, .*"),
        ({"overrides": ["threat_model.overrides=[hydra.verbose=true]"]}, r"overrides: expected words for the groups .*"),
        ({"overrides": ["attack=[pgd"]}, r"overrides: 'attack=\[pgd' is no word of the command line"),
        (
            {"published": {"kind": "exact", "source": "x", "values": [[1, 2], [3, 4]]}},
            r"published.band: expected the difference .*, got None",
        ),
        ({"published": {"kind": "exact", "source": "x", "band": [1], "values": [[1, 2], [3, 4]]}}, r"published.band: expected .*got \[1\]"),
        ({"published": {"kind": "exact", "source": "x", "band": [1, -1], "values": [[1, 2], [3, 4]]}}, r"published.band: .*got \[1, -1\]"),
        ({"columns": [{"label": "a", "form": ".3d"}]}, r"grid.yaml:\d+: columns\[0\].form: expected a number format .*, got '.3d'"),
        ({"columns": [{"label": "a", "form": 0.3}]}, r"columns\[0\].form: expected a number format such as .3f.*, got 0.3"),
        (
            {"columns": [{"label": "a"}, {"label": "b", "metric": "attacked_accuracy"}]},
            r"grid.yaml:\d+: columns\[1\].metric: expected the words of plain / b to have attack_misclassified=true, .*got \['backbone",
        ),
        (
            {"metric": "metrics.loss_sensitivity", "rows": [{"label": "r", "overrides": ["metric=[training_set_distance]"]}]},
            r"grid.yaml:\d+: metric: expected the words of r / FGSM to have metric=\[loss_sensitivity\], for metrics.loss_sensitivity, got",
        ),
        ({"published": {"kind": "none", "figures": 3}}, r"published: expected kind, source, values, band, quoted, got \['figures'\]"),
        ({"published": {"kind": "claim", "source": "x", "values": [[1, 2], [3, 4]]}}, r"published: expected values, .*got \['values'\]"),
        ({"claims": [{**CLAIM, "evidence": 5}]}, r"claims\[0\].evidence: expected a text, got 5"),
        ({"claims": [{**CLAIM, "text": 5}]}, r"claims\[0\].text: expected a text, got 5"),
        ({"published": {"kind": "claim", "source": "section 4"}}, "claims: expected what the paper claims"),
        ({"claims": [{**CLAIM, "holds_if": ["plain / clean > plain / PGD"]}]}, r"claims\[0\].holds_if: expected .* of this table, got"),
        ({"claims": [{**CLAIM, "holds_if": []}]}, r"claims\[0\].holds_if: expected comparisons"),
        ({"columns": [{"label": "a"}, {"label": 0.1}]}, r"grid.yaml:\d+: columns\[1\].label: expected a text, in quotes .*, got 0.1"),
        ({"columns": [{"label": "a", "colour": "red"}]}, r"columns\[0\]: got an unexpected keyword argument 'colour'"),
        ({"published": {"kind": "exact", "source": "x", "band": 1, "values": 5}}, "published.values: expected 2 rows of 2, got 5"),
        ({"exceptions": ["foo"]}, r"exceptions\[0\]: expected row, column, overrides, got 'foo'"),
        (
            {"columns": [{"label": "0.1"}, {"label": "0.2"}], "exceptions": [{"row": "plain", "column": 0.2, "overrides": ["seed=1"]}]},
            r"grid.yaml:\d+: exceptions\[0\].column: expected a text, in quotes if it looks like a number, got 0.2",
        ),
        (
            {"rows": [{"label": "1"}, {"label": "2"}], "exceptions": [{"row": 2, "column": "FGSM", "overrides": ["seed=1"]}]},
            r"grid.yaml:\d+: exceptions\[0\].row: expected a text, in quotes if it looks like a number, got 2",
        ),
        ({"claims": [{**CLAIM, "holds_if": [5]}]}, r"claims\[0\].holds_if: expected such as"),
        ({"overrides": ["metric=[loss_sensitivity,nonsense]"]}, "expected metric to be one of .*, got .*nonsense"),
        ({"claims": [{"text": "x"}]}, "missing 2 required keyword-only arguments: 'source' and 'holds_if'"),
    ],
)
def test_a_wrong_table_is_named_with_its_key(written, changed, message):
    name = written(**changed)
    with pytest.raises(LabError, match=message) as error:
        read_table(name)
    assert str(tables_folder() / "paper" / "grid.yaml") in str(error.value)


def exact(*values, **more):
    return {"kind": "exact", "source": "Table 9", "band": 1, "values": list(values), **more}


@pytest.mark.parametrize("figure", ["80.03", "80.03±", "80.03 +- 0.15", "80.03 ± 0.15 %", "80.03 ± -0.15", "nan ± 1", True])
def test_a_published_text_is_mean_and_standard_deviation(written, figure):
    with pytest.raises(LabError, match=rf"grid.yaml:\d+: published.values\[1\]: expected .*'80.03 ± 0.15', got {re.escape(repr(figure))}"):
        read_table(written(published=exact([1, None], [3, figure])))


@pytest.mark.parametrize(
    ("quoted", "message"),
    [
        ({"cells": "*", "source": "x"}, "published.quoted: expected a list of cells and source, got"),
        ([{"cells": "*"}], r"published.quoted\[0\]: expected cells, .* and source, got {'cells': '\*'}"),
        ([{"cells": "*", "source": 3}], r"published.quoted\[0\]: expected cells, .* and source, got"),
        ([{"cells": "*", "source": "x"}, {"cells": "plain/*", "source": "y"}], r"published.quoted\[1\].cells: .*got 'plain/\*'"),
        ([{"cells": "LS_0.9 / clean", "source": "x"}], r"published.quoted\[0\].cells: expected .*fits a cell with a published figure"),
    ],
)
def test_a_quoted_figure_is_one_that_the_paper_prints(written, quoted, message):
    with pytest.raises(LabError, match=rf"paper/grid.yaml:\d+: {message}"):
        read_table(written(published=exact([1, 2], [None, 4], quoted=quoted)))


def test_brackets_in_a_glob_stand_for_themselves(written):
    """And of two globs that fit, the first counts."""
    rows = [{"label": "V1(20)[1.5]"}, {"label": "V1(20)1"}]
    quoted = [{"cells": "V1(20)[1.5] / *", "source": "PNI"}, {"cells": "* / FGSM", "source": "L2P"}]
    table = read_table(written(rows=rows, published=exact(["80.03 ± 0.15", 2], [3, 4.5], quoted=quoted)))
    found = [table.published_in(row, column) for row in table.rows for column in table.columns]
    assert [(figure.value, figure.std, figure.quoted_from) for figure in found] == [
        (80.03, 0.15, "PNI"), (2, None, "PNI"), (3, None, None), (4.5, None, "L2P"),
    ]  # fmt: skip


NOT_RUN = {"label": "RoCL", "not_run": "we do not have it"}
RUN = {"label": "plain", "overrides": ["defense=standard"]}


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        ([{**NOT_RUN, "overrides": ["seed=1"]}, RUN], {}, r"rows\[0\].not_run: expected a row without overrides, .*got \['seed=1'\]"),
        ([RUN, {**NOT_RUN, "not_run": " "}], {}, r"rows\[1\].not_run: expected why the row is not run, got ' '"),
        ([RUN, {**NOT_RUN, "not_run": True}], {}, r"rows\[1\].not_run: expected why the row is not run, got True"),
        ([RUN, NOT_RUN], {"published": exact([1, 2], [None, None])}, r"rows\[1\].not_run: expected published figures .*, got 'RoCL'"),
        ([RUN, NOT_RUN], {"published": {"kind": "none"}}, r"rows\[1\].not_run: expected published figures .*, got 'RoCL'"),
        (
            [RUN, NOT_RUN],
            {"claims": [{**CLAIM, "holds_if": ["plain / FGSM > RoCL / FGSM"]}]},
            r"claims\[0\].holds_if: expected cells of rows that are run, without not_run, got 'plain / FGSM > RoCL / FGSM'",
        ),
        (
            [RUN, NOT_RUN],
            {"exceptions": [{"row": "RoCL", "column": "FGSM", "overrides": ["seed=1"]}]},
            r"exceptions\[0\].row: expected a row that is run, without not_run, got 'RoCL'",
        ),
    ],
)
def test_a_row_that_is_not_run_has_published_figures_alone(written, rows, more, message):
    given = {"rows": rows, "published": exact([1, 2], [3, None]), "claims": [], "exceptions": []}
    with pytest.raises(LabError, match=rf"paper/grid.yaml:\d+: {message}"):
        read_table(written(**given | more))


def test_a_row_that_is_not_run_has_no_words(written):
    table = read_table(written(rows=[RUN, NOT_RUN], published=exact([1, 2], [3, None]), claims=[], exceptions=[]))
    assert {row.label for row, _, _ in table.words()} == {"plain"}
    assert {row.label for row, _, _ in reshaped(table, "smoke").words()} == {"plain"}


def test_means_over_runs_need_an_attack_that_is_repeated(written, tmp_path):
    name = written(columns=[{"label": "PGD", "metric": "accuracy_of_runs", "overrides": ["attack=pgd"]}], published={"kind": "none"})
    with pytest.raises(LabError, match=r"paper/grid.yaml: plain / PGD: accuracy_of_runs needs an attack that is repeated.*got attack=pgd$"):
        cells_of(read_table(name), tmp_path)


def test_the_line_of_a_wrong_key_is_named(written):
    name = written()
    path = tables_folder() / "paper" / "grid.yaml"
    lines = path.read_text().splitlines()
    number = next(i for i, line in enumerate(lines) if "LS_0.9" in line)
    lines[number] = lines[number].replace("LS_0.9", "0.9")
    path.write_text("\n".join(lines))
    with pytest.raises(LabError, match=rf"grid.yaml:{number + 1}: rows\[1\].label"):
        read_table(name)


def test_a_table_may_ask_for_metrics(written):
    cells = cells_of(read_table(written(overrides=["backbone=small_cnn", "attack=fgsm", "metric=[loss_sensitivity]"])), Path("/nowhere"))
    assert list(cells[0].evaluation.config["metric"]) == ["loss_sensitivity"]


def test_the_words_of_every_cell_ask_for_what_it_shows(written):
    """By the table, the row, the column or an exception, alone or in a list."""
    rows = [{"label": "a", "overrides": ["metric=[training_set_distance,loss_sensitivity]"]}, {"label": "b"}]
    exceptions = [{"row": "b", "column": "FGSM", "overrides": ["metric=loss_sensitivity"]}]
    columns = [{"label": "FGSM", "metric": "metrics.loss_sensitivity"}, {"label": "mean", "metric": "robust_accuracy_mean"}]
    plain = {"rows": rows, "columns": columns, "published": {"kind": "none"}}
    table = read_table(written(**plain, exceptions=exceptions))
    assert [metric.name for metric in table.metrics] == ["metrics.loss_sensitivity", "robust_accuracy_mean"]
    assert [table.form_of(column) for column in table.columns] == [".4g", ".2f"]
    with pytest.raises(LabError, match="expected the words of b / FGSM to have"):
        read_table(written(**plain))


def test_an_exception_for_several_cells(written):
    """By globs, in which brackets stand for themselves."""
    rows = [{"label": label, "overrides": [f"seed={i}"]} for i, label in enumerate(("PNI [2]", "PNI [4]", "FM [2]"))]
    given = {"rows": rows, "published": {"kind": "none"}, "claims": [], "columns": [{"label": "FGSM"}, {"label": "PGD"}]}
    table = read_table(written(**given, exceptions=[{"row": "PNI*", "column": "*", "overrides": ["eot_samples=1"]},
                                                    {"row": "*[2]", "column": "PGD", "overrides": ["attack=pgd"]}]))  # fmt: skip
    special = {(row.label, column.label): [word for word in words if word in ("eot_samples=1", "attack=pgd")]
               for row, column, words in table.words()}  # fmt: skip
    assert special == {
        ("PNI [2]", "FGSM"): ["eot_samples=1"], ("PNI [2]", "PGD"): ["eot_samples=1", "attack=pgd"],
        ("PNI [4]", "FGSM"): ["eot_samples=1"], ("PNI [4]", "PGD"): ["eot_samples=1"],
        ("FM [2]", "FGSM"): [], ("FM [2]", "PGD"): ["attack=pgd"],
    }  # fmt: skip
    with pytest.raises(LabError, match=r"exceptions\[0\]: expected row, column, overrides, of this table"):
        read_table(written(**given, exceptions=[{"row": "L2P*", "column": "PGD", "overrides": ["attack=pgd"]}]))


@pytest.mark.parametrize("defense", ["fm", "pni", "learn2perturb", "adversarial_training_pni", "sfm"])
def test_quick_begins_late_what_the_quick_variants_begin_late(defense):
    """conf/grid/quick.yaml and conf/defense/<defense>_quick.yaml say the same."""
    base = ["dataset=cifar10", "backbone=resnet20"]
    cell = Rules.read("quick").applied([*base, f"defense={defense}", "training=fm"])
    variant = run_at_words([*base, "profile=quick", f"defense={defense}_quick"])
    assert run_at_words(cell).config["defense"] == variant.config["defense"]


# Tables that are like others


def like(**content) -> str:
    (tables_folder() / "paper" / "other.yaml").write_text(yaml.safe_dump({"like": "paper/grid", **content}))
    return "paper/other"


def test_a_table_like_another_has_its_keys_but_for_those_that_it_says_itself(written):
    first = read_table(written(claims=[CLAIM], findings=["All is well."]))
    other = read_table(like(title="Another", rows=[{"label": "plain"}], published={"kind": "none"}, claims=[]))
    assert (other.name, other.title, other.source, other.columns) == ("paper/other", "Another", first.source, first.columns)
    assert [row.label for row in other.rows] == ["plain"]
    assert other.published == {"kind": "none"}, "whole, not key by key"
    assert (other.claims, other.findings) == ([], ["All is well."])
    assert len(chosen_tables([])) == 2


def test_errors_name_the_file_and_the_line_where_a_key_stands(written):
    written(metric="nonsense", columns=[{"label": "a"}, {"label": 5}], published={"kind": "none"})
    lines = (tables_folder() / "paper" / "grid.yaml").read_text().splitlines()
    number = next(i for i, line in enumerate(lines, 1) if "label: 5" in line)
    with pytest.raises(LabError, match=rf"grid.yaml:{number}: columns\[1\].label: expected a text"):
        read_table(like(title="Another", metric="clean_accuracy"))
    with pytest.raises(LabError, match=r"other.yaml:\d+: columns\[0\].label: expected a text"):
        read_table(like(title="Another", columns=[{"label": 7}]))
    with pytest.raises(LabError, match=r"other.yaml:\d+: colums: expected|unexpected keyword argument 'colums'"):
        read_table(like(title="Another", colums=[]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"like": "paper/nothing"}, r"other.yaml:1: like: expected one of paper/grid, paper/other, got 'paper/nothing'"),
        ({"like": ["paper/grid"]}, r"other.yaml:1: like: expected one of paper/grid, paper/other, got \['paper/grid'\]"),
        ({"like": "paper/other"}, "like: expected a table that is not like another itself, got 'paper/other'"),
        ({"title": None}, "like: expected a title beside it, because no two tables have the same, got 'paper/grid'"),
        ({"title": "A table of 2 x 2 & more"}, r"title: expected a title of its own"),
    ],
)
def test_what_a_table_cannot_be_like(written, content, message):
    written()
    content = {"title": "Another"} | content
    like(**{key: value for key, value in content.items() if value is not None})
    with pytest.raises(LabError, match=message):
        chosen_tables([])


def test_two_tables_with_one_name_or_title(written):
    written()
    other: Path = tables_folder() / "paper" / "copy.yaml"
    other.write_text((tables_folder() / "paper" / "grid.yaml").read_text())
    with pytest.raises(LabError, match=r"grid.yaml:\d+: title: expected a title of its own, not that of .*copy.yaml"):
        chosen_tables([])
    other.rename(tables_folder() / "paper" / "GRID.yml")
    with pytest.raises(LabError, match="are two tables with one name"):
        chosen_tables([])


def test_the_file_of_a_cell_that_cannot_be_composed_is_named(written, tmp_path):
    name = written(columns=[{"label": "PGD", "overrides": ["attack=pgd", "attack.stepz=4"]}], published={"kind": "none"})
    with pytest.raises(LabError, match=r"paper/grid.yaml: plain / PGD: .*stepz"):
        cells_of(read_table(name), tmp_path)


def test_the_words_of_a_cell(written):
    """Table, row, column, exception; what is said later counts."""
    exception = {"row": "plain", "column": "FGSM", "overrides": ["attack=square"]}
    table = read_table(written(exceptions=[exception]))
    words = {(row.label, column.label): words for row, column, words in table.words()}
    assert words["plain", "clean"] == ["backbone=small_cnn", "attack=fgsm", "defense=standard"]
    assert words["plain", "FGSM"] == ["backbone=small_cnn", "defense=standard", "attack=square"]
    assert yaml.safe_load((tables_folder() / "paper" / "grid.yaml").read_text())["exceptions"] == [exception]
