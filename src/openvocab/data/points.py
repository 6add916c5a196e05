"""Clouds of points with their labels: files, lists of files, and generated ones.

A point-file list is a table (`.csv`, `.tsv`, `.jsonl`, `.parquet`) with the columns `path` and `label`. Files are
`.ply`, `.off` and `.obj`, meshes or clouds, and `.npz` with an array `points`. y is up; every cloud comes in the unit
sphere, of as many points as are asked for.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Int64

from openvocab.data.clips import PATH_KEYS
from openvocab.data.extras import require
from openvocab.data.scenes import drawn_anew
from openvocab.data.source import LABEL_KEYS, choose_key
from openvocab.data.tables import stream_list
from openvocab.progress import track
from openvocab.storage import fingerprint
from openvocab.world.shape3d import SHAPES, Cloud, Mesh, joined, shape_cloud, unit_sphere

POINT_SUFFIXES = (".ply", ".off", ".obj", ".npz")


@dataclass(frozen=True, kw_only=True, slots=True)
class PointsConfig:
    """Where clouds are: a point-file list, or `scenes`, generated ones, whose number is `num_clouds`.

    `root` is the folder that the paths of a list start from, the list's own by default; `up` is the axis of its files.
    `yaw` turns generated clouds.
    """

    source: str = "scenes"
    root: str | None = None
    num_points: int = 1024
    num_clouds: int = 1200
    up: Literal["y", "z"] = "y"
    yaw: bool = False


@dataclass(frozen=True)
class PointSource:
    """Clouds by index; `read` raises ValueError with one line where one cannot be read."""

    source: str
    keys: tuple[str, ...]
    classnames: tuple[str, ...]
    label_ids: Int64[np.ndarray, " cloud"]
    read: Callable[[int], Float32[np.ndarray, "point 3"]]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def fingerprint(self) -> str:
        """Identity of the list: which clouds, under which labels."""
        return fingerprint(self.source, self.keys, self.classnames, self.label_ids.tolist())

    def shots(self, count: int, seed: int) -> "PointSource":
        """`count` clouds of each label, or all there are; drawn by the seed, more shots hold all of fewer."""
        order = np.random.default_rng(seed).permutation(len(self))
        rows = [order[self.label_ids[order] == label][:count] for label in range(len(self.classnames))]
        kept = np.sort(np.concatenate(rows))
        keys = tuple(self.keys[row] for row in kept)
        return replace(self, keys=keys, label_ids=self.label_ids[kept], read=lambda index: self.read(int(kept[index])))


@dataclass(frozen=True)
class Clouds:
    """What of a source can be read, and why the rest cannot, by key."""

    points: Float32[np.ndarray, "cloud point 3"]
    label_ids: Int64[np.ndarray, " cloud"]
    failures: dict[str, str]


def open_points(config: PointsConfig, seed: int = 0) -> PointSource:
    """What training sees, or for `scenes:COUNT:STREAM` what no training has drawn.

    Raises:
        FileNotFoundError: no such list.
        ValueError: not a table with paths and labels, or an empty one.
    """
    drawn = drawn_anew(config.source, "scenes")
    if drawn is None:
        return _listed(Path(config.source), config)
    count, stream = (config.num_clouds, seed) if config.source == "scenes" else drawn
    return PointSource(
        source="scenes",
        keys=tuple(f"cloud-{stream}-{index}" for index in range(count)),
        classnames=tuple(SHAPES),
        label_ids=np.arange(count) % len(SHAPES),
        read=lambda index: shape_cloud(index, stream, config.num_points, yaw=config.yaw).astype(np.float32),
    )


def _listed(path: Path, config: PointsConfig) -> PointSource:
    columns, rows = stream_list(path, "point-file list")
    where = choose_key(str(path), "path", None, PATH_KEYS, columns)
    named = choose_key(str(path), "label", None, LABEL_KEYS, columns)
    if where is None or named is None:
        raise ValueError(f"{path}: a point-file list has the columns path and label; it has {', '.join(columns)}")
    found = [(str(row.get(where) or ""), str(row.get(named) or "")) for _, row in rows]
    if not found or not all(all(each) for each in found):
        raise ValueError(f"{path}: {'a row has no path or no label' if found else 'the list is empty'}")
    keys, labels = zip(*found)
    classnames = tuple(sorted(set(labels)))
    root = Path(config.root or path.parent)
    return PointSource(
        source=path.name,
        keys=keys,
        classnames=classnames,
        label_ids=np.array([classnames.index(label) for label in labels]),
        read=lambda index: _upright(read_points(root / keys[index], config.num_points), config.up),
    )


def _upright(points: Cloud, up: str) -> Cloud:
    return points if up == "y" else points[:, [0, 2, 1]] * np.array((1, 1, -1), np.float32)


def read_all(clouds: PointSource) -> Clouds:
    """Everything that can be read, in memory; ValueError where that is nothing."""
    points, rows, failures = [], [], {}
    for index in track(range(len(clouds)), f"clouds of {clouds.source}", len(clouds), "cloud"):
        try:
            points.append(clouds.read(index))
            rows.append(index)
        except (ValueError, OSError) as error:
            failures[clouds.keys[index]] = str(error)
    if not points:
        raise ValueError(f"{clouds.source}: no cloud can be read; the first: {next(iter(failures.values()))}")
    return Clouds(np.stack(points), clouds.label_ids[rows], failures)


def read_points(path: str | Path, num_points: int = 1024, seed: int = 0) -> Float32[np.ndarray, "point 3"]:
    """A file as points in the unit sphere: drawn from a mesh's surface, or from a cloud, repeated where it has fewer.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another suffix, a file that cannot be read, without points, or with NaN among them.
    """
    path = Path(path)
    if path.suffix.lower() not in POINT_SUFFIXES:
        raise ValueError(f"{path}: not a point file, whose name ends in {', '.join(POINT_SUFFIXES)}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    rng = np.random.default_rng(seed)
    found = _npz(path) if path.suffix.lower() == ".npz" else _shape(path)
    if isinstance(found, np.ndarray):
        return as_cloud(found, str(path), num_points, rng)
    _check(found.vertices, str(path))
    try:
        return as_cloud(found.sample(num_points, rng)[0], str(path), num_points, rng)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def as_cloud(points: Any, where: str, num_points: int, rng: Any = None) -> Float32[np.ndarray, "point 3"]:
    """Points in hand as `num_points` in the unit sphere; raises as `read_points`."""
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"{where}: an array of shape {points.shape}, expected a row of x, y and z for each point")
    _check(points, where)
    if len(points) > num_points:
        points = points[np.sort((rng or np.random.default_rng(0)).permutation(len(points))[:num_points])]
    return np.resize(unit_sphere(points), (num_points, 3)).astype(np.float32)


def _check(points: Cloud, where: str) -> None:
    if not len(points):
        raise ValueError(f"{where}: holds no points")
    wrong = int((~np.isfinite(points).all(1)).sum())
    if wrong:
        raise ValueError(f"{where}: {wrong} of {len(points)} points are not finite numbers")


def _npz(path: Path) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if "points" in arrays:
                return arrays["points"]
            names = ", ".join(arrays)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: not an .npz that can be read ({error})") from None
    raise ValueError(f"{path}: no array 'points' in it; it has {names or 'none'}")


def _shape(path: Path) -> Mesh | Cloud:
    """All meshes of a file joined, or the vertices where there are no faces."""
    trimesh = require("trimesh", "points", f"{path}: reading meshes")
    kind, content = path.suffix.lower()[1:], path.read_bytes()
    if kind == "off" and content[:3] == b"OFF" and not content[3:4].isspace():
        content = b"OFF\n" + content[3:]  # ModelNet glues the counts to the first word
    try:
        scene = trimesh.load_scene(io.BytesIO(content), file_type=kind, process=False, skip_materials=True)
        parts = scene.dump()
    except Exception as error:  # trimesh's readers raise whatever their parsing meets
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path}: not a mesh or cloud that can be read ({reason[:120]})") from None
    meshes = [Mesh(np.asarray(p.vertices), np.asarray(p.faces)) for p in parts if len(getattr(p, "faces", ()))]
    if meshes:
        return joined(meshes)
    return np.concatenate([np.zeros((0, 3)), *(np.asarray(p.vertices) for p in parts)])
