"""Look for signs of hidden gradients in a finished run, and print what was found."""

from __future__ import annotations

import logging
from pathlib import Path

from omegaconf import DictConfig

from robustbench_lab.devices import device_of
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation.asked import panel_facts, panel_of
from robustbench_lab.evaluation.warnings import signs
from robustbench_lab.jobs.evaluate import digest_of, how_of
from robustbench_lab.settings.conf import current_choices, plain
from robustbench_lab.settings.identity import run_of
from robustbench_lab.training.runs import load_run

log = logging.getLogger("robustbench_lab")

WORDS = {
    "one_step": "one step",
    "iterated": "iterated",
    "longer": "iterated, more steps",
    "margin": "iterated, on the margin",
    "larger": "iterated, larger ball",
    "unbounded": "iterated, no bound",
    "queries": "queries only",
    "random": "random draws",
    "strongest": "AutoAttack",
}


def main(cfg: DictConfig) -> None:
    run, output_root = run_of(cfg, current_choices()), Path(cfg.output_root).absolute()
    look, how = panel_of(cfg), how_of(cfg)
    key = look.key(digest_of(run, output_root), how)
    if key is None:
        raise LabError("panel.images: expected at least 1 for the verb check, got 0; use panel=full or panel=default")
    where = plain(cfg, "data")["data"]
    dataset, defended, _ = load_run(run, run.folder(output_root), device_of(cfg.device))
    data = dataset.load("test", root=Path(where["root"]), download=where["download"], workers=where["workers"]).to(device_of(cfg.device))
    facts = panel_facts(look, key, run, defended, data, how, output_root, cfg.force)
    print(f"{run.name}: {look.ball.norm} {look.ball.eps:.4g}, n = {facts['n']}\n")
    print(f"  {'clean':<24}{100 * facts['clean_accuracy']:7.2f} %")
    for name, accuracy in facts["accuracy"].items():
        print(f"  {WORDS[name]:<24}{100 * accuracy:7.2f} %")
    print(f"  {'gradient of zero':<24}{100 * facts['zero_gradients']:7.2f} %")
    print(f"  {'probabilities':<24}{'yes' if facts['probabilities'] else 'no':>7}")
    print(f"  {'random output':<24}{'yes' if facts['random_output'] else 'no':>7}\n")
    found = signs(look.panel, facts)
    print("\n".join(f"warning {sign['code']}: {sign['message']}" for sign in found) or "no sign of hidden gradients (which proves nothing)")
