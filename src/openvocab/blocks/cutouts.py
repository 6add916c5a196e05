"""Views of pictures for losses that no single view should satisfy: perspective, crops, turns, noise; differentiable.

A view is a homography H, from places in the view to places in the picture, both from -1 to 1 with the corners of the
picture at -1 and 1; views follow each other as products, so that a picture is sampled once whatever is done to it.
All draw from torch's random numbers, or from a generator.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Views = Float[Tensor, "view 3 3"]


def warp(
    images: Float[Tensor, "image channel height width"], views: Views, size_px: int, fill: tuple[float, ...] = (1.0,)
) -> Float[Tensor, "seen channel {size_px} {size_px}"]:
    """Every view of every picture, all pictures of the first view first; bilinear, `fill` outside of the picture."""
    outside = images.new_tensor(fill).view(-1, 1, 1)
    at = (torch.arange(size_px, device=images.device, dtype=images.dtype) * 2 + 1) / size_px - 1
    y, x = torch.meshgrid(at, at, indexing="ij")
    places = torch.stack([x, y, torch.ones_like(x)]).flatten(1)
    across, down, depth = (views.to(images) @ places).unbind(1)
    grid = torch.stack([across / depth, down / depth], -1).view(len(views), size_px, size_px, 2)
    every = (images - outside).repeat(len(views), 1, 1, 1)
    seen = F.grid_sample(every, grid.repeat_interleave(len(images), 0), align_corners=False)
    return seen + outside


def whole(count: int) -> Views:
    """The picture as it is."""
    return torch.eye(3).repeat(count, 1, 1)


def perspective(count: int, distortion: float = 0.5, *, generator: torch.Generator | None = None) -> Views:
    """Each corner of the picture moves inwards, by up to half of `distortion` of either side.

    H takes the moved corners back: eight equations a view, with the last entry of H 1.
    """
    corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    moved = corners * (1 - distortion * torch.rand(count, 4, 2, generator=generator))
    (x, y), one, zero = moved.unbind(-1), torch.ones(count, 4), torch.zeros(count, 4, 3)
    place = torch.stack([x, y, one], -1)
    rows = [torch.cat(pair, -1) for pair in ((place, zero), (zero, place))]
    products = [-corners[:, axis, None] * moved for axis in (0, 1)]
    equations = torch.cat([torch.cat([row, product], -1) for row, product in zip(rows, products)], 1)
    solved = torch.linalg.solve(equations, corners.T.reshape(1, 8).expand(count, 8))
    return torch.cat([solved, torch.ones(count, 1)], 1).view(count, 3, 3)


def crops(
    count: int,
    scale: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    *,
    generator: torch.Generator | None = None,
) -> Views:
    """Rectangles of a share of the area, uniform in `scale`, and sides whose ratio's logarithm is uniform; any place.

    Differs from torchvision: one that is too long for the picture is shortened to it, not drawn anew.
    """
    area, shape, x, y = torch.rand(4, count, generator=generator)
    area = scale[0] + (scale[1] - scale[0]) * area
    aspect = (math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * shape).exp()
    return _boxes((area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1), x, y)


def squares(
    count: int, smallest: float, largest: float = 1.0, power: float = 1.0, *, generator: torch.Generator | None = None
) -> Views:
    """Squares of shares of the side between two, the more of them small the higher `power`; any place."""
    size, x, y = torch.rand(3, count, generator=generator)
    side = smallest + (largest - smallest) * size**power
    return _boxes(side, side, x, y)


def affine(
    count: int,
    degrees: float = 0.0,
    shift: float = 0.0,
    scale: tuple[float, float] = (1.0, 1.0),
    *,
    generator: torch.Generator | None = None,
) -> Views:
    """Turns either way, shifts by a share of the side, and enlarges, each uniformly up to what is given."""
    turn, x, y, size = torch.rand(4, count, generator=generator)
    turn = torch.deg2rad((2 * turn - 1) * degrees)
    size = scale[0] + (scale[1] - scale[0]) * size
    views = torch.zeros(count, 3, 3)
    views[:, 0, 0] = views[:, 1, 1] = turn.cos() / size
    views[:, 0, 1], views[:, 1, 0] = -turn.sin() / size, turn.sin() / size
    views[:, :2, 2] = torch.stack([2 * x - 1, 2 * y - 1], 1) * 2 * shift
    views[:, 2, 2] = 1
    return views


def noise(
    images: Float[Tensor, "image channel height width"], most: float, *, generator: torch.Generator | None = None
) -> Float[Tensor, "image channel height width"]:
    """Normal noise, of each picture with a deviation of its own, uniform up to `most`."""
    deviation = most * torch.rand(len(images), 1, 1, 1, generator=generator)
    return images + (deviation * torch.randn(images.shape, generator=generator)).to(images)


def _boxes(
    width: Float[Tensor, " view"],
    height: Float[Tensor, " view"],
    x: Float[Tensor, " view"],
    y: Float[Tensor, " view"],
) -> Views:
    """Boxes of shares of the sides; x and y are shares of the room that is left to them."""
    views = torch.zeros(len(width), 3, 3)
    views[:, 0, 0], views[:, 1, 1], views[:, 2, 2] = width, height, 1
    views[:, 0, 2], views[:, 1, 2] = (1 - width) * (2 * x - 1), (1 - height) * (2 * y - 1)
    return views
