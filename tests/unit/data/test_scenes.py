import torch
from made import tokenize

from openvocab.data.augment import RandomCrop
from openvocab.data.loader import Loader
from openvocab.data.scenes import open_scenes
from openvocab.world.scene import CLASSES, held_out_classes


def test_scenes_are_pairs_with_classes_and_several_captions():
    pairs = open_scenes(64)
    assert len(pairs) == 64
    assert pairs.pixels.shape == (64, 3, 32, 32)
    assert all(len(pairs.captions(index)) == 2 for index in range(64))
    labels = [pairs.label(index) for index in range(64)]
    assert None in labels
    assert not set(labels) & set(held_out_classes("H1").tolist())
    named = [
        (pairs.classnames[label], pairs.captions(index)) for index, label in enumerate(labels) if label is not None
    ]
    told = [name for name, captions in named if any(name in caption for caption in captions)]
    assert len(told) > len(named) / 2
    assert pairs.classnames == CLASSES


def test_scenes_are_reproducible_and_splits_differ():
    one, same = open_scenes(16), open_scenes(16)
    held = open_scenes(16, split="held_out")
    assert one.fingerprint == same.fingerprint != held.fingerprint
    assert (one.pixels == same.pixels).all()
    assert one.captions(3) == same.captions(3)
    assert {held.label(index) for index in range(16)} - {None} <= set(held_out_classes("H1").tolist())


def test_scenes_stream_through_the_loader():
    crop = RandomCrop(size_px=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

    def words(texts, *, truncate=False):
        return tokenize([" ".join(text.split()[:6]) for text in texts])

    loader = Loader(open_scenes(32), crop, words, batch_size=16)
    batches = list(loader.stream(0, 3))
    assert batches[0]["images"].shape == (16, 3, 32, 32)
    assert torch.equal(batches[2]["images"], loader.batch(2)["images"])
