"""How to train, whatever the defense: the recipe and its learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch.optim import Optimizer

from robustbench_lab.knobs import is_number, require, require_flag, require_not_negative, require_positive


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
class Piecewise:
    """The learning rate times the factor of the piece that an epoch lies in: `pieces` are [epochs, factor], one after the other; the last
    lasts to the end."""

    pieces: Sequence[Sequence[float]]

    def __post_init__(self) -> None:
        listed = isinstance(self.pieces, list | tuple) and len(self.pieces) > 0
        listed = listed and all(isinstance(piece, list | tuple) and len(piece) == 2 and all(map(is_number, piece)) for piece in self.pieces)
        require(listed, "pieces", "a list of [epochs, factor]", self.pieces)
        for epochs, factor in self.pieces:
            require_positive(epochs, "pieces")
            require_not_negative(factor, "pieces")

    def __call__(self, epoch: float, epochs: int) -> float:
        for length, factor in self.pieces:
            if epoch < length:
                return factor
            epoch -= length
        return self.pieces[-1][1]


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

    optimizer: takes parameters, returns a torch optimiser. schedule: (epoch, fractional; epochs) -> factor on its learning rate; or a list
    of such, whose factors are multiplied.
    crop_padding, flip: augmentation, drawn anew each epoch. weight_decay belongs to the optimiser.
    precision: fp32 or bf16 (autocast) of the training passes; attack_precision: of the searches within training.
    channels_last, compile: memory layout and torch.compile, for speed.
    validation: share of the training images, the last ones, that are held out. patience: epochs without a better validation accuracy
    after which training stops (null: never). keep: the last weights, or those of best validation accuracy.

    What only some recipes say:
    weights: a file that training begins from, safetensors or a state_dict, named as the model, its network or its backbone is;
    weights_digest: of that file. start: teacher, for the weights of the run that this one learns from. With either, `epochs` may be 0: the
    run is what it began from.
    learning_rates: factors on the rate of the parameters whose names, or the ends of them, fit a glob: {head.*: 10}; several multiply.
    """

    epochs: int
    batch_size: int
    optimizer: Callable[..., Optimizer]
    schedule: Callable[[float, int], float] | Sequence[Callable[[float, int], float]]
    crop_padding: int
    flip: bool
    precision: str
    attack_precision: str
    channels_last: bool
    compile: bool
    validation: float
    patience: int | None
    keep: str
    weights: str | None = None
    weights_digest: str | None = None
    start: str | None = None
    learning_rates: Mapping[str, float] | None = None

    def factor(self, epoch: float) -> float:
        """On the learning rate, at this epoch, fractional."""
        schedules = self.schedule if isinstance(self.schedule, Sequence) else (self.schedule,)
        return math.prod(schedule(epoch, self.epochs) for schedule in schedules)

    def __post_init__(self) -> None:
        least = 1 if self.weights is None and self.start is None else 0
        require(isinstance(self.epochs, int) and self.epochs >= least, "epochs", f"a whole number >= {least}", self.epochs)
        require(isinstance(self.batch_size, int) and self.batch_size >= 1, "batch_size", "a whole number >= 1", self.batch_size)
        require(self.weights is None or isinstance(self.weights, str), "weights", "the name of a file, or null", self.weights)
        require(self.weights is not None or self.weights_digest is None, "weights_digest", "null without weights", self.weights_digest)
        require(self.start in (None, "teacher"), "start", "teacher, or null", self.start)
        require(self.start is None or self.weights is None, "start", "null with weights: a run begins once", self.start)
        for glob, factor in (self.learning_rates or {}).items():
            require_not_negative(factor, f"learning_rates.{glob}")
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
