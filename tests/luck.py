"""Other seeds and another rounding, to find tests whose outcome hangs on either.

`python -m pytest -p tests.luck --other-seed=1 tests/attacks`: every seed that a test or the package sets is another one.
`python -m pytest -p tests.luck --other-rounding=1 tests/attacks`: layers' outputs and gradients are off in their last bits, in other
ways for each batch size, as they are between kernels. A test of a generator's very numbers fails under other seeds, by right.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_lab import randomness

RAND = torch.rand  # as it is before tests replace it
LAST_BITS = 4  # how many units in the last place a perturbed output is off, at most


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--other-seed", type=int, default=0, help="added to every seed")
    parser.addoption("--other-rounding", type=int, default=0, help="which last bits layers' outputs have; 0: the kernels' own")


def pytest_configure(config: pytest.Config) -> None:
    if shift := config.getoption("--other-seed"):
        _other_seeds(shift)
    if which := config.getoption("--other-rounding"):
        for name in ("linear", "conv2d"):
            setattr(F, name, _rounded_otherwise(getattr(F, name), which))


def _other_seeds(shift: int) -> None:
    seed, hashed = torch.manual_seed, randomness.stable_hash

    class Shifted(torch.Generator):
        def manual_seed(self, seed: int) -> torch.Generator:
            return super().manual_seed(seed + shift)

    torch.manual_seed = lambda number: seed(number + shift)
    torch.Generator = Shifted  # type: ignore[misc]
    randomness.stable_hash = lambda *tags: hashed(*tags, shift)


def _rounded_otherwise(layer: Callable[..., Tensor], which: int) -> Callable[..., Tensor]:
    draw = torch.Generator()

    def call(*args: Any, **kwargs: Any) -> Tensor:
        y = layer(*args, **kwargs)
        draw.manual_seed(hash((which, *y.shape)))
        off = RAND(y.shape, generator=draw, dtype=torch.float64) * 2 - 1
        return y * (1 + LAST_BITS * torch.finfo(y.dtype).eps * off).to(y)

    return call
