"""Attack a finished run and write its record."""

from __future__ import annotations

import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import nn

from robustbench_lab.attacks.base import Attack, is_random
from robustbench_lab.attacks.minimal_fgsm import MinimalFGSM
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.defenses.base import Defense
from robustbench_lab.devices import device_name, device_of
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation.asked import panel_facts, panel_of
from robustbench_lab.evaluation.crafted import Crafted
from robustbench_lab.evaluation.keepers.features import Features
from robustbench_lab.evaluation.keepers.plane import SHAPE, plane_of
from robustbench_lab.evaluation.loop import evaluate
from robustbench_lab.evaluation.outcome import Examples, Outcome
from robustbench_lab.evaluation.record import record_of
from robustbench_lab.evaluation.views import Queries, attacker_view, check_view
from robustbench_lab.evaluation.warnings import compared, signs, warnings_of
from robustbench_lab.knobs import require
from robustbench_lab.metrics.measures import Measure
from robustbench_lab.models.defended import Defended
from robustbench_lab.settings.build import build
from robustbench_lab.settings.conf import current_choices, current_overrides, plain
from robustbench_lab.settings.identity import Evaluation, Run, evaluation_of, fingerprint, nearest_runs
from robustbench_lab.storage.files import locked, read_arrays, read_json, write_arrays, write_json
from robustbench_lab.storage.provenance import commit
from robustbench_lab.storage.records import (
    EXAMPLES_FILE,
    FEATURES_FILE,
    OUTCOME_FILE,
    PLANE_FILE,
    RECORD_FILE,
    RUN_FILE,
    leaving_error,
    read_record,
)
from robustbench_lab.threats import Budget
from robustbench_lab.training.batches import split_validation
from robustbench_lab.training.runs import load_run

log = logging.getLogger("robustbench_lab")

PARTIAL_FILE = "outcome.partial.npz"
OF_EXAMPLES, OF_FEATURES = "examples.", "features."  # what their arrays' names begin with in a partial outcome


def main(cfg: DictConfig) -> None:
    job(cfg, evaluation_of(cfg, current_choices(), current_overrides()))


def job(cfg: DictConfig, evaluation: Evaluation) -> Path:
    """The folder of the finished evaluation, which is made, or resumed, if it has to be."""
    commit()
    output_root = Path(cfg.output_root).absolute()
    attack, budget, threat_model = (build(evaluation.config[group], group) for group in ("attack", "budget", "threat_model"))
    attack.check(budget)
    check_view(threat_model, attack)
    check_choice(cfg, attack)
    measures = measures_of(evaluation, attack)
    look, how = panel_of(cfg), how_of(cfg)
    digests = {"run": digest_of(evaluation.run, output_root)}
    if evaluation.source is not None:
        digests["source"] = digest_of(evaluation.source, output_root)
    key = look.key(digests["run"], how | ({"without_noise": True} if cfg.without_noise else {}))
    folder = evaluation.folder(output_root)
    if not cfg.force and _finished(folder, digests, key):
        return folder
    device = device_of(cfg.device)
    dataset, defended, defense = load_run(evaluation.run, evaluation.run.folder(output_root), device)
    if cfg.without_noise:
        defended = silenced(defended)
    source = None
    if evaluation.source is not None:
        same = evaluation.source.fingerprint == evaluation.run.fingerprint  # the twin of an undefended run is that run
        source = defended if same else load_run(evaluation.source, evaluation.source.folder(output_root), device)[1]
    view = attacker_view(threat_model, defended, source, undefended=type(defense) is Defense)
    where = plain(cfg, "data")["data"]

    def load(split: Any) -> ImageSet:
        return dataset.load(split, root=Path(where["root"]), download=where["download"], workers=where["workers"]).to(device)

    whole = data = load("test")
    if (first := evaluation.config.get("test_first")) is not None:
        data = whole.subset(torch.arange(min(first, len(whole))))

    with locked(folder, log.info), leaving_error(folder):
        if not cfg.force and _finished(folder, digests, key):
            return folder
        if not cfg.force and _finished(folder, digests, None):  # the same evaluation with another panel
            record = read_record(folder / RECORD_FILE)
            record["warnings"] = warnings_of(record, dataset.classes, defended.stochastic)
        else:
            (folder / RECORD_FILE).unlink(missing_ok=True)
            train = load("train").in_memory().images if any(measure.needs_train for measure in measures.values()) else None
            asked = {"misclassified": cfg.attack_misclassified, "keep_features": cfg.keep_features}
            measuring = {**how, **asked, "measures": list(measures.values()), "train": train}
            if source is not None and source is not defended and not attack.batchwise and not source.stochastic:
                measuring["crafted"] = Crafted.of(
                    crafted_file(evaluation, digests["source"], output_root), data, stages=len(attack.stages()), afresh=cfg.force
                )
            record = _attacked(cfg, evaluation, folder, attack, budget, view, defended, data, measuring, digests, dataset.classes, device)
            if data.shape == SHAPE:
                try:
                    write_arrays(folder / PLANE_FILE, **_plane(evaluation.run, defended, defense, load("train"), output_root, device))
                except LabError as error:  # the run that it learned from may be gone by now
                    log.warning("no picture of what was learned: %s", error)
        if key is not None:
            arrays = read_arrays(folder / OUTCOME_FILE)
            facts = panel_facts(look, key, evaluation.run, defended, whole, how, output_root, cfg.force)
            record["panel"] = {"key": key} | {name: part for name, part in facts.items() if name not in ("ids", "right", "schema", "run")}
            verdicts = dict(zip(arrays["index"].tolist(), arrays["robust"].tolist(), strict=True))
            found = {sign["code"]: sign for sign in [*signs(look.panel, facts), *compared(look.panel, facts, record, verdicts)]}
            told = {warning["code"] for warning in record["warnings"]}
            record["warnings"] += [sign for code, sign in found.items() if code not in told]
        write_json(folder / RECORD_FILE, record)
        (folder / PARTIAL_FILE).unlink(missing_ok=True)
    low, high = record["robust_interval"]
    lines = [f"warning {warning['code']}: {warning['message']}" for warning in record["warnings"]]
    if len(record["stages"]) > 1:
        leaves = ", ".join(f"{stage['attack']} leaves {stage['survivors']}" for stage in record["stages"])
        lines.insert(0, f"of {record['attacked']}: {leaves}")
    log.info(
        "%s on %s: clean %.2f %%, robust %.2f %% (95 %% interval %.2f to %.2f, n = %d)%s\n  %s",
        evaluation.name, evaluation.run.name, 100 * record["clean_accuracy"], 100 * record["robust_accuracy"], 100 * low, 100 * high,
        record["n"], "".join(f"\n  {line}" for line in lines), folder,
    )  # fmt: skip
    return folder


def _attacked(
    cfg: DictConfig, evaluation: Evaluation, folder: Path, attack: Attack, budget: Budget, view: nn.Module, defended: Defended,
    data: ImageSet, how: dict[str, Any], digests: dict[str, str], classes: int, device: torch.device,
) -> dict[str, Any]:  # fmt: skip
    """The record of an evaluation that is made now, or resumed; its outcome is on disk, in full, when this returns."""
    partial, names = folder / PARTIAL_FILE, [name for name, _ in attack.stages()]
    mark = " ".join([evaluation.fingerprint, *digests.values(), *names, *evaluation.config.get("metric", {})])  # rows are in their order

    def save(outcome: Outcome) -> None:
        arrays = _arrays(outcome) | {OF_EXAMPLES + name: array for name, array in _arrays(outcome.examples).items()}
        arrays |= {OF_FEATURES + name: array for name, array in _arrays(outcome.features).items()}
        write_arrays(partial, mark=np.array(mark), **arrays)
        if (crafted := how.get("crafted")) is not None:
            crafted.save(float(outcome.seconds.sum()), last=bool(outcome.done.all()))

    known = None if cfg.force else _partial(partial, mark, data.ids.cpu().numpy())
    outcome = evaluate(defended, view, data, attack, budget, **how, outcome=known, save=save)
    save(outcome)  # the panel may take its time
    write_arrays(
        folder / OUTCOME_FILE, index=outcome.ids, clean=outcome.clean, robust=outcome.robust, distance=outcome.distance,
        right=outcome.right, broken_by=outcome.broken_by, stages=np.array(names),
        **({"after": outcome.after} if how["misclassified"] else {}),
        **({"runs": outcome.runs} if len(outcome.runs) else {}),
        **{f"metric.{name}": values for name, values in zip(evaluation.config.get("metric", {}), outcome.metrics, strict=True)},
    )  # fmt: skip
    write_arrays(folder / EXAMPLES_FILE, **_arrays(outcome.examples))
    if outcome.features is not None:
        write_arrays(folder / FEATURES_FILE, **_arrays(outcome.features))
    draws = is_random(view) and not isinstance(view, Queries)  # random output that answers queries is not averaged
    averaged = how["eot_samples"] if draws else 1
    samples = averaged * min(getattr(stage, "eot_samples", 1) for _, stage in attack.stages())
    return record_of(evaluation, outcome, names, digests, classes, defended.stochastic, samples, device_name(device))


def _plane(
    run: Run, defended: Defended, defense: Defense, train: ImageSet, output_root: Path, device: torch.device
) -> dict[str, np.ndarray]:
    """What the model has learned, for pictures."""
    source = None if run.source is None else load_run(run.source, run.source.folder(output_root), device)[1]
    kept, _ = split_validation(len(train), run.config["training"]["validation"])
    return plane_of(defended, defense, train.subset(kept), source, run.config["seed"])


def crafted_file(evaluation: Evaluation, digest: str, output_root: Path) -> Path:
    """Where what the attack finds on the source is kept: a name for everything that it depends on."""
    assert evaluation.source is not None
    aside = ("threat_model", "metric", "verdict_draws", "attack_misclassified", "keep_features", "without_noise")
    images = evaluation.run.config["dataset"]  # the attacked run's: the source may have learned from others
    content = {name: part for name, part in evaluation.config.items() if name not in aside} | {"digest": digest, "dataset": images}
    return evaluation.source.folder(output_root) / "crafted" / f"{evaluation.choices['attack']}-{fingerprint(content)}.npz"


def silenced(defended: Defended) -> Defended:
    """The same network, whose layers' noise is off from now on: it answers an image always alike, in one pass.

    Raises LabError if nothing in it is noisy, or some of its noise has no switch.
    """
    try:
        return defended.silenced()
    except LabError as error:
        raise LabError(f"without_noise: expected false for a defense without noise, got true; {error}") from error


def measures_of(evaluation: Evaluation, attack: Attack) -> dict[str, Measure]:
    """The metrics that are asked for, by name. Raises LabError for one that needs another kind of attack."""
    measures: dict[str, Measure] = {name: build(entry, f"metric.{name}") for name, entry in evaluation.config.get("metric", {}).items()}
    for name, measure in measures.items():
        theirs = measure.as_published and isinstance(attack, MinimalFGSM)  # whose index error keeps it from the smallest
        if measure.minimal and not (attack.minimal or theirs):
            raise LabError(
                f"metric.{name} speaks of the smallest perturbation, which attack={evaluation.choices['attack']} does not look for; use "
                "one that does, such as attack=deepfool budget=box, or leave the metric out"
            )
    return measures


def check_choice(cfg: DictConfig, attack: Attack) -> None:
    """Stop, before anything is loaded, if the images cannot be chosen so."""
    more = cfg.attack_misclassified
    require(not more or len(attack.stages()) == 1, "attack_misclassified", "false for a list of attacks, which has one verdict", more)
    for key in ("test_first", "keep_features"):
        counted = isinstance(cfg[key], int) and not isinstance(cfg[key], bool) and cfg[key] >= 1
        require(cfg[key] is None or counted, key, "a whole number >= 1, or null", cfg[key])


def how_of(cfg: DictConfig) -> dict[str, Any]:
    """What evaluate() takes beside models, images, attack and ball."""
    for name in ("batch_size", "verdict_draws", "eot_samples"):
        require(isinstance(cfg[name], int) and not isinstance(cfg[name], bool) and cfg[name] >= 1, name, "a whole number >= 1", cfg[name])
    require(cfg.search_precision in ("fp32", "bf16"), "search_precision", "fp32 or bf16", cfg.search_precision)
    require(isinstance(cfg.attack_seed, int), "attack_seed", "a whole number", cfg.attack_seed)
    return {
        "seed": cfg.attack_seed, "batch_size": cfg.batch_size, "draws": cfg.verdict_draws, "eot_samples": cfg.eot_samples,
        "precision": cfg.search_precision,
    }  # fmt: skip


def digest_of(run: Run, output_root: Path) -> str:
    """The digest of a finished run's weights. Raises LabError, with the nearest finished runs, when there is none."""
    path = run.folder(output_root) / RUN_FILE
    if not path.exists():
        words = "/".join(run.choices[group] for group in ("dataset", "backbone", "defense"))
        missing = f"no finished run for {words} seed {run.config['seed']} ({run.fingerprint})"
        raise LabError(missing + nearest_runs(run, output_root) + "; train it with the same settings: python -m robustbench_lab train ...")
    return str(read_json(path)["model_digest"])


def _finished(folder: Path, digests: dict[str, str], panel: str | None) -> bool:
    """Whether the record is there and speaks of these very weights, and has the panel of that key, if one is asked for."""
    path = folder / RECORD_FILE
    if not path.exists():
        return False
    try:
        record = read_record(path)
    except LabError as error:
        log.warning("made anew: %s", error)
        return False
    fresh = all((record[part] or {}).get("model_digest") == digest for part, digest in digests.items())
    if panel is not None and record.get("panel", {}).get("key") != panel:
        return False
    if fresh:
        log.info("finished already: %s (robust %.2f %%, n = %d)", folder, 100 * record["robust_accuracy"], record["n"])
    return fresh


def _arrays(of: Outcome | Examples | Features | None) -> dict[str, np.ndarray]:
    return {f.name: value for f in fields(of) if isinstance(value := getattr(of, f.name), np.ndarray)} if of else {}


def _partial(path: Path, mark: str, ids: np.ndarray) -> Outcome | None:
    """What an interrupted evaluation of the same content left behind; None if there is nothing, or it is of other weights."""
    if not path.exists():
        return None
    try:
        arrays = read_arrays(path)
        if str(arrays.pop("mark")) != mark or not np.array_equal(arrays["ids"], ids):
            return None
        examples = Examples(**{f.name: arrays.pop(OF_EXAMPLES + f.name) for f in fields(Examples)})
        kept = {f.name: arrays.pop(OF_FEATURES + f.name) for f in fields(Features) if OF_FEATURES + f.name in arrays}
        outcome = Outcome(**arrays, examples=examples, features=Features(**kept) if kept else None)
    except (LabError, KeyError, TypeError) as error:
        log.warning("starting afresh, because %s is of no use: %s", path, error)
        return None
    log.info("going on after %d of %d images", outcome.done.sum(), len(ids))
    return outcome
