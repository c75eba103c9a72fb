"""The words of a command line, `group=choice` and `key=value`, as Hydra's grammar reads them."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from robustbench_lab.errors import LabError

RUN_GROUPS = ("dataset", "backbone", "defense", "training")
LISTS = ("metric", "keep")  # groups of which an evaluation may choose several, or none
PATHS = ("output_root", "data.root", "dataset.path", "training.weights", "+training.weights", "hydra.sweep.dir")
PATH = re.compile(r"""(?!(?:null|true|false)$)(?!['"\[{])(?:(?!\$\{)[^,])+""", re.IGNORECASE)  # no list, sweep or interpolation
FIRST_LAYER = "normalise@dataset.normalise"  # the group of the model's first layer, and where it is
# Keys whose value is a list of words for another run.
OTHER_RUNS = re.compile(r"\+?(threat_model\.overrides|defense\.teacher|defense\.fronts\.\w+\.teacher|training\.start)")
TRAIN_KEYS = (*RUN_GROUPS, "profile", "seed", "data")  # what an override may name to describe a training run


SHORT = ("weights", "normalise", "output")  # words for someone else's model
FRONTS = re.compile(r"defense\.fronts=(\[[\w,\s]*\])")  # a list of choices, where Hydra wants the group's name


def written_out(words: Sequence[str]) -> list[str]:
    """The same words with what is short for others as those: `weights=FILE` for an imported run, `normalise=none|imagenet|{mean, std}` for
    the model's first layer, `output=probabilities` for what a callable's network gives; `defense.fronts=[...]` for choices of
    conf/front."""
    result = []
    for word in words:
        key, equals, value = word.partition("=")
        if fronts := FRONTS.fullmatch(word):
            result.append(f"front@defense.fronts={fronts[1]}")
        elif not equals or key not in SHORT:
            result.append(word)
        elif key == "weights":
            result += ["training=imported", f"training.weights={value}"]
        elif key == "output":
            result.append(f"backbone.gives={value}")
        elif value.startswith("{"):
            result += [f"{FIRST_LAYER}=mean_std", *_mean_and_std(word)]
        elif value != "dataset":  # which it is anyway
            result.append(f"{FIRST_LAYER}={value}")
    return result


def _mean_and_std(word: str) -> list[str]:
    """Raises LabError for a mapping of other keys."""
    value = parsed(word).value()
    if not isinstance(value, dict) or sorted(map(str, value)) != ["mean", "std"]:
        raise LabError(f"{word}: expected normalise={{mean: [...], std: [...]}}, one number for each channel, in units of the pixel range")
    return [f"dataset.normalise.{key}={value[key]}".replace(" ", "") for key in ("mean", "std")]


def merged_overrides(base: Sequence[str], more: Sequence[str]) -> list[str]:
    """`base` changed by `more`: a key named again is replaced, and a group chosen anew drops what was said about the old choice."""
    more = [readable(override) for override in written_out(more)]
    replaced = [_key(override) for override in more]
    kept = [override for override in base if not any(_key(override) == key or _key(override).startswith(f"{key}.") for key in replaced)]
    return [*kept, *more]


def train_overrides(overrides: Sequence[str]) -> list[str]:
    """Those of an evaluation's overrides that describe the training run."""
    return [override for override in overrides if _key(override).partition(".")[0] in TRAIN_KEYS]


def readable(override: str) -> str:
    """`threat_model.overrides=[seed=1]` as Hydra's grammar wants it, the inner = escaped, and a path as the text that it is: `~/results`,
    a date, one with spaces; other words, and a quoted list, as they are."""
    key, _, value = override.partition("=")
    if key in PATHS and PATH.fullmatch(value):
        return f"{key}={quoted(value)}"
    if not OTHER_RUNS.fullmatch(key) or "'" in value or '"' in value:
        return override
    return f"{key}=" + re.sub(r"(?<!\\)=", r"\=", value)


def quoted(text: object) -> str:
    """A text as Hydra's grammar takes it, whatever is in it: its quotes escape what ends it, and `${` would be looked up."""
    escaped = re.sub(r"(\\*)('|\Z)", lambda end: 2 * end[1] + ("\\'" if end[2] else ""), str(text))
    return "'" + escaped.replace("${", "\\${") + "'"


@functools.lru_cache(maxsize=10_000)
def parsed(override: str) -> Override:
    """A word of the command line, read by Hydra's grammar."""
    return OverridesParser.create().parse_override(readable(override))


def _key(override: str) -> str:
    return parsed(override).package or parsed(override).key_or_group


def inner_words(word: str) -> list[str]:
    """The words within `threat_model.overrides=[...]` and what else describes another run; none of any other word."""
    override = parsed(word)
    value = override.value() if OTHER_RUNS.fullmatch(override.key_or_group) else []
    return [str(entry) for entry in value] if isinstance(value, list) else []
