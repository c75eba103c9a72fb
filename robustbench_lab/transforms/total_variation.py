"""Total-variation minimisation of images of which some pixels may be missing, a whole batch at once, and its gradient.

Source: Guo, Rana, Cisse and van der Maaten 2018 (Countering Adversarial Images using Input Transformations), arXiv:1711.00117, section 4.2,
and their code (facebookresearch/adversarial_image_defenses, lib/transformations/tvm.py and _tv_bregman.patch), a change of scikit-image's
denoise_tv_bregman; the solver is the split Bregman method of Goldstein and Osher 2009, SIAM J. Imaging Sci. 2(2), section 4, over-relaxed
as in Eckstein and Bertsekas 1992, Math. Programming 55, theorem 8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from robustbench_lab.knobs import Count, Knobs, Positive, above, below, one_of

VERSIONS = ("fixed", "as_released")
CACHED = 2**17  # numbers in one array of a chunk, on a CPU: a handful of such arrays stay in its cache
# What is red and what is black on the checkerboard: the first row and column of the two lattices of step 2 that each is made of.
RED, BLACK = ((0, 0), (1, 1)), ((0, 1), (1, 0))

# Within this file images lie as [H, W, N], N = images x channels, so that neighbours are whole slices; forward differences with one more
# column (down) or row (right) than pixels, those over the border 0. Differences and their duals are in units of 1 / penalty, in which
# the shrinkage's threshold is 1.


@dataclass(frozen=True, kw_only=True)
class TotalVariation(Knobs):
    """The image u least in sum |D u| + weight / 2 sum_kept (u - x)^2, for each channel by itself.

    D u are a pixel's two forward differences (none over the border), |.| their length: isotropic.

    version: `as_released` has the energy that the code of Guo et al. minimises. In place of |D u| stands a function that grows as |D u|^1.5
    near 0, because differences are shrunk by s / (s + 1), s their length in units of the threshold, which is not the shrinkage of a length
    (scikit-image's does the same); and missing pixels at the border are divided by 4, not by the number of their neighbours, which
    pulls them towards black. Neither is so in `fixed`.

    The other knobs say how it is come by, and change the result within the tolerance. penalty: of the split, per unit of brightness; best
    is the inverse of a difference that is left. relaxation: 1 is none. sweeps: of red-black Gauss-Seidel an iteration. An image is done at
    a root mean square change of at most `tolerance` or after `iterations`.
    Where we differ from the code of Guo et al., whose penalty is twice the weight: their sweeps run in raster order, another path to the
    same limit, so that what is stopped early (theirs is, at .01) differs by about the change at which it stops.
    """

    weight: Positive
    version: Annotated[str, one_of(VERSIONS)]
    penalty: Positive
    relaxation: Annotated[float, above(0), below(2)]
    tolerance: Positive
    sweeps: Count
    iterations: Count

    def minimise(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        """u for x [B, C, H, W]; kept bool of that shape, or None where nothing is missing. Differentiable in x.

        The gradient is that of the minimum, by the implicit function theorem: the energy's curvature at u is solved for by the same
        iterations, with the derivative of the shrinkage in place of the shrinkage, at about the cost of the minimum. It is exact as far as
        the tolerance lets either be reached (relative to the gradient's root mean square); differences that are 0 stay 0. Where the minimum
        is not unique, as of a missing pixel between two along an edge, `fixed` has no derivative, and this is that of the one found.
        """
        return _Minimum.apply(x, kept, self)

    @property
    def softness(self) -> float:
        """0 where lengths are shrunk by 1; otherwise the share of the penalty at which the released code shrinks by s / (s + 1)."""
        return 0.0 if self.version == "fixed" else self.penalty / (2 * self.weight)

    def diagonal(self, u: Tensor, known: Tensor | None) -> Tensor:
        """What a pixel counts in its own equation: its data's weight, and the penalty for each of its neighbours. [H, W, N] or [H, W, 1]"""
        rows, columns = (_neighbours_along(side, u) for side in u.shape[:2])
        neighbours = (rows[:, None] + columns)[:, :, None]
        own = self.penalty * neighbours
        if known is None:
            return own + self.weight
        there = known.to(u.dtype)
        missing = 0 if self.version == "fixed" else 2 * self.weight * (4 - neighbours)
        return own + self.weight * there + missing * (1 - there)


def _neighbours_along(side: int, like: Tensor) -> Tensor:
    places = torch.arange(side, device=like.device)
    return (places > 0).to(like.dtype) + (places < side - 1).to(like.dtype)


class _Minimum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor | None, energy: TotalVariation) -> Tensor:
        channels = x.shape[1]

        def projected(tx: Tensor, ty: Tensor) -> tuple[Tensor, Tensor]:
            share = _share_of_disc(tx, ty, energy.softness)
            return tx * share, ty * share

        def minimum(image: Tensor, known: Tensor | None) -> list[Tensor]:
            start = image if known is None else image * known  # what is missing starts black
            return _split_bregman(energy, start, energy.weight * start, energy.diagonal(image, known), projected, (), channels)

        u, *dual = _in_chunks(minimum, x, kept)
        ctx.save_for_backward(kept, u, *dual)
        ctx.energy = energy
        return u

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        kept, *solution = ctx.saved_tensors
        energy: TotalVariation = ctx.energy
        channels = gradient.shape[1]

        def curvature_solved(right: Tensor, u: Tensor, bx: Tensor, by: Tensor, known: Tensor | None) -> list[Tensor]:
            tx, ty = bx.clone(), by.clone()
            tx[:, :-1].add_(u[:, 1:] - u[:, :-1], alpha=energy.penalty)
            ty[:-1].add_(u[1:] - u[:-1], alpha=energy.penalty)
            slopes = _slopes(tx, ty, energy.softness)
            return _split_bregman(energy, right, energy.weight * right, energy.diagonal(u, known), _linear, slopes, channels)[:1]

        size = gradient.square().mean((1, 2, 3), keepdim=True).sqrt()
        (solved,) = _in_chunks(curvature_solved, gradient / size.clamp(min=torch.finfo(size.dtype).tiny), *solution, kept)
        return size * (solved if kept is None else solved * kept), None, None


def _in_chunks(solve: Callable[..., list[Tensor]], first: Tensor, *others: Tensor | None) -> list[Tensor]:
    """What `solve` gives for [B, C, H, W], which it sees and gives as columns [H, W, N], as many images at a time as suit the device."""
    count, channels, height, width = first.shape
    at_once = max(1, CACHED // (channels * height * width)) if first.device.type == "cpu" else max(1, count)
    parts = []
    for begin in range(0, max(1, count), at_once):
        some = (None if each is None else each[begin : begin + at_once] for each in (first, *others))
        solved = solve(*(None if each is None else each.permute(2, 3, 0, 1).flatten(2).contiguous() for each in some))
        parts.append([part.unflatten(2, (-1, channels)).permute(2, 3, 0, 1) for part in solved])
    return [torch.cat(part) for part in zip(*parts, strict=True)]


def _split_bregman(
    how: TotalVariation, start: Tensor, pull: Tensor, diagonal: Tensor, project: Callable[..., tuple[Tensor, Tensor]],
    fields: tuple[Tensor, ...], channels: int,
) -> list[Tensor]:  # fmt: skip
    """Solve (diagonal - penalty sum over neighbours) u = pull + D' (t - 2 b), t = penalty D u + b and b = project(t, fields), by turns.

    `diagonal` and each of `fields` [H, W, N] or [H, W, 1]. Returns u and the two parts of b, [H, W, N] each.
    """
    height, width, columns = start.shape
    found = [torch.empty_like(start) for _ in range(3)]
    u, before = F.pad(start, (0, 0, 1, 1, 1, 1)), start
    tx, ty = start.new_zeros(height, width + 1, columns), start.new_zeros(height + 1, width, columns)  # t - 2 b between iterations
    bx, by = torch.zeros_like(start), torch.zeros_like(start)
    inverse = 1 / diagonal
    target, share = pull * inverse, how.penalty * inverse
    step = how.penalty * how.relaxation
    places = torch.arange(columns, device=start.device)
    going = torch.ones(columns // channels, dtype=torch.bool, device=start.device)
    for iteration in range(1, how.iterations + 1):
        for _ in range(how.sweeps):
            _sweep(u, target, share)
        inside = u[1:-1, 1:-1]
        tx[:, 1:].mul_(1 - how.relaxation).add_(bx, alpha=2 - how.relaxation)
        ty[1:].mul_(1 - how.relaxation).add_(by, alpha=2 - how.relaxation)
        tx[:, 1:-1].add_(inside[:, 1:], alpha=step).sub_(inside[:, :-1], alpha=step)
        ty[1:-1].add_(inside[1:], alpha=step).sub_(inside[:-1], alpha=step)
        bx, by = project(tx[:, 1:], ty[1:], *fields)
        tx[:, 1:].sub_(bx, alpha=2)
        ty[1:].sub_(by, alpha=2)
        target = (tx[:, :-1] - tx[:, 1:]).add_(ty[:-1]).sub_(ty[1:]).add_(pull).mul_(inverse)
        change = (inside - before).square_().sum((0, 1)).view(-1, channels).mean(1).div_(height * width).sqrt_()
        before = inside.clone()
        there = going & (change <= how.tolerance) if iteration < how.iterations else going
        if not bool(there.any()):
            continue
        chosen = there.repeat_interleave(channels).nonzero()[:, 0]
        for whole, part in zip(found, (inside, bx, by), strict=True):
            whole[:, :, places[chosen]] = part[:, :, chosen]
        going = going & ~there
        if not bool(going.any()):
            break
        if 2 * int(going.sum()) <= len(going):  # half of them are there: the others go on alone
            chosen = going.repeat_interleave(channels).nonzero()[:, 0]
            u, before, tx, ty, bx, by, target = (each.index_select(2, chosen) for each in (u, before, tx, ty, bx, by, target))
            pull, inverse, share, *left = (
                each if each.shape[2] == 1 else each.index_select(2, chosen) for each in (pull, inverse, share, *fields)
            )
            places, going, fields = places[chosen], going[going], tuple(left)
    return found


def _sweep(u: Tensor, target: Tensor, share: Tensor) -> None:
    """Each red pixel from its four black neighbours, then the reverse; `u` [H + 2, W + 2, N] has a border of zeros."""
    for colour in (RED, BLACK):
        for row, column in colour:
            rows, columns, here = slice(row + 1, -1, 2), slice(column + 1, -1, 2), (slice(row, None, 2), slice(column, None, 2))
            near = u[row:-2:2, columns] + u[row + 2 :: 2, columns]
            near += u[rows, column:-2:2]
            near += u[rows, column + 2 :: 2]
            torch.addcmul(target[here], share[here], near, out=u[rows, columns])


def _share_of_disc(tx: Tensor, ty: Tensor, softness: float) -> Tensor:
    """What of (tx, ty) is left in the unit disc, |b| / |t|: the nearest point of the disc is what shrinking a length by 1 takes away.

    With a softness s, |b| = beta is that of a split whose penalty is 1 / s times ours and which has beta = t' / (1 + t'), t' the length
    there: t' - beta = (t - beta) / s, a quadratic in beta whose root is 2 t / (t + 1 + sqrt((t - 1)^2 + 4 s t)).
    """
    square = (tx * tx).addcmul_(ty, ty)
    if softness == 0:
        return square.clamp_(min=1).rsqrt_()
    length = square.sqrt_()
    return _root(length, softness).add_(length).add_(1).reciprocal_().mul_(2)


def _root(length: Tensor, softness: float) -> Tensor:
    return (length - 1).square_().add_(length, alpha=4 * softness).sqrt_()


def _slopes(tx: Tensor, ty: Tensor, softness: float) -> tuple[Tensor, Tensor, Tensor]:
    """Entries xx, xy, yy of the derivative of (tx, ty) times its share of the disc: the share across the direction, and along it the slope
    of |b| in |t|."""
    length, share = (tx * tx).addcmul_(ty, ty).sqrt_(), _share_of_disc(tx, ty, softness)
    along = (length <= 1).to(length.dtype) if softness == 0 else (1 - share * length) / _root(length, softness)
    bend = (along - share) / length.square().clamp(min=torch.finfo(length.dtype).tiny)
    return share + bend * tx * tx, bend * tx * ty, share + bend * ty * ty


def _linear(tx: Tensor, ty: Tensor, xx: Tensor, xy: Tensor, yy: Tensor) -> tuple[Tensor, Tensor]:
    return (xx * tx).addcmul_(xy, ty), (yy * ty).addcmul_(xy, tx)
