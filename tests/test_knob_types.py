"""What a knob may be: each type with right and wrong values, and the message; every class that a config names is checked so."""

import importlib
import inspect
import math
import pkgutil
import re
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Annotated, Any, Literal, get_type_hints

import pytest
from hydra.utils import get_object

import robustbench_lab
from robustbench_lab.defenses.base import Defense
from robustbench_lab.errors import LabError
from robustbench_lab.knobs import (
    NOT_EMPTY,
    Check,
    Count,
    Epoch,
    Knobs,
    NotNegative,
    Positive,
    PositiveShare,
    Seed,
    Share,
    ShareBelowOne,
    above,
    at_least,
    at_most,
    below,
    check,
    check_of,
    is_number,
    one_of,
)
from robustbench_lab.settings.build import build
from robustbench_lab.settings.conf import CONF, compose, plain
from robustbench_lab.threats import Budget

NO_NUMBERS = (True, False, math.inf, -math.inf, math.nan, "1", None, [1], Budget("linf", 0.1))
NO_WHOLE = (*NO_NUMBERS, 1.0, 1.5)
BALL = Budget("linf", 0.1)
TYPES: list[tuple[Any, str, Sequence[object], Sequence[object]]] = [
    (bool, "true or false", (True, False), (0, 1, "true", None)),
    (bool | None, "true or false, or null", (True, False, None), (0, 1, "null")),
    (int, "a whole number", (-1, 0, 7), NO_WHOLE),
    (float, "a finite number", (-1.5, 0, 7), NO_NUMBERS),
    (str, "a text", ("", "a"), (1, None, ["a"])),
    (Any, "anything", (1, None, math.nan), ()),
    (Budget, "a Budget", (BALL,), (1e9, "linf", None, {"norm": "linf", "eps": 0.1})),
    (Count, "a whole number >= 1", (1, 20), (*NO_WHOLE, 0, -1)),
    (Epoch, "a whole number >= 0", (0, 20), (*NO_WHOLE, -1)),
    (Seed, "a whole number >= 0 and < 4294967296", (0, 2**32 - 1), (*NO_WHOLE, -1, 2**32)),
    (Annotated[int, at_least(1), at_most(8)], "a whole number >= 1 and <= 8", (1, 8), (*NO_WHOLE, 0, 9)),
    (Positive, "a finite number > 0", (1, 1e-9, 1e300), (*NO_NUMBERS, 0, -0.1)),
    (NotNegative, "a finite number >= 0", (0, 0.0, 3), (*NO_NUMBERS, -1e-9)),
    (Share, "a finite number >= 0 and <= 1", (0, 0.5, 1), (*NO_NUMBERS, -0.1, 1.1)),
    (PositiveShare, "a finite number > 0 and <= 1", (1e-9, 1), (*NO_NUMBERS, 0, 1.1)),
    (ShareBelowOne, "a finite number >= 0 and < 1", (0, 0.9), (*NO_NUMBERS, 1, -0.1)),
    (Annotated[float, above(0), below(1)], "a finite number > 0 and < 1", (0.5,), (*NO_NUMBERS, 0, 1)),
    (Positive | None, "a finite number > 0, or null", (1, None), (0, True, math.inf, "null")),
    (Annotated[Positive | None, "such as 2/255"], "a finite number > 0, or null, such as 2/255", (1, None), (0, math.nan)),
    (Annotated[float, Check("a number", is_number), at_least(0)], "a number >= 0", (1, math.inf), (math.nan, True, "1", -1)),
    (Literal["last"], "last", ("last",), ("first", 1)),
    (Literal["last", "best"], "last or best", ("last", "best"), ("first", None, ["last"], {})),
    (Literal["last", "best"] | None, "last or best, or null", ("last", None), ("null",)),
    (Annotated[str, one_of({"ce": 1, "dlr": 2, "own": 3})], "one of ce, dlr, own", ("ce", "own"), ("mse", 1, ["ce"])),
    (Annotated[int, one_of((1, 3))], "1 or 3", (1, 3), (True, 1.0, 2, "1")),
    (Sequence[int], "a list (each a whole number)", ([], [1, 2], (3,)), ([1, True], [1.5], "12", 1, None)),
    (list[int], "a list (each a whole number)", ([1],), ((1,), [True])),
    (tuple[str, ...], "a list (each a text)", ((), ("a", "b")), (["a"], (1,))),
    (Annotated[Sequence[Count], NOT_EMPTY], "a list (each a whole number >= 1) of one or more", ([1],), ([], [0], "1")),
    (dict[str, bool], "a mapping from names (each true or false)", ({"a": True},), ({"a": 1},)),
    (Mapping[str, Budget], "a mapping from names (each a Budget)", ({}, {"a": BALL}), ({"a": 1}, [BALL], BALL)),
    (Callable[[float], float], "a function", (math.sqrt, Budget), (1, "sqrt")),
    (Positive | Sequence[float], "a finite number > 0, or a list (each a finite number)", (1, [1, 2]), (0, [math.inf], "1")),
]


@pytest.mark.parametrize(("kind", "words", "right", "wrong"), TYPES, ids=[words for _, words, *_ in TYPES])
def test_each_type(kind: Any, words: str, right: Sequence[object], wrong: Sequence[object]) -> None:
    for value in right:
        check("knob", value, kind)
    for value in wrong:
        with pytest.raises(LabError, match=f"^knob: expected {re.escape(words)}, got {re.escape(repr(value))}$"):
            check("knob", value, kind)


@pytest.mark.parametrize("kind", [None, set[int], tuple[int, int], Literal, "Count", complex | set[int]])
def test_a_type_that_says_nothing_is_an_error_of_the_class(kind: Any) -> None:
    with pytest.raises(TypeError, match="says nothing that could be checked"):
        check_of(kind)


@dataclass(frozen=True, kw_only=True)
class Base(Knobs, ABC):
    steps: Count
    start: float | None


@dataclass(frozen=True, kw_only=True)
class Other(Knobs):
    flip: bool


@dataclass(frozen=True, kw_only=True)
class Both(Base, Other):
    start: PositiveShare  # type: ignore[assignment]
    made: list[int] = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "made", [self.steps])


def test_a_class_checks_the_knobs_of_all_its_bases_each_by_its_last_type() -> None:
    right = {"steps": 2, "start": 1, "flip": False}
    assert Both(**right).made == [2]
    assert Base(steps=1, start=None).start is None
    for key, value in {"steps": 0, "start": None, "flip": 0}.items():
        with pytest.raises(LabError, match=rf"^{key}: expected .*, got {value}$"):
            Both(**{**right, key: value})


def classes() -> list[type[Any]]:
    """Every class of the package that checks its knobs."""
    for entry in pkgutil.walk_packages(robustbench_lab.__path__, "robustbench_lab."):
        importlib.import_module(entry.name)
    found: list[type[Any]] = [Knobs]
    for cls in found:
        found += [one for one in cls.__subclasses__() if one.__module__.startswith("robustbench_lab.") and one not in found]
    return found[1:]


def kinds(cls: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {knob.name: hints[knob.name] for knob in fields(cls) if knob.init}


@pytest.mark.parametrize("cls", classes(), ids=lambda cls: cls.__name__)
def test_every_knob_of_every_class_refuses_what_it_is_not(cls: type[Any]) -> None:
    for key, kind in kinds(cls).items():
        holds = check_of(kind).holds
        flag = kind in (bool, bool | None)
        wrong = [object(), math.nan, *([0, 1, "true"] if flag else [True])]
        assert [value for value in wrong if holds(value)] == [], key


@pytest.mark.parametrize("cls", [cls for cls in classes() if "__post_init__" in vars(cls)], ids=lambda cls: cls.__name__)
def test_checks_of_several_knobs_come_after_those_of_each(cls: type[Any]) -> None:
    assert "super().__post_init__()" in inspect.getsource(cls.__post_init__).splitlines()[1]


def test_every_dataclass_that_a_config_names_checks_its_knobs() -> None:
    targets = {
        found for path in CONF.rglob("*.yaml") for found in re.findall(r"^\s*_target_: (robustbench_lab\.\S+)$", path.read_text(), re.M)
    }
    named = {cls for target in targets if isinstance(cls := get_object(target), type) and is_dataclass(cls)}
    assert len(named) > 50
    assert named <= set(classes())


@pytest.mark.parametrize("wrong", [1e9, True, "pgd", None, [], {"steps": 1}])
def test_a_plain_value_where_an_object_is_wanted_is_named_with_its_whole_key(wrong: object) -> None:
    right = plain(compose("train", ["defense=adversarial_training", "dataset=cifar10"])[0], "defense")["defense"]
    build(right, "defense", Defense)
    told = r"defense.attack._target_: expected the class of an Attack, got none"
    if not isinstance(wrong, dict):
        told = f"defense.attack: expected an Attack, got {re.escape(repr(wrong))}"
    with pytest.raises(LabError, match=f"^{told}$"):
        build({**right, "attack": wrong}, "defense", Defense)
    for key in ("clean_weight", "start_epoch"):
        with pytest.raises(LabError, match=rf"^defense\.{key}: expected a (finite|whole) number >= 0, got an object \(.*Budget\)$"):
            build({**right, key: right["budget"]}, "defense", Defense)
