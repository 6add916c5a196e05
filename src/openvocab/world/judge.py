"""Reads a picture of the world back into words, without a model: which objects, of which colour, where.

It knows the palette and the shapes and nothing else, so it can say of any generated picture whether it shows what
its caption promised. Meant for clean pictures of 32 or 64 pixels.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from openvocab.world.caption import RELATIONS, Caption, relations_between
from openvocab.world.render import PALETTE_01, outline_distance
from openvocab.world.scene import LARGE, SHAPES, Scenes

_TOLERANCE = 0.32  # a pixel is of a colour when within this RGB distance of it, and nearer to it than to the background
_MIN_AREA = 7 / 32**2  # smaller specks are no objects, as a fraction of the picture
_MIN_FIT = 0.6  # an object overlaps this much with the best fitting shape, or the scene is not valid
_ROTATIONS_RAD = np.linspace(-0.4, 0.4, 9, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Found:
    """One object seen in a picture; lengths are fractions of the side."""

    colour: int
    shape: int
    cx: float
    cy: float
    radius: float
    fit: float
    """Intersection over union with the drawn shape at the fitted pose."""

    @property
    def is_large(self) -> bool:
        return self.radius >= LARGE

    @property
    def place(self) -> int:
        return min(max(int(self.cy * 3), 0), 2) * 3 + min(max(int(self.cx * 3), 0), 2)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether each picture shows what was said of it; what was not said counts as right."""

    valid: Bool[np.ndarray, " scene"]
    """As many objects as promised, each clearly one of the shapes."""
    colour: Bool[np.ndarray, " scene"]
    shape: Bool[np.ndarray, " scene"]
    size: Bool[np.ndarray, " scene"]
    place: Bool[np.ndarray, " scene"]
    relation: Bool[np.ndarray, " scene"]
    joint: Bool[np.ndarray, " scene"]
    """All of the above."""


def judge(pictures: UInt8[np.ndarray, "scene 3 size size"]) -> list[list[Found]]:
    """The objects of each picture, largest first."""
    pixels = pictures.transpose(0, 2, 3, 1).astype(np.float32) / 255
    ground = np.stack([_border_mode(picture) for picture in pixels]) if len(pixels) else np.zeros((0, 3), np.float32)
    colour = _nearest_colour(pixels, ground)
    part = _components(colour)
    return [_objects(*each) for each in zip(pixels, ground, colour, part)]


def verdict(found: list[list[Found]], scenes: Scenes, said: list[Caption] | None = None) -> Verdict:
    """Compares what was found with what was wanted, under the assignment of objects that fits best.

    Args:
        said: the captions that asked for the scenes; without them every attribute of every object was asked for.
    """
    rows = []
    for row, objects in enumerate(found):
        claims = _claims(scenes[row : row + 1], None if said is None else said[row])
        wanted = int(scenes.present[row].sum())
        valid = len(objects) == wanted and all(thing.fit >= _MIN_FIT for thing in objects)
        orders = itertools.permutations(objects) if len(objects) == wanted <= 4 else []
        # Who is who is told by looks and place; relations only break ties.
        nothing = (False,) * len(_CLAIMS)
        right = max((_right(claims, order) for order in orders), default=nothing, key=lambda r: (sum(r[:-1]), r[-1]))
        rows.append((valid, *right, valid and all(right)))
    return Verdict(*np.array(rows, bool).reshape(-1, 2 + len(_CLAIMS)).T)


_CLAIMS = ("colour", "shape", "size", "place", "relation")
_Claim = tuple[str, tuple[int, ...], object]  # kind, slots, what is true of them


def _claims(scene: Scenes, caption: Caption | None) -> list[_Claim]:
    values = {"colour": scene.colour, "shape": scene.shape, "size": scene.is_large, "place": scene.place}
    slots = range(int(scene.present[0].sum()))
    if caption is None:
        return [(kind, (slot,), value[0, slot]) for kind, value in values.items() for slot in slots]
    claims: list[_Claim] = []
    for span in caption.spans:
        if span.attribute in values:
            claims += [(span.attribute, (slot,), values[span.attribute][0, slot]) for slot in span.objects]
        elif span.attribute == "relation":
            said = caption.text[span.start : span.end]
            name = next(name for name, words in RELATIONS.items() if said in words)
            claims.append(("relation", span.objects, name))
    return claims


def _right(claims: list[_Claim], order: tuple[Found, ...]) -> tuple[bool, ...]:
    """Per kind of claim, whether all hold when `order[slot]` is the object meant by each slot."""
    holds: dict[str, bool] = dict.fromkeys(_CLAIMS, True)
    for kind, slots, value in claims:
        thing = order[slots[0]]
        if kind == "relation":
            other = order[slots[1]]
            holds[kind] &= value in relations_between(thing.cx - other.cx, thing.cy - other.cy)
        else:
            seen = {"colour": thing.colour, "shape": thing.shape, "size": thing.is_large, "place": thing.place}[kind]
            holds[kind] &= bool(seen == value)
    return tuple(holds.values())


def _border_mode(pixels: Float[np.ndarray, "height width 3"]) -> Float[np.ndarray, " 3"]:
    """The most frequent colour of the border (32 levels a channel), averaged over the pixels that have it."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    level = (border * 31.99).astype(np.int64) @ np.array([1024, 32, 1])
    names, counts = np.unique(level, return_counts=True)
    return border[level == names[counts.argmax()]].mean(0)


def _nearest_colour(
    pixels: Float[np.ndarray, "scene height width 3"], ground: Float[np.ndarray, "scene 3"]
) -> Int[np.ndarray, "scene height width"]:
    """The palette row that each pixel shows, -1 for the background and for colours of no object."""
    squared = (pixels**2).sum(-1, keepdims=True) - 2 * pixels @ PALETTE_01.T + (PALETTE_01**2).sum(1)
    closest = squared.min(-1)
    to_ground = ((pixels - ground[:, None, None]) ** 2).sum(-1)
    return np.where((closest < _TOLERANCE**2) & (closest < to_ground), squared.argmin(-1), -1)


def _components(colour: Int[np.ndarray, "scene height width"]) -> Int[np.ndarray, "scene height width"]:
    """A number from 1 for each 8-connected patch of one colour, 0 elsewhere.

    Every patch takes the largest number in it: neighbours hook each other's roots, then paths are halved.
    """
    inside = colour >= 0
    number = np.full(colour.shape, -1)
    number[inside] = np.arange(inside.sum())
    links = []
    for here, there in (
        (np.s_[:, :, :-1], np.s_[:, :, 1:]),
        (np.s_[:, :-1], np.s_[:, 1:]),
        (np.s_[:, :-1, :-1], np.s_[:, 1:, 1:]),
        (np.s_[:, :-1, 1:], np.s_[:, 1:, :-1]),
    ):
        same = (colour[here] == colour[there]) & inside[here]
        links.append((number[here][same], number[there][same]))
    one, other = np.concatenate(links, axis=1)
    root = np.arange(inside.sum())
    while True:
        grown = root.copy()
        np.maximum.at(grown, root[one], root[other])
        np.maximum.at(grown, root[other], root[one])
        grown = grown[grown]
        if (grown == root).all():
            break
        root = grown
    part = np.zeros_like(colour)
    part[inside] = root + 1
    return part


def _objects(pixels: np.ndarray, ground: np.ndarray, colour: np.ndarray, part: np.ndarray) -> list[Found]:
    size_px = len(pixels)
    names, areas = np.unique(part[part > 0], return_counts=True)
    found = []
    for name in names[areas >= _MIN_AREA * size_px**2]:
        y, x = np.nonzero(part == name)
        window = tuple(slice(max(line.min() - 3, 0), line.max() + 4) for line in (y, x))
        opacity = _opacity(pixels[window], ground, part[window] == name)
        shape, (cx, cy, radius), fit = _best_shape(opacity)
        cx, cy = cx + window[1].start, cy + window[0].start
        found.append(Found(int(colour[y[0], x[0]]), shape, cx / size_px, cy / size_px, radius / size_px, fit))
    return sorted(found, key=lambda thing: -thing.radius)


def _opacity(pixels: np.ndarray, ground: np.ndarray, core: np.ndarray) -> np.ndarray:
    """How much of each pixel the object covers: its mix of the object's own tone and the background."""
    height, width = core.shape
    padded = np.pad(core, 1)
    near = np.any([padded[dy : dy + height, dx : dx + width] for dy in range(3) for dx in range(3)], axis=0)
    solid = pixels[core]
    distance = np.linalg.norm(solid - ground, axis=1)
    tone = solid[distance >= np.quantile(distance, 0.7)].mean(0)
    ray = tone - ground
    mix = (pixels - ground) @ ray / (ray @ ray)
    return np.where(near, mix.clip(0, 1), 0)


def _best_shape(opacity: np.ndarray) -> tuple[int, tuple[float, float, float], float]:
    """The shape, its (cx, cy, radius) in pixels and its soft intersection over union, best over shapes and rotations.

    Area and centroid of the covered pixels fix radius and centre of each candidate.
    """
    area = opacity.sum()
    x, y = (np.arange(length, dtype=np.float32) + np.float32(0.5) for length in opacity.shape[::-1])
    mean_x, mean_y = opacity.sum(0) @ x / area, opacity.sum(1) @ y / area
    cos, sin = np.cos(_ROTATIONS_RAD), np.sin(_ROTATIONS_RAD)
    best = (-1, (0.0, 0.0, 0.0), -1.0)
    for number, name in enumerate(SHAPES):
        unit_area, off_u, off_v = _MOMENTS[name]
        radius = np.float32(np.sqrt(area / unit_area))
        cx, cy = mean_x - radius * (cos * off_u - sin * off_v), mean_y - radius * (sin * off_u + cos * off_v)
        dx, dy = x[None, None, :] - cx[:, None, None], y[None, :, None] - cy[:, None, None]
        c, s = (cos / radius)[:, None, None], (sin / radius)[:, None, None]
        drawn = np.clip(0.5 - radius * outline_distance(name, c * dx + s * dy, c * dy - s * dx), 0, 1)
        fits = np.minimum(drawn, opacity).sum((1, 2)) / np.maximum(drawn, opacity).sum((1, 2))
        turn = int(fits.argmax())
        if fits[turn] > best[2]:
            best = (number, (float(cx[turn]), float(cy[turn]), float(radius)), float(fits[turn]))
    return best


def _unit_moments(name: str) -> tuple[float, float, float]:
    """Area and centroid of a shape of radius 1, by counting points of a fine grid."""
    line = np.linspace(-1.2, 1.2, 481, dtype=np.float32)
    v, u = np.meshgrid(line, line, indexing="ij")
    inside = outline_distance(name, u, v) < 0
    return float(inside.sum() * (line[1] - line[0]) ** 2), float(u[inside].mean()), float(v[inside].mean())


_MOMENTS = {name: _unit_moments(name) for name in SHAPES}
