"""Defenses with noise in their layers: what training leaves on disk is the model that was trained, noise and all."""

from contextlib import suppress

import pytest
import torch

from robustbench_lab.models.defended import Defended
from robustbench_lab.models.noise import noise_layers
from robustbench_lab.settings.identity import run_at_words
from robustbench_lab.storage.records import CHECKPOINT_FILE, MODEL_FILE
from robustbench_lab.training import making
from robustbench_lab.training.checkpoints import read_tensors
from robustbench_lab.training.runs import load_run

CPU = torch.device("cpu")
# Trained for 3 epochs; Learn2Perturb's noise begins in the second, so that the checkpoint of the first holds a network without it.
DEFENSES = {
    "learn2perturb": ["defense=learn2perturb_quick", "defense.attack.steps=2"],
    "adv_bnn": ["defense=adv_bnn", "defense.passes=3", "defense.attack.steps=2"],
    "rse": ["defense=rse", "defense.passes=3"],
    "pni": ["defense=pni_quick", "defense.attack.steps=2"],
}
EXTRA = {"learn2perturb": "_extra_state", "adv_bnn": "log_sigma", "rse": "", "pni": "alpha.weight"}


def predicted(model: Defended, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    with torch.no_grad():
        return model.eval()(torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("name", DEFENSES)
def test_a_finished_run_says_the_same_as_the_model_that_was_trained(name, lab, lab_in, outputs, tmp_path, tiny, monkeypatch):
    """Read back, under one seed; and after an interruption behind the first epoch, when the rest was trained from the checkpoint."""
    words = [*tiny, *DEFENSES[name]]
    trained: list[Defended] = []
    fit = making.fit
    monkeypatch.setattr(making, "fit", lambda defense, model, *rest: trained.append(model) or fit(defense, model, *rest))
    ended = lab("train", *words)
    assert ended.status == 0, ended.err
    run = run_at_words([word for word in words if not word.startswith("device")])
    model = load_run(run, outputs, CPU)[1]

    assert torch.equal(predicted(model), predicted(trained[0]))
    assert not torch.equal(predicted(model), predicted(model, seed=1)), "the noise is on"
    assert all(layer.active for layer in noise_layers(model))
    fresh = making.objects(run)[1]
    assert not torch.equal(predicted(model), predicted(fresh))
    tensors, _ = read_tensors(run.folder(outputs) / MODEL_FILE)
    assert any(EXTRA[name] in key for key in tensors)

    other = tmp_path / "interrupted"

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(making, "_write_metrics", stop)
        assert lab_in(other, "train", *words).status == 130
    assert (run.folder(other) / CHECKPOINT_FILE).exists()
    ended = lab_in(other, "train", *words)
    assert ended.status == 0, ended.err
    assert "after epoch 1" in ended.err
    assert torch.equal(predicted(load_run(run, other, CPU)[1]), predicted(model))
