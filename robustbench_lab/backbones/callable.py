"""Any network that a callable makes, such as torchvision.models.resnet50."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from robustbench_lab.backbones.base import Backbone, check_problem
from robustbench_lab.errors import LabError, said
from robustbench_lab.knobs import BY_NAME, require

FETCHED = ("weights", "pretrained", "weights_backbone")  # what makes a function of torchvision fetch weights that no run would be named by


class CallableNetwork(Backbone):
    """A network that somebody's function or class makes: images [B, C, H, W], normalised or as it wants them, to logits [B, K].

    call, arguments: what makes it. output: which part of what it returns, where that is not one tensor: an attribute, a key or a position.
    gives: logits, or probabilities, of which the softmax is taken away where it is a module of its own at the end, and the logarithm taken
    where it is not (then no attack sees below the smallest float).
    `head` is its last linear layer, where that makes the logits, and `stages` are its own children, in the order in which they run.
    Limits: `stages` and `features` run the whole network; a defense that replaces modules finds those that are modules.
    Raises LabError for a callable that returns no module, or one whose passes do not give what was asked: each is tried once, on two grey
    images of the dataset's size.
    """

    def __init__(
        self,
        classes: int,
        channels: int,
        image_size: int,
        call: Annotated[Callable[..., nn.Module], BY_NAME],
        arguments: Mapping[str, Any] | None,
        output: str | int | None,
        gives: Literal["logits", "probabilities"],
    ) -> None:
        check_problem(classes, channels, image_size)
        nn.Module.__init__(self)
        self.output = output
        self.gives = gives
        self.called = f"{call.__module__}.{call.__qualname__}"
        self.module = _made(call, dict(arguments or {}))
        self.logarithm = gives == "probabilities"
        self._head: str | None = None
        self._try(classes, (channels, image_size, image_size))

    def _try(self, classes: int, shape: tuple[int, int, int]) -> None:
        """One pass over two images: what it returns, and which modules made that."""
        ran: list[tuple[str, nn.Module, Any]] = []
        x = torch.linspace(0, 1, 2).view(2, 1, 1, 1).expand(2, *shape).contiguous()
        names = {module: name for name, module in self.module.named_modules()}
        with _watched(self.module, lambda module, given, result: ran.append((names[module], module, result))):
            y = self._pass(x, shape)
        require(
            y.ndim == 2 and len(y) == 2, "backbone.output", f"one row for each image, [2, {classes}], from {self.called}", list(y.shape)
        )
        if y.shape[1] != classes:
            remedy = "backbone.arguments={num_classes: ...} may set it, or another dataset has as many"
            raise LabError(f"dataset.classes: {self.called} gives {y.shape[1]} classes, the dataset has {classes}; {remedy}")
        rows = bool((y >= 0).all() and (y <= 1).all() and ((y.sum(dim=1) - 1).abs() < 1e-3).all())
        if self.gives == "logits" and rows:
            raise LabError(
                f"backbone.gives: expected logits from {self.called}, got rows that sum to one: probabilities, whose softmax hides "
                "gradients; say output=probabilities"
            )
        require(
            self.gives == "logits" or rows, "backbone.gives", f"probabilities from {self.called}, as asked", "rows that do not sum to one"
        )
        for name, module, result in ran:
            if isinstance(module, nn.Softmax) and result is y and name:
                self.module.set_submodule(name, nn.Identity())
                self.logarithm = False
        layers = [(name, module, result) for name, module, result in ran if isinstance(module, nn.Linear)]
        if layers and layers[-1][1].out_features == classes:
            self._head = layers[-1][0]

    def _pass(self, x: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """Raises LabError where the network cannot take such images, or lies elsewhere."""
        devices = {str(tensor.device) for tensor in [*self.module.parameters(), *self.module.buffers()]} - {"cpu"}
        require(not devices, "backbone.call", f"a module on the CPU from {self.called} (device= says where it runs)", ", ".join(devices))
        training = [(module, module.training) for module in self.module.modules()]
        try:
            with torch.no_grad():
                return self.eval()._picked(self.module(x))
        except LabError:
            raise
        except Exception as error:  # whatever somebody's forward raises
            remedy = "choose a dataset, or dataset.size, whose images it takes"
            raise LabError(f"dataset.size: {self.called} cannot take images of shape {list(shape)}: {said(error)}; {remedy}") from error
        finally:
            for module, mode in training:
                module.training = mode
            self.training = True

    def _picked(self, returned: Any) -> Tensor:
        found = part(returned, self.output)
        if not isinstance(found, Tensor):
            expected = f"what chooses one tensor, {parts_of(returned)}, of what {self.called} returns"
            raise LabError(f"backbone.output: expected {expected}, got {self.output!r}")
        return found

    def forward(self, x: Tensor) -> Tensor:
        y = part(self.module(x), self.output)
        return y.clamp(min=torch.finfo(y.dtype).tiny).log() if self.logarithm else y

    @property
    def head(self) -> nn.Module:  # type: ignore[override]
        if self._head is None:
            raise LabError(
                f"backbone.call: expected a network that ends in a linear layer, which this defense or figure needs, got {self.called}"
            )
        return self.module.get_submodule(self._head)

    def replace_head(self, module: nn.Module) -> None:
        assert self.head is not None
        self.module.set_submodule(str(self._head), module)

    @property
    def feature_size(self) -> int:
        return self.head.in_features  # type: ignore[return-value]

    def features(self, x: Tensor) -> Tensor:
        read: list[Tensor] = []
        with _watched(self.head, lambda module, given, result: read.append(given[0])):
            self.module(x)
        return read[-1].flatten(1)

    def stages(self, x: Tensor) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = {}
        names = {child: name for name, child in self.module.named_children()}
        with _watched(names, lambda module, given, result: outputs.update({names[module]: result})):
            self.module(x)
        return {name: result for name, result in outputs.items() if isinstance(result, Tensor)}


def _made(call: Callable[..., nn.Module], arguments: dict[str, Any]) -> nn.Module:
    name = f"{call.__module__}.{call.__qualname__}"
    for argument in FETCHED:
        if call.__module__.startswith("torchvision.") and arguments.get(argument):
            raise LabError(
                f"backbone.arguments.{argument}: expected none: weights are a file that the run is named by; save them once and name the "
                "file with training=imported training.weights=FILE"
            )
    try:
        inspect.signature(call).bind(**arguments)
    except TypeError as error:
        raise LabError(f"backbone.arguments: {name} does not take these: {error}; it takes {inspect.signature(call)}") from error
    try:
        module = call(**arguments)
    except Exception as error:  # whatever somebody's code raises
        raise LabError(f"backbone.call: {name} made no network: {said(error)}") from error
    require(isinstance(module, nn.Module), "backbone.call", f"a torch.nn.Module from {name}", type(module).__name__)
    return module


def part(returned: Any, output: str | int | None) -> Any:
    """What counts, of what a module returned: an attribute, or what stands at a key or a position; None where there is no such part."""
    if output is None:
        return returned
    named = isinstance(output, str) and not isinstance(returned, Mapping)  # of a tuple's fields, too
    try:
        if isinstance(returned, Mapping | list | tuple) and not named:
            return returned[output]  # type: ignore[index]
        return getattr(returned, str(output), None)
    except (KeyError, IndexError, TypeError):
        return None


def parts_of(returned: Any) -> str:
    """How the parts of what a module returned are chosen."""
    if isinstance(returned, Mapping):
        return f"one of {', '.join(map(repr, returned))}"
    if isinstance(returned, list | tuple):
        fields = getattr(returned, "_fields", ())
        return f"from 0 to {len(returned) - 1}" + (f" ({', '.join(fields)})" if fields else "")
    if isinstance(returned, Tensor):
        return "none (it is one tensor)"
    return f"one of the attributes {', '.join(vars(returned))}" if hasattr(returned, "__dict__") else f"of a {type(returned).__name__}"


@contextmanager
def _watched(modules: Any, see: Callable[[nn.Module, Any, Any], Any]) -> Iterator[None]:
    """Let `see` look at each pass of a module and those within it, or of each of a mapping's keys."""

    def hook(module: nn.Module, given: Any, result: Any) -> None:
        see(module, given, result)

    handles = [module.register_forward_hook(hook) for module in (modules.modules() if isinstance(modules, nn.Module) else modules)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
