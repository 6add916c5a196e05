import dataclasses

import numpy as np
import pytest

from openvocab.world.render import BACKGROUND_DEPTH_M, PALETTE_01, mask_boxes, outline_distance, render, truth
from openvocab.world.scene import SHAPES, STYLES, WORDS, WorldConfig, class_scenes, draw_scenes, rich_world

FLAT = WorldConfig(backgrounds=("plain",), colour_jitter=0.0)


def change(scenes, **fields):
    return dataclasses.replace(scenes, **fields)


@pytest.mark.parametrize("size_px", [32, 64])
def test_a_picture_depends_on_its_own_scene_alone(size_px):
    scenes = draw_scenes(300, rich_world(), seed=2)
    assert np.array_equal(render(scenes, size_px)[137:150], render(scenes[137:150], size_px))


@pytest.mark.parametrize("size_px", [32, 64])
def test_masks_are_the_pixels_that_change_by_more_than_half_when_an_object_is_taken_away(size_px):
    scenes = draw_scenes(200, WorldConfig(backgrounds=("plain",), share_single=0.5, max_objects=4))
    masks = truth(scenes, size_px).masks
    shown = render(scenes, size_px).astype(float)
    for slot in range(4):
        present = scenes.present.copy()
        present[:, slot] = False
        contrast = 255 * (PALETTE_01[scenes.colour[:, slot]] + scenes.tint[:, slot] - scenes.ground_01)
        change_px = shown - render(change(scenes, present=present), size_px)
        share = np.einsum("nchw,nc->nhw", change_px, contrast) / (contrast**2).sum(1)[:, None, None]
        sure = np.abs(share - 0.5) > 0.05  # colours beyond 255 are clipped
        assert ((share > 0.5) == masks[:, slot])[sure].all()


def test_an_object_that_lies_over_another_hides_it():
    scenes = draw_scenes(50, WorldConfig(share_single=0.0, max_objects=2))
    cx, cy = scenes.cx.copy(), scenes.cy.copy()
    cx[:, 0], cy[:, 0] = cx[:, 1] + 0.05, cy[:, 1]
    over = change(scenes, cx=cx, cy=cy)
    seen = truth(over).masks
    assert not (seen[:, 0] & seen[:, 1]).any()
    alone = truth(change(over, present=over.present & np.array([False, True]))).masks
    assert np.array_equal(seen[:, 1], alone[:, 1])


def test_words_hide_what_they_cover_and_can_be_read():
    scenes = class_scenes(np.zeros(20, int), FLAT)
    word = np.full(20, WORDS.index("triangle"))
    worded = change(scenes, word=word, word_y=np.full(20, 0.45, np.float32))
    ink = (render(worded) != render(scenes)).any(1)
    assert (truth(scenes).masks[:, 0] & ~ink == truth(worded).masks[:, 0]).all()
    rows = ink[0][np.nonzero(ink[0].any(1))[0]]
    assert rows.shape[0] == 5
    assert "".join(".#"[int(dot)] for dot in rows[0][:11]) == "###.##..###"


def test_words_on_tiny_pictures_are_refused():
    scenes = change(class_scenes(np.zeros(2, int), FLAT), word=np.zeros(2, int))
    with pytest.raises(ValueError, match="32 pixels"):
        render(scenes, 24)


def test_boxes_are_tight():
    scenes = draw_scenes(100, WorldConfig(share_single=0.3, max_objects=4))
    found = truth(scenes)
    for mask, box, present in zip(found.masks, found.boxes_xyxy_px, scenes.present):
        for one, (x1, y1, x2, y2), there in zip(mask, box.astype(int), present):
            assert one.any() == there
            assert one[y1:y2, x1:x2].sum() == one.sum()
            if there:
                assert one[y1].any()
                assert one[y2 - 1].any()
                assert one[:, x1].any()
                assert one[:, x2 - 1].any()
    assert (mask_boxes(np.zeros((1, 1, 8, 8), bool)) == 0).all()


def test_boxes_match_the_geometry_of_a_circle():
    scenes = class_scenes(np.zeros(50, int), FLAT)
    centre = np.stack([scenes.cx[:, 0], scenes.cy[:, 0]], 1) * 64
    reach = 0.92 * scenes.radius[:, :1] * 64
    exact = np.concatenate([centre - reach, centre + reach], 1)
    assert np.abs(truth(scenes, 64).boxes_xyxy_px[:, 0] - exact).max() <= 1


def test_depth_is_the_nearest_visible_surface():
    scenes = draw_scenes(20, WorldConfig(share_single=0.0))
    depth_m = np.tile(np.array([3.0, 2.0], np.float32), (20, 1))
    found = truth(change(scenes, depth_m=depth_m))
    assert (found.depth_m[found.masks[:, 0]] == 3).all()
    assert (found.depth_m[found.masks[:, 1]] == 2).all()
    assert (found.depth_m[~found.masks.any(1)] == BACKGROUND_DEPTH_M).all()


@pytest.mark.parametrize("name", SHAPES)
def test_no_shape_reaches_beyond_its_extent_and_edges_are_one_pixel_soft(name):
    line = np.linspace(-1.5, 1.5, 301, dtype=np.float32)
    v, u = np.meshgrid(line, line, indexing="ij")
    distance = outline_distance(name, u, v)
    assert np.hypot(u, v)[distance < 0].max() <= 1.1
    slope = np.hypot(*np.gradient(distance, line, line))
    assert 0.93 < np.median(slope[np.abs(distance) < 0.05]) < 1.07


def test_an_unknown_shape_is_refused():
    with pytest.raises(ValueError, match="blob"):
        outline_distance("blob", np.zeros(1, np.float32), np.zeros(1, np.float32))


def test_colours_keep_apart_from_each_other_and_from_every_background():
    distance = np.linalg.norm(PALETTE_01[:, None] - PALETTE_01[None], axis=-1) + np.eye(8)
    assert distance.min() > 0.35
    grounds = draw_scenes(2000).ground_01
    assert np.linalg.norm(PALETTE_01[:, None] - grounds[None], axis=-1).min() > 0.33


def test_a_shape_looks_unlike_every_other_at_every_rotation():
    scenes = class_scenes(np.tile(np.arange(8), 40), WorldConfig(sizes=("large",)))
    centred = change(scenes, cx=np.full_like(scenes.cx, 0.5), cy=np.full_like(scenes.cy, 0.5))
    masks = truth(change(centred, radius=np.full_like(scenes.radius, 0.3)), 64).masks[:, 0].reshape(40, 8, -1)
    overlap = np.einsum("ism,jtm->isjt", masks.astype(np.float32), masks.astype(np.float32))
    union = masks.sum(-1)[:, :, None, None] + masks.sum(-1) - overlap
    iou = (overlap / union).max((0, 2))
    assert (iou - np.eye(8)).max() < 0.88


def test_styles_change_the_whole_picture_as_they_say():
    scenes = class_scenes(np.arange(64), FLAT)
    clean = render(scenes).astype(int)
    style = {name: np.full(64, number) for number, name in enumerate(STYLES)}
    inverted = render(change(scenes, style=style["inverted"])).astype(int)
    assert np.abs(clean + inverted - 255).max() <= 1
    noise = render(change(scenes, style=style["noisy"])) - clean
    assert 15 < noise.std() < 30
    inside = truth(scenes).masks[:, 0]
    sketch = render(change(scenes, style=style["sketch"]))
    assert sketch.transpose(0, 2, 3, 1)[~inside].mean() < 60
    woven = render(change(scenes, style=style["textured"]))
    assert woven.std((2, 3)).min() > 3


def test_textures_darken_part_of_an_object_only():
    scenes = class_scenes(np.arange(64), FLAT)
    plain = render(scenes).astype(int)
    inside = truth(scenes).masks[:, 0]
    for number in (1, 2, 3):
        woven = render(change(scenes, texture=np.full_like(scenes.texture, number))).astype(int)
        darker = (woven < plain).any(1)
        assert not (darker & ~inside).sum() > 0.25 * darker.sum()
        assert 0.2 < (darker & inside).sum() / inside.sum() < 0.8
