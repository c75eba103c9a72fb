"""Images as the network is fed them: where they lie, that the two ways through the model agree, and the way back to pixels."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import open_dict
from torch import nn

from robustbench_lab.attacks.deepfool import perturbation
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation.asked import protocol_of
from robustbench_lab.evaluation.look import Look
from robustbench_lab.fronts.bit_depth import BitDepth
from robustbench_lab.jobs.evaluate import job as evaluate
from robustbench_lab.models.defended import Classifier, Defended
from robustbench_lab.models.network_space import NetworkSpace, as_shown, check_same_space, look_at_pixels
from robustbench_lab.models.normalise import FirstLayer, MeanImage, Normalise, Whitening
from robustbench_lab.settings.conf import compose, place_of, plain
from robustbench_lab.settings.identity import evaluation_of, run_of, setting_of
from robustbench_lab.training.making import make_run

SHAPE = (3, 4, 4)


def pixels(n: int = 60) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    shades = torch.rand(n, 1, 1, 1, generator=generator) * torch.linspace(0.2, 1, 4)
    images = (shades * torch.rand(n, *SHAPE, generator=generator)).clamp(0, 1)
    return ImageSet(images, torch.arange(n) % 2, torch.arange(n))


LAYERS = {
    "mean image": lambda: MeanImage(3, 4, 255.0),
    "whitening": lambda: Whitening(3, 4, 255.0, 40.0, 10.0),
    "per channel": lambda: Normalise([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]),
    "none": FirstLayer,
}


@pytest.fixture(params=sorted(LAYERS))
def model(request: pytest.FixtureRequest) -> Defended:
    """A linear classifier whose first layer has seen the images."""
    layer = LAYERS[request.param]()
    layer.fit(pixels())
    span = 4096.0 if request.param in ("mean image", "whitening") else 40.0
    return Defended(Classifier(NetworkSpace(layer, span), nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), SHAPE)).eval()


def test_both_ways_through_the_model_agree(model: Defended) -> None:
    data = pixels()
    shown = as_shown(model, data)
    assert torch.equal(shown.labels, data.labels)
    assert torch.equal(shown.ids, data.ids)
    low, high = shown.images.aminmax()
    assert 0.25 <= float(low) <= float(high) <= 0.75, "room for an attack on each side"
    from_space = model(shown.images)
    look_at_pixels(model)
    assert as_shown(model, data) is data
    torch.testing.assert_close(model(data.images), from_space, atol=1e-3, rtol=1e-3)


def test_the_way_back_to_pixels(model: Defended) -> None:
    data, space = pixels(), model.network.normalise
    shown = as_shown(model, data).images
    torch.testing.assert_close(space.pixels(shown, data.images), data.images, atol=1e-4, rtol=0)
    changed = shown + 1e-3 * torch.randn(shown.shape, generator=torch.Generator().manual_seed(1))
    back = space.pixels(changed, data.images)
    assert float((back - data.images).abs().max()) > 1e-3
    if not isinstance(space.layer, Whitening):  # there the changed image has another mean and contrast of its own
        torch.testing.assert_close(0.5 + space.layer(back) / space.span, changed, atol=1e-5, rtol=0)


def test_no_box_stops_a_search_there() -> None:
    """A linear classifier whose nearest boundary is outside the pixel range: DeepFool's distance is |logit difference| / |weights|."""
    layer = MeanImage(1, 1, 255.0)
    layer.fit(ImageSet(torch.tensor([[[[0.0]]], [[[1.0]]]]), torch.zeros(2, dtype=torch.int64), torch.arange(2)))
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    backbone[1].weight.data, backbone[1].bias.data = torch.tensor([[1.0], [-1.0]]), torch.tensor([200.0, -200.0])
    model = Defended(Classifier(NetworkSpace(layer, 1020.0), backbone))
    u = as_shown(model, ImageSet(torch.tensor([[[[0.5]]]]), torch.tensor([0]), torch.tensor([0]))).images  # fed 0; the boundary is at -200
    found = perturbation(lambda x, rows: model(x), u, torch.tensor([0]), "l2", 5, 2, 0.02)
    assert float(found) * 1020 == pytest.approx(-1.02 * 200, rel=1e-5)


def test_too_small_a_span_and_fronts_are_refused() -> None:
    layer = MeanImage(3, 4, 255.0)
    layer.fit(pixels())
    network = Classifier(NetworkSpace(layer, 300.0), nn.Flatten(), SHAPE)
    with pytest.raises(
        LabError, match=r"^dataset\.normalise\.span: expected 4 times the largest value that the network is fed, [\d.]+, or"
    ):
        as_shown(Defended(network), pixels())
    with pytest.raises(LabError, match=r"^dataset\.normalise: expected a first layer on pixels, for a defense with pre-processing"):
        as_shown(Defended(network, [BitDepth(1)]), pixels())
    with pytest.raises(LabError, match=r"^span: expected a finite number > 0"):
        NetworkSpace(layer, 0.0)


def test_models_of_other_spaces_are_not_mixed() -> None:
    def model(span: float, images: ImageSet) -> Defended:
        layer = MeanImage(3, 4, 255.0)
        layer.fit(images)
        return Defended(Classifier(NetworkSpace(layer, span), nn.Flatten(), SHAPE))

    ours, plain = model(1020.0, pixels()), Defended(Classifier(FirstLayer(), nn.Flatten(), SHAPE))
    check_same_space(ours, model(1020.0, pixels()), "defense.teacher")
    check_same_space(plain, plain, "defense.teacher")
    for other in (plain, model(2040.0, pixels()), model(1020.0, pixels(20))):
        with pytest.raises(LabError, match=r"^defense\.teacher: expected a run whose images have gone through the same preprocessing"):
            check_same_space(ours, other, "defense.teacher")
    with pytest.raises(LabError, match=r"^threat_model\.overrides: "):
        check_same_space(plain, ours, "threat_model.overrides")


def test_the_ball_of_the_network_s_space_is_none_of_pixels() -> None:
    words = ["dataset=digits_mean_subtracted", "dataset.space=pixels", "training=digits"]
    for more, key in (([], r"budget\.eps"), (["budget=box", "attack=deepfool"], "panel")):
        cfg, choices = compose("evaluate", [*words, *more])
        with pytest.raises(LabError, match=rf"^{key}: expected .*dataset\.space=pixels"):
            Look.of(plain(cfg, "panel", "budget", "dataset"), run_of(cfg, choices, words), protocol_of(setting_of(cfg), 10))


def test_a_run_is_trained_there_and_attacked_in_either_space(tmp_path: Path) -> None:
    """The run has one name; its evaluations in the two spaces have two, and the pictures of both are of pixels."""
    words = ["normalise@dataset.normalise=mean_image_network_space", "backbone=mlp", "backbone.hidden=[20]", "training.epochs=2",
             "training.optimizer.lr=0.001", "device=cpu", f"output_root={tmp_path}"]  # fmt: skip
    cfg, choices = compose("train", words)
    folder = make_run(run_of(cfg, choices, words), place_of(cfg))
    examples, names = {}, set()
    for space in ("network", "pixels"):
        said = [
            *words,
            "attack=fgsm",
            "budget.eps=8/1020" if space == "network" else "budget.eps=8/255",
            "panel=none",
            "dataset.test_size=40",
        ]
        cfg, choices = compose("evaluate", said)
        with open_dict(cfg):
            cfg.dataset.space = space
        made = evaluate(cfg, evaluation_of(cfg, choices, said))
        record = json.loads((made / "record.json").read_text())
        assert record["run"]["fingerprint"] == folder.name[-8:]
        assert record["clean_accuracy"] > 0.5
        names.add(made.name)
        with np.load(made / "examples.npz") as arrays:
            examples[space] = {name: arrays[name] for name in ("x", "delta")}
    assert len(names) == 2
    assert np.array_equal(examples["network"]["x"], examples["pixels"]["x"])
    for arrays in examples.values():  # 8 of 255 in both, where the box does not cut it; images that were wrong are not attacked
        inside = (arrays["x"] > 10) & (arrays["x"] < 245) & arrays["delta"].any(axis=(1, 2, 3), keepdims=True)
        assert inside.sum() > 100
        assert np.abs(arrays["delta"][inside]) == pytest.approx(8 / 255, abs=2e-4)
    cfg.dataset.space = "frequencies"
    with pytest.raises(LabError, match=r"^dataset\.space: expected network or pixels, got 'frequencies'"):
        evaluation_of(cfg, choices, said)
