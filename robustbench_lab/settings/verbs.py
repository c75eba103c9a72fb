"""The words that a verb takes: its groups and keys, as conf/<verb>.yaml and the files behind it name them."""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

import yaml
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, OverrideType, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from robustbench_lab.errors import LabError
from robustbench_lab.output import one_line
from robustbench_lab.settings.conf import CONF, choice_file, choices, groups, tables_folder
from robustbench_lab.settings.overrides import LISTS, SHORT, parsed
from robustbench_lab.settings.packages import FOLDERS, PACKAGES, check_sources, sources, whose
from robustbench_lab.settings.pieces import piece
from robustbench_lab.settings.refusals import refusal
from robustbench_lab.settings.values import Unresolved

VERBS = {
    "train": "train a model, or finish or find the run that these settings name",
    "evaluate": "attack the model that these settings name, and write how many images it still gets right",
    "check": "look for signs of hidden gradients in the model that these settings name",
    "tables": "write papers' tables, our figures beside theirs, from the records there are",
    "reproduce": "train and evaluate what tables still miss, then write them and the report",
    "report": "write one page with every table, chart, picture and record there is",
}
QUICK = {  # verbs that no config is composed for: words go to `main` of their module
    "export": "write a finished run as a folder for others: weights, settings, a model card, RobustBench's entry",
    "ls": "list what there is: groups, the choices of one, tables, finished runs",
    "new": "write the files of an attack, defense, backbone, dataset or table of your own",
}
MODULES = {"export": "robustbench_lab.jobs.export", "ls": "robustbench_lab.jobs.ls", "new": "robustbench_lab.new.writing"}
PATHS = ("ROBUSTBENCH_LAB_OUTPUTS", "ROBUSTBENCH_LAB_DATA", "ROBUSTBENCH_LAB_TABLES")
VARIABLES = (*PATHS, PACKAGES, FOLDERS)
HYDRAS_GROUPS = ("hydra/launcher", "hydra/sweeper", "hydra/job_logging", "hydra/hydra_logging")
HYDRAS_TEXTS = ("hydra.sweep.dir", "hydra.sweep.subdir", "hydra.run.dir", "hydra.verbose")
HYDRAS_KEYS = ("hydra.launcher.", *(f"hydra.sweeper.{key}" for key in ("n_trials", "n_jobs", "seed", "storage")), *HYDRAS_TEXTS)
NO_FLAGS = ("--config-name", "-cn", "--config-path", "-cp", "--experimental-rerun")
FLAGS_WITH_VALUES = ("--cfg", "-c", "--package", "-p", "--info", "-i")


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
    """Stop at a word that Hydra cannot read, or for a group, a choice or a key that the verb does not have: Hydra stops too, with a
    traceback for some, or takes what nothing would read. Raises LabError with the nearest that there is, and the verbs that have it.
    """
    whose: dict[str, list[str]] = {}
    for other in VERBS:
        for name in itertools.chain(*groups_and_keys(other)):
            whose.setdefault(name, []).append(other)
    values = False  # of the flag before, which takes one
    for argument in arguments:
        if argument.startswith("-") or values:
            values = argument in FLAGS_WITH_VALUES
            continue
        try:
            word = parsed(argument)
        except (HydraException, LabError, RecursionError) as error:
            raise LabError(f"{argument}: expected key=value, or group=choice; {refusal(error)}") from error
        if not word.key_or_group:
            raise LabError(f"{argument}: expected key=value, or group=choice, got no key")
        name = re.split(r"[./]", word.package or word.key_or_group)[0]
        if name == "hydra":
            _check_hydras_own(verb, argument, word)
        elif verb not in whose.get(name, []):
            raise LabError(_not_of(verb, argument, name, whose))
        elif choices(word.key_or_group):
            _check_choice(argument, word)


def _not_of(verb: str, argument: str, name: str, whose: Mapping[str, Sequence[str]]) -> str:
    own = [known for known, verbs in whose.items() if verb in verbs]
    short = SHORT if "training" in own else ()
    near = [name] if name in whose else [*get_close_matches(name, [*own, *short], 1, 0.7), *get_close_matches(name, whose, 1)]
    remedy = f"did you mean {near[0]}? " if near and near[0] != name else ""
    if near and verb not in whose.get(near[0], (verb,)):
        remedy += f"{near[0]} is a word of {', '.join(whose[near[0]])}; "
    return f"{argument}: {verb} has no group or key {name!r}; {remedy}`python -m robustbench_lab {verb} --help` lists them"


def _check_choice(argument: str, word: Override) -> None:
    """Raises LabError unless each choice of a group that the word makes is there, and in a list once."""
    group, value = word.key_or_group, word.value()
    if word.type == OverrideType.DEL or isinstance(value, Glob):
        return
    several = list(value.list) if isinstance(value, ChoiceSweep) else [value]
    known = choices(group)
    for chosen in several:
        listed = chosen if isinstance(chosen, list) and (group in LISTS or word.package) else [chosen]
        for entry in listed:
            text = entry.text if isinstance(entry, QuotedString) else entry
            if isinstance(text, str) and "${" in text:
                continue
            if str(text) not in known or not isinstance(text, str):
                near = get_close_matches(str(text), known, 1)
                remedy = f"; did you mean {near[0]}?" if near else ""
                raise LabError(f"{argument}: expected {group} to be one of {', '.join(sorted(known))}, got {text!r}{remedy}")
        twice = [str(entry) for entry in listed if listed.count(entry) > 1]
        if twice:
            raise LabError(f"{argument}: expected each choice once, got {twice[0]!r} {len(twice)} times")


def _check_hydras_own(verb: str, argument: str, word: Override) -> None:
    """Of Hydra's own settings, those that say where and how jobs run; what would name an object for Hydra to make is no word of ours."""
    key, value = word.key_or_group, word.value()
    known = key in HYDRAS_GROUPS or any(key == known or (known.endswith(".") and key.startswith(known)) for known in HYDRAS_KEYS)
    suits = isinstance(value, bool | str) if key in (*HYDRAS_GROUPS, *HYDRAS_TEXTS) else _plain_value(value)
    if not known or "_target_" in key or not suits or not _plain_value(value):
        listed = ", ".join([*HYDRAS_GROUPS, *(f"{known}<key>" if known.endswith(".") else known for known in HYDRAS_KEYS)])
        raise LabError(f"{argument}: of Hydra's own settings, expected {listed} with a plain value")
    if key == "hydra/sweeper" and (value != "optuna" or verb not in ("train", "evaluate")):
        raise LabError(f"{argument}: expected hydra/sweeper=optuna, which searches for train and evaluate, got {value!r} for {verb}")


def _plain_value(value: object) -> bool:
    if isinstance(value, dict):
        return all(str(key)[:1] not in ("_", "(") and _plain_value(entry) for key, entry in value.items())
    if isinstance(value, list | ChoiceSweep):
        return all(map(_plain_value, value if isinstance(value, list) else value.list))
    return "${" not in str(value)


def check_flags(arguments: Sequence[str]) -> None:
    """Stop at an option of Hydra's that would run another config than the verb's, or read a pickle; also one cut short."""
    for argument in arguments:
        name = argument.partition("=")[0]
        if len(name) > 2 and name.startswith("-"):
            for flag in NO_FLAGS:
                if name == flag or (name.startswith("--") and flag.startswith(name)):
                    raise LabError(f"{argument}: {flag} is not taken here: a verb has its own config, and no file of another's is run")


def options_first(arguments: Sequence[str]) -> list[str]:
    """The same command as Hydra takes it, which wants its options, with their values, before or after all words."""
    options: list[str] = []
    words: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        (options if argument.startswith("-") else words).append(argument)
        if argument in FLAGS_WITH_VALUES and (value := next(rest, None)) is not None:
            options.append(value)
    return [*options, *words]


def check_environment() -> None:
    """Stop at a variable of ours that nothing reads, and at an empty one."""
    for name, value in os.environ.items():
        if name.startswith("ROBUSTBENCH_LAB_") and name not in VARIABLES:
            raise LabError(f"{name}: no such environment variable is read; expected one of {', '.join(VARIABLES)}")
        if name in PATHS and not value.strip():
            raise LabError(f"{name}: expected a path, got an empty text; set it, or unset it for the usual place")
    if not (folder := tables_folder()).is_dir():
        raise LabError(f"ROBUSTBENCH_LAB_TABLES: expected a folder of tables, <paper>/<table>.yaml, but there is no {folder}")
    _check_others()


def _check_others() -> None:
    """Stop at choices of others that cannot be used as ours are, in whichever folder they lie. Raises LabError, naming the file."""
    if not sources():
        return
    check_sources(groups())
    for source in sources():
        for file in source.folder.glob("table/*.y*ml"):
            raise LabError(f"{file}: expected a table in the folder of its paper, table/<paper>/{file.name}")
    for group in groups():
        for choice in choices(group):  # stops where two have one name
            path = choice_file(group, choice)
            if path is None or not whose(path) or group == "table":
                continue
            try:
                piece(group, choice)
            except Unresolved as error:
                if not error.args:  # Hydra can say what it is
                    continue
                expected = "expected a mapping, whose defaults are choices of this group or of the form /group@key: choice"
                raise LabError(f"{group}={choice}: {expected}, in {path}; {error}") from error
            except RecursionError as error:
                raise LabError(f"{group}={choice}: expected defaults that end, in {path}; they lead back to it") from error
            except (yaml.YAMLError, OmegaConfBaseException, OSError) as error:
                raise LabError(f"{group}={choice}: {path} cannot be read: {one_line(str(error))}") from error


def groups_of(verb: str) -> str:
    """For its help: a line for each group, with the choices there are."""
    return "\n".join(f"{group}: {', '.join(choices(group))}" for group in groups_and_keys(verb)[0])


OmegaConf.register_new_resolver("groups_of", groups_of, replace=True)
