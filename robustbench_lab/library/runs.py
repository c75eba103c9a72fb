"""What was trained by `python -m robustbench_lab train`: its model and its images."""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from robustbench_lab.datasets.base import Dataset, ImageSet, Split, StreamedImageSet
from robustbench_lab.devices import device_of
from robustbench_lab.errors import LabError
from robustbench_lab.knobs import check
from robustbench_lab.library.lending import program_as_it_was
from robustbench_lab.models.defended import Defended
from robustbench_lab.models.network_space import as_shown, network_space
from robustbench_lab.settings.build import dataset_of
from robustbench_lab.settings.conf import compose, output_root_of, path_of, place_of
from robustbench_lab.settings.identity import Run, run_of
from robustbench_lab.settings.overrides import readable, written_out
from robustbench_lab.settings.standalone import hydra_set_aside
from robustbench_lab.storage.files import names_in
from robustbench_lab.storage.folders import RunFolder
from robustbench_lab.storage.records import RUN_FILE
from robustbench_lab.training.making import make_missing
from robustbench_lab.training.runs import digest_of, load_from, load_split

Words = str | Sequence[str] | Path


def load_run(run: Words, output_root: str | Path | None = None, device: str = "cpu") -> Defended:
    """The trained model of a finished run: eval mode, images [B, C, H, W] in [0, 1] to logits [B, K], normalisation inside.

    run: the words of its `train`, "defense=fm seed=1" or a list of them; or its folder's name, fingerprint or path.
    output_root: where runs are, if not where the command line has them.
    Raises LabError, with the nearest, where there is none, and where its weights are damaged.
    """
    found = _found(run, output_root)
    with program_as_it_was(0):
        return load_from(found.run, found.folder, device_of(device))[1]


def load_images(run: Words, split: Split = "test", output_root: str | Path | None = None) -> ImageSet:
    """The images of a finished run's dataset, for `evaluate` and `check`: `images` float32 [N, C, H, W] in [0, 1], `labels` and `ids` int64
    [N]; a large dataset is decoded when it is asked for, and has no `images`. Where a run's first layer shows it other pixels, those."""
    found = _found(run, output_root)
    with program_as_it_was(0):
        read = load_split(dataset_of(found.run.config, Dataset), split, found.data)
        model = load_from(found.run, found.folder, torch.device("cpu"))[1]
    shown = read if network_space(model) is None else as_shown(model, read)
    if isinstance(shown, StreamedImageSet) or shown.images.dtype == torch.float32:
        return shown
    return ImageSet(shown.images.float() / 255, shown.labels, shown.ids)


@dataclass(frozen=True)
class _Found:
    run: Run
    folder: RunFolder
    data: Mapping[str, Any]  # where images are


def _found(given: Words, output_root: str | Path | None) -> _Found:
    words = _words(given)
    with hydra_set_aside():
        cfg, choices = compose("train", [readable(word) for word in words or []])
        place = place_of(cfg)
        root = output_root_of(cfg) if output_root is None else path_of(output_root, "output_root")
        if words is None:
            folder = _folder(str(given), root)
            record = folder.record
            return _Found(Run(record["config"], record["choices"]), folder, place.data)
        run = run_of(cfg, choices, words)
        make_missing([run], replace(place, output_root=root), train=False)
        digest_of(run, root)
        return _Found(run, run.at(root), place.data)


def _words(given: Words) -> list[str] | None:
    """The words of `train`; None for what names a folder."""
    if isinstance(given, str):
        try:
            words = shlex.split(given)
        except ValueError as error:  # a quotation that does not end
            raise LabError(f"run: expected words such as 'defense=fm seed=1', or a run's name, got {given!r} ({error})") from error
        if words and not any("=" in word for word in words):
            return None
        return written_out(words)
    if isinstance(given, Path):
        return None
    check("run", given, Sequence[str])
    return written_out(given)


def _folder(name: str, output_root: Path) -> RunFolder:
    """Of a name, a fingerprint or a path. Raises LabError, with the nearest names, where there is none."""
    if os.path.isfile(path_of(name, "run") / RUN_FILE):
        return RunFolder(path_of(name, "run"))
    there = [one for one in names_in(output_root / "runs") if os.path.isfile(output_root / "runs" / one / RUN_FILE)]
    named = [one for one in there if one == name or one.endswith(f"-{name}")]
    if len(named) == 1:
        return RunFolder(output_root / "runs" / named[0])
    if named:
        raise LabError(f"run: expected the name of one run, got {name!r}, which could be {', '.join(named)}")
    nearest = difflib.get_close_matches(name, there, n=3, cutoff=0.3)
    hint = f"; nearest: {', '.join(nearest)}" if nearest else f"; there are {len(there)} finished runs"
    raise LabError(f"run: no finished run {name!r} in {output_root / 'runs'}{hint}; train it: python -m robustbench_lab train ...")
