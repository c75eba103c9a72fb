"""An evaluation, and the panel, on a model and images of a program of one's own: the engine of the command line, without its files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import numpy as np
import torch

from robustbench_lab.attacks.base import Attack
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.devices import device_name
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation.keepers.base import Evaluated, Keeper, Shown
from robustbench_lab.evaluation.loop import evaluate as judged
from robustbench_lab.evaluation.panel import Panel
from robustbench_lab.evaluation.record import Circumstances, eot_samples_of, figures_of
from robustbench_lab.evaluation.warnings import signs, warnings_of, with_signs
from robustbench_lab.knobs import check as check_knob
from robustbench_lab.knobs import one_of
from robustbench_lab.library.attacking import NamedAttack, as_came, attack_of, plain_value, protocol_of
from robustbench_lab.library.images import images_of
from robustbench_lab.library.lending import Loan, lent
from robustbench_lab.library.result import Checked, Result
from robustbench_lab.progress import unseen
from robustbench_lab.settings.build import build
from robustbench_lab.settings.conf import with_fractions
from robustbench_lab.settings.standalone import choice
from robustbench_lab.threats import NORMS, Budget

Look = bool | str | Mapping[str, Any]

PROBABILITIES = "the model returns probabilities, not logits: a second softmax flattens every loss; say gives='probabilities'"


def evaluate(
    model: Any, x: Any, y: Any = None, attack: str | NamedAttack | Attack = "autoattack", norm: str = "linf", eps: float | None = None, *,
    batch_size: int | None = None, seed: int = 0, draws: int | None = None, eot_samples: int | None = None, panel: Look = True,
    keep_x_adv: bool = False, ids: Any = None, output: str | int | None = None, gives: str = "logits", device: str | None = None,
    progress: bool = True,
) -> Result:  # fmt: skip
    """How robust a model is on these images: the verdicts of `python -m robustbench_lab evaluate`, for any module.

    model: a torch.nn.Module, images [B, C, H, W] in [0, 1] to logits [B, K], normalisation inside; or what `load_run` gives.
    x, y: tensors or arrays, or a DataLoader or Dataset as x alone (library/images.py).
    attack: a name of conf/attack/, or `lab.attack("pgd", steps=20)`. norm, eps: the ball, in units of the pixel range; eps=None: that of
    conf/budget/<norm>.yaml. batch_size, draws, eot_samples: as in conf/evaluate.yaml where they are None; the last two count for a model
    whose output is random, which two passes over the first batch tell. seed, ids: of the random numbers, which belong to images: the
    positions, unless ids says their numbers.
    panel: whether signs of hidden gradients are looked for, or which panel of conf/panel/ does, or other values for knobs of the usual
    one: {"images": 50}. keep_x_adv: keep the examples.
    output: which part counts of what the model returns, an attribute, a key or a position. gives: logits, or probabilities, of which the
    logarithm is attacked. device: where a copy of the model works; None: where it lies, and batches of x go there. progress: show a bar.
    The model, the program's random numbers and torch's switches are left as they were. What is not asked again is not kept: each call
    searches anew.
    Raises LabError, with what to do, for models, images and knobs that are not as described.
    """
    how, budget = attack_of(attack), _budget(norm, eps)
    how.search.check(budget)
    images = images_of(x, y, ids)
    budget.check(images.shape, "budget")
    kept = Kept(images) if keep_x_adv else None
    protocol = protocol_of(seed, batch_size, draws, eot_samples, keepers=[kept] if kept else [])
    look = _panel(panel, budget, "default")
    with _bars(progress), lent(model, images, protocol.batch_size, seed=seed, output=output, gives=gives, device=device) as loan:
        outcome = judged(loan.defended, loan.defended, loan.images, how.search, budget, protocol)
        facts = None if look is None else look.run(loan.defended, loan.images, budget, protocol)
    random, names = loan.defended.stochastic, [name for name, _ in how.search.stages()]
    samples = eot_samples_of(how.search, protocol, random)
    made = Circumstances(loan.classes, random, samples, device_name(loan.images.device))
    figures = figures_of(outcome, names, budget.norm, protocol.draws, made)
    record = {
        **figures, "source": None, "choices": {"attack": how.name},
        "config": {
            "budget": {"norm": budget.norm, "eps": budget.eps}, "threat_model": {"sees": "defended"}, "verdict_draws": protocol.draws,
        },
    }  # fmt: skip
    record["warnings"] = [*_of_the_model(loan), *warnings_of(record, loan.classes, random)]
    if look is not None and facts is not None:
        record["warnings"] = with_signs(look, facts, record, dict(zip(outcome.ids.tolist(), outcome.robust.tolist(), strict=True)))
        facts = {name: entry for name, entry in facts.items() if name not in ("ids", "right")}
    asked = {"seed": seed, "batch_size": protocol.batch_size, "gives": gives, "config": dict(how.config), "device": made.device}
    return Result(
        attack=how.name, norm=budget.norm, eps=budget.eps, clean=outcome.clean, robust=outcome.robust, right=outcome.right,
        broken_by=np.array([*names, ""])[outcome.broken_by], distance=outcome.distance, figures=figures, random_output=random, asked=asked,
        warnings=record["warnings"], panel=facts, x_adv=None if kept is None else as_came(kept.x_adv, x),
    )  # fmt: skip


def check(
    model: Any, x: Any, y: Any = None, norm: str = "linf", eps: float | None = None, *, panel: Look = "full",
    batch_size: int | None = None, seed: int = 0, draws: int | None = None, eot_samples: int | None = None,
    output: str | int | None = None, gives: str = "logits", device: str | None = None, progress: bool = True,
) -> Checked:  # fmt: skip
    """Look for signs of hidden gradients: `python -m robustbench_lab check`, for any module. The knobs are those of `evaluate`."""
    budget = _budget(norm, eps)
    images = images_of(x, y)
    budget.check(images.shape, "budget")
    look = _panel(panel, budget, "full")
    if look is None:
        raise LabError(f"norm: expected linf or l2 and a finite eps above 0, in which the panel looks, got {norm} {budget.eps:g}")
    protocol = protocol_of(seed, batch_size, draws, eot_samples)
    with _bars(progress), lent(model, images, protocol.batch_size, seed=seed, output=output, gives=gives, device=device) as loan:
        facts = look.run(loan.defended, loan.images, budget, protocol)
    own = _of_the_model(loan)
    found = [*own, *(sign for sign in signs(look, facts) if sign["code"] not in {one["code"] for one in own})]
    figures = {name: entry for name, entry in facts.items() if name not in ("ids", "right")}
    return Checked(budget.norm, budget.eps, facts["n"], facts["accuracy"], found, figures)


class Kept(Keeper):
    """What the attack made of every image, float32 [N, C, H, W], where the images are."""

    name, file = "kept", "kept.npz"

    def __init__(self, images: ImageSet) -> None:
        where = getattr(images, "images", images.labels).device
        self.x_adv = torch.zeros((len(images), *images.shape), device=where)

    def begin(self, evaluated: Evaluated) -> None:
        """There is nothing to look up."""

    def empty(self) -> dict[str, np.ndarray]:
        return {}

    def keep(self, shown: Shown) -> None:
        self.x_adv[torch.from_numpy(shown.rows).to(self.x_adv.device)] = shown.x_adv.detach().to(self.x_adv.device, torch.float32)


def _budget(norm: str, eps: Any) -> Budget:
    check_knob("norm", norm, Annotated[str, one_of(NORMS)])
    return Budget(norm, choice("budget", norm)["eps"] if eps is None else with_fractions(plain_value(eps), "eps"))


def _panel(given: Look, budget: Budget, usual: str) -> Panel | None:
    """The panel of this name, or the usual one, with other values for some of its knobs; None where none is asked for, and where there is
    none: in l0, or without a ball."""
    if given is False or given == "none" or budget.norm == "l0" or not 0 < budget.eps < math.inf:
        return None
    knobs = plain_value(given) if isinstance(given, Mapping) else {}
    panel = build(choice("panel", given if isinstance(given, str) else usual, knobs), "panel", Panel)
    panel.check(budget)
    return panel


def _of_the_model(loan: Loan) -> list[dict[str, Any]]:
    return [{"code": "probabilities", "message": PROBABILITIES}] if loan.probabilities else []


@contextmanager
def _bars(shown: bool) -> Iterator[None]:
    if shown:
        yield
    else:
        with unseen():
            yield
