"""Train one run, or finish it, or find it finished; or bring in what someone else has trained."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from robustbench_lab.datasets.base import Dataset
from robustbench_lab.defenses.base import Defense
from robustbench_lab.devices import device_name, device_of
from robustbench_lab.models.defended import Defended
from robustbench_lab.models.front import Front
from robustbench_lab.models.normalise import FirstLayer
from robustbench_lab.settings.build import build, dataset_of
from robustbench_lab.settings.conf import Place
from robustbench_lab.settings.identity import Run
from robustbench_lab.settings.images import Images, other_images, told
from robustbench_lab.storage.files import SCHEMA, remove, storing, there, write_bytes
from robustbench_lab.storage.folders import RunFolder
from robustbench_lab.storage.provenance import commit, provenance
from robustbench_lab.storage.records import METRICS_FILE, RUN_FILE
from robustbench_lab.training.batches import split_validation
from robustbench_lab.training.checkpoints import OfOtherImages, load_state, load_weights, save_state, write_tensors
from robustbench_lab.training.events import EVENTS_FOLDER, events, need_tensorboard, write_events
from robustbench_lab.training.extra import kept_images
from robustbench_lab.training.imported import Imported, bring, measured
from robustbench_lab.training.loop import fit, learn_statistics
from robustbench_lab.training.recipe import Recipe
from robustbench_lab.training.runs import load_run, load_split, objects
from robustbench_lab.training.start import check_start
from robustbench_lab.training.state import State

log = logging.getLogger("robustbench_lab")


def make_run(run: Run, place: Place, *, force: bool = False, tensorboard: bool = False) -> Path:
    """The folder of the finished run, which is trained, resumed or imported if it has to be; tensorboard: event files beside metrics.jsonl.

    force: do it again; what is repeated is the run itself, not its teacher.
    """
    commit()
    if tensorboard:
        need_tensorboard()  # what is not installed stops here
    folder = run.at(place.output_root)
    images = Images(place.data["root"]).of_run(run)
    if not force and _found(folder, images):
        _check_claim(run, folder)
        if tensorboard:  # it changes no result, hence no run's name
            with folder.locked():
                write_events(folder)
        return folder.path
    if run.imported:
        return _imported(run, place, force, images)
    dataset, model, defense, recipe = objects(run)  # a wrong knob stops here, before anything is written
    device = device_of(place.device)
    assert isinstance(recipe, Recipe)
    defense.check_epochs(recipe.epochs)
    defense.check_passes(recipe.precision, recipe.compile)
    train_data = load_split(dataset, "train", place.data)
    teacher = None
    if run.teacher is not None:
        if recipe.start is not None:
            check_start(model, objects(run.teacher)[1], run.name, run.teacher.name)  # before hours of training
        log.info("%s learns from %s", run.name, run.teacher.name)
        make_run(run.teacher, place)
        teacher = load_run(run.teacher, place.output_root, device)[1]
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
            record = _record(run, folder, (model, defense, recipe), state, len(train_data), device_name(device)) | told(images)
            folder.finish(record)
        log.info("trained %s: %d epochs in %.0f s", folder.path, state.epoch, record["seconds"])
    return folder.path


def make_missing(runs: Iterable[Run], place: Place, train: bool) -> None:
    """Make the runs that someone else has trained, wherever they are asked for; train: the others too, and what they learn from."""
    for run in runs:
        if run.imported or train:
            make_run(run, place)


def _imported(run: Run, place: Place, force: bool, images: Mapping[str, str]) -> Path:
    """The same for weights that someone else has trained."""
    folder, device = run.at(place.output_root), device_of(place.device)
    dataset, model, _, recipe = objects(run)
    assert isinstance(recipe, Imported)
    with folder.locked():
        folder = folder.afresh()
        if not force and _found(folder, images):
            return folder.path
        _clear(folder, afresh=True)
        with folder.leaving_error():
            _write_hydra(folder.path, run)
            brought = bring(model, recipe)
            if not brought["whole"] and _learns(model):
                learn_statistics(model, load_split(dataset, "train", place.data), run.config["seed"])
            whole = dataset_of({**run.config, "dataset": run.config["dataset"] | {"test_size": None}}, Dataset)
            told_of_it = measured(run, model.to(device), load_split(whole, "test", place.data).to(device), brought, recipe)
            recipe.check_claim(told_of_it)
            record = _content(run, folder, model, device_name(device)) | {"epochs": 0, "seconds": 0.0, "imported": told_of_it}
            folder.finish(record | told(images))
        _tell_import(folder, told_of_it)
    return folder.path


def _learns(model: Defended) -> bool:
    """Whether the first layer or a front takes statistics of training images."""
    layers = [module for module in model.modules() if isinstance(module, FirstLayer) and type(module).fit is not FirstLayer.fit]
    return bool(layers) or any(type(front).fit is not Front.fit for front in model.each_front())


def _check_claim(run: Run, folder: RunFolder) -> None:
    """Raises LabError where a finished import is less accurate than is claimed now."""
    if run.imported and "imported" in folder.record:
        build(run.config["training"], "training", Imported).check_claim(folder.record["imported"])


def _tell_import(folder: RunFolder, told_of_it: Mapping[str, Any]) -> None:
    share, n = 100 * told_of_it["clean_accuracy"], told_of_it["n"]
    log.info("imported %s: clean %.2f %% (n = %d)", folder.path, share, n)
    for warning in told_of_it["warnings"]:
        log.warning("%s: %s", warning["code"], warning["message"])


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
        for path in (folder.checkpoint, folder.extra_images, folder.weights):
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
        kept = partial(kept_images, folder.extra_images, {"run": run.fingerprint, **told(images)}, train_data.device)
        state = fit(defense, model, train_data, recipe, run.config["seed"], state, save, teacher, kept)
    _write_metrics(folder.path, state)  # once more: the process may have died between the two writes
    return state


def _record(run: Run, folder: RunFolder, parts: tuple[Defended, Defense, Recipe], state: State, images: int, device: str) -> dict[str, Any]:
    """The content of run.json; the weights, whose digest it tells, are on disk when this returns."""
    model, defense, recipe = parts
    held_out = len(split_validation(images, recipe.validation)[1])
    best = recipe.keep == "best"
    return {
        **_content(run, folder, model, device),
        "train_images": images - held_out,
        "validation_images": held_out,
        "epochs": state.epoch,
        "kept_epoch": state.best_epoch if best else state.epoch,
        "kept_by": f"validation {'likelihood' if defense.trains_density else 'accuracy'}" if best else "last epoch",
        "seconds": sum(row["seconds"] for row in state.history),
    }


def _content(run: Run, folder: RunFolder, model: Defended, device: str) -> dict[str, Any]:
    """What every run.json says; the weights are written."""
    return {
        "schema": SCHEMA,
        "fingerprint": run.fingerprint,
        "choices": run.choices,
        "config": run.config,
        "model_digest": write_tensors(folder.weights, model.state_dict(), {"run": run.fingerprint}),
        "teacher": {"name": run.teacher.name, "fingerprint": run.teacher.fingerprint} if run.teacher else None,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        **provenance(device),
    }


def _write_metrics(folder: Path, state: State) -> None:
    # Whole each time, from the state: after a kill, no epoch is missing or there twice.
    write_bytes(folder / METRICS_FILE, "".join(json.dumps(row) + "\n" for row in state.history).encode())


def _write_hydra(folder: Path, run: Run) -> None:
    """The run's settings as a person would read and repeat them; run.json is what programs read."""
    for name, content in (("config", run.config), ("choices", run.choices)):
        write_bytes(folder / ".hydra" / f"{name}.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode())
