"""What every attack, defense, backbone, dataset and table keeps, as checks that any package's tests can call.

    from robustbench_lab.contract import check_attack, clauses

    def test_my_attack():
        check_attack("my_attack")                       # raises at the first clause that does not hold

    @pytest.mark.parametrize("clause", clauses("attack", "my_attack"), ids=str)
    def test_my_attack(clause):                         # one line a clause
        clause()

The choices of a whole package are enrolled by `python -m pytest --robustbench-lab mylab` (contract/pytest_plugin.py). Nothing here imports
torch before a clause is made, so that pytest may load the plugin in any run.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from robustbench_lab.contract.clause import Clause

GROUPS = ("attack", "defense", "backbone", "dataset", "table")


def clauses(group: str, choice: str, words: Sequence[str] = ()) -> list[Clause]:
    """Every clause for one choice of `attack`, `defense`, `backbone` or `dataset`, or for one `table`, <paper>/<table>.

    words: further words for what the choice says only with them, such as `backbone.call=torchvision.models.resnet18`.
    Raises LabError for a choice that is not there or cannot be built.
    """
    if group not in GROUPS:
        raise ValueError(f"a contract is one of {', '.join(GROUPS)}, not {group!r}")
    return list(import_module(f"{__name__}.{group}s").clauses(choice, tuple(words)))


def check_attack(choice: str, words: Sequence[str] = ()) -> None:
    """Stop at the first clause of attacks.base.Attack that conf/attack/<choice>.yaml does not keep; seconds to a minute."""
    _check("attack", choice, words)


def check_defense(choice: str, words: Sequence[str] = ()) -> None:
    """Stop at the first clause of defenses.base.Defense that conf/defense/<choice>.yaml does not keep, on the embedded digits."""
    _check("defense", choice, words)


def check_backbone(choice: str, words: Sequence[str] = ()) -> None:
    """Stop at the first clause of backbones.base.Backbone that conf/backbone/<choice>.yaml does not keep."""
    _check("backbone", choice, words)


def check_dataset(choice: str, words: Sequence[str] = ()) -> None:
    """Stop at the first clause of datasets.base.Dataset that conf/dataset/<choice>.yaml does not keep; nothing is downloaded.

    Raises errors.MissingFiles where its files are not under ROBUSTBENCH_LAB_DATA: then most of the contract has not been tried.
    """
    _check("dataset", choice, words)


def check_table(name: str) -> None:
    """Stop where conf/table/<paper>/<table>.yaml cannot be read, or its cells do not compose; nothing is trained."""
    _check("table", name, ())


def _check(group: str, choice: str, words: Sequence[str]) -> None:
    for clause in clauses(group, choice, words):
        clause()
