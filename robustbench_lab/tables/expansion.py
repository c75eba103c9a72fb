"""From the words of many cells to evaluations, quickly: Hydra composes each choice of a group once, and an evaluation is put together
from these pieces. Words that are more than `group=choice` and `key=value` are left to Hydra.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from hydra.core.override_parser.types import OverrideType
from omegaconf import DictConfig, OmegaConf

from robustbench_lab.settings.conf import choices as choices_of
from robustbench_lab.settings.conf import compose
from robustbench_lab.settings.identity import Evaluation, Run, evaluation_from, evaluation_of, run_of, setting_of
from robustbench_lab.settings.overrides import RUN_GROUPS, inner_words, parsed, train_overrides

GROUPS = (*RUN_GROUPS, "attack", "budget", "threat_model", "panel")
WHOLE = ("profile=", "metric=")  # words that Hydra composes a whole config for, the others being added to it
REFERENCE = re.compile(r"\$\{(?:backbone|defense|training|seed|profile)\b")
_NOTHING = object()


class Expansion:
    """The evaluations that many cells' words describe; what they share is composed once."""

    def __init__(self, every: Iterable[Sequence[str]]) -> None:
        self._bases: dict[tuple[str, ...], tuple[DictConfig, dict[str, Any]]] = {}
        self._nodes: dict[tuple[str, str], tuple[DictConfig, dict[str, Any]] | None] = {}  # None: a choice that reaches beyond its group
        self._runs: dict[tuple[str, ...], Run] = {}
        self._hows: dict[tuple[str, ...], tuple[dict[str, Any], dict[str, Any]]] = {}
        self._found: dict[tuple[str, ...], Evaluation] = {}
        self._texts: dict[int, str] = {}  # of nodes that live as long as this object
        self._compose_choices({choice for words in every for choice in self._choices_in(words)})

    def evaluation(self, words: Sequence[str]) -> Evaluation:
        key = tuple(words)
        if key not in self._found:
            described = train_overrides(words)
            how = [word for word in words if word not in described]
            if self._looks_at_the_run(how):
                self._found[key] = evaluation_of(*compose("evaluate", words), words)
            else:
                of_data = [word for word in described if parsed(word).key_or_group.partition(".")[0] in ("dataset", "profile")]
                self._found[key] = evaluation_from(self._run(described), *self._how([*of_data, *how]), words, self._run)
        return self._found[key]

    def _how(self, words: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Everything but the run, and the choices behind it."""
        key = tuple(words)
        if key not in self._hows:
            cfg, choices = self._config("evaluate", words)
            self._hows[key] = setting_of(cfg), choices
        return self._hows[key]

    def _looks_at_the_run(self, words: Sequence[str]) -> bool:
        """Whether the way of attacking refers to the run by more than its images: then the two are composed together."""
        chosen = {parsed(word).key_or_group: parsed(word).value() for word in words}
        nodes = [self._nodes.get((group, str(choice))) for group, choice in chosen.items() if group in GROUPS]
        found = [node[0] for node in nodes if node is not None]
        found += [self._base("evaluate")[0][group] for group in ("attack", "budget", "threat_model") if group not in chosen]
        return any("${" in word for word in words) or any(REFERENCE.search(self._text(node)) for node in found)

    def _text(self, node: DictConfig) -> str:
        if id(node) not in self._texts:
            self._texts[id(node)] = OmegaConf.to_yaml(node)
        return self._texts[id(node)]

    def _run(self, words: Sequence[str]) -> Run:
        key = tuple(words)
        if key not in self._runs:
            self._runs[key] = run_of(*self._config("train", words))
        return self._runs[key]

    def _choices_in(self, words: Sequence[str]) -> set[tuple[str, str]]:
        """(group, choice) of plain words, those of the attacker's other run as well."""
        overrides = [parsed(inner) for word in words for inner in (word, *inner_words(word))]
        return {(o.key_or_group, str(o.value())) for o in overrides if o.key_or_group in GROUPS and o.package is None}

    def _compose_choices(self, wanted: set[tuple[str, str]]) -> None:
        """Many groups at a time, one choice of each; a choice that changes what other groups choose is left to Hydra."""
        queues = {group: sorted(choice for g, choice in wanted if g == group) for group in GROUPS}
        while any(queues.values()):
            asked = {group: queue.pop() for group, queue in queues.items() if queue}
            cfg, choices = compose("evaluate", [f"{group}={choice}" for group, choice in asked.items()])
            expected = {**self._base("evaluate")[1], **asked}
            alone = all(choices[group] == expected[group] for group in GROUPS)
            for group, choice in asked.items():
                within = {key: value for key, value in choices.items() if key.startswith(f"{group}@") or f"@{group}." in key}
                self._nodes[group, choice] = (cfg[group], within) if alone else None

    def _base(self, verb: str, *profile: str) -> tuple[DictConfig, dict[str, Any]]:
        if (verb, *profile) not in self._bases:
            self._bases[verb, *profile] = compose(verb, profile)
        return self._bases[verb, *profile]

    def _config(self, verb: str, words: Sequence[str]) -> tuple[DictConfig, dict[str, Any]]:
        """As config.compose, without Hydra's own part where the words are plain."""
        base, choices = self._base(verb, *(word for word in words if word.startswith(WHOLE)))
        cfg = OmegaConf.create({key: None for key in base if key != "hydra"}, flags={"allow_objects": True})
        values = []
        choices = dict(choices)
        chosen: dict[str, DictConfig] = {}
        for word in words:
            override = parsed(word)
            group = override.key_or_group
            if word.startswith(WHOLE):
                continue
            if override.type != OverrideType.CHANGE or override.package is not None or override.is_sweep_override():
                return compose(verb, words)
            if group in GROUPS:
                node = self._nodes.get((group, str(override.value())))
                if node is None or group not in base:
                    return compose(verb, words)
                chosen[group], choices[group] = node[0], str(override.value())
                choices |= node[1]
            elif choices_of(group):
                return compose(verb, words)
            else:
                values.append((group, override.value()))
        for key in cfg:
            cfg[key] = chosen[key] if key in chosen else base._get_node(key)  # a copy: omegaconf never shares a node
        for key, value in values:
            if OmegaConf.select(cfg, key, default=_NOTHING) is _NOTHING:
                return compose(verb, words)  # Hydra's error says it well
            OmegaConf.update(cfg, key, value, merge=True)
        return cfg, choices
