import dataclasses

import numpy as np

from openvocab.world.room import FOCAL, WALLS_M, draw_rooms, empty_rooms_m, render_rooms, room_truth


def test_depth_is_the_floor_the_wall_or_the_nearest_object():
    rooms = draw_rooms(50)
    found = room_truth(rooms, 96)
    empty = empty_rooms_m(rooms, 96)
    seen = found.masks.any(1)
    assert (found.depth_m[~seen] == empty[~seen]).all()
    for slot in range(4):
        at = np.nonzero(found.masks[:, slot])
        assert (found.depth_m[at] == rooms.scenes.depth_m[at[0], slot]).all()


def test_the_floor_obeys_the_camera_and_every_room_has_its_own():
    rooms = draw_rooms(30)
    depth = empty_rooms_m(rooms, 100)[:, :, 0]
    y = (np.arange(100) + 0.5) / 100
    for row, (horizon, height, wall) in enumerate(zip(rooms.horizon, rooms.height_m, rooms.wall_m)):
        assert (depth[row, y < horizon] == wall).all()
        assert abs(depth[row, 99] - FOCAL * height / (0.995 - horizon)) < 1e-4
    assert (np.diff(depth, axis=1) <= 0).all()
    assert depth.std(0).min() > 0.1
    assert rooms.wall_m.min() > WALLS_M[0] - 1e-4
    assert rooms.wall_m.max() < WALLS_M[1] + 1e-4


def test_nearer_objects_are_drawn_over_farther_ones_and_are_larger_and_stand_on_the_floor():
    rooms = draw_rooms(500)
    scenes = rooms.scenes
    assert (np.diff(scenes.depth_m, axis=1) <= 0).all()
    assert (scenes.depth_m < rooms.wall_m[:, None]).all()
    foot = scenes.cy + 0.8 * scenes.radius
    assert np.allclose(foot, rooms.horizon[:, None] + FOCAL * rooms.height_m[:, None] / scenes.depth_m, atol=1e-5)
    body_m = scenes.radius * scenes.depth_m / FOCAL
    assert body_m.max() / body_m.min() < 1.25


def test_fog_pales_what_is_far_and_nothing_else_changes():
    clear, foggy = draw_rooms(40, fog=False), draw_rooms(40)
    assert np.array_equal(room_truth(clear).depth_m, room_truth(foggy).depth_m)
    far = room_truth(clear).depth_m > 6
    assert render_rooms(foggy).transpose(0, 2, 3, 1)[far].std() < render_rooms(clear).transpose(0, 2, 3, 1)[far].std()


def test_a_range_of_rooms_can_be_drawn_alone():
    part, whole = draw_rooms(10, start=20), draw_rooms(30)[20:]
    for field in dataclasses.fields(part.scenes):
        assert np.array_equal(getattr(part.scenes, field.name), getattr(whole.scenes, field.name))
    assert np.array_equal(part.wall_m, whole.wall_m)
    assert np.array_equal(render_rooms(part), render_rooms(whole))
