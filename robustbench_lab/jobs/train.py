"""Train one run, or finish it, or find it finished."""

from __future__ import annotations

import json
import logging
import shutil
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from robustbench_lab.batches import split_validation
from robustbench_lab.checkpoints import CHECKPOINT_FILE, load_state, load_weights, read_tensors, save_state, write_tensors
from robustbench_lab.config import Run, build, current_choices, dataset_of, plain, run_of
from robustbench_lab.datasets.base import Dataset
from robustbench_lab.defenses.base import Defense
from robustbench_lab.devices import device_name, device_of
from robustbench_lab.errors import LabError
from robustbench_lab.models import Classifier, Defended, Normalise
from robustbench_lab.randomness import stable_hash
from robustbench_lab.records import (
    ERROR_FILE,
    MODEL_FILE,
    RUN_FILE,
    SCHEMA,
    commit,
    locked,
    provenance,
    read_json,
    storing,
    write_bytes,
    write_json,
)
from robustbench_lab.training import Recipe, State, fit

log = logging.getLogger("robustbench_lab")

METRICS_FILE = "metrics.jsonl"
EVENTS_FOLDER = "tensorboard"
Row = dict[str, Any]  # of a training's history: the numbers of one epoch


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


def objects(run: Run) -> tuple[Dataset, Defended, Defense, Recipe]:
    """What a run's config describes, with the weights that its seed gives."""
    dataset = dataset_of(run.config)
    defense = build(run.config["defense"], "defense")
    recipe = build(run.config["training"], "training")
    seed = run.config["seed"]
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise LabError(f"seed: expected a whole number, got {seed!r}")

    def make_net() -> Classifier:
        return Classifier(Normalise(dataset.mean, dataset.std), build(run.config["backbone"], "backbone"))

    torch.manual_seed(stable_hash(seed, "weights"))
    model = defense.build(make_net)
    try:
        recipe.optimizer(list(model.parameters()))  # torch checks its knobs only here
    except (TypeError, ValueError) as error:
        raise LabError(f"training.optimizer: {error}, got {run.config['training']['optimizer']}") from error
    return dataset, model, defense, recipe


def load_run(run: Run, folder: Path, device: torch.device) -> tuple[Dataset, Defended, Defense]:
    """A finished run's dataset, trained model (eval mode, on the device) and defense."""
    dataset, model, defense, _ = objects(run)
    path = folder / MODEL_FILE
    tensors, meta = read_tensors(path)
    load_weights(model, tensors, path)
    if meta["digest"] != read_json(folder / RUN_FILE)["model_digest"]:
        raise LabError(f"{path} holds other weights than {RUN_FILE} beside it speaks of; train with force=true")
    return dataset, model.to(device).eval(), defense


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


def _write_events(folder: Path) -> None:
    """A finished run's event files, from its metrics. Raises LabError where these cannot be read."""
    path = folder / METRICS_FILE
    try:
        history = [json.loads(line) for line in path.read_bytes().splitlines()]
    except (OSError, ValueError) as error:
        raise LabError(f"{path} cannot be read ({error}); train with force=true, or leave out tensorboard=true") from error
    with _events(folder, history):
        pass


def _summary_writer() -> Any:
    """TensorBoard's writer, a class. Raises LabError, with the install command, where the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise LabError(f"tensorboard=true needs a package ({error}); install it: python -m pip install tensorboard") from error
    return SummaryWriter


@contextmanager
def _events(folder: Path, history: Sequence[Row]) -> Iterator[Callable[[Row], None]]:
    """The run's event files, begun anew with the epochs in `history`; what it yields adds one more, and they are on disk then.

    Each number of a row is a scalar at the step of its epoch, named loss/<player>, validation/accuracy or epoch/<number>.
    """
    path = folder / EVENTS_FOLDER
    with storing(path):
        for old in path.glob("events.*"):  # up to another epoch, or torn: after a kill, no epoch is missing or there twice
            if old.stat().st_size:
                old.write_bytes(b"")  # an open TensorBoard waits for more of a file that is deleted, and goes on to the next from this one
            else:
                old.unlink()
        writer = _summary_writer()(str(path), purge_step=1)  # an open TensorBoard forgets what it has read

    def add(row: Row) -> None:
        with storing(path):
            for name, value in row.items():
                section, _, rest = name.partition("_")
                tag = f"{section}/{rest}" if section in ("loss", "validation") else f"epoch/{name}"
                if name != "epoch" and isinstance(value, int | float):
                    writer.add_scalar(tag, value, row["epoch"])
            writer.flush()

    try:
        for row in history:
            add(row)
        yield add
    finally:
        with storing(path):
            writer.close()


def _write_hydra(folder: Path, run: Run) -> None:
    """The run's settings as a person would read and repeat them; run.json is what programs read."""
    write_bytes(folder / ".hydra" / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(run.config)).encode())
    write_bytes(folder / ".hydra" / "choices.yaml", OmegaConf.to_yaml(OmegaConf.create(run.choices)).encode())


@contextmanager
def leaving_error(folder: Path) -> Iterator[None]:
    """Leave the error of a failed job in its folder; the next attempt takes it away."""
    path = folder / ERROR_FILE
    path.unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        try:
            write_json(path, {"schema": SCHEMA, "error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()})
        except LabError:
            log.warning("the error could not be written to %s either", path)
        raise
