"""What the tests share: objects built from their YAML files, a tiny network with BatchNorm, images at the box's edge, trained digits."""

import copy
import functools
import gc
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import other_package as package_of_others
import pytest
import torch
import yaml
from built_kinds import KINDS
from torch import Tensor, nn

from robustbench_lab.contract import trying
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.models.defended import Defended
from robustbench_lab.settings.build import build
from robustbench_lab.settings.conf import compose, plain
from robustbench_lab.settings.identity import run_at_words
from robustbench_lab.settings.overrides import RUN_GROUPS
from robustbench_lab.tables import expansion
from robustbench_lab.training.loop import fit
from robustbench_lab.training.runs import objects


def pytest_collection_finish() -> None:
    """What is imported and collected by now stays: the garbage collector need not look through it again and again."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """The networks here are too small to share between threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _own_random_state() -> Iterator[None]:
    """Each test starts from the same global random state, and leaves it as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session", autouse=True)
def _composed_once() -> Iterator[None]:
    """Tables are put together from the same few configs in hundreds of tests, and what Hydra composed is only read."""
    with pytest.MonkeyPatch.context() as patch:
        composed = functools.cache(compose)
        patch.setattr(expansion, "compose", lambda verb, words=(): composed(verb, tuple(words)))
        yield


@functools.cache
def _config(group: str, name: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    verb = "train" if group in RUN_GROUPS else "evaluate"
    return plain(compose(verb, [f"{group}={name}", *overrides])[0], group)[group]


@pytest.fixture(scope="session")
def built() -> Callable[..., Any]:
    """`built("attack", "pgd", "attack.steps=3")`: the object that conf/attack/pgd.yaml and these overrides describe."""
    return lambda group, name, *overrides: build(_config(group, name, overrides), group, KINDS[group])


@pytest.fixture(scope="session")
def run_objects() -> Callable[..., Any]:
    """`run_objects("defense=fm")`: the dataset, model, defense and recipe of a training run."""

    run = functools.cache(lambda *overrides: run_at_words(overrides))
    return lambda *overrides: objects(run(*overrides))


@pytest.fixture(scope="session")
def tiny_net() -> Callable[..., Defended]:
    return trying.tiny_net


@pytest.fixture(scope="session")
def edge_images() -> Callable[..., Tensor]:
    return trying.edge_images


@pytest.fixture(scope="session")
def digits(run_objects: Callable[..., Any]) -> tuple[ImageSet, ImageSet]:
    """The embedded digits: training and test images."""
    dataset = run_objects()[0]
    train, test = (dataset.load(split, root=Path(), download=False, workers=0) for split in ("train", "test"))
    return train, test


@pytest.fixture(scope="session")
def digits_model(run_objects: Callable[..., Any], digits: tuple[ImageSet, ImageSet]) -> Defended:
    """A small ResNet that has seen the digits four times: well above 90 % right, and easily fooled.

    Its weights are the same on every machine: trained in double precision, where the last bits of a kernel have not grown to the last
    bit of single precision yet, and from weights that are drawn here, because the last bits of torch's own depend on the instruction set.
    """
    with torch.random.fork_rng(devices=[]):
        _, model, defense, recipe = run_objects()
        model.double()
        torch.manual_seed(0)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data = (2 * torch.rand_like(parameter) - 1) * math.sqrt(6 / parameter[0].numel())
        nn.init.zeros_(model.network.backbone.head.bias)  # type: ignore[union-attr, arg-type]
        doubled = model.register_forward_pre_hook(lambda module, images: images[0].double())
        fit(defense, model, digits[0], replace(recipe, epochs=4), seed=0)
        doubled.remove()
    model._fast.clear()
    return model.float().eval().requires_grad_(False)


@pytest.fixture(scope="session")
def exact_digits_model(digits_model: Defended) -> Defended:
    """The same in double precision: where a search compares with itself, rounding in other batches decides nothing."""
    return copy.deepcopy(digits_model).double()


A_TABLE: dict[str, Any] = {
    "title": "A table of 2 x 2 & more",
    "source": "a paper, Table 9",
    "profile": "paper",
    "corner": "defense",
    "metric": "robust_accuracy",
    "overrides": ["backbone=small_cnn", "attack=fgsm"],
    "rows": [{"label": "plain", "overrides": ["defense=standard"]}, {"label": "LS_0.9", "overrides": ["defense=label_smoothing"]}],
    "columns": [{"label": "clean", "metric": "clean_accuracy"}, {"label": "FGSM"}],
    "published": {"kind": "exact", "source": "Table 9", "band": 10, "values": [[95.5, 30], [None, 41.25]]},
}


@pytest.fixture
def written(tmp_path, monkeypatch) -> Callable[..., str]:
    """`written(metric="...")`: a table's name, after writing A_TABLE with these keys changed (None: left out) as its YAML."""
    monkeypatch.setenv("ROBUSTBENCH_LAB_TABLES", str(tmp_path / "table"))

    def write_yaml(**changed: Any) -> str:
        path = tmp_path / "table" / "paper" / "grid.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump({key: value for key, value in (A_TABLE | changed).items() if value is not None}))
        return "paper/grid"

    return write_yaml


@pytest.fixture
def other_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package `theirlab` of other_package.py, which is named and can be imported, here and by other processes; its folder."""
    folder = package_of_others.write(tmp_path / "lib")
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder.parent), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setenv("ROBUSTBENCH_LAB_PACKAGES", folder.name)
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == folder.name]:
        del sys.modules[name]
