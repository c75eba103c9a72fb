"""Random numbers tied to an image, not to its batch.

Every number is a hash of (seed, image, stream, position): the same image gets the same numbers whatever its batch, order, process or
device, so that batch size, sharding and resuming do not change a result. Nothing is stored and nothing advances: drawing twice from one
stream gives the same numbers twice; `fold` makes a new stream.

Source: the generator is SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), started at a different hashed state for each image.
Integer draws and `uniform` are equal bit for bit on CPU and GPU; `normal` to the last bits of the devices' log and cos.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """The two's complement reading of the low 64 bits."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _unsigned_shift(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser; int64 products wrap around, as it needs."""
    z = (z ^ _unsigned_shift(z, 30)) * _MIX_1
    z = (z ^ _unsigned_shift(z, 27)) * _MIX_2
    return z ^ _unsigned_shift(z, 31)


def stable_hash(*tags: int | str) -> int:
    """A signed 64-bit hash of the tags, the same in every process and on every machine."""
    digest = hashlib.blake2b("\x1f".join(f"{type(tag).__name__}:{tag}" for tag in tags).encode(), digest_size=8)
    return _signed(int.from_bytes(digest.digest(), "little"))


@dataclass(frozen=True)
class ImageRandom:
    """One stream of random numbers per image; `keys` is int64 [B]."""

    keys: Tensor

    @classmethod
    def of(cls, ids: Tensor, *tags: int | str) -> ImageRandom:
        """The stream of the images `ids` (int64 [B]) named by `tags`: the seed, the purpose, an epoch, ..."""
        return cls(_mix(_mix(ids * _GOLDEN) ^ stable_hash(*tags)))

    def fold(self, *tags: int | str) -> ImageRandom:
        """An independent stream for the same images, named by `tags`."""
        return ImageRandom(_mix(self.keys ^ stable_hash(*tags)))

    def at(self, values: Tensor) -> ImageRandom:
        """An independent stream per image, named by an integer of its own; `values` int64 [B]."""
        return ImageRandom(_mix(self.keys ^ _mix(values * _GOLDEN + _MIX_1)))

    def __getitem__(self, index: Tensor | slice) -> ImageRandom:
        """The streams of some of the images."""
        return ImageRandom(self.keys[index])

    def __len__(self) -> int:
        return len(self.keys)

    def bits(self, *shape: int) -> Tensor:
        """64 random bits each, int64 [B, *shape]."""
        counters = torch.arange(1, math.prod(shape) + 1, device=self.keys.device) * _GOLDEN
        return _mix(self.keys[:, None] + counters).view(-1, *shape)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform on [low, high), float32 [B, *shape]."""
        return _unsigned_shift(self.bits(*shape), 40).float().mul_(2.0**-24 * (high - low)).add_(low)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal by Box-Muller, float32 [B, *shape]; no value lies further out than 6.8."""
        bits = self.bits(*shape)
        radius = ((_unsigned_shift(bits, 32).float() + 0.5) * 2.0**-32).log_().mul_(-2.0).clamp_(min=0).sqrt_()
        angle = (bits & 0xFFFFFFFF).float().mul_(2.0**-31 * math.pi)
        return radius.mul_(angle.cos_())

    def integers(self, high: int, *shape: int) -> Tensor:
        """Uniform on 0 .. high - 1, int64 [B, *shape]; the bias is below high / 2^31."""
        return _unsigned_shift(self.bits(*shape), 33) % high
