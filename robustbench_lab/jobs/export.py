"""Write a finished run as a folder of its own, for others: weights, settings, a model card with every verdict, and RobustBench's entry."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from robustbench_lab.errors import LabError
from robustbench_lab.output import one_line
from robustbench_lab.settings.conf import compose, path_of, plain, project_path
from robustbench_lab.settings.identity import run_at_words
from robustbench_lab.settings.overrides import quoted
from robustbench_lab.settings.packages import taken
from robustbench_lab.storage.files import storing, to_json, write_bytes, write_text
from robustbench_lab.storage.folders import OutputFolder, RunFolder
from robustbench_lab.storage.records import MODEL_FILE
from robustbench_lab.storage.weights import check_weights
from robustbench_lab.tables.letters import md

log = logging.getLogger("robustbench_lab")

THREATS = {"linf": "Linf", "l2": "L2", "l1": "L1"}  # RobustBench's names of norms
DESCRIBED = ("dataset", "backbone", "defense")  # of a run's settings, what another needs to build the network
UNSAID = ("budget", "test_size", "train_size", "subset_seed", "path")  # of a dataset, what does not


def main(arguments: Sequence[str]) -> None:
    """`export RUN`, or the words of `train`; to=FOLDER, output_root=FOLDER. Raises LabError for a run that is not there."""
    root, to, asked = os.environ.get("ROBUSTBENCH_LAB_OUTPUTS") or project_path("outputs"), None, []
    for word in taken(arguments):
        key, equals, value = word.partition("=")
        if equals and key == "output_root":
            root = value
        elif equals and key == "to":
            to = value
        else:
            asked.append(word)
    output_root = path_of(root, "output_root")
    run = found(asked, output_root)
    folder = path_of(to, "to") if to is not None else output_root / "exported" / run.name
    write(run, folder)
    print(folder)


def found(asked: Sequence[str], output_root: Path) -> RunFolder:
    """A finished run, by its name, its fingerprint or its folder, or by the words of `train`."""
    if not asked:
        raise LabError("export: expected a run: its name, its fingerprint or the words of train; `ls runs` lists the finished ones")
    if any("=" in word for word in asked):
        run = run_at_words(asked).at(output_root)
    else:
        name = Path(asked[0]).name
        runs = OutputFolder(output_root).runs
        match = [run for fingerprint, run in runs.items() if name in (fingerprint, run.name)]
        if len(asked) > 1 or not match:
            raise LabError(
                f"export {' '.join(asked)}: expected one of the {len(runs)} runs in {output_root / 'runs'}; `ls runs` lists them"
            )
        run = match[0]
    check_weights(run.weights, run.digest)  # Missing, where it is not trained
    return run


def write(run: RunFolder, folder: Path) -> None:
    """The folder, whole: what is in it under these names is replaced. Raises LabError for a disk that fails."""
    record = run.record
    records = _records(run)
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run.weights, folder / MODEL_FILE)
    write_bytes(folder / "config.yaml", yaml.safe_dump(record["config"], sort_keys=False, allow_unicode=True).encode())
    write_text(folder / "records.json", to_json(records))
    words = described(record)
    for threat, info in model_infos(record, records).items():
        write_text(folder / f"model_info_{threat}.json", json.dumps(info, indent=2, ensure_ascii=False) + "\n")
    environment = Environment(loader=PackageLoader("robustbench_lab.jobs", "templates"), undefined=StrictUndefined, autoescape=False,
                              trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)  # fmt: skip
    environment.filters.update(md=md, one_line=one_line)
    card = environment.get_template("card.md.j2").render(name=run.name, run=record, records=records, words=words, file=MODEL_FILE)
    write_text(folder / "README.md", card)
    log.info("exported %s with %d records", run.name, len(records))


def _records(run: RunFolder) -> list[dict[str, Any]]:
    """Those of the weights that the run has now, of test images, the lowest robust accuracy first."""
    found = []
    for evaluation in run.evaluations():
        try:
            record = evaluation.record({"run": run.digest})
        except LabError as error:
            log.warning("left out: %s", error)
            continue
        if "split" not in record["config"]:
            found.append(record)
    return sorted(found, key=lambda record: (record["robust_accuracy"], record["fingerprint"]))


def model_infos(run: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """RobustBench's model_info, per threat model in which AutoAttack ran with all to see; what only its author knows is left empty.

    Figures are text there, in percent; `n` and `footnote` say what was measured.
    """
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        budget = record["config"]["budget"]
        threat, eps = THREATS.get(budget["norm"]), budget["eps"]
        white = record["config"]["threat_model"]["sees"] == "defended"
        if threat is None or not white or not record["choices"]["attack"].startswith("autoattack") or not isinstance(eps, int | float):
            continue
        known = found.get(threat)
        if known is not None and known["n"] >= record["n"]:
            continue
        levels = 255 * eps
        found[threat] = {
            "link": "", "name": "", "authors": "", "additional_data": None, "venue": "",
            "number_forward_passes": int(run["config"]["defense"].get("passes") or 1),
            "dataset": run["choices"]["dataset"],
            "architecture": str(run["config"]["backbone"].get("call") or run["choices"]["backbone"]),
            "eps": f"{round(levels)}/255" if math.isclose(levels, round(levels), abs_tol=1e-6) else f"{eps:g}",
            "clean_acc": f"{100 * record['clean_accuracy']:.2f}",
            "reported": "",
            "autoattack_acc": f"{100 * record['robust_accuracy']:.2f}",
            "n": record["n"],
            "footnote": "; ".join(warning.get("message", warning["code"]) for warning in record["warnings"]),
        }  # fmt: skip
    return found


def described(run: Mapping[str, Any]) -> list[str]:
    """The words by which another builds the network: dataset, backbone and defense, and the knobs in which they differ from their files."""
    choices, config = run["choices"], run["config"]
    words = [f"{group}={choices[group]}" for group in DESCRIBED]
    usual = plain(compose("train", words)[0], *DESCRIBED)
    for group in DESCRIBED:
        for key, value in _leaves(config[group], group):
            if (group == "dataset" and key.split(".")[1] in UNSAID) or _at(usual, key) == value or key.endswith("_target_"):
                continue
            words.append(f"{key}={_written(value)}")
    return words


def _leaves(node: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    found = []
    for name, value in node.items():
        key = f"{prefix}.{name}"
        found += _leaves(value, key) if isinstance(value, Mapping) and name != "arguments" else [(key, value)]
    return found


def _at(config: Mapping[str, Any], key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _written(value: Any) -> str:
    """A value as a word of the command line has it."""
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_written(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ",".join(map(_written, value)) + "]"
    return quoted(value) if not str(value).replace("_", "").replace(".", "").isalnum() else str(value)
