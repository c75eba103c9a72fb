"""Somebody's module, lent to an evaluation: seen as a `Defended`, and left as it was in every respect."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_lab.backbones.callable import part, parts_of
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.devices import device_of
from robustbench_lab.errors import LabError, said
from robustbench_lab.evaluation.panel import is_distribution
from robustbench_lab.library.images import check_labels
from robustbench_lab.models.defended import Classifier, Defended, full_precision
from robustbench_lab.models.normalise import FirstLayer
from robustbench_lab.storage.files import say_once

GIVES = ("logits", "probabilities")
SAME = 1e-5  # two passes of one module may differ by so much of its largest logit, by rounding, and draw nothing


class Answers(nn.Module):
    """What counts of a module's answers, as logits [B, K]: the part named by `output`, and of probabilities the logarithm.

    Below the smallest float there is no probability, and no attack sees further.
    """

    def __init__(self, module: nn.Module, output: str | int | None, gives: str) -> None:
        super().__init__()
        self.module, self.output, self.gives = module, output, gives

    def forward(self, x: Tensor) -> Tensor:
        y = part(self.module(x), self.output)
        if isinstance(y, Tensor) and (y.ndim != 2 or len(y) != len(x)):  # not where torch.fx traces it
            raise LabError(f"model: expected logits [B, K], one row for each of {len(x)} images, got shape {list(y.shape)}")
        return y.clamp(min=torch.finfo(torch.float32).tiny).log() if self.gives == "probabilities" else y


class Lent(Defended):
    """Somebody's module as an evaluation takes it; its fast copy is made once, for all attacks of one call."""

    def attach_fast_copy(self, precision: str = "fp32", channels_last: bool = True, compiled: bool = False) -> None:
        if self._fast or any(map(_has_hooks, self.network.modules())):  # hooks may watch, or change, what passes: no copy has them twice
            return
        try:
            super().attach_fast_copy(precision, channels_last, compiled)
        except Exception as error:  # a module that holds what cannot be copied, such as a graph: the plain one is always right
            self._fast.clear()
            say_once(
                f"attacks differentiate the model as it is, without the faster copy that folds BatchNorm ({said(error).splitlines()[0]})"
            )


@dataclass(frozen=True)
class Loan:
    """defended: the model. images: its images, for its device. classes: how many it gives. probabilities: whether its answers look like
    some, though they are to be logits."""

    defended: Defended
    images: ImageSet
    classes: int
    probabilities: bool


@contextmanager
def lent(
    model: Any, images: ImageSet, batch_size: int, *, seed: int = 0, output: str | int | None = None, gives: str = "logits",
    device: str | torch.device | None = None,
) -> Iterator[Loan]:  # fmt: skip
    """The model for as long as the block lasts. Two passes over its first batch tell whether its output is random.

    output: which part of what its forward returns: an attribute, a key or a position. gives: logits, or probabilities.
    device: where a copy of it is made, if it is not to work where it lies.
    Raises LabError for what is no module in single precision, for a forward that fails on these images or returns anything but [B, K], and
    for labels that are none of its classes.
    """
    if not isinstance(model, nn.Module):
        raise LabError(f"model: expected a torch.nn.Module, images [B, C, H, W] in [0, 1] to logits [B, K], got a {type(model).__name__}")
    if gives not in GIVES:
        raise LabError(f"gives: expected logits or probabilities, got {gives!r}")
    model = getattr(model, "_orig_mod", model)  # of torch.compile, which would compile anew for every size of batch
    _check_precision(model)
    home = _device(model, images)
    there = home if device is None else device_of(str(device))
    if there.type == "cuda":
        torch.cuda.init()  # its random numbers are kept from here on
    with program_as_it_was(seed), _module_as_it_was(model), full_precision():
        module = model if there == home else copy.deepcopy(model).to(there)
        with torch.autocast(there.type, enabled=False), torch.inference_mode(False), torch.enable_grad():
            module.eval()
            images = images.to(there)
            x, _, _ = next(images.batches(torch.arange(len(images)), batch_size))
            network = _network(module, output, gives, images.shape)
            logits, again = _tried(network, x), _tried(network, x)
            check_labels(images.labels, logits.shape[1])
            likely = is_distribution(logits.exp() if gives == "probabilities" else logits)
            if gives == "probabilities" and not likely:
                raise LabError("gives: expected logits, for a model whose rows do not lie in [0, 1] and sum to one, got 'probabilities'")
            if isinstance(network, Defended):
                defended = network
            else:
                scale = float(logits.abs().max().clamp(min=1e-12))
                defended = Lent(network, stochastic=not torch.allclose(logits, again, rtol=0, atol=SAME * scale, equal_nan=True)).eval()
            yield Loan(defended, images, logits.shape[1], likely and gives == "logits")


def _network(module: nn.Module, output: str | int | None, gives: str, shape: tuple[int, ...]) -> nn.Module:
    if isinstance(module, Defended):
        if output is not None or gives != "logits":
            raise LabError("model: a run's model gives logits; leave output and gives out")
        return module._view()  # whose fast copy is not the model's own
    return Classifier(FirstLayer(), Answers(module, output, gives), shape)


@torch.no_grad()
def _tried(network: nn.Module, x: Tensor) -> Tensor:
    """One pass; what is wrong with it is told."""
    answers = network.backbone if isinstance(network, Classifier) else None
    try:
        returned = network(x) if answers is None else answers.module(x)  # type: ignore[operator, union-attr]
    except LabError:
        raise
    except Exception as error:  # whatever somebody's forward raises
        raise LabError(
            f"model: its forward fails on images of shape {list(x.shape)}, float32 in [0, 1], on {x.device}: {said(error)}"
        ) from error
    if isinstance(answers, Answers):
        found = part(returned, answers.output)
        if not isinstance(found, Tensor):
            expected = f"what chooses one tensor of what the model returns, {parts_of(returned)}"
            raise LabError(f"output: expected {expected}, got {answers.output!r}")
        if found.ndim != 2 or len(found) != len(x):
            raise LabError(f"model: expected logits [B, K], one row for each of {len(x)} images, got shape {list(found.shape)}")
        if not found.is_floating_point():
            raise LabError(f"model: expected logits, floating-point numbers, got {str(found.dtype).removeprefix('torch.')}")
        returned = network(x)
    return returned


def _check_precision(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            kind = str(tensor.dtype).removeprefix("torch.")
            reason = "in another precision verdicts differ, and in half of it gradients vanish"
            raise LabError(f"model: expected float32, got {kind} ({name}): {reason}; give copy.deepcopy(model).float()")


def _device(model: nn.Module, images: ImageSet) -> torch.device:
    tensor = next((tensor for tensor in (*model.parameters(), *model.buffers())), None)
    if tensor is not None:
        return tensor.device
    return images.device


def _has_hooks(module: nn.Module) -> bool:
    kinds = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(map(len, kinds))


@contextmanager
def program_as_it_was(seed: int) -> Iterator[None]:
    """The program's random numbers and the switches of torch's kernels; within, what a model draws without torch is seeded."""
    others = random.getstate(), np.random.get_state()  # noqa: NPY002 - the generator that a model may draw from is the global one
    devices = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    with ExitStack() as left:
        left.callback(np.random.set_state, others[1])
        left.callback(random.setstate, others[0])
        left.callback(torch.set_default_dtype, torch.get_default_dtype())
        left.enter_context(_ieee())
        left.enter_context(torch.random.fork_rng(devices=list(devices)))
        torch.set_default_dtype(torch.float32)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        (torch.manual_seed if devices else torch.default_generator.manual_seed)(seed)  # the first begins CUDA's, too, once there is any
        yield


@contextmanager
def _ieee() -> Iterator[None]:
    """float32 that is float32, on CPUs too, whichever of torch's three ways to say otherwise the program has used, or several."""
    cuda, cudnn, mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    holders: list[Any] = [cuda.matmul, *(getattr(kind, op, None) for kind in (cudnn, mkldnn) for op in ("matmul", "conv", "rnn"))]
    fine: list[tuple[Any, str]] = [(one, one.fp32_precision) for one in holders if hasattr(one, "fp32_precision")]  # torch 2.9
    matmul = tf32 = None
    with suppress(RuntimeError):  # several ways were used, and they differ: then the finest says all
        matmul = torch.get_float32_matmul_precision()
    with suppress(RuntimeError):
        tf32 = cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
        if tf32 is not None:
            cudnn.allow_tf32 = tf32
        for holder, precision in fine:
            if holder.fp32_precision != precision:
                holder.fp32_precision = precision


@contextmanager
def _module_as_it_was(model: nn.Module) -> Iterator[None]:
    """Modes and buffers, module by module; `frozen` sees to the parameters' flags, and their gradients nobody touches."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, tensor, tensor.detach().clone())
        for module in model.modules()
        for name, tensor in module._buffers.items()
        if tensor is not None
    ]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for module, name, tensor, before in buffers:
                if module._buffers.get(name) is not tensor:
                    module._buffers[name] = tensor
                if not torch.equal(tensor, before):
                    tensor.copy_(before)
