"""A run as objects: what its config describes, and what a finished one has learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from robustbench_lab.backbones.base import Backbone
from robustbench_lab.backbones.density import Density
from robustbench_lab.datasets.base import Dataset, ImageSet, Split
from robustbench_lab.defenses.base import Defense
from robustbench_lab.errors import LabError
from robustbench_lab.knobs import check, require
from robustbench_lab.models.defended import Classifier, Defended
from robustbench_lab.models.normalise import FirstLayer
from robustbench_lab.randomness import stable_hash
from robustbench_lab.settings.build import build, dataset_of, named
from robustbench_lab.settings.conf import path_of
from robustbench_lab.settings.identity import Run, nearest_runs, said
from robustbench_lab.settings.images import NO_IMAGES, other_images
from robustbench_lab.storage.folders import Missing, RunFolder
from robustbench_lab.storage.records import RUN_FILE
from robustbench_lab.threats import Budget
from robustbench_lab.training.checkpoints import load_weights, read_tensors
from robustbench_lab.training.imported import Imported
from robustbench_lab.training.recipe import Recipe


def objects(run: Run) -> tuple[Dataset, Defended, Defense, Recipe | Imported]:
    """What a run's config describes, with the weights that its seed gives. Raises LabError for a wrong knob, and where its output is random
    and no file says so."""
    dataset = dataset_of(run.config, Dataset)
    defense = build(run.config["defense"], "defense", Defense)
    recipe = build(run.config["training"], "training", Recipe | Imported)
    usual = said(run.config, "dataset", "budget")
    check("dataset.budget", usual, Mapping[str, Any])
    check_budget(run, build({"_target_": "robustbench_lab.threats.Budget", **usual}, "dataset.budget", Budget), "dataset.budget")
    for field in fields(defense):
        if isinstance(budget := getattr(defense, field.name), Budget):
            check_budget(run, budget, f"defense.{field.name}")
    if isinstance(length := getattr(defense, "eps", None), int | float):  # of a direction of its own: VAT's, in l2
        check_budget(run, Budget("l2", length), "defense")
    seed = run.config["seed"]
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise LabError(f"seed: expected a whole number, got {seed!r}")

    for key, meant in (("classes", dataset.classes), ("channels", dataset.channels), ("image_size", dataset.size)):
        found = run.config["backbone"].get(key, meant)
        require(found == meant, f"backbone.{key}", f"{meant}, as the dataset has", found)

    def make_net() -> Classifier | Density:
        backbone = build(run.config["backbone"], "backbone", Backbone | Density)
        if isinstance(backbone, Density) is not defense.trains_density:
            raise _of_the_other_kind(run)
        if isinstance(backbone, Density):
            return backbone
        normalise = build(said(run.config, "dataset", "normalise"), "dataset.normalise", FirstLayer)
        return Classifier(normalise, backbone, (dataset.channels, dataset.size, dataset.size))

    torch.manual_seed(stable_hash(seed, "weights"))
    model = defense.build(make_net)
    if model.stochastic and not run.random_output:
        raise LabError(
            f"defense._stochastic_: expected true in the file of defense={run.choices['defense']}, or of its front, whose output is random "
            "(such as defense.fronts.quilting._stochastic_=true), got none"
        )
    if isinstance(recipe, Imported):
        return dataset, model, defense, recipe
    try:  # torch checks its knobs only here, and some in the first step
        recipe.optimizer(list(model.parameters()))
        number = torch.nn.Parameter(torch.zeros(1))
        number.grad = torch.zeros(1)
        recipe.optimizer([number]).step()
    except Exception as error:
        raise LabError(f"training.optimizer: {error}, got {run.config['training']['optimizer']}") from error
    return dataset, model, defense, recipe


def _of_the_other_kind(run: Run) -> LabError:
    """What to say where the backbone is a density and the defense trains a classifier, or the reverse."""
    backbone, defense = run.choices["backbone"], run.choices["defense"]
    if _is_density(run):
        return LabError(
            f"backbone: expected a classifier for defense={defense}, got {backbone}, a density of images; train it with "
            "defense=likelihood, and use it before a classifier with defense=preprocessed defense.fronts=[pixel_defend]"
        )
    return LabError(f"backbone: expected a density of images for defense={defense}, such as backbone=pixelcnn_small, got {backbone}")


def _is_density(run: Run) -> bool:
    target = named(run.config["backbone"].get("_target_"), "backbone._target_")
    return isinstance(target, type) and issubclass(target, Density)


def check_classifier(run: Run) -> None:
    """Before an evaluation: raises LabError for a run of a density, which has no classes."""
    if _is_density(run):
        raise LabError(
            f"backbone: expected a classifier to attack, got {run.choices['backbone']}, a density of images (how likely it finds "
            "them stands in its metrics.jsonl); evaluate a run that uses it, with defense=preprocessed defense.fronts=[pixel_defend]"
        )


def check_budget(run: Run, budget: Budget, key: str) -> None:
    """Raises LabError where none of the run's images could be that far from another."""
    dataset = dataset_of(run.config, Dataset)
    budget.check((dataset.channels, dataset.size, dataset.size), key)


def load_run(run: Run, output_root: Path, device: torch.device) -> tuple[Dataset, Defended, Defense]:
    """A finished run's dataset, trained model (eval mode, on the device) and defense.

    Raises LabError where its weights are damaged, gone or others than run.json speaks of.
    """
    return load_from(run, run.at(output_root), device)


def load_from(run: Run, folder: RunFolder, device: torch.device) -> tuple[Dataset, Defended, Defense]:
    """The same of a run that lies in this folder."""
    dataset, model, defense, _ = objects(run)
    tensors, meta = read_tensors(folder.weights)
    load_weights(model, tensors, folder.weights)
    if meta["digest"] != folder.digest:
        raise LabError(f"{folder.weights} holds other weights than {RUN_FILE} beside it speaks of; train with force=true")
    return dataset, model.to(device).eval(), defense


def digest_of(run: Run, output_root: Path, images: Mapping[str, str] = NO_IMAGES) -> str:
    """The digest of a finished run's weights; images: those that it should have learned from, where they are known.

    Raises LabError, with the nearest finished runs, when there is none, and where it has learned from others.
    """
    try:
        folder = run.at(output_root)
        if (others := other_images(folder.record, images)) is not None:
            raise LabError(f"{folder.path / RUN_FILE}: {others}; train again with the same settings: python -m robustbench_lab train ...")
        return folder.digest
    except Missing:
        objects(run)  # a wrong knob is why
        words = "/".join(run.choices[group] for group in ("dataset", "backbone", "defense"))
        missing = f"no finished run for {words} seed {run.config['seed']} ({run.fingerprint})"
        remedy = "; train it with the same settings: python -m robustbench_lab train ..., or add train=true"
        raise LabError(missing + nearest_runs(run, output_root) + remedy) from None


def load_split(dataset: Dataset, split: Split, data: Mapping[str, Any]) -> ImageSet:
    """One of a dataset's splits, from where `data` (root, download, workers) says."""
    return dataset.load(split, root=path_of(data["root"], "data.root"), download=data["download"], workers=data["workers"])
