"""Images that a training makes once: made again only where they are gone, damaged, or of another run."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.training import extra
from robustbench_lab.training.extra import kept_images

MARK = {"run": "0123abcd"}
CPU = torch.device("cpu")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[ImageSet]:
    monkeypatch.setattr(extra, "WORTH_KEEPING", 0.0)
    return []


def maker(made: list[ImageSet]) -> Callable[[], ImageSet]:
    def make() -> ImageSet:
        time.sleep(0.001)
        made.append(ImageSet(torch.rand(3, 1, 2, 2), torch.arange(3), -1 - torch.arange(3)))
        return made[-1]

    return make


def test_a_resumed_training_has_the_same_images(tmp_path: Path, made: list[ImageSet]) -> None:
    path = tmp_path / "extra.safetensors"
    first, again = (kept_images(path, MARK, CPU, maker(made)) for _ in range(2))
    assert len(made) == 1
    assert all(torch.equal(getattr(first, part), getattr(again, part)) for part in ("images", "labels", "ids"))


def test_what_is_of_another_run_or_damaged_is_made_anew(tmp_path: Path, made: list[ImageSet], caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "extra.safetensors"
    kept_images(path, MARK, CPU, maker(made))
    kept_images(path, {"run": "other"}, CPU, maker(made))
    assert "is of other images or another run" in caplog.text
    content = bytearray(path.read_bytes())
    path.write_bytes(content[: len(content) // 2])
    kept_images(path, {"run": "other"}, CPU, maker(made))
    assert len(made) == 3
    kept_images(path, {"run": "other"}, CPU, maker(made))
    assert len(made) == 3


def test_what_cannot_be_written_is_told_and_training_goes_on(
    tmp_path: Path, made: list[ImageSet], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "no").write_text("a file where a folder should be")
    assert kept_images(tmp_path / "no" / "extra.safetensors", MARK, CPU, maker(made)) is not None
    assert "not kept for a resumed training" in caplog.text


def test_what_was_made_quickly_is_not_written(tmp_path: Path) -> None:
    kept_images(tmp_path / "extra.safetensors", MARK, CPU, maker([]))
    assert not list(tmp_path.iterdir())
