"""From configuration to objects: names that depend on content alone, fractions, targets, and every file of conf/."""

import math
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from hashlib import blake2b
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import yaml
from built_kinds import KINDS, NEEDED
from hydra.utils import get_object
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from robustbench_lab.backbones.base import Backbone
from robustbench_lab.errors import LabError
from robustbench_lab.models.normalise import FirstLayer
from robustbench_lab.settings.build import build, named
from robustbench_lab.settings.conf import CONF, choice_file, choices, compose, plain, with_fractions
from robustbench_lab.settings.identity import Evaluation, canonical, evaluation_of, fingerprint, nearest_runs, run_at_words, run_of
from robustbench_lab.settings.overrides import merged_overrides, parsed, quoted, readable, train_overrides

FILES = sorted(CONF.rglob("*.yaml"))
GROUPS = ("dataset", "backbone", "defense", "training", "profile", "attack", "budget", "threat_model", "panel")
CHOICES = [[(group, path.stem) for path in sorted((CONF / group).glob("*.yaml"))] for group in GROUPS]
TOGETHER = [[choice for choice in one_of_each if choice] for one_of_each in zip_longest(*CHOICES)]


def name(path: Path) -> str:
    return str(path.relative_to(CONF))


# Fingerprints

scalars = st.none() | st.booleans() | st.integers(-1000, 1000) | st.floats(allow_nan=False) | st.text(max_size=5)
keys = st.text(max_size=3)
contents = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=8)


def respelled(value: Any) -> Any:
    """The same content, written differently: keys in reverse, whole numbers as floats, lists as tuples."""
    if isinstance(value, dict):
        return {key: respelled(value[key]) for key in reversed(value)}
    if isinstance(value, list):
        return tuple(respelled(entry) for entry in value)
    if isinstance(value, bool) or value is None:
        return value
    return float(value) if isinstance(value, int) else value


@settings(deadline=None)
@given(st.dictionaries(keys, contents, max_size=4))
def test_a_fingerprint_depends_on_content_alone(content):
    assert fingerprint(respelled(content)) == fingerprint(content)
    assert re.fullmatch("[0-9a-f]{8}", fingerprint(content))


@settings(deadline=None)
@given(st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_different_numbers_have_different_spellings(a, b):
    assert (canonical(a) == canonical(b)) == (a == b)


def test_a_fingerprint_sees_every_difference():
    values = [1, 2, "1", True, [1], {"b": 1}, 1.5, math.inf, -1]
    contents = [{}, {"b": 1}, *({"a": value} for value in values)]
    assert len({fingerprint(content) for content in contents}) == len(contents)


def test_a_fingerprint_is_the_same_on_every_machine():
    """A known answer: names on disk must not change with the version of Python or of this project."""
    text = b'{"eps": "0.03137254901960784", "norm": "linf", "steps": 7}'
    assert fingerprint({"eps": 8 / 255, "steps": 7.0, "norm": "linf", "labels": None}) == blake2b(text, digest_size=4).hexdigest()


def names(*overrides: str) -> str:
    return run_at_words(overrides).name


def test_names_of_runs():
    assert re.fullmatch("digits-small_resnet-standard-s0-[0-9a-f]{8}", names())
    assert names("defense=trades", "defense.beta=3") == names("defense=trades", "defense.beta=3.0") != names("defense=trades")
    assert names("dataset.budget.eps=8/255", "defense=trades") == names(f"dataset.budget.eps={8 / 255}", "defense=trades")
    assert names("dataset.budget.eps=8/255", "defense=trades") != names("defense=trades"), "the defense trains on that budget"
    assert names("dataset.budget.eps=8/255") == names(), "no undefended weight depends on it"
    for words in (["device=cuda"], ["data.root=/x"], ["data.download=false"], ["force=true"], ["dataset.test_size=9"], ["output_root=/y"]):
        assert names(*words) == names()
    for words in (["seed=1"], ["dataset.train_size=9"], ["dataset.subset_seed=1"], ["training.epochs=31"], ["training.precision=bf16"]):
        assert names(*words) != names()


def evaluation(*overrides: str) -> Evaluation:
    return evaluation_of(*compose("evaluate", overrides), overrides)


def test_names_of_evaluations():
    assert re.fullmatch("pgd-white-[0-9a-f]{8}", evaluation().name)
    assert evaluation("budget=linf", "budget.eps=8/255").name == evaluation("budget=linf", f"budget.eps={8 / 255}").name
    assert evaluation("batch_size=7", "device=cpu", "data.root=/x").name == evaluation().name
    changed = ["attack_seed=1", "attack.steps=7", "budget.eps=0.2", "dataset.test_size=9", "threat_model=black_queries", "attack=fgsm"]
    assert len({evaluation(word).name for word in [*changed, "seed=0"]}) == len(changed) + 1
    assert evaluation("dataset.test_size=9").run == evaluation("dataset.test_size=9", "attack=fgsm").run


def test_the_twin_is_the_undefended_run_with_the_same_other_settings():
    found = evaluation("defense=trades", "defense.beta=3", "seed=4", "training.epochs=5", "threat_model=gray_twin", "attack.steps=3")
    assert found.run.name == names("defense=trades", "defense.beta=3", "seed=4", "training.epochs=5")
    assert found.source is not None
    assert found.source.name == names("seed=4", "training.epochs=5")


def test_the_twin_follows_a_profile():
    found = evaluation("profile=quick", "dataset=cifar10", "backbone=resnet20", "defense=fm_quick", "threat_model=gray_twin")
    assert found.source is not None
    assert found.source.name == names("profile=quick", "dataset=cifar10", "backbone=resnet20")


@pytest.mark.parametrize("words", ["[seed=1,backbone=mlp]", "['seed=1','backbone=mlp']", r"[seed\=1,backbone\=mlp]"])
def test_a_substitute_is_described_by_its_own_words(words):
    found = evaluation(*merged_overrides(["seed=4", "backbone.widths=[8]", "backbone=small_cnn"], ["threat_model=black_transfer"]),
                       readable(f"threat_model.overrides={words}"))  # fmt: skip
    assert found.source is not None
    assert found.source.name == names("seed=1", "backbone=mlp")


def test_a_substitute_that_is_the_run_itself_is_refused():
    with pytest.raises(LabError, match=r"threat_model\.overrides.*threat_model=white"):
        evaluation("seed=1", "threat_model=black_transfer")


def test_a_source_that_is_written_differently_is_the_same_evaluation():
    a, b = (evaluation("threat_model=black_transfer", f"threat_model.overrides=['{word}']") for word in ("seed=1", "++seed=1"))
    assert a.fingerprint == b.fingerprint
    assert a.fingerprint != evaluation("threat_model=black_transfer", "threat_model.overrides=['seed=2']").fingerprint


def test_a_folder_of_this_content_counts_under_any_name(tmp_path):
    run = run_at_words([])
    assert run.folder(tmp_path) == tmp_path / "runs" / run.name
    renamed = tmp_path / "runs" / f"my-favourite-{run.fingerprint}"
    renamed.mkdir(parents=True)
    assert run.folder(tmp_path) == renamed
    finished = tmp_path / "runs" / f"your-favourite-{run.fingerprint}"  # two processes, with other words for the same content
    finished.mkdir()
    (finished / "run.json").touch()
    assert run.folder(tmp_path) == finished


def test_nearest_runs_are_ordered_by_how_much_differs(tmp_path):
    from robustbench_lab.storage.files import write_json

    third = ["seed=3", "training.epochs=9", "training.batch_size=8"]
    for words in (third[:1], third[:2], third, ["defense=trades"]):
        other = run_at_words(words)
        write_json(other.folder(tmp_path) / "run.json", {"schema": 1, "config": other.config, "model_digest": "d"})
    message = nearest_runs(run_at_words(["dataset.test_size=5"]), tmp_path)
    differing = ("seed: 3 != 0;", "seed: 3 != 0, training.epochs", "seed: 3 != 0, training.batch")
    places = [message.index(f"differs in {keys}") for keys in differing]
    assert places == sorted(places)
    assert "training.epochs: 9 != 30" in message
    assert "trades" not in message, "the three nearest"
    assert "test_size" not in message


# Fractions


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("8/255", 8 / 255),
        ("-1/2", -0.5),
        ("+1/4", 0.25),
        (" 0.5 / 2 ", 0.25),
        ("0/3", 0.0),
        ("16/255", 16 / 255),
        ("8./255.", 8 / 255),
        ("8/255.", 8 / 255),
        (".5/2", 0.25),
        ("1e1/2", 5.0),
    ],
)
def test_fractions_are_numbers(text, number):
    assert with_fractions(text, "eps") == number


@pytest.mark.parametrize("text", ["a/b", "1/b", "1/2/3", "1//2", "2**3/4", "1/-2", "__import__('os')/1", "./2", "1e/2", "/1", "images/1"])
def test_other_text_is_left_alone(text):
    assert with_fractions(text, "key") == text


@pytest.mark.parametrize("text", ["1/0", "8/0.0", "-3/0"])
def test_nothing_is_divided_by_zero(text):
    with pytest.raises(LabError, match=r"budget\.eps\[1\]: '.*' divides by zero"):
        with_fractions({"eps": [1, text]}, "budget")


@settings(deadline=None)
@given(st.integers(-1000, 1000), st.integers(1, 1000))
def test_any_fraction_is_its_quotient(above, below):
    assert with_fractions([{"x": f"{above}/{below}"}], "k") == [{"x": above / below}]


def test_plain_resolves_and_names_what_is_missing():
    cfg = OmegaConf.create({"a": {"eps": "8/255", "same": "${a.eps}", "n": 3}, "b": {"c": {"d": "???"}}, "e": {"f": "${nowhere}"}, "g": 1})
    assert plain(cfg, "a", "g") == {"a": {"eps": 8 / 255, "same": 8 / 255, "n": 3}, "g": 1}
    with pytest.raises(LabError, match=r"^b\.c\.d: "):
        plain(cfg, "b")
    with pytest.raises(LabError, match=r"^e\.f: .*nowhere"):
        plain(cfg, "e")


# Overrides


@pytest.mark.parametrize(
    ("base", "more", "expected"),
    [
        ([], ["a=1"], ["a=1"]),
        (["a=1", "b=2"], ["a=3"], ["b=2", "a=3"]),
        (["defense=fm", "defense.start_epoch=2", "seed=1"], ["defense=standard"], ["seed=1", "defense=standard"]),
        (["defense=fm", "defense.start_epoch=2"], ["defense.start_epoch=3"], ["defense=fm", "defense.start_epoch=3"]),
        (["defense=fm", "attack@defense.attack=fgsm"], ["defense=trades"], ["defense=trades"]),
        (["defense_x=1"], ["defense=fm"], ["defense_x=1", "defense=fm"]),
        (["a.b=1"], ["a.bc=2"], ["a.b=1", "a.bc=2"]),
        (["+a.b=1"], ["++a.b=2"], ["++a.b=2"]),
        (["training.schedule.milestones=[1,2]"], ["training=quick"], ["training=quick"]),
        (["threat_model=white"], ["threat_model.overrides=[seed=1]"], ["threat_model=white", r"threat_model.overrides=[seed\=1]"]),
    ],
)  # fmt: skip
def test_merged_overrides(base, more, expected):
    assert merged_overrides(base, more) == expected


@pytest.mark.parametrize("path", ["/a b=c,d", "/o\\x", "/it's", "/a\\'b", "/end\\", "/${x}", "/x\\\\y", "/{[(:"])
def test_any_path_is_a_word_for_a_job(path):
    value = parsed(f"output_root={quoted(path)}").value()
    assert OmegaConf.create({"output_root": value}).output_root == path


def test_train_overrides_are_those_that_describe_a_run():
    ours = ["dataset=mnist", "dataset.test_size=5", "defense.beta=3", "attack@defense.attack=fgsm", "seed=1", "profile=smoke"]
    others = ["attack=pgd", "attack.steps=3", "budget.eps=1", "batch_size=4", "device=cpu", "threat_model=white", "attack_seed=1"]
    assert train_overrides([*others[:3], *ours, *others[3:]]) == ours


# conf/


def targets(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from ([node["_target_"]] if "_target_" in node else [])
        node = list(node.values())
    if isinstance(node, list):
        for entry in node:
            yield from targets(entry)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_target_is_allowed_and_exists(path):
    for target in targets(yaml.safe_load(path.read_text())):
        hydras_own = path.relative_to(CONF).parts[0] == "hydra" and target.startswith("hydra_plugins.")
        assert callable(get_object(target) if hydras_own else named(target, "key"))


@pytest.mark.parametrize("path", [path for path in FILES if path.relative_to(CONF).parts[0] != "hydra"], ids=name)
def test_every_file_opens_with_its_command_or_source(path):
    """Files of conf/hydra are left out: they are Hydra's plumbing (help texts, logging) and hold no setting of ours."""
    opening = path.read_text().removeprefix("# @package _global_\n").splitlines()
    comment = " ".join(line for line in opening[: next(i for i, line in enumerate([*opening, ""]) if not line.startswith("#"))])
    assert re.search(r"python -m robustbench_lab \w+|make \w+|figure: \{kind: |Source: |conf/\w+|groups that name a run", comment), comment


@pytest.mark.parametrize("together", TOGETHER, ids=lambda together: " ".join(map("=".join, together)))
def test_every_choice_composes_and_resolves(together):
    words = [*map("=".join, together), *(word for choice in together for word in NEEDED.get(choice, []))]
    cfg, choices = compose("evaluate", words)
    assert run_of(cfg, choices, words).fingerprint
    for part in set(GROUPS) - {"backbone", "profile"}:
        content = plain(cfg, part)[part]
        if part == "dataset":
            content = {key: entry for key, entry in content.items() if key not in ("budget", "space")}
            build(content.pop("normalise"), "dataset.normalise", FirstLayer)
        if part in KINDS:
            build(content, part, KINDS[part])
    for group, choice in together:
        assert choices[group] == choice


def test_the_groups_that_are_tested_are_all_there_are():
    elsewhere = {"figure", "front", "grid", "hydra", "keep", "metric", "normalise", "table"}
    assert {path.name for path in CONF.iterdir() if path.is_dir()} == {*GROUPS, *elsewhere}


def test_conf_is_found_from_anywhere(tmp_path):
    assert (CONF / "train.yaml").is_file()
    assert CONF.is_absolute()
    code = "from robustbench_lab.settings.conf import CONF; print((CONF / 'common.yaml').is_file())"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout == "True\n"


def test_an_installed_copy_finds_the_conf_inside_the_package(tmp_path):
    """What a wheel holds: conf/ within the package and no checkout around it; outputs then go to the working directory."""
    root = CONF.parent
    wheel = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"conf": "robustbench_lab/conf"}
    site = tmp_path / "site"
    if find_spec("hatchling"):
        command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", str(tmp_path), str(root)]
        subprocess.run(command, check=True)
        zipfile.ZipFile(next(tmp_path.glob("*.whl"))).extractall(site)
    else:
        shutil.copytree(root / "robustbench_lab", site / "robustbench_lab", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(root / "conf", site / "robustbench_lab" / "conf")
    assert sorted(path.relative_to(site / "robustbench_lab" / "conf") for path in (site / "robustbench_lab" / "conf").rglob("*.yaml")) == [
        path.relative_to(CONF) for path in sorted(CONF.rglob("*.yaml"))
    ]
    code = f"import sys; sys.path.insert(0, {str(site)!r}); from robustbench_lab.__main__ import main; sys.argv[1:] = sys.argv[2:]; main()"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = [sys.executable, "-c", code, "-", "train", "defense=fm", "--cfg", "job", "--resolve"]
    environment = {"PATH": "/usr/bin"}
    found = yaml.safe_load(subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=True).stdout)
    assert found["defense"]["alpha"] == "2e-9" or found["defense"]["alpha"] == 2e-9
    assert found["output_root"] == str(elsewhere / "outputs")


def test_a_groups_choices_are_its_files():
    assert choices("threat_model") == tuple(sorted(path.stem for path in (CONF / "threat_model").iterdir()))
    assert choices("training_") == ()
    assert choice_file("attack", "pgd") == CONF / "attack" / "pgd.yaml"
    assert choice_file("attack", "pgdd") is None


def test_only_one_place_looks_for_choices():
    """Everything else asks it, for choices come from other folders too."""
    looking = {
        path.name
        for path in (CONF.parent / "robustbench_lab").rglob("*.py")
        if re.search(r"/ group\)\.glob|CONF / group|CONF\)? / \"\w+\"\)?\.", path.read_text())
    }
    assert looking == {"packages.py"}


def test_a_backbone_for_larger_images_names_the_key_that_says_how_large_they_are():
    config = plain(compose("train", ["dataset=circles", "backbone=vgg19"])[0], "backbone")
    with pytest.raises(LabError, match=r"^dataset\.size: this backbone needs images of at least 16x16 pixels, got 1x1"):
        build(config["backbone"], "backbone", Backbone)
