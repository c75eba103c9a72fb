"""95 % intervals of what is measured on a sample of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev

Z = 1.959963984540054  # the normal distribution's 97.5 % quantile


def wilson_interval(successes: float, n: int, z: float = Z) -> tuple[float, float]:
    """The score interval of a proportion (Wilson 1927), as fractions of 1, of 95 % or what `z` standard deviations cover; images are the
    sample, the model is fixed."""
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))  # at 0 and 1 rounding may leave p outside


def normal_interval(middle: float, deviation: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a mean over n values of this sample standard deviation, by the normal approximation."""
    half = Z * deviation / math.sqrt(n)
    return middle - half, middle + half


def student_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean of two or more normal values of unknown spread (Student 1908), such as one of each training seed."""
    from scipy.special import stdtrit

    half = float(stdtrit(len(values) - 1, 0.975)) * stdev(values) / math.sqrt(len(values))
    return mean(values) - half, mean(values) + half
