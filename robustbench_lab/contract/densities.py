"""The clauses of a density of images (backbones.density.Density): choices of conf/backbone that are no classifiers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from robustbench_lab.backbones.density import Density
from robustbench_lab.contract.clause import Clause
from robustbench_lab.contract.trying import demand, refusal

Make = Callable[[float, float], Density]  # channels and size to the choice that is built for them

CHANNELS = (1, 3)
WRONG = [("size", 0), ("size", 32.5), ("channels", 0)]
STRENGTH = 20  # levels


def clauses(clause: Callable[..., Clause], make: Make) -> Iterator[Clause]:
    for channels in CHANNELS:
        yield clause(sees_no_later_pixel, make, channels, case=f"{channels}")
        yield clause(purifies_as_pixel_after_pixel_would, make, channels, case=f"{channels}")
    yield clause(learns_with_every_parameter, make)
    for key, value in WRONG:
        yield clause(refuses_a_wrong_problem, make, key, value, case=f"{key}={value}")


def images(density: Density, count: int, channels: int, size: int) -> torch.Tensor:
    """Images whose values are the density's levels."""
    level = torch.randint(density.levels, (count, channels, size, size))
    return level.to(next(density.parameters()).dtype) / (density.levels - 1)


@torch.no_grad()
def sees_no_later_pixel(make: Make, channels: int) -> None:
    """Each pixel's mixture is the same whatever it and the pixels after it in raster order are; some pixel's depends on one before it.
    The likelihood of each image is one number, finite and at most 0 nats."""
    size = 4
    density = make(channels, size).eval()
    one, other = images(density, 2, channels, size).flatten(2).unbind()
    mixed = [torch.cat([one[:, :place], other[:, place:]], dim=1) for place in range(size * size + 1)]
    described = density(torch.stack(mixed).unflatten(2, (size, size)))
    demand(described.shape == (len(mixed), density.outputs, size, size), f"expected {density.outputs} numbers, got {list(described.shape)}")
    described = described.flatten(2)
    for place in range(size * size):
        same = torch.allclose(described[place, :, : place + 1], described[-1, :, : place + 1], rtol=1e-4, atol=1e-5)
        demand(same, f"a mixture up to pixel {place} depends on pixel {place} or one after it")
    demand(not torch.allclose(described[0], described[-1], rtol=1e-4, atol=1e-5), "no mixture depends on any pixel")
    likelihood = density.log_likelihood(torch.stack(mixed).unflatten(2, (size, size)))
    demand(likelihood.shape == (len(mixed),), f"expected a likelihood for each image, got {list(likelihood.shape)}")
    demand(likelihood.isfinite().all() and (likelihood <= 0).all(), "a likelihood is not finite, or larger than 1")


@torch.no_grad()
def purifies_as_pixel_after_pixel_would(make: Make, channels: int) -> None:
    """What is purified with memory is what a whole pass for each pixel gives, in double precision; within the strength; the image, with
    strength 0."""
    size = 4
    density = make(channels, size).double().eval()
    x = images(density, 2, channels, size)
    found = density.purified(x, STRENGTH)
    demand(torch.equal(density.purified(x, 0), x), "with strength 0, an image is not itself")
    demand(found.shape == x.shape and found.dtype == x.dtype, f"expected {list(x.shape)}, got {list(found.shape)}")
    demand(0 <= found.min() <= found.max() <= 1, "a value is outside [0, 1]")
    away = (density.level_of(found) - density.level_of(x)).abs().max()
    demand(0 < away <= STRENGTH, f"expected values within {STRENGTH} levels, and some other ones, got {away:g}")
    described, centre = density(found), density.level_of(x)
    for row in range(size):
        for column in range(size):
            here = density.likeliest(described[:, :, row, column], centre[:, :, row, column], STRENGTH)
            differing = (here != density.level_of(found)[:, :, row, column]).any()
            demand(not differing, f"another value is likelier at row {row}, column {column}")


def learns_with_every_parameter(make: Make) -> None:
    """The likelihood of two images gives each parameter a gradient that is finite and not zero, in train mode."""
    density = make(3, 8).train()
    density.log_likelihood(images(density, 2, 3, 8)).sum().backward()
    for path, parameter in density.named_parameters():
        demand(parameter.grad is not None, f"{path} gets no gradient")
        demand(parameter.grad.isfinite().all(), f"{path} gets a gradient that is not finite")  # type: ignore[union-attr]
        demand(parameter.grad.any(), f"{path} gets a gradient of zeros")  # type: ignore[union-attr]


def refuses_a_wrong_problem(make: Make, key: str, value: float) -> None:
    """Images of no size, half a pixel or no channel are refused as LabError that names the dataset's key."""
    problem: dict[str, float] = {"channels": 3, "size": 32, key: value}
    with refusal(f"dataset.{key}={value}; backbones.density.Density raises it") as told:
        make(problem["channels"], problem["size"])
    keys = (f"dataset.{key}", f"backbone.{key}", f"backbone.image_{key}")
    demand(told[0].partition(":")[0] in keys, f"dataset.{key}={value} is refused without its name: {told[0]}")
