"""Brush strokes as pixels: a soft rasteriser of Bezier paths that gradients pass through, on any device.

A path is cubic segments end to end, q(t) = sum_k B_k(t) p_k each. At a pixel x its distance and its coverage are

    d(x) = min_t |q(t) - x|,   coverage = F((d + r) / s) - F((d - r) / s),   F(u) = 1/2 + (3u - u^3) / 4 on [-1, 1]

with half the stroke's width r: what a line of that width covers of a pixel whose edges are s soft. t is found without
a graph, from samples of the curve and Newton's steps on (q - x) q' = 0; there d does not change with t (the envelope
theorem), so that the gradient of |q(t) - x| in the points alone is exact. Strokes lie over one another in their order.
A pixel further than r + s from a stroke sees nothing of it: such pixels are left out, which changes no number.
diffvg (Li et al. 2020) samples pixels instead, and edges for the gradient; with prefiltering it is this F and s = 1.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

Points = Float[Tensor, "drawing stroke point 2"]
"""In pixels, x to the right and y down from the top left corner; 3 n + 1 of them are a path of n segments."""
Radii = Float[Tensor, "drawing stroke"]
Colours = Float[Tensor, "drawing stroke 4"]
"""Red, green, blue and opacity, from 0 to 1."""
Segments = Int[Tensor, "drawing stroke"]
RGB = tuple[float, float, float]

_SAMPLES = 32
_NEWTON_STEPS = 3
_TILE = 8
_AT_ONCE = 2**22
"""Distances to samples in memory at a time."""


def render(
    points: Points,
    radii_px: Radii,
    size_px: tuple[int, int],
    colours: Colours | None = None,
    *,
    segments: Segments | None = None,
    softness_px: float = 1.0,
    background: RGB = (1.0, 1.0, 1.0),
) -> Float[Tensor, "drawing 3 height width"]:
    """Several drawings at once, each of the same number of strokes, later ones on top.

    Args:
        size_px: height and width.
        colours: opaque black without them.
        segments: how many of its segments each path has; all without it.
        softness_px: how far coverage takes to rise from none to full, either side of an edge.

    Raises:
        ValueError: points that are no whole number of segments.
    """
    if points.shape[2] < 4 or points.shape[2] % 3 != 1:
        raise ValueError(f"strokes: a path of n segments has 3 n + 1 points, not {points.shape[2]}")
    if segments is None:
        segments = torch.full(points.shape[:2], points.shape[2] // 3, device=points.device)
    controls = points.unfold(2, 4, 3).transpose(3, 4)
    with torch.no_grad():
        near = _near(controls, radii_px, segments, size_px, softness_px)
    place = (_basis(near.t)[:, None] * _each(controls.flatten(0, 2), near.segment)).sum(0)
    distance = (place - near.pixel).square().sum(0).clamp_min(1e-12).sqrt()
    stroke = near.segment // controls.shape[2]
    radius = radii_px.flatten()[stroke]
    coverage = _edge((distance + radius) / softness_px) - _edge((distance - radius) / softness_px)
    layers = coverage.new_zeros(near.layers.numel() * _TILE**2).scatter_reduce(0, near.slot, coverage, "amax")
    return _fold(_over(layers.view(*near.layers.shape, _TILE**2), near.layers, colours, background), size_px)


@dataclass(frozen=True)
class _Near:
    """Pixels that a segment may reach: where on it they are nearest, and the slot of its coverage there.

    `layers` are the strokes that a tile of pixels shows, from the top one; where there are fewer, -1.
    """

    segment: Int[Tensor, " near"]
    t: Float[Tensor, " near"]
    pixel: Float[Tensor, "2 near"]
    slot: Int[Tensor, " near"]
    layers: Int[Tensor, "tile layer"]


def _near(
    controls: Float[Tensor, "drawing stroke segment 4 2"],
    radii_px: Radii,
    segments: Segments,
    size_px: tuple[int, int],
    softness_px: float,
) -> _Near:
    drawing, stroke, segment = controls.shape[:3]
    rows, cols = (-(-side // _TILE) for side in size_px)
    flat, device = controls.flatten(0, 2), controls.device
    powers = _powers(flat)
    times = torch.linspace(0, 1, _SAMPLES, device=device, dtype=flat.dtype)
    samples = (times[:, None] ** torch.arange(4, device=device)) @ powers
    bend = torch.linalg.vector_norm(torch.stack([2 * powers[:, 2], 2 * powers[:, 2] + 6 * powers[:, 3]]), dim=-1)
    sag = bend.amax(0) / (8 * (_SAMPLES - 1) ** 2)
    reach = radii_px.flatten().repeat_interleave(segment) + softness_px + sag

    # Tiles of pixels that the box around the curve between two samples touches.
    ends = torch.stack([samples[:, :-1], samples[:, 1:]])
    low, high = ends.amin(0) - reach[:, None, None], ends.amax(0) + reach[:, None, None]
    boxes = []
    for axis, count in ((1, rows), (0, cols)):
        first = torch.arange(count, device=device) * _TILE + 0.5
        boxes.append(((low[..., axis, None] < first + _TILE - 1) & (high[..., axis, None] > first)).to(flat.dtype))
    exists = torch.arange(segment, device=device) < segments[:, :, None]
    touched = (boxes[0].transpose(1, 2) @ boxes[1]).flatten(1).bool() & exists.flatten()[:, None]
    strokes = touched.view(drawing, stroke, segment, rows * cols).any(2).transpose(1, 2).flatten(0, 1)
    layer = strokes.flip(1).cumsum(1).flip(1) - 1
    layers = torch.full((len(strokes), int(layer.max()) + 1 if layer.numel() else 0), -1, device=device)
    tile, which = strokes.nonzero(as_tuple=True)
    layers[tile, layer[tile, which]] = which + tile // (rows * cols) * stroke

    # Of their pixels those that are near a sample; a curve is no further from its samples than half of their gap.
    row, tile = touched.nonzero(as_tuple=True)
    corner = torch.stack([tile % cols, tile // cols], 1) * _TILE
    offsets = torch.cartesian_prod(*[torch.arange(_TILE, device=device)] * 2).flip(1) + 0.5
    gap = torch.linalg.vector_norm(samples.diff(dim=1), dim=-1).amax(1)
    most = (reach + gap / 2).square()[row, None] - offsets.square().sum(1)
    found = []
    for part in torch.arange(len(row), device=device).split(max(1, _AT_ONCE // (_SAMPLES * _TILE**2))):
        local = samples[row[part]] - corner[part, None]
        squares, at = (local.square().sum(2, keepdim=True) - 2 * local @ offsets.T.to(flat.dtype)).min(1)
        pair, cell = (squares <= most[part]).nonzero(as_tuple=True)
        found.append((part[pair], cell, at[pair, cell]))
    pair, cell, at = (torch.cat(values) for values in zip(*found)) if found else (row, row, row)
    row, tile, pixel = row[pair], tile[pair], (corner[pair] + offsets[cell]).to(flat.dtype).T.contiguous()
    t = _nearest(_each(powers, row), pixel, times[at])
    tile = tile + row // max(1, stroke * segment) * (rows * cols)
    slot = (tile * layers.shape[1] + layer[tile, row // segment % max(1, stroke)]) * _TILE**2 + cell
    return _Near(row, t, pixel, slot, layers)


def _nearest(
    powers: Float[Tensor, "4 2 near"], pixel: Float[Tensor, "2 near"], t: Float[Tensor, " near"]
) -> Float[Tensor, " near"]:
    """Where the curve is nearest, from a guess; no step is longer than half of the way to the next sample."""
    constant, first, second, third = powers
    from_pixel, limit = constant - pixel, 0.5 / (_SAMPLES - 1)
    for _ in range(_NEWTON_STEPS):
        away = ((third * t + second) * t + first) * t + from_pixel
        speed = (3 * third * t + 2 * second) * t + first
        slope = (away * speed).sum(0)
        curve = (speed * speed + away * (6 * third * t + 2 * second)).sum(0)
        step = torch.where(curve > 0, slope / curve, slope.sign())
        t = (t - step.clamp(-limit, limit)).clamp(0, 1)
    return t


def _each(values: Float[Tensor, "segment 4 2"], rows: Int[Tensor, " near"]) -> Float[Tensor, "4 2 near"]:
    """Those of each pixel's segment, with the pixels last: operations on them then read memory in order."""
    return values.flatten(1).index_select(0, rows).T.contiguous().view(4, 2, -1)


def _powers(controls: Float[Tensor, "segment 4 2"]) -> Float[Tensor, "segment 4 2"]:
    """A cubic by the powers of t, from the constant on."""
    matrix = [[1, 0, 0, 0], [-3, 3, 0, 0], [3, -6, 3, 0], [-1, 3, -3, 1]]
    return controls.new_tensor(matrix) @ controls


def _basis(t: Float[Tensor, " near"]) -> Float[Tensor, "4 near"]:
    """B_k(t)."""
    u = 1 - t
    return torch.stack([u * u * u, 3 * t * u * u, 3 * t * t * u, t * t * t])


def _edge(u: Tensor) -> Tensor:
    """F."""
    u = u.clamp(-1, 1)
    return 0.5 + (3 - u * u) * u / 4


def _over(
    coverage: Float[Tensor, "tile layer pixel"],
    layers: Int[Tensor, "tile layer"],
    colours: Colours | None,
    background: RGB,
) -> Float[Tensor, "tile 3 pixel"]:
    """Layers over each other from the top: each is seen through what those above it leave."""
    ground = coverage.new_tensor(background)[:, None]
    if colours is None:
        return ground * (1 - coverage).prod(1, keepdim=True)
    paint = torch.cat([colours.flatten(0, 1), colours.new_zeros(1, 4)])[layers]
    opacity = coverage * paint[..., 3:]
    through = F.pad((1 - opacity).cumprod(1), (0, 0, 1, 0), value=1.0)
    return paint[..., :3].transpose(1, 2) @ (opacity * through[:, :-1]) + ground * through[:, -1:]


def _fold(tiles: Float[Tensor, "tile 3 pixel"], size_px: tuple[int, int]) -> Float[Tensor, "drawing 3 height width"]:
    rows, cols = (-(-side // _TILE) for side in size_px)
    whole = tiles.view(-1, rows, cols, 3, _TILE, _TILE).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    return whole[:, :, : size_px[0], : size_px[1]]
