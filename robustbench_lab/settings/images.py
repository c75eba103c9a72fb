"""Which images a run or an evaluation is made from, by digests of the files: a path in a config does not say what is behind it.

Only of datasets that have a `path`: others are made by a program, or their files have published checksums and are refused without.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustbench_lab.settings.identity import Evaluation, Run
from robustbench_lab.storage import image_files

NO_IMAGES: Mapping[str, str] = {}


class Images:
    """Digests of images under a data root, by what they are for: `train`, `test`, `run.train`, `source.teacher.train`.

    Each is worked out once: what changes while this lives is noticed by the next one. What cannot be read has none.
    """

    def __init__(self, root: object) -> None:
        self.root = root
        self._known: dict[Path, str | None] = {}

    def of_run(self, run: Run) -> dict[str, str]:
        """Those that its weights depend on: its own, and those of the runs that it learns from."""
        taught = _prefixed("teacher", self.of_run(run.teacher)) if run.teacher else {}
        return self.of_split(run, "train") | taught

    def of_evaluation(self, evaluation: Evaluation) -> dict[str, str]:
        """Those that are attacked, and those of its runs."""
        if evaluation.config.get("split") == "validation":
            found = {"validation": digest for digest in self.of_split(evaluation.run, "train").values()}  # noqa: B035 (one, or none)
        else:
            found = self.of_split(evaluation.run, "test")
        for part, run in evaluation.runs.items():
            found |= _prefixed(part, self.of_run(run))
        return found

    def of_split(self, run: Run, split: str) -> dict[str, str]:
        """Those of one split of its dataset."""
        path = run.config["dataset"].get("path")
        if not isinstance(path, str):
            return {}
        folder = image_files.behind(self.root, path) / split
        if folder not in self._known:
            self._known[folder] = image_files.digest(folder)
        known = self._known[folder]
        return {} if known is None else {split: known}


def told(images: Mapping[str, str]) -> dict[str, Any]:
    """What a file says of the images that it was made from; nothing where there is nothing to say."""
    return {"images": dict(images)} if images else {}


def other_images(content: Mapping[str, Any], images: Mapping[str, str]) -> str | None:
    """How a file tells of other images than these; None where it does not, as one from before images were told."""
    known = content.get("images")
    if not isinstance(known, Mapping):
        return None
    others = [name for name, digest in images.items() if known.get(name, digest) != digest]
    return f"it is of other images ({', '.join(others)}) than there are now" if others else None


def _prefixed(part: str, images: Mapping[str, str]) -> dict[str, str]:
    return {f"{part}.{name}": digest for name, digest in images.items()}
