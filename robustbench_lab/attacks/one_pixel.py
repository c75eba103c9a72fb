"""One-Pixel: differential evolution over the place and the colour of a few pixels.

Source: Su, Vargas and Sakurai 2019, arXiv:1710.08864, section III. A child replaces the parent of the same index if it is better.
Where we differ: the true class's probability is compared as its log-odds, the same order where float32 rounds the probability to one.
Colours are not rounded to 8 bits. The paper does not say what happens to a child outside its range: here its place is drawn anew and
its colour cut. conf/attack/one_pixel_fm.yaml has the search of SciPy, with which others repeated the paper: it draws both anew.
Limits: an image that survives may have a pixel that the search missed; at 8x8 pixels and one channel an exhaustive search is cheaper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from robustbench_lab.attacks.base import Attack, decides, is_wrong, rows
from robustbench_lab.errors import LabError
from robustbench_lab.knobs import Count, PositiveShare, at_least, require
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget, per_image


@dataclass(frozen=True, kw_only=True)
class OnePixel(Attack):
    """Evolve a population per image; the image leaves with its best misclassified member, and stays with its best one.

    pixels: that a member paints; two of them may fall on one place.
    population, generations: members of each image, and rounds after the first one: (generations + 1) * population queries at most.
    differential_weight: F in parent + F * (difference of two members); or two numbers, between which it is drawn in each generation.
    parent: random (DE/rand/1) or best (DE/best/1): of which member a child is a variation.
    crossover: the chance that a child's number comes from the variation and not from the member that it competes with; 1: no crossover.
    colours: gaussian, N(128, 127) in units of 1/255, or uniform: of the first population. outside: what happens to a child's colour beyond
    [0, 1]: cut, or redraw, uniformly.
    """

    norms: ClassVar[tuple[str, ...]] = ("l0",)
    needs_finite_ball: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False

    pixels: Count
    population: Annotated[int, at_least(4), "for three members beside the one that they replace"]
    generations: Count
    differential_weight: float | Sequence[float]
    parent: Literal["random", "best"]
    crossover: PositiveShare
    colours: Literal["gaussian", "uniform"]
    outside: Literal["cut", "redraw"]

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self._weights()
        require(0 < low <= high <= 2, "differential_weight", "a number above 0, up to 2, or two rising ones", self.differential_weight)

    def check(self, budget: Budget) -> None:
        super().check(budget)
        if budget.eps < self.pixels:
            raise LabError(
                f"attack.pixels: {self.pixels} pixels are more than budget.eps = {budget.eps} allows; set budget.eps={self.pixels}"
            )

    @torch.no_grad()
    def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
        result, todo, at_once = x.clone(), torch.arange(len(x), device=x.device), max(len(x), 256)
        leave = decides(model)
        members = self.first(x, rng.fold("generation", 0)).to(x.dtype)
        odds, wrong = evaluate(model, x, y, members, at_once)
        for generation in range(1, self.generations + 1):
            if leave and (left := wrong.any(dim=1)).any():
                result[todo[left]] = best_of(*rows(left, x, members, odds, wrong))
                todo, x, y, members, odds, rng = rows(~left, todo, x, y, members, odds, rng)
                if not len(todo):
                    return result
            children = self.vary(members, odds, rng.fold("generation", generation)).to(x.dtype)
            child_odds, wrong = evaluate(model, x, y, children, at_once)
            better = ~(child_odds <= odds) | (wrong & leave)  # odds that are NaN count as better: the caller sees it
            members, odds = children.where(better[:, :, None, None], members), child_odds.where(better, odds)
        result[todo] = best_of(x, members, odds, wrong & leave)
        return result

    def first(self, x: Tensor, rng: ImageRandom) -> Tensor:
        """Members [B, population, pixels, 2 + C]: row and column as fractions of the image's edges, then the colour."""
        shape = (self.population, self.pixels)
        places, colours = rng.fold("place").uniform(*shape, 2), rng.fold("colour")
        if self.colours == "uniform":
            return torch.cat([places, colours.uniform(*shape, x.shape[1])], dim=3)
        drawn = (128 + 127 * colours.normal(*shape, x.shape[1])) / 255
        return torch.cat([places, drawn.clamp(0, 1)], dim=3)

    def vary(self, members: Tensor, odds: Tensor, rng: ImageRandom) -> Tensor:
        """One child per member: parent + F * (one member - another one)."""
        count, image = self.population, torch.arange(len(members), device=members.device)[:, None]
        # Three different members beside the one that the child competes with, by their distance from it: 1 to count - 1.
        numbers = rng.fold("members").integers(1 << 30, count, 3)
        a = 1 + numbers[..., 0] % (count - 1)
        b = 1 + numbers[..., 1] % (count - 2)
        b = b + (b >= a)
        c = 1 + numbers[..., 2] % (count - 3)
        c = c + (c >= torch.minimum(a, b))
        c = c + (c >= torch.maximum(a, b))
        one, other, third = ((torch.arange(count, device=members.device) + step) % count for step in (a, b, c))
        parent = members[image, third] if self.parent == "random" else members[image, odds.argmax(dim=1, keepdim=True)]
        low, high = self._weights()
        weight = per_image(rng.fold("weight").uniform(1, low=low, high=high)[:, 0], members)
        child = parent + weight * (members[image, one] - members[image, other])
        if self.crossover < 1:
            child = child.where(rng.fold("crossover").uniform(*members.shape[1:]) < self.crossover, members)
        places, colours = child[..., :2], child[..., 2:]
        places = rng.fold("place").uniform(*places.shape[1:]).where((places < 0) | (places >= 1), places)
        if self.outside == "redraw":
            colours = rng.fold("colour").uniform(*colours.shape[1:]).where((colours < 0) | (colours > 1), colours)
        return torch.cat([places, colours.clamp(0, 1)], dim=3)

    def _weights(self) -> tuple[float, float]:
        """The range of F."""
        given = self.differential_weight
        weights = list(given) if isinstance(given, Sequence) else [given, given]
        require(len(weights) == 2, "differential_weight", "a number above 0, up to 2, or two rising ones", given)
        return weights[0], weights[1]


def evaluate(model: nn.Module, x: Tensor, y: Tensor, members: Tensor, at_once: int) -> tuple[Tensor, Tensor]:
    """The log-odds against the true class, and whether it is not the prediction, [B, population]; `at_once` images per pass."""
    population = members.shape[1]
    odds, wrong = [], []
    for index in torch.arange(len(x) * population, device=x.device).split(at_once):
        image = index // population
        logits, label = model(paint(x[image], members.flatten(0, 1)[index])), y[image]
        others = logits.scatter(1, label[:, None], -math.inf)
        odds.append(others.logsumexp(dim=1) - logits.gather(1, label[:, None])[:, 0])
        wrong.append(is_wrong(logits, label))
    return torch.cat(odds).view(-1, population), torch.cat(wrong).view(-1, population)


def best_of(x: Tensor, members: Tensor, odds: Tensor, wrong: Tensor) -> Tensor:
    """The images with their member of the highest odds, among the misclassified ones where there are some."""
    among = odds.where(wrong | ~wrong.any(dim=1, keepdim=True), -math.inf)
    return paint(x, members[torch.arange(len(x), device=x.device), among.argmax(dim=1)])


def paint(x: Tensor, members: Tensor) -> Tensor:
    """The images [B, C, H, W], each with the pixels of one member [B, pixels, 2 + C]."""
    height, width = x.shape[2:]
    place = (members[..., 0] * height).long() * width + (members[..., 1] * width).long()
    painted = x.flatten(2).clone()
    for pixel in range(members.shape[1]):  # one after the other: of two on one place, the later one counts
        painted.scatter_(2, place[:, pixel, None, None].expand(-1, x.shape[1], -1), members[:, pixel, 2:, None])
    return painted.view_as(x)
