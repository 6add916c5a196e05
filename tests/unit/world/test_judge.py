import dataclasses

import numpy as np
import pytest

from openvocab.world.caption import CaptionConfig, captions
from openvocab.world.judge import _components, judge, verdict
from openvocab.world.render import render
from openvocab.world.scene import BACKGROUNDS, WorldConfig, draw_scenes

SINGLE = WorldConfig(share_single=1.0, backgrounds=("plain",))
CROWD = WorldConfig(share_single=0.0, max_objects=4, backgrounds=("plain",))


@pytest.mark.parametrize(("config", "size_px"), [(SINGLE, 32), (SINGLE, 64), (CROWD, 32)])
def test_clean_pictures_are_read_right(config, size_px):
    scenes = draw_scenes(80, config, seed=11)
    result = verdict(judge(render(scenes, size_px)), scenes)
    assert result.valid.mean() >= 0.99
    assert result.joint.mean() >= 0.99


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_any_background_will_do(background):
    scenes = draw_scenes(60, WorldConfig(backgrounds=(background,)), seed=12)
    assert verdict(judge(render(scenes)), scenes).joint.mean() >= 0.99


def test_poses_are_measured_to_a_fraction_of_a_pixel():
    scenes = draw_scenes(100, SINGLE, seed=13)
    found = [objects[0] for objects in judge(render(scenes))]
    for name in ("cx", "cy", "radius"):
        error_px = 32 * np.abs(np.array([getattr(thing, name) for thing in found]) - getattr(scenes, name)[:, 0])
        assert np.quantile(error_px, 0.95) < 0.4


def test_other_peoples_captions_are_right_by_chance_only():
    scenes = draw_scenes(200, SINGLE, seed=14)
    result = verdict(judge(render(scenes)), scenes[np.random.default_rng(0).permutation(200)])
    for share, chance in ((result.colour, 1 / 8), (result.shape, 1 / 8), (result.joint, 1 / 64)):
        assert share.mean() < chance + 3 * np.sqrt(chance / 200)


def test_only_what_is_said_is_asked_for():
    scenes = draw_scenes(100, SINGLE, seed=15)
    plain = CaptionConfig(**{field.name: 0.0 for field in dataclasses.fields(CaptionConfig)})
    found = judge(render(dataclasses.replace(scenes, shape=(scenes.shape + 1) % 8)))
    said = verdict(found, scenes, captions(scenes, config=plain))
    assert said.colour.all()
    assert said.place.all()
    assert not said.shape.any()
    assert not said.joint.any()


def test_a_wrong_relation_is_seen():
    scenes = draw_scenes(60, dataclasses.replace(CROWD, max_objects=2), seed=16)
    said = captions(scenes, config=CaptionConfig(relation=1.0, count=0.0, drop=0.0))
    assert verdict(judge(render(scenes)), scenes, said).joint.all()
    mirrored = dataclasses.replace(scenes, cx=1 - scenes.cx, cy=1 - scenes.cy)
    wrong = verdict(judge(render(mirrored)), scenes, said).relation
    beside = [any(c.text[s.start : s.end] in ("next to", "beside", "near") for s in c.spans) for c in said]
    classes = scenes.class_id
    asked = np.array([any(s.attribute == "relation" for s in c.spans) for c in said]) & ~np.array(beside)
    assert wrong[asked & (classes[:, 0] != classes[:, 1])].mean() < 0.02


def test_missing_and_surplus_objects_make_a_picture_invalid():
    scenes = draw_scenes(60, dataclasses.replace(CROWD, max_objects=2), seed=17)
    fewer = dataclasses.replace(scenes, present=scenes.present & np.array([True, False]))
    assert not verdict(judge(render(fewer)), scenes).joint.any()
    assert not verdict(judge(render(scenes)), fewer).joint.any()
    assert judge(np.full((1, 3, 32, 32), 120, np.uint8)) == [[]]


def test_noise_shows_no_valid_scene():
    pictures = np.random.default_rng(0).integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
    assert not verdict(judge(pictures), draw_scenes(20, SINGLE)).valid.any()


def test_components_equal_a_flood_fill():
    colour = np.random.default_rng(0).integers(-1, 2, (3, 24, 24))
    part = _components(colour)
    assert ((part > 0) == (colour >= 0)).all()
    for scene in range(3):
        left = {(y, x) for y, x in zip(*np.nonzero(colour[scene] >= 0))}
        while left:
            patch, todo = set(), [left.pop()]
            while todo:
                y, x = todo.pop()
                patch.add((y, x))
                near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
                near = {at for at in near if colour[scene][at] == colour[scene][y, x]}
                left -= near
                todo += near
            names = {part[scene][at] for at in patch}
            assert len(names) == 1
            assert (part == names.pop()).sum() == len(patch)
