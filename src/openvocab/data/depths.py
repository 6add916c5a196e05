"""Pictures with the distance of every pixel: `images/NAME.jpg` beside `depth/NAME.png` or `.npz`, or generated rooms.

A PNG holds whole numbers of a unit that is settable (1 mm as NYU's files, 1/256 m for KITTI's), an npz the array
`depth_m`; 0, or what is not a number, is a pixel whose distance is not known.
"""

import itertools
import zipfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from PIL import Image

from openvocab.data.decode import decode
from openvocab.data.folders import pictures_with
from openvocab.data.memory import InMemory
from openvocab.data.scenes import drawn_anew
from openvocab.storage import fingerprint
from openvocab.world.chance import uniforms
from openvocab.world.room import WORDS_M, draw_rooms, render_rooms, room_truth

_AT_ONCE, _CROPS_EACH = 128, 4
ROOMS = ("rooms", "rooms_without_fog")
"""Generated worlds."""

DepthMap = Float32[np.ndarray, "height width"]


@dataclass(frozen=True)
class Measured:
    """One picture and its distances in metres, 0 where they are not known."""

    image: Image.Image
    key: str
    depth_m: DepthMap


class Depths(ABC):
    """Pictures by index, with their distances.

    Attributes:
        fingerprint: identity of the content.
    """

    source: str
    fingerprint: str

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> Measured:
        """The picture and its distances; ValueError with one line where they cannot be read."""


class DepthFiles(Depths):
    """A folder with `images/` and `depth/`."""

    def __init__(self, folder: Path, unit_m: float = 0.001):
        self.source, self.folder, self.unit_m = str(folder), folder, unit_m
        self.paths = pictures_with(folder, "depth")
        sizes = [(path.name, path.stat().st_size) for path in self.paths]
        self.fingerprint = fingerprint(sizes, unit_m)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Measured:
        key = self.paths[index].relative_to(self.folder / "images")
        image, path = decode(str(self.paths[index])), self.folder / "depth" / key.with_suffix(".npz")
        depth_m = read_depth(path if path.exists() else path.with_suffix(".png"), self.unit_m)
        if depth_m.shape != (image.height, image.width):
            size = " x ".join(map(str, depth_m.shape[::-1]))
            raise ValueError(f"{path.with_suffix('')}: depth is {size}, its picture {image.width} x {image.height}")
        return Measured(image, key.as_posix(), depth_m)


def read_depth(path: Path, unit_m: float = 0.001) -> DepthMap:
    """Metres, 0 where a distance is not known.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not one number a pixel, or none of them a distance.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such depth; expected .npz with depth_m in metres, or .png")
    try:
        with path.open("rb") as file:
            if path.suffix == ".npz":
                values, unit_m = np.load(file, allow_pickle=False)["depth_m"], 1.0
            else:
                values = np.array(Image.open(file))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a depth that can be read ({error})") from None
    if values.ndim != 2:
        raise ValueError(f"{path}: holds {values.ndim} axes, expected one number a pixel")
    depth_m = np.nan_to_num(values.astype(np.float32) * np.float32(unit_m), posinf=0.0, neginf=0.0).clip(0)
    if not depth_m.any():
        raise ValueError(f"{path}: the depth is empty, no pixel has a distance")
    return depth_m


class RoomDepths(Depths):
    """Generated rooms with exact distances."""

    def __init__(self, num_rooms: int, seed: int, fog: bool = True, size_px: int = 96):
        self.source, rooms = "rooms", draw_rooms(num_rooms, seed, fog=fog)
        self.pictures, self.depth_m = render_rooms(rooms, size_px), room_truth(rooms, size_px).depth_m
        self.fingerprint = fingerprint(self.source, seed, num_rooms, self.pictures[:64].tobytes())

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, index: int) -> Measured:
        image = Image.fromarray(np.ascontiguousarray(self.pictures[index].transpose(1, 2, 0)))
        return Measured(image, f"room-{index}", self.depth_m[index])


def open_depths(source: str, unit_m: float = 0.001) -> Depths:
    """A folder of pictures and distances, or `rooms:COUNT:STREAM` that no training has drawn.

    Raises:
        FileNotFoundError: no such source.
        ValueError: it holds no pictures.
    """
    drawn = drawn_anew(source, "rooms")
    return RoomDepths(*drawn) if drawn else DepthFiles(Path(source), unit_m)


def open_room_crops(num_crops: int, *, seed: int = 0, size_px: int = 32, fog: bool = True) -> InMemory:
    """Parts of rooms around one surface, each with the word for its distance; a room's rarest words are taken first."""
    names, metres, half = list(WORDS_M), np.array(list(WORDS_M.values()), np.float32), size_px // 2
    crops, words, counts = [], [], np.zeros(len(names), np.int64)
    for start in itertools.count(0, _AT_ONCE):
        if len(words) >= num_crops:
            break
        rooms = draw_rooms(_AT_ONCE, seed, start, fog)
        nearest = np.digitize(room_truth(rooms).depth_m, (metres[1:] + metres[:-1]) / 2)
        draws = uniforms(f"surface {seed}", rooms.scenes.index, _CROPS_EACH)
        for picture, inner, places in zip(render_rooms(rooms), nearest[:, half : 1 - half, half : 1 - half], draws):
            there = np.unique(inner)
            for word, place in zip(there[counts[there].argsort(kind="stable")], places):
                at = np.argwhere(inner == word)
                top, left = at[int(place * len(at))]
                crops.append(picture[:, top : top + size_px, left : left + size_px])
                words.append(names[word])
                counts[word] += 1
    pictures, texts = np.stack(crops[:num_crops]), [(f"This object is {word}",) for word in words[:num_crops]]
    stream = f"room-crop-{seed}-{fog}"
    return InMemory(
        "rooms",
        pictures,
        texts,
        [f"{stream}-{index}" for index in range(num_crops)],
        [None] * num_crops,
        fingerprint=fingerprint(stream, texts, pictures[:64].tobytes()),
    )
