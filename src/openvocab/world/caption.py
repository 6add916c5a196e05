"""Sentences about scenes, from a small grammar: always true of the scene, with the span of every word that says so.

Which of many ways of saying it is chosen depends only on (seed, epoch, the scene's key).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from openvocab.world.chance import uniforms
from openvocab.world.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, STYLES, TEXTURES, WORDS, Scenes

SYNONYMS = {
    "red": ("crimson", "scarlet"),
    "green": ("emerald",),
    "blue": ("navy",),
    "yellow": ("golden",),
    "purple": ("violet",),
    "orange": ("tangerine",),
    "cyan": ("turquoise",),
    "white": ("snowy",),
    "circle": ("disc", "dot"),
    "square": ("box",),
    "triangle": ("wedge",),
    "diamond": ("rhombus",),
    "cross": ("plus sign",),
    "ring": ("hoop", "loop"),
    "bar": ("stick", "strip"),
    "crescent": ("moon",),
    "small": ("little", "tiny"),
    "large": ("big",),
    "dotted": ("spotted",),
    "checked": ("checkered",),
}
PLACES = (
    "at the top left",
    "at the top",
    "at the top right",
    "on the left",
    "in the middle",
    "on the right",
    "at the bottom left",
    "at the bottom",
    "at the bottom right",
)
RELATIONS = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "beside": ("next to", "beside", "near"),
}
PROMPTS = (
    "{}",
    "a {}",
    "a photo of a {}",
    "a picture of a {}",
    "an image of a {}",
    "there is a {}",
    "this is a {}",
    "a small {}",
    "a large {}",
    "a {} on a plain background",
    "a {} on a noisy background",
    "a {} on a striped background",
)
"""Templates in the captions' own manner, for an ensemble; `fill_prompt` puts a class name in."""

_OPENINGS = ("a photo of ", "a picture of ", "an image of ", "there is ", "this is ")
STYLE_OPENINGS = {
    "textured": ("a textured picture of ", "a patterned picture of "),
    "sketch": ("a sketch of ", "a chalk drawing of "),
    "inverted": ("an inverted picture of ", "a negative of "),
    "noisy": ("a noisy picture of ", "a grainy photo of "),
}
_SINGULAR_OPENINGS = ("there is ", "this is ")
_NUMBERS = ("no", "one", "two", "three", "four")
_APART = 0.15  # centres further apart than this along an axis are left of, above, ...
_ARTICLE = re.compile(r"\b([Aa])n? (?=(\w))")


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `start` to `end` of the text say `attribute` of the objects in these slots (none: of the scene)."""

    start: int
    end: int
    objects: tuple[int, ...]
    attribute: str
    """phrase, count, size, texture, colour, shape, relation, place, background, style, word or absent."""


@dataclass(frozen=True, slots=True)
class Caption:
    text: str
    spans: tuple[Span, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionConfig:
    """How often captions say what; shares are of the captions in which it could be said."""

    opening: float = 0.5
    style: float = 0.7
    size: float = 0.25
    texture: float = 0.6
    background: float = 0.15
    place: float = 0.15
    relation: float = 0.6
    count: float = 0.05
    """"two shapes" in place of naming them."""
    absent: float = 0.0
    """"... but no square"."""
    word: float = 0.8
    drop: float = 0.06
    """Leaves out the colour ("a circle") or the shape ("a red shape")."""
    synonym: float = 0.08
    bare: float = 0.1
    """Leaves out the article of a single object ("red circle")."""


def texts(scenes: Scenes, seed: int = 0, epoch: int = 0, config: CaptionConfig = CaptionConfig()) -> list[str]:
    """One caption per scene, the same as `captions` gives, without the spans."""
    return ["".join([piece[0] for piece in sentence]) for sentence in _sentences(scenes, seed, epoch, config)]


def captions(scenes: Scenes, seed: int = 0, epoch: int = 0, config: CaptionConfig = CaptionConfig()) -> list[Caption]:
    """One caption per scene, with the span of every phrase and attribute."""
    return [_spanned(sentence) for sentence in _sentences(scenes, seed, epoch, config)]


def swap_colours(captions: list[Caption], scenes: Scenes) -> list[str | None]:
    """The same sentences with their two colours exchanged, false of their scenes: the negatives that test binding.

    None where a caption does not give two different colours to two different shapes.
    """
    return [_colours_swapped(*each) for each in zip(captions, scenes.colour, scenes.shape)]


def swap_objects(captions: list[Caption], scenes: Scenes) -> list[str | None]:
    """The same sentences with the two objects of a relation exchanged, false of their scenes.

    None where a caption puts no two different things left of, above, ... each other.
    """
    return [_objects_swapped(*each) for each in zip(captions, scenes.class_id)]


def _colours_swapped(caption: Caption, colour: np.ndarray, shape: np.ndarray) -> str | None:
    said = sorted((span.start, span.end, span.objects[0]) for span in caption.spans if span.attribute == "colour")
    shaped = {span.objects[0] for span in caption.spans if span.attribute == "shape"}
    if len(said) != 2:
        return None
    one, other = (slot for _, _, slot in said)
    if shaped != {one, other} or colour[one] == colour[other] or shape[one] == shape[other]:
        return None
    return _exchanged(caption.text, said[0][:2], said[1][:2])


def _objects_swapped(caption: Caption, class_id: np.ndarray) -> str | None:
    between = [span for span in caption.spans if span.attribute == "relation"]
    if not between or caption.text[between[0].start : between[0].end] in RELATIONS["beside"]:
        return None
    one, other = between[0].objects
    ends = {span.objects[0]: (span.start, span.end) for span in caption.spans if span.attribute == "phrase"}
    said = {span.objects[0] for span in caption.spans if span.attribute == "colour"}
    named = {span.objects[0] for span in caption.spans if span.attribute == "shape"}
    if class_id[one] == class_id[other] or said & named != {one, other}:
        return None
    return _exchanged(caption.text, ends[one], ends[other])


def _exchanged(text: str, one: tuple[int, int], other: tuple[int, int]) -> str:
    """The text with these two stretches, the first before the second, in each other's place."""
    (start, end), (start_2, end_2) = one, other
    return _mend_articles(text[:start] + text[start_2:end_2] + text[end:start_2] + text[start:end] + text[end_2:])


def relations_between(across: float, down: float) -> tuple[str, ...]:
    """All that holds of a thing whose centre lies this far right of and below another's, as fractions of the side."""
    sides = (("left", -across), ("right", across), ("above", -down), ("below", down))
    return (*(name for name, distance in sides if distance > _APART), "beside")


def fill_prompt(template: str, name: str) -> str:
    """The template with the name in its braces and "a" turned into "an" where the next word asks for it."""
    return _mend_articles(template.replace("{}", name))


_Piece = tuple[str, str, tuple[int, ...]]  # text, attribute ("" says nothing), slots of the objects it speaks of


def _sentences(scenes: Scenes, seed: int, epoch: int, config: CaptionConfig) -> Iterator[list[_Piece]]:
    num_slots = scenes.present.shape[1]
    u = uniforms(f"caption {seed} {epoch}", scenes.key, _SCENE_CHOICES + _OBJECT_CHOICES * num_slots).tolist()
    objects = zip(
        scenes.colour.tolist(),
        scenes.shape.tolist(),
        scenes.texture.tolist(),
        scenes.is_large.tolist(),
        scenes.place.tolist(),
        scenes.cx.tolist(),
        scenes.cy.tolist(),
    )
    rows = zip(
        u, scenes.count.tolist(), objects, scenes.background.tolist(), scenes.style.tolist(), scenes.word.tolist()
    )
    for choices, count, columns, background, style, word in rows:
        things = [_Object(slot, *(column[slot] for column in columns)) for slot in range(count)]
        yield _sentence(choices, things, BACKGROUNDS[background], STYLES[style], word, config)


_SCENE_CHOICES, _OBJECT_CHOICES = 16, 6


@dataclass(slots=True)
class _Object:
    slot: int
    colour: int
    shape: int
    texture: int
    is_large: bool
    place: int
    cx: float
    cy: float


def _sentence(
    u: list[float], things: list[_Object], background: str, style: str, word: int, config: CaptionConfig
) -> list[_Piece]:
    opening = _opening(u, style, config)
    single, plural_first = len(things) == 1, False
    if not things:
        body: list[_Piece] = [] if word >= 0 else [("an empty picture", "", ())]
    elif single:
        body = _phrase(things, u, config)
        if opening is not None or u[2] >= config.bare:
            body = _with_article(body)
    elif u[2] < config.count:
        body = [(_NUMBERS[len(things)], "count", tuple(t.slot for t in things)), (" shapes", "", ())]
        plural_first = True
    else:
        body, plural_first = _several(things, u, config)
    if word >= 0 and (not things or u[3] < config.word):
        joint = (" and the word ", " with the word ")[u[4] < 0.5] if things else "the word "
        body = [*body, (joint, "", ()), (f'"{WORDS[word]}"', "word", ())]
    if things and u[5] < config.absent:
        body = [*body, (" but no ", "", ()), (_absent(things, u), "absent", ())]
    if u[6] < config.background:
        body = [*body, (" on a ", "", ()), (background, "background", ()), (" background", "", ())]
    elif single and word < 0 and u[6] - config.background < config.place:
        body = [*body, (" ", "", ()), (PLACES[things[0].place], "place", (things[0].slot,))]
    if opening is None or not (things or word >= 0):
        return body
    text, attribute = opening
    if (plural_first or not things) and text in _SINGULAR_OPENINGS:
        text = "a photo of "
    return [(text, attribute, ()), *body]


def _opening(u: list[float], style: str, config: CaptionConfig) -> tuple[str, str] | None:
    if style != "clean" and u[0] < config.style:
        return _pick(STYLE_OPENINGS[style], u[1]), "style"
    if u[0] < config.opening:
        return _pick(_OPENINGS, u[1]), ""
    return None


def _several(things: list[_Object], u: list[float], config: CaptionConfig) -> tuple[list[_Piece], bool]:
    """Two objects in relation, or a list with objects of one class counted; and whether it begins with a plural."""
    if u[7] < 0.5:
        things = things[::-1]
    groups: dict[tuple[int, int], list[_Object]] = {}
    for thing in things:
        groups.setdefault((thing.colour, thing.shape), []).append(thing)
    phrases = []
    for group in groups.values():
        phrase = _phrase(group, u, config)
        if len(group) == 1:
            phrases.append(_with_article(phrase))
        else:
            phrases.append([(_NUMBERS[len(group)], "count", phrase[0][2]), (" ", "", ()), *phrase])
    if len(phrases) == len(things) == 2 and u[8] < config.relation:
        words = _pick(RELATIONS[_relation(things[0], things[1], u[9])], u[10])
        between: _Piece = (words, "relation", (things[0].slot, things[1].slot))
        return [*phrases[0], (" ", "", ()), between, (" ", "", ()), *phrases[1]], False
    body = phrases[0]
    for number, phrase in enumerate(phrases[1:], 2):
        body = [*body, (" and " if number == len(phrases) else ", ", "", ()), *phrase]
    return body, len(next(iter(groups.values()))) > 1


def _relation(a: _Object, b: _Object, u: float) -> str:
    *sides, beside = relations_between(a.cx - b.cx, a.cy - b.cy)
    return beside if u < 0.2 or not sides else _pick(tuple(sides), (u - 0.2) / 0.8)


def _phrase(group: list[_Object], u: list[float], config: CaptionConfig) -> list[_Piece]:
    """Adjectives and noun of objects of one class, without the article."""
    first, slots = group[0], tuple(thing.slot for thing in group)
    v = u[_SCENE_CHOICES + _OBJECT_CHOICES * first.slot :][:_OBJECT_CHOICES]
    pieces: list[_Piece] = []
    if v[0] < config.size and all(thing.is_large == first.is_large for thing in group):
        pieces += [(_say(SIZES[first.is_large], v[1], config), "size", slots), (" ", "", ())]
    if first.texture and v[2] < config.texture and all(thing.texture == first.texture for thing in group):
        pieces += [(_say(TEXTURES[first.texture], v[1], config), "texture", slots), (" ", "", ())]
    if v[3] >= config.drop / 2:
        pieces += [(_say(COLOURS[first.colour], v[4], config), "colour", slots), (" ", "", ())]
    if v[3] <= 1 - config.drop / 2:
        noun = _say(SHAPES[first.shape], v[5], config)
        return [*pieces, (noun if len(group) == 1 else plural(noun), "shape", slots)]
    return [*pieces, ("shape" if len(group) == 1 else "shapes", "", ())]


def _with_article(phrase: list[_Piece]) -> list[_Piece]:
    return [("an " if phrase[0][0][0] in "aeiou" else "a ", "", ()), *phrase]


def _absent(things: list[_Object], u: list[float]) -> str:
    """A shape that the scene lacks, or one of its colours on one of its shapes that do not go together there."""
    pairs = {(thing.colour, thing.shape) for thing in things}
    crossed = [(a.colour, b.shape) for a in things for b in things if (a.colour, b.shape) not in pairs]
    if crossed and u[11] < 0.5:
        colour, shape = _pick(tuple(crossed), u[12])
        return f"{COLOURS[colour]} {SHAPES[shape]}"
    return _pick(tuple(name for number, name in enumerate(SHAPES) if all(t.shape != number for t in things)), u[12])


def _say(word: str, u: float, config: CaptionConfig) -> str:
    """The word, or now and then a synonym."""
    if u >= config.synonym or word not in SYNONYMS:
        return word
    return _pick(SYNONYMS[word], u / config.synonym)


def _pick(choices: tuple, u: float):
    return choices[int(u * len(choices))]


def plural(noun: str) -> str:
    return noun + ("es" if noun.endswith(("s", "x")) else "s")


def _spanned(sentence: list[_Piece]) -> Caption:
    spans, phrases, at = [], {}, 0
    for text, attribute, objects in sentence:
        end = at + len(text)
        if attribute:
            spans.append(Span(at, end, objects, attribute))
        if attribute in ("count", "size", "texture", "colour", "shape"):
            phrases[objects] = (phrases.get(objects, (at,))[0], end)
        at = end
    spans += [Span(start, end, objects, "phrase") for objects, (start, end) in phrases.items()]
    return Caption("".join(piece[0] for piece in sentence), tuple(spans))


def _mend_articles(text: str) -> str:
    return _ARTICLE.sub(lambda found: f"{found[1]}n " if found[2] in "aeiou" else f"{found[1]} ", text)
