"""Segmentations, detections and distances as files: a picture for people; COCO json and others for tools."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from openvocab import storage
from openvocab.clip.colours import depth_colours, label_colours
from openvocab.clip.dense import NONE, Segmentation
from openvocab.clip.regions import Detection
from openvocab.data.decode import opened, to_rgb
from openvocab.lab import label_studio
from openvocab.metrics.depth import DepthM

_SHARE = 0.55
"""Of the colour over the picture."""


def write(found: Segmentation, picture: Image.Image, name: str, out: Path) -> dict[str, str]:
    """`overlay.png`; `classes.png`, 0 where no label fits, else the label's number from 1; and what `_tools` writes."""
    images = {"overlay": overlay(found, picture), "classes": index_picture(found)}
    tasks, interface = label_studio.masks(found, name), label_studio.interface("Brush", found.labels)
    return _pictures(images, out) | _tools(found.coco(name), tasks, interface, out)


def write_boxes(found: Detection, picture: Image.Image, name: str, out: Path) -> dict[str, str]:
    """`overlay.png`, and what `_tools` writes."""
    tasks, interface = label_studio.boxes(found, name, picture.size), label_studio.interface("Rectangle", found.labels)
    return _pictures({"overlay": boxes(found, picture)}, out) | _tools(
        found.coco(name, picture.size), tasks, interface, out
    )


def write_depth(depth_m: DepthM, out: Path) -> dict[str, str]:
    """`depth.png`, coloured with its scale below, and `depth.npz`, which holds `depth_m`."""
    with storage.atomic_path(out / "depth.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, depth_m=depth_m.numpy())
    near, far = depth_m.min().item(), depth_m.max().item()
    height, width = depth_m.shape
    canvas = Image.new("RGB", (max(width, 160), height + 30), "white")
    canvas.paste(Image.fromarray(depth_colours(depth_m.numpy(), near, far)))
    scale = np.linspace(near, far, canvas.width, dtype=np.float32)[None].repeat(10, 0)
    canvas.paste(Image.fromarray(depth_colours(scale, near, far)), (0, height + 4))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(11)
    draw.text((2, height + 15), f"{near:.2f} m", "black", font)
    draw.text((canvas.width - 2, height + 15), f"{far:.2f} m", "black", font, anchor="ra")
    return _pictures({"depth": canvas}, out) | {"metres": str(out / "depth.npz")}


def write_relevance(map: Float[Tensor, "height width"], picture: Any, out: Path) -> dict[str, str]:
    """`relevance.png`: the picture, dark where nothing speaks for the text; `relevance.npz`, which holds `map`."""
    with storage.atomic_path(out / "relevance.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, map=map.numpy())
    return _pictures({"relevance": lit(picture, map)}, out) | {"map": str(out / "relevance.npz")}


def lit(picture: Any, map: Float[Tensor, "height width"]) -> Image.Image:
    """The picture where a map is high, a quarter as bright where it is not positive."""
    pixels = np.asarray(to_rgb(opened(picture)), np.float32)
    light = 0.25 + 0.75 * (map / map.max().clamp_min(1e-6)).clamp(0, 1).numpy()[..., None]
    return Image.fromarray((pixels * light).round().astype(np.uint8))


def _pictures(images: dict[str, Image.Image], out: Path) -> dict[str, str]:
    paths = {part: out / f"{part}.png" for part in images}
    for part, path in paths.items():
        with storage.atomic_path(path) as temporary:
            images[part].save(temporary, "PNG")
    return {part: str(path) for part, path in paths.items()}


def _tools(coco: Any, tasks: Any, interface: str, out: Path) -> dict[str, str]:
    """`coco.json` for FiftyOne, supervision and CVAT; `label_studio.json` to import, into a project of `.xml`."""
    storage.write_json(out / "coco.json", coco)
    storage.write_json(out / "label_studio.json", tasks)
    storage.write_text(out / "label_studio.xml", interface)
    return {"coco": str(out / "coco.json"), "label_studio": str(out / "label_studio.json")}


def index_picture(found: Segmentation) -> Image.Image:
    """Labels as numbers from 1, 0 for none; 16 bits where 8 do not hold them."""
    wide = len(found.labels) > np.iinfo(np.uint8).max
    return Image.fromarray((found.classes.numpy() + 1).astype(np.uint16 if wide else np.uint8))


def overlay(found: Segmentation, picture: Image.Image) -> Image.Image:
    """The picture with each label that it shows in a colour of its own, and the names below."""
    shown = [row for row in found.classes.unique().tolist() if row != NONE]
    pixels, colours = np.array(picture.convert("RGB"), np.float32), label_colours(len(shown))
    for row, colour in zip(shown, colours):
        mask = (found.classes == row).numpy()
        pixels[mask] = (1 - _SHARE) * pixels[mask] + _SHARE * colour
    line = 18
    canvas = Image.new("RGB", (max(picture.width, 160), picture.height + line * len(shown)), "white")
    canvas.paste(Image.fromarray(pixels.round().astype(np.uint8)))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for number, (row, colour) in enumerate(zip(shown, colours)):
        y = picture.height + line * number
        draw.rectangle((4, y + 4, 14, y + 14), fill=tuple(colour.tolist()))
        share = (found.classes == row).double().mean().item()
        draw.text((20, y + 2), f"{found.labels[row]}  {share:.0%}", "black", font)
    return canvas


def boxes(found: Detection, picture: Image.Image) -> Image.Image:
    """The picture with a named frame around each box, the surest on top, a colour for each label that occurs."""
    canvas = picture.convert("RGB")
    draw, font, width = ImageDraw.Draw(canvas), ImageFont.load_default(11), max(1, min(picture.size) // 200)
    shown = found.label_ids.unique().tolist()
    colours = dict(zip(shown, label_colours(len(shown)).tolist()))
    surest_last = (each.flip(0).tolist() for each in (found.boxes_xyxy_px, found.label_ids, found.scores))
    for box, row, score in zip(*surest_last):
        left, top, right, bottom = (round(edge) for edge in box)
        colour, words = tuple(colours[row]), f"{found.labels[row]} {score:.0%}"
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=width)
        place = draw.textbbox((left + width, top + width), words, font)
        draw.rectangle(place, fill=colour)
        draw.text((left + width, top + width), words, "black", font)
    return canvas
