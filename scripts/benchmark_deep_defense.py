"""One step of Deep Defense beside the passes that it is made of, one by one, on its paper's networks.

Called by scripts/benchmark.py deep_defense. Networks have fresh weights, images are drawn at random, and labels are the predictions: all
images are right, as nearly all are in a fine-tuning. Columns:
    s a step   the two terms of the loss and their backward passes, and a step of SGD, through the calls that training makes
    s bare     the same passes with nothing between them: clean, forward and backward; predictions; for each iteration of DeepFool, over as
               many images as were left: a forward pass, the gradient of one logit in the images for each of nine rivals, that of one more
               with its graph, and the forward pass that asks; at last the backward pass through all that has a graph
    ratio      the first over the second
    iterations how many DeepFool took, on average over the images
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_lab.backbones.base import Backbone
from robustbench_lab.defenses.base import Batch
from robustbench_lab.defenses.deep_defense import DeepDefense
from robustbench_lab.models.defended import Classifier, Defended
from robustbench_lab.models.normalise import Normalise
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.settings.build import build
from robustbench_lab.settings.conf import compose, plain
from robustbench_lab.training.loop import backward

NETWORKS = {"deep_defense_mlp": "mnist", "deep_defense_lenet": "mnist", "deep_defense_convnet": "cifar10"}
Timed = Callable[[dict[str, Callable[[], None]]], dict[str, float]]


def deep_defense(batch_size: int, device: str, timed: Timed) -> None:
    print("| network                | s a step | s bare | ratio | iterations |")
    print("|------------------------|----------|--------|-------|------------|")
    for name, dataset in NETWORKS.items():
        step, bare, iterations = both(name, dataset, batch_size, device)
        seconds = timed({"step": step, "bare": bare})
        ratio = seconds["step"] / seconds["bare"]
        print(f"| {name:<22} | {seconds['step']:8.3f} | {seconds['bare']:6.3f} | {ratio:5.2f} | {iterations:10.2f} |")


def both(backbone: str, dataset: str, batch_size: int, device: str) -> tuple[Callable[[], None], Callable[[], None], float]:
    cfg, _ = compose("train", [f"dataset={dataset}", f"backbone={backbone}", "defense=deep_defense"])
    config = plain(cfg, "dataset", "backbone", "defense")
    defense = build(config["defense"], "defense", DeepDefense)
    shape = [config["dataset"][key] for key in ("channels", "size", "size")]
    torch.manual_seed(0)
    first = Normalise([0.5] * shape[0], [1 / 1020] * shape[0])  # to the scale of bytes, which the networks' first weights are made for
    model = Defended(Classifier(first, build(config["backbone"], "backbone", Backbone))).to(device).train()
    x = (0.5 + (torch.rand(batch_size, *shape) - 0.5) / 2).to(device)
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    ids = torch.arange(batch_size)
    rng = ImageRandom.of(ids, 0)
    batch = Batch(x, y, ids, torch.zeros_like(ids), 0, rng, rng)
    player, *_ = defense.players(model)
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.0, momentum=0.9)  # so that each turn has the same passes

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        backward(player, model, batch, "fp32")
        optimizer.step()

    sizes: list[int] = []  # of the images that were linearised, iteration by iteration

    def watch(_: nn.Module, images: tuple[Tensor]) -> None:
        if torch.is_grad_enabled():
            sizes.append(len(images[0]))

    handle = model.register_forward_pre_hook(watch)
    step()
    handle.remove()
    _, *sizes = sizes  # the clean pass
    rivals = min(defense.candidates, config["dataset"]["classes"]) - 1

    def bare() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            model(x)
        squares = torch.zeros((), device=device)
        for number, size in enumerate(sizes):
            point = x[:size].clone().requires_grad_()
            logits = model(point)
            for rival in range(rivals):
                torch.autograd.grad(logits[:, rival].sum(), point, retain_graph=True)
            chosen = torch.autograd.grad(logits[:, 0].sum(), point, create_graph=True)[0]
            squares = squares + chosen.square().sum() + logits[:, 0].sum()
            if number + 1 < defense.steps:
                with torch.no_grad():
                    model(x[:size])
        squares.backward()
        optimizer.step()

    return step, bare, sum(sizes) / batch_size
