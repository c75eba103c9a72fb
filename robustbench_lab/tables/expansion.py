"""From the words of many cells to evaluations, quickly: each choice of a group is read once, and an evaluation is put together from these
pieces as plain values. Words that are more than `group=choice` and `key=value` are left to Hydra.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import OmegaConf

from robustbench_lab.settings.conf import choices as choices_of
from robustbench_lab.settings.conf import compose
from robustbench_lab.settings.identity import Evaluation, Run, evaluation_from, evaluation_of, run_of, setting_of
from robustbench_lab.settings.overrides import LISTS, RUN_GROUPS, parsed, train_overrides
from robustbench_lab.settings.pieces import Choice, Piece, piece
from robustbench_lab.settings.values import Unresolved, merged, with_value

GROUPS = (*RUN_GROUPS, "attack", "budget", "threat_model", "panel")
Made = TypeVar("Made")
REFERENCE = re.compile(r"\$\{(?:backbone|defense|training|seed|profile)\b")


class Expansion:
    """The evaluations that many cells' words describe; what they share is put together once. here: words that hold for all of them."""

    def __init__(self, here: Sequence[str] = ()) -> None:
        self._here = tuple(here)
        self._bases: dict[tuple[str, ...], tuple[dict[str, Any], dict[str, Any]]] = {}
        self._runs: dict[tuple[str, ...], Run] = {}
        self._hows: dict[tuple[str, ...], tuple[dict[str, Any], dict[str, Any]]] = {}
        self._found: dict[tuple[str, ...], Evaluation] = {}
        self._looking: dict[tuple[str, ...], bool] = {}

    def evaluation(self, words: Sequence[str]) -> Evaluation:
        """Raises Hydra's error for words that describe none."""
        key = tuple(words)
        if key not in self._found:
            self._found[key] = self._evaluation([*self._here, *words])
        return self._found[key]

    def run(self, words: Sequence[str]) -> Run:
        """The run that words of `train` describe."""
        key = tuple(words)
        if key not in self._runs:
            self._runs[key] = self._composed("train", words, lambda config, choices: run_of(config, choices, words, self.run))
        return self._runs[key]

    def _evaluation(self, words: Sequence[str]) -> Evaluation:
        described = train_overrides(words)
        how = [word for word in words if word not in described]
        if self._looks_at_the_run(tuple(how)):
            return evaluation_of(*compose("evaluate", words), words)
        of_data = [word for word in described if parsed(word).key_or_group.partition(".")[0] in ("dataset", "profile")]
        return evaluation_from(self.run(described), *self._how([*of_data, *how]), words, self.run)

    def _how(self, words: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Everything but the run, and the choices behind it."""
        key = tuple(words)
        if key not in self._hows:
            self._hows[key] = self._composed("evaluate", words, lambda config, choices: (setting_of(config), choices))
        return self._hows[key]

    def _composed(self, verb: str, words: Sequence[str], made: Callable[[Any, dict[str, Any]], Made]) -> Made:
        """What is made of the config and the choices that words describe."""
        try:
            return made(*self._config(verb, words))
        except Unresolved:
            return made(*compose(verb, words))

    def _looks_at_the_run(self, words: tuple[str, ...]) -> bool:
        """Whether the way of attacking refers to the run by more than its images: then the two are composed together."""
        if words not in self._looking:
            try:
                config, _ = self._config("evaluate", words)
            except Unresolved:
                self._looking[words] = True
            else:
                texts = (text for group in ("attack", "budget", "threat_model") for text in _texts(config[group]))
                self._looking[words] = any("${" in word for word in words) or any(map(REFERENCE.search, texts))
        return self._looking[words]

    def _base(self, verb: str, *profile: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Of no other words, without Hydra's own part; interpolations as they stand."""
        if (verb, *profile) not in self._bases:
            cfg, choices = compose(verb, profile)
            config: Any = OmegaConf.to_container(cfg)
            self._bases[verb, *profile] = {key: value for key, value in config.items() if key != "hydra"}, choices
        return self._bases[verb, *profile]

    def _config(self, verb: str, words: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        """As settings.conf.compose, in plain values. Raises Unresolved where Hydra must say, for words that it refuses too."""
        base, before = self._base(verb, *(word for word in words if word.startswith("profile=")))
        overrides = [parsed(word) for word in words if not word.startswith("profile=")]
        config, choices = dict(base), dict(before)
        for group, chosen in _chosen(overrides, before).items():
            if group not in before:
                raise Unresolved
            config[group] = chosen.content
            choices |= {group: _choice_of(group, overrides, before), **chosen.choices}
        for override in overrides:
            if override.package is None and override.key_or_group in LISTS:
                config[override.key_or_group] = _several(override.key_or_group, override.value())
            elif override.package is None and override.key_or_group not in GROUPS:
                if choices_of(override.key_or_group):
                    raise Unresolved
                with_value(config, override.key_or_group, override.value())
        return config, choices


def _chosen(overrides: Sequence[Override], before: dict[str, Any]) -> dict[str, Piece]:
    """The groups that words choose anew, or choose something within."""
    instead: dict[str, dict[str, Choice]] = {}
    for override in overrides:
        if override.type != OverrideType.CHANGE or override.is_sweep_override():
            raise Unresolved
        if override.package is not None:
            group, _, package = override.package.partition(".")
            if group not in GROUPS or not package:
                raise Unresolved
            value = override.value()
            several = isinstance(value, list) and all(isinstance(one, str) for one in value)
            instead.setdefault(group, {})[f"{override.key_or_group}@{package}"] = tuple(value) if several else str(value)  # type: ignore[arg-type]
        elif override.key_or_group in GROUPS:
            instead.setdefault(override.key_or_group, {})
    return {group: piece(group, _choice_of(group, overrides, before), *sorted(others.items())) for group, others in instead.items()}


def _choice_of(group: str, overrides: Sequence[Override], before: dict[str, Any]) -> str:
    """The last that words choose, or the one that stood before."""
    said = [str(override.value()) for override in overrides if override.package is None and override.key_or_group == group]
    return said[-1] if said else str(before[group])


def _several(group: str, names: object) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name in names if isinstance(names, list) else [names]:
        content = merged(content, piece(group, str(name)).content)
    return content


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(part)
