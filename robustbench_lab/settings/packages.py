"""Where choices and classes may come from besides this project: packages that are named, and folders of choices.

ROBUSTBENCH_LAB_PACKAGES=mylab,other, and what is installed with an entry point in the group `robustbench_lab`: each is a package that
Python can import; what its conf/ holds are choices, tables included, and what it defines may be a `_target_`. It is looked for without
being imported. ROBUSTBENCH_LAB_CONFIG_DIRS=folder:other, or --config-dir, or hydra.searchpath: folders of choices alone.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from robustbench_lab.errors import LabError

PACKAGES, FOLDERS = "ROBUSTBENCH_LAB_PACKAGES", "ROBUSTBENCH_LAB_CONFIG_DIRS"  # variables: commands that this one starts read them too
NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


class Source(NamedTuple):
    """A folder of choices, and whose it is: a package's name, or the folder's own."""

    folder: Path
    whose: str


def packages() -> tuple[str, ...]:
    """The names of other packages, as they were given; then those that are installed with an entry point. Raises LabError for what is no
    package's name."""
    named = [name.strip() for name in os.environ.get(PACKAGES, "").split(",") if name.strip()]
    for name in named:
        if not NAME.fullmatch(name):
            raise LabError(f"{PACKAGES}: expected names of packages with commas between them, such as mylab,timm, got {name!r}")
    return tuple(dict.fromkeys([*named, *_installed()]))


@functools.cache
def _installed() -> tuple[str, ...]:
    return tuple(entry.value.partition(":")[0] for entry in entry_points(group="robustbench_lab"))


def sources() -> tuple[Source, ...]:
    """Folders of choices besides ours, in the order in which they were named: each package's conf/, where it has one, and others."""
    folders = tuple(filter(None, os.environ.get(FOLDERS, "").split(os.pathsep)))
    return _sources(packages(), folders, tuple(sys.path))


@functools.cache
def _sources(names: tuple[str, ...], folders: tuple[str, ...], path: tuple[str, ...]) -> tuple[Source, ...]:
    found = []
    for name in names:
        try:
            spec = find_spec(name)
        except Exception as error:  # of a package around it, which is imported
            raise LabError(f"{PACKAGES}: {name} cannot be imported: {type(error).__name__}: {error}") from error
        if spec is None:
            raise LabError(f"{PACKAGES}: expected a package that Python can import, but there is no {name}; is its folder in PYTHONPATH?")
        places = [Path(place) / "conf" for place in spec.submodule_search_locations or ()]
        found += [Source(place, name) for place in places if place.is_dir()]
    for folder in folders:
        place = Path(folder).expanduser().absolute()
        if not place.is_dir():
            raise LabError(f"{FOLDERS}: expected a folder of choices, <group>/<choice>.yaml, but there is no {place}")
        found.append(Source(place, str(place)))
    return tuple(dict.fromkeys(found))


def check_sources(groups: Sequence[str]) -> None:
    """Stop at a folder that is no group, which nobody would read, and at a choice that there is already. Raises LabError."""
    for folder, whose in sources():
        inside = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith((".", "__"))]
        for path in inside:
            if path.name not in groups:
                near = get_close_matches(path.name, groups, 1)
                remedy = f"; did you mean {near[0]}?" if near else ""
                raise LabError(f"{whose}: {path} is no group of choices; expected one of {', '.join(groups)}{remedy}")
        if not inside:
            raise LabError(
                f"{whose}: {folder} has no group of choices; expected <group>/<choice>.yaml, with a group of {', '.join(groups)}"
            )


def files_in(ours: Path, group: str) -> dict[str, Path]:
    """The choices of a group by name: ours, then others'. Raises LabError where two have one name."""
    return dict(_files_in(ours, group, sources()))


@functools.cache
def _files_in(ours: Path, group: str, others: tuple[Source, ...]) -> dict[str, Path]:
    found = {path.stem: path for path in sorted((ours / group).glob("*.yaml"))}
    for folder, _ in others:
        for path in sorted((folder / group).glob("*.yaml")):
            if path.stem in found:
                raise LabError(f"{group}={path.stem}: there are two, {found[path.stem]} and {path}; rename the second one")
            found[path.stem] = path
    return found


def whose(path: Path) -> str:
    """Whose a file of choices is; nothing for ours."""
    return next((source.whose for source in sources() if source.folder in path.parents), "")


def taken(arguments: Sequence[str]) -> list[str]:
    """The arguments without --config-dir and hydra.searchpath, which become a part of the variable that every part of the program reads.

    Raises LabError for a place that is no folder, or of a package that is not named.
    """
    folders, rest = [], []
    words = iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag in ("--config-dir", "-cd"):
            folders.append(value if equals else next(words, ""))
        elif flag in ("hydra.searchpath", "+hydra.searchpath"):
            folders += [_folder(entry.strip(" '\"")) for entry in value.strip("[] ").split(",") if entry.strip()]
        else:
            rest.append(word)
    if folders:
        whole = [str(Path(folder).expanduser().absolute()) for folder in folders]
        os.environ[FOLDERS] = os.pathsep.join(dict.fromkeys([*filter(None, os.environ.get(FOLDERS, "").split(os.pathsep)), *whole]))
    return rest


def _folder(entry: str) -> str:
    if entry.startswith("pkg://"):
        name, _, within = entry.removeprefix("pkg://").partition("/")
        package = name.partition(".")[0]
        if package not in packages():
            raise LabError(f"hydra.searchpath: expected a folder, or one of a package that {PACKAGES} names, got {entry!r}")
        spec = find_spec(package)
        assert spec is not None
        return str(Path((spec.submodule_search_locations or [""])[0], *name.split(".")[1:], within))
    return entry.removeprefix("file://")
