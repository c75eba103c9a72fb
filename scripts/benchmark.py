#!/usr/bin/env python3
"""Time what a user waits for, side by side with what they would write or pick instead, in one process, as ratios.

    python scripts/benchmark.py train [--backbone resnet20] [--batch 128] [--steps 10] [--repeats 12] [--device cpu] [--compile]
    python scripts/benchmark.py attacks [--only pgd20 square ...] [--scale 1] [--repeats 2] [--device cpu]
    python scripts/benchmark.py distances [--scale 1] [--repeats 1] [--device cpu]
    python scripts/benchmark.py deep_defense [--batch 100] [--repeats 5] [--device cpu]
    python scripts/benchmark.py fronts [--scale 1] [--repeats 1] [--device cpu]

train: one step of PGD adversarial training (linf 8/255, `--steps` steps of 2/255), on images of CIFAR-10's size and random labels: speed
does not depend on what they show. Rows:
    plain loop     the loop that users write today: PGD in float32, channels-first, through the model in train mode; then one training pass
    ours, ...      defense=adversarial_training through the same calls as the runner makes, in the precisions that its recipes offer
    floor, ...     what no implementation of the search can go below with that network: `steps` bare input-gradient passes and one
                   parameter-gradient pass; no projection, no random numbers, no refreshed weights
Variants take turns, and the fastest of the repeats counts, so that another program on the machine disturbs all alike.
A second table has a step of each defense as it is when every part of it has begun, through the same calls, in fp32: its forward passes,
those of the search among them, and how many times the undefended step (one forward pass and its backward pass) it takes for each of them.
Beside it, the forward pass alone, of one draw: on a CPU, normal numbers are drawn one after the other, and noise on every map shows.

attacks: scripts/benchmark_attacks.py says what is timed against what.

distances: the exact distance of 10,000 images of MNIST's size, pixels drawn at random, to the nearest of 60,000 (--scale multiplies both),
as metric=[training_set_distance] finds it, beside scikit-learn's brute-force search.

deep_defense: a step of defense=deep_defense beside the passes that it is made of: scripts/benchmark_deep_defense.py.

fronts: pre-processing beside the usual libraries: scripts/benchmark_fronts.py.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from robustbench_lab.backbones.base import Backbone
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.defenses.base import Batch, Defense
from robustbench_lab.metrics.nearest_neighbour import distance_to_training_set
from robustbench_lab.models.defended import Classifier, Defended, full_precision, searched_kernels
from robustbench_lab.models.normalise import FirstLayer
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.settings.build import build
from robustbench_lab.settings.conf import compose, plain
from robustbench_lab.storage.provenance import provenance
from robustbench_lab.training.loop import backward

EPS, STEP = 8 / 255, 2 / 255
DEFENSES = (
    "standard", "adversarial_training", "adversarial_training_pni", "fm", "pni", "pni_input", "pni_activation_a", "pni_activation_b",
    "learn2perturb", "adv_bnn", "rse",
)  # fmt: skip
EPOCH = 100  # late enough for everything that defenses begin later


def network(args: argparse.Namespace) -> Defended:
    cfg, _ = compose("train", ["dataset=cifar10", f"backbone={args.backbone}"])
    config = plain(cfg, "dataset", "backbone")
    torch.manual_seed(0)
    normalise = build(config["dataset"]["normalise"], "dataset.normalise", FirstLayer)
    return Defended(Classifier(normalise, build(config["backbone"], "backbone", Backbone), (3, 32, 32))).to(args.device).train()


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4)


def plain_loop(args: argparse.Namespace, x: Tensor, y: Tensor) -> Callable[[], None]:
    """Adversarial training as most repositories have it."""
    model = network(args)
    optimizer = optimizer_of(model)

    def step() -> None:
        delta = torch.empty_like(x).uniform_(-EPS, EPS)
        delta = (x + delta).clamp(0, 1) - x
        for _ in range(args.steps):
            delta.requires_grad_()
            loss = F.cross_entropy(model(x + delta), y)
            gradient = torch.autograd.grad(loss, delta)[0]
            delta = (delta.detach() + STEP * gradient.sign()).clamp(-EPS, EPS)
            delta = (x + delta).clamp(0, 1) - x
        optimizer.zero_grad()
        F.cross_entropy(model(x + delta), y).backward()
        optimizer.step()

    return step


def ours(args: argparse.Namespace, x: Tensor, y: Tensor, precision: str, attack_precision: str) -> Callable[[], None]:
    """What fit() does in a step of defense=adversarial_training."""
    overrides = ["dataset=cifar10", "defense=adversarial_training", f"defense.attack.steps={args.steps}"]
    defense = build(plain(compose("train", overrides)[0], "defense")["defense"], "defense", Defense)
    model = network(args).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if args.compile:
        model.network.compile(dynamic=False)
    model.attach_fast_copy(attack_precision, channels_last=True, compiled=args.compile)
    optimizer = optimizer_of(model)
    ids = torch.arange(len(x), device=x.device)
    rng = ImageRandom.of(ids, 0, "train", 0)
    batch = Batch(x, y, ids, torch.zeros_like(ids), 0, rng, rng)
    (player,) = defense.players(model)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        backward(player, model, batch, precision)
        optimizer.step()

    return step


def floor(args: argparse.Namespace, x: Tensor, y: Tensor, precision: str, attack_precision: str, fast: bool) -> Callable[[], None]:
    """Bare gradient passes: through the plain network in eval mode, or through the fast copy."""
    model = network(args)
    target: nn.Module = network(args).eval().requires_grad_(False)
    if fast:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if args.compile:
            model.network.compile(dynamic=False)
        model.attach_fast_copy(attack_precision, channels_last=True, compiled=args.compile)
        assert model.fast_copy is not None
        target = model.fast_copy

    def step() -> None:
        for _ in range(args.steps):
            image = x.detach().requires_grad_()
            torch.autograd.grad(F.cross_entropy(target(image), y), image)
        with torch.autocast(args.device, torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        model.zero_grad()

    return step


def step_of(args: argparse.Namespace, defense_name: str, x: Tensor, y: Tensor) -> tuple[Callable[[], None], Callable[[], None], int]:
    """What fit() does in a step of a defense, with `--steps` steps of search; a forward pass of the model's that averages no draws; and how
    many such passes the step has."""
    cfg, _ = compose("train", ["dataset=cifar10", f"backbone={args.backbone}", f"defense={defense_name}"])
    config = plain(cfg, "dataset", "backbone", "defense")
    if "attack" in config["defense"]:
        config["defense"]["attack"]["steps"] = args.steps
    defense = build(config["defense"], "defense", Defense)
    torch.manual_seed(0)
    normalise = build(config["dataset"]["normalise"], "dataset.normalise", FirstLayer)
    backbone = config["backbone"]
    model = defense.build(lambda: Classifier(normalise, build(backbone, "backbone", Backbone), (3, 32, 32))).to(args.device).train()
    model.to(memory_format=torch.channels_last)
    ids = torch.arange(len(x), device=x.device)
    defense.prepare(model, ImageSet(x, y, ids), None)
    if args.compile:
        model.network.compile(dynamic=False)
    model.attach_fast_copy("fp32", channels_last=True, compiled=args.compile)
    players = defense.players(model)
    optimizers = [torch.optim.SGD(list(player.parameters), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4) for player in players]
    rng = ImageRandom.of(ids, 0, "train", EPOCH)
    batch = Batch(x, y, ids, torch.zeros_like(ids), EPOCH, rng, rng)

    def step() -> None:
        for player, optimizer in zip(players, optimizers, strict=True):
            optimizer.zero_grad(set_to_none=True)
            backward(player, model, batch, "fp32")
            optimizer.step()
        defense.after_step(model)

    @torch.no_grad()
    def forward() -> None:
        model.eval()
        model.one_draw()(x)
        model.train()

    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    networks = [model.network, *([model.fast_copy] if model.fast_copy is not None else [])]
    handles = [module.register_forward_pre_hook(count) for module in networks]
    step()
    for handle in handles:
        handle.remove()
    return step, forward, passes


def train_defenses(args: argparse.Namespace, x: Tensor, y: Tensor) -> None:
    """Each beside a standard step of its own: torch.compile keeps only so many versions of a function, so that all at once would not do."""
    print("\n| defense                  | s a step | passes | each, times the undefended step | s forward | times the undefended one |")
    print("|--------------------------|----------|--------|---------------------------------|-----------|--------------------------|")
    for name in DEFENSES:
        if args.compile:
            torch.compiler.reset()
        both = {which: step_of(args, which, x, y) for which in dict.fromkeys(("standard", name))}
        steps = timed({which: step for which, (step, _, _) in both.items()}, args.repeats, args.device)
        forwards = timed({which: forward for which, (_, forward, _) in both.items()}, args.repeats, args.device)
        passes = both[name][2]
        each, forward = steps[name] / passes / steps["standard"], forwards[name] / forwards["standard"]
        print(f"| {name:<24} | {steps[name]:8.3f} | {passes:6} | {each:31.2f} | {forwards[name]:9.3f} | {forward:24.2f} |")


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(0)
    x = torch.rand(args.batch, 3, 32, 32, device=args.device)
    y = torch.randint(10, (args.batch,), device=args.device)
    rows = {"plain loop (fp32)": plain_loop(args, x, y)}
    for name, precisions in {"fp32": ("fp32", "fp32"), "fp32, bf16 search": ("fp32", "bf16"), "bf16": ("bf16", "bf16")}.items():
        rows[f"ours, {name}"] = ours(args, x, y, *precisions)
    rows["floor, plain network, fp32"] = floor(args, x, y, "fp32", "fp32", fast=False)
    rows["floor, fast copy, fp32"] = floor(args, x, y, "fp32", "fp32", fast=True)
    rows["floor, fast copy, bf16"] = floor(args, x, y, "bf16", "bf16", fast=True)
    with searched_kernels():
        with full_precision():  # as the runner trains
            seconds = timed(rows, args.repeats, args.device)
        if args.device == "cuda":
            seconds |= timed({"plain loop (TF32)": plain_loop(args, x, y)}, args.repeats, args.device)  # cuDNN's default
    compiled = ", ours compiled" if args.compile else ""
    print(f"# One step of PGD-{args.steps} adversarial training: {args.backbone}, batch {args.batch}{compiled}\n")
    print(f"{described(args.device)}; best of {args.repeats} turns.\n")
    base = seconds["plain loop (fp32)"]
    print("| one training step          | seconds | images/s | s per 50,000 images | times faster than the plain loop |")
    print("|----------------------------|---------|----------|---------------------|----------------------------------|")
    for name, value in seconds.items():
        print(f"| {name:<26} | {value:7.3f} | {args.batch / value:8.1f} | {50_000 / args.batch * value:19.1f} | {base / value:32.2f} |")
    with searched_kernels(), full_precision():
        train_defenses(args, x, y)


def distances(args: argparse.Namespace) -> None:
    generator = torch.Generator().manual_seed(0)
    n, m = (max(2, round(count * args.scale)) for count in (10_000, 60_000))
    x, train_images = (torch.rand(count, 1, 28, 28, generator=generator) for count in (n, m))
    found: dict[str, Tensor] = {}

    def ours() -> None:
        found["ours"] = distance_to_training_set(x.to(args.device), train_images.to(args.device)).cpu()

    def theirs() -> None:
        search = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(train_images.flatten(1).numpy())
        found["scikit-learn"] = torch.from_numpy(search.kneighbors(x.flatten(1).numpy())[0][:, 0])

    print(f"# Distance to the training set: {n:,} images against {m:,}, 28x28 pixels\n")
    print(f"{described(args.device)}; best of {args.repeats} turns.\n")
    print("| who          | seconds | times faster than scikit-learn | largest difference in distance |")
    print("|--------------|---------|--------------------------------|--------------------------------|")
    seconds = timed({"ours": ours, "scikit-learn": theirs}, args.repeats, args.device)
    apart = float((found["ours"] - found["scikit-learn"]).abs().max())
    for name, value in seconds.items():
        print(f"| {name:<12} | {value:7.2f} | {seconds['scikit-learn'] / value:30.2f} | {apart:30.1e} |")


def described(device: str) -> str:
    """The device, torch's version and the commit."""
    where = torch.cuda.get_device_name() if device == "cuda" else f"{processor()}, {torch.get_num_threads()} threads"
    return f"{where}, torch {torch.__version__}, commit {provenance(where)['commit']}"


def processor() -> str:
    """The CPU's name where the system tells it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def timed(rows: dict[str, Callable[[], None]], repeats: int, device: str) -> dict[str, float]:
    best = dict.fromkeys(rows, float("inf"))
    for turn in range(repeats + 1):  # the first turn warms up
        for name, step in rows.items():
            if device == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            step()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:
                best[name] = min(best[name], time.perf_counter() - started)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "attacks", "distances", "deep_defense", "fronts"])
    parser.add_argument("--backbone", default="resnet20")
    parser.add_argument("--batch", type=int, help="128 for train, 100 for deep_defense")
    parser.add_argument("--steps", type=int, default=10)
    repeats = "turns, of which the fastest counts: 12 for train, 5 for deep_defense, 2 for attacks, 1 for distances and fronts"
    parser.add_argument("--repeats", type=int, help=repeats)
    parser.add_argument("--only", nargs="*", default=[], help="attacks: the works to time; all without it")
    parser.add_argument("--scale", type=float, default=1.0, help="attacks, distances, fronts: what the numbers of images are multiplied by")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--compile", action="store_true", help="torch.compile ours (not the plain loop)")
    args = parser.parse_args()
    args.repeats = args.repeats or {"train": 12, "attacks": 2, "distances": 1, "deep_defense": 5, "fronts": 1}[args.what]
    args.batch = args.batch or {"deep_defense": 100}.get(args.what, 128)
    if args.what == "train":
        train(args)
    elif args.what == "distances":
        distances(args)
    elif args.what == "deep_defense":
        from benchmark_deep_defense import deep_defense  # beside this file

        print(f"# One step of Deep Defense beside its passes, one by one: batch {args.batch}\n")
        print(f"{described(args.device)}; best of {args.repeats} turns.\n")
        with full_precision():
            deep_defense(args.batch, args.device, lambda rows: timed(rows, args.repeats, args.device))
    elif args.what == "fronts":
        from benchmark_fronts import fronts  # beside this file; it needs the parity extra

        print(f"# Fronts beside the usual libraries\n\n{described(args.device)}; best of {args.repeats} turns.\n")
        with full_precision():
            fronts(args.scale, args.device, lambda rows: timed(rows, args.repeats, args.device))
    else:
        from benchmark_attacks import attacks  # beside this file; it needs the parity extra

        attacks(args.only, args.scale, args.repeats, args.device)


if __name__ == "__main__":
    main()
