"""Our attacks beside Foolbox, ART and the authors' AutoAttack: same model, images, ball and steps, in one process.

Called by scripts/benchmark.py attacks. The models are trained runs, found under the output folder or trained once (on 2 cores: 6 minutes
for MNIST, 8 for the undefended CIFAR-10 net, 20 for the adversarially trained one). Images are test images that the model gets right, the
same for everyone. Columns:
    robust     share of them that the attack left right, judged on the plain model in full precision
    distance   mean distance of the broken ones, in the work's norm
    seconds    the attack alone for peers; for us the whole evaluation of these images, with its verdict; the fastest turn counts.
               Ours in bf16 searches in that precision and judges in float32, attacking again in float32 where the two disagree; not
               for attacks that look for the smallest change, which end where the two disagree
    x fastest  how many times faster we are than the fastest peer of that work
    x floor    our seconds over those that our passes take bare: as many input gradients and forward passes of the fast copy, in full
               batches, with no projection, no random numbers and no bookkeeping
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_lab.attacks.base import Attack
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.evaluation.judging import predictions
from robustbench_lab.evaluation.loop import evaluate
from robustbench_lab.evaluation.protocol import Protocol
from robustbench_lab.models.defended import Defended, cross_entropy, full_precision
from robustbench_lab.settings.build import build
from robustbench_lab.settings.conf import compose, place_of, plain
from robustbench_lab.settings.identity import run_of
from robustbench_lab.storage.provenance import provenance
from robustbench_lab.threats import Budget
from robustbench_lab.training.making import make_run
from robustbench_lab.training.runs import load_run

Peer = Callable[["Work", Defended, Tensor, Tensor], Tensor]  # x_adv

MODELS = {
    "undefended": ["dataset=cifar10", "backbone=resnet20", "training=quick", "training.epochs=8"],
    "adversarial": [
        "dataset=cifar10", "backbone=resnet20", "defense=adversarial_training", "training=quick", "training.epochs=6",
        "defense.attack.steps=3", "defense.attack.relative_step_size=0.5",
    ],
    "mnist": [
        "dataset=mnist", "backbone=small_cnn", "defense=adversarial_training", "training=digits", "training.epochs=6",
        "training.batch_size=128",
    ],
}  # fmt: skip
NAMES = {
    "undefended": "undefended CIFAR-10 ResNet-20",
    "adversarial": "adversarially trained CIFAR-10 ResNet-20",
    "mnist": "adversarially trained MNIST net",
}


@dataclass(frozen=True, kw_only=True)
class Work:
    """One row of the table: what is attacked, how, and by whom."""

    title: str
    model: str
    images: int
    norm: str
    eps: float
    attack: Sequence[str]
    aim: float
    peers: dict[str, Peer]
    knobs: dict[str, Any] = field(default_factory=dict)


# Peers


def foolbox_attack(make: Callable[[Any, Work], Any]) -> Peer:
    def run(work: Work, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        import foolbox

        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
        eps = None if work.eps == float("inf") else work.eps
        found, clipped, _ = make(foolbox.attacks, work)(wrapped, x, y, epsilons=eps)
        return found if eps is None else clipped

    return run


def art_attack(make: Callable[[Any, Any, Work], Any], labelled: bool = True) -> Peer:
    def run(work: Work, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        from art.attacks import evasion
        from art.estimators.classification import PyTorchClassifier

        estimator = PyTorchClassifier(
            model, nn.CrossEntropyLoss(), input_shape=tuple(x.shape[1:]), nb_classes=10, clip_values=(0, 1),
            device_type="gpu" if x.is_cuda else "cpu",
        )  # fmt: skip
        found = make(evasion, estimator, work).generate(x.cpu().numpy(), y.cpu().numpy() if labelled else None)
        model.eval()
        return torch.from_numpy(found).to(x)

    return run


def autoattack(work: Work, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    from pyautoattack import AutoAttack

    adversary = AutoAttack(model, norm="Linf", eps=work.eps, version="standard", device=str(x.device), seed=0)
    return adversary.run_standard_evaluation(x, y, batch_size=len(x))[0]


def autoattack_square(work: Work, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    from pyautoattack.square import SquareAttack

    attack = SquareAttack(
        model, norm="Linf", eps=work.eps, n_queries=work.knobs["queries"], n_restarts=1, seed=0, device=str(x.device), resc_schedule=False
    )
    return attack.perturb(x, y)


def norm_of(work: Work) -> Any:
    return {"linf": np.inf, "l2": 2}[work.norm]


PGD = {
    "Foolbox": foolbox_attack(
        lambda attacks, work: attacks.LinfPGD(steps=work.knobs["steps"], rel_stepsize=work.knobs["relative_step_size"], random_start=True)
    ),
    "ART": art_attack(
        lambda evasion, estimator, work: evasion.ProjectedGradientDescent(
            estimator, norm=norm_of(work), eps=work.eps, eps_step=work.eps * work.knobs["relative_step_size"],
            max_iter=work.knobs["steps"], num_random_init=1, batch_size=work.images, verbose=False,
        )
    ),
}  # fmt: skip
DEEPFOOL = {
    "Foolbox": foolbox_attack(lambda attacks, work: attacks.L2DeepFoolAttack(steps=50, candidates=10, overshoot=0.02)),
    "ART": art_attack(
        lambda evasion, estimator, work: evasion.DeepFool(
            estimator, max_iter=50, epsilon=0.02, nb_grads=10, batch_size=work.images, verbose=False
        )
    ),
}
# ART's takes a minute per image (1,022 s for 16 of them, on 2 CPU cores): it is left out.
CARLINI_WAGNER = {
    "Foolbox": foolbox_attack(
        lambda attacks, work: attacks.L2CarliniWagnerAttack(
            binary_search_steps=work.knobs["searches"], steps=work.knobs["steps"], stepsize=0.01, initial_const=0.001, abort_early=True
        )
    ),
}
SQUARE = {
    "AutoAttack": autoattack_square,
    "ART": art_attack(
        lambda evasion, estimator, work: evasion.SquareAttack(
            estimator, norm=np.inf, eps=work.eps, max_iter=work.knobs["queries"], p_init=0.8, nb_restarts=1, batch_size=work.images,
            verbose=False,
        )
    ),
}  # fmt: skip
JSMA = {
    "ART": art_attack(
        lambda evasion, estimator, work: evasion.SaliencyMapMethod(estimator, theta=1.0, gamma=1.0, batch_size=work.images, verbose=False),
        labelled=False,  # labels are targets there; without them it draws a target for each image, as ours does
    )
}
ONE_PIXEL = {
    "ART": art_attack(lambda evasion, estimator, work: evasion.PixelAttack(estimator, th=1, es=1, max_iter=work.knobs["generations"])),
}


def pgd(steps: int, relative: float, **knobs: Any) -> Work:
    words = ["attack=pgd", f"attack.steps={steps}", f"attack.relative_step_size={relative}"]
    knobs = {"images": 256, **knobs}
    return Work(
        title=f"PGD-{steps}", norm="linf", eps=8 / 255, attack=words, peers=PGD,
        knobs={"steps": steps, "relative_step_size": relative}, **knobs,
    )  # fmt: skip


INF = float("inf")
OURS = {"ours": "fp32", "ours, search in bf16": "bf16"}
# C&W: ours looks after every 20 steps whether an image's loss still falls, Foolbox after every 10 whether the batch's does; with 10 ours
# would stop earlier than Foolbox, a little further out.
WORKS = {
    "pgd20": pgd(20, 0.25, model="undefended", aim=8),
    "pgd100": pgd(100, 0.05, model="undefended", aim=8),
    "pgd20_adversarial": pgd(20, 0.25, model="adversarial", aim=3),
    "pgd100_adversarial": pgd(100, 0.05, model="adversarial", aim=3),
    "deepfool": Work(
        title="DeepFool", model="undefended", images=128, norm="l2", eps=INF, attack=["attack=deepfool", "attack.steps=50"], aim=4,
        peers=DEEPFOOL,
    ),
    "carlini_wagner": Work(
        title="C&W, 5 searches of 100 steps", model="undefended", images=64, norm="l2", eps=INF, aim=4, peers=CARLINI_WAGNER,
        attack=["attack=carlini_wagner", "attack.searches=5", "attack.steps=100", "attack.abort_early=10"],  # as often as Foolbox looks
        knobs={"searches": 5, "steps": 100},
    ),
    "autoattack": Work(
        title="AutoAttack, standard", model="mnist", images=300, norm="linf", eps=0.3, attack=["attack=autoattack"], aim=3,
        peers={"AutoAttack": autoattack},
    ),
    "square": Work(
        title="Square, 1000 queries", model="adversarial", images=128, norm="linf", eps=8 / 255, aim=3, peers=SQUARE,
        attack=["attack=square", "attack.queries=1000"], knobs={"queries": 1000},
    ),
    "jsma": Work(
        title="JSMA, pairs, theta 1", model="mnist", images=32, norm="l0", eps=INF, attack=["attack=jsma"], aim=3, peers=JSMA
    ),
    "one_pixel": Work(
        title="One-Pixel, 10 generations", model="undefended", images=8, norm="l0", eps=1, aim=3, peers=ONE_PIXEL,
        attack=["attack=one_pixel", "attack.generations=10"], knobs={"generations": 10},
    ),
}  # fmt: skip


# Measuring


def trained(name: str, device: str) -> tuple[Defended, ImageSet]:
    """The model and its test images; trains it if there is no such run yet."""
    cfg, choices = compose("train", MODELS[name])
    run, place = run_of(cfg, choices, MODELS[name]), place_of(cfg)
    make_run(run, place)
    dataset, model, _ = load_run(run, place.output_root, torch.device(device))
    where = place.data
    data = dataset.load("test", root=Path(where["root"]), download=where["download"], workers=where["workers"]).to(device)
    return model.requires_grad_(True), data  # as a user of the peers has it


def right_ones(model: Defended, data: ImageSet, count: int) -> ImageSet:
    """The first `count` images that the model gets right."""
    first = torch.arange(min(len(data), 3 * count + 100))
    right = torch.cat([predictions(model, x) == y for x, y, _ in data.batches(first, 500)]).cpu()
    return data.subset(first[right][:count])


def timed(work: Callable[[], Any], device: str) -> tuple[float, Any]:
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    result = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


def floor(model: Defended, x: Tensor, y: Tensor, forward: int, backward: int, precision: str, device: str) -> float:
    """Seconds of so many image gradients, and forward passes beside them, through the fast copy in batches of at least 128."""
    model.attach_fast_copy(precision)
    copies = -(-128 // len(x))
    x, y = x.repeat(copies, 1, 1, 1), y.repeat(copies)
    assert model.fast_copy is not None

    def gradient() -> None:
        image = x.detach().requires_grad_()
        torch.autograd.grad(cross_entropy(model.fast_copy(image), y).sum(), image)  # type: ignore[misc]

    def alone() -> None:
        with torch.no_grad():
            model.fast_copy(x)  # type: ignore[misc]

    both, one = (min(timed(step, device)[0] for _ in range(6)) / len(x) for step in (gradient, alone))
    return backward * both + max(forward - backward, 0) * one


def measured(work: Work, scale: float, repeats: int, device: str) -> list[str]:
    """The work's lines of the table."""
    model, data = trained(work.model, device)
    chosen = right_ones(model, data, max(2, round(scale * work.images)))
    x, y, _ = next(chosen.batches(torch.arange(len(chosen)), len(chosen)))
    budget = Budget(work.norm, work.eps)
    attack = build(plain(compose("evaluate", work.attack)[0], "attack")["attack"], "attack", Attack)
    results: dict[str, tuple[float, float, float | None]] = {}
    passes: dict[str, tuple[int, int]] = {}

    def note(name: str, seconds: float, robust: float, distance: float | None) -> None:
        before = results.get(name, (float("inf"),))
        if seconds < before[0]:
            results[name] = (seconds, robust, distance)
        print(f"  {work.title}, {work.model}: {name} {seconds:.2f} s, robust {100 * robust:.2f} %, distance {distance}", file=sys.stderr)

    for _ in range(repeats):
        for name, peer in work.peers.items():
            torch.manual_seed(0)
            np.random.seed(0)  # noqa: NPY002  (ART draws from it)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                seconds, x_adv = timed(lambda peer=peer: peer(work, model, x, y), device)  # type: ignore[misc]
            still = predictions(model, x_adv.float()) == y
            distances = budget.distance(x_adv.float(), x)[~still]
            note(name, seconds, float(still.float().mean()), float(distances.mean()) if len(distances) else None)
        for name, precision in {"ours": OURS["ours"]}.items() if attack.minimal else OURS.items():
            how = Protocol(seed=0, batch_size=len(chosen), precision=precision)
            seconds, outcome = timed(lambda how=how: evaluate(model, model, chosen, attack, budget, how), device)  # type: ignore[misc]
            broken = outcome.distance[~outcome.robust]
            note(name, seconds, float(outcome.robust.mean()), float(broken.mean()) if len(broken) else None)
            passes[name] = int(outcome.forward.sum()), int(outcome.backward.sum())
    fastest = min(seconds for name, (seconds, _, _) in results.items() if name not in OURS)
    lines = []
    for name, (seconds, robust, distance) in results.items():
        ratio = f"{fastest / seconds:.1f} (aim {work.aim:g})" if name in OURS else ""
        above = f"{seconds / floor(model, x, y, *passes[name], OURS[name], device):.1f}" if name in OURS else ""
        far = "" if distance is None else f"{distance:.4f}"
        what = f"{work.title}; {NAMES[work.model]}; {work.norm}" + ("" if work.eps == INF else f" {work.eps:.4g}") + f"; n = {len(chosen)}"
        lines.append(
            f"| {what if name == next(iter(results)) else ''} | {name} | {100 * robust:.2f} | {far} | {seconds:.2f} | {ratio} | {above} |"
        )
    return lines


def attacks(only: Sequence[str], scale: float, repeats: int, device: str) -> None:
    unknown = set(only) - set(WORKS)
    if unknown:
        raise SystemExit(f"error: --only: expected some of {', '.join(WORKS)}, got {', '.join(sorted(unknown))}")
    lines = []
    with full_precision() if device == "cuda" else nullcontext():
        for name in only or WORKS:
            lines += measured(WORKS[name], scale, repeats, device)
    from benchmark import processor  # this script's caller

    where = torch.cuda.get_device_name() if device == "cuda" else f"{processor()}, {torch.get_num_threads()} threads"
    print("# Attacks beside their peers\n")
    print(f"{where}, torch {torch.__version__}, commit {provenance(where)['commit']}; best of {repeats} turns.\n")
    print("| work | who | robust (%) | mean distance | seconds | times faster than the fastest peer | times the bare passes |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(lines))
