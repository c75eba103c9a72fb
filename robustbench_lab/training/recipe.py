"""How to train, whatever the defense: the recipe and its learning-rate schedules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from torch.optim import Optimizer

from robustbench_lab.knobs import Count, Knobs, NotNegative, ShareBelowOne, above, at_least, below, require


@dataclass(frozen=True, kw_only=True)
class MultiStep(Knobs):
    """The learning rate times `factor` from each of the epochs `milestones` on."""

    milestones: Sequence[float]
    factor: NotNegative

    def __call__(self, epoch: float, epochs: int) -> float:
        return self.factor ** sum(epoch >= milestone for milestone in self.milestones)


@dataclass(frozen=True, kw_only=True)
class OneCycle(Knobs):
    """Linear warm-up from `start` to 1 over the first `warmup` share of training, then linear decay to `end`.

    Source: Smith and Topin 2019, arXiv:1708.07120, in the piecewise linear form of Wong et al. 2020 (Fast AT), arXiv:2001.03994.
    """

    warmup: Annotated[float, above(0), below(1)]
    start: NotNegative
    end: NotNegative

    def __call__(self, epoch: float, epochs: int) -> float:
        done = epoch / epochs
        if done < self.warmup:
            return self.start + (1 - self.start) * done / self.warmup
        return 1 + (self.end - 1) * (done - self.warmup) / (1 - self.warmup)


@dataclass(frozen=True, kw_only=True)
class Recipe(Knobs):
    """How to train, whatever the defense.

    optimizer: takes parameters, returns a torch optimiser. schedule: (epoch, fractional; epochs) -> factor on its learning rate.
    crop_padding, flip: augmentation, drawn anew each epoch. weight_decay belongs to the optimiser.
    precision: fp32 or bf16 (autocast) of the training passes; attack_precision: of the searches within training.
    channels_last, compile: memory layout and torch.compile, for speed.
    validation: share of the training images, the last ones, that are held out. patience: epochs without a better validation accuracy
    after which training stops (null: never). keep: the last weights, or those of best validation accuracy.
    """

    epochs: Count
    batch_size: Count
    optimizer: Callable[..., Optimizer]
    schedule: Callable[[float, int], float]
    crop_padding: Annotated[int, at_least(0)]
    flip: bool
    precision: Literal["fp32", "bf16"]
    attack_precision: Literal["fp32", "bf16"]
    channels_last: bool
    compile: bool
    validation: ShareBelowOne
    patience: Count | None
    keep: Literal["last", "best"]

    def __post_init__(self) -> None:
        super().__post_init__()
        selects = self.keep == "best" or self.patience is not None
        require(not selects or self.validation > 0, "validation", "a share > 0, because keep=best and patience need one", self.validation)
