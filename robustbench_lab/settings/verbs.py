"""The words that a verb takes: its groups and keys, as conf/<verb>.yaml and the files behind it name them."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence
from difflib import get_close_matches

import yaml
from omegaconf import OmegaConf

from robustbench_lab.errors import LabError
from robustbench_lab.settings.conf import CONF, choices

VERBS = {
    "train": "train a model, or finish or find the run that these settings name",
    "evaluate": "attack the model that these settings name, and write how many images it still gets right",
    "check": "look for signs of hidden gradients in the model that these settings name",
    "tables": "write papers' tables, our figures beside theirs, from the records there are",
    "reproduce": "train and evaluate what tables still miss, then write them and the report",
    "report": "write one page with every table, chart, picture and record there is",
}
WORD = re.compile(r"(?P<sign>[+~]*)(?P<key>[^=@]+)(?:@(?P<package>[^=]*))?(?P<value>=.*)?", re.DOTALL)


@functools.cache
def groups_and_keys(verb: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """In the order in which its files have them."""
    content = yaml.safe_load((CONF / f"{verb}.yaml").read_text(encoding="utf-8"))
    groups: tuple[str, ...] = ()
    keys = tuple(key for key in content if key not in ("defaults", "hydra"))
    for entry in content.get("defaults", []):
        if isinstance(entry, dict):
            groups += tuple(group.removeprefix("optional ") for group in entry if not group.startswith("override "))
        elif entry != "_self_":
            their_groups, their_keys = groups_and_keys(entry)
            groups, keys = groups + their_groups, keys + their_keys
    return groups, keys + (("profile",) if "table_profile" in keys and "profile" not in keys else ())


def check_words(verb: str, arguments: Sequence[str]) -> None:
    """Stop at a word for a group or key that the verb does not have: Hydra stops too, or, after a +, takes what nothing would read.

    Raises LabError with the nearest that there is, and the verbs that have it.
    """
    whose: dict[str, list[str]] = {}
    for other in VERBS:
        for name in itertools.chain(*groups_and_keys(other)):
            whose.setdefault(name, []).append(other)
    for argument in arguments:
        word = WORD.fullmatch(argument)
        if argument.startswith("-") or word is None or not (word["value"] or word["sign"]):
            continue
        name = re.split(r"[./]", word["package"] or word["key"])[0]
        if name == "hydra" or verb in whose.get(name, []):
            continue
        own = [known for known, verbs in whose.items() if verb in verbs]
        near = [name] if name in whose else [*get_close_matches(name, own, 1, 0.7), *get_close_matches(name, whose, 1)]
        remedy = f"did you mean {near[0]}? " if near and near[0] != name else ""
        if near and verb not in whose[near[0]]:
            remedy += f"{near[0]} is a word of {', '.join(whose[near[0]])}; "
        raise LabError(f"{argument}: {verb} has no group or key {name!r}; {remedy}`python -m robustbench_lab {verb} --help` lists them")


def groups_of(verb: str) -> str:
    """For its help: a line for each group, with the choices there are."""
    return "\n".join(f"{group}: {', '.join(choices(group))}" for group in groups_and_keys(verb)[0])


OmegaConf.register_new_resolver("groups_of", groups_of, replace=True)
