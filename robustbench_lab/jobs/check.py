"""Look for signs of hidden gradients in a finished run, and print what was found."""

from __future__ import annotations

import logging

from omegaconf import DictConfig

from robustbench_lab.devices import device_of
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation.look import Look
from robustbench_lab.evaluation.protocol import Protocol
from robustbench_lab.evaluation.warnings import panel_lines, signs
from robustbench_lab.models.network_space import as_shown, look_at_pixels
from robustbench_lab.settings.build import build
from robustbench_lab.settings.conf import current_choices, current_overrides, output_root_of, place_of, plain
from robustbench_lab.settings.identity import run_of
from robustbench_lab.settings.images import Images
from robustbench_lab.threats import Budget
from robustbench_lab.training.making import make_missing
from robustbench_lab.training.runs import check_budget, check_classifier, digest_of, load_run, load_split

log = logging.getLogger("robustbench_lab")


def main(cfg: DictConfig) -> None:
    run, output_root = run_of(cfg, current_choices(), current_overrides()), output_root_of(cfg)
    protocol = Protocol(
        seed=cfg.attack_seed,
        batch_size=cfg.batch_size,
        draws=cfg.verdict_draws,
        eot_samples=cfg.eot_samples,
        precision=cfg.search_precision,
    )
    check_classifier(run)
    check_budget(run, build(plain(cfg, "budget")["budget"], "budget", Budget), "budget")
    look = Look.of(plain(cfg, "panel", "budget", "dataset"), run, protocol)
    where = plain(cfg, "data")["data"]
    images = Images(where["root"])
    make_missing([run], place_of(cfg), bool(cfg.train))
    if look.key(digest_of(run, output_root, images.of_run(run))) is None:
        raise LabError("panel.images: expected at least 1 for the verb check, got 0; use panel=full or panel=default")
    device = device_of(cfg.device)
    dataset, defended, _ = load_run(run, output_root, device)
    if cfg.dataset.get("space") == "pixels":
        look_at_pixels(defended)
    data = as_shown(defended, load_split(dataset, "test", where).to(device))
    facts = look.facts(defended, data, protocol, run.at(output_root), bool(cfg.force), images.of_split(run, "test"))
    print(f"{run.name}: {look.ball.norm} {look.ball.eps:.4g}, n = {facts['n']}\n")
    print("\n".join(panel_lines(facts, signs(look.panel, facts))))
