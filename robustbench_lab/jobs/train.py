"""Train one run, or finish it, or find it finished."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from robustbench_lab.devices import device_name, device_of
from robustbench_lab.models.defended import Defended
from robustbench_lab.settings.conf import current_choices, current_overrides, output_root_of, plain
from robustbench_lab.settings.identity import Run, run_of
from robustbench_lab.settings.images import Images, other_images, told
from robustbench_lab.storage.files import SCHEMA, remove, storing, there, write_bytes
from robustbench_lab.storage.folders import RunFolder
from robustbench_lab.storage.provenance import commit, provenance
from robustbench_lab.storage.records import METRICS_FILE, RUN_FILE
from robustbench_lab.training.batches import split_validation
from robustbench_lab.training.checkpoints import OfOtherImages, load_state, load_weights, save_state, write_tensors
from robustbench_lab.training.events import EVENTS_FOLDER, events, need_tensorboard, write_events
from robustbench_lab.training.loop import fit
from robustbench_lab.training.recipe import Recipe
from robustbench_lab.training.runs import load_run, load_split, objects
from robustbench_lab.training.start import check_start
from robustbench_lab.training.state import State

log = logging.getLogger("robustbench_lab")


def main(cfg: DictConfig) -> None:
    train(cfg, run_of(cfg, current_choices(), current_overrides()), tensorboard=cfg.tensorboard)


def train(cfg: DictConfig, run: Run, tensorboard: bool = False, force: bool | None = None) -> Path:
    """The folder of the finished run, which is trained or resumed if it has to be; tensorboard: event files beside metrics.jsonl.

    force: train a finished run again, `force` of the config unless it is said here: what is repeated is the run itself, not its teacher.
    """
    commit()
    force = bool(cfg.force) if force is None else force
    if tensorboard:
        need_tensorboard()  # what is not installed stops here
    folder, data = run.at(output_root_of(cfg)), plain(cfg, "data")["data"]
    images = Images(data["root"]).of_run(run)
    if not force and _found(folder, images):
        if tensorboard:  # it changes no result, hence no run's name
            with folder.locked():
                write_events(folder)
        return folder.path
    dataset, model, defense, recipe = objects(run)  # a wrong knob stops here, before anything is written
    defense.check_epochs(recipe.epochs)
    defense.check_passes(recipe.precision, recipe.compile)
    device = device_of(cfg.device)
    train_data = load_split(dataset, "train", data)
    teacher = None
    if run.teacher is not None:
        if recipe.start is not None:
            check_start(model, objects(run.teacher)[1], run.name, run.teacher.name)  # before hours of training
        log.info("%s learns from %s", run.name, run.teacher.name)
        train(cfg, run.teacher, force=False)
        teacher = load_run(run.teacher, output_root_of(cfg), device)[1]
    with folder.locked():
        folder = folder.afresh()
        if not force and _found(folder, images):  # another process finished it while this one waited
            if tensorboard:
                write_events(folder)
            return folder.path
        if (others := _of_other_images(folder, images)) is not None:
            log.warning("trained again: %s: %s", folder.path / RUN_FILE, others)
        _clear(folder, afresh=force or others is not None)
        with folder.leaving_error():
            _write_hydra(folder.path, run)
            state = _fitted(run, folder, (model.to(device), defense, recipe, teacher), train_data.to(device), tensorboard, images)
            record = _record(run, folder, model, recipe, state, len(train_data), device_name(device)) | told(images)
            folder.finish(record)
        log.info("trained %s: %d epochs in %.0f s", folder.path, state.epoch, record["seconds"])
    return folder.path


def _found(folder: RunFolder, images: Mapping[str, str]) -> bool:
    if folder.usable and _of_other_images(folder, images) is None:
        folder.tidy()
        log.info("finished already: %s", folder.path)
        return True
    return False


def _of_other_images(folder: RunFolder, images: Mapping[str, str]) -> str | None:
    """How a run.json tells that the run has learned from other images; None where it does not, or there is none that counts."""
    return other_images(folder.record, images) if folder.trained else None


def _clear(folder: RunFolder, afresh: bool) -> None:
    """What would speak of other weights than those that come; afresh: what they could be resumed from too."""
    folder.check_places()
    remove(folder.path / RUN_FILE)  # it may be damaged, or its weights gone
    if afresh:
        for path in (folder.checkpoint, folder.weights):
            remove(path)
        if there(folder.path / EVENTS_FOLDER):
            with storing(folder.path / EVENTS_FOLDER):
                shutil.rmtree(folder.path / EVENTS_FOLDER)


def _left(run: Run, folder: RunFolder, images: Mapping[str, str]) -> State | None:
    """Where an interrupted training of the same images stands."""
    if not there(folder.checkpoint):
        return None
    try:
        state = load_state(folder.checkpoint, run.fingerprint, images)
    except OfOtherImages as error:
        log.warning("trained from the start: %s", error)
        _clear(folder, afresh=True)
        return None
    log.info("resuming %s after epoch %d", folder.name, state.epoch)
    return state


def _fitted(
    run: Run,
    folder: RunFolder,
    parts: tuple[Defended, Any, Recipe, Defended | None],
    train_data: Any,
    tensorboard: bool,
    images: Mapping[str, str],
) -> State:
    """The last state of the training, begun or resumed; the model then holds the weights that count."""
    model, defense, recipe, teacher = parts
    state = _left(run, folder, images)
    if state is not None:
        load_weights(model, state.model, folder.checkpoint)

    def save(state: State) -> None:
        save_state(folder.checkpoint, state, run.fingerprint, images)
        _write_metrics(folder.path, state)
        add_events(state.history[-1])

    history = state.history if state else []
    with events(folder.path, history) if tensorboard else nullcontext(lambda row: None) as add_events:
        state = fit(defense, model, train_data, recipe, run.config["seed"], state, save, teacher)
    _write_metrics(folder.path, state)  # once more: the process may have died between the two writes
    return state


def _record(run: Run, folder: RunFolder, model: Defended, recipe: Recipe, state: State, images: int, device: str) -> dict[str, Any]:
    """The content of run.json; the weights, whose digest it tells, are on disk when this returns."""
    held_out = len(split_validation(images, recipe.validation)[1])
    best = recipe.keep == "best"
    return {
        "schema": SCHEMA,
        "fingerprint": run.fingerprint,
        "choices": run.choices,
        "config": run.config,
        "model_digest": write_tensors(folder.weights, model.state_dict(), {"run": run.fingerprint}),
        "teacher": {"name": run.teacher.name, "fingerprint": run.teacher.fingerprint} if run.teacher else None,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "train_images": images - held_out,
        "validation_images": held_out,
        "epochs": state.epoch,
        "kept_epoch": state.best_epoch if best else state.epoch,
        "kept_by": "validation accuracy" if best else "last epoch",
        "seconds": sum(row["seconds"] for row in state.history),
        **provenance(device),
    }


def _write_metrics(folder: Path, state: State) -> None:
    # Whole each time, from the state: after a kill, no epoch is missing or there twice.
    write_bytes(folder / METRICS_FILE, "".join(json.dumps(row) + "\n" for row in state.history).encode())


def _write_hydra(folder: Path, run: Run) -> None:
    """The run's settings as a person would read and repeat them; run.json is what programs read."""
    write_bytes(folder / ".hydra" / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(run.config)).encode())
    write_bytes(folder / ".hydra" / "choices.yaml", OmegaConf.to_yaml(OmegaConf.create(run.choices)).encode())
