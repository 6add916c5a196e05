"""Generated solids as triangle meshes: twelve kinds, clouds of points on them, and pictures of them from all sides.

y is up. Meshes are exact; a cloud is drawn from a mesh's surface, a picture is a cloud of many points seen through a
z-buffer. Shape i of a stream is a function of the stream's seed and i.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, UInt8
from numpy.random import Generator

Cloud = Float[np.ndarray, "point 3"]
Kind = Literal["shaded", "silhouette", "depth"]
Number = float | int


@dataclass(frozen=True)
class Mesh:
    """Triangles."""

    vertices: Float[np.ndarray, "vertex 3"]
    faces: Int[np.ndarray, "face 3"]

    def sample(self, count: int, rng: Generator) -> tuple[Cloud, Cloud]:
        """Points spread evenly over the surface, and the unit normals of their triangles.

        Raises:
            ValueError: no triangle has an area.
        """
        first, second, third = self.vertices[self.faces].transpose(1, 0, 2)
        normals = np.cross(second - first, third - first)
        areas = np.linalg.norm(normals, axis=1)
        if not areas.sum() > 0:
            raise ValueError("no triangle has an area")
        rows = rng.choice(len(areas), count, p=areas / areas.sum())
        u, v = rng.random((2, count, 1))
        u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
        points = first[rows] + u * (second - first)[rows] + v * (third - first)[rows]
        return points, normals[rows] / areas[rows, None]

    def moved(self, x: Number = 0, y: Number = 0, z: Number = 0) -> "Mesh":
        return Mesh(self.vertices + np.array((x, y, z)), self.faces)

    def lying(self) -> "Mesh":
        """Its axis, y before, is now x."""
        return Mesh(self.vertices[:, [1, 0, 2]], self.faces)


def joined(meshes: Sequence[Mesh]) -> Mesh:
    starts = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes)])
    faces = [mesh.faces + start for mesh, start in zip(meshes, starts)]
    return Mesh(np.concatenate([mesh.vertices for mesh in meshes]), np.concatenate(faces))


def revolved(profile: Sequence[tuple[Number, Number]], sides: int = 32) -> Mesh:
    """What (radius, height) sweeps around y."""
    radii, heights = np.array(profile, np.float64).T[:, :, None]
    angles = np.arange(sides) * (2 * np.pi / sides)
    ring = (radii * np.cos(angles), heights + 0 * angles, radii * np.sin(angles))
    row, col = np.meshgrid(np.arange(len(profile) - 1), np.arange(sides), indexing="ij")
    here, there = (row * sides + col).ravel(), (row * sides + (col + 1) % sides).ravel()
    faces = [(here, there, here + sides), (there, there + sides, here + sides)]
    return Mesh(np.stack(ring, -1).reshape(-1, 3), np.concatenate([np.stack(face, 1) for face in faces]))


def box(x: Number, y: Number, z: Number) -> Mesh:
    """With these half sides."""
    corners = np.array(np.meshgrid([-x, x], [-y, y], [-z, z], indexing="ij"), np.float64).reshape(3, 8).T
    quads = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))
    return Mesh(corners, np.array([face for a, b, c, d in quads for face in ((a, b, c), (a, c, d))]))


def arc(radius: Number, start: Number, end: Number, x: Number = 0, y: Number = 0) -> list[tuple[Number, Number]]:
    """A profile: part of a circle around (x, y), in degrees from the x axis."""
    angles = np.radians(np.linspace(start, end, 17))
    return list(zip((x + radius * np.cos(angles)).tolist(), (y + radius * np.sin(angles)).tolist()))


def _legs(rng: Generator, half: Number, high: Number) -> list[Mesh]:
    thick = rng.uniform(0.06, 0.12)
    at = half - thick
    return [box(thick, high / 2, thick).moved(x, -high / 2, z) for x in (-at, at) for z in (-at, at)]


def _table(rng: Generator) -> Mesh:
    return joined([box(1, 0.08, 1), *_legs(rng, 1, rng.uniform(1.0, 1.5))])


def _chair(rng: Generator) -> Mesh:
    back = rng.uniform(0.8, 1.2)
    return joined([box(0.7, 0.08, 0.7), *_legs(rng, 0.7, 1.0), box(0.7, back / 2, 0.07).moved(y=back / 2, z=-0.63)])


def _mug(rng: Generator) -> Mesh:
    high, wall = rng.uniform(0.8, 1.2), 0.1
    body = revolved([(0, -high), (0.8, -high), (0.8, high), (0.8 - wall, high), (0.8 - wall, wall - high)])
    ring = revolved(arc(0.12, 0, 360, x=rng.uniform(0.4, 0.6)), sides=24)
    return joined([body, Mesh(ring.vertices[:, [0, 2, 1]], ring.faces).moved(x=0.85)])


def _dumbbell(rng: Generator) -> Mesh:
    ends, far = revolved(arc(rng.uniform(0.35, 0.55), -90, 90)), rng.uniform(0.8, 1.2)
    bar = revolved([(0.12, -far), (0.12, far)])
    return joined([ends.moved(y=-far), bar, ends.moved(y=far)]).lying()


def _stairs(rng: Generator) -> Mesh:
    steps = int(rng.integers(3, 6))
    heights = np.arange(1, steps + 1) / steps
    blocks = [box(1 / steps, h, 0.7).moved(2 * n / steps - 1, h - 1) for n, h in enumerate(heights.tolist())]
    return joined(blocks)


def _capsule(rng: Generator) -> Mesh:
    half = rng.uniform(0.7, 1.2)
    return revolved([*arc(0.5, -90, 0, y=-half), *arc(0.5, 0, 90, y=half)])


def _tetrahedron(rng: Generator) -> Mesh:
    corners = np.array([(0, 1, 0), (-1, -0.6, -0.6), (1, -0.6, -0.6), (0, -0.6, 1.1)])
    return Mesh(corners, np.array([(0, 1, 2), (0, 2, 3), (0, 3, 1), (1, 3, 2)]))


SHAPES: dict[str, Callable[[Generator], Mesh]] = {
    "sphere": lambda rng: revolved(arc(1, -90, 90)),
    "box": lambda rng: box(1, 1, 1),
    "cylinder": lambda rng: revolved([(0, -1), (0.7, -1), (0.7, 1), (0, 1)]),
    "cone": lambda rng: revolved([(0, -1), (0.9, -1), (0, 1)]),
    "torus": lambda rng: revolved(arc(rng.uniform(0.2, 0.35), 0, 360, x=0.8)),
    "capsule": _capsule,
    "tetrahedron": _tetrahedron,
    "table": _table,
    "chair": _chair,
    "mug": _mug,
    "dumbbell": _dumbbell,
    "stairs": _stairs,
}


def draw_shape(name: str, rng: Generator) -> Mesh:
    """A shape of this name, stretched along each axis by its own amount."""
    mesh = SHAPES[name](rng)
    return Mesh(mesh.vertices * rng.uniform(0.7, 1.3, 3), mesh.faces)


def unit_sphere(points: Cloud) -> Cloud:
    """Moved and scaled so that the mean is the origin and the farthest point at distance 1."""
    centred = points - points.mean(0)
    return centred / max(float(np.linalg.norm(centred, axis=1).max()), 1e-12)


def shape_name(index: int) -> str:
    return tuple(SHAPES)[index % len(SHAPES)]


def shape_cloud(index: int, seed: int, num_points: int = 1024, *, yaw: bool = False) -> Cloud:
    """Shape `index` of a stream as points, with the noise of a scanner; upright, perhaps turned about y."""
    rng = np.random.default_rng([seed, index])
    points, _ = draw_shape(shape_name(index), rng).sample(num_points, rng)
    points = unit_sphere(points + rng.normal(0, 0.01, points.shape))
    return points @ _turn(rng.uniform(0, 2 * np.pi), 0.0) if yaw else points


def shape_picture(index: int, seed: int, size_px: int, kind: Kind) -> UInt8[np.ndarray, "3 {size_px} {size_px}"]:
    """Shape `index` of a stream from a random side: lit, as an outline, or as a map of depth, near is bright."""
    rng = np.random.default_rng([seed, index])
    points, normals = draw_shape(shape_name(index), rng).sample(2500, rng)
    turn = _turn(rng.uniform(0, 2 * np.pi), np.arcsin(rng.uniform(-1, 1)))
    seen, facing = unit_sphere(points) @ turn, normals @ turn
    depth = rng.uniform(1.6, 2.4) - seen[:, 2]
    light = rng.normal(size=3) + np.array((0, 0, 1.5))
    ink, ground = rng.uniform(0, 1, (2, 3))
    if kind == "depth":
        values, ground = np.repeat(1 - 0.8 * (depth - depth.min()) / np.ptp(depth), 3).reshape(-1, 3), np.zeros(3)
    elif kind == "silhouette":
        values = np.broadcast_to(np.where(ground.mean() > 0.5, ink * 0.3, 1 - ink * 0.3), facing.shape)
    else:
        lit = np.abs(facing @ (light / np.linalg.norm(light)))
        values = (0.5 + 0.5 * ink) * (0.2 + 0.8 * lit[:, None])
    col, row = (seen[:, 0] / depth, -seen[:, 1] / depth)
    cells = np.stack([row, col], 1) * (0.62 * size_px) + size_px / 2
    order = np.argsort(-depth)
    around = np.array([(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1)])
    rows, cols = (cells[order, None].astype(int) + around).clip(0, size_px - 1).transpose(2, 0, 1)
    owner = np.full((size_px, size_px), -1)
    owner[rows, cols] = order[:, None]  # of what is written twice the last, which is nearest, stays
    page = np.where(owner[:, :, None] < 0, ground, values[owner])
    return (page * 255).round().astype(np.uint8).transpose(2, 0, 1)


def _turn(yaw: Number, rise: Number) -> Float[np.ndarray, "3 3"]:
    """Rows are turned about y, then about x."""
    (a, b), (c, d) = (np.cos(yaw), np.sin(yaw)), (np.cos(rise), np.sin(rise))
    return np.array([(a, 0, -b), (0, 1, 0), (b, 0, a)]) @ np.array([(1, 0, 0), (0, c, d), (0, -d, c)])
