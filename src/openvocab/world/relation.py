"""Scenes in which only a relation tells two alike objects apart: "a red circle left of a blue square", with another
red circle that is not left of it."""

from dataclasses import replace

import numpy as np

from openvocab.world.caption import RELATIONS, Caption, Span, fill_prompt, relations_between
from openvocab.world.chance import uniforms
from openvocab.world.scene import CLASSES, Scenes, WorldConfig, draw_scenes

_DRAWN = 4


def relation_scenes(num_scenes: int, config: WorldConfig, seed: int = 0) -> tuple[Scenes, list[Caption]]:
    """Scenes of three objects and what is said of the first: a relation to the second that the third, alike, lacks."""
    drawn = draw_scenes(_DRAWN * num_scenes, replace(config, max_objects=3, share_single=0.0, share_word=0.0), seed)
    first_of = {name: getattr(drawn, name)[:, [0, 1, 0]] for name in ("colour", "shape")}
    scenes = replace(drawn, present=np.ones_like(drawn.present), **first_of)
    u = uniforms(f"relation {seed}", scenes.key, 2)
    kept, said = [], []
    for row in range(len(scenes)):
        x, y, classes = scenes.cx[row].tolist(), scenes.cy[row].tolist(), scenes.class_id[row].tolist()
        true, false = (set(relations_between(x[slot] - x[1], y[slot] - y[1])) for slot in (0, 2))
        if classes[0] == classes[1] or not true - false:
            continue
        words = RELATIONS[sorted(true - false)[int(u[row, 0] * len(true - false))]]
        said.append(_caption(CLASSES[classes[0]], words[int(u[row, 1] * len(words))], CLASSES[classes[1]]))
        kept.append(row)
        if len(kept) == num_scenes:
            return scenes[np.array(kept)], said
    raise ValueError(f"only {len(kept)} of {len(scenes)} scenes have such a relation, {num_scenes} were asked for")


def _caption(one: str, words: str, other: str) -> Caption:
    text, spans = "", []
    for piece, objects, attribute in ((one, (0,), "phrase"), (words, (0, 1), "relation"), (other, (1,), "phrase")):
        text += " " if text else ""
        whole = fill_prompt("a {}", piece) if attribute == "phrase" else piece
        text += whole
        spans.append(Span(len(text) - len(piece), len(text), objects, attribute))
    return Caption(text, tuple(spans))
