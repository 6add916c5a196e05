"""Strokes as SVG and back: one `path` a stroke, `M x y C ...` with round caps, its stroke-width twice the radius."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

import torch
from jaxtyping import Float, Int
from torch import Tensor

from openvocab.blocks.strokes import RGB

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
_PATH = re.compile(rf"\s*M((?:[\s,]*{_NUMBER}){{2}})((?:\s*C?(?:[\s,]*{_NUMBER}){{6}})+)\s*", re.IGNORECASE)
_COLOUR = re.compile(rf"rgb\(\s*({_NUMBER})%\s*,\s*({_NUMBER})%\s*,\s*({_NUMBER})%\s*\)")
_NAMESPACE = "{http://www.w3.org/2000/svg}"


@dataclass(frozen=True)
class Paths:
    """The strokes of one drawing, later ones on top; see `blocks.strokes`.

    Fields:
        points: in pixels; of a path with fewer segments than the longest the first count.
        colours: red, green, blue and opacity.
        segments: how many each path has.
        size_px: height and width.
    """

    points: Float[Tensor, "stroke point 2"]
    radii_px: Float[Tensor, " stroke"]
    colours: Float[Tensor, "stroke 4"]
    segments: Int[Tensor, " stroke"]
    size_px: tuple[int, int]
    paper: RGB = (1.0, 1.0, 1.0)


def to_svg(paths: Paths) -> str:
    """The drawing on its paper."""
    height, width = paths.size_px
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
        f'<rect width="{width}" height="{height}" fill="{_rgb(paths.paper)}"/>',
    ]
    rows = zip(paths.points.tolist(), paths.radii_px.tolist(), paths.colours.tolist(), paths.segments.tolist())
    for points, radius, (*rgb, opacity), segments in rows:
        start, *rest = (f"{_short(x)} {_short(y)}" for x, y in points[: 3 * segments + 1])
        lines.append(
            f'<path d="M {start} C {" ".join(rest)}" fill="none" stroke="{_rgb(rgb)}" '
            f'stroke-opacity="{_short(opacity)}" stroke-width="{_short(2 * radius)}" stroke-linecap="round" '
            'stroke-linejoin="round"/>'
        )
    return "\n".join([*lines, "</svg>", ""])


def from_svg(text: str) -> Paths:
    """What `to_svg` wrote, or another drawing of such paths alone.

    Raises:
        ValueError: no SVG, or one with other elements, commands or colours; the message names the first.
    """
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"SVG: not well-formed ({error})") from None
    if root.tag != f"{_NAMESPACE}svg":
        raise ValueError(f"SVG: the outermost element is {root.tag!r}, expected svg in its namespace")
    strokes, radii, colours, paper = [], [], [], (1.0, 1.0, 1.0)
    for element in root:
        kind = element.tag.removeprefix(_NAMESPACE)
        if kind == "rect" and not strokes:
            paper = _colour(element, "fill")
            continue
        if kind != "path":
            raise ValueError(f"SVG: element {kind!r}; strokes are paths alone, on one rect")
        path = element.get("d", "")
        if not _PATH.fullmatch(path) or re.search("[mc]", path):
            raise ValueError(f"SVG: path {path[:40]!r}; a stroke is M x y and then C of six numbers each")
        numbers = [float(number) for number in re.findall(_NUMBER, path, re.IGNORECASE)]
        strokes.append(torch.tensor(numbers).view(-1, 2))
        radii.append(float(element.get("stroke-width", "1")) / 2)
        colours.append([*_colour(element, "stroke"), float(element.get("stroke-opacity", "1"))])
    most = max(map(len, strokes), default=4)
    points = [torch.cat([stroke, stroke[-1:].expand(most - len(stroke), 2)]) for stroke in strokes]
    return Paths(
        torch.stack(points) if points else torch.zeros(0, 4, 2),
        torch.tensor(radii),
        torch.tensor(colours).view(-1, 4),
        torch.tensor([len(stroke) // 3 for stroke in strokes], dtype=torch.int64),
        _size(root),
        paper,
    )


def _size(root: ElementTree.Element) -> tuple[int, int]:
    sides = root.get("height", "").removesuffix("px"), root.get("width", "").removesuffix("px")
    if not all(re.fullmatch(r"[1-9]\d*", side) for side in sides):
        raise ValueError(f"SVG: width and height {sides[::-1]} must be whole pixels")
    return int(sides[0]), int(sides[1])


def _colour(element: ElementTree.Element, name: str) -> RGB:
    found = _COLOUR.fullmatch(element.get(name, ""))
    if not found:
        raise ValueError(f"SVG: {name} {element.get(name)!r}; expected rgb(r%, g%, b%)")
    red, green, blue = (float(share) / 100 for share in found.groups())
    return red, green, blue


def _rgb(colour: Sequence[float]) -> str:
    return f"rgb({', '.join(f'{_short(100 * share)}%' for share in colour)})"


def _short(value: float) -> str:
    return f"{value:.4f}".rstrip("0").rstrip(".")
