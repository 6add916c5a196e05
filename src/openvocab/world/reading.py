"""Reads a sentence in the captions' own words back, and holds it against a scene: free captions on exact truth."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from openvocab.world.caption import PLACES, RELATIONS, STYLE_OPENINGS, SYNONYMS, plural, relations_between
from openvocab.world.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, STYLES, TEXTURES, WORDS, Scenes

_COUNTS = {"two": 2, "three": 3, "four": 4}


@dataclass(frozen=True, slots=True)
class Judged:
    """What a sentence is worth.

    Fields:
        true: nothing it says is wrong of the scene, for some way to tell who is who.
        full: it gives the colour and the shape of everything in the scene, and is true.
    """

    true: bool
    full: bool


def judge_sentence(text: str, scene: Scenes) -> Judged:
    """Holds a sentence against one scene (`scenes[row : row + 1]`); a sentence that says nothing is true and not full.

    Words that the grammar does not know say nothing.
    """
    things, relations = _read(text)
    present = int(scene.present[0].sum())
    around = _background_holds(text, scene)
    fits = around and any(
        all(_holds(thing, scene, slot) for thing, slot in zip(things, order))
        and all(_related(scene, order[a], order[b], name) for a, b, name in relations)
        for order in itertools.permutations(range(present), len(things))
    )
    named = len(things) == present and all({"colour", "shape"} <= thing.keys() for thing in things)
    return Judged(fits, fits and named)


_Thing = Mapping[str, int]  # attribute to the row of its value


def _alternatives(names: Sequence[str], plurals: bool = False) -> dict[str, int]:
    said = {}
    for number, name in enumerate(names):
        for word in (name, *SYNONYMS.get(name, ())):
            said[word] = number
            if plurals:
                said[plural(word)] = number
    return said


_VALUES = {
    "is_large": _alternatives(SIZES),
    "texture": _alternatives(TEXTURES),
    "colour": _alternatives(COLOURS),
    "shape": _alternatives(SHAPES, plurals=True),
}


def _either(words: Iterator[str] | Sequence[str]) -> str:
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


_ADJECTIVES = "".join(
    rf"(?:(?P<{name}>{_either(list(_VALUES[name]))}) )?" for name in ("is_large", "texture", "colour")
)
_PHRASE = re.compile(
    rf"\b(?:(?P<count>{_either(list(_COUNTS))}) )?{_ADJECTIVES}(?P<shape>{_either(list(_VALUES['shape']))}|shapes?)\b"
)
_RELATION = {words: name for name, phrases in RELATIONS.items() for words in phrases}
_BETWEEN = re.compile(rf" (?P<relation>{_either(list(_RELATION))}) (?:an? )?")
_PLACE = re.compile(rf" (?P<place>{_either(PLACES)})$")
_GROUND = re.compile(rf"\bon a (?P<ground>{_either(BACKGROUNDS)}) background")
_WORD = re.compile(r'\bthe word "(?P<word>[^"]*)"')


def _read(text: str) -> tuple[list[_Thing], list[tuple[int, int, str]]]:
    """Everything that is spoken of, counted things once each; and which stand in a relation."""
    things: list[_Thing] = []
    relations = []
    end = None
    for found in _PHRASE.finditer(text):
        said = {name: values[found[name]] for name, values in _VALUES.items() if found[name] in values}
        place = _PLACE.match(text, found.end())
        if place and not things:
            said["place"] = PLACES.index(place["place"])
        between = end is not None and _BETWEEN.fullmatch(text, end, found.start())
        if between:
            relations.append((len(things) - 1, len(things), _RELATION[between["relation"]]))
        things += [said] * _COUNTS.get(found["count"], 1)
        end = found.end()
    return things, relations


def _holds(thing: _Thing, scene: Scenes, slot: int) -> bool:
    return all(int(getattr(scene, name)[0, slot]) == value for name, value in thing.items())


def _related(scene: Scenes, a: int, b: int, name: str) -> bool:
    across, down = (float(line[0, a] - line[0, b]) for line in (scene.cx, scene.cy))
    return name in relations_between(across, down)


def _background_holds(text: str, scene: Scenes) -> bool:
    ground, word = _GROUND.search(text), _WORD.search(text)
    styles = [style for style, openings in STYLE_OPENINGS.items() if text.startswith(openings)]
    return (
        (ground is None or BACKGROUNDS[int(scene.background[0])] == ground["ground"])
        and (word is None or (int(scene.word[0]) >= 0 and WORDS[int(scene.word[0])] == word["word"]))
        and all(STYLES[int(scene.style[0])] == style for style in styles)
    )
