"""Schematic chest radiographs with reports: grey pictures of lungs, ribs and heart, findings by chance, exact truth.

As in a radiograph, the patient's left is the picture's right.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from openvocab.world.chance import grain, keys, uniforms

FINDINGS = ("nodule", "effusion", "cardiomegaly", "pneumothorax", "fracture", "pacemaker")
SHARE = 0.25
"""How often each finding is there."""

_PRESENT = {
    "nodule": ("there is a {size} nodule in the {side} lung", "{size} {side} lung nodule"),
    "effusion": ("there is a {size} {side} pleural effusion", "{size} effusion on the {side}"),
    "cardiomegaly": ("the heart is {degree}ly enlarged", "{degree} cardiomegaly"),
    "pneumothorax": ("there is a {size} {side} pneumothorax", "{size} pneumothorax on the {side}"),
    "fracture": ("a {side} rib is broken", "{side} rib fracture"),
    "pacemaker": ("a pacemaker lies on the {side}", "{side} sided pacemaker in place"),
}
_ABSENT = {
    "nodule": ("no nodule is seen", "the lungs are clear of nodules"),
    "effusion": ("no pleural effusion", "there is no effusion"),
    "cardiomegaly": ("the heart is of normal size", "the heart is not enlarged"),
    "pneumothorax": ("no pneumothorax", "there is no pneumothorax"),
    "fracture": ("no rib fracture", "the ribs are intact"),
    "pacemaker": ("no device is seen", "no pacemaker"),
}
_MOST_SENTENCES = 4
_NUM_RIBS = 7


@dataclass(frozen=True, slots=True)
class Radiographs:
    """Radiographs in struct-of-arrays form, a column for each of FINDINGS."""

    index: Int[np.ndarray, " scene"]
    present: Bool[np.ndarray, "scene finding"]
    left: Bool[np.ndarray, "scene finding"]
    """The patient's; without meaning for cardiomegaly."""
    large: Bool[np.ndarray, "scene finding"]
    pose: Float[np.ndarray, "scene finding 2"]
    """Where on its side a finding lies, from 0 to 1."""
    body: Float[np.ndarray, "scene 6"]
    """Differences between people and exposures, from -1 to 1."""
    seed: int

    def __len__(self) -> int:
        return len(self.index)


def draw_radiographs(num_radiographs: int, seed: int = 0, start: int = 0) -> Radiographs:
    """Radiographs `start` to `start + num_radiographs` of the stream `seed`."""
    index = np.arange(start, start + num_radiographs)
    count = len(FINDINGS)
    u = uniforms(f"radiograph {seed}", index, 5 * count + 6)
    present, left, large = u[:, :count] < SHARE, u[:, count : 2 * count] < 0.5, u[:, 2 * count : 3 * count] < 0.5
    pose, body = u[:, 3 * count : 5 * count].reshape(-1, count, 2), u[:, 5 * count :] * 2 - 1
    return Radiographs(index, present, left, large, pose, body, seed)


def render_radiographs(films: Radiographs, size_px: int = 48) -> UInt8[np.ndarray, "scene 3 {size_px} {size_px}"]:
    """The pictures, grey in three equal channels."""
    chunks = [_render(films, np.arange(at, min(at + 256, len(films))), size_px) for at in range(0, len(films), 256)]
    return np.repeat(np.concatenate(chunks)[:, None], 3, axis=1)


def reports(films: Radiographs) -> list[str]:
    """One to four sentences each: what is found, as far as there is room, and some of what is not."""
    count = len(FINDINGS)
    u = uniforms(f"report {films.seed}", films.index, 2 * count + 1)
    texts = []
    for row, draw in enumerate(u):
        first = np.lexsort((draw[:count], ~films.present[row]))  # findings first, each group in random order
        num_found = min(int(films.present[row].sum()), _MOST_SENTENCES)
        wanted = first[: max(num_found, 1 + int(draw[-1] * _MOST_SENTENCES))]
        order = sorted(wanted.tolist(), key=draw.__getitem__)
        texts.append(" ".join(_sentence(films, row, finding, float(draw[count + finding])) for finding in order))
    return texts


def _sentence(films: Radiographs, row: int, finding: int, draw: float) -> str:
    name = FINDINGS[finding]
    ways = (_PRESENT if films.present[row, finding] else _ABSENT)[name]
    large, left = int(films.large[row, finding]), int(films.left[row, finding])
    words = {"size": ("small", "large")[large], "degree": ("mild", "marked")[large], "side": ("right", "left")[left]}
    return ways[int(draw * len(ways))].format(**words) + "."


def _render(
    films: Radiographs, rows: Int[np.ndarray, " scene"], size_px: int
) -> UInt8[np.ndarray, "scene height width"]:
    pick = {name: number for number, name in enumerate(FINDINGS)}
    has, large, pose = films.present[rows], films.large[rows], films.pose[rows]
    side = np.where(films.left[rows], 1.0, -1.0)  # the picture's right is +
    body = films.body[rows][:, :, None, None] * 0.02
    place = (np.arange(size_px) + 0.5) / size_px
    x, y = np.meshgrid(place - 0.5, place)
    x, y = x[None] - body[:, 0], y[None] - body[:, 1]

    def of(name: str, values: np.ndarray) -> np.ndarray:
        return values[:, pick[name], None, None]

    def mix(picture: np.ndarray, mask: np.ndarray, tone: float) -> np.ndarray:
        return picture + mask * (tone - picture)

    def on(name: str) -> np.ndarray:
        return of(name, has).astype(float)

    half = 0.19 + body[:, 2] / 2
    lung_x, base = 0.21, 0.80 + body[:, 3]
    chest = _inside((base - y) * 6)
    lungs = [chest * _inside(1 - np.hypot((x - s * lung_x) / (half * 0.85), (y - 0.5) / 0.36)) for s in (-1, 1)]
    lung, same = np.maximum(*lungs), {name: np.where(of(name, side) < 0, *lungs) for name in FINDINGS}
    picture = np.full(lung.shape, 0.03) + _inside((0.47 - np.abs(x) - 0.08 * (y < 0.12)) * 8) * 0.5
    picture = mix(picture, lung, 0.2)
    # Air outside the lung: darker, beyond a thin line that runs along the chest wall.
    depth = (half - np.abs(np.abs(x) - lung_x)) * np.sign(np.abs(x) - lung_x)  # from the outer wall inwards
    width = np.where(of("pneumothorax", large), 0.11, 0.06)
    outer = same["pneumothorax"] * (np.abs(x) > lung_x) * on("pneumothorax")
    picture = mix(picture, outer * _inside((width - depth) * 14), 0.06)
    picture = mix(picture, outer * np.exp(-(((depth - width) / 0.012) ** 2)), 0.6)
    # Ribs: arcs that fall outwards; a broken one has a gap and goes on lower.
    gap_x = 0.14 + 0.14 * of("fracture", pose[:, :, 0])
    broken_rib = 1 + (of("fracture", pose[:, :, 1]) * (_NUM_RIBS - 2)).astype(int)
    for rib in range(_NUM_RIBS):
        broken = on("fracture") * (broken_rib == rib) * (x * of("fracture", side) > 0)
        level = 0.17 + 0.095 * rib + 1.1 * x**2 + broken * (np.abs(x) > gap_x) * 0.05
        arc = np.exp(-(((y - level) / 0.013) ** 2)) * (1 - broken * (np.abs(np.abs(x) - gap_x) < 0.035))
        picture = picture + 0.17 * arc * (np.abs(x) < 0.4) * (y < 0.85)
    radius = np.where(of("nodule", large), 0.055, 0.032)
    nodule_x = of("nodule", side) * (0.15 + 0.12 * of("nodule", pose[:, :, 0]))
    nodule = _inside((radius - np.hypot(x - nodule_x, y - 0.3 - 0.32 * of("nodule", pose[:, :, 1]))) * 12)
    picture = mix(picture, nodule * on("nodule"), 0.72)
    level = np.where(of("effusion", large), 0.6, 0.71) + 0.5 * (0.4 - np.abs(x)) ** 2
    picture = mix(picture, same["effusion"] * _inside((y - level) * 12) * on("effusion"), 0.62)
    picture = mix(picture, _inside((0.05 - np.abs(x)) * 10) * (y < 0.95), 0.66)
    wide = 0.15 + on("cardiomegaly") * np.where(of("cardiomegaly", large), 0.08, 0.045) + body[:, 4] / 2
    heart = _inside(1 - np.hypot((x - 0.3 * wide) / wide, (y - 0.66) / (0.85 * wide)))
    picture = mix(picture, heart, 0.7)
    box_x, box_y = of("pacemaker", side) * 0.27, 0.16 + 0.06 * of("pacemaker", pose[:, :, 0])
    box = _inside((0.055 - np.maximum(np.abs(x - box_x), np.abs(y - box_y))) * 16)
    along = np.clip((y - box_y) / (0.66 - box_y), 0, 1)
    wire = np.exp(-(((x - box_x * (1 - along) ** 2) / 0.012) ** 2)) * (y > box_y) * (y < 0.66)
    picture = mix(picture, np.maximum(box, wire) * on("pacemaker"), 0.97)
    noise = grain(keys(f"film {films.seed}", films.index[rows]), 0, size_px, size_px)
    exposed = picture * (1 + 4 * body[:, 5]) + 0.025 * noise
    return (np.clip(exposed, 0, 1) * 255).round().astype(np.uint8)


def _inside(distance: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """1 inside, 0 outside, soft at the edge."""
    return 1 / (1 + np.exp(-np.clip(distance * 12, -30, 30)))
