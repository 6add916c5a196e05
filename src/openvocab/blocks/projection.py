"""Pictures of point clouds: depth maps from several sides, without a renderer.

A view turns the cloud, p' = p R^T with R = Rx Ry Rz, and perhaps tilts it further about y. A pinhole camera of focal
length 1 at a distance sees the point (x, y, z) at (x / z, y / z), rows from x; a pixel holds the harmonic mean of the
depths of its points, or the nearest of them (PointCLIP, arXiv 2112.02413, section 3.1). `filled` is PointCLIP V2's
(arXiv 2211.11682, section 3.2): the cloud in a grid of voxels that hold their depth, made dense by maxima over
neighbours and smooth by a Gaussian, then seen along z on white.
"""

from dataclasses import dataclass
from math import pi
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Points = Float[Tensor, "cloud point 3"]
Maps = Float[Tensor, "cloud view height width"]


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """Angles about x, y and z in radians, and a further one about y."""

    turn: tuple[float, float, float]
    tilt: float = 0.0


def _around(*degrees: int, tilt: float = 0.0) -> tuple[View, ...]:
    return tuple(View(turn=(degree * pi / 180, 0.0, pi / 2), tilt=tilt) for degree in degrees)


def _upon(degrees: int, *sides: int, tilt: float = 0.0) -> tuple[View, ...]:
    return tuple(View(turn=(degrees * pi / 180, side * pi / 180, pi / 2), tilt=tilt) for side in sides)


SIX = _around(0, 90, 180, 270) + _upon(0, -90, 90)
TEN = SIX[:4] + _upon(225, -45, 45) + _upon(315, -45, 45) + SIX[4:]
TEN_TILTED = _around(45, 135, 225, 315, 0, 90, 180, 270, tilt=pi / 9) + _upon(0, -90, 90, tilt=pi / 15)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cameras:
    """From where and how a cloud is looked at; the defaults are the paper's zero-shot.

    `distance` and `scaled` are of depth maps: scaled ones are 0 where there is nothing, 0.2 at the farthest point of
    all views and 1 at the nearest; others are depths as they are.
    """

    views: tuple[View, ...] = SIX
    size_px: int = 128
    pixel: Literal["harmonic", "nearest", "filled"] = "harmonic"
    distance: float = 1.6
    scaled: bool = False

    def __post_init__(self) -> None:
        if not self.views:
            raise ValueError("Cameras: no view")
        if self.scaled and self.pixel == "filled":
            raise ValueError("Cameras: scaled is of depth maps; filled ones are from 0 to 1 as they are")


FEW_SHOT = Cameras(views=TEN, size_px=224, distance=1.4)
REALISTIC = Cameras(views=TEN_TILTED, size_px=112, pixel="filled")


def project(points: Points, cameras: Cameras) -> Maps:
    """Every cloud from every view; nothing is 0 in depth maps and 1 in filled ones, which lose 2 pixels a side."""
    turned = torch.einsum("cpi,vji->cvpj", points, rotations(cameras.views).to(points))
    if cameras.pixel == "filled":
        return _filled(turned, cameras.size_px)
    maps = _depths(turned, cameras)
    if not cameras.scaled:
        return maps
    seen = maps > 0
    far = maps.amax((1, 2, 3), keepdim=True)
    near = maps.masked_fill(~seen, float("inf")).amin((1, 2, 3), keepdim=True)
    return torch.where(seen, 1 - 0.8 * (maps - near) / (far - near).clamp_min(1e-6), 0.0)


def rotations(views: tuple[View, ...]) -> Float[Tensor, "view 3 3"]:
    """The tilt after Rx Ry Rz."""
    turns = torch.tensor([view.turn for view in views])
    tilts = torch.tensor([view.tilt for view in views])
    x, y, z = (_about(axis, turns[:, axis]) for axis in range(3))
    return _about(1, tilts) @ x @ y @ z


def _about(axis: int, angles: Float[Tensor, " view"]) -> Float[Tensor, "view 3 3"]:
    one, other = (axis + 1) % 3, (axis + 2) % 3
    matrix = torch.zeros(len(angles), 3, 3)
    matrix[:, axis, axis] = 1
    matrix[:, one, one] = matrix[:, other, other] = angles.cos()
    matrix[:, other, one], matrix[:, one, other] = angles.sin(), -angles.sin()
    return matrix


def _depths(turned: Float[Tensor, "cloud view point 3"], cameras: Cameras) -> Maps:
    side, flat = cameras.size_px, turned.flatten(0, 1)
    depth = flat[..., 2] + cameras.distance
    cells = ((flat[..., :2] / depth[..., None] + 1) * (side / 2) - 0.5).ceil().long()
    inside = ((cells >= 0) & (cells < side)).all(-1) & (depth > 0)
    where = torch.where(inside, cells[..., 0] * side + cells[..., 1], side * side)
    blank = flat.new_zeros(len(flat), side * side + 1)
    if cameras.pixel == "nearest":
        found = blank.scatter_reduce(1, where, depth, "amin", include_self=False)
    else:
        found = blank.scatter_add(1, where, torch.ones_like(depth))
        found = found / blank.scatter_add(1, where, 1 / depth).clamp_min(1e-12)
    return found[:, :-1].view(*turned.shape[:2], side, side)


_DEPTH, _DEPTH_BIAS, _SHARE, _SIGMA = 8, 0.2, 0.8, 3.0


def _filled(turned: Float[Tensor, "cloud view point 3"], side: int) -> Maps:
    flat = turned.flatten(0, 1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    placed = 2 * (flat - (low + high) / 2) / (high - low).amax(-1, keepdim=True).clamp_min(1e-6)
    cells = ((placed[..., :2] * _SHARE + 1) / 2 * side).ceil().clamp(1, side - 2).long()
    depth = ((placed[..., 2] + 1) / 2 + _DEPTH_BIAS) / (1 + _DEPTH_BIAS) * (_DEPTH - 2)
    where = (depth.ceil().long() * side + cells[..., 1]) * side + cells[..., 0]
    grid = flat.new_zeros(len(flat), _DEPTH * side * side)
    grid = grid.scatter_reduce(1, where, depth.clamp(1, _DEPTH - 2), "amax")
    grid = grid.view(-1, _DEPTH, side, side).transpose(2, 3)
    dense = F.max_pool2d(grid, 7, 1, 2)
    steps = torch.arange(-1, 2).to(flat)
    bell = torch.exp(-(steps[:, None].square() + steps.square()) / (2 * _SIGMA**2))
    smooth = F.conv2d(dense.flatten(0, 1)[:, None], (bell / bell.sum())[None, None], padding=1)
    image = smooth.view_as(dense).amax(1)
    image = 1 - image / image.amax((1, 2), keepdim=True)
    return image.view(*turned.shape[:2], *image.shape[1:])
