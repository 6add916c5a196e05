"""Rooms: objects standing on a floor before a wall, in perspective, with exact distances and a depth map.

Camera at height H above the floor, focal length f (in picture sides), horizon at row h: a point X to the right, Y
below the camera and z away appears at (1/2 + f X / z, h + f Y / z).
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from openvocab.world.chance import uniforms
from openvocab.world.render import PALETTE_01, Truth, render, truth
from openvocab.world.scene import Scenes, WorldConfig, draw_scenes

FOCAL = 0.8
HORIZONS = (0.25, 0.55)
CAMERA_HEIGHTS_M = (0.7, 1.3)
WALLS_M = (3.5, 8.0)

WORDS_M = {
    "giant": 1.0,
    "extremely close": 1.5,
    "close": 2.5,
    "not in distance": 3.5,
    "a little remote": 4.5,
    "far": 6.0,
    "unseen": 8.0,
}
"""DepthCLIP's words for distances; a surface of a room is called by the nearest."""

_FOG_01 = np.float32(0.62)
_FOG_LENGTH_M = 6.0
_NEAR_M, _BEFORE_WALL_M = 1.5, 0.5
_BODY_M = 0.38  # radius of every object, give or take a tenth: size tells distance


@dataclass(frozen=True, slots=True)
class Rooms:
    scenes: Scenes
    """Objects from far to near; `depth_m` holds their distances."""
    fog: bool
    horizon: Float[np.ndarray, " scene"]
    height_m: Float[np.ndarray, " scene"]
    """Of the camera above the floor."""
    wall_m: Float[np.ndarray, " scene"]

    def __getitem__(self, rows: slice) -> "Rooms":
        return Rooms(self.scenes[rows], self.fog, self.horizon[rows], self.height_m[rows], self.wall_m[rows])


def draw_rooms(num_rooms: int, seed: int = 0, start: int = 0, fog: bool = True) -> Rooms:
    """Rooms `start` to `start + num_rooms` of the stream `seed`, with two to four objects each.

    Every room has a camera and a wall of its own, so that no row of the picture has a distance of its own.

    Args:
        fog: what is further away is paler; without it only size, place and hiding tell distance.
    """
    index = np.arange(start, start + num_rooms)
    base = draw_scenes(num_rooms, WorldConfig(max_objects=4, share_single=0.0), seed, start)
    u = uniforms(f"room {seed}", index, 16).reshape(num_rooms, 4, 4)
    view = uniforms(f"camera {seed}", index, 3)
    horizon, height_m = (low + each * (high - low) for each, (low, high) in zip(view.T, (HORIZONS, CAMERA_HEIGHTS_M)))
    wall_m = 1 / (1 / WALLS_M[1] + view[:, 2] * (1 / WALLS_M[0] - 1 / WALLS_M[1]))
    # Distances even in 1/z, so that small far objects are not the rule; absent slots are the nearest ones.
    far = 1 / (wall_m - _BEFORE_WALL_M)[:, None]
    depth = np.sort(1 / (far + u[:, 0] * (1 / _NEAR_M - far)), axis=1)[:, ::-1]
    body = _BODY_M * (0.9 + 0.2 * u[:, 1])
    radius = FOCAL * body / depth
    lane = np.argsort(u[:, 2], axis=1)
    cx = 0.06 + 0.22 * (lane + u[:, 3])
    cy = horizon[:, None] + FOCAL * height_m[:, None] / depth - 0.8 * radius
    tint = base.tint
    if fog:
        clear = np.exp(-depth / _FOG_LENGTH_M)[:, :, None]
        tone = PALETTE_01[base.colour] + base.tint
        tint = tone * clear + _FOG_01 * (1 - clear) - PALETTE_01[base.colour]
    pose = {"cx": cx, "cy": cy, "radius": radius, "depth_m": depth, "tint": tint}
    scenes = dataclasses.replace(base, **{k: v.astype(np.float32) for k, v in pose.items()})
    return Rooms(scenes, fog, *(each.astype(np.float32) for each in (horizon, height_m, wall_m)))


def render_rooms(rooms: Rooms, size_px: int = 96) -> UInt8[np.ndarray, "scene 3 {size_px} {size_px}"]:
    """The pictures; floor and wall are laid with tiles of one metre."""
    depth, below = empty_rooms_m(rooms, size_px), _below(rooms, size_px)
    column = (np.arange(size_px, dtype=np.float32) + np.float32(0.5)) / np.float32(size_px)
    floor = depth < rooms.wall_m[:, None, None]
    along = np.where(floor, depth, below * depth / np.float32(FOCAL))
    tile = (np.floor((column - np.float32(0.5)) * depth / np.float32(FOCAL)) + np.floor(along)) % 2
    light = np.where(floor, np.float32(0.3), np.float32(0.45)) + np.float32(0.1) * tile
    hue = rooms.scenes.ground_01 - rooms.scenes.ground_01.mean(1, keepdims=True)
    backdrop = light[:, None] + hue[:, :, None, None]
    if rooms.fog:
        clear = np.exp(-depth / np.float32(_FOG_LENGTH_M))[:, None]
        backdrop = backdrop * clear + _FOG_01 * (1 - clear)
    return render(rooms.scenes, size_px, backdrop)


def room_truth(rooms: Rooms, size_px: int = 96) -> Truth:
    """Masks, boxes, and the distance of every pixel's surface along the camera's axis."""
    return truth(rooms.scenes, size_px, empty_rooms_m(rooms, size_px))


def empty_rooms_m(rooms: Rooms, size_px: int) -> Float[np.ndarray, "scene {size_px} {size_px}"]:
    """z = f H / (y - h) on the floor, the wall's distance above it."""
    floor = FOCAL * rooms.height_m[:, None, None] / np.maximum(_below(rooms, size_px), np.float32(1e-6))
    return np.repeat(np.minimum(floor, rooms.wall_m[:, None, None]).astype(np.float32), size_px, 2)


def _below(rooms: Rooms, size_px: int) -> Float[np.ndarray, "scene {size_px} 1"]:
    """y - h of every row."""
    row = (np.arange(size_px, dtype=np.float32) + np.float32(0.5)) / np.float32(size_px)
    return row[None, :, None] - rooms.horizon[:, None, None]
