"""One picture's file as the pixels that a network sees."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from robustbench_lab.errors import LabError

if TYPE_CHECKING:
    from PIL.Image import Image

WHOLE = 2**26  # pixels of a resized picture, up to which it is made whole before it is cut
DEEP = re.compile(r"^[IF]|^L;16|;16[BLN]|BC6H")  # Pillow's names of how pixels are stored, where that is more than 8 bits a channel
BITS_PER_SAMPLE = 258  # the tag of TIFF


def read(file: str, channels: int, resize: int, size: int, background: int | None) -> Tensor:
    """The picture in a file, uint8 [channels, size, size]; the knobs are ImageFolder's. Raises LabError, naming the file and why not."""
    from PIL import Image

    if not os.path.isfile(file):  # a pipe might never end
        raise LabError(f"{file} cannot be read as an image (it is no file); repair or remove it")
    try:
        with Image.open(file) as opened:
            if too_deep(opened):
                raise LabError(f"has more than 8 bits a channel (mode {opened.mode}), which would be cut off; convert it to 8 bits")
            picture = opaque(opened, background).convert("L" if channels == 1 else "RGB")
        pixels = np.array(centre(picture, resize, size))
    except LabError as error:
        raise LabError(f"{file} {error}") from None
    except Exception as error:
        raise LabError(f"{file} cannot be read as an image ({error}); repair or remove it") from error
    return torch.from_numpy(pixels).reshape(size, size, channels).permute(2, 0, 1).contiguous()


def opaque(picture: Image, background: int | None) -> Image:
    """The picture before a background of this grey level, where one can see through it. Raises LabError where the level is not said."""
    from PIL import Image

    if "A" not in picture.getbands() and "transparency" not in picture.info:
        return picture
    seen = picture.convert("RGBA")
    if seen.getchannel("A").getextrema()[0] == 255:
        return seen
    if background is None:
        raise LabError("has transparent pixels: say what is behind them by dataset.background, such as 255 for white or 0 for black")
    return Image.alpha_composite(Image.new("RGBA", seen.size, (background, background, background, 255)), seen)


def centre(picture: Image, resize: int, size: int) -> Image:
    """The middle of the picture after its shorter side was resized, with torchvision's rounding (Resize and CenterCrop), so that its
    published models see what they were trained on."""
    from PIL.Image import Resampling

    width, height = (int(resize * side / min(picture.size)) for side in picture.size)
    left, top = (round((side - size) / 2) for side in (width, height))
    if width * height <= WHOLE:
        return picture.resize((width, height), Resampling.BILINEAR).crop((left, top, left + size, top + size))
    # A strip, whose whole would take gigabytes: only what is cut out is made. It differs by a grey level or two.
    across, down = picture.width / width, picture.height / height
    box = (left * across, top * down, (left + size) * across, (top + size) * down)
    return picture.resize((size, size), Resampling.BILINEAR, box=box)


def too_deep(picture: Image) -> bool:
    """Whether the file has more than 8 bits a channel, before it is decoded: Pillow gives 8 of colour whatever there is, without a word."""
    return picture.mode.startswith(("I", "F")) or any(DEEP.search(name) for name in _stored(picture)) or max(_bits(picture), default=8) > 8


def _stored(picture: Image) -> Iterator[str]:
    """How Pillow calls the order of bits and bytes that it decodes: `RGB;16B`."""
    for tile in getattr(picture, "tile", ()):
        yield from (part for part in (tile[3] if isinstance(tile[3], tuple) else tile[3:4]) if isinstance(part, str))


def _bits(picture: Image) -> list[int]:
    """Of the channels, in formats of which Pillow does not tell: as their headers do."""
    if picture.format == "PPM":  # the largest value comes last in the arguments of its decoder
        return [int(tile[3][-1]).bit_length() for tile in picture.tile if isinstance(tile[3], tuple)]  # type: ignore[attr-defined]
    if picture.format == "TIFF":
        return list(picture.tag_v2.get(BITS_PER_SAMPLE, ()))  # type: ignore[attr-defined]
    if picture.format not in ("JPEG2000", "AVIF"):
        return []
    with open(picture.filename, "rb") as file:  # type: ignore[attr-defined]
        content = file.read()
    if picture.format == "AVIF":  # the box av1C (AV1 in ISO-BMFF, section 2.3): its third byte holds the flag high_bitdepth
        return [10 if flags[1][0] & 0x40 else 8 for flags in re.finditer(rb"av1C..(.)", content, re.DOTALL)]
    place = content.find(b"\xff\x4f\xff\x51") + 40  # the segment SIZ (ISO 15444-1, A.5.1), after the code stream's first two markers
    count = int.from_bytes(content[place : place + 2], "big")
    return [(bits & 0x7F) + 1 for bits in content[place + 2 : place + 2 + 3 * count : 3]]
