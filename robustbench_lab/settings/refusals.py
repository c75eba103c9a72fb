"""What Hydra and OmegaConf refuse, said in our words: the key, what was expected, what came."""

from __future__ import annotations

import re

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from robustbench_lab.errors import LabError

REFUSALS = (HydraException, OmegaConfBaseException)
NO_KEY = re.compile(r"Could not override '(?P<key>[^']+)'|Could not delete from config\. '(?P<gone>[^']+)' does not exist")
OURS = re.compile(r"LabError raised while resolving interpolation: (?P<said>.*?)(?: full_key: .*)?$")  # of a resolver of ours
NO_CHOICE = re.compile(
    r"Could not find '(?P<group>[^']+)/(?P<choice>[^']*)' Available options in '[^']+': (?P<there>.*?) Config search path"
)
TAKEN = re.compile(r"Could not append to config\. An item is already at '(?P<key>[^']+)'")


def refusal(error: BaseException) -> str:
    """One line for an error that Hydra or OmegaConf raised: that of a LabError behind it, if there is one."""
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, LabError):
            return str(behind)
        behind = behind.__cause__ or (None if behind.__suppress_context__ else behind.__context__)
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("See https://"))
    if match := OURS.match(text):
        return match["said"]
    if match := NO_CHOICE.search(text):
        return f"{match['group']}: expected one of {', '.join(match['there'].split())}, got {match['choice']!r}"
    if match := TAKEN.match(text):
        return f"{match['key']}: there is one already; leave the + out"
    if match := NO_KEY.match(text):
        return f"{match['key'] or match['gone']}: there is no such key under these choices, or none for such a value; --help lists them"
    if key := getattr(error, "full_key", None):
        return f"{key}: {str(error).splitlines()[0]}"
    return text
