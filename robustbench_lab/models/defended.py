"""The parts that a trained object is made of, and the fast copy of it that attacks differentiate."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_lab.backbones.density import Density
from robustbench_lab.errors import LabError
from robustbench_lab.models.fast_copy import FastCopy
from robustbench_lab.models.front import Front, WithIdentityGradient
from robustbench_lab.models.noise import switches
from robustbench_lab.models.normalise import FirstLayer

PerImageLoss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy per image, [B]; `y` is int64 [B] or probabilities [B, K]."""
    return F.cross_entropy(logits, y, reduction="none")


class Classifier(nn.Module):
    """A first layer and a backbone: images [B, C, H, W] in [0, 1] to logits [B, K].

    image_shape: [C, H, W] of the images that it is made for, where that is known, as in every run: a first layer for others is refused.
    """

    def __init__(self, normalise: nn.Module, backbone: nn.Module, image_shape: Sequence[int] | None = None) -> None:
        super().__init__()
        self.normalise = normalise
        self.backbone = backbone
        self.image_shape = None if image_shape is None else tuple(image_shape)
        if image_shape is not None and isinstance(normalise, FirstLayer):
            normalise.check(image_shape)

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(self.normalise(x))


class Defended(nn.Module):
    """Every trained object: fronts in order, then the network; images [B, C, H, W] in [0, 1] to logits [B, K].

    passes: how many forward passes a prediction averages (log of the mean of the probabilities), for stochastic defenses.
    stochastic: whether two passes over one image may differ; they may if a front is random.
    own_loss: the loss per image that the defense was trained with, as a function of (logits, y): what an attack with loss=own raises.
    decides, samples, draw: what else attacks ask of a model (attacks.base.Attacked); only an evaluation lets one decide.
    """

    decides = False
    samples = 1

    def __init__(
        self,
        network: nn.Module,
        fronts: Sequence[Front] = (),
        passes: int = 1,
        stochastic: bool = False,
        own_loss: PerImageLoss = cross_entropy,
    ) -> None:
        super().__init__()
        self.fronts = nn.Sequential(*fronts)
        self.network = network
        self.passes = passes
        self._network_draws = stochastic
        self.stochastic = stochastic or any(front.random for front in fronts)
        self.own_loss = own_loss
        self._search_precision: str | None = None  # within training, where there is no fast copy; None: that of the pass around it
        self._fast: list[FastCopy] = []  # in a list, so that it is no submodule: not in parameters() and not in the state_dict
        for front in fronts:
            if front.needs_network:
                front.attach(network)
            if not front.learned:
                front.requires_grad_(False)  # no optimiser moves it

    def forward(self, x: Tensor) -> Tensor:
        if self.passes == 1:
            return self.network(self.fronts(x))
        if any(front.random for front in self.each_front()):
            passes = (self.network(self.fronts(x)) for _ in range(self.passes))
        else:
            shown = self.fronts(x)
            passes = (self.network(shown) for _ in range(self.passes))
        return torch.stack([F.log_softmax(logits, dim=1) for logits in passes]).logsumexp(dim=0)  # up to the constant log(passes)

    def draw(self, x: Tensor) -> Tensor:
        return self(x)

    def each_front(self) -> list[Front]:
        return list(self.fronts)  # type: ignore[arg-type]

    def without_fixed_fronts(self) -> Self:
        """The same learned stages, sharing their weights, without the fixed pre-processing."""
        learned = [front for front in self.each_front() if front.learned]
        stochastic = self.stochastic and (self._network_draws or any(front.random for front in learned))
        return self._view(fronts=nn.Sequential(*learned), stochastic=stochastic)

    def before_network(self, front: Front) -> Self:
        """The same stages, sharing their weights, and one more front before the network. Raises LabError for images it cannot take."""
        shape = getattr(self.network, "image_shape", None)
        if shape is not None:
            front.check(shape)
        return self._view(fronts=nn.Sequential(*self.fronts, front), stochastic=self.stochastic or front.random)

    def with_identity_gradients(self) -> Self:
        """The same stages, sharing their weights; the gradient of each fixed front is the identity's. Raises LabError without one."""
        if all(front.learned for front in self.each_front()):
            raise LabError("threat_model.surrogate: expected null for a defense without fixed pre-processing, got identity")
        fronts = (front if front.learned else WithIdentityGradient(front) for front in self.each_front())
        return self._view(fronts=nn.Sequential(*fronts))

    def one_draw(self) -> Self:
        """The same stages, sharing their weights, whose prediction averages nothing: what is learned and searched where it is random."""
        return self._view(passes=1)

    def silenced(self) -> Self:
        """The same stages, sharing their weights, whose noise is off from now on: an image is always answered alike, in one pass.

        Raises LabError if nothing here is noisy, or if something draws that cannot be switched off.
        """
        for layer in switches(self):
            layer.active = False
        return self._view(passes=1, stochastic=False)

    def _view(self, **changed: Any) -> Self:
        """A model of the same class that shares every part of this one but those that are `changed`; it has no fast copy yet."""
        view = copy.copy(self)
        view.__dict__["_modules"] = dict(self._modules)  # or what is put into the view is put into this one
        view._fast = []
        for name, value in changed.items():
            setattr(view, name, value)
        return view

    @property
    def fast_copy(self) -> FastCopy | None:
        """The copy that `frozen` hands out, if one is attached."""
        return self._fast[0] if self._fast else None

    def attach_fast_copy(self, precision: str = "fp32", channels_last: bool = True, compiled: bool = False) -> None:
        """Let `frozen` hand out a fast copy, refreshed at each entry. A network that cannot be traced, or draws, keeps the plain one."""
        self._fast.clear()
        self._search_precision = precision
        if len(self.fronts) or self.passes != 1 or self.stochastic or isinstance(self.network, Density):
            return  # fronts and draws stay where the defense put them, and nobody attacks a density
        shape = getattr(self.network, "image_shape", None)
        fast = FastCopy.of(self.network, self.own_loss, precision, channels_last, compiled, shape)
        if fast is not None:
            self._fast.append(fast)


@contextmanager
def full_precision() -> Iterator[None]:
    """float32 that is float32: no TF32 on GPUs, whatever the defaults are."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@contextmanager
def searched_kernels() -> Iterator[None]:
    """Let cuDNN try its convolution kernels once per shape and keep the fastest: pays where shapes repeat, as in training."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def frozen(model: nn.Module, fast: bool = True) -> Iterator[nn.Module]:
    """The model as an attack may have it: eval mode, parameters without gradients; with `fast`, its fast copy where one is attached.

    Modes and flags are restored on leaving, module by module. For searches only: Deep Defense needs parameter gradients through the search.
    A plain model in training is searched in the precision that the fast copy would have had, an evaluated one in full precision.
    """
    if fast and isinstance(model, Defended) and (quick := model.fast_copy) is not None:
        quick.refresh(model.network)
        with torch.autocast(quick.device_type, enabled=False):  # its precision is its own, not that of the training pass around it
            yield quick
        return
    precision = model._search_precision if fast and isinstance(model, Defended) and model.training else None
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval()
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    try:
        device_type = next(model.parameters(), torch.empty(0)).device.type
        with nullcontext() if precision is None else torch.autocast(device_type, torch.bfloat16, enabled=precision == "bf16"):
            yield model
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)


def replace_modules(root: nn.Module, kind: type[nn.Module], make: Callable[[nn.Module], nn.Module]) -> int:
    """Put `make(old)` in the place of every submodule of the given kind, and say how many there were.

    Raises LabError if there was none: a defense that replaces nothing defends nothing.
    """
    found = [(name, old) for name, old in root.named_modules(remove_duplicate=False) if isinstance(old, kind) and name]
    if not found:
        raise LabError(f"backbone: there is no {kind.__name__} to replace in {type(root).__name__}; choose a backbone that has one")
    new = {old: make(old) for old in dict.fromkeys(old for _, old in found)}  # one that sits in two places stays one
    for name, old in found:
        parent, _, attribute = name.rpartition(".")
        setattr(root.get_submodule(parent), attribute, new[old])
    return len(new)
