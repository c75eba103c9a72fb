"""The clauses of a backbone (backbones.base.Backbone), with 2, 3, 4 and 10 classes, 1 and 3 channels, small and usual images.

Of a network that somebody else's callable makes (backbones.callable.CallableNetwork) they ask what holds whatever is inside. A density of
images has clauses of its own (contract/densities.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, fx, nn

from robustbench_lab.backbones.base import Backbone
from robustbench_lab.backbones.callable import CallableNetwork
from robustbench_lab.backbones.density import Density
from robustbench_lab.contract import densities
from robustbench_lab.contract.clause import Clause
from robustbench_lab.contract.trying import clause_of, demand, refusal
from robustbench_lab.errors import LabError
from robustbench_lab.settings.alone import alone
from robustbench_lab.settings.build import build, named

PROBLEMS = [(2, 1, 8, 1), (3, 1, 28, 2), (10, 3, 32, 1)]  # classes, channels, size, images in the batch
USUAL = [(3, 32), (3, 64), (3, 224), (1, 28), (1, 32)]  # channels and size: the first that the network takes
WRONG = [("size", 0), ("size", 32.5), ("channels", 0), ("classes", 1)]

Make = Callable[[float, float, float], Backbone]  # classes, channels and size to the choice that is built for them


def clauses(choice: str, words: Sequence[str] = ()) -> Iterator[Clause]:
    clause, make = clause_of(f"backbone={choice}"), functools.partial(made, choice, words)
    target = named(alone("backbone", choice, words)["_target_"], "backbone._target_")
    if isinstance(target, type) and issubclass(target, Density):
        yield from densities.clauses(clause, functools.partial(made_density, choice, words))
        return
    ours = not (isinstance(target, type) and issubclass(target, CallableNetwork))  # not somebody else's inside
    for problem in PROBLEMS:
        yield clause(maps_images_to_logits_or_says_why_not, make, *problem, case="-".join(map(str, problem)))
    yield clause(maps_usual_images_to_logits, make)
    yield clause(learns_with_every_parameter, make)
    if ours:
        yield clause(has_parts_that_can_be_read_and_replaced, make)
        yield clause(has_activations_used_once_and_never_in_place, make)
        yield clause(gives_its_stages_in_order, make)
    for key, value in WRONG:
        yield clause(refuses_a_wrong_problem, make, key, value, case=f"{key}={value}")


def made(choice: str, words: Sequence[str], classes: float, channels: float, size: float) -> Backbone:
    config = alone("backbone", choice, words, dataset=f"{{classes:{classes},channels:{channels},size:{size}}}")
    return build(config, "backbone", Backbone)


def made_density(choice: str, words: Sequence[str], channels: float, size: float) -> Density:
    config = alone("backbone", choice, words, dataset=f"{{classes:10,channels:{channels},size:{size}}}")
    return build(config, "backbone", Density)


def usual(make: Make, classes: int = 10, batch: int = 2) -> tuple[Backbone, Tensor]:
    """The network for the first usual images that it takes, and such images [batch, C, H, W]."""
    refused = []
    for channels, size in USUAL:
        try:
            return make(classes, channels, size), torch.rand(batch, channels, size, size)
        except LabError as error:
            refused.append(str(error))
    raise AssertionError(f"no usual images are taken: {'; '.join(dict.fromkeys(refused))}")


def with_lived_in_norms(model: Backbone) -> Backbone:
    """Give BatchNorm statistics and weights that are not the identity."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


def maps_images_to_logits_or_says_why_not(make: Make, classes: int, channels: int, size: int, batch: int) -> None:
    """Images [B, C, H, W] become finite float32 logits [B, K], head(features(x)), with a gradient to each image; a problem that the network
    cannot take is refused as LabError that names dataset.size, dataset.channels or dataset.classes."""
    try:
        model = make(classes, channels, size)
    except LabError as error:
        key = str(error).partition(":")[0]
        demand(key in ("dataset.size", "dataset.channels", "dataset.classes"), f"expected the dataset's key that does not fit, got {error}")
        return
    demand_logits(model, torch.rand(batch, channels, size, size), classes)


def maps_usual_images_to_logits(make: Make) -> None:
    """Some usual images are taken: colour of 32, 64 or 224 pixels, or grey of 28 or 32; their logits are as above."""
    model, x = usual(make, classes=4)
    demand_logits(model, x, 4)


def demand_logits(model: Backbone, x: Tensor, classes: int) -> None:
    with_lived_in_norms(model).eval()
    logits = model(x.requires_grad_())
    demand(logits.shape == (len(x), classes), f"expected logits [{len(x)}, {classes}], got {list(logits.shape)}")
    demand(logits.dtype == torch.float32, f"expected float32, got {logits.dtype}")
    demand(logits.isfinite().all(), "a logit is not finite")
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), x, retain_graph=True)
    demand((gradient.flatten(1).abs().sum(1) > 0).all(), "an image gets no gradient")
    if isinstance(model, CallableNetwork):
        return
    features = model.features(x)
    demand(
        features.shape == (len(x), model.feature_size), f"expected features [{len(x)}, {model.feature_size}], got {list(features.shape)}"
    )
    demand(torch.equal(model.head(features), logits), "head(features(x)) differs from the logits")
    demand(torch.allclose(fx.symbolic_trace(model)(x), logits), "traced by torch.fx, the network gives other logits")


def learns_with_every_parameter(make: Make) -> None:
    """A batch of two gives each parameter a gradient that is not zero, in train mode."""
    model, x = usual(make)
    model(x).logsumexp(1).sum().backward()
    for path, parameter in model.named_parameters():
        demand(parameter.grad is not None, f"{path} gets no gradient")
        demand(parameter.grad.abs().sum() > 0, f"{path} gets a gradient of zeros")  # type: ignore[union-attr]


def has_parts_that_can_be_read_and_replaced(make: Make) -> None:
    """A Backbone: `body`, an nn.Sequential of named stages, `pool`, and `head`, an nn.Linear."""
    model, _ = usual(make)
    demand(isinstance(model, Backbone), f"expected a Backbone, got {type(model).__name__}")
    demand(isinstance(model.head, nn.Linear), f"head must be nn.Linear, got {type(model.head).__name__}")
    demand(isinstance(model.body, nn.Sequential), f"body must be nn.Sequential, got {type(model.body).__name__}")
    numbered = [child for child, _ in model.body.named_children() if child.isdigit()]
    demand(not numbered, f"a stage has a number in place of a name: {numbered}; backbones.base.sequence names them")


def has_activations_used_once_and_never_in_place(make: Make) -> None:
    """Activations are nn.ReLU modules, one for each use and never in place, so that a defense can replace them."""
    model, _ = usual(make)
    activations = {path: module for path, module in model.named_modules() if isinstance(module, nn.ReLU)}
    demand(activations, "there is no nn.ReLU")
    in_place = [path for path, module in activations.items() if module.inplace]
    demand(not in_place, f"works in place: {in_place}")
    nodes = list(fx.symbolic_trace(model).graph.nodes)
    called = [str(node.target) for node in nodes if node.op == "call_module" and node.target in activations]
    demand(sorted(called) == sorted(activations), f"each nn.ReLU must be used once, but those that run are {called}")
    functions = [str(node.target) for node in nodes if node.op in ("call_function", "call_method") and "relu" in str(node.target)]
    demand(not functions, f"an activation is a function, which nothing can replace: {functions}")


def gives_its_stages_in_order(make: Make) -> None:
    """`stages(x)` gives the output of each child of `body`, by its name and in order; head(pool(the last)) are the logits."""
    model, x = usual(make)
    with_lived_in_norms(model).eval()
    stages, names = model.stages(x), [stage for stage, _ in model.body.named_children()]
    demand(list(stages) == names, f"expected the stages {names}, got {list(stages)}")
    ran: dict[str, Tensor] = {}
    for stage, module in model.body.named_children():
        module.register_forward_hook(lambda module, inputs, output, stage=stage: ran.update({stage: output}))
    demand(torch.equal(model.head(model.pool(list(stages.values())[-1])), model(x)), "head(pool(last stage)) differs from the logits")
    other = [stage for stage in stages if not torch.equal(stages[stage], ran[stage])]
    demand(not other, f"not what the network computes: {other}")


def refuses_a_wrong_problem(make: Make, key: str, value: float) -> None:
    """Images of no size, half a pixel or no channel, and a single class, are refused as LabError that names the dataset's key."""
    problem = {"classes": 10, "channels": 3, "size": 32, key: value}
    with refusal(f"dataset.{key}={value}; backbones.base.check_problem raises it") as told:
        make(**problem)  # type: ignore[call-arg]
    keys = (f"dataset.{key}", f"backbone.{key}", f"backbone.image_{key}")  # by its type, before the constructor sees it
    demand(told[0].partition(":")[0] in keys, f"dataset.{key}={value} is refused without its name: {told[0]}")
