"""Files of weights, as far as one can look at them without torch: whether they are whole, and those that somebody speaks of.

A safetensors file (github.com/huggingface/safetensors, "Format"): eight bytes with the length of the header, little-endian; the header,
JSON: of each tensor dtype, shape and data_offsets, and texts in `__metadata__`, ours in its key `lab`; then the tensors' bytes.
"""

from __future__ import annotations

import hashlib
import math
import mmap
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypedDict

from robustbench_lab.errors import LabError
from robustbench_lab.knobs import at_least
from robustbench_lab.storage.files import Missing, from_json, reading, there
from robustbench_lab.storage.forms import misfit

LONGEST_HEADER = 100_000_000  # bytes, as the format's own reader has it
TYPES = {  # of the format: torch's name, and bytes
    "BOOL": ("bool", 1), "U8": ("uint8", 1), "I8": ("int8", 1), "I16": ("int16", 2), "I32": ("int32", 4), "I64": ("int64", 8),
    "F16": ("float16", 2), "BF16": ("bfloat16", 2), "F32": ("float32", 4), "F64": ("float64", 8),
    "U16": ("uint16", 2), "U32": ("uint32", 4), "U64": ("uint64", 8), "C64": ("complex64", 8),
    "F8_E4M3": ("float8_e4m3fn", 1), "F8_E5M2": ("float8_e5m2", 1),
}  # fmt: skip
REMEDY = "delete it and train again, or train with force=true"

Place = Annotated[int, at_least(0)]


class Entry(TypedDict):
    """Of a tensor."""

    dtype: str
    shape: list[Place]
    data_offsets: tuple[Place, Place]


class Told(TypedDict):
    """What our files tell beside their tensors."""

    digest: str


def metadata(path: Path) -> dict[str, Any]:
    """What a file of tensors tells of itself, once it is known to be whole: its contents have the digest that it tells.

    Raises Missing, or LabError, naming the file, for one that is truncated, damaged or of another kind.
    """
    if not there(path):
        raise Missing(f"{path} is gone; {REMEDY}")
    with reading(path, REMEDY), path.open("rb") as file:
        try:
            told, entries, start = _header(file)
        except (ValueError, KeyError) as error:
            raise LabError(f"{path} is damaged or not a file of this project ({error}); {REMEDY}") from error
        if _digest(file, entries, start) != told["digest"]:
            raise LabError(f"{path} is damaged: its contents do not match their digest; {REMEDY}")
    return told


def check_weights(path: Path, digest: str) -> None:
    """Raises LabError where the weights of a run, of this digest, are gone, damaged, or others."""
    if metadata(path)["digest"] != digest:
        raise LabError(f"{path} holds other weights than run.json beside it speaks of; train with force=true")


def _header(file: BinaryIO) -> tuple[dict[str, Any], dict[str, Any], int]:
    """What is told, the tensors' entries, and where their bytes begin. Raises ValueError or KeyError where it is damaged."""
    length = int.from_bytes(file.read(8), "little")
    file.seek(0, 2)
    size = file.tell()
    if not 0 < length <= min(LONGEST_HEADER, size - 8):
        raise ValueError(f"its header claims {length:,} bytes of {size:,}")
    file.seek(8)
    content = from_json(file.read(length).decode())
    if not isinstance(content, dict):
        raise ValueError("its header is no mapping")
    texts = content.pop("__metadata__", None)
    if (problem := misfit(texts, dict[str, str]) or misfit(content, dict[str, Entry])) is not None:
        raise ValueError(problem)
    told = from_json(texts["lab"])
    if (problem := misfit(told, Told)) is not None:
        raise ValueError(problem)
    end = 0
    for name, entry in sorted(content.items(), key=lambda item: item[1]["data_offsets"]):
        first, last = entry["data_offsets"]
        if entry["dtype"] not in TYPES:
            raise ValueError(f"{name} is of a type that is not known")
        if first != end or last - first != math.prod(entry["shape"]) * TYPES[entry["dtype"]][1]:
            raise ValueError(f"{name} claims other bytes than its shape has")
        end = last
    if 8 + length + end != size:
        raise ValueError(f"{size:,} bytes, where its header speaks of {8 + length + end:,}")
    return told, content, 8 + length


def _digest(file: BinaryIO, entries: dict[str, Any], start: int) -> str:
    """As training.checkpoints.digest: a hash over names, types, shapes and values."""
    total = hashlib.blake2b(digest_size=16)
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as content:
        for name, entry in sorted(entries.items()):
            total.update(f"{name}|torch.{TYPES[entry['dtype']][0]}|{tuple(entry['shape'])}|".encode())
            first, last = entry["data_offsets"]
            with content[start + first : start + last] as values:
                total.update(values)
    return total.hexdigest()
