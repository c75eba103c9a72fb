"""How a profile changes a table's words: conf/grid/<profile>.yaml, applied cell by cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from robustbench_lab.errors import LabError
from robustbench_lab.settings.conf import CONF
from robustbench_lab.settings.overrides import inner_words, merged_overrides, parsed, readable
from robustbench_lab.settings.yaml_files import read_yaml

RULES = CONF / "grid"
PROFILES = {  # from the whole to the least, and what each means
    "paper": "full size, the paper's settings where it states them",
    "quick": "real data, SHORT SCHEDULE: not the paper's settings",
    "smoke": "SMOKE: embedded data and tiny models, to show that everything runs; it reproduces nothing",
}


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How a profile changes a table's words, as conf/grid/<profile>.yaml says; of several patterns, the first that fits counts.

    choices: group -> pattern -> the choice instead; what the table says about the old one's keys is dropped. words: for a pattern of
    `group=choice`, words that are added. everywhere: words that every cell gets, unless those added say otherwise. curve_points: how many
    columns are left of a table that is drawn as curves, 2 or more, the first and the last among them; null: all. seeds: how many of a
    cell's training seeds are left, the first ones; null: all.
    """

    choices: Mapping[str, Mapping[str, str]]
    words: Mapping[str, Sequence[str]]
    everywhere: Sequence[str]
    curve_points: int | None = None
    seeds: int | None = None

    @classmethod
    def read(cls, profile: str) -> Rules:
        path = RULES / f"{profile}.yaml"
        try:
            rules = cls(**read_yaml(path))
        except (TypeError, OSError, YAMLError, OmegaConfBaseException) as error:
            raise LabError(f"{path}: {error}") from error
        if rules.curve_points is not None and rules.curve_points < 2:
            raise LabError(f"{path}: curve_points: expected 2 or more, or null, got {rules.curve_points}")
        if rules.seeds is not None and rules.seeds < 1:
            raise LabError(f"{path}: seeds: expected 1 or more, or null, got {rules.seeds}")
        return rules

    def applied(self, words: Sequence[str]) -> list[str]:
        """A cell's words, changed."""
        kept, added = self._changed(words)
        return merged_overrides(merged_overrides(kept, self.everywhere), added)

    def _changed(self, words: Sequence[str]) -> tuple[list[str], list[str]]:
        """The words, with other choices, and those that are added to them."""
        replaced, result = set(), []
        for word in words:
            override = parsed(word)
            if inner := inner_words(word):
                result.append(_outer(override.key_or_group, merged_overrides(*self._changed(inner))))
                continue
            new = self._choice(override.key_or_group, override.value())
            if new is not None:
                replaced.add(override.package or override.key_or_group)
                word = f"{override.get_key_element()}={new}"
            result.append(word)
        kept = [word for word in result if not _speaks_of(word, replaced)]
        added = [more for word in kept for pattern, words in self.words.items() if fnmatchcase(word, pattern) for more in words]
        return kept, added

    def _choice(self, group: str, choice: object) -> str | None:
        patterns = self.choices.get(group, {})
        new = next((new for pattern, new in patterns.items() if fnmatchcase(str(choice), pattern)), choice)
        return None if new == choice else str(new)


def _speaks_of(word: str, places: set[str]) -> bool:
    """Whether the word is about a key within one of the places, and no choice."""
    return any(parsed(word).key_or_group.startswith(f"{place}.") for place in places)


def _outer(key: str, words: Sequence[str]) -> str:
    return readable(f"{key}=[{','.join(words)}]")
