#!/usr/bin/env python3
"""Weights of ImageNet that torchvision publishes, under the names of our networks, for a run to begin from (training.weights=FILE).

    python scripts/torchvision_weights.py resnet18_imagenet resnet18.safetensors

torchvision downloads them once (its IMAGENET1K_V1) and checks them against the digest in their name. They are for 1,000 classes of 224x224
images under dataset.normalise=imagenet.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import get_model, get_model_weights

from robustbench_lab.backbones.base import Backbone
from robustbench_lab.errors import LabError
from robustbench_lab.settings.build import build
from robustbench_lab.settings.conf import compose, plain

NETWORKS = {"alexnet": "alexnet", "resnet18_imagenet": "resnet18"}  # our choices of `backbone`, and torchvision's names


def renamed(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors under our names; both networks have the same ones in the same order.

    Raises LabError where a tensor has another shape, or is another part of its layer.
    """
    if len(theirs) != len(ours):
        raise LabError(f"expected {len(ours)} tensors, got {len(theirs)}")
    for (name, tensor), (our_name, our_tensor) in zip(theirs.items(), ours.items(), strict=True):
        if tensor.shape != our_tensor.shape or name.rpartition(".")[2] != our_name.rpartition(".")[2]:
            raise LabError(f"expected {our_name} {list(our_tensor.shape)}, got {name} {list(tensor.shape)}")
    return dict(zip(ours, theirs.values(), strict=True))


def main(backbone: str, path: Path) -> None:
    words = ["dataset=image_folder", "dataset.classes=1000", f"backbone={backbone}"]
    network = build(plain(compose("train", words)[0], "dataset", "backbone")["backbone"], "backbone", Backbone)
    theirs = get_model(NETWORKS[backbone])
    theirs.load_state_dict(get_model_weights(NETWORKS[backbone])["IMAGENET1K_V1"].get_state_dict(check_hash=True, weights_only=True))
    save_file(renamed(theirs.state_dict(), network.state_dict()), path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone", choices=list(NETWORKS))
    parser.add_argument("file", type=Path, help="where to write them, such as resnet18.safetensors")
    arguments = parser.parse_args()
    main(arguments.backbone, arguments.file)
