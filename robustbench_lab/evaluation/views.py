"""What an attacker gets to see of a model, and the wrappers that an attack meets it in."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robustbench_lab.attacks.base import Attack, as_attacked, attacked, is_random, own_loss
from robustbench_lab.errors import LabError
from robustbench_lab.fronts.random_squeezing import RandomSqueezing
from robustbench_lab.models.defended import Defended
from robustbench_lab.threats import ThreatModel

NO_GRADIENT = (
    "threat_model.sees=queries gives no gradient, but the attack asks for one; choose an attack that only queries, or threat_model=white"
)


class _NoGradient(torch.autograd.Function):
    """The identity, whose gradient is an error."""

    @staticmethod
    def forward(ctx, logits: Tensor, x: Tensor) -> Tensor:
        return logits

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[None, None]:
        raise LabError(NO_GRADIENT)


class Queries(nn.Module):
    """A model that answers with logits or labels (as one-hot logits), and whose gradient is an error."""

    decides = False
    samples = 1

    def __init__(self, model: nn.Module, answers: str) -> None:
        super().__init__()
        self.model = model = attacked(model)
        self.answers = answers
        self.own_loss = own_loss(model)
        self.stochastic = is_random(model)

    def draw(self, x: Tensor) -> Tensor:
        return self(x)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            logits = self.model(x)
            if self.answers == "labels":
                logits = nn.functional.one_hot(logits.argmax(dim=1), logits.shape[1]).to(x.dtype)
        return _NoGradient.apply(logits, x)


class Averaged(nn.Module):
    """A model with random output, averaged: each forward pass is the mean of the logits of `samples` passes.

    What an attack differentiates is then the expectation over the draws (EOT, Athalye et al. 2018, arXiv:1802.00420, section 4.2). Memory
    is that of one pass, whatever `samples`: an attack that climbs a loss takes its gradient draw by draw (attacks.gradients.passes_of); for
    one that differentiates the mean itself, each pass is repeated, with the same draws, when its gradient is asked for.
    """

    decides = False

    def __init__(self, model: nn.Module, samples: int) -> None:
        super().__init__()
        self.model = model = attacked(model)
        self.samples = samples
        self.own_loss = own_loss(model)
        self.stochastic = is_random(model)

    def forward(self, x: Tensor) -> Tensor:
        differentiated = torch.is_grad_enabled() and x.requires_grad
        passes = (checkpoint(self.model, x, use_reentrant=False) if differentiated else self.draw(x) for _ in range(self.samples))
        return sum(passes, start=torch.zeros((), device=x.device)) / self.samples

    def draw(self, x: Tensor) -> Tensor:
        """One of the passes."""
        return self.model(x)


class Counted(nn.Module):
    """What an attack is given: a model that counts the images that go through it, and whose answers are numbers.

    decides: whether what it misclassifies is broken; stochastic: whether the model that is judged is random, whatever is averaged here.
    """

    def __init__(self, model: nn.Module, decides: bool = True, stochastic: bool = False) -> None:
        super().__init__()
        self.model = model = attacked(model)
        self.own_loss = own_loss(model)
        self.decides = decides
        self.stochastic = stochastic
        self.samples = as_attacked(model).samples  # passes behind one answer
        self.forward_images = 0
        self.backward_images = 0

    def forward(self, x: Tensor) -> Tensor:
        return self._counted(self.model(x), x, self.samples)

    def draw(self, x: Tensor) -> Tensor:
        """One of the passes behind an answer."""
        return self._counted(as_attacked(self.model).draw(x), x, 1)

    def _counted(self, logits: Tensor, x: Tensor, passes: int) -> Tensor:
        self.forward_images += passes * len(x)
        if not torch.isfinite(logits).all():
            raise NotFinite(x[~torch.isfinite(logits).all(dim=1)])
        if logits.requires_grad:
            logits.register_hook(partial(self._count_backward, passes))
        return logits

    def _count_backward(self, passes: int, gradient: Tensor) -> None:
        self.backward_images += passes * len(gradient)


class NotFinite(LabError):
    """A model's output is NaN or infinite for the images `x`, [M, C, H, W]."""

    def __init__(self, x: Tensor) -> None:
        super().__init__(f"the model's output is not finite for {len(x)} images")
        self.x = x.detach()


def check_view(threat_model: ThreatModel, attack: Attack) -> None:
    """Stop, before anything is loaded, if the attack needs what the threat model hides."""
    if threat_model.sees == "queries" and attack.needs_gradients:
        raise LabError(NO_GRADIENT)
    if threat_model.sees == "queries" and threat_model.answers == "labels" and attack.needs_logits:
        raise LabError(
            "threat_model.answers=labels hides the logits, but the attack needs them; choose an attack on labels, such as attack=rays, or "
            "threat_model.answers=logits"
        )


def attacker_view(threat_model: ThreatModel, defended: Defended, source: Defended | None, undefended: bool) -> nn.Module:
    """What the attacker may query or differentiate.

    source: the other run's model, for `twin` and `substitute`. undefended: whether `defended` is standard training, for which `learned`
    equals `defended`. Raises LabError where `learned` hides nothing of a defense.
    """
    if threat_model.sees == "queries":
        return Queries(defended, threat_model.answers)
    if threat_model.sees == "learned":
        fixed = [front for front in defended.fronts if not front.learned]
        if not fixed and not undefended:
            raise LabError(
                "threat_model.sees=learned hides the fixed pre-processing, but this defense has none; use threat_model=white or "
                "threat_model=gray_twin"
            )
        if threat_model.guess is None:
            return defended.without_fixed_fronts() if fixed else defended
        try:
            guess = RandomSqueezing(**threat_model.guess)
        except LabError as error:
            raise LabError(f"threat_model.guess.{error}") from error
        return defended.without_fixed_fronts().before_network(guess)
    if threat_model.sees == "defended":
        return defended.with_identity_gradients() if threat_model.surrogate == "identity" else defended
    assert source is not None, "the job loads the source that the threat model names"
    return source


def silenced(defended: Defended) -> Defended:
    """The same model, whose noise is off from now on: it answers an image always alike, in one pass.

    Raises LabError if nothing in it is noisy, or some of its noise has no switch.
    """
    try:
        return defended.silenced()
    except LabError as error:
        raise LabError(f"without_noise: expected false for a defense without noise, got true; {error}") from error
