"""`python -m robustbench_lab new attack NAME`: its files in one's own package, which work at once and are meant to be changed.

Nothing here imports torch or hydra: the answer comes in a moment.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from keyword import iskeyword
from pathlib import Path
from string import Template
from typing import NamedTuple

from robustbench_lab.errors import LabError
from robustbench_lab.settings.packages import PACKAGES, packages, sources

GROUPS = ("attack", "defense", "backbone", "dataset", "table")
TEMPLATES = Path(__file__).parent / "templates"
CONF = next(conf for conf in (TEMPLATES.parents[2] / "conf", TEMPLATES.parents[1] / "conf") if conf.is_dir())
LONGEST = 40  # characters of a name, so that no line of its files is too long
VALUES = ("null", "true", "false", "nan", "inf")  # in any case, as a word such as attack=null, these are no names to Hydra
USAGE = f"python -m robustbench_lab new {'|'.join(GROUPS)} NAME [--package FOLDER]"
HELP = f"""{USAGE}

Writes the files of a new one into your own package, with a test; all work as they are, and are meant to be changed.
NAME: what it is chosen by, as in attack=NAME.
--package: the folder of the package, made if it is not there; without it, the first of {PACKAGES}."""
TRY = {
    "attack": "evaluate train=true attack={name}",
    "defense": "evaluate train=true defense={name}",
    "backbone": "evaluate train=true backbone={name}",
    "dataset": "evaluate train=true dataset={name}",
    "table": "reproduce 'tables=[{package}/{name}]'",
}


class Package(NamedTuple):
    """One's own package: the name it is imported by, and its folder, which need not be there yet."""

    name: str
    folder: Path


def main(arguments: Sequence[str]) -> None:
    """Write the files and print what to do next. Raises LabError for words that do not fit, a name that is taken, a file that is there."""
    if {"-h", "--help"} & {*arguments}:
        print(HELP)
        return
    group, name, folder = _read(arguments)
    package = package_at(Path(folder)) if folder is not None else first_package()
    files = files_of(group, name, package)
    write(files)
    print("\n".join(f"wrote {_shown(path)}" for path in files))
    print(f"\nnext, in {_shown(package.folder.parent)}:" if package.folder.parent != Path.cwd() else "\nnext:")
    test = next(path for path in files if path.name.startswith("test_"))
    for command in (
        f"export {PACKAGES}={package.name}",
        f"python -m pytest {_shown(test, package.folder.parent)}",
        f"python -m robustbench_lab {TRY[group].format(name=name, package=package.name)}",
    ):
        print(f"  {command}")


def _read(arguments: Sequence[str]) -> tuple[str, str, str | None]:
    """Group, name, and the package's folder, if it is said."""
    rest, folder = list(arguments), None
    for at, argument in enumerate(rest):
        flag, equals, value = argument.partition("=")
        if flag == "--package":
            if not equals and at + 1 == len(rest):
                raise LabError(f"--package: expected the folder of a package, got nothing; {USAGE}")
            folder = value if equals else rest[at + 1]
            del rest[at : at + (1 if equals else 2)]
            break
    if len(rest) != 2 or rest[0] not in GROUPS:
        raise LabError(f"new: expected one of {', '.join(GROUPS)} and a name, got {' '.join(rest) or 'nothing'}; {USAGE}")
    return rest[0], rest[1], folder


def first_package() -> Package:
    """The first of ROBUSTBENCH_LAB_PACKAGES, wherever it is installed."""
    names = packages()
    if not names:
        raise LabError(f"new: expected a package to write into; name one with --package mylab, or set {PACKAGES}=mylab")
    folders = _folders(names[0])
    if not folders:
        raise LabError(f"{PACKAGES}: expected a package that can be imported, got {names[0]!r}; --package {names[0]} makes it here")
    return Package(names[0], folders[0])


def package_at(folder: Path) -> Package:
    """The package in a folder, there or not. Raises LabError for a folder whose name would import something else."""
    folder = Path(os.path.abspath(folder.expanduser()))
    if not folder.name.isidentifier() or iskeyword(folder.name):
        raise LabError(f"--package: expected a folder whose name can be imported, such as mylab, got {folder.name!r}")
    if folder.exists() and not folder.is_dir():
        raise LabError(f"--package: expected a folder, but {folder} is a file")
    spec = None if folder.exists() else _spec(folder.name)
    if spec is not None:
        raise LabError(f"--package: expected a name of its own, but `import {folder.name}` already finds {spec}; choose another")
    return Package(folder.name, folder)


def files_of(group: str, name: str, package: Package) -> dict[Path, str]:
    """What is written, by path, and `__init__.py` files that are missing. Raises LabError for a name that does not fit or is taken."""
    if re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name) is None or iskeyword(name) or len(name) > LONGEST:
        raise LabError(
            f"{name}: expected a name of letters, digits and _, at most {LONGEST}, such as my_{group}, that is no word of Python's"
        )
    if name.lower() in VALUES:
        raise LabError(f"{name}: expected a name, but {group}={name} is read as a value; choose another name, such as my_{group}")
    within = Path(group, package.name) if group == "table" else Path(group)
    own = package.folder / "conf"
    for conf in (CONF, *_others(package), own):
        for path in (conf / within).glob("*.yaml"):
            if path.stem.lower() == name.lower() and (conf != own or path.stem != name):  # one file, where letters' case does not count
                raise LabError(f"{name}: {path} is {group}={path.stem} already; choose another name")
    words = {
        "name": name,
        "package": package.name,
        "Class": "".join(part[:1].upper() + part[1:] for part in name.split("_")),
    }

    def filled(kind: str) -> str:
        return Template((TEMPLATES / f"{group}{kind}.template").read_text(encoding="utf-8")).substitute(words)

    code = {}
    if group != "table":
        code = {package.folder / f"{group}s" / f"{name}.py": filled(".py")}
        taken = {alias.asname or alias.name for node in ast.parse(filled(".py")).body for alias in getattr(node, "names", [])}
        if words["Class"] in taken:
            raise LabError(f"{name}: expected a name of its own, but its class would be called {words['Class']}, as a class that it uses")
    inits = [folder / "__init__.py" for folder in (package.folder, *(path.parent for path in code))]
    return {
        **{path: "" for path in inits if not path.exists()},
        **code,
        package.folder / "conf" / within / f"{name}.yaml": filled(".yaml"),
        package.folder / "tests" / f"test_{group}_{name}.py": filled("_test.py"),
    }


def write(files: dict[Path, str]) -> None:
    """All of them or none. Raises LabError where one is there already, or may not be written."""
    for path in files:
        if path.exists():
            raise LabError(f"{path} is there already and is not overwritten; remove it, or choose another name")
    written: list[Path] = []
    try:
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                written.append(path)
                file.write(text)
    except OSError as error:
        for path in written:
            path.unlink()
        raise LabError(f"new: {error}; nothing was written") from error


def _others(package: Package) -> list[Path]:
    """Where other packages have their choices."""
    try:
        return [source.folder for source in sources() if source.folder != package.folder / "conf"]
    except LabError:  # one that is named, and not there yet, such as this one
        return []


def _folders(package: str) -> list[Path]:
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        spec = None
    return [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []


def _spec(package: str) -> str | None:
    """What an import of this name would find, if anything."""
    spec = find_spec(package)
    return None if spec is None else str(spec.origin or list(spec.submodule_search_locations or []))


def _shown(path: Path, folder: Path | None = None) -> str:
    """A path as short as it can be said from a folder, or the current one."""
    folder = Path.cwd() if folder is None else folder
    return str(path.relative_to(folder)) if path.is_relative_to(folder) and path != folder else str(path)
