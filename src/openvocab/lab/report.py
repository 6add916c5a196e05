"""Self-contained HTML: figures become inline SVG and PNG, one file that opens anywhere."""

import base64
import html
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from openvocab import storage

Number = int | float
NUM_COLOURS = 6

STYLE = """
:root { --ink: #1d2129; --soft: #667085; --line: #e4e7ec; --paper: #fff;
  --accent: #3b5bdb; --good: #2b8a3e; --bad: #c92a2a }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ec; --soft: #98a2b3; --line: #343a46; --paper: #16181d;
  --accent: #91a7ff; --good: #69db7c; --bad: #ff8787 } }
* { box-sizing: border-box }
body { font: 15px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  max-width: 1080px; padding: 32px 24px 64px }
h1 { font-size: 28px; margin: 0 0 4px } h2 { font-size: 18px; margin: 40px 0 8px }
p { margin: 4px 0 12px; max-width: 72ch }
.soft, figcaption { color: var(--soft); font-size: 13px } figure { margin: 0 } code { font-size: 13px }
table { border-collapse: collapse; margin: 8px 0 } td, th { padding: 4px 18px 4px 0; text-align: left;
  border-bottom: 1px solid var(--line) } td.number { text-align: right; font-variant-numeric: tabular-nums }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 16px }
.tile img { width: 96px; image-rendering: pixelated; border-radius: 4px; display: block }
.right { color: var(--good) } .wrong { color: var(--bad) }
.pair { display: flex; flex-wrap: wrap; gap: 32px }
.map img { image-rendering: pixelated; width: 420px; max-width: 100% }
svg { max-width: 100%; height: auto } svg text { fill: var(--soft); font: 11px system-ui, sans-serif }
.line-0 { --hue: #3b5bdb } .line-1 { --hue: #2b8a3e } .line-2 { --hue: #e8590c } .line-3 { --hue: #9c36b5 }
.line-4 { --hue: #0b7285 } .line-5 { --hue: #c92a2a }
svg text[class^=line] { fill: var(--hue) } svg .curve[class*=line] { stroke: var(--hue) }
.axis { stroke: var(--line) } .curve { fill: none; stroke: var(--accent); stroke-width: 1.8 }
"""


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, what it shows in a sentence, and its figures as HTML."""

    title: str
    text: str
    body: str


def write(path: Path, title: str, lead: str, sections: Sequence[Section]) -> None:
    """Writes the report, whole or not at all."""
    parts = [f"<h2>{html.escape(part.title)}</h2>\n<p>{html.escape(part.text)}</p>\n{part.body}" for part in sections]
    page = (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width">\n<style>{STYLE}</style>\n'
        f'<h1>{html.escape(title)}</h1>\n<p class="soft">{html.escape(lead)}</p>\n' + "\n".join(parts) + "\n</html>\n"
    )
    storage.write_text(path, page)


def table(head: Sequence[str], rows: Sequence[Sequence[str | Number]]) -> str:
    """Text to the left, numbers to the right."""
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    lines = [f"<tr>{cells}</tr>"]
    for row in rows:
        columns = [
            f"<td>{html.escape(value)}</td>" if isinstance(value, str) else f'<td class="number">{value:.4g}</td>'
            for value in row
        ]
        lines.append(f"<tr>{''.join(columns)}</tr>")
    return f"<table>{''.join(lines)}</table>"


def curve(
    points: Sequence[tuple[Number, Number]], x_name: str, y_name: str, dashed: Sequence[tuple[Number, Number]] = ()
) -> str:
    """A line over its axes; the `dashed` one is what the eye should compare it with (chance, say)."""
    return _figure([("curve", points, "")], x_name, y_name, dashed)


def curves(lines: Mapping[str, Sequence[tuple[Number, Number]]], x_name: str, y_name: str) -> str:
    """Lines over common axes, each with its name where it ends; names that would touch make room for each other."""
    drawn = [(f"line-{number % NUM_COLOURS}", points, name) for number, (name, points) in enumerate(lines.items())]
    return _figure(drawn, x_name, y_name)


def _figure(
    lines: Sequence[tuple[str, Sequence[tuple[Number, Number]], str]],
    x_name: str,
    y_name: str,
    dashed: Sequence[tuple[Number, Number]] = (),
) -> str:
    """Lines as (class, points, name) over their axes."""
    named = any(name for _, _, name in lines)
    wide, high, left, bottom, right = (600, 300, 48, 28, 120) if named else (480, 220, 48, 28, 24)
    xs, ys = zip(*(point for _, points, _ in lines for point in points), *dashed)
    x_low, x_high, y_low, y_high = min(xs), max(xs), min(0.0, *ys), max(ys)

    def place(x: Number, y: Number) -> tuple[float, float]:
        return (
            left + (x - x_low) / ((x_high - x_low) or 1) * (wide - left - right),
            high - bottom - (y - y_low) / ((y_high - y_low) or 1) * (high - bottom - 16),
        )

    def line(through: Sequence[tuple[Number, Number]]) -> str:
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in (place(x, y) for x, y in through))

    marks = []
    for tick in _ticks(y_low, y_high):
        _, y = place(x_low, tick)
        marks.append(f'<line class="axis" x1="{left}" x2="{wide - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        marks.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in _ticks(x_low, x_high):
        x, _ = place(tick, y_low)
        marks.append(f'<text x="{x:.1f}" y="{high - 10}" text-anchor="middle">{tick:g}</text>')
    if dashed:
        style = 'fill="none" stroke-dasharray="4 4" stroke="var(--soft)"'
        marks.append(f'<polyline {style} points="{line(dashed)}"/>')
    marks += [f'<polyline class="curve {kind}" points="{line(points)}"/>' for kind, points, _ in lines]
    above = -math.inf
    for end, kind, name in sorted((place(*points[-1])[1], kind, name) for kind, points, name in lines if name):
        above = max(end + 4, above + 13)
        marks.append(f'<text class="{kind}" x="{wide - right + 6}" y="{above:.1f}">{html.escape(name)}</text>')
    caption = f"{html.escape(y_name)} against {html.escape(x_name)}"
    return (
        f'<figure><svg viewBox="0 0 {wide} {high}" width="{wide}" role="img" aria-label="{caption}">{"".join(marks)}'
        f"</svg><figcaption>{caption}</figcaption></figure>"
    )


def bars(values: Sequence[tuple[str, Number, Number, Number]], caption: str) -> str:
    """Signed bars to the left and right of zero: name, value, and the ends of its interval as a whisker."""
    wide, line, left, right = 640, 22, 230, 60
    low = min(0.0, *(row[2] for row in values))
    high = max(0.0, *(row[3] for row in values))
    tall = line * len(values) + 8

    def place(value: Number) -> float:
        return left + (value - low) / ((high - low) or 1) * (wide - left - right)

    marks = [f'<line class="axis" x1="{place(0):.1f}" x2="{place(0):.1f}" y1="0" y2="{tall}"/>']
    for number, (name, value, below, above) in enumerate(values):
        y = line * number + 4
        start, end = sorted((place(0), place(value)))
        colour = "var(--good)" if value >= 0 else "var(--bad)"
        marks += [
            f'<text x="{left - 10}" y="{y + 13}" text-anchor="end">{html.escape(name)}</text>',
            f'<rect x="{start:.1f}" y="{y}" width="{end - start:.1f}" height="{line - 8}" fill="{colour}"/>',
            f'<line stroke="var(--ink)" x1="{place(below):.1f}" x2="{place(above):.1f}" y1="{y + 7}" y2="{y + 7}"/>',
            f'<text x="{max(end, place(above)) + 6:.1f}" y="{y + 12}">{value:.3g}</text>',
        ]
    return (
        f'<figure><svg viewBox="0 0 {wide} {tall}" width="{wide}" role="img" aria-label="{html.escape(caption)}">'
        f"{''.join(marks)}</svg><figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def bars_of(caption: str, *names: str) -> Callable[[Mapping[str, tuple[Number, Number, Number]]], str]:
    """`bars` of some of a claim's figures by name, each with the ends of its interval: what its `picture` may be."""
    return lambda figures: bars([(name, *figures[name]) for name in names], caption)


def standalone(figure: str) -> str:
    """The drawing of a figure as an SVG file of its own, with the colours of the page."""
    start, end = figure.index("<svg"), figure.index("</svg>")
    opened = figure[start:end].replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    head, inner = opened.split(">", 1)
    return f"{head}><style>{STYLE}</style>{inner}</svg>\n"


def heat(matrix: Float[np.ndarray, "row col"], caption: str) -> str:
    """A matrix as a picture: dark is low, bright is high."""
    low, high = float(matrix.min()), float(matrix.max())
    level = (matrix - low) / ((high - low) or 1)
    stops = np.array([[15, 18, 40], [45, 70, 160], [90, 170, 200], [250, 240, 170]], float)
    place = level * (len(stops) - 1)
    below = np.minimum(place.astype(int), len(stops) - 2)
    part = (place - below)[..., None]
    pixels = (stops[below] * (1 - part) + stops[below + 1] * part).astype(np.uint8)
    return (
        f'<figure class="map"><img alt="{html.escape(caption)}" src="{png(pixels.transpose(2, 0, 1))}">'
        f"<figcaption>{html.escape(caption)} ({low:.2f} to {high:.2f})</figcaption></figure>"
    )


def tiles(pictures: UInt8[np.ndarray, "image 3 height width"], notes: Sequence[str]) -> str:
    """Pictures in a grid, each over its note (HTML)."""
    parts = [f'<div class="tile"><img alt="" src="{png(p)}">{note}</div>' for p, note in zip(pictures, notes)]
    return f'<div class="tiles">{"".join(parts)}</div>'


def png(pixels: UInt8[np.ndarray, "3 height width"]) -> str:
    """Pixels as a data URL."""
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def _ticks(low: Number, high: Number) -> list[Number]:
    """Four or so round numbers between low and high."""
    span = (high - low) or 1.0
    step = 10 ** math.floor(math.log10(span / 4))
    step = next(step * factor for factor in (1, 2, 2.5, 5, 10) if span / (step * factor) <= 5)
    first = math.ceil(low / step)
    return [round(step * number, 10) for number in range(first, math.floor(high / step + 1e-9) + 1)]
