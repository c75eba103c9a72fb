"""The parts that a trained object is made of, and the fast copy of it that attacks differentiate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_lab.errors import LabError
from robustbench_lab.models.fast_copy import FastCopy
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


class _Straight(torch.autograd.Function):
    """The first argument forward, the second argument's gradient backward."""

    @staticmethod
    def forward(ctx, exact: Tensor, differentiable: Tensor) -> Tensor:
        return exact.view_as(exact)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient


class Front(nn.Module):
    """A stage before the network: [B, C, H, W] in [0, 1] to the same.

    `transform` may be anything; `surrogate` is its differentiable stand-in, the identity unless a front knows better. Forward gives
    exactly the transform, backward the surrogate's gradient (BPDA, Athalye et al. 2018, arXiv:1802.00420, section 4.1). A learned front
    whose transform is differentiable overrides `forward`.
    """

    def transform(self, x: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not define transform")

    def surrogate(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return _Straight.apply(self.transform(x.detach()), self.surrogate(x))

    @property
    def learned(self) -> bool:
        return any(True for _ in self.parameters())


class Defended(nn.Module):
    """Every trained object: fronts in order, then the network; images [B, C, H, W] in [0, 1] to logits [B, K].

    passes: how many forward passes a prediction averages (log of the mean of the probabilities), for stochastic defenses.
    stochastic: whether two passes over one image may differ.
    own_loss: the loss per image that the defense was trained with, as a function of (logits, y): what an attack with loss=own raises.
    """

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
        self.stochastic = stochastic
        self.own_loss = own_loss
        self._search_precision: str | None = None  # within training, where there is no fast copy; None: that of the pass around it
        self._fast: list[FastCopy] = []  # in a list, so that it is no submodule: not in parameters() and not in the state_dict

    def forward(self, x: Tensor) -> Tensor:
        x = self.fronts(x)
        if self.passes == 1:
            return self.network(x)
        probabilities = [F.log_softmax(self.network(x), dim=1) for _ in range(self.passes)]
        return torch.stack(probabilities).logsumexp(dim=0)  # up to the constant log(passes)

    def without_fixed_fronts(self) -> Defended:
        """The same learned stages, sharing their weights, without the fixed pre-processing."""
        learned = [front for front in self.fronts if front.learned]
        return Defended(self.network, learned, self.passes, self.stochastic, self.own_loss)  # type: ignore[arg-type]

    def one_draw(self) -> Defended:
        """The same stages, sharing their weights, whose prediction averages nothing: what is learned and searched where it is random."""
        one = Defended(self.network, list(self.fronts), 1, self.stochastic, self.own_loss)  # type: ignore[arg-type]
        one._search_precision, one.training = self._search_precision, self.training
        return one

    @property
    def fast_copy(self) -> FastCopy | None:
        """The copy that `frozen` hands out, if one is attached."""
        return self._fast[0] if self._fast else None

    def attach_fast_copy(self, precision: str = "fp32", channels_last: bool = True, compiled: bool = False) -> None:
        """Let `frozen` hand out a fast copy, refreshed at each entry. A network that cannot be traced, or draws, keeps the plain one."""
        self._fast.clear()
        self._search_precision = precision
        if len(self.fronts) or self.passes != 1 or self.stochastic:
            return  # fronts and draws stay where the defense put them
        fast = FastCopy.of(self.network, self.own_loss, precision, channels_last, compiled)
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
