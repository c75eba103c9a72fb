"""A plugin of pytest that enrols a package's choices: each clause of each is a test.

`python -m pytest --robustbench-lab mylab`, or once and for all in one's pyproject.toml:

    [tool.pytest.ini_options]
    robustbench_lab_packages = ["mylab"]
    robustbench_lab_words = ["backbone=my_callable backbone.call=mylab.nets.net"]   # of choices that say something only with them

Tests are called `robustbench_lab::attack::my_attack[breaks_images[linf]]`: `-k my_attack` and `--deselect` choose among them, and a dataset
whose files are not there is skipped with the reason. A run that asks for no package is not changed, and torch is not imported for it.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from robustbench_lab.contract import GROUPS, clauses
from robustbench_lab.contract.clause import Clause
from robustbench_lab.errors import LabError, MissingFiles
from robustbench_lab.settings.packages import PACKAGES, files_of


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("robustbench_lab", "contracts of attacks, defenses, backbones, datasets and tables (robustbench_lab)")
    group.addoption("--robustbench-lab", action="append", default=[], metavar="PACKAGE", help="enrol the choices of a package")
    parser.addini("robustbench_lab_packages", "packages whose choices are enrolled", type="args", default=[])
    parser.addini(
        "robustbench_lab_words", "a line for each choice that needs words: group=choice key=value ...", type="linelist", default=[]
    )


def pytest_configure(config: pytest.Config) -> None:
    """The packages that are asked for are known to everything that runs, as if they had been exported."""
    asked = packages_of(config)
    if not asked:
        return
    for package in asked:
        folder = folder_of(package)
        if folder is None:
            remedy = "run `python -m pytest` in the folder that holds it, or name that folder as pytest's `pythonpath`"
            raise pytest.UsageError(f"--robustbench-lab {package}: expected a package that can be imported; {remedy}")
        if not any(files_of(folder / "conf", group) for group in GROUPS):
            expected = f"expected a choice in {folder / 'conf'}, such as {GROUPS[0]}/mine.yaml, of {', '.join(GROUPS)}"
            raise pytest.UsageError(f"--robustbench-lab {package}: {expected}, got none")
    before = os.environ.get(PACKAGES)
    known = [name.strip() for name in (before or "").split(",") if name.strip()]
    os.environ[PACKAGES] = ",".join(dict.fromkeys([*known, *asked]))

    def restore() -> None:
        os.environ.pop(PACKAGES) if before is None else os.environ.update({PACKAGES: before})

    config.add_cleanup(restore)


def packages_of(config: pytest.Config) -> list[str]:
    return list(dict.fromkeys([*config.getoption("--robustbench-lab"), *config.getini("robustbench_lab_packages")]))


def folder_of(package: str) -> Path | None:
    """Where a package is, which is not imported for that."""
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        return None
    return Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else None


@pytest.hookimpl(tryfirst=True)  # before what chooses among all tests, by -k and others
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    for package in packages_of(config):
        items.extend(session.genitems(Package.from_parent(session, name=package, nodeid="robustbench_lab", path=folder_of(package))))


class Package(pytest.Collector):
    """The choices of a package, as its conf/<group>/ has them."""

    def collect(self) -> Iterator[Choice]:
        words = dict(_words_of(line) for line in self.config.getini("robustbench_lab_words"))
        for group in GROUPS:
            for path in files_of(self.path / "conf", group):
                choice = path.relative_to(self.path / "conf" / group).with_suffix("").as_posix()
                given = words.get((group, choice), [])
                nodeid = f"robustbench_lab::{group}::{choice}"
                yield Choice.from_parent(self, name=choice, nodeid=nodeid, path=path, group=group, words=given)


def _words_of(line: str) -> tuple[tuple[str, str], list[str]]:
    choice, *words = shlex.split(line)
    group, _, name = choice.partition("=")
    return (group, name), words


class Choice(pytest.Collector):
    """One choice, whose tests are its clauses; of one that cannot be built, that it cannot."""

    def __init__(self, *, group: str, words: list[str], **node: Any) -> None:
        super().__init__(**node)
        self.group = group
        self.words = words

    def collect(self) -> Iterable[Kept]:
        try:
            found = clauses(self.group, self.name, self.words)
        except LabError as error:
            found = [Clause("can_be_built", str(error), f"{self.group}={self.name}", _raising(error))]
        return [
            Kept.from_parent(self, name=clause.name, nodeid=f"{self.nodeid}[{clause}]", path=self.path, clause=clause) for clause in found
        ]


def _raising(error: LabError) -> Any:
    def holds() -> None:
        raise error

    return holds


class Kept(pytest.Item):
    """That a choice keeps a clause."""

    def __init__(self, *, clause: Clause, **node: Any) -> None:
        super().__init__(**node)
        self.clause = clause

    def runtest(self) -> None:
        try:
            self.clause()
        except MissingFiles as error:
            pytest.skip(str(error))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """What a clause says, without the way to it; of an error within somebody's code, where it was raised."""
        if excinfo.errisinstance((AssertionError, LabError)):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.path, None, f"{self.clause.of}: {self.clause}"
