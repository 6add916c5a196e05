"""COCO's json: boxes, polygons and run lengths, and with `caption` and `tokens_positive` the sentences of grounding."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from openvocab import storage
from openvocab.data.annotated import NOTHING, Annotated, Annotation
from openvocab.data.decode import decode
from openvocab.data.extras import require
from openvocab.metrics.segment import IGNORED
from openvocab.world.caption import Caption, Span

Mask = Bool[np.ndarray, "height width"]


class CocoJson(Annotated):
    """The pictures of a COCO json; crowds are regions to ignore, not objects."""

    def __init__(self, path: Path, root: Path, content: dict[str, Any]):
        self.source, self.root = str(path), root
        categories = sorted(content["categories"], key=lambda category: category["id"])
        self.labels = tuple(category["name"] for category in categories)
        self.category_ids = tuple(category["id"] for category in categories)
        self.images = content["images"]
        self.objects = defaultdict(list)
        for annotation in content["annotations"]:
            self.objects[annotation["image_id"]].append(annotation)
        self._row = {number: row for row, number in enumerate(self.category_ids)}
        self.fingerprint = storage.fingerprint(content)

    def __len__(self) -> int:
        return len(self.images)

    def key(self, index: int) -> str:
        return self.images[index]["file_name"]

    def caption(self, index: int) -> Caption | None:
        return _caption(self.images[index], self._things(index))

    def _things(self, index: int) -> list[dict[str, Any]]:
        return [each for each in self.objects[self.images[index]["id"]] if not each.get("iscrowd")]

    def read(self, index: int) -> Annotation:
        about = self.images[index]
        image = decode(str(self.root / about["file_name"]))
        width, height = about.get("width", image.width), about.get("height", image.height)
        if image.size != (width, height):
            raise ValueError(
                f"{about['file_name']}: is {image.width} x {image.height}, {self.source} says {width} x {height}"
            )
        everything, objects = self.objects[about["id"]], self._things(index)
        rows = np.array([self._row[each["category_id"]] for each in objects], np.int64)
        boxes = np.array([each["bbox"] for each in objects], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        masks = classes = None
        if all("segmentation" in each for each in everything):
            masks = np.array([mask_of(each["segmentation"], height, width) for each in objects], bool)
            masks = masks.reshape(-1, height, width)
            classes = np.full((height, width), NOTHING, np.int64)
            for crowd in everything:
                if crowd.get("iscrowd"):
                    classes[mask_of(crowd["segmentation"], height, width)] = IGNORED
            for which in np.argsort(-masks.sum((1, 2)), kind="stable"):  # what is small lies over what is large
                classes[masks[which]] = rows[which] + 1
        return Annotation(image, self.key(index), boxes, rows, masks, classes, self.caption(index))


def open_coco(path: Path, root: Path | None = None) -> CocoJson:
    """Opens instances, or the grounding json of MDETR, whose categories may all be one.

    Args:
        root: where the pictures are; `images/` beside the json, or its own folder, by default.

    Raises:
        ValueError: not a COCO json; says what is missing.
    """
    content = storage.read_json(path)
    missing = [name for name in ("images", "annotations", "categories") if name not in content]
    if missing:
        raise ValueError(f"{path}: not a COCO json: no {missing[0]!r} in it")
    beside = path.parent / "images"
    return CocoJson(path, root or (beside if beside.is_dir() else path.parent), content)


def read_regions(path: Path, name: str) -> Float32[np.ndarray, "box 4"]:
    """The boxes (xyxy) that a COCO json, or a list of COCO results, marks in the picture of this name.

    Raises:
        ValueError: neither of the two, or it does not say which of its pictures is meant.
    """
    content = storage.read_json(path)
    about = content if isinstance(content, dict) else {"annotations": content}
    entries, images = about.get("annotations"), about.get("images", [])
    if not isinstance(entries, list) or not all(isinstance(e, dict) and len(e.get("bbox", ())) == 4 for e in entries):
        raise ValueError(f"{path}: expected a COCO json or a list of COCO results, every entry with bbox [x, y, w, h]")
    wanted = {image["id"] for image in images if Path(image["file_name"]).name == name}
    known = {image["id"] for image in images} or {entry.get("image_id") for entry in entries}
    if not wanted and len(known) > 1:
        raise ValueError(f"{path}: holds boxes of {len(known)} pictures and none of them is named {name}")
    chosen = wanted or known
    boxes = [entry["bbox"] for entry in entries if entry.get("image_id") in chosen]
    found = np.array(boxes, np.float32).reshape(-1, 4)
    found[:, 2:] += found[:, :2]
    return found


def write_coco(data: Annotated, folder: Path) -> Path:
    """Writes pictures and `instances.json`, with captions and their spans where a source has them."""
    content: dict[str, Any] = {"images": [], "annotations": []}
    content["categories"] = [{"id": row + 1, "name": label} for row, label in enumerate(data.labels)]
    for index in range(len(data)):
        found = data.read(index)
        name = f"{Path(found.key).stem}.png"
        (folder / "images").mkdir(parents=True, exist_ok=True)
        found.image.save(folder / "images" / name)
        about = {"id": index + 1, "file_name": name, "width": found.image.width, "height": found.image.height}
        phrases = [] if found.caption is None else [s for s in found.caption.spans if s.attribute == "phrase"]
        content["images"].append(about | ({"caption": found.caption.text} if found.caption else {}))
        for row, (box, label) in enumerate(zip(found.boxes_xyxy_px.tolist(), found.label_ids.tolist())):
            left, top, right, bottom = box
            one: dict[str, Any] = {"id": len(content["annotations"]) + 1, "image_id": index + 1, "iscrowd": 0}
            one |= {"category_id": label + 1, "bbox": [left, top, right - left, bottom - top]}
            if found.masks is not None:
                one |= {"segmentation": encode(found.masks[row]), "area": int(found.masks[row].sum())}
            else:
                one |= {"area": (right - left) * (bottom - top)}
            if phrases:
                one["tokens_positive"] = [[span.start, span.end] for span in phrases if row in span.objects]
            content["annotations"].append(one)
    storage.write_json(folder / "instances.json", content)
    return folder / "instances.json"


def mask_of(segmentation: Any, height: int, width: int) -> Mask:
    """Polygons, or run lengths plain or compressed, as pixels: equal to pycocotools'."""
    mask = require("faster_coco_eval", "eval", "reading COCO masks").mask
    if isinstance(segmentation, list):
        runs = mask.merge(mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        runs = mask.frPyObjects(segmentation, height, width)
    else:
        runs = segmentation
    return mask.decode(runs).astype(bool)


def encode(pixels: Mask) -> dict[str, Any]:
    """Compressed run lengths, as json holds them."""
    mask = require("faster_coco_eval", "eval", "writing COCO masks").mask
    runs = mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
    return {"size": list(pixels.shape), "counts": runs["counts"].decode()}


def _caption(about: dict[str, Any], objects: list[dict[str, Any]]) -> Caption | None:
    if "caption" not in about:
        return None
    said: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row, each in enumerate(objects):
        for start, end in each.get("tokens_positive", ()):
            said[start, end].append(row)
    return Caption(about["caption"], tuple(Span(*span, tuple(rows), "phrase") for span, rows in sorted(said.items())))
