import dataclasses
import re

import numpy as np
import pytest

from openvocab.world.caption import (
    PLACES,
    PROMPTS,
    RELATIONS,
    SYNONYMS,
    CaptionConfig,
    captions,
    fill_prompt,
    relations_between,
    swap_colours,
    swap_objects,
    texts,
)
from openvocab.world.scene import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIZES,
    TEXTURES,
    WORDS,
    WorldConfig,
    draw_scenes,
    rich_world,
)

MEANING = {synonym: word for word, synonyms in SYNONYMS.items() for synonym in synonyms}
TALKATIVE = CaptionConfig(absent=0.3, synonym=0.4, background=0.3, place=0.3)


def meaning(said):
    """The plain word behind a synonym or a plural."""
    known = {**MEANING, **{word: word for word in (*COLOURS, *SHAPES, *SIZES, *TEXTURES)}}
    return next(known[word] for word in (said, said.removesuffix("s"), said.removesuffix("es")) if word in known)


def test_texts_are_the_captions_without_spans():
    scenes = draw_scenes(300, rich_world())
    assert texts(scenes, seed=4, epoch=2) == [caption.text for caption in captions(scenes, seed=4, epoch=2)]


def test_a_caption_depends_on_seed_epoch_and_scene_alone():
    scenes = draw_scenes(200, rich_world())
    assert texts(scenes)[50:60] == texts(scenes[50:60])
    assert texts(scenes) != texts(scenes, epoch=1)
    assert texts(scenes) != texts(scenes, seed=1)


def test_every_word_that_says_something_has_a_span_and_is_true():
    scenes = draw_scenes(800, rich_world())
    seen = set()
    for row, caption in enumerate(captions(scenes, config=TALKATIVE)):
        for span in caption.spans:
            said = caption.text[span.start : span.end]
            seen.add(span.attribute)
            truths = {
                "colour": lambda slot, row=row: COLOURS[scenes.colour[row, slot]],
                "shape": lambda slot, row=row: SHAPES[scenes.shape[row, slot]],
                "size": lambda slot, row=row: SIZES[int(scenes.is_large[row, slot])],
                "texture": lambda slot, row=row: TEXTURES[scenes.texture[row, slot]],
            }
            if span.attribute in truths:
                assert {truths[span.attribute](slot) for slot in span.objects} == {meaning(said)}
            elif span.attribute == "count":
                assert said == ("no", "one", "two", "three", "four")[len(span.objects)]
            elif span.attribute == "place":
                assert said == PLACES[scenes.place[row, span.objects[0]]]
            elif span.attribute == "background":
                assert said == BACKGROUNDS[scenes.background[row]]
            elif span.attribute == "word":
                assert said == f'"{WORDS[scenes.word[row]]}"'
            elif span.attribute == "relation":
                a, b = span.objects
                name = next(name for name, words in RELATIONS.items() if said in words)
                across, down = scenes.cx[row, a] - scenes.cx[row, b], scenes.cy[row, a] - scenes.cy[row, b]
                checks = {"left": across < -0.1, "right": across > 0.1, "above": down < -0.1, "below": down > 0.1}
                assert checks.get(name, True)
            elif span.attribute == "absent":
                *colour, shape = said.split()
                pairs = [
                    (COLOURS[scenes.colour[row, k]], SHAPES[scenes.shape[row, k]])
                    for k in np.nonzero(scenes.present[row])[0]
                ]
                assert not any(s == shape and (not colour or c == colour[0]) for c, s in pairs)
            elif span.attribute == "phrase":
                inner = [s for s in caption.spans if span.start <= s.start and s.end <= span.end]
                assert {s.attribute for s in inner} & {"colour", "shape", "count"}
            else:
                assert span.attribute == "style"
    expected = "colour shape size texture count place background word relation absent phrase style"
    assert seen == set(expected.split())


def test_no_objects_are_mentioned_that_are_not_there_and_none_is_forgotten():
    scenes = draw_scenes(1000, WorldConfig(share_single=0.3, max_objects=4))
    for caption, present in zip(captions(scenes, config=CaptionConfig(drop=0.0)), scenes.present):
        mentioned = sorted(
            slot for span in caption.spans if span.attribute in ("shape", "count") for slot in span.objects
        )
        assert set(mentioned) == set(np.nonzero(present)[0])


def test_articles_agree_with_the_next_word():
    for text in texts(draw_scenes(1000, rich_world()), config=TALKATIVE):
        for article, letter in re.findall(r"\b(an?) (\w)", text):
            assert (article == "an") == (letter in "aeiou"), text


def test_a_plain_caption_names_colour_and_shape():
    config = CaptionConfig(**{field.name: 0.0 for field in dataclasses.fields(CaptionConfig)})
    scenes = draw_scenes(50, WorldConfig(share_single=1.0))
    for text, colour, shape in zip(texts(scenes, config=config), scenes.colour[:, 0], scenes.shape[:, 0]):
        assert text == fill_prompt("a {}", f"{COLOURS[colour]} {SHAPES[shape]}")


def test_shares_of_the_config_are_met():
    scenes = draw_scenes(2000, WorldConfig(share_single=1.0))
    said = captions(scenes, config=CaptionConfig(size=0.3, background=0.2, place=0.1, drop=0.2))

    def share(attribute):
        return np.mean([any(span.attribute == attribute for span in caption.spans) for caption in said])

    assert abs(share("size") - 0.3) < 0.04
    assert abs(share("background") - 0.2) < 0.03
    assert abs(share("place") - 0.1) < 0.025
    assert abs(share("colour") - 0.9) < 0.025
    assert abs(share("shape") - 0.9) < 0.025


def test_swapping_changes_the_two_colours_and_nothing_else():
    scenes = draw_scenes(500, WorldConfig(share_single=0.0, max_objects=2))
    said = captions(scenes)
    swapped = swap_colours(said, scenes)
    assert np.mean([other is not None for other in swapped]) > 0.6
    for caption, other in zip(said, swapped):
        if other is None:
            continue
        ours, theirs = (re.sub(r"\ban\b", "a", text).split() for text in (caption.text, other))
        colours = [
            caption.text[s.start : s.end]
            for s in sorted(caption.spans, key=lambda s: s.start)
            if s.attribute == "colour"
        ]
        different = [(a, b) for a, b in zip(ours, theirs) if a != b]
        assert len(ours) == len(theirs)
        assert different == [tuple(colours), tuple(colours[::-1])]


def test_swapping_is_refused_where_it_would_stay_true():
    scenes = draw_scenes(500, WorldConfig(share_single=0.0, max_objects=2))
    alike = (scenes.colour[:, 0] == scenes.colour[:, 1]) | (scenes.shape[:, 0] == scenes.shape[:, 1])
    swapped = swap_colours(captions(scenes), scenes)
    assert alike.any()
    assert all(other is None for other, same in zip(swapped, alike) if same)
    single = draw_scenes(20, WorldConfig(share_single=1.0))
    assert swap_colours(captions(single), single) == [None] * 20


def test_swapped_objects_are_false_of_their_scenes():
    scenes = draw_scenes(400, WorldConfig(share_single=0.0, max_objects=2, textures=TEXTURES), seed=2)
    said = captions(scenes, config=CaptionConfig(opening=0.0, synonym=0.0, count=0.0))
    swapped = swap_objects(said, scenes)
    assert np.mean([other is not None for other in swapped]) > 0.3
    words = "|".join(word for name, words in RELATIONS.items() if name != "beside" for word in words[::-1])
    for row, other in enumerate(swapped):
        if other is None:
            continue
        one, relation, two = re.fullmatch(rf"an? (.+?) ({words}) an? (.+?)(?: on a .*)?", other).groups()
        slots = {f"{COLOURS[c]} {SHAPES[s]}": i for i, (c, s) in enumerate(zip(scenes.colour[row], scenes.shape[row]))}
        first, second = (next(slot for name, slot in slots.items() if phrase.endswith(name)) for phrase in (one, two))
        across, down = (float(line[row, first] - line[row, second]) for line in (scenes.cx, scenes.cy))
        name = next(name for name, words in RELATIONS.items() if relation in words)
        assert name not in relations_between(across, down)


def test_relations_hold_only_for_things_clearly_apart():
    assert relations_between(-0.5, 0.02) == ("left", "beside")
    assert relations_between(0.5, -0.5) == ("right", "above", "beside")
    assert relations_between(0.05, 0.4) == ("below", "beside")


@pytest.mark.parametrize(
    ("name", "expected"), [("red circle", "a photo of a red circle"), ("orange bar", "a photo of an orange bar")]
)
def test_prompts_take_the_right_article(name, expected):
    assert fill_prompt("a photo of a {}", name) == expected
    assert all("{" not in fill_prompt(prompt, name) for prompt in PROMPTS)


def test_prompts_use_only_words_of_the_captions():
    words = {word for text in texts(draw_scenes(4000)) for word in text.split()}
    assert {word for prompt in PROMPTS for word in fill_prompt(prompt, "orange circle").split()} <= words
