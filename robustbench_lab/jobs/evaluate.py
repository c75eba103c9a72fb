"""Attack a finished run and write its record."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from robustbench_lab.attacks.base import Attack, is_random
from robustbench_lab.datasets.base import Dataset, ImageSet
from robustbench_lab.defenses.base import Defense
from robustbench_lab.devices import device_name, device_of
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation.asked import crafted_name, protocol_of
from robustbench_lab.evaluation.crafted import Crafted
from robustbench_lab.evaluation.keepers.base import Evaluated
from robustbench_lab.evaluation.look import Look
from robustbench_lab.evaluation.loop import evaluate
from robustbench_lab.evaluation.outcome import Outcome, Store
from robustbench_lab.evaluation.protocol import Protocol
from robustbench_lab.evaluation.record import Circumstances, eot_samples_of, record_of
from robustbench_lab.evaluation.views import Queries, attacker_view, check_view, silenced
from robustbench_lab.evaluation.warnings import warnings_of
from robustbench_lab.knobs import require
from robustbench_lab.models.defended import Defended
from robustbench_lab.models.network_space import as_shown, check_same_space, look_at_pixels, network_space
from robustbench_lab.settings.build import build
from robustbench_lab.settings.conf import current_choices, current_overrides, output_root_of, place_of, plain
from robustbench_lab.settings.identity import Evaluation, evaluation_of
from robustbench_lab.settings.images import Images, other_images, told
from robustbench_lab.storage.files import Missing, read_arrays, write_arrays
from robustbench_lab.storage.folders import EvaluationFolder
from robustbench_lab.storage.provenance import commit
from robustbench_lab.storage.records import OUTCOME_FILE
from robustbench_lab.threats import Budget, ThreatModel
from robustbench_lab.training.batches import split_validation
from robustbench_lab.training.making import make_missing
from robustbench_lab.training.runs import check_budget, check_classifier, digest_of, load_run, load_split

log = logging.getLogger("robustbench_lab")


def main(cfg: DictConfig) -> Path:
    return job(cfg, evaluation_of(cfg, current_choices(), current_overrides()))


@dataclass(frozen=True)
class Asked:
    """What an evaluation is asked for, as objects: a wrong knob stops here, before anything is loaded."""

    evaluation: Evaluation
    attack: Attack
    budget: Budget
    threat_model: ThreatModel
    protocol: Protocol
    look: Look
    digests: Mapping[str, str]  # of the weights of each part, run and source
    images: Mapping[str, str]  # digests of those that are attacked, and that the runs have learned from
    output_root: Path
    data: Mapping[str, Any]  # where images are
    force: bool
    device: str

    @classmethod
    def of(cls, cfg: DictConfig, evaluation: Evaluation) -> Asked:
        config, output_root = evaluation.config, output_root_of(cfg)
        attack, budget = build(config["attack"], "attack", Attack), build(config["budget"], "budget", Budget)
        threat_model = build(config["threat_model"], "threat_model", ThreatModel)
        attack.check(budget)
        for run in evaluation.runs.values():
            check_classifier(run)
        check_budget(evaluation.run, budget, "budget")
        check_view(threat_model, attack)
        protocol = protocol_of(config, cfg.batch_size)
        protocol.check(attack)
        seen = plain(cfg, "panel", "budget", "dataset") | {"split": config.get("split")}
        look = Look.of(seen, evaluation.run, protocol, bool(cfg.without_noise))
        data = plain(cfg, "data")["data"]
        images = Images(data["root"])
        _held_out(evaluation)  # before hours of training
        make_missing(evaluation.runs.values(), place_of(cfg), bool(cfg.train))
        digests = {part: digest_of(run, output_root, images.of_run(run)) for part, run in evaluation.runs.items()}
        return cls(
            evaluation, attack, budget, threat_model, protocol, look, digests, images.of_evaluation(evaluation), output_root, data,
            bool(cfg.force), str(cfg.device),
        )  # fmt: skip

    @property
    def attacked_images(self) -> dict[str, str]:
        return {name: digest for name, digest in self.images.items() if name in ("test", "validation")}

    def record(self, folder: EvaluationFolder, panel: bool = True) -> dict[str, Any] | None:
        """The record, if it counts and has the panel that is asked for; None where there is something to do."""
        record = None if self.force else folder.finished(self.digests)
        if record and other_images(record, self.images) is not None:
            record = None
        key = self.look.key(self.digests["run"])
        return None if panel and record and key and record.get("panel", {}).get("key") != key else record


@dataclass(frozen=True)
class Loaded:
    """The models and images of an evaluation, on its device: `pixels` as they are read, `test` as the models take them."""

    dataset: Dataset
    defended: Defended
    defense: Defense
    source: Defended | None
    view: nn.Module
    pixels: ImageSet
    test: ImageSet
    device: torch.device

    @classmethod
    def of(cls, asked: Asked) -> Loaded:
        evaluation, device = asked.evaluation, device_of(asked.device)
        dataset, defended, defense = load_run(evaluation.run, asked.output_root, device)
        if evaluation.config.get("without_noise"):
            defended = silenced(defended)
        source = None
        if evaluation.source is not None:
            same = evaluation.source.fingerprint == evaluation.run.fingerprint  # the twin of an undefended run is that run
            source = defended if same else load_run(evaluation.source, asked.output_root, device)[1]
        if evaluation.config.get("space") == "pixels":
            for model in (defended, source):
                if model is not None:
                    look_at_pixels(model)
        if source is not None:
            check_same_space(defended, source, "threat_model.overrides")
        view = attacker_view(asked.threat_model, defended, source, undefended=type(defense) is Defense)
        pixels = _attacked_images(evaluation, dataset, asked.data).to(device)
        return cls(dataset, defended, defense, source, view, pixels, as_shown(defended, pixels), device)

    def train(self, data: Mapping[str, Any]) -> ImageSet:
        """The training images, as the model takes them."""
        return as_shown(self.defended, load_split(self.dataset, "train", data).to(self.device))


def _attacked_images(evaluation: Evaluation, dataset: Dataset, data: Mapping[str, Any]) -> ImageSet:
    """The test images, or those that the run's recipe has held out."""
    if evaluation.config.get("split") != "validation":
        return load_split(dataset, "test", data)
    train = load_split(dataset, "train", data)
    return train.subset(split_validation(len(train), _held_out(evaluation))[1])


def _held_out(evaluation: Evaluation) -> float:
    """The share of the training images that the run's recipe holds out. Raises LabError where the evaluation needs some and it has none."""
    share: float = evaluation.run.config["training"].get("validation", 0)
    expected = "a share of the training images that is held out, for split=validation; training.validation=0.1, for example, is another run"
    require(bool(share) or evaluation.config.get("split") != "validation", "training.validation", expected, share)
    return share


def job(cfg: DictConfig, evaluation: Evaluation) -> Path:
    """The folder of the finished evaluation, which is made, or resumed, if it has to be."""
    commit()
    asked = Asked.of(cfg, evaluation)
    folder = evaluation.at(asked.output_root)
    for run in evaluation.runs.values():
        run.at(asked.output_root).tidy()
    if (record := asked.record(folder)) is not None:
        return _found(folder, record)
    loaded = Loaded.of(asked)
    with folder.locked(), folder.leaving_error():
        if (record := asked.record(folder)) is not None:  # another process finished it while this one waited
            return _found(folder, record)
        if (record := asked.record(folder, panel=False)) is not None:  # the same evaluation with another panel
            record["warnings"] = warnings_of(record, loaded.dataset.classes, loaded.defended.stochastic)
        else:
            with suppress(LabError):
                if (others := other_images(folder.read(), asked.images)) is not None:
                    log.warning("made anew: %s: %s", folder.file, others)
            folder.begin()
            record = _attacked(asked, loaded, folder)
        if (key := asked.look.key(asked.digests["run"])) is not None:
            run_folder = evaluation.run.at(asked.output_root)
            facts = asked.look.facts(loaded.defended, loaded.test, asked.protocol, run_folder, asked.force, asked.attacked_images)
            arrays = folder.arrays(OUTCOME_FILE) or {}
            verdicts = dict(zip(arrays["index"].tolist(), arrays["robust"].tolist(), strict=True))
            told = asked.look.told(record, facts, verdicts)
            record |= {"panel": {"key": key} | told["panel"], "warnings": told["warnings"]}
        imported = evaluation.run.at(asked.output_root).record.get("imported", {"warnings": []})
        record["warnings"] = [*imported["warnings"], *record["warnings"]]  # of weights that someone else has trained
        folder.finish(record)
    _tell(evaluation, folder, record)
    return folder.path


def _found(folder: EvaluationFolder, record: Mapping[str, Any]) -> Path:
    log.info("finished already: %s (robust %.2f %%, n = %d)", folder.path, 100 * record["robust_accuracy"], record["n"])
    return folder.path


def _tell(evaluation: Evaluation, folder: EvaluationFolder, record: Mapping[str, Any]) -> None:
    low, high = record["robust_interval"]
    lines = [f"warning {warning['code']}: {warning.get('message', '')}" for warning in record["warnings"]]
    if len(stages := record.get("stages", ())) > 1:
        leaves = ", ".join(f"{stage['attack']} leaves {stage['survivors']}" for stage in stages)
        lines.insert(0, f"of {record.get('attacked', record['n'])}: {leaves}")
    log.info(
        "%s on %s: clean %.2f %%, robust %.2f %% (95 %% interval %.2f to %.2f, n = %d)%s\n  %s",
        evaluation.name, evaluation.run.name, 100 * record["clean_accuracy"], 100 * record["robust_accuracy"], 100 * low, 100 * high,
        record["n"], "".join(f"\n  {line}" for line in lines), folder.path,
    )  # fmt: skip


def _attacked(asked: Asked, loaded: Loaded, folder: EvaluationFolder) -> dict[str, Any]:
    """The record of an evaluation that is made now, or resumed; its outcome is on disk, in full, when this returns."""
    evaluation, names = asked.evaluation, [name for name, _ in asked.attack.stages()]
    data = loaded.test
    if (first := evaluation.config.get("test_first")) is not None:
        data = data.subset(torch.arange(min(first, len(data))))
    protocol = asked.protocol
    if any(measure.needs_train for measure in protocol.measures.values()):
        train = loaded.train(asked.data)
        if evaluation.config.get("split") == "validation":  # an attacked image is not its own neighbour
            train = train.subset(split_validation(len(train), _held_out(evaluation))[0])
        protocol = replace(protocol, train=train.in_memory().images)
    for keeper in protocol.keepers:
        keeper.begin(_evaluated(asked, loaded, data))
    mark = " ".join([evaluation.fingerprint, *asked.digests.values(), *names, *protocol.measures])  # rows are in their order
    crafted = _crafted(asked, loaded, data)

    def save(outcome: Outcome) -> None:
        kept = {f"{keeper.name}.{name}": array for keeper in protocol.keepers for name, array in keeper.arrays.items()}
        seen = {f"images.{name}": np.array(digest) for name, digest in asked.images.items()}
        write_arrays(folder.partial, mark=np.array(mark), **outcome.arrays(), **kept, **seen)
        if crafted is not None:
            crafted.save(float(outcome.seconds.sum()), last=bool(outcome.done.all()))

    runs = len(names) if asked.attack.separately else 0
    begun = Outcome.empty(data.ids.cpu().numpy(), len(names), len(protocol.measures), runs)
    known = None if asked.force else _partial(folder, mark, begun, protocol, asked.images)
    outcome = evaluate(loaded.defended, loaded.view, data, asked.attack, asked.budget, protocol, Store(known, save, crafted))
    save(outcome)  # the panel may take its time
    write_arrays(folder.path / OUTCOME_FILE, **_told(outcome, names, protocol))
    for keeper in protocol.keepers:
        if keeper.arrays:
            write_arrays(folder.path / keeper.file, **keeper.arrays)
    draws = is_random(loaded.view) and not isinstance(loaded.view, Queries)  # random output that answers queries is not averaged
    samples = eot_samples_of(asked.attack, protocol, draws)
    made = Circumstances(loaded.dataset.classes, loaded.defended.stochastic, samples, device_name(loaded.device))
    return record_of(evaluation, outcome, names, asked.digests, made) | told(asked.images)


def _told(outcome: Outcome, stages: list[str], protocol: Protocol) -> dict[str, np.ndarray]:
    """The arrays of outcome.npz. Distances and metrics are float32: nobody can use more digits of one image's."""
    return {
        "index": outcome.ids, "clean": outcome.clean, "robust": outcome.robust, "distance": outcome.distance.astype(np.float32),
        "right": outcome.right, "broken_by": outcome.broken_by, "stages": np.array(stages),
        **({"after": outcome.after} if protocol.misclassified else {}),
        **({"runs": outcome.runs} if len(outcome.runs) else {}),
        **{f"metric.{name}": values.astype(np.float32) for name, values in zip(protocol.measures, outcome.metrics, strict=True)},
    }  # fmt: skip


def _evaluated(asked: Asked, loaded: Loaded, data: ImageSet) -> Evaluated:
    run = asked.evaluation.run

    def train() -> ImageSet:
        whole = loaded.train(asked.data)
        return whole.subset(split_validation(len(whole), _held_out(asked.evaluation))[0])

    def teacher() -> Defended | None:
        return None if run.teacher is None else load_run(run.teacher, asked.output_root, loaded.device)[1]

    def pictures(x: Tensor, ids: Tensor) -> Tensor:
        space = network_space(loaded.defended)
        if space is None:
            return x
        rows = torch.cat([torch.nonzero(loaded.pixels.ids == one)[:, 0] for one in ids])
        of, _, _ = next(loaded.pixels.batches(rows, len(rows)))
        return space.pixels(x, of)

    return Evaluated(loaded.defended, loaded.defense, data, asked.protocol.seed, train, teacher, run.config["seed"], pictures)


def _crafted(asked: Asked, loaded: Loaded, data: ImageSet) -> Crafted | None:
    """What the same attack found on the same other run before; None where nothing is kept: on the attacked model itself, of an attack that
    looks at the batch, or on random output."""
    source = loaded.source
    if source is None or source is loaded.defended or asked.attack.batchwise or source.stochastic:
        return None
    assert asked.evaluation.source is not None
    path = asked.evaluation.source.at(asked.output_root).crafted_file(crafted_name(asked.evaluation, asked.digests["source"]))
    return Crafted.of(
        path, data, stages=len(asked.attack.stages()), afresh=asked.force, images=next(iter(asked.attacked_images.values()), None)
    )


def _partial(folder: EvaluationFolder, mark: str, begun: Outcome, protocol: Protocol, images: Mapping[str, str]) -> Outcome | None:
    """What an interrupted evaluation of the same content left behind; None if there is nothing, or it is of other weights or images.

    begun: the outcome as it would begin, with arrays of the same form.
    """
    try:
        arrays = read_arrays(folder.partial)
        if str(arrays.pop("mark")) != mark or not np.array_equal(arrays["ids"], begun.ids):
            return None
        seen = {name.partition(".")[2]: str(arrays.pop(name)) for name in list(arrays) if name.startswith("images.")}
        if (others := other_images({"images": seen}, images)) is not None:
            raise LabError(others)
        kept = {keeper.name: {} for keeper in protocol.keepers}  # type: dict[str, dict[str, np.ndarray]]
        for name in [name for name in arrays if "." in name]:
            keeper_name, _, key = name.partition(".")
            kept[keeper_name][key] = arrays.pop(name)
        outcome = Outcome(**arrays)
        forms = [{name: (array.shape, array.dtype) for name, array in one.arrays().items()} for one in (outcome, begun)]
        if forms[0] != forms[1]:
            raise LabError("its arrays have another form")
        for keeper in protocol.keepers:
            keeper.restore(kept[keeper.name])
    except Missing:
        return None
    except (LabError, KeyError, TypeError) as error:
        log.warning("starting afresh, because %s is of no use: %s", folder.partial, error)
        return None
    log.info("going on after %d of %d images", outcome.done.sum(), len(outcome.ids))
    return outcome
