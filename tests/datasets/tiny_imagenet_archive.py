"""A small archive in Tiny-ImageNet's layout."""

import hashlib
import io
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


@cache
def archive_with(drop: str = "") -> bytes:
    """`tiny-imagenet-200.zip` with one random picture of each class in train and in val, less what ends in `drop` or is that line of the
    annotations. The first picture of each split is grey; the annotations go through the classes backwards."""
    rng = np.random.default_rng(0)

    def jpeg(number: int) -> bytes:
        levels = rng.integers(0, 256, (2, 2) if number == 0 else (2, 2, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(levels).resize((64, 64), Image.Resampling.NEAREST).save(file, "JPEG")
        return file.getvalue()

    names = [f"n{number:08d}" for number in range(200)]
    lines = [f"val_{number}.JPEG\t{name}\t0\t0\t63\t63\n" for number, name in enumerate(reversed(names))]
    files: dict[str, Any] = {"": b"", "words.txt": b"words", "test/images/test_0.JPEG": b"not read"}
    for number in (*range(100, 200), *range(100)):  # an archive need not be in order
        files[f"train/{names[number]}/{names[number]}_boxes.txt"] = b"boxes"
        files[f"train/{names[number]}/images/{names[number]}_0.JPEG"] = jpeg(number)
        files[f"val/images/val_{number}.JPEG"] = jpeg(number)
    files["val/val_annotations.txt"] = "".join(line for line in lines if not drop or not line.startswith(drop)).encode()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        for name, content in files.items():
            if not drop or not name.endswith(drop):
                opened.writestr(f"tiny-imagenet-200/{name}", content)
    return archive.getvalue()


def put(root: Path, archive: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "tiny-imagenet-200.zip").write_bytes(archive)
    monkeypatch.setattr("robustbench_lab.datasets.tiny_imagenet.MD5", hashlib.md5(archive).hexdigest())
