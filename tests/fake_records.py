"""Records, runs and examples as training and attacking would leave them, with figures that a test chooses; nothing is trained."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robustbench_lab.intervals import wilson_interval
from robustbench_lab.settings.identity import Evaluation, Run, fingerprint
from robustbench_lab.storage.files import read_json, to_json
from robustbench_lab.tables.cells import Cell

WHERE = {
    "device": "a device", "platform": "a platform", "commit": "0123456789abcdef+changes", "command": "python -m robustbench_lab evaluate",
    "versions": {"python": "3.11.7", "torch": "2.9", "absent": None}, "finished_at": "2026-11-21T10:50:52+00:00",
}  # fmt: skip


def train(run: Run, outputs: Path, epochs: Sequence[dict[str, float]] = (), **more: Any) -> Path:
    """The folder of a finished run."""
    folder = run.folder(outputs)
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "schema": 1, "fingerprint": run.fingerprint, "choices": run.choices, "config": run.config,
        "model_digest": f"weights of {run.fingerprint}", "parameters": 12345, "epochs": len(epochs),
        "seconds": sum(epoch["seconds"] for epoch in epochs), **WHERE,
    }  # fmt: skip
    write(folder / "run.json", content | more)
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"epoch": i, **epoch}) + "\n" for i, epoch in enumerate(epochs, 1)))
    return folder


def evaluate(evaluation: Evaluation, outputs: Path, clean: int, robust: int, n: int = 10, **more: Any) -> Path:
    """The folder of an evaluation of a run that is trained."""
    run = evaluation.run
    folder = evaluation.folder(outputs)
    record = {
        "schema": 1, "fingerprint": evaluation.fingerprint, "run": about(run),
        "source": about(evaluation.source) if evaluation.source else None,
        "choices": evaluation.choices, "config": evaluation.config, "n": n, "attacked": clean,
        **accuracies(clean, robust, n), "forward_per_attacked_image": 21.0, "backward_per_attacked_image": 20.0, "seconds": 2.0,
        "stages": [], "warnings": [], **asked_for(evaluation, robust, n), **WHERE,
    }  # fmt: skip
    write(folder / "record.json", record | more)
    return folder


def accuracies(clean: int, robust: int, n: int) -> dict[str, Any]:
    return {
        "clean_correct": clean, "clean_accuracy": clean / n, "clean_interval": wilson_interval(clean, n),
        "robust_correct": robust, "robust_accuracy": robust / n, "robust_interval": wilson_interval(robust, n),
    }  # fmt: skip


def asked_for(evaluation: Evaluation, robust: int, n: int) -> dict[str, Any]:
    """What only some words measure: every metric is 0.25 +- 0.05 over the broken images."""
    metric = {"mean": 0.25, "interval": [0.2, 0.3], "n": n - robust}
    attacked = {"attacked_accuracy": (robust + 0.5) / n, "attacked_interval": wilson_interval(robust + 0.5, n)}
    return {
        "draws": None, "metrics": dict.fromkeys(evaluation.config.get("metric", {}), metric),
        **(attacked if evaluation.config.get("attack_misclassified") else {}),
    }  # fmt: skip


def about(run: Run) -> dict[str, Any]:
    digest = f"weights of {run.fingerprint}"
    return {"name": run.name, "fingerprint": run.fingerprint, "choices": run.choices, "seed": run.config["seed"], "model_digest": digest}


def outcome(folder: Path, distance: Sequence[float] | None = None) -> None:
    """outcome.npz of a record's figures: the first images are right, clean and attacked; of as many images as there are distances."""
    record = read_json(folder / "record.json")
    n = record["n"] if distance is None else len(distance)
    index = np.arange(n)
    clean, robust = index < record["clean_correct"], index < record["robust_correct"]
    distances = np.zeros(n) if distance is None else np.array(distance)
    np.savez_compressed(
        folder / "outcome.npz", index=index, clean=clean, robust=robust, right=robust.astype(float), distance=distances,
        broken_by=np.where(robust, -1, 0), stages=np.array(["attack"]),
    )  # fmt: skip


def ray(folder: Path, lost: Sequence[float], points: int, free: bool = True) -> None:
    """ray.npz, each image right up to the place `lost` of the way, in [0, 1], and wrong from there on; below 0: never right."""
    t = np.linspace(0, 1, points + 1)
    right = t < np.array(lost)[:, None]
    index, inside = np.arange(len(lost)), np.full(len(lost), free)
    np.savez_compressed(folder / "ray.npz", index=index, t=t, right=np.packbits(right, axis=1), free=inside)


def write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_json(content))


def draw_examples(folder: Path, shape: Sequence[int] = (6, 1, 8, 8)) -> None:
    np.savez_compressed(folder / "examples.npz", **examples(shape))  # type: ignore[arg-type]


def examples(shape: Sequence[int] = (6, 1, 8, 8)) -> dict[str, np.ndarray]:
    """What is in examples.npz: dark to bright, every second image moved: up by 0.25 at its first pixel, down by 0.125 at its last."""
    x = np.linspace(0, 255, int(np.prod(shape[1:]))).round().astype(np.uint8).reshape(shape[1:])
    delta = np.zeros(shape, np.float16)
    delta[::2, :, 0, 0], delta[::2, :, -1, -1] = 0.25, -0.125
    label = np.arange(shape[0])
    moved = np.arange(shape[0]) % 2 == 0
    arrays = {"index": 100 + label, "label": label, "clean_prediction": label, "prediction": np.where(moved, label + 1, label)}
    return {"x": np.broadcast_to(x, shape), "delta": delta, **arrays}


def panel(key: str = "abc", eps: float = 0.1, **accuracy: float) -> dict[str, Any]:
    given = {"one_step": 0.6, "iterated": 0.5, "longer": 0.5, "margin": 0.5, "larger": 0.1, "unbounded": 0.0, "queries": 0.5, "random": 0.9}
    return {"key": key, "norm": "linf", "eps": eps, "n": 100, "clean_accuracy": 0.97, "accuracy": given | accuracy}


def fill_plausibly(cells: Sequence[Cell], outputs: Path) -> None:
    """Every cell filled with figures that look like an experiment's: near the published one where there is one."""
    for cell, evaluation in ((one, measurement.evaluation) for one in cells for measurement in one.measurements):
        n = 10_000
        chance = np.random.default_rng(int(evaluation.fingerprint + evaluation.run.fingerprint, 16))
        for run in (evaluation.run, evaluation.source):
            if run is not None and not (run.folder(outputs) / "run.json").exists():
                of_run = np.random.default_rng(int(run.fingerprint, 16))
                best, speed = of_run.uniform(0.8, 0.99), of_run.uniform(2, 6)
                rows = [
                    {
                        "seconds": float(of_run.uniform(20, 40)), "images_per_second": 1500.0,
                        "loss_model": float(2.3 * np.exp(-i / speed) + 0.1),
                        "validation_accuracy": float(best * (1 - np.exp(-(i + 1) / speed)) + of_run.normal(0, 0.004)),
                    }
                    for i in range(of_run.integers(8, 25))
                ]  # fmt: skip
                train(run, outputs, rows)
        published = cell.published if cell.published is not None and cell.in_percent else chance.uniform(20, 90)
        robust = int(np.clip(published + chance.normal(0, 3), 0, 98) * n / 100)
        clean = max(robust, int(n * chance.uniform(0.9, 0.995)))
        warnings = []
        if evaluation.source is not None:
            warnings = [{"code": "transfer_only", "message": "the attacker did not see the defended model"}]
        ball = evaluation.config["budget"]["eps"]
        shares = {name: round(float(chance.uniform(0, 0.9)), 2) for name in ("one_step", "iterated", "longer", "margin", "queries")}
        more = {"warnings": warnings, "panel": panel(f"{evaluation.run.fingerprint}{ball}", ball, **shares)}
        folder = evaluate(evaluation, outputs, clean, robust, n, seconds=float(chance.uniform(3, 400)), **more)
        draw_examples(folder, (6, *((3, 32, 32) if evaluation.run.choices["dataset"] == "cifar10" else (1, 28, 28))))


def multiply(outputs: Path, count: int) -> None:
    """Records of further evaluations, in no table, until there are `count`."""
    models = sorted((outputs / "runs").glob("*/evaluate/*/record.json"))
    patterns = [read_json(path) for path in models]
    attacks = ["fgsm", "pgd", "pgd100", "mim", "autoattack", "square", "deepfool", "carlini_wagner"]
    for i in range(count - len(models)):
        path, record = models[i % len(models)], dict(patterns[i % len(models)])
        attack = attacks[i % len(attacks)]
        record["fingerprint"] = fingerprint({"number": i})
        record["choices"] = {**record["choices"], "attack": attack}
        robust = int(hashlib.blake2b(str(i).encode(), digest_size=2).hexdigest(), 16) % 9000
        record |= accuracies(9500, robust, 10_000)
        write(path.parent.parent / f"{attack}-{record['choices']['threat_model']}-{record['fingerprint']}" / "record.json", record)
