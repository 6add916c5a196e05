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
HORIZON = 0.4
CAMERA_HEIGHT_M = 0.9
WALL_M = 8.0

_FOG_01 = np.float32(0.62)
_FOG_LENGTH_M = 6.0
_NEAR_M, _FAR_M = 1.5, 7.0
_BODY_M = 0.38  # radius of every object, give or take a tenth: size tells distance


@dataclass(frozen=True, slots=True)
class Rooms:
    scenes: Scenes
    """Objects from far to near; `depth_m` holds their distances."""
    fog: bool


def draw_rooms(num_rooms: int, seed: int = 0, start: int = 0, fog: bool = True) -> Rooms:
    """Rooms `start` to `start + num_rooms` of the stream `seed`, with two to four objects each.

    Args:
        fog: what is further away is paler; without it only size, place and hiding tell distance.
    """
    index = np.arange(start, start + num_rooms)
    base = draw_scenes(num_rooms, WorldConfig(max_objects=4, share_single=0.0), seed, start)
    u = uniforms(f"room {seed}", index, 16).reshape(num_rooms, 4, 4)
    # Distances even in 1/z, so that small far objects are not the rule; absent slots are the nearest ones.
    inverse = 1 / _FAR_M + u[:, 0] * (1 / _NEAR_M - 1 / _FAR_M)
    depth = np.sort(1 / inverse, axis=1)[:, ::-1]
    body = _BODY_M * (0.9 + 0.2 * u[:, 1])
    radius = FOCAL * body / depth
    lane = np.argsort(u[:, 2], axis=1)
    cx = 0.06 + 0.22 * (lane + u[:, 3])
    cy = HORIZON + FOCAL * CAMERA_HEIGHT_M / depth - 0.8 * radius
    tint = base.tint
    if fog:
        clear = np.exp(-depth / _FOG_LENGTH_M)[:, :, None]
        tone = PALETTE_01[base.colour] + base.tint
        tint = tone * clear + _FOG_01 * (1 - clear) - PALETTE_01[base.colour]
    pose = {"cx": cx, "cy": cy, "radius": radius, "depth_m": depth, "tint": tint}
    return Rooms(dataclasses.replace(base, **{k: v.astype(np.float32) for k, v in pose.items()}), fog)


def render_rooms(rooms: Rooms, size_px: int = 96) -> UInt8[np.ndarray, "scene 3 {size_px} {size_px}"]:
    """The pictures; the floor is laid with tiles of one metre."""
    depth = empty_room_m(size_px)
    column = (np.arange(size_px, dtype=np.float32) + np.float32(0.5)) / np.float32(size_px)
    floor = depth < WALL_M
    tile = (np.floor((column[None, :] - 0.5) * depth / FOCAL) + np.floor(depth)) % 2
    light = np.where(floor, 0.3 + 0.1 * tile, 0.5)
    hue = rooms.scenes.ground_01 - rooms.scenes.ground_01.mean(1, keepdims=True)
    backdrop = light + hue[:, :, None, None]
    if rooms.fog:
        clear = np.exp(-depth / _FOG_LENGTH_M)
        backdrop = backdrop * clear + _FOG_01 * (1 - clear)
    return render(rooms.scenes, size_px, backdrop.astype(np.float32))


def room_truth(rooms: Rooms, size_px: int = 96) -> Truth:
    """Masks, boxes, and the distance of every pixel's surface along the camera's axis."""
    return truth(rooms.scenes, size_px, empty_room_m(size_px))


def empty_room_m(size_px: int) -> Float[np.ndarray, "{size_px} {size_px}"]:
    """z = f H / (y - h) on the floor, the wall's distance above it."""
    below = (np.arange(size_px, dtype=np.float32) + np.float32(0.5)) / np.float32(size_px) - np.float32(HORIZON)
    floor = FOCAL * CAMERA_HEIGHT_M / np.maximum(below, 1e-6)
    return np.repeat(np.minimum(floor, WALL_M).astype(np.float32)[:, None], size_px, 1)
