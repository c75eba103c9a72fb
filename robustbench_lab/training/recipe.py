"""How to train, whatever the defense: the recipe and its learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from torch.optim import Optimizer

from robustbench_lab.knobs import NOT_EMPTY, Count, Knobs, NotNegative, PositiveShare, ShareBelowOne, above, at_least, below, require


@dataclass(frozen=True, kw_only=True)
class MultiStep(Knobs):
    """The learning rate times `factor` from each of the epochs `milestones` on."""

    milestones: Sequence[float]
    factor: NotNegative

    def __call__(self, epoch: float, epochs: int) -> float:
        return self.factor ** sum(epoch >= milestone for milestone in self.milestones)


@dataclass(frozen=True, kw_only=True)
class Piecewise(Knobs):
    """The learning rate times the factor of the piece that an epoch lies in: `pieces` are [epochs, factor], one after the other; the last
    lasts to the end."""

    pieces: Annotated[Sequence[Sequence[NotNegative]], NOT_EMPTY, "[epochs, factor] each"]

    def __post_init__(self) -> None:
        super().__post_init__()
        for piece in self.pieces:
            require(len(piece) == 2 and piece[0] > 0, "pieces", "a list of [epochs, factor], epochs > 0", self.pieces)

    def __call__(self, epoch: float, epochs: int) -> float:
        for length, factor in self.pieces:
            if epoch < length:
                return factor
            epoch -= length
        return self.pieces[-1][1]


@dataclass(frozen=True, kw_only=True)
class Exponential(Knobs):
    """The learning rate times `factor` for each epoch that is done, and in between."""

    factor: PositiveShare

    def __call__(self, epoch: float, epochs: int) -> float:
        return self.factor**epoch


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

    optimizer: takes parameters, returns a torch optimiser. schedule: (epoch, fractional; epochs) -> factor on its learning rate; or a list
    of such, whose factors are multiplied.
    crop_padding, flip: augmentation, drawn anew each epoch. weight_decay belongs to the optimiser.
    precision: fp32 or bf16 (autocast) of the training passes; attack_precision: of the searches within training.
    channels_last, compile: memory layout and torch.compile, for speed.
    validation: share of the training images, the last ones, that are held out. patience: epochs without a better validation accuracy
    after which training stops (null: never). keep: the last weights, or those of best validation accuracy.

    What only some recipes say:
    weights: a file that training begins from, safetensors or a state_dict (training/weights.py), of the model, its network or its backbone;
    weights_digest: of that file; rename: patterns of its names, and ours (training/matching.py). start: the words in which another run
    differs from this one, such as [defense=standard,training=quick], for that run's weights; or `teacher`, for those of the run that the
    defense learns from. With either, `epochs` may be 0: the run is what it began from.
    learning_rates: factors on the rate of the parameters whose names, or the ends of them, fit a glob: {head.*: 10}; several multiply.
    undecayed: such globs, of the parameters that the optimiser's weight decay spares: [bias].
    averaging: the share that a running average of the parameters keeps at each step (Polyak averaging); the run's weights, and what is
    told of them after each epoch, are then the average.
    """

    epochs: Annotated[int, at_least(0)]
    batch_size: Count
    optimizer: Callable[..., Optimizer]
    schedule: Callable[[float, int], float] | Sequence[Callable[[float, int], float]]
    crop_padding: Annotated[int, at_least(0)]
    flip: bool
    precision: Literal["fp32", "bf16"]
    attack_precision: Literal["fp32", "bf16"]
    channels_last: bool
    compile: bool
    validation: ShareBelowOne
    patience: Count | None
    keep: Literal["last", "best"]
    weights: str | None = None
    weights_digest: str | None = None
    rename: Mapping[str, str] | None = None
    start: Literal["teacher"] | Sequence[str] | None = None
    learning_rates: Mapping[str, NotNegative] | None = None
    undecayed: Sequence[str] | None = None
    averaging: Annotated[float, above(0), below(1)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        begun = self.weights is not None or self.start is not None
        require(self.epochs >= 1 or begun, "epochs", "a whole number >= 1, or 0 for a run that is what it begins from", self.epochs)
        require(self.weights is not None or self.weights_digest is None, "weights_digest", "null without weights", self.weights_digest)
        require(self.start is None or self.weights is None, "start", "null with weights: a run begins once", self.start)
        selects = self.keep == "best" or self.patience is not None
        require(not selects or self.validation > 0, "validation", "a share > 0, because keep=best and patience need one", self.validation)

    def factor(self, epoch: float) -> float:
        """On the learning rate, at this epoch, fractional."""
        schedules = self.schedule if isinstance(self.schedule, Sequence) else (self.schedule,)
        return math.prod(schedule(epoch, self.epochs) for schedule in schedules)
