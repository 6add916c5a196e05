"""Frames and times are those of PyAV's full decode, however one gets to them."""

from pathlib import Path

import av
import numpy as np
import pytest
from videos import NTSC, full_decode, write_video

from openvocab.data import video as video_module
from openvocab.data.video import frame_at, open_video

REAL = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "video"
VARIABLE = np.cumsum(np.random.default_rng(1).integers(10, 200, 40))
OPEN_GROUPS = {"x264-params": "open-gop=1:bframes=3:keyint=10"}
FILES = {
    "constant.mp4": {},
    "constant.mkv": {},
    "pal.mp4": {"rate": 25},
    "variable.mp4": {"times_ms": VARIABLE},
    "variable.mkv": {"times_ms": VARIABLE},
    "open_groups.mp4": {"options": OPEN_GROUPS},
    "open_groups.ts": {"options": OPEN_GROUPS},
    "untimed_packets.avi": {"codec": "mpeg4"},
    "program_stream.mpg": {"codec": "mpeg2video", "rate": 25},
    "hidden_frames.webm": {"codec": "libvpx", "between": 0, "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return {name: write_video(folder / name, **options) for name, options in FILES.items()}


@pytest.mark.parametrize("name", FILES)
def test_every_frame_comes_at_its_time(files, name):
    expected, video = full_decode(files[name]), open_video(files[name])
    assert video.times_s.tolist() == [time for time, _ in expected]
    for frame, (time_s, pixels) in zip(video.frames(), expected, strict=True):
        assert frame.time_s == time_s
        assert np.array_equal(frame.pixels, pixels)


@pytest.mark.parametrize("name", FILES)
def test_seeking_finds_the_frames_of_a_full_decode(files, name):
    expected, video = full_decode(files[name]), open_video(files[name])
    starts, rng = np.array([time for time, _ in expected]), np.random.default_rng(0)
    for _ in range(12):
        times = np.sort(rng.uniform(starts[0] - 0.1, video.end_s + 0.1, rng.integers(1, 5)))
        for time_s, frame in zip(times, video.frames(times), strict=True):
            shown = max(0, int((starts <= time_s).sum()) - 1)
            assert frame.time_s == expected[shown][0]
            assert np.array_equal(frame.pixels, expected[shown][1])


@pytest.mark.parametrize("name", FILES)
def test_one_moment_needs_no_index(files, name):
    expected, video = full_decode(files[name]), open_video(files[name])
    for time_s in [-1.0, *np.random.default_rng(1).uniform(0, video.end_s, 4), expected[-1][0], video.end_s + 9]:
        frame = frame_at(files[name], time_s)
        shown = max(0, sum(time <= time_s + 1e-6 for time, _ in expected) - 1)
        assert frame.time_s == expected[shown][0]
        assert np.array_equal(frame.pixels, expected[shown][1])


def test_pictures_that_nothing_leans_on_are_passed_over(files, tmp_path, monkeypatch):
    """Of x264's usual groups about half are; those that are asked for are decoded as ever."""
    path = write_video(tmp_path / "groups.mp4", 60, between=3)
    video, decoded = open_video(path), []
    read = video_module._decoded
    monkeypatch.setattr(video_module, "_decoded", lambda *a: (decoded.append(f) or f for f in read(*a)))
    frames = list(video.frames(video.times_s[25:30:4]))
    expected = full_decode(path)
    assert [frame.time_s for frame in frames] == [expected[25][0], expected[29][0]]
    assert all(np.array_equal(frame.pixels, expected[row][1]) for frame, row in zip(frames, (25, 29)))
    assert len(decoded) < 10


def test_a_frame_begins_exactly_when_it_says(files):
    """29.97 frames a second: the time of frame k is k 1001 / 30000, as a float of that rational."""
    video = open_video(files["constant.mp4"])
    assert video.fps == pytest.approx(30000 / 1001, rel=1e-9)
    exact = [float(number / NTSC) for number in range(40)]
    assert [frame.time_s for frame in video.frames(exact)] == exact == video.times_s.tolist()
    before = [frame.time_s for frame in video.frames(np.array(exact[1:]) - 1e-4)]
    assert before == exact[:-1]


def test_rates_and_counts(files):
    video = open_video(files["constant.mp4"])
    np.testing.assert_allclose(video.at_rate(2.0), [0, 0.5, 1.0])
    np.testing.assert_allclose(video.at_rate(10.0, 0.2, 0.5), [0.2, 0.3, 0.4])
    assert len(video.at_rate(0.1)) == 1
    assert video.uniform(4).tolist() == video.times_s[[0, 13, 26, 39]].tolist()
    assert video.uniform(100).tolist() == video.times_s.tolist()
    part = video.uniform(100, 0.5, 1.0)
    assert part.tolist() == [time for time in video.times_s if 0.5 - 1 / 29 < time < 1.0]
    assert video.uniform(1, 0.5).tolist() == [part[0]]


def test_a_frame_that_is_asked_for_twice_comes_twice(files):
    frames = list(open_video(files["constant.mp4"]).frames([0.48, 0.48, 0.49]))
    assert frames[0].time_s == frames[1].time_s == frames[2].time_s
    assert np.array_equal(frames[0].pixels, frames[2].pixels)


@pytest.mark.parametrize("turn_deg", [0, 90, 180, 270])
def test_pictures_stand_upright(tmp_path, turn_deg):
    """The stored top is blue: turned a quarter counter-clockwise it is on the left."""
    video = open_video(write_video(tmp_path / "a.mp4", 3, turn_deg=turn_deg))
    frame = next(video.frames())
    assert frame.pixels.shape == (video.height_px, video.width_px, 3)
    assert (video.width_px, video.height_px) == ((64, 48) if turn_deg % 180 == 0 else (48, 64))
    blue = frame.pixels[:, :, 2].astype(int) - frame.pixels[:, :, 0] > 150
    edges = {0: blue[:4], 90: blue[:, :4], 180: blue[-4:], 270: blue[:, -4:]}
    assert edges[turn_deg].mean() > 0.8
    assert np.mean([edge.mean() for name, edge in edges.items() if name != turn_deg]) < 0.5


def test_one_frame(tmp_path):
    video = open_video(write_video(tmp_path / "one.mp4", 1))
    assert video.num_frames == len(video.uniform(12)) == len(video.at_rate(1.0)) == 1
    assert [frame.time_s for frame in video.frames([-3.0, 0.0, 50.0])] == [0.0, 0.0, 0.0]


def test_what_is_no_video_is_refused_in_one_line(tmp_path, files):
    whole = files["constant.mp4"].read_bytes()
    contents = {"empty.mp4": b"", "noise.mkv": bytes(range(256)) * 20, "cut.mp4": whole[: len(whole) // 2]}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: not a video that can be read") as refused:
            open_video(tmp_path / name)
        assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="not a video"):
        open_video(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none\.mp4: no such file"):
        open_video(tmp_path / "none.mp4")


def test_sound_alone_has_no_video_stream(tmp_path):
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(ValueError, match=r"a\.wav: has no video stream"):
        open_video(tmp_path / "a.wav")


def test_pictures_without_times_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no picture that has a time"):
        open_video(write_video(tmp_path / "bare.h264"))


def test_what_breaks_off_gives_what_it_has(tmp_path, files):
    whole = files["constant.mkv"].read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    video = open_video(tmp_path / "cut.mkv")
    assert 0 < video.num_frames < 40
    assert len(list(video.frames())) == video.num_frames


def test_questions_without_an_answer_are_refused(files):
    video = open_video(files["constant.mp4"])
    with pytest.raises(ValueError, match="ascending"):
        video.frames([1.0, 0.5])
    with pytest.raises(ValueError, match="5 s to 6 s is no part"):
        video.uniform(3, 5.0, 6.0)
    with pytest.raises(ValueError, match="0 frames"):
        video.uniform(0)
    with pytest.raises(ValueError, match="more than 0"):
        video.at_rate(0.0)


@pytest.mark.skipif(not REAL.is_dir(), reason="no folder of real material beside the checkout")
@pytest.mark.parametrize("name", ["thanks.mkv", "book.mkv"])
def test_real_clips(name):
    expected, video = full_decode(REAL / name), open_video(REAL / name)
    assert video.times_s.tolist() == [time for time, _ in expected]
    times = video.uniform(4)
    found = {frame.time_s: frame.pixels for frame in video.frames(times)}
    assert sorted(found) == times.tolist()
    for time_s, pixels in expected:
        assert time_s not in found or np.array_equal(found[time_s], pixels)
