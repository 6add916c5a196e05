import dataclasses

import numpy as np

from openvocab.world.room import (
    CAMERA_HEIGHT_M,
    FOCAL,
    HORIZON,
    WALL_M,
    draw_rooms,
    empty_room_m,
    render_rooms,
    room_truth,
)


def test_depth_is_the_floor_the_wall_or_the_nearest_object():
    rooms = draw_rooms(50)
    found = room_truth(rooms, 96)
    empty = empty_room_m(96)
    seen = found.masks.any(1)
    assert (found.depth_m[~seen] == np.broadcast_to(empty, seen.shape)[~seen]).all()
    for slot in range(4):
        at = np.nonzero(found.masks[:, slot])
        assert (found.depth_m[at] == rooms.scenes.depth_m[at[0], slot]).all()


def test_the_floor_obeys_the_camera():
    depth = empty_room_m(100)[:, 0]
    y = (np.arange(100) + 0.5) / 100
    assert (depth[y < HORIZON] == WALL_M).all()
    assert abs(depth[99] - FOCAL * CAMERA_HEIGHT_M / (0.995 - HORIZON)) < 1e-4
    assert (np.diff(depth) <= 0).all()


def test_nearer_objects_are_drawn_over_farther_ones_and_are_larger_and_lower():
    scenes = draw_rooms(500).scenes
    assert (np.diff(scenes.depth_m, axis=1) <= 0).all()
    foot = scenes.cy + 0.8 * scenes.radius
    assert np.allclose(foot, HORIZON + FOCAL * CAMERA_HEIGHT_M / scenes.depth_m, atol=1e-5)
    body_m = scenes.radius * scenes.depth_m / FOCAL
    assert body_m.max() / body_m.min() < 1.25


def test_fog_pales_what_is_far_and_nothing_else_changes():
    clear, foggy = draw_rooms(40, fog=False), draw_rooms(40)
    assert np.array_equal(room_truth(clear).depth_m, room_truth(foggy).depth_m)
    far = room_truth(clear).depth_m > 6
    assert render_rooms(foggy).transpose(0, 2, 3, 1)[far].std() < render_rooms(clear).transpose(0, 2, 3, 1)[far].std()


def test_a_range_of_rooms_can_be_drawn_alone():
    part, whole = draw_rooms(10, start=20).scenes, draw_rooms(30).scenes[20:]
    for field in dataclasses.fields(part):
        assert np.array_equal(getattr(part, field.name), getattr(whole, field.name))
