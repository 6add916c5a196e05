"""Moments of videos by a sentence: where they begin and end, where in the frame, and what a list of them measures."""

import numpy as np
import pytest
import torch
from searching import Colours, plain
from tiny import tiny_clip
from videos import NTSC, write_video

from openvocab import systems
from openvocab.clip.moments import tile_boxes
from openvocab.systems import frame_search
from openvocab.systems.frame_search import FrameSearch, FrameSearchConfig, Watched


class Seeing(FrameSearch):
    """Colours take the place of the model."""

    def __init__(self, monkeypatch, **config):
        super().__init__(FrameSearchConfig(**config), tiny_clip())
        monkeypatch.setattr(frame_search, "as_encoder", lambda _: Colours())


def written(path, spans, rate=NTSC, count=300):
    """A blue video with other colours between the seconds that are given."""

    def show(number):
        now = float(number / rate)
        return plain(next((colour for start, end, colour in spans if start <= now < end), "blue"), 48, 64)

    return write_video(path, count, show=show)


def test_moments_begin_and_end_where_they_are_shown_at_29_97(tmp_path, monkeypatch):
    model = Seeing(monkeypatch, fps=4.0)
    one = model.watch(written(tmp_path / "one.mp4", [(2.0, 4.0, "red"), (7.0, 8.5, "red")]))
    other = model.watch(written(tmp_path / "other.mp4", [(5.0, 6.0, "green")]))
    first, second = model.find([one, other], "red", k=2)
    assert {first.path, second.path} == {str(tmp_path / "one.mp4")}
    for moment, (start_s, end_s) in zip(sorted((first, second), key=lambda m: m.start_s), ((2.0, 4.0), (7.0, 8.5))):
        assert abs(moment.start_s - start_s) <= 0.25
        assert abs(moment.end_s - end_s) <= 0.25
        assert moment.box_xyxy_px == (0, 0, 64, 48)
    (green,) = model.find([one, other], "green", k=1)
    assert (green.path, round(green.start_s)) == (str(tmp_path / "other.mp4"), 5)
    assert model.find([one, other], "red", k=50)[0] == first


def test_the_best_tile_says_where(monkeypatch):
    model = Seeing(monkeypatch, levels=2)
    boxes = tuple(tile_boxes(64, 48, 2))
    embeds = torch.nn.functional.one_hot(torch.tensor([0, 1, 1]), 12).float()
    query = Colours().texts(["red"])[0]
    embeds[2] = query
    times = torch.tensor([0.0, 0.0, 0.0]), torch.tensor([3.0, 3.0, 3.0])
    (moment, *_) = model.find([Watched("a.mp4", embeds, *times, torch.tensor([0, 1, 2]), boxes)], "red")
    assert moment.box_xyxy_px == boxes[2]
    assert moment.score == pytest.approx(float(query @ query))


def test_a_list_of_moments_is_measured(tmp_path, monkeypatch):
    written(tmp_path / "one.mp4", [(2.0, 4.0, "red")])
    written(tmp_path / "two.mp4", [(5.0, 7.0, "red"), (8.0, 9.5, "green")])
    rows = ["path,start_s,end_s,caption", "one.mp4,2,4,red", "two.mp4,5,7,red", "two.mp4,8,9.5,green"]
    (tmp_path / "right.csv").write_text("\n".join(rows))
    model = Seeing(monkeypatch, fps=4.0)
    found = frame_search.evaluate(model, frame_search.open_moments(str(tmp_path / "right.csv")))
    right = {"r@1_iou_0.5": 1.0, "begins": 1.0, "all_begins": 1.0}
    assert found == right | {"texts": 3.0, "videos": 2.0}
    (tmp_path / "wrong.csv").write_text("\n".join([rows[0], "one.mp4,5,7,red", "two.mp4,8,9.5,green"]))
    found = frame_search.evaluate(model, frame_search.open_moments(str(tmp_path / "wrong.csv")))
    assert found == {"r@1_iou_0.5": 0.5, "begins": 0.5, "all_begins": 0.5, "texts": 2.0, "videos": 2.0}


def test_any_clip_can_be_asked(tmp_path):
    path = write_video(tmp_path / "a.mp4", 30)
    model = systems.get("frame_search").build("paper", tiny_clip())
    moments = model.find([model.watch(path)], "a cat")
    assert moments
    assert all(np.isfinite(moment.score) and moment.start_s < moment.end_s for moment in moments)


def test_what_cannot_be_asked_is_one_line(tmp_path):
    model = systems.get("frame_search").build("tiny")
    with pytest.raises(ValueError, match="no videos to search"):
        model.find([], "a cat")
    with pytest.raises(FileNotFoundError, match=r"no such clip list; expected a table with path, start_s, end_s"):
        frame_search.open_moments(str(tmp_path / "none.csv"))
    (tmp_path / "a.csv").write_text("path,caption\na.mp4,a cat\n")
    with pytest.raises(ValueError, match=r"a\.mp4 lacks start_s, end_s or a caption"):
        frame_search.open_moments(str(tmp_path / "a.csv"))
