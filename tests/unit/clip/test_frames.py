"""Features of frames: computed once, kept, resumed; batches of clips with their captions."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from openvocab import storage
from openvocab.clip.frames import clip_batches, filled, frame_features, look_at, look_up
from openvocab.clip.preprocess import PreprocessConfig
from openvocab.data.clips import ClipsConfig, ClipSource, Sampling

PIXELS = PreprocessConfig(image_size=8)
CONFIG = ClipsConfig(batch_size=4)


class Numbered(ClipSource):
    """Clip i has 1 + i % 3 grey frames; some cannot be read, some have no caption."""

    source, fingerprint = "numbered", "numbered"

    def __init__(self, count, broken=(), silent=()):
        self.count, self.broken, self.silent, self.read_rows = count, broken, silent, []

    def __len__(self):
        return self.count

    def key(self, index):
        return f"clip {index}"

    def captions(self, index):
        return () if index in self.silent else (f"number {index}", "a number")

    def label(self, index):
        return None

    def read(self, index, sampling, offsets=None):
        self.read_rows.append(index)
        if index in self.broken:
            raise ValueError(f"clip {index}: broken")
        return [Image.new("RGB", (8, 8), (index, 10 * frame, 0)) for frame in range(1 + index % 3)]


def encode(images, shown=None):
    """Of a frame its mean colour; of each batch its rows alone."""
    return images.mean((3, 4))


def tokenize(texts, *, truncate=False):
    return torch.tensor([[1, 2 + len(text), 0, 0] for text in texts])


def test_features_stand_at_their_clips():
    clips = Numbered(40, broken=(1, 33))
    found = frame_features(encode, clips, Sampling(), PIXELS)
    assert found.rows == tuple(i for i in range(40) if i not in (1, 33))
    assert found.failures == {"clip 1": "clip 1: broken", "clip 33": "clip 33: broken"}
    assert found.shown.sum(1).tolist() == [1 + row % 3 for row in found.rows]
    for row in (0, 20, 37):
        index = found.rows[row]
        frames = look_at(clips, Sampling(most=3), PIXELS)(index)
        torch.testing.assert_close(found.features[row], encode(frames["images"][None])[0])
        assert torch.equal(found.shown[row], frames["shown"])


def test_what_is_kept_is_not_read_again():
    clips = Numbered(20)
    first = frame_features(encode, clips, Sampling(), PIXELS, "tower")
    clips.read_rows.clear()
    again = frame_features(encode, clips, Sampling(), PIXELS, "tower")
    assert not clips.read_rows
    assert torch.equal(first.features, again.features)
    for other in ({"kept_as": "other tower"}, {"sampling": Sampling(order="reversed")}):
        about = {"sampling": Sampling(), "kept_as": "tower"} | other
        frame_features(encode, clips, pixels=PIXELS, **about)
        assert len(clips.read_rows) == 20
        clips.read_rows.clear()


def test_a_run_that_ended_early_goes_on(monkeypatch):
    clips, calls = Numbered(40), []

    def dying(images, shown):
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(images)

    with pytest.raises(KeyboardInterrupt):
        frame_features(dying, clips, Sampling(), PIXELS, "tower")
    clips.read_rows.clear()
    found = frame_features(encode, clips, Sampling(), PIXELS, "tower")
    assert sorted(clips.read_rows) == list(range(32, 40))
    assert torch.equal(found.features, frame_features(encode, clips, Sampling(), PIXELS).features)
    assert len(list(storage.cache_folder("frames").iterdir())) == 1


def test_a_part_in_which_nothing_can_be_read_is_passed_over():
    for kept in (None, "tower"):
        found = frame_features(encode, Numbered(20, broken=range(16)), Sampling(), PIXELS, kept)
        assert found.rows == (16, 17, 18, 19)
        with pytest.raises(ValueError, match="none of 20"):
            frame_features(encode, Numbered(20, broken=range(20)), Sampling(), PIXELS, kept and "other")


def test_batches_say_one_caption_of_each_clip():
    clips = Numbered(12)
    batches = clip_batches(look_at(clips, Sampling(most=4), PIXELS), clips, tokenize, CONFIG, seed=1)
    said = set()
    for step in range(9):
        batch = batches.batch(step)
        assert batch["images"].shape == (4, 4, 3, 8, 8)
        assert batch["tokens"].shape == (4, 2)
        assert len(batch["image_ids"].unique()) == 4
        said |= set(batch["text_ids"].tolist())
    assert len(said) > 8
    again = clip_batches(look_at(clips, Sampling(most=4), PIXELS), clips, tokenize, CONFIG, seed=1).batch(5)
    assert all(torch.equal(again[name], value) for name, value in batches.batch(5).items())


def test_unreadable_and_silent_clips_are_replaced_and_counted():
    clips = Numbered(40, broken=(3,), silent=(7,))
    found = frame_features(encode, clips, Sampling(), PIXELS)
    config = replace(CONFIG, batch_size=8)
    batches = clip_batches(look_up(found, clips), clips, tokenize, config, seed=0)
    kept = look_up(found, clips)
    for step in range(batches.steps_per_epoch):
        batch = batches.batch(step)
        assert batch["features"].shape == (8, 3, 3)
        assert batch["shown"].any(1).all()
    assert batches.report()["broken"] == 2
    with pytest.raises(ValueError, match="clip 3: broken"):
        kept(3)


def test_filling():
    frames, shown = filled(torch.ones(2, 3), 5)
    assert frames.sum(1).tolist() == [3, 3, 0, 0, 0]
    assert shown.tolist() == [True, True, False, False, False]
