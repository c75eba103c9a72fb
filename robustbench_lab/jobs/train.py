"""Train one run, or finish it, or find it finished."""

from __future__ import annotations

import json
import logging
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from robustbench_lab.defenses.base import Defense
from robustbench_lab.devices import device_name, device_of
from robustbench_lab.errors import LabError
from robustbench_lab.models.defended import Defended
from robustbench_lab.settings.conf import current_choices, plain
from robustbench_lab.settings.identity import Run, run_of
from robustbench_lab.storage.files import SCHEMA, locked, read_json, write_bytes, write_json
from robustbench_lab.storage.provenance import commit, provenance
from robustbench_lab.storage.records import METRICS_FILE, MODEL_FILE, RUN_FILE, leaving_error
from robustbench_lab.training.batches import split_validation
from robustbench_lab.training.checkpoints import CHECKPOINT_FILE, load_state, load_weights, save_state, write_tensors
from robustbench_lab.training.events import EVENTS_FOLDER, _events, _summary_writer, _write_events
from robustbench_lab.training.loop import fit
from robustbench_lab.training.recipe import Recipe
from robustbench_lab.training.runs import load_run, objects
from robustbench_lab.training.state import State

log = logging.getLogger("robustbench_lab")


def main(cfg: DictConfig) -> None:
    train(cfg, run_of(cfg, current_choices()), tensorboard=cfg.tensorboard)


def train(cfg: DictConfig, run: Run, tensorboard: bool = False) -> Path:
    """The folder of the finished run, which is trained or resumed if it has to be; tensorboard: event files beside metrics.jsonl."""
    commit()
    if tensorboard:
        _summary_writer()  # what is not installed stops here
    folder = run.folder(Path(cfg.output_root).absolute())
    if not cfg.force and _finished(folder):
        if tensorboard:  # it changes no result, hence no run's name
            with locked(folder, log.info):
                _write_events(folder)
        return folder
    dataset, model, defense, recipe = objects(run)  # a wrong knob stops here, before anything is written
    defense.check_epochs(recipe.epochs)
    device = device_of(cfg.device)
    data = plain(cfg, "data")["data"]
    train_data = dataset.load("train", root=Path(data["root"]), download=data["download"], workers=data["workers"])
    source = None
    if run.source is not None:
        log.info("%s learns from %s", run.name, run.source.name)
        source = load_run(run.source, train(_unforced(cfg), run.source), device)[1]
    with locked(folder, log.info):
        if not cfg.force and _finished(folder):  # another process finished it while this one waited
            if tensorboard:
                _write_events(folder)
            return folder
        (folder / RUN_FILE).unlink(missing_ok=True)  # it may be damaged, or its weights gone
        if cfg.force:
            for name in (CHECKPOINT_FILE, MODEL_FILE):
                (folder / name).unlink(missing_ok=True)
            if (folder / EVENTS_FOLDER).exists():
                shutil.rmtree(folder / EVENTS_FOLDER)
        with leaving_error(folder):
            _write_hydra(folder, run)
            _fit(run, folder, model, defense, recipe, train_data.to(device), tensorboard, source)
    return folder


def _unforced(cfg: DictConfig) -> DictConfig:
    """The config with force=false: what is repeated is the run itself, not the one that it learns from."""
    other = cfg.copy()
    other.force = False
    return other


def _finished(folder: Path) -> bool:
    if not (folder / RUN_FILE).exists():
        return False
    if not (folder / MODEL_FILE).exists():
        log.warning("trained again: %s is gone", folder / MODEL_FILE)
        return False
    try:
        read_json(folder / RUN_FILE)
    except LabError as error:
        log.warning("trained again: %s", error)
        return False
    log.info("finished already: %s", folder)
    return True


def _fit(
    run: Run, folder: Path, model: Defended, defense: Defense, recipe: Recipe, train_data: Any, tensorboard: bool, source: Defended | None
) -> None:
    checkpoint = folder / CHECKPOINT_FILE
    state = load_state(checkpoint, run.fingerprint) if checkpoint.exists() else None
    if state is not None:
        log.info("resuming %s after epoch %d", folder.name, state.epoch)
        load_weights(model, state.model, checkpoint)

    def save(state: State) -> None:
        save_state(checkpoint, state, run.fingerprint)
        _write_metrics(folder, state)
        add_events(state.history[-1])

    device = train_data.device
    with _events(folder, state.history if state else []) if tensorboard else nullcontext(lambda row: None) as add_events:
        state = fit(defense, model.to(device), train_data, recipe, run.config["seed"], state, save, source)
    _write_metrics(folder, state)  # once more: the process may have died between the two writes
    digest = write_tensors(folder / MODEL_FILE, model.state_dict(), {"run": run.fingerprint})
    held_out = len(split_validation(len(train_data), recipe.validation)[1])
    kept = state.best_epoch if recipe.keep == "best" else state.epoch
    record = {
        "schema": SCHEMA,
        "fingerprint": run.fingerprint,
        "choices": {group: run.choices[group] for group in ("dataset", "backbone", "defense", "training")},
        "config": run.config,
        "model_digest": digest,
        "source": run.source.name if run.source else None,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "train_images": len(train_data) - held_out,
        "validation_images": held_out,
        "epochs": state.epoch,
        "kept_epoch": kept,
        "kept_by": "validation accuracy" if recipe.keep == "best" else "last epoch",
        "seconds": sum(row["seconds"] for row in state.history),
        **provenance(device_name(device)),
    }
    write_json(folder / RUN_FILE, record)
    checkpoint.unlink(missing_ok=True)
    log.info("trained %s: %d epochs in %.0f s", folder, state.epoch, record["seconds"])


def _write_metrics(folder: Path, state: State) -> None:
    # Whole each time, from the state: after a kill, no epoch is missing or there twice.
    write_bytes(folder / METRICS_FILE, "".join(json.dumps(row) + "\n" for row in state.history).encode())


def _write_hydra(folder: Path, run: Run) -> None:
    """The run's settings as a person would read and repeat them; run.json is what programs read."""
    write_bytes(folder / ".hydra" / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(run.config)).encode())
    write_bytes(folder / ".hydra" / "choices.yaml", OmegaConf.to_yaml(OmegaConf.create(run.choices)).encode())
