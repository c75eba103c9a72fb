"""Adversarial training on examples made once: attack a finished run's training images, append the results, train anew.

Source: Efficient Defenses 2017, arXiv:1707.06728, sections 4.1 (3) and (4), as the authors' code does it (ART, 2017,
train_adversarially.py): crafted on the plain network, appended to the originals, labelled as they are, retrained.
Where we differ: the held-out images are split off before, so that no attacked copy of one is trained on.
Limits: the examples fool another network than the one that is trained, and it learns them by heart: against attacks on itself it gains
little. The defense that is attacked while it learns is adversarial_training.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.defenses.base import AdversarialDefense, Taught
from robustbench_lab.models.defended import Defended
from robustbench_lab.randomness import ImageRandom

AT_ONCE = 250  # images attacked at a time


@dataclass(frozen=True, kw_only=True)
class StaticAdversarialTraining(Taught, AdversarialDefense):
    """Cross-entropy on the training images and on one adversarial example of each, the same in every epoch.

    examples_alone: true for the examples without the originals, as in the DeepFool paper's fine-tuning (arXiv:1511.04599, section 4.2);
    null, or false, for both.
    """

    examples_alone: bool | None = None

    @property
    def learns_originals(self) -> bool:
        return not self.examples_alone

    def extra_images(self, model: Defended, teacher: nn.Module | None, train_data: ImageSet, seed: int) -> ImageSet:
        assert teacher is not None, "a Taught defense is given the run that it names"
        found = []
        for x, y, ids in train_data.batches(torch.arange(len(train_data)), AT_ONCE):
            found.append(self.attack(teacher, x, y, self.budget, ImageRandom.of(ids, seed, "static")))
        return ImageSet(torch.cat(found), train_data.labels, -1 - train_data.ids)
