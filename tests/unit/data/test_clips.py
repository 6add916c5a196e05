"""Clip lists, and generated clips as a source."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from videos import write_video

from openvocab.data.clips import ClipsConfig, Sampling, View, open_clips, video_files
from openvocab.world.motion import ACTIONS, render_clips
from openvocab.world.scene import held_out_classes

SMALL = ClipsConfig(num_clips=12, captions_per_clip=3)


@pytest.fixture
def clip_list(tmp_path):
    write_video(tmp_path / "a.mp4", 90, rate=30)
    write_video(tmp_path / "b.mp4", 60, rate=30)
    rows = [
        ("path", "start_s", "end_s", "caption", "label"),
        ("a.mp4", "0", "1", "a bar grows", "growing"),
        ("b.mp4", "", "", "a line falls", ""),
        ("a.mp4", "0", "1", "a bar gets wider", "growing"),
        ("a.mp4", "1", "3", "it goes on", ""),
        ("a.mp4", "0", "1", "a bar grows", "growing"),
    ]
    with (tmp_path / "clips.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return tmp_path / "clips.csv"


def test_rows_of_one_part_are_one_clip(clip_list):
    clips = open_clips(ClipsConfig(source=str(clip_list)))
    assert [clips.key(index) for index in range(len(clips))] == ["a.mp4#t=0,1", "b.mp4", "a.mp4#t=1,3"]
    assert clips.captions(0) == ("a bar grows", "a bar gets wider")
    assert [clips.label(index) for index in range(3)] == ["growing", None, None]


def test_a_clip_is_read_between_its_ends(clip_list):
    clips = open_clips(ClipsConfig(source=str(clip_list)))
    whole = open_clips(ClipsConfig(source=str(clip_list))).read(2, Sampling(fps=5.0))
    assert [len(clips.read(index, Sampling(fps=5.0))) for index in range(3)] == [5, 10, 10]
    assert [len(clips.read(index, Sampling())) for index in range(3)] == [1, 2, 2]
    first = clips.read(2, Sampling(fps=5.0, most=3, pick="head"))
    assert [np.array_equal(a, b) for a, b in zip(first, whole)] == [True] * 3


def test_lists_of_json_lines_hold_several_captions_a_row(tmp_path):
    write_video(tmp_path / "a.mp4", 5)
    row = {"path": "a.mp4", "end_s": 0.1, "caption": ["one", "two"]}
    (tmp_path / "clips.jsonl").write_text(json.dumps(row) + "\n")
    clips = open_clips(ClipsConfig(source=str(tmp_path / "clips.jsonl")))
    assert clips.captions(0) == ("one", "two")
    assert clips.key(0) == "a.mp4#t=,0.1"


@pytest.mark.parametrize(("pick", "rows"), [("head", [0, 1, 2, 3]), ("tail", [6, 7, 8, 9]), ("uniform", [0, 3, 6, 9])])
def test_frames_are_picked(pick, rows):
    sampling = Sampling(most=4, pick=pick)
    assert sampling.rows(10).tolist() == rows
    assert sampling.rows(3).tolist() == [0, 1, 2]
    assert Sampling(most=1, pick=pick).rows(1).tolist() == [0]


def test_segments_show_their_middle_or_where_chance_says():
    """The middle as ActionCLIP's validation takes it, for any number of frames; offsets reach all of a segment."""
    for count in (4, 5, 7, 10, 31, 300):
        sampling = Sampling(most=4, pick="segments")
        offset = (count / 4 - 1) / 2
        assert sampling.rows(count).tolist() == [int(i * count / 4 + offset) for i in range(4)]
        starts, ends = (sampling.rows(count, np.full(4, at)) for at in (0.0, 0.999))
        assert starts[0] == 0
        assert ends[-1] == count - 1
        assert (ends[:-1] <= starts[1:]).all()
    assert Sampling(most=4, pick="segments").rows(3, np.full(4, 0.9)).tolist() == [0, 1, 2]


def test_a_view_is_a_square_at_another_moment(tmp_path):
    clips = video_files([write_video(tmp_path / "a.mp4", 40)])
    sampling = Sampling(fps=30.0, most=4, pick="segments")
    middle = np.asarray(clips.read(0, sampling)[1])
    left, right = (np.asarray(View(clips, 0.45, place).read(0, sampling)[1]) for place in (0.0, 1.0))
    assert np.array_equal(left, middle[:, :48])
    assert np.array_equal(right, middle[:, -48:])
    later = View(clips, 0.95, 0.0)
    assert not np.array_equal(np.asarray(later.read(0, sampling)[1]), left)
    assert later.fingerprint not in (clips.fingerprint, View(clips, 0.5, 0.0).fingerprint)
    assert (len(later), later.key(0), later.captions(0), later.label(0)) == (1, clips.key(0), (), None)


def test_objects_held_out_are_shown_by_the_test_alone():
    config = replace(SMALL, num_clips=80, holdout="H1")
    train, test = open_clips(config), open_clips(replace(config, source="scenes:80:3"))
    novel = set(held_out_classes("H1").tolist())
    assert not novel & set(train.clips.class_id.tolist())
    assert set(test.clips.class_id.tolist()) <= novel


def test_frames_come_in_the_order_asked_for():
    clips = open_clips(SMALL)
    normal, back, mixed = (
        [np.asarray(frame) for frame in clips.read(0, Sampling(order=order))]
        for order in ("normal", "reversed", "shuffled")
    )
    assert all(np.array_equal(a, b) for a, b in zip(normal, reversed(back), strict=True))
    again = [np.asarray(frame) for frame in clips.read(0, Sampling(order="shuffled"))]
    assert all(np.array_equal(a, b) for a, b in zip(mixed, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(mixed, normal))


def test_generated_clips_are_those_of_the_world():
    clips = open_clips(SMALL, seed=3)
    drawn = render_clips(clips.clips, 64)
    for index in (0, 7):
        frames = np.stack([np.asarray(frame) for frame in clips.read(index, Sampling())])
        assert np.array_equal(frames, drawn[index].transpose(0, 2, 3, 1))
        assert clips.label(index) in ACTIONS
        assert 1 <= len(clips.captions(index)) <= 3
    assert clips.fingerprint == open_clips(SMALL, seed=3).fingerprint != open_clips(SMALL, seed=4).fingerprint
    assert len(open_clips(ClipsConfig(source="scenes:7:1"))) == 7


def test_whole_videos(tmp_path):
    clips = video_files([write_video(tmp_path / "a.mp4", 5), tmp_path / "none.mp4"])
    assert len(clips.read(0, Sampling(fps=100.0, most=3))) == 3
    with pytest.raises(ValueError, match=r"none\.mp4: no such file"):
        clips.read(1, Sampling())


def test_lists_that_are_none_are_refused(tmp_path):
    def refused(name, content, match):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=match):
            open_clips(ClipsConfig(source=str(tmp_path / name)))

    refused("a.txt", "a.mp4", "not a clip list")
    refused("a.csv", "name,caption\na,b\n", "no column of videos")
    refused("b.csv", "path,start_s\na.mp4,soon\n", "line 2: start_s is 'soon'")
    refused("c.csv", "path,caption\n,x\n", "line 2: names no video")
    refused("d.csv", "path,caption\n", "the list is empty")
    with pytest.raises(FileNotFoundError, match="expected scenes or a clip list"):
        open_clips(ClipsConfig(source=str(tmp_path / "none.csv")))
    with pytest.raises(ValueError, match="more than 0"):
        Sampling(fps=0.0)
