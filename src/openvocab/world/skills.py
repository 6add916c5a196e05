"""Questions about generated pictures, one skill at a time: what is asked differs in the skilled attribute alone.

Either every picture is asked with the same sentences, each right equally often, or the pictures come as twins that
answer the same two sentences the other way round (Winoground, arXiv 2204.03162). A model that looks at the words alone
is therefore at chance, and where the two sentences are the same words in another order so is a bag of words.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int

from openvocab.world.caption import PLACES, RELATIONS, fill_prompt, relations_between
from openvocab.world.render import PALETTE_01
from openvocab.world.scene import (
    BACKGROUNDS,
    CLASSES,
    COLOURS,
    SHAPES,
    SIZES,
    STYLES,
    TEXTURES,
    WORDS,
    Scenes,
    WorldConfig,
    class_scenes,
    draw_scenes,
    join_scenes,
)

SEED = 40_511
"""Of streams that nothing else draws from; each skill has its own, from here on."""

SIMILAR_SHAPES = {
    "circle": "ring",
    "square": "diamond",
    "triangle": "diamond",
    "diamond": "square",
    "cross": "bar",
    "ring": "circle",
    "bar": "cross",
    "crescent": "ring",
}


@dataclass(frozen=True, slots=True)
class Questions:
    """Scenes; the sentences each is asked with; which of them is true."""

    scenes: Scenes
    candidates: Sequence[tuple[str, ...]]
    truth: Int[np.ndarray, " scene"]


def questions(skill: str) -> Questions:
    """The benchmark's questions of one of SKILLS."""
    return SKILLS[skill](SEED + list(SKILLS).index(skill))


def _naming(template: str, names: Sequence[str], attribute: Callable[[int], tuple[Scenes, np.ndarray]]) -> Callable:
    """One object, and a sentence for each of the attribute's values."""
    sentences = tuple(fill_prompt(template, name) for name in names)

    def ask(seed: int) -> Questions:
        scenes, truth = attribute(seed)
        return Questions(scenes, (sentences,) * len(scenes), truth)

    return ask


def _singles(seed: int, count: int = 256, **world) -> Scenes:
    """Scenes with one object, every class equally often."""
    return class_scenes(np.arange(count) % len(CLASSES), WorldConfig(max_objects=1, share_single=1.0, **world), seed)


def _pairs(seed: int, count: int = 128, **world) -> Scenes:
    """Scenes with two objects of different colours and shapes."""
    scenes = draw_scenes(4 * count, WorldConfig(share_single=0.0, **world), seed)
    unlike = (scenes.colour[:, 0] != scenes.colour[:, 1]) & (scenes.shape[:, 0] != scenes.shape[:, 1])
    return scenes[np.flatnonzero(unlike)[:count]]


def _crowds(seed: int, count: int, **world) -> Scenes:
    """Scenes with four small objects."""
    scenes = draw_scenes(count, WorldConfig(max_objects=4, share_single=0.0, sizes=("small",), **world), seed)
    return replace(scenes, present=np.ones_like(scenes.present))


def _sized(seed: int) -> tuple[Scenes, np.ndarray]:
    parts = [_singles(seed, 128, sizes=(size,)) for size in SIZES]
    return join_scenes(parts), np.repeat([0, 1], 128)


def _placed(seed: int) -> tuple[Scenes, np.ndarray]:
    scenes = _singles(seed, 252, sizes=("small",))
    row, column = divmod(np.arange(252) % 9, 3)
    cx, cy = (np.float32(0.2) + np.float32(0.3) * line[:, None].astype(np.float32) for line in (column, row))
    return replace(scenes, cx=cx, cy=cy), np.arange(252) % 9


def _on_backgrounds(seed: int) -> tuple[Scenes, np.ndarray]:
    background = np.arange(255) % len(BACKGROUNDS)
    return replace(_singles(seed, 255), background=background), background


def _textured(seed: int) -> tuple[Scenes, np.ndarray]:
    texture = np.arange(256) // len(CLASSES)
    return replace(_singles(seed, sizes=("large",)), texture=texture[:, None]), texture


def _counted(seed: int) -> tuple[Scenes, np.ndarray]:
    scenes, more = _crowds(seed, 256, share_same=1.0), np.arange(256) % 4
    return replace(scenes, present=np.arange(4) <= more[:, None]), more


def _worded(seed: int) -> tuple[Scenes, np.ndarray]:
    scenes, word = _singles(seed, 240), np.arange(240) % len(WORDS)
    return replace(scenes, present=np.zeros_like(scenes.present), word=word), word


def _styled(style: str) -> Callable[[int], tuple[Scenes, np.ndarray]]:
    """Objects of one style; the same scenes for every style."""

    def draw(seed: int) -> tuple[Scenes, np.ndarray]:
        scenes = _singles(SEED)
        texture = 1 + np.arange(256) // len(CLASSES) % 3 if style == "textured" else np.zeros(256, np.int64)
        scenes = replace(scenes, style=np.full(256, STYLES.index(style)), texture=texture[:, None])
        return scenes, scenes.shape[:, 0]

    return draw


def _twins(one: Scenes, other: Scenes, sentences: list[tuple[str, str]]) -> Questions:
    """Of each two sentences the first is true of `one`, the second of `other`."""
    order = np.arange(2 * len(one)).reshape(2, -1).T.ravel()
    twice = [pair for pair in sentences for _ in range(2)]
    return Questions(join_scenes([one, other])[order], twice, np.arange(len(order)) % 2)


def _names(scenes: Scenes, slot: int = 0) -> list[str]:
    """The object of a slot with its article, for each scene."""
    return [fill_prompt("a {}", CLASSES[number]) for number in scenes.class_id[:, slot]]


def _related(seed: int) -> Questions:
    scenes = _pairs(seed, sizes=("small",))
    scenes = replace(scenes, radius=scenes.radius[:, :1].repeat(2, 1))  # or the place of one may not hold the other
    sentences = []
    for row, (one, other) in enumerate(zip(_names(scenes), _names(scenes, 1))):
        across, down = (float(line[row, 0] - line[row, 1]) for line in (scenes.cx, scenes.cy))
        *sides, _ = relations_between(across, down)
        said = RELATIONS[sides[row % len(sides)]][0]
        sentences.append((f"{one} {said} {other}", f"{other} {said} {one}"))
    return _twins(scenes, replace(scenes, cx=scenes.cx[:, ::-1], cy=scenes.cy[:, ::-1]), sentences)


def _bound(seed: int) -> Questions:
    scenes = _pairs(seed)
    swapped = replace(scenes, colour=scenes.colour[:, ::-1])
    said = [[f"{a} and {b}" for a, b in zip(_names(each), _names(each, 1))] for each in (scenes, swapped)]
    return _twins(scenes, swapped, list(zip(*said)))


def _negated(seed: int) -> Questions:
    scenes = _singles(seed, 128)
    other = (scenes.shape + 1 + np.arange(128)[:, None] % 7) % len(SHAPES)
    sentences = []
    for colour, is_shape, no_shape in zip(scenes.colour[:, 0], scenes.shape[:, 0], other[:, 0]):
        start = fill_prompt("a {} shape but no ", COLOURS[colour])
        sentences.append((start + SHAPES[no_shape], start + SHAPES[is_shape]))
    return _twins(scenes, replace(scenes, shape=other), sentences)


def _classified(fine: bool) -> Callable[[int], Questions]:
    """Tiny objects against a class that differs in everything, or in a similar colour or a similar shape alone."""
    apart = np.linalg.norm(PALETTE_01[:, None] - PALETTE_01, axis=-1) + np.eye(len(COLOURS)) * 9
    close_shape = np.array([SHAPES.index(SIMILAR_SHAPES[name]) for name in SHAPES])

    def ask(seed: int) -> Questions:
        scenes = _singles(SEED - 1, 128, sizes=("small",))
        scenes = replace(scenes, radius=scenes.radius * np.float32(0.5))
        colour, shape = apart.argmin(1)[scenes.colour], close_shape[scenes.shape]
        by_colour = np.arange(128)[:, None] // len(CLASSES) == 0
        if fine:
            colour, shape = np.where(by_colour, colour, scenes.colour), np.where(by_colour, scenes.shape, shape)
        else:
            colour, shape = apart.argsort(1)[:, 4][scenes.colour], close_shape[(scenes.shape + 4) % len(SHAPES)]
            shape = np.where(shape == scenes.shape, (shape + 4) % len(SHAPES), shape)
        other = replace(scenes, colour=colour, shape=shape)
        return _twins(scenes, other, list(zip(_names(scenes), _names(other))))

    return ask


def _alike(seed: int) -> Questions:
    scenes = _pairs(seed, sizes=("small",))
    scenes = replace(scenes, radius=scenes.radius[:, :1].repeat(2, 1))
    same = replace(scenes, colour=scenes.colour[:, :1].repeat(2, 1), shape=scenes.shape[:, :1].repeat(2, 1))
    return _twins(same, scenes, [("two identical shapes", "two different shapes")] * len(scenes))


def _mirrored(seed: int) -> Questions:
    scenes = _pairs(seed, 160, sizes=("small",), backgrounds=("plain",))
    scenes = scenes[np.flatnonzero((scenes.shape != SHAPES.index("crescent")).all(1))[:96]]  # it is its own mirror
    top, bottom = np.array([0.27, 0.73], np.float32)
    both = np.array([0, 1, 0, 1])

    def four(order: np.ndarray) -> Scenes:
        """Top left, bottom left, top right, bottom right: the right side shows the left's objects in this order."""
        of = np.concatenate([[0, 1], order])
        fields = ("present", "colour", "shape", "texture", "radius", "depth_m", "tint", "rotation_rad")
        taken = {name: getattr(scenes, name)[:, of] for name in fields}
        taken["rotation_rad"] = taken["rotation_rad"] * np.array([1, 1, -1, -1], np.float32)
        cy = np.array([top, bottom])[both][None].repeat(len(scenes), 0)
        cx = np.array([top, top, bottom, bottom])[None].repeat(len(scenes), 0)
        return replace(scenes, **taken, cx=cx, cy=cy)

    said = ("a symmetric arrangement of shapes", "an asymmetric arrangement of shapes")
    return _twins(four(np.array([0, 1])), four(np.array([1, 0])), [said] * len(scenes))


def _odd(seed: int) -> Questions:
    crowd = _crowds(seed, 128)
    most, odd = crowd.colour[:, :1], (crowd.colour[:, :1] + 1 + np.arange(128)[:, None] % 7) % len(COLOURS)
    crowd = replace(crowd, shape=crowd.shape[:, :1].repeat(4, 1))
    one, other = (
        replace(crowd, colour=np.concatenate([many.repeat(3, 1), single], 1))
        for many, single in ((most, odd), (odd, most))
    )
    sentences = [
        (f"the odd one out is {COLOURS[rare]}", f"the odd one out is {COLOURS[common]}")
        for rare, common in zip(odd[:, 0], most[:, 0])
    ]
    return _twins(one, other, sentences)


SKILLS: dict[str, Callable[[int], Questions]] = {
    "colour": _naming("a {} shape", COLOURS, lambda seed: (_singles(SEED), _singles(SEED).colour[:, 0])),
    "shape": _naming("a {}", SHAPES, _styled("clean")),
    "size": _naming("a {} shape", SIZES, _sized),
    "place": _naming("a shape {}", PLACES, _placed),
    "background": _naming("a shape on a {} background", BACKGROUNDS, _on_backgrounds),
    "texture": _naming("a {} shape", TEXTURES, _textured),
    "count": _naming("{}", ("one shape", "two shapes", "three shapes", "four shapes"), _counted),
    "coarse": _classified(fine=False),
    "fine": _classified(fine=True),
    "relation": _related,
    "binding": _bound,
    "negation": _negated,
    "same": _alike,
    "symmetry": _mirrored,
    "odd": _odd,
    "word": _naming('the word "{}"', WORDS, _worded),
    **{style: _naming("a {}", SHAPES, _styled(style)) for style in STYLES if style != "clean"},
}
"""What each is asked; the last ones are `shape` again, in other styles."""
