"""Pictures with an index PNG each: `images/NAME.jpg`, `masks/NAME.png`, and `labels.txt`, one label a line.

A pixel of a mask holds 0 for nothing, 1 for the first label, 255 for what is not judged.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from openvocab import storage
from openvocab.data.annotated import Annotated, Annotation
from openvocab.data.decode import decode
from openvocab.data.folders import pictures_with
from openvocab.metrics.segment import IGNORED
from openvocab.world.render import mask_boxes

_IGNORED = 255  # in the file


class IndexMasks(Annotated):
    """A folder of pictures and masks; every label that a picture shows is one object."""

    def __init__(self, folder: Path, paths: list[Path], labels: tuple[str, ...]):
        self.source, self.folder, self.paths, self.labels = str(folder), folder, paths, labels
        sizes = [path.stat().st_size for path in paths]
        self.fingerprint = storage.fingerprint([self.key(index) for index in range(len(paths))], sizes, labels)

    def __len__(self) -> int:
        return len(self.paths)

    def key(self, index: int) -> str:
        return self.paths[index].relative_to(self.folder / "images").as_posix()

    def read(self, index: int) -> Annotation:
        image, path = decode(str(self.paths[index])), self._mask(self.paths[index])
        if not path.is_file():
            raise ValueError(f"{self.key(index)}: no mask {path}")
        with Image.open(path) as file:
            classes = np.array(file).astype(np.int64)
        classes[classes == _IGNORED] = IGNORED
        if classes.shape != (image.height, image.width):
            size = " x ".join(map(str, classes.shape[::-1]))
            raise ValueError(
                f"{path}: is {size}, its picture {image.width} x {image.height}; expected one number a pixel"
            )
        if classes.max() > len(self.labels):
            raise ValueError(f"{path}: holds class {classes.max()}, labels.txt names {len(self.labels)}")
        rows = np.unique(classes[classes > 0]) - 1
        masks = classes[None] == rows[:, None, None] + 1
        return Annotation(image, self.key(index), mask_boxes(masks), rows, masks, classes)

    def _mask(self, picture: Path) -> Path:
        return (self.folder / "masks" / picture.relative_to(self.folder / "images")).with_suffix(".png")


def open_index_masks(folder: Path) -> IndexMasks:
    """Opens a folder.

    Raises:
        FileNotFoundError: a part of it is missing.
        ValueError: it holds no pictures.
    """
    paths = pictures_with(folder, "masks", "labels.txt")
    labels = tuple(line.strip() for line in (folder / "labels.txt").read_text("utf-8").splitlines() if line.strip())
    return IndexMasks(folder, paths, labels)


def write_index_masks(data: Annotated, folder: Path) -> None:
    """Writes a source as such a folder.

    Raises:
        ValueError: more labels than a byte numbers, or a source without masks.
    """
    if len(data.labels) >= _IGNORED:
        raise ValueError(f"{data.source}: {len(data.labels)} labels, an index PNG holds {_IGNORED - 1}")
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for index in range(len(data)):
        found = data.read(index)
        if found.classes is None:
            raise ValueError(f"{found.key}: has boxes only, no masks")
        name = f"{Path(found.key).stem}.png"
        found.image.save(folder / "images" / name)
        Image.fromarray(found.classes.astype(np.uint8)).save(folder / "masks" / name)
    storage.write_text(folder / "labels.txt", "".join(f"{label}\n" for label in data.labels))
