"""A run as objects: what its config describes, and what a finished one has learned."""

from __future__ import annotations

from pathlib import Path

import torch

from robustbench_lab.datasets.base import Dataset
from robustbench_lab.defenses.base import Defense
from robustbench_lab.errors import LabError
from robustbench_lab.models.defended import Classifier, Defended
from robustbench_lab.randomness import stable_hash
from robustbench_lab.settings.build import build, dataset_of
from robustbench_lab.settings.identity import Run
from robustbench_lab.storage.files import read_json
from robustbench_lab.storage.records import MODEL_FILE, RUN_FILE
from robustbench_lab.training.checkpoints import load_weights, read_tensors
from robustbench_lab.training.recipe import Recipe


def objects(run: Run) -> tuple[Dataset, Defended, Defense, Recipe]:
    """What a run's config describes, with the weights that its seed gives."""
    dataset = dataset_of(run.config)
    defense = build(run.config["defense"], "defense")
    recipe = build(run.config["training"], "training")
    seed = run.config["seed"]
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise LabError(f"seed: expected a whole number, got {seed!r}")

    def make_net() -> Classifier:
        normalise = build(run.config["dataset"]["normalise"], "dataset.normalise")
        return Classifier(normalise, build(run.config["backbone"], "backbone"), (dataset.channels, dataset.size, dataset.size))

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
