"""What a generated picture shows, as arrays: thousands of scenes are drawn, cut and changed at once."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from openvocab.world.chance import uniforms

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "white")
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring", "bar", "crescent")
TEXTURES = ("plain", "striped", "dotted", "checked")
BACKGROUNDS = ("plain", "noisy", "striped")
STYLES = ("clean", "textured", "sketch", "inverted", "noisy")
SIZES = ("small", "large")
WORDS = (*COLOURS, *SHAPES, "cat", "dog", "apple", "car", "yes", "no", "stop", "open")

CLASSES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
"""The names of the zero-shot task; class = colour * len(SHAPES) + shape."""

LARGE = 0.18
"""Objects with at least this radius (a fraction of the picture's side) are called large; none is drawn close to it."""

Holdout = Literal["H1", "H2", "H3"]
Split = Literal["train", "held_out", "all"]

_SINGLE_RADIUS = {"small": (0.135, 0.165), "large": (0.22, 0.34)}
_CROWD_RADIUS = {"small": (0.12, 0.145), "large": (0.19, 0.22)}
_EXTENT = 1.1  # no shape reaches further from its centre than this many radii
_CELL_GAP = (
    0.02  # centres keep off the lines that part left, middle and right, so that words of place are never a close call
)


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldConfig:
    """Which scenes are drawn, and how often; the default is the world of the demo."""

    size_px: int = 32
    max_objects: int = 2
    share_single: float = 0.8
    """Scenes with one object; the others hold 2 to `max_objects`."""
    share_same: float = 0.0
    """Scenes of several objects in which all are of one class ("three red circles")."""
    share_word: float = 0.0
    """Scenes with a word drawn as text; half of them show nothing else."""
    styles: tuple[str, ...] = ("clean",)
    textures: tuple[str, ...] = ("plain",)
    backgrounds: tuple[str, ...] = BACKGROUNDS
    sizes: tuple[str, ...] = SIZES
    rotation_rad: float = 0.4
    colour_jitter: float = 0.05

    def __post_init__(self) -> None:
        for name, known in (
            ("styles", STYLES),
            ("textures", TEXTURES),
            ("backgrounds", BACKGROUNDS),
            ("sizes", SIZES),
        ):
            given = getattr(self, name)
            if not given or not set(given) <= set(known):
                raise ValueError(f"WorldConfig.{name}: {given!r} is not a choice of {', '.join(known)}")
        if not 1 <= self.max_objects <= 4:
            raise ValueError(f"WorldConfig.max_objects: {self.max_objects} is not 1 to 4 (one object per quarter)")
        if self.max_objects == 1 and self.share_single < 1:
            raise ValueError("WorldConfig.share_single: must be 1 where max_objects is 1")
        for name in ("share_single", "share_same", "share_word"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"WorldConfig.{name}: {getattr(self, name)} is not a share between 0 and 1")


def rich_world(size_px: int = 32) -> WorldConfig:
    """Everything the world can show: all styles and textures, up to four objects, counts, words."""
    return WorldConfig(
        size_px=size_px,
        max_objects=4,
        share_single=0.4,
        share_same=0.2,
        share_word=0.1,
        styles=STYLES,
        textures=TEXTURES,
    )


def quiet_world(size_px: int = 32) -> WorldConfig:
    """Upright single objects on plain backgrounds: what small models learn to draw in minutes."""
    return WorldConfig(
        size_px=size_px,
        max_objects=1,
        share_single=1.0,
        backgrounds=("plain",),
        rotation_rad=0.0,
        colour_jitter=0.03,
    )


@dataclass(frozen=True, slots=True)
class Scenes:
    """Scenes in struct-of-arrays form; lengths are fractions of the picture's side, y points down.

    Later objects lie over earlier ones. Change a field with `dataclasses.replace`; cut with `scenes[10:20]`.
    """

    index: Int[np.ndarray, " scene"]
    """The scene's number in its stream."""
    key: Int[np.ndarray, " scene"]
    """47 random bits, other ones in every stream: noise and captions are drawn from them."""
    present: Bool[np.ndarray, "scene object"]
    colour: Int[np.ndarray, "scene object"]
    shape: Int[np.ndarray, "scene object"]
    texture: Int[np.ndarray, "scene object"]
    cx: Float[np.ndarray, "scene object"]
    cy: Float[np.ndarray, "scene object"]
    radius: Float[np.ndarray, "scene object"]
    rotation_rad: Float[np.ndarray, "scene object"]
    depth_m: Float[np.ndarray, "scene object"]
    tint: Float[np.ndarray, "scene object 3"]
    """Added to the palette's colour."""
    background: Int[np.ndarray, " scene"]
    ground_01: Float[np.ndarray, "scene 3"]
    """The background's own colour: a muted tone that no object has."""
    stripe: Float[np.ndarray, "scene 3"]
    """Direction (radians), period and phase of a striped background."""
    style: Int[np.ndarray, " scene"]
    word: Int[np.ndarray, " scene"]
    """Row of WORDS, or -1."""
    word_y: Float[np.ndarray, " scene"]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: slice | np.ndarray) -> "Scenes":
        return Scenes(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))

    @property
    def count(self) -> Int[np.ndarray, " scene"]:
        return self.present.sum(1)

    @property
    def class_id(self) -> Int[np.ndarray, "scene object"]:
        """Rows of CLASSES."""
        return self.colour * len(SHAPES) + self.shape

    @property
    def is_large(self) -> Bool[np.ndarray, "scene object"]:
        return self.radius >= LARGE

    @property
    def place(self) -> Int[np.ndarray, "scene object"]:
        """The cell of the 3 x 3 grid that holds the centre, row by row from the top left."""
        return (self.cy * 3).astype(np.int64).clip(0, 2) * 3 + (self.cx * 3).astype(np.int64).clip(0, 2)


def join_scenes(parts: list[Scenes]) -> Scenes:
    """One after the other; all must have the same number of object slots."""
    return Scenes(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in dataclasses.fields(Scenes)))


def held_out_classes(holdout: Holdout) -> Int[np.ndarray, " class"]:
    """Classes never seen in training: H1 sixteen pairs of known words, H2 two whole shapes, H3 a whole colour."""
    if holdout == "H1":
        pairs = {(c, (3 * c + offset) % len(SHAPES)) for c in range(len(COLOURS)) for offset in (1, 4)}
    elif holdout == "H2":
        pairs = {(c, SHAPES.index(name)) for c in range(len(COLOURS)) for name in ("ring", "crescent")}
    else:
        pairs = {(COLOURS.index("purple"), s) for s in range(len(SHAPES))}
    return np.array(sorted(c * len(SHAPES) + s for c, s in pairs))


def split_classes(split: Split = "all", holdout: Holdout | None = None) -> Int[np.ndarray, " class"]:
    """The classes that a split may show; "all" needs no hold-out, the others need one."""
    if (split == "all") != (holdout is None):
        raise ValueError(f"split={split!r} with holdout={holdout!r}: train and held_out need a holdout, all takes none")
    everything = np.arange(len(CLASSES))
    if holdout is None:
        return everything
    return everything[np.isin(everything, held_out_classes(holdout), invert=split == "train")]


def draw_scenes(
    num_scenes: int,
    config: WorldConfig = WorldConfig(),
    seed: int = 0,
    start: int = 0,
    split: Split = "all",
    holdout: Holdout | None = None,
) -> Scenes:
    """Scenes `start` to `start + num_scenes` of the endless stream `seed`; each depends only on (seed, its number).

    "train" shows no object of a held-out class, "held_out" no other.
    """
    index = np.arange(start, start + num_scenes)
    u = _Columns(uniforms(f"scene {seed}", index, _NUM_COLUMNS))
    several = 2 + u.choice(max(config.max_objects - 1, 1))
    count = np.where(u.take() < config.share_single, 1, several)
    classes = split_classes(split, holdout)
    class_id = classes[u.choice(len(classes), config.max_objects)]
    same = u.take() < config.share_same
    class_id = np.where(same[:, None], class_id[:, :1], class_id)
    with_word, alone = u.take() < config.share_word, u.take() < 0.5
    word = np.where(with_word, u.choice(len(WORDS)), -1)
    count = np.where(with_word & alone, 0, count)
    return _arrange(index, class_id, count, word, config, u)


def class_scenes(
    class_ids: Int[np.ndarray, " scene"], config: WorldConfig = WorldConfig(), seed: int = 0, start: int = 0
) -> Scenes:
    """One scene with one object of each given class: the pictures of a zero-shot test."""
    index = np.arange(start, start + len(class_ids))
    u = _Columns(uniforms(f"class scene {seed}", index, _NUM_COLUMNS))
    num_slots = config.max_objects
    grid = np.repeat(class_ids[:, None], num_slots, 1)
    return _arrange(index, grid, np.ones(len(index), int), np.full(len(index), -1), config, u)


_NUM_COLUMNS = 80  # at least what the largest config takes


class _Columns:
    """Hands out the columns of a table of uniforms one after the other."""

    def __init__(self, table: np.ndarray) -> None:
        self.table, self.used = table, 0

    def take(self, width: int | None = None) -> np.ndarray:
        first, self.used = self.used, self.used + (width or 1)
        return self.table[:, first] if width is None else self.table[:, first : self.used]

    def choice(self, num_choices: int, width: int | None = None) -> np.ndarray:
        return (self.take(width) * num_choices).astype(np.int64)

    def between(self, low: np.ndarray | float, high: np.ndarray | float, width: int | None = None) -> np.ndarray:
        return (low + self.take(width) * (np.asarray(high) - low)).astype(np.float32)


def _arrange(
    index: np.ndarray, class_id: np.ndarray, count: np.ndarray, word: np.ndarray, config: WorldConfig, u: _Columns
) -> Scenes:
    """Everything but what the objects are: where, how large, on what, in which style."""
    num_slots = config.max_objects
    high, low = u.choice(2**23), u.choice(2**24)
    size = np.array([SIZES.index(name) for name in config.sizes])[u.choice(len(config.sizes), num_slots)]
    alone = (count <= 1)[:, None]
    ranges = np.where(
        alone[..., None],
        np.array([_SINGLE_RADIUS[name] for name in SIZES])[size],
        np.array([_CROWD_RADIUS[name] for name in SIZES])[size],
    )
    radius = u.between(ranges[..., 0], ranges[..., 1], num_slots)
    cell = np.argsort(u.take(4), axis=1)[:, :num_slots]
    centres = []
    for column in (cell % 2, cell // 2):
        spread = u.take(num_slots) * 2 - 1
        home = np.where(alone, 0.5, 0.25 + 0.5 * column)
        room = np.where(alone, 0.5, 0.25) - _EXTENT * radius
        centres.append(_off_the_lines(home + spread * room, home).astype(np.float32))
    style = np.array([STYLES.index(name) for name in config.styles])[u.choice(len(config.styles))]
    texture = np.array([TEXTURES.index(name) for name in config.textures])[u.choice(len(config.textures), num_slots)]
    textured = (style == STYLES.index("textured"))[:, None] & (texture == TEXTURES.index("plain"))
    texture = np.where(textured, 1 + u.choice(len(TEXTURES) - 1, num_slots), texture)
    rotation = u.between(-config.rotation_rad, config.rotation_rad, num_slots)
    tint = u.between(-config.colour_jitter, config.colour_jitter, 3 * num_slots).reshape(-1, num_slots, 3)
    grey = u.between(0.25, 0.6)[:, None]
    ground = (grey + u.between(-0.05, 0.05, 3)).clip(0.25, 0.6).astype(np.float32)
    background = np.array([BACKGROUNDS.index(n) for n in config.backgrounds])[u.choice(len(config.backgrounds))]
    stripe = np.stack([np.pi * u.take(), u.between(0.16, 0.28), u.take()], 1).astype(np.float32)
    low_object = np.where(count > 0, centres[1][:, 0] > 0.5, u.take() < 0.5)
    return Scenes(
        index=index,
        key=high << 24 | low,
        present=np.arange(num_slots) < count[:, None],
        colour=class_id // len(SHAPES),
        shape=class_id % len(SHAPES),
        texture=texture,
        cx=centres[0],
        cy=centres[1],
        radius=radius,
        rotation_rad=rotation,
        depth_m=np.ones_like(radius),
        tint=tint,
        background=background,
        ground_01=ground,
        stripe=stripe,
        style=style,
        word=word,
        word_y=np.where(low_object, u.between(0.03, 0.1), u.between(0.74, 0.81)).astype(np.float32),
    )


def _off_the_lines(centre: np.ndarray, home: np.ndarray | float) -> np.ndarray:
    """Centres too close to a line between two cells, moved off it towards `home`."""
    for line in (1 / 3, 2 / 3):
        clear = np.where(home > line, line + _CELL_GAP, line - _CELL_GAP)
        centre = np.where(np.abs(centre - line) < _CELL_GAP, clear, centre)
    return centre
