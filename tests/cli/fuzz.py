"""Words that somebody might type by mistake, over the real keys of every verb: each must be read, or refused with status 2 and a word."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st
from omegaconf import DictConfig

from robustbench_lab.settings.conf import choices, compose
from robustbench_lab.settings.overrides import readable
from robustbench_lab.settings.verbs import groups_and_keys

POINTS = ["dataset=moons", "backbone=mlp_toy", "training=plane", "training.epochs=1", "dataset.samples=20"]  # trains in milliseconds
USUAL = {
    "train": POINTS,
    "evaluate": [*POINTS, "panel=none"],
    "check": [*POINTS, "panel=default", "panel.images=2", "panel.queries.queries=5", "panel.random.draws=5"],
    "tables": ["tables=[smoke/digits]"],
    "report": ["tables=[smoke/digits]", "reference=false"],
    "reproduce": ["tables=[smoke/digits]", "--dry-run"],
}
MORE: dict[str, list[list[str]]] = {  # choices that bring keys of their own
    "train": [
        [],
        ["defense=adversarial_training"],
        ["defense=fm", "defense.start_epoch=0"],
        ["defense=preprocessed"],
        ["training=quick", "training.epochs=1", "training.crop_padding=0"],
        ["dataset=image_folder", "backbone=resnet20"],
    ],
    "evaluate": [
        ["attack=fgsm"],
        ["attack=pgd"],
        ["attack=carlini_wagner", "attack.steps=2", "budget=box", "metric=[empirical_robustness]", "keep=[features]"],
        ["attack=worst_of", "+attack@attack.attacks.one=fgsm", "attack_misclassified=false"],
        ["attack=square", "attack.queries=5", "threat_model=black_queries"],
        ["attack=fgsm", "threat_model=black_transfer", "threat_model.overrides=[seed=1]"],
        ["attack=fgsm", "panel=default", "panel.images=2", "panel.queries.queries=5", "panel.random.draws=5"],
    ],
}
VALUES = [
    "", " ", "null", "true", "false", "no", "0", "1", "-1", "2", "3.5", "-0.0", "1e300", "-1e300", "1e-320", "nan", "inf", "-inf",
    "1_000", "99999999999999999999", "8", "8/255", "8./255.", "1/0", "1/2/3", "a", "abc def", "''", "'a'", '"a"', "[]", "[1]",
    "[1,2]", "[a]", "[[1]]", "[null]", "{}", "{a:1}", "{a:{b:[1]}}", "{_target_:os.system,command:true}",
    "{_target_:robustbench_lab.threats.Budget,norm:l2,eps:1}", "{_target_:robustbench_lab.multirun.sys.exit}", "{_target_:3}",
    "{_target_:torch.optim.SGD,_partial_:true}", "[{_target_:os.getcwd}]", "???", "${nope}", "${seed}", "${dataset}",
    "${oc.env:NOPE}", "${nope:1}", "${", "$", "\\", "'", '"', "[", "{", "(", "=", ",", "a,b", "1,2", "range(1,3)", "choice(1)",
    "glob(*)", "~", "/dev/null", "/nowhere/x", "é", "😀", "pgd", "[pgd,fgsm]", "linf", "l2", "l0", "cpu", "cuda:9", "digits",
    "[defense=standard]", "[seed=1]", "[nope]", "x" * 300, "-", "--help", "=1", "%s", "#",
]  # fmt: skip


def _said(verb: str, *more: str) -> list[str]:
    return list(more) if "dataset=image_folder" in more else [*USUAL[verb], *more]


@functools.cache
def keys_of(verb: str, *more: str) -> tuple[str, ...]:
    """Every group and key, nested ones with dots, under the usual choices and these."""
    words = [readable(word) for word in _said(verb, *more) if not word.startswith("-")]
    cfg: Any = compose(verb, words)[0]
    own = {key: cfg._get_node(key) for key in cfg if key != "hydra"}
    every = [key for part in groups_and_keys(verb) for key in part] + [*_flat(own)]
    if verb not in ("tables", "report"):
        every += ["hydra/launcher", "hydra.launcher.n_jobs", "hydra.sweep.dir", "hydra.verbose", "hydra.callbacks.more", "hydra.job.chdir"]
    return tuple(dict.fromkeys(every))


def _flat(node: Any, prefix: str = "") -> Iterator[str]:
    for key in node:
        yield f"{prefix}{key}"
        value = node._get_node(key) if isinstance(node, DictConfig) else node[key]
        if isinstance(value, DictConfig) and not value._is_interpolation() and not value._is_none():
            yield from _flat(value, f"{prefix}{key}.")


@st.composite
def commands(draw: st.DrawFn, verb: str) -> tuple[str, ...]:
    """A command with one word that somebody might have mistyped: a key, seldom with a sign or a wrong letter, and any value."""
    more = draw(st.sampled_from(MORE.get(verb, [[]])))
    key = draw(st.sampled_from(keys_of(verb, *more)))
    if draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, len(key)))
        key = key[:at] + draw(st.sampled_from("abz.@/-_ ")) + key[at:]
    own = choices(key) or [choice for group in groups_and_keys(verb)[0] for choice in choices(group)] or ["paper", "smoke"]
    sensible = st.one_of(st.sampled_from(own), st.integers(-2, 300).map(str), st.floats(-2, 2).map(repr))
    value = draw(st.one_of(st.sampled_from(VALUES), sensible, sensible, st.text(max_size=8), st.integers().map(str), st.floats().map(repr)))
    sign = draw(st.sampled_from(["", "", "", "", "", "", "+", "++", "~", "~="]))
    word = f"~{key}" if sign == "~" else f"{sign.removesuffix('=')}{key}={value}"
    return (verb, *_said(verb, *more), word)


def wrong(status: int, err: str) -> str | None:
    """What is wrong with how such a command ended; None where it is as it should be."""
    if "Traceback" in err:
        return "a traceback"
    if status == 2 and not ("error: " in err or "usage: " in err):
        return "no message"
    return None if status in (0, 2) else f"status {status}"
