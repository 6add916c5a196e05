"""Scenes to pictures, and the exact truth of those pictures: masks, boxes, depth.

A pixel belongs to an object where its centre lies inside the outline; edges are softened over one pixel by the
signed distance, so a mask is exactly where an object's opacity is above one half.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

from openvocab.world.chance import grain, keys
from openvocab.world.glyph import word_bitmap
from openvocab.world.scene import BACKGROUNDS, SHAPES, STYLES, TEXTURES, WORDS, Scenes

PALETTE_01 = np.array(
    [
        (0.88, 0.10, 0.12),
        (0.10, 0.66, 0.20),
        (0.10, 0.25, 0.92),
        (0.97, 0.87, 0.10),
        (0.58, 0.12, 0.74),
        (0.98, 0.50, 0.05),
        (0.15, 0.88, 0.92),
        (0.97, 0.97, 0.97),
    ],
    np.float32,
)
"""Rows of COLOURS; any two are at least 0.35 apart, and from every background tone as well."""

BACKGROUND_DEPTH_M = 8.0

_CHUNK = 128  # scenes at once: the working set stays in the second-level cache
_BOARD_01 = np.array((0.13, 0.17, 0.17), np.float32)


@dataclass(frozen=True, slots=True)
class Truth:
    masks: Bool[np.ndarray, "scene object height width"]
    """Visible pixels: what lies over an object is taken away from it."""
    boxes_xyxy_px: Float[np.ndarray, "scene object 4"]
    """Tight around the mask, right and bottom edges exclusive; zeros where nothing is visible."""
    depth_m: Float[np.ndarray, "scene height width"]


def render(
    scenes: Scenes, size_px: int = 32, backdrop_01: Float[np.ndarray, "scene 3 {size_px} {size_px}"] | None = None
) -> UInt8[np.ndarray, "scene 3 {size_px} {size_px}"]:
    """The pictures; picture i depends on scene i alone.

    Args:
        backdrop_01: what lies behind the objects, in place of the scenes' own backgrounds.
    """
    pictures = np.empty((len(scenes), 3, size_px, size_px), np.uint8)
    for first in range(0, len(scenes), _CHUNK):
        rows = slice(first, first + _CHUNK)
        canvas = _backdrop(scenes[rows], size_px) if backdrop_01 is None else backdrop_01[rows].copy()
        pictures[rows] = _paint(canvas, scenes[rows], size_px)
    return pictures


def truth(
    scenes: Scenes, size_px: int = 32, backdrop_m: Float[np.ndarray, "scene {size_px} {size_px}"] | None = None
) -> Truth:
    """Masks, boxes and depth of the pictures that `render` makes.

    Args:
        backdrop_m: the distance of what lies behind the objects, BACKGROUND_DEPTH_M everywhere unless given.
    """
    num_scenes, num_slots = scenes.present.shape
    masks = np.zeros((num_scenes, num_slots, size_px, size_px), bool)
    masks[scenes.present] = _distances_px(scenes, size_px) < 0
    covered = _word_ink(scenes, size_px)
    for slot in reversed(range(num_slots)):
        masks[:, slot] &= ~covered
        covered = covered | masks[:, slot]
    depth_m = np.full((num_scenes, size_px, size_px), BACKGROUND_DEPTH_M, np.float32)
    if backdrop_m is not None:
        depth_m[:] = backdrop_m
    for slot in range(num_slots):
        depth_m = np.where(masks[:, slot], scenes.depth_m[:, slot, None, None], depth_m)
    return Truth(masks, mask_boxes(masks), depth_m)


def mask_boxes(masks: Bool[np.ndarray, "*object height width"]) -> Float[np.ndarray, "*object 4"]:
    """The tight box of each mask, right and bottom edges exclusive; zeros for an empty mask."""
    sides = []
    for other in (-2, -1):  # columns, then rows
        line: np.ndarray = np.any(masks, axis=other)
        first = np.argmax(line, axis=-1)
        end = line.shape[-1] - np.argmax(line[..., ::-1], axis=-1)
        sides.append((first, np.where(line.any(axis=-1), end, 0)))
    (x1, x2), (y1, y2) = sides
    return np.stack([x1, y1, x2, y2], -1).astype(np.float32)


def outline_distance(
    shape: str, u: Float[np.ndarray, "*grid"], v: Float[np.ndarray, "*grid"]
) -> Float[np.ndarray, "*grid"]:
    """Signed distance to a shape's outline (negative inside) in units of its radius; v points down.

    Exact beside smooth edges and a lower bound beyond corners, which only rounds the corners' half-pixel softening.
    """
    if shape == "circle":
        return np.hypot(u, v) - np.float32(0.92)
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - np.float32(0.77)
    if shape == "triangle":
        slant = np.abs(u) * np.float32(0.866) - v * np.float32(0.5)
        return np.maximum(slant, v) - np.float32(0.54)
    if shape == "diamond":  # taller than wide, so that no rotation makes it a square
        return (np.abs(u) * np.float32(1.1) + np.abs(v) * np.float32(0.62)) * np.float32(0.792) - np.float32(0.54)
    if shape == "cross":
        a, b = np.abs(u), np.abs(v)
        return np.maximum(np.maximum(a, b) - np.float32(1.0), np.minimum(a, b) - np.float32(0.3))
    if shape == "ring":
        return np.abs(np.hypot(u, v) - np.float32(0.72)) - np.float32(0.22)
    if shape == "bar":
        return np.maximum(np.abs(u) - np.float32(1.05), np.abs(v) - np.float32(0.3))
    if shape == "crescent":
        bite = np.float32(0.78) - np.hypot(u - np.float32(0.48), v)
        return np.maximum(np.hypot(u, v) - np.float32(1.0), bite)
    raise ValueError(f"shape {shape!r} is not one of {', '.join(SHAPES)}")


def _paint(canvas: np.ndarray, scenes: Scenes, size_px: int) -> np.ndarray:
    distance = _distances_px(scenes, size_px)
    opacity = np.clip(np.float32(0.5) - distance, 0, 1)
    sketched = (scenes.style == STYLES.index("sketch"))[:, None] & scenes.present
    if sketched.any():
        rows = sketched[scenes.present]
        opacity[rows] = _chalk(distance[rows], size_px)
    tone = (PALETTE_01[scenes.colour] + scenes.tint).clip(0, 1)[scenes.present]
    tone += np.float32(0.25) * sketched[scenes.present][:, None] * (1 - tone)  # chalk is pale
    texture = np.where(sketched, 0, scenes.texture)[scenes.present]
    scene_of, slot_of = np.nonzero(scenes.present)
    for slot in range(scenes.present.shape[1]):
        rows = np.nonzero(slot_of == slot)[0]
        if not len(rows):
            continue
        at = scene_of[rows]
        paint = tone[rows][:, :, None, None]
        if texture[rows].any():
            weave = _weave(scenes[at], slot, texture[rows], size_px)
            paint = paint * weave[:, None]
        alpha = opacity[rows][:, None]
        if len(at) == len(scenes):
            canvas += alpha * (paint - canvas)
        else:
            below = canvas[at]
            canvas[at] = below + alpha * (paint - below)
    return _finish(canvas, scenes, size_px)


def _pixel_grid(size_px: int) -> tuple[np.ndarray, np.ndarray]:
    centres = (np.arange(size_px, dtype=np.float32) + np.float32(0.5)) / np.float32(size_px)
    return centres[None, None, :], centres[None, :, None]


def _local(scenes: Scenes, size_px: int, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres in the frame of each present object: turned upright, in units of its radius."""
    x, y = _pixel_grid(size_px)
    cos, sin = (
        (f(scenes.rotation_rad[present]) / scenes.radius[present]).astype(np.float32)[:, None, None]
        for f in (np.cos, np.sin)
    )
    dx, dy = x - scenes.cx[present][:, None, None], y - scenes.cy[present][:, None, None]
    return cos * dx + sin * dy, cos * dy - sin * dx


def _distances_px(scenes: Scenes, size_px: int) -> np.ndarray:
    """Signed distance of every pixel centre to every present object's outline, in pixels."""
    u, v = _local(scenes, size_px, scenes.present)
    shapes = scenes.shape[scenes.present]
    distance = np.empty_like(u)
    for number, name in enumerate(SHAPES):
        rows = np.nonzero(shapes == number)[0]
        if len(rows):
            distance[rows] = outline_distance(name, u[rows], v[rows])
    distance *= (scenes.radius[scenes.present] * np.float32(size_px))[:, None, None]
    return distance


def _backdrop(scenes: Scenes, size_px: int) -> np.ndarray:
    sketched = scenes.style == STYLES.index("sketch")
    ground = np.where(sketched[:, None], _BOARD_01, scenes.ground_01)
    canvas = np.broadcast_to(ground[:, :, None, None], (len(scenes), 3, size_px, size_px)).copy()
    rows = np.nonzero(scenes.style == STYLES.index("textured"))[0]
    if len(rows):
        x, y = np.arange(size_px) * 32 // size_px, np.arange(size_px)[:, None] * 32 // size_px
        canvas[rows] += np.where((x // 2 + y // 2) % 2, np.float32(0.045), np.float32(-0.045))
    rows = np.nonzero(scenes.background == BACKGROUNDS.index("noisy"))[0]
    if len(rows):
        canvas[rows] += np.float32(0.05) * grain(keys("ground", scenes.key[rows]), 0, size_px, size_px)[:, None]
    rows = np.nonzero(scenes.background == BACKGROUNDS.index("striped"))[0]
    if len(rows):
        angle, period, phase = (column.astype(np.float32)[:, None, None] for column in scenes.stripe[rows].T)
        x, y = _pixel_grid(size_px)
        wave = np.abs(((x * np.cos(angle) + y * np.sin(angle)) / period + phase) % 1 - np.float32(0.5))
        edge = (wave - np.float32(0.25)) * period * np.float32(size_px)
        canvas[rows] += np.float32(0.14) * (np.clip(edge + np.float32(0.5), 0, 1) - np.float32(0.5))[:, None]
    return canvas


def _chalk(distance: np.ndarray, size_px: int) -> np.ndarray:
    """A line of chalk along the outline, and a faint hatching inside."""
    thick = max(np.float32(0.9), np.float32(size_px / 42))
    line = np.clip(thick - np.abs(distance + thick * np.float32(0.5)), 0, 1)
    x, y = np.arange(size_px)[None, None, :], np.arange(size_px)[None, :, None]
    hatch = ((x + y) * 32 // size_px % 4 == 0) & (distance < 0)
    return np.maximum(line, np.float32(0.4) * hatch).astype(np.float32)


def _weave(scenes: Scenes, slot: int, texture: np.ndarray, size_px: int) -> np.ndarray:
    """Brightness inside an object: 1, or darker along stripes, dots and checks that turn with it."""
    only = np.zeros_like(scenes.present)
    only[:, slot] = True
    u, v = _local(scenes, size_px, only)
    light = np.ones_like(u)
    for number, name in enumerate(TEXTURES):
        rows = np.nonzero(texture == number)[0]
        if name == "plain" or not len(rows):
            continue
        per_radius = np.float32(1 if name == "checked" else 2)
        a, b = (axis[rows] * per_radius for axis in (u, v))
        a, b = a - np.floor(a), b - np.floor(b)
        if name == "striped":
            dark = b < np.float32(0.5)
        elif name == "dotted":
            dark = (a - np.float32(0.5)) ** 2 + (b - np.float32(0.5)) ** 2 < np.float32(0.34**2)
        else:
            dark = (a < np.float32(0.5)) == (b < np.float32(0.5))
        light[rows] = np.where(dark, np.float32(0.6), np.float32(1))
    return light


def _word_ink(scenes: Scenes, size_px: int) -> np.ndarray:
    """Pixels covered by each scene's word: letters of the 32-pixel alphabet, enlarged by whole factors."""
    ink = np.zeros((len(scenes), size_px, size_px), bool)
    worded = np.nonzero(scenes.word >= 0)[0]
    scale = size_px // 32
    if len(worded) and not scale:
        raise ValueError(f"render: words need pictures of at least 32 pixels, not {size_px}")
    for row in worded:
        letters = word_bitmap(WORDS[scenes.word[row]]).repeat(scale, 0).repeat(scale, 1)
        height, width = letters.shape
        top, left = round(float(scenes.word_y[row]) * size_px), (size_px - width) // 2
        ink[row, top : top + height, left : left + width] = letters
    return ink


def _finish(canvas: np.ndarray, scenes: Scenes, size_px: int) -> np.ndarray:
    """Words over everything, then what a style does to the whole picture, then bytes."""
    worded = np.nonzero(scenes.word >= 0)[0]
    if len(worded):
        at, y, x = np.nonzero(_word_ink(scenes[worded], size_px))
        dark = scenes.style[worded] == STYLES.index("sketch")
        dark |= scenes.ground_01[worded].mean(1) < 0.425
        canvas[worded[at], :, y, x] = np.where(dark, np.float32(0.95), np.float32(0.04))[at][:, None]
    style = {name: np.nonzero(scenes.style == number)[0] for number, name in enumerate(STYLES)}
    for channel in range(3):
        if len(style["noisy"]):
            canvas[style["noisy"], channel] += np.float32(0.09) * grain(
                keys("noise", scenes.key[style["noisy"]]), channel, size_px, size_px
            )
    canvas[style["inverted"]] = 1 - canvas[style["inverted"]]
    canvas *= np.float32(255)
    canvas += np.float32(0.5)
    return np.clip(canvas, 0, 255, out=canvas).astype(np.uint8)
