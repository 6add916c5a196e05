import dataclasses

import numpy as np
import pytest

from openvocab.world.motion import ACTIONS, JOURNEYS, clip_texts, draw_clips, render_clips, reverse_action
from openvocab.world.render import truth
from openvocab.world.scene import CLASSES, held_out_classes

NAMES = tuple(ACTIONS)


def tracks(clips):
    """Centre, area and presence of the visible object, per clip and frame."""
    masks = truth(clips.scenes, 64).masks[:, 0].reshape(len(clips), clips.num_frames, 64, 64)
    area = masks.sum((2, 3))
    line = np.arange(64)
    x = (masks.sum(2) @ line) / np.maximum(area, 1)
    y = (masks.sum(3) @ line) / np.maximum(area, 1)
    return x, y, area


def only(*names, count=40, **more):
    return draw_clips(count, actions=names, **more)


@pytest.mark.parametrize(
    ("name", "dx", "dy"),
    [
        ("rises", 0, -1),
        ("falls", 0, 1),
        ("moves right", 1, 0),
        ("moves left", -1, 0),
        ("moves up and right", 1, -1),
        ("moves down and left", -1, 1),
        ("moves up and left", -1, -1),
        ("moves down and right", 1, 1),
    ],
)
def test_moving_objects_go_where_the_action_says(name, dx, dy):
    x, y, area = tracks(only(name))
    for path, direction in ((x, dx), (y, dy)):
        steps = np.diff(path, axis=1)
        assert (np.sign(direction) * steps > 1).all() if direction else (np.abs(steps) < 1).all()
    assert (area > 0).all()


def test_journeys_lead_from_one_place_to_another():
    middle = {"left": 0.2, "top": 0.2, "right": 0.8, "bottom": 0.8}
    for name in tuple(JOURNEYS)[::9]:
        x, y, _ = tracks(only(name, count=10))
        for frame, place in zip((0, -1), name.removeprefix("moves from ").split(" to ")):
            for path, words in ((x, ("left", "right")), (y, ("top", "bottom"))):
                at = next((middle[word] for word in words if word in place), 0.5)
                assert np.abs(path[:, frame] / 64 - at).max() < 0.15
    assert len(JOURNEYS) == 9 * 8
    assert "moves from the right to the top left" in JOURNEYS


def test_growing_and_shrinking_change_the_area():
    assert (np.diff(tracks(only("grows"))[2].astype(int), axis=1) > 0).all()
    assert (np.diff(tracks(only("shrinks"))[2].astype(int), axis=1) < 0).all()


def test_appearing_and_entering_begin_with_an_empty_picture_and_end_with_an_object():
    for name in ("appears", "enters"):
        area = tracks(only(name))[2]
        assert (area[:, 0] == 0).all()
        assert (area[:, -1] > 0).all()
    for name in ("vanishes", "leaves"):
        area = tracks(only(name))[2]
        assert (area[:, 0] > 0).all()
        assert (area[:, -1] == 0).all()


def test_spinning_objects_turn_visibly_in_place():
    clips = only("spins clockwise", "spins counter-clockwise")
    turn = np.diff(clips.scenes.rotation_rad.reshape(40, 8), axis=1)
    assert (np.sign(turn) == np.where(clips.action == NAMES.index("spins clockwise"), 1, -1)[:, None]).all()
    assert not any("circle" in CLASSES[c] or "ring" in CLASSES[c] for c in clips.class_id)


@pytest.mark.parametrize("pair", range(len(NAMES) // 2))
def test_a_clip_played_backwards_is_a_clip_of_the_reverse_action(pair):
    one, other = (draw_clips(30, actions=(name,)) for name in NAMES[2 * pair : 2 * pair + 2])
    assert (reverse_action(one.action) == other.action).all()
    for name in ("cx", "cy", "radius", "rotation_rad", "present", "colour", "shape"):
        forth, back = (getattr(clips.scenes, name).reshape(30, 8) for clips in (one, other))
        assert np.allclose(forth, back[:, ::-1], atol=1e-6)


def test_a_range_of_clips_can_be_drawn_alone():
    part, whole = draw_clips(10, start=20).scenes, draw_clips(30).scenes[160:]
    for field in dataclasses.fields(part):
        assert np.array_equal(getattr(part, field.name), getattr(whole, field.name))


def test_pictures_come_as_clips_of_frames():
    clips = draw_clips(5, num_frames=6)
    pictures = render_clips(clips, 48)
    assert pictures.shape == (5, 6, 3, 48, 48)
    assert len(clips) == len(clip_texts(clips)) == 5


def test_sentences_name_the_object_and_the_action():
    clips = draw_clips(500)
    texts = clip_texts(clips)
    for text, class_id, action in zip(texts, clips.class_id, clips.action):
        assert CLASSES[class_id] in text
        assert text.endswith((NAMES[action], *ACTIONS[NAMES[action]]))
    assert texts != clip_texts(clips, epoch=1)


def test_splits_concern_the_object():
    clips = draw_clips(500, split="train", holdout="H1")
    assert not np.isin(clips.class_id, held_out_classes("H1")).any()


def test_unknown_actions_and_single_frames_are_refused():
    with pytest.raises(ValueError, match="dances"):
        draw_clips(2, actions=("dances",))
    with pytest.raises(ValueError, match="at least 2"):
        draw_clips(2, num_frames=1)
