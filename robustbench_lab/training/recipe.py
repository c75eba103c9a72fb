"""How to train, whatever the defense: the recipe and its learning-rate schedules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch.optim import Optimizer

from robustbench_lab.knobs import is_number, require, require_flag, require_not_negative


@dataclass(frozen=True, kw_only=True)
class MultiStep:
    """The learning rate times `factor` from each of the epochs `milestones` on."""

    milestones: Sequence[float]
    factor: float

    def __post_init__(self) -> None:
        listed = isinstance(self.milestones, list | tuple) and all(map(is_number, self.milestones))
        require(listed, "milestones", "a list of epochs", self.milestones)
        require_not_negative(self.factor, "factor")

    def __call__(self, epoch: float, epochs: int) -> float:
        return self.factor ** sum(epoch >= milestone for milestone in self.milestones)


@dataclass(frozen=True, kw_only=True)
class OneCycle:
    """Linear warm-up from `start` to 1 over the first `warmup` share of training, then linear decay to `end`.

    Source: Smith and Topin 2019, arXiv:1708.07120, in the piecewise linear form of Wong et al. 2020 (Fast AT), arXiv:2001.03994.
    """

    warmup: float
    start: float
    end: float

    def __post_init__(self) -> None:
        require(is_number(self.warmup) and 0 < self.warmup < 1, "warmup", "a share of training in (0, 1)", self.warmup)
        require_not_negative(self.start, "start")
        require_not_negative(self.end, "end")

    def __call__(self, epoch: float, epochs: int) -> float:
        done = epoch / epochs
        if done < self.warmup:
            return self.start + (1 - self.start) * done / self.warmup
        return 1 + (self.end - 1) * (done - self.warmup) / (1 - self.warmup)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train, whatever the defense.

    optimizer: takes parameters, returns a torch optimiser. schedule: (epoch, fractional; epochs) -> factor on its learning rate.
    crop_padding, flip: augmentation, drawn anew each epoch. weight_decay belongs to the optimiser.
    precision: fp32 or bf16 (autocast) of the training passes; attack_precision: of the searches within training.
    channels_last, compile: memory layout and torch.compile, for speed.
    validation: share of the training images, the last ones, that are held out. patience: epochs without a better validation accuracy
    after which training stops (null: never). keep: the last weights, or those of best validation accuracy.
    """

    epochs: int
    batch_size: int
    optimizer: Callable[..., Optimizer]
    schedule: Callable[[float, int], float]
    crop_padding: int
    flip: bool
    precision: str
    attack_precision: str
    channels_last: bool
    compile: bool
    validation: float
    patience: int | None
    keep: str

    def __post_init__(self) -> None:
        for key in ("epochs", "batch_size"):
            value = getattr(self, key)
            require(isinstance(value, int) and value >= 1, key, "a whole number >= 1", value)
        require(isinstance(self.crop_padding, int) and self.crop_padding >= 0, "crop_padding", "a whole number >= 0", self.crop_padding)
        for key in ("precision", "attack_precision"):
            require(getattr(self, key) in ("fp32", "bf16"), key, "fp32 or bf16", getattr(self, key))
        for key in ("flip", "channels_last", "compile"):
            require_flag(getattr(self, key), key)
        require(is_number(self.validation) and 0 <= self.validation < 1, "validation", "a share in [0, 1)", self.validation)
        require(
            self.patience is None or (isinstance(self.patience, int) and self.patience >= 1),
            "patience",
            "a whole number >= 1, or null",
            self.patience,
        )
        require(self.keep in ("last", "best"), "keep", "last or best", self.keep)
        selects = self.keep == "best" or self.patience is not None
        require(not selects or self.validation > 0, "validation", "a share > 0, because keep=best and patience need one", self.validation)
