"""What an adversary may do: where it may go (Budget) and what it may see (ThreatModel)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from robustbench_lab.errors import LabError
from robustbench_lab.knobs import Check, Knobs, at_least, is_number, one_of, require
from robustbench_lab.randomness import ImageRandom

NORMS = ("linf", "l2", "l0")
VIEWS = ("defended", "learned", "twin", "substitute", "queries")


def per_image(values: Tensor, images: Tensor) -> Tensor:
    """[B] shaped to multiply [B, ...]."""
    return values.view(-1, *[1] * (images.dim() - 1))


@dataclass(frozen=True)
class Budget(Knobs):
    """The ball around an image, cut by the pixel box [0, 1]; `eps` is a fraction of the pixel range, `inf` means the box only.

    In l0, `eps` is the number of pixels that may change; a pixel with several channels counts once, and there is no steepest step.
    Images are [B, C, H, W] and may touch 0 and 1. Raises LabError for an unknown norm or an eps that is negative or no number.
    """

    norm: Annotated[str, one_of(NORMS)]
    eps: Annotated[float, Check("a number", is_number), at_least(0), "such as 0.1, 8/255 or inf"]

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = self.norm != "l0" or self.eps == math.inf or float(self.eps).is_integer()
        require(whole, "eps", "a whole number of pixels, or inf, with norm=l0", self.eps)

    def check(self, shape: Sequence[int], key: str) -> None:
        """Stop where no image [C, H, W] could be that far from another: eps was then meant in another unit. Raises LabError."""
        farthest = {"linf": 1.0, "l2": math.prod(shape) ** 0.5, "l0": math.prod(shape[1:])}[self.norm]
        if farthest < self.eps < math.inf:
            unit = "as a number of pixels" if self.norm == "l0" else "as a fraction of the pixel range: 8/255"
            meant = f"at most {farthest:g}, the farthest that two images are apart in {self.norm}, {unit}; or inf"
            raise LabError(f"{key}.eps: expected {meant}, got {self.eps}")

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The nearest point of the ball, then of the box. As x lies in the box, the second step does not leave the ball."""
        if self.eps < math.inf:
            if self.norm == "linf":
                x_adv = x_adv.clamp(x - self.eps, x + self.eps)
            elif self.norm == "l0":
                size = (x_adv.clamp(0, 1) - x).square().sum(dim=1).flatten(1)  # the box first: what it cuts, counts less
                x_adv = x_adv.where(_largest(size, self.eps).view(-1, 1, *x.shape[2:]), x)
            else:
                delta = x_adv - x
                length = delta.flatten(1).norm(dim=1)
                x_adv = x + delta * per_image((self.eps / length.clamp(min=1e-12)).clamp(max=1), x)
        return x_adv.clamp(0, 1)

    def random_start(self, x: Tensor, rng: ImageRandom) -> Tensor:
        """A point drawn uniformly from the ball, then cut by the box. With eps = inf: from the box."""
        if self.eps == math.inf:
            return rng.uniform(*x.shape[1:]).to(x.dtype)
        if self.norm == "linf":
            return self.project(x + rng.uniform(*x.shape[1:], low=-self.eps, high=self.eps).to(x.dtype), x)
        if self.norm == "l0":
            chosen = _largest(rng.fold("pixels").uniform(x[0, 0].numel()), self.eps).view(-1, 1, *x.shape[2:])
            return rng.fold("values").uniform(*x.shape[1:]).to(x.dtype).where(chosen, x)
        direction = rng.fold("direction").normal(*x.shape[1:]).to(x.dtype)
        radius = self.eps * rng.fold("radius").uniform(1)[:, 0].to(x.dtype) ** (1 / x[0].numel())
        return self.project(x + self.steepest(direction) * per_image(radius, x), x)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The step of norm 1 that raises a linear function fastest; zero where the gradient is zero, NaN where it is NaN."""
        if self.norm == "l0":
            raise LabError("budget.norm: in l0 there is no steepest step; choose an attack on single pixels, such as attack=jsma")
        if self.norm == "linf":
            return gradient.sign().where(~gradient.isnan(), gradient)  # sign(NaN) is 0: an attack would stand still, unnoticed
        # Scaled by the largest entry first: squares of gradients near 1e-23 would underflow to a length of zero.
        gradient = gradient / per_image(gradient.flatten(1).abs().amax(dim=1).clamp(min=1e-38), gradient)
        return gradient / per_image(gradient.flatten(1).norm(dim=1).clamp(min=1e-12), gradient)

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The norm of the change, float64 [B]."""
        if self.norm == "l0":
            return (x_adv != x).any(dim=1).flatten(1).sum(dim=1).double()
        delta = (x_adv.double() - x.double()).flatten(1)
        return delta.abs().amax(dim=1) if self.norm == "linf" else delta.norm(dim=1)

    def contains(self, x_adv: Tensor, x: Tensor, tolerance: float = 1e-6) -> bool:
        """Whether every image lies in the ball and the box, up to `tolerance`."""
        inside_box = bool((x_adv >= -tolerance).all() and (x_adv <= 1 + tolerance).all())
        return inside_box and bool((self.distance(x_adv, x) <= self.eps + tolerance).all())


def _largest(values: Tensor, count: float) -> Tensor:
    """Which entries of [B, N] are among the `count` largest of their row, bool [B, N]."""
    order = values.topk(min(int(count), values.shape[1]), dim=1).indices
    return torch.zeros_like(values, dtype=torch.bool).scatter(1, order, True)


@dataclass(frozen=True)
class ThreatModel(Knobs):
    """What the attacker sees; the verdict always falls on the defended model.

    sees: `defended` (white box), `learned` (every learned stage, no fixed pre-processing: gray box of the SFM paper), `twin` (the
    undefended run of the same dataset, backbone and seed: gray box of AT+ALP), `substitute` (another run: black box by transfer) or
    `queries` (outputs only: asking for a gradient is an error).
    overrides: how the other run's configuration differs from this one's; for `twin` and `substitute` only.
    answers: what a query returns, `logits` or `labels`; for `queries` only.
    surrogate: null for each front's own stand-in, through which gradients go; `identity` puts that in its place, the BPDA of fronts that
    change little. For `defended` only.
    guess: null; or the bit depths (`bits`) and median windows (`windows`) that the attacker takes the mean over who knows that images are
    squeezed, and not how (fronts.random_squeezing). For `learned` only.
    """

    sees: Annotated[str, one_of(VIEWS)]
    overrides: Sequence[str]
    answers: Literal["logits", "labels"]
    surrogate: Literal["identity"] | None = None
    guess: Mapping[str, Sequence[int]] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.surrogate is None or self.sees == "defended", "surrogate", f"null with sees={self.sees}", self.surrogate)
        require(self.guess is None or self.sees == "learned", "guess", f"null with sees={self.sees}", self.guess)
        expected = "bits and windows, each a list of whole numbers"
        require(self.guess is None or sorted(self.guess) == ["bits", "windows"], "guess", expected, self.guess)
        needs_run = self.sees in ("twin", "substitute")
        require(
            bool(self.overrides) == needs_run,
            "overrides",
            "how the run that the attacker sees differs, such as ['seed=1']" if needs_run else f"none with sees={self.sees}",
            list(self.overrides),
        )
