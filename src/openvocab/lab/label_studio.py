"""Segmentations and detections as tasks with predictions that Label Studio imports, and the project that shows them.

Boxes are in hundredths of the picture; masks are its packed runs of RGBA bytes ("brush"). The picture's address is that
of Label Studio's local storage: serve the folder that holds it.
"""

from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from jaxtyping import Bool

from openvocab.clip.dense import NONE, Segmentation
from openvocab.clip.regions import Detection

_BITS = 16
"""Of the length of a run: a longer one is several."""


def masks(found: Segmentation, name: str) -> list[dict[str, Any]]:
    """One task: a brush of each label that the picture shows."""
    size, drawn = (found.classes.shape[1], found.classes.shape[0]), []
    for row in found.classes.unique().tolist():
        if row != NONE:
            runs = {"format": "rle", "rle": brush((found.classes == row).numpy())}
            drawn.append(_result("brush", found.labels[row], found.scores[row].item(), size, runs))
    return _task(drawn, name)


def boxes(found: Detection, name: str, size: tuple[int, int]) -> list[dict[str, Any]]:
    """One task: a rectangle of each box in a picture of this size (width, height)."""
    drawn = []
    for (left, top, right, bottom), row, score in zip(
        found.boxes_xyxy_px.tolist(), found.label_ids.tolist(), found.scores.tolist()
    ):
        value = {"x": left / size[0], "y": top / size[1]}
        value |= {"width": (right - left) / size[0], "height": (bottom - top) / size[1]}
        percent = {side: 100 * length for side, length in value.items()}
        drawn.append(_result("rectangle", found.labels[row], score, size, percent | {"rotation": 0}))
    return _task(drawn, name)


def interface(kind: str, labels: tuple[str, ...]) -> str:
    """The labelling interface of a project of `Brush` or `Rectangle` labels."""
    choices = "\n".join(f"    <Label value={quoteattr(label)}/>" for label in labels)
    return (
        f'<View>\n  <Image name="image" value="$image"/>\n'
        f'  <{kind}Labels name="label" toName="image">\n{choices}\n  </{kind}Labels>\n</View>\n'
    )


def brush(mask: Bool[np.ndarray, "height width"]) -> list[int]:
    """Bytes of a mask: the number of values, bits of a value and of the lengths less 1; then runs of 0 or 255 by rows.

    A run is a one, the number of its kind of length (all four are alike), its length less 1, and its value.
    """
    flat = mask.ravel()
    starts = np.r_[0, np.flatnonzero(np.diff(flat)) + 1]
    longest, bits = 2**_BITS, [f"{4 * len(flat):032b}{7:05b}" + 4 * f"{_BITS - 1:04b}"]
    for start, length in zip(starts, 4 * np.diff(np.r_[starts, len(flat)])):
        value = 255 * int(flat[start])
        parts = [longest] * (int(length) // longest) + [int(length) % longest]
        bits += [f"100{part - 1:0{_BITS}b}{value:08b}" for part in parts if part]
    stream = "".join(bits)
    return np.packbits(np.frombuffer(stream.encode(), np.uint8) - ord("0")).tolist()


def _result(kind: str, label: str, score: float, size: tuple[int, int], value: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": f"{kind}labels",
        "from_name": "label",
        "to_name": "image",
        "original_width": size[0],
        "original_height": size[1],
        "image_rotation": 0,
        "score": round(score, 4),
        "value": value | {f"{kind}labels": [label]},
    }


def _task(results: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    numbered = [result | {"id": str(number)} for number, result in enumerate(results, 1)]
    prediction = {"model_version": "openvocab", "result": numbered}
    return [{"data": {"image": f"/data/local-files/?d={name}"}, "predictions": [prediction]}]
