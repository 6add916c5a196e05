"""The noun finder: exact on generated captions, measured on people's."""

import json
import re
import tarfile
from pathlib import Path

import pytest

from openvocab.data.nouns import noun_phrases, nouns, singular
from openvocab.world.caption import SYNONYMS, captions, plural
from openvocab.world.scene import SHAPES, WorldConfig, draw_scenes

REAL = Path(__file__).parents[4] / "shared" / "data" / "captions" / "test.tar"
NAMES = ("shape", *SHAPES, *(name for names in SYNONYMS.values() for name in names))


def said(caption) -> list[str]:
    """The things that a caption's spans mark, in the singular, without counts."""
    found = []
    for span in sorted((span for span in caption.spans if span.attribute == "phrase"), key=lambda span: span.start):
        counted = [each.end for each in caption.spans if each.attribute == "count" and each.start == span.start]
        after = re.match(" shapes?", caption.text[span.end :])
        text = (caption.text[(counted or [span.start])[0] : span.end] + (after[0] if after else "")).strip()
        many = [name for name in NAMES if text.endswith(plural(name))]
        found.append(text.removesuffix(plural(many[0])) + many[0] if many else text)
    return list(dict.fromkeys(found))


def test_on_generated_captions_every_phrase_is_found_and_nothing_else():
    world = WorldConfig(max_objects=4, share_single=0.3, textures=("plain", "striped", "dotted", "checked"))
    for caption in captions(draw_scenes(1500, world, seed=3)):
        assert noun_phrases(caption.text) == said(caption), caption.text


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A brown dog is running through the tall grass.", ["dog", "grass"]),
        ("Two young women in red dresses talk to a man who holds a camera", ["woman", "dress", "man", "camera"]),
        ("a photo of three boxes on a shelf", ["box", "shelf"]),
        ("He quickly climbs up.", []),
        ("", []),
        ("!!! 12 %", []),
    ],
)
def test_single_captions(caption, expected):
    assert nouns(caption) == expected


def test_the_singular():
    words = {
        "men": "man",
        "women": "woman",
        "boxes": "box",
        "rhombuses": "rhombus",
        "parties": "party",
        "glass": "glass",
    }
    assert {word: singular(word) for word in words} == words


BY_HAND = {
    "The dogs are in the snow in front of a fence .": "dog snow fence",
    "a brown and white dog swimming towards some in the pool": "dog pool",
    "A man and a woman in festive costumes dancing .": "man woman costume",
    "A couple of people sit outdoors at a table with an umbrella and talk .": "person table umbrella",
    "A black dog running in the surf .": "dog surf",
    "A man drilling a hole in the ice .": "man hole ice",
    "A group of people are sitting on a bench .": "person bench",
    "Two girls in bathing suits are jumping into a lake .": "girl suit lake",
}
"""Sentences in the manner of people's captions and the nouns that a reader underlined."""


def test_on_peoples_captions_most_nouns_are_found():
    right = found = wanted = 0
    for caption, words in BY_HAND.items():
        mine, theirs = set(nouns(caption)), set(words.split())
        right, found, wanted = right + len(mine & theirs), found + len(mine), wanted + len(theirs)
    assert right / wanted >= 0.9
    assert right / found >= 0.9


@pytest.mark.skipif(not REAL.exists(), reason="needs ../shared/data/captions")
def test_nearly_every_caption_of_people_names_something():
    with tarfile.open(REAL) as archive:
        files = [archive.extractfile(member) for member in archive if member.name.endswith(".json")]
        texts = [text for file in files if file for text in json.load(file)["captions"]]
    named = [nouns(text) for text in texts]
    assert sum(map(bool, named)) / len(texts) > 0.99
    assert 1.8 < sum(map(len, named)) / len(texts) < 3.5
