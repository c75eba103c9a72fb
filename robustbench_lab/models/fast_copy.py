"""The fast copy of a network that attacks differentiate."""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_lab.errors import said
from robustbench_lab.storage.files import say_once

TRIED = 2  # images, of noise, on which a copy must answer as its network does


def _folded_graph(network: nn.Module) -> tuple[nn.Module, list[tuple[str, str]]] | None:
    """A traced copy without the BatchNorm layers that follow a convolution, and their (convolution, BatchNorm) names.

    None, and a word of it, if the network cannot be traced.
    """
    try:
        original = copy.deepcopy(network).eval()
        graph = torch.fx.symbolic_trace(original)
    except Exception as error:  # tracing runs foreign code and may fail in any way; the plain network is always right
        _plain(network, said(error).splitlines()[0])
        return None
    modules = dict(graph.named_modules())
    calls = Counter(node.target for node in graph.graph.nodes if node.op == "call_module")
    pairs = []
    for node in graph.graph.nodes:
        norm = modules[node.target] if node.op == "call_module" else None
        if type(norm) is not nn.BatchNorm2d or norm.weight is None or norm.running_var is None:
            continue
        source = node.args[0]
        if source.op != "call_module" or len(source.users) != 1 or type(modules[source.target]) is not nn.Conv2d:
            continue
        if calls[source.target] > 1:  # its other results would be folded too
            continue
        conv = modules[source.target]
        if conv.bias is None:
            conv.bias = nn.Parameter(torch.zeros(conv.out_channels, device=conv.weight.device))
        pairs.append((source.target, node.target))
        node.replace_all_uses_with(source)
        graph.graph.erase_node(node)
    graph.graph.lint()
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph, pairs


def _plain(network: nn.Module, reason: str) -> None:
    """Say that a network is searched as it is."""
    backbone = getattr(network, "backbone", network)
    name = type(getattr(backbone, "module", backbone)).__name__
    say_once(f"attacks differentiate {name} as it is, without the faster copy that folds BatchNorm: torch.fx cannot trace it ({reason})")


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer outside any autocast: an attack compares logits that differ by less than bf16 resolves."""
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.to(layer.weight.dtype), layer.weight, layer.bias)


class FastCopy(nn.Module):
    """A copy of a network, for searches: BatchNorm folded into the convolutions, channels-last, optionally bf16 and compiled.

    It computes the eval-mode function of the network with frozen parameters, up to rounding; the verdict never falls on it. `refresh`
    copies the weights anew, which costs far less than one forward pass.
    decides, stochastic, samples, draw, own_loss: what attacks ask of a model (attacks.base.Attacked).
    """

    decides = False
    stochastic = False
    samples = 1

    def __init__(self, graph: nn.Module, pairs: list[tuple[str, str]], own_loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.graph = graph
        self.pairs = pairs
        self.run: nn.Module | Callable[[Tensor], Tensor] = graph
        self.own_loss = own_loss
        self.dtype = torch.float32
        self.memory_format = torch.contiguous_format
        self.device_type = "cpu"

    @classmethod
    def of(
        cls,
        network: nn.Module,
        own_loss: Callable[[Tensor, Tensor], Tensor],
        precision: str,
        channels_last: bool,
        compiled: bool,
        image_shape: Sequence[int] | None = None,
    ) -> FastCopy | None:
        """A copy of a network that draws nothing; None for one that cannot be traced.

        image_shape: [C, H, W] of what it takes, where that is known: then a copy that answers otherwise than its network is none.
        """
        folded = _folded_graph(network)
        if folded is None:
            return None
        fast = cls(*folded, own_loss)
        try:
            fast.refresh(network)
        except KeyError as error:  # a tensor that is in no state_dict: the plain network is always right
            _plain(network, f"its tensor {error} is not kept with its weights")
            return None
        if image_shape is not None and not fast._answers_as(network, image_shape):
            _plain(network, "the copy answers otherwise")
            return None
        fast.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        fast.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        for module in fast.graph.modules():
            if isinstance(module, nn.Conv2d):  # the rest stays in float32: FM's distances, say, are differences of near numbers
                module.to(fast.dtype)
            elif type(module) is nn.Linear:
                module.forward = functools.partial(_linear, module)  # type: ignore[method-assign]
        fast.graph.to(memory_format=fast.memory_format).requires_grad_(False).eval()  # type: ignore[call-overload]
        fast.device_type = next(network.parameters()).device.type
        fast.run = torch.compile(fast.graph, dynamic=False) if compiled else fast.graph
        fast.refresh(network)
        return fast

    @torch.no_grad()
    def _answers_as(self, network: nn.Module, image_shape: Sequence[int]) -> bool:
        """Whether the graph and its network, in eval mode, give the same on images of noise, up to rounding."""
        device = next(network.parameters(), torch.empty(0)).device
        noise = torch.rand((TRIED, *image_shape), generator=torch.Generator().manual_seed(0)).to(device)
        modes = [(module, module.training) for module in network.modules()]
        try:
            expected, found = network.eval()(noise), self.graph.eval()(noise)
        except RuntimeError:  # no images for it, and no question
            return True
        finally:
            for module, mode in modes:
                module.training = mode
        return torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max().clamp(min=1e-6)), equal_nan=True)

    @torch.no_grad()
    def refresh(self, network: nn.Module) -> None:
        """Take over the network's current weights."""
        source = {**dict(network.named_buffers()), **network.state_dict(keep_vars=True)}
        target = dict(self.graph.state_dict(keep_vars=True))
        for conv, norm in self.pairs:
            scale = source[f"{norm}.weight"] * (source[f"{norm}.running_var"] + network.get_submodule(norm).eps).rsqrt()
            target.pop(f"{conv}.weight").copy_(source[f"{conv}.weight"] * scale.view(-1, 1, 1, 1))
            shift = source[f"{norm}.bias"] - source[f"{norm}.running_mean"] * scale
            bias = source.get(f"{conv}.bias")
            target.pop(f"{conv}.bias").copy_(shift if bias is None else shift + bias * scale)
        for name, tensor in target.items():
            tensor.copy_(source[name])

    def draw(self, x: Tensor) -> Tensor:
        return self(x)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(self.device_type, self.dtype, enabled=self.dtype is torch.bfloat16):
            return self.run(x.to(torch.float32, memory_format=self.memory_format)).to(x.dtype)
