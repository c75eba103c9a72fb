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

import yaml

from robustbench_lab.errors import LabError, said

OURS = "robustbench_lab"  # and the group of entry points by which installed packages are found
SEARCHPATH = "hydra.searchpath"
PACKAGES, FOLDERS = "ROBUSTBENCH_LAB_PACKAGES", "ROBUSTBENCH_LAB_CONFIG_DIRS"  # variables: commands that this one starts read them too
NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


class Source(NamedTuple):
    """A folder of choices, and whose it is: a package's name, or the folder's own."""

    folder: Path
    whose: str

    @property
    def whole(self) -> Path:
        """What its choices may depend on: of a package, its code too."""
        return self.folder if self.whose == str(self.folder) else self.folder.parent


def packages() -> tuple[str, ...]:
    """The names of other packages, as they were given; then those that are installed with an entry point. Raises LabError for what is no
    package's name."""
    named = _named()
    for name in named:
        if not NAME.fullmatch(name):
            raise LabError(f"{PACKAGES}: expected names of packages with commas between them, such as mylab,timm, got {name!r}")
        if name.partition(".")[0] == OURS:
            raise LabError(f"{PACKAGES}: expected packages of others, got {name!r}, whose choices are there without it; leave it out")
    return tuple(dict.fromkeys([*named, *_installed()]))


def _named() -> list[str]:
    return [name.strip() for name in os.environ.get(PACKAGES, "").split(",") if name.strip()]


@functools.cache
def _installed() -> tuple[str, ...]:
    return tuple(entry.value.partition(":")[0] for entry in entry_points(group=OURS))


def sources() -> tuple[Source, ...]:
    """Folders of choices besides ours, in the order in which they were named: each package's conf/, where it has one, and others."""
    return _sources(packages(), _folders(), tuple(sys.path))


def _folders() -> tuple[str, ...]:
    return tuple(filter(None, os.environ.get(FOLDERS, "").split(os.pathsep)))


@functools.cache
def _sources(names: tuple[str, ...], folders: tuple[str, ...], path: tuple[str, ...]) -> tuple[Source, ...]:
    found = [Source(place, name) for name in names for place in _conf_of(name)]
    found += [Source(place, str(place)) for place in (_folder(folder, FOLDERS) for folder in folders)]
    return tuple({source.folder.resolve(): source for source in reversed(found)}.values())[::-1]  # one that is named twice is one


def _conf_of(name: str) -> list[Path]:
    """Where a package has its choices; it is found without being imported."""
    key = PACKAGES if name in _named() else f"the installed entry point {OURS} = {name}"
    try:
        spec = find_spec(name)
    except Exception as error:  # of a package around it, which is imported
        raise LabError(f"{key}: {name} cannot be imported: {said(error)}") from error
    if spec is None:
        remedy = "is its folder in PYTHONPATH?" if key == PACKAGES else "install it again, or uninstall what names it"
        raise LabError(f"{key}: expected a package that Python can import, but there is no {name}; {remedy}")
    places = [Path(place).absolute() / "conf" for place in spec.submodule_search_locations or ()]
    return [place for place in places if place.is_dir()]


def check_sources(groups: Sequence[str]) -> None:
    """Stop at a folder that is no group, which nobody would read, and at a folder of choices without any. Raises LabError."""
    for folder, whose in sources():
        inside = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith((".", "__"))]
        for path in inside:
            if path.name not in groups:
                near = get_close_matches(path.name, groups, 1)
                remedy = f"; did you mean {near[0]}?" if near else ""
                raise LabError(f"{path}: expected a group of choices, one of {', '.join(groups)}, got {path.name!r}{remedy}")
        if not inside and whose == str(folder):
            raise LabError(f"{folder}: expected groups of choices in it, such as attack/mine.yaml, one of {', '.join(groups)}, got none")


def files_in(ours: Path, group: str) -> dict[str, Path]:
    """The choices of a group by name: ours, then others'. Raises LabError where two have one name."""
    return dict(_files_in(ours, group, sources()))


def files_of(conf: Path, group: str) -> list[Path]:
    """The files of a group's choices in one folder of choices; tables lie in folders of their own there."""
    return sorted((conf / group).glob("*/*.yaml" if group == "table" else "*.yaml"))


@functools.cache
def _files_in(ours: Path, group: str, others: tuple[Source, ...]) -> dict[str, Path]:
    if group == "table":  # whose names are those of their folders too: tables.reading finds them
        return {}
    found = {path.stem: path for path in files_of(ours, group)}
    for folder, _ in others:
        for path in files_of(folder, group):
            if path.stem in found:
                raise LabError(f"{group}={path.stem}: there are two, {found[path.stem]} and {path}; rename the second one")
            found[path.stem] = path
    return found


def whose(path: Path) -> str:
    """Whose a file of choices is; nothing for ours."""
    return next((source.whose for source in sources() if source.folder in path.parents), "")


def taken(arguments: Sequence[str]) -> list[str]:
    """The arguments without --config-dir and hydra.searchpath, which become a part of the variable that every part of the program reads,
    workers too.

    Raises LabError for a place that is no folder, or of a package that is not named.
    """
    folders, rest = [], []
    words = iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag == "-cd" or (flag.startswith("--config-d") and "--config-dir".startswith(flag)):
            folders.append(_folder(value if equals else next(words, ""), "--config-dir"))
        elif flag.lstrip("+") == SEARCHPATH:
            folders += [_folder(_place(entry), SEARCHPATH) for entry in _listed(value)]
        else:
            rest.append(word)
    if folders or _folders():
        whole = [_folder(folder, FOLDERS) for folder in _folders()] + folders  # a worker may have another current folder
        os.environ[FOLDERS] = os.pathsep.join(dict.fromkeys(map(str, whole)))
    return rest


def _listed(value: str) -> list[str]:
    try:
        entries = yaml.safe_load(value)
    except yaml.YAMLError:
        entries = None
    entries = [entries] if isinstance(entries, str) else entries
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise LabError(f"{SEARCHPATH}: expected a list of folders, such as [/home/me/choices], got {value!r}")
    return entries


def _place(entry: str) -> str:
    """The folder that an entry of Hydra's search path names."""
    kind, colon, rest = entry.partition("://")
    if not colon or kind == "file":
        return rest if colon else entry
    name, _, within = rest.partition("/")
    package = next((package for package in packages() if name == package or name.startswith(f"{package}.")), None)
    if kind != "pkg" or package is None:
        raise LabError(f"{SEARCHPATH}: expected a folder, file://folder, or pkg://name of a package in {PACKAGES}, got {entry!r}")
    spec = find_spec(package)
    inside = Path(*name.removeprefix(package).split("."), within)
    places = [Path(place) / inside for place in (spec and spec.submodule_search_locations) or ()]
    return str(next((place for place in places if place.is_dir()), places[0] if places else inside))


def _folder(folder: str, key: str) -> Path:
    """A folder that a user named, whole. Raises LabError for one that is not there."""
    try:
        place = Path(folder).expanduser().absolute()
        found = folder != "" and place.is_dir()
    except (RuntimeError, ValueError, OSError):  # ~ of nobody, or no name that a folder could have
        found = False
    if not found:
        raise LabError(f"{key}: expected a folder of choices, <group>/<choice>.yaml, but there is no folder {folder!r}")
    if os.pathsep in str(place):
        raise LabError(f"{key}: expected a folder without {os.pathsep!r} in its path, got {str(place)!r}; rename it")
    return place
