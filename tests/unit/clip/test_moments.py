"""Runs are those of the frames that a video shows by its own clock; spans are what hits fill together."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from searching import Colours, plain
from videos import NTSC, full_decode, write_video

from openvocab.clip.moments import merge, tile_boxes, video_rows
from openvocab.data.video import open_video

RED_S = (3.3, 6.6)


def shown(colour_of, rate=NTSC):
    """What to write: the colour of each frame by the time that it is shown at."""
    return lambda number: plain(colour_of(float(number / rate)), 48, 64)


def red_for_a_while(time_s):
    return "red" if RED_S[0] <= time_s < RED_S[1] else "blue"


@pytest.mark.parametrize("fps", [1.0, 2.0, 7.0])
@pytest.mark.parametrize("between", [0, 3])
def test_runs_at_29_97_frames_a_second(tmp_path, fps, between):
    path = write_video(tmp_path / "a.mp4", 300, show=shown(red_for_a_while), between=between)
    runs = list(video_rows(open_video(path), Colours(), fps))
    assert [run.tile for run in runs] == [0, 0, 0]
    assert runs[0].start_s == 0
    assert runs[-1].end_s == open_video(path).end_s
    for run, truth in zip(runs[1:], RED_S):
        assert truth - 1 / 29 <= run.start_s < truth + 1 / fps
    assert [run.end_s for run in runs[:-1]] == [run.start_s for run in runs[1:]]


def test_one_frame_a_second_is_looked_at_whatever_the_rate(tmp_path):
    """29.97 is no whole number: where frames are counted and divided by a rate, only the first of 1798 is looked at."""
    path = write_video(tmp_path / "minute.mp4", 1798, show=shown(lambda _: "green"))
    encoder = Colours()
    assert len(list(video_rows(open_video(path), encoder))) == 1
    assert encoder.calls == [32, 28]
    counted = [number for number in range(1798) if number % (float(NTSC) * 1.0) == 0]
    assert counted == [0]


def test_a_frame_that_is_shown_for_long_is_looked_at_once(tmp_path):
    times_ms = np.array([0, 5_100, 5_200, 12_000, 12_040])
    colours = ["red", "green", "red", "blue", "blue"]
    path = write_video(
        tmp_path / "slides.mkv", 5, times_ms=times_ms, show=lambda number: plain(colours[number], 48, 64)
    )
    encoder = Colours()
    runs = list(video_rows(open_video(path), encoder, fps=1.0))
    assert sum(encoder.calls) == 3  # nobody sees the green one, nor the last: neither is on at a whole second
    assert [run.start_s for run in runs] == [0, 12.0] or [run.start_s for run in runs] == [0, 5.2, 12.0]
    vectors = torch.stack([run.vector for run in runs])
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(runs)))


def test_equal_files_give_equal_bits_in_batches_of_one_size(tmp_path):
    path = write_video(tmp_path / "a.mp4", 90)
    first, second = Colours(), Colours()
    one, two = (list(video_rows(open_video(path), each, 10.0, batch_size=8)) for each in (first, second))
    assert first.calls == second.calls == [8, 8, 8, 7]
    assert all(torch.equal(a.vector, b.vector) for a, b in zip(one, two, strict=True))


def test_a_slow_change_ends_a_run_too(tmp_path):
    """A frame is compared with the first of its run; with the one before it nothing would ever have changed."""

    def fades(number):
        return (plain("red", 48, 64) * (1 - number / 120) + plain("blue", 48, 64) * (number / 120)).astype(np.uint8)

    path = write_video(tmp_path / "a.mp4", 120, rate=30, show=fades)
    video, encoder = open_video(path), Colours()
    runs = list(video_rows(video, encoder, 10.0))
    every = list(video_rows(video, encoder, 10.0, alike=1.1))
    assert len(every) == 40
    assert 4 <= len(runs) < 20
    assert all(a.vector @ b.vector > 0.97 for a, b in itertools.pairwise(every))


def test_tiles_see_what_is_small_and_have_runs_of_their_own(tmp_path):
    def corner(number):
        pixels = plain("blue", 48, 64)
        if 60 <= number < 90:
            pixels[:22, :22] = plain("red", 22)
        return pixels

    path = write_video(tmp_path / "a.mp4", 150, rate=30, show=corner)
    red, video = Colours().texts(["red"])[0], open_video(path)
    whole = list(video_rows(video, Colours(), 2.0))
    tiled = list(video_rows(video, Colours(), 2.0, levels=3))
    assert max(run.vector @ red for run in whole) < 0.3 < 0.5 < max(run.vector @ red for run in tiled)
    best = max(tiled, key=lambda run: float(run.vector @ red))
    assert (best.start_s, best.end_s) == (2.0, 3.0)
    left, top, right, bottom = tile_boxes(64, 48, 3)[best.tile]
    assert (left, top) == (0, 0)
    assert right == bottom == 24
    boxes = tile_boxes(64, 48, 3)
    changing = {run.tile for run in tiled if run.start_s > 0}
    assert len(tiled) == len(boxes) + 2 * len(changing)  # a tile that nothing happens in is one row
    assert 0 < len(changing) < len(boxes)


def test_decoding_stops_with_its_reader(tmp_path):
    path = write_video(tmp_path / "a.mp4", 300)
    encoder = Colours()
    runs = video_rows(open_video(path), encoder, 30.0, batch_size=4, alike=0.9999)
    next(runs)
    runs.close()
    assert len(encoder.calls) < 5


def test_no_more_is_decoded_than_the_file_holds(tmp_path):
    path = write_video(tmp_path / "a.mp4", 60)
    times = [run.start_s for run in video_rows(open_video(path), Colours(), 1000.0, alike=1.1)]
    assert times == [time for time, _ in full_decode(path)]


@given(st.integers(2, 400), st.integers(2, 400), st.integers(1, 4))
def test_tiles_lie_within_the_picture_and_cover_it(width, height, levels):
    boxes = tile_boxes(width, height, levels)
    assert boxes[0] == (0, 0, width, height)
    seen = np.zeros((height, width), int)
    for left, top, right, bottom in boxes[1:]:
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert right - left == bottom - top
        seen[top:bottom, left:right] += 1
    assert seen.min() >= levels - 1


def test_without_a_level_there_is_nothing_to_see():
    with pytest.raises(ValueError, match="0 levels of tiles, expected at least 1"):
        tile_boxes(9, 9, 0)


def test_nine_squares_of_half_the_side():
    assert tile_boxes(100, 100, 3)[-9:] == [(x, y, x + 50, y + 50) for y in (0, 25, 50) for x in (0, 25, 50)]


def test_spans_of_hits():
    hits = [(4.0, 5.0, 0.2), (1.0, 2.0, 0.9), (2.0, 3.0, 0.4), (8.0, 9.0, 0.95), (5.5, 6.0, 0.3)]
    assert merge(hits) == ((8.0, 9.0), (1.0, 3.0), (5.5, 6.0), (4.0, 5.0))
    assert merge(hits, gap_s=1.0) == ((8.0, 9.0), (1.0, 6.0))
    assert merge([]) == ()


@given(
    st.lists(st.tuples(st.floats(0, 50), st.floats(0.1, 9), st.floats(-1, 1)), min_size=1, max_size=20), st.floats(0, 3)
)
def test_spans_keep_apart_and_hold_every_hit(drawn, gap_s):
    hits = [(start, start + length, score) for start, length, score in drawn]
    spans = merge(hits, gap_s)
    assert all(sum(a <= start and end <= b for a, b in spans) == 1 for start, end, _ in hits)
    ordered = sorted(spans)
    assert all(b[0] > a[1] + gap_s for a, b in itertools.pairwise(ordered))
    best = max(hits, key=lambda hit: hit[2])
    assert any(spans[0][0] <= start and end <= spans[0][1] and score == best[2] for start, end, score in hits)
