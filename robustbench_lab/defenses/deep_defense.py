"""Deep Defense: fine-tuning that moves decision boundaries away, by the gradient of DeepFool's perturbation in the weights.

    CE(x) + lambda / B * ( sum over right images of exp(-c * rho) + sum over wrong ones of exp(d * rho) ),   rho = |delta| / |x|,

with delta from DeepFool: of a right image to the nearest other class, of a wrong one to its label, so that the first moves off and the
second comes near; |x| is that of what the network is fed.

Source: Yan, Guo, Zhang 2018, arXiv:1803.00404, eq. 4 to 6; what the paper leaves open is as in the authors' code
(ZiangYan/deepdefense.pytorch): sums over a batch of B images divided by B, cross-entropy a mean, at most 5 iterations, BatchNorm as in
evaluation and its parameters frozen. The dropout masks are those of the clean pass in all passes of a step (ZiangYan/amm.pytorch, the same
authors).
Where we differ: the code's own layers that run a network backwards are double backward passes here, which is the same; its constant beside
each entry of a gradient is a bound on the norm; where an image's prediction changes on its way to the label, both the difference of logits
and its gradient are of the new prediction (as in the authors' later code; the released one mixes old and new).
Cost: a step is a forward pass and a backward pass for each rival at each of DeepFool's iterations (1.7 on average on the paper's LeNet),
and the way back through those that were chosen, two backward passes more for each.
Limits: it learns to be far from where DeepFool goes; whether that is far from the boundary, attacks/fab.py and fmn.py say.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from robustbench_lab.attacks.base import is_wrong
from robustbench_lab.attacks.deepfool import perturbation
from robustbench_lab.defenses.base import Batch, MixedDefense, Player
from robustbench_lab.errors import LabError
from robustbench_lab.knobs import Count, NotNegative, Positive, at_least, require
from robustbench_lab.models.defended import Defended

log = logging.getLogger("robustbench_lab")


@dataclass(frozen=True, kw_only=True)
class DeepDefense(MixedDefense):
    """The mixed objective (of clean images alone by default), and lambda times the mean of what the distances say.

    strength: the paper's lambda; c: of right images, d: of wrong ones.
    shape: exponential (eq. 6), or linear: -c * rho and d * rho, which the paper rejects because images that are far already dominate.
    steps, candidates, overshoot: of DeepFool.
    through_steps: whether the gradient goes through the points of earlier iterations, as the paper says, or through the last terms alone.
    wrong_images: whether wrong images count.
    largest_term: of one image, what its exponential is cut at; null: nothing is cut.
    layers: globs of the names of the parameters that the regulariser moves, such as [body.stage1.*]; null: all of them.
    """

    strength: Positive
    c: Positive
    d: Positive
    shape: Literal["exponential", "linear"]
    steps: Count
    candidates: Annotated[int, at_least(2), "the image's own class and another"]
    overshoot: NotNegative
    through_steps: bool
    wrong_images: bool
    largest_term: Positive | None
    layers: Sequence[str] | None

    def check_passes(self, precision: str, compiled: bool) -> None:
        require(precision == "fp32", "training.precision", "fp32: DeepFool's steps are differentiated, which bf16 spoils", precision)
        require(not compiled, "training.compile", "false: a compiled network cannot be differentiated twice", compiled)

    def build(self, make_net: Callable[[], nn.Module]) -> Defended:
        model = super().build(make_net)
        self.moved(model)  # a glob that fits nothing stops here, before the run that this one begins from is trained
        odd = [type(module).__name__ for module in model.modules() if isinstance(module, nn.AlphaDropout | nn.FeatureAlphaDropout)]
        require(not odd, "backbone", "dropout that sets values to 0, whose masks deep_defense keeps for a step", odd)
        return model

    def players(self, model: Defended) -> list[Player]:
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        return [Player("model", list(_learned(model).values()), self.terms, in_eval=norms)]

    def terms(self, model: Defended, batch: Batch) -> Iterator[Tensor]:
        with same_dropout(model) as masks:
            yield from super().terms(model, batch)
            yield self.strength * self.regulariser(model, masks, batch.x, batch.y)

    def regulariser(self, model: Defended, masks: Masks, x: Tensor, y: Tensor) -> Tensor:
        """The mean over the batch of what each distance adds to the loss; with `layers`, a scalar of the same gradient on those alone."""
        with torch.no_grad():
            right = ~is_wrong(model(x), y)
        rho = self.distances(model, masks, x, y, right)
        exponent = torch.where(right, -self.c * rho, self.d * rho)
        term = exponent if self.shape == "linear" else exponent.exp()
        if self.largest_term is not None:
            if bool((term.detach() > self.largest_term).any()):
                _warn_once(f"defense.largest_term={self.largest_term:g} cuts what an image adds to the loss of Deep Defense")
            term = term.clamp(max=self.largest_term)
        if not self.wrong_images:
            term = term * right
        mean = term.sum() / len(x)
        moved = self.moved(model)
        if moved is None:
            return mean
        gradients = torch.autograd.grad(mean, moved, allow_unused=True, materialize_grads=True)
        return sum(((parameter * gradient).sum() for parameter, gradient in zip(moved, gradients, strict=True)), torch.zeros_like(mean))

    def distances(self, model: Defended, masks: Masks, x: Tensor, y: Tensor, right: Tensor) -> Tensor:
        """|delta| / |x| of each image, [B], with its graph: of right images away from their class, of wrong ones to it."""
        delta = torch.zeros_like(x)
        for towards in (False, True):
            rows = torch.nonzero(right != towards)[:, 0]
            if len(rows) and (self.wrong_images or not towards):
                delta = delta.index_add(0, rows, self._perturbation(model, masks, x, y, rows, towards))
        if right.any() and not delta.detach().any():  # of one image it may be zero, of none of a batch
            raise LabError(
                "defense: expected a network whose logits have a gradient in the images, by which deep_defense learns, got none for any of "
                f"{len(x)} images; begin from a trained network, and leave out fronts that cut it"
            )
        first = getattr(model.network, "normalise", nn.Identity())
        fed = first(x)
        away = (first(x + delta) - fed).flatten(1)
        # The norm of the images that have a perturbation: at 0 it has no gradient.
        length = torch.where(away.detach().any(dim=1), away.square().sum(dim=1), 1.0).sqrt() * away.detach().any(dim=1)
        return length / fed.flatten(1).norm(dim=1).clamp(min=1e-12)

    def _perturbation(self, model: Defended, masks: Masks, x: Tensor, y: Tensor, rows: Tensor, towards: bool) -> Tensor:
        def ask(points: Tensor, which: Tensor) -> Tensor:
            with masks.of(rows[which]):
                return model(points)

        size = (self.steps, self.candidates, self.overshoot)
        return perturbation(ask, x[rows], y[rows], "l2", *size, towards=towards, create_graph=True, through_steps=self.through_steps)

    def moved(self, model: Defended) -> list[nn.Parameter] | None:
        """The parameters that the regulariser moves; None for all. Raises LabError for a glob that fits none."""
        if self.layers is None:
            return None
        named = _learned(model)
        for glob in self.layers:
            fits = any(_fits(name, glob) for name in named)
            require(fits, "defense.layers", f"globs that fit parameters, such as {', '.join(list(named)[:4])}", glob)
        return [parameter for name, parameter in named.items() if any(_fits(name, glob) for glob in self.layers)]


def _learned(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are fine-tuned, by name: all but those of BatchNorm."""
    frozen = {id(parameter) for module in model.modules() if isinstance(module, _BatchNorm) for parameter in module.parameters()}
    return {name: p for name, p in model.named_parameters() if p.requires_grad and id(p) not in frozen}


@cache
def _warn_once(message: str) -> None:
    log.warning(message)


def _fits(name: str, glob: str) -> bool:
    return fnmatchcase(f".{name}", f"*.{glob}")


class Masks:
    """The dropout masks of one step, drawn by the first pass over the batch; a pass over some of its images takes their rows."""

    def __init__(self) -> None:
        self.drawn: dict[nn.Module, Tensor] = {}
        self.rows: Tensor | None = None  # of the batch that pass at the moment; None: all

    @contextmanager
    def of(self, rows: Tensor) -> Iterator[None]:
        self.rows = rows
        try:
            yield
        finally:
            self.rows = None

    def dropped(self, module: _DropoutNd, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """In place of what a dropout layer gives in train mode."""
        if not module.training or module.p == 0:
            return output
        if module not in self.drawn:
            assert self.rows is None, "the first pass is over the whole batch"
            self.drawn[module] = type(module)(module.p)(torch.ones_like(inputs[0]))
        mask = self.drawn[module]
        return inputs[0] * (mask if self.rows is None else mask[self.rows])


@contextmanager
def same_dropout(model: nn.Module) -> Iterator[Masks]:
    """Within it, the model's dropout layers drop the same values of an image in each pass."""
    masks = Masks()
    hooks = [module.register_forward_hook(masks.dropped) for module in model.modules() if isinstance(module, _DropoutNd)]
    try:
        yield masks
    finally:
        for hook in hooks:
            hook.remove()
