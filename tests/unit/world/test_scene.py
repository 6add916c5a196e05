import dataclasses

import numpy as np
import pytest

from openvocab.world.scene import (
    CLASSES,
    COLOURS,
    SHAPES,
    STYLES,
    WorldConfig,
    class_scenes,
    draw_scenes,
    held_out_classes,
    join_scenes,
    rich_world,
    split_classes,
)


def same(a, b):
    return all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))


def test_a_range_of_the_stream_can_be_drawn_alone():
    config = rich_world()
    assert same(draw_scenes(100, config, seed=3, start=100), draw_scenes(300, config, seed=3)[100:200])


def test_every_scene_of_every_stream_has_a_key_of_its_own():
    key = [draw_scenes(1000).key, draw_scenes(1000, seed=1).key, class_scenes(np.zeros(1000, int)).key]
    assert len(np.unique(key)) == 3000
    assert np.max(key) < 2**47


def test_streams_of_different_seeds_differ():
    a, b = (draw_scenes(2000, seed=seed) for seed in (0, 1))
    assert abs((a.class_id[:, 0] == b.class_id[:, 0]).mean() - 1 / 64) < 0.01


@pytest.mark.parametrize(("holdout", "count"), [("H1", 16), ("H2", 16), ("H3", 8)])
def test_training_never_shows_a_held_out_class_and_the_held_out_split_shows_only_those(holdout, count):
    held = held_out_classes(holdout)
    assert len(held) == count
    config = WorldConfig(share_single=0.3, max_objects=4)
    train = draw_scenes(3000, config, split="train", holdout=holdout)
    test = draw_scenes(3000, config, split="held_out", holdout=holdout)
    assert not np.isin(train.class_id[train.present], held).any()
    assert set(test.class_id[test.present]) == set(held)
    assert set(train.class_id[train.present]) == set(range(64)) - set(held)


def test_h1_leaves_six_shapes_to_every_colour_and_six_colours_to_every_shape():
    held = held_out_classes("H1")
    assert np.bincount(held // 8).tolist() == [2] * 8
    assert np.bincount(held % 8).tolist() == [2] * 8


@pytest.mark.parametrize(("split", "holdout"), [("train", None), ("held_out", None), ("all", "H1")])
def test_a_split_without_its_holdout_is_refused(split, holdout):
    with pytest.raises(ValueError, match="holdout"):
        split_classes(split, holdout)


def test_class_scenes_show_one_object_of_the_given_class():
    wanted = np.tile(np.arange(64), 3)
    scenes = class_scenes(wanted, seed=5)
    assert (scenes.count == 1).all()
    assert (scenes.class_id[:, 0] == wanted).all()
    assert CLASSES[wanted[9]] == f"{COLOURS[1]} {SHAPES[1]}"


def test_objects_stay_inside_the_picture_and_do_not_touch():
    scenes = draw_scenes(3000, WorldConfig(share_single=0.5, max_objects=4))
    x, y, r = (np.where(scenes.present, a, np.nan) for a in (scenes.cx, scenes.cy, 1.1 * scenes.radius))
    assert np.nanmin([x - r, y - r, 1 - x - r, 1 - y - r]) > -1e-6
    gap = np.maximum(abs(x[:, :, None] - x[:, None]), abs(y[:, :, None] - y[:, None])) - r[:, :, None] - r[:, None]
    gap[:, range(4), range(4)] = np.nan
    assert np.nanmin(gap) > -1e-6


def test_shares_of_the_config_are_met():
    scenes = draw_scenes(20000, WorldConfig(share_single=0.7, max_objects=3, share_word=0.1))
    objects = scenes.count[scenes.count > 0]
    assert abs((objects == 1).mean() - 0.7) < 0.01
    assert abs((objects == 3).mean() - 0.15) < 0.01
    assert abs((scenes.word >= 0).mean() - 0.1) < 0.01
    assert abs((scenes.count[scenes.word >= 0] == 0).mean() - 0.5) < 0.05


def test_a_share_of_the_scenes_repeats_one_class():
    scenes = draw_scenes(5000, WorldConfig(share_single=0.0, share_same=0.5, max_objects=2))
    assert abs((scenes.class_id[:, 0] == scenes.class_id[:, 1]).mean() - (0.5 + 0.5 / 64)) < 0.03


def test_objects_of_textured_pictures_have_a_texture():
    scenes = draw_scenes(2000, WorldConfig(styles=STYLES))
    textured = scenes.style == STYLES.index("textured")
    assert textured.any()
    assert ((scenes.texture > 0).all(1) == textured).all()


def test_sizes_and_places_are_never_a_close_call():
    scenes = draw_scenes(5000, WorldConfig(share_single=0.5, max_objects=4))
    assert np.abs(scenes.radius - 0.18).min() > 0.0099
    for centre in (scenes.cx, scenes.cy):
        assert min(np.abs(centre - 1 / 3).min(), np.abs(centre - 2 / 3).min()) > 0.019


def test_joined_scenes_cut_apart_again():
    a, b = draw_scenes(5), draw_scenes(7, seed=1)
    joined = join_scenes([a, b])
    assert same(joined[:5], a)
    assert same(joined[np.arange(5, 12)], b)


@pytest.mark.parametrize(
    "wrong",
    [
        {"styles": ("clean", "baroque")},
        {"textures": ()},
        {"max_objects": 5},
        {"share_single": 1.5},
        {"max_objects": 1},
    ],
)
def test_impossible_configs_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong)) if len(wrong) == 1 and wrong != {"max_objects": 1} else "1"):
        WorldConfig(**wrong)
