import pytest
import torch
from made import tokenize

from openvocab.data.augment import RandomCrop
from openvocab.data.loader import Loader
from openvocab.data.scenes import open_scenes
from openvocab.data.source import text_id
from openvocab.world.scene import CLASSES, WorldConfig, held_out_classes


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


CROP = RandomCrop(size_px=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def words(texts, *, truncate=False):
    return tokenize([" ".join(text.split()[:6]) for text in texts])


@pytest.mark.parametrize("how", ["swap_colours", "swap_objects"])
def test_hard_negatives_come_first_and_name_nothing_held_out(how):
    pairs = open_scenes(64, world=WorldConfig(share_single=0.0), hard_negatives=how)
    assert len(pairs.hard_negatives) > 20
    unseen = [CLASSES[number] for number in held_out_classes("H1")]
    assert not any(name in text for text in pairs.hard_negatives.values() for name in unseen)
    for true, false in pairs.hard_negatives.items():
        assert true != false
        assert sorted(true.replace("an ", "a ").split()) == sorted(false.replace("an ", "a ").split())
    loader = Loader(pairs, CROP, words, batch_size=16, negatives=20)
    of_text = {text_id(true): text_id(false) for true, false in pairs.hard_negatives.items()}
    for step in range(4):
        batch = loader.batch(step)
        wanted = [of_text[number] for number in batch["text_ids"].tolist() if number in of_text]
        assert wanted
        assert batch["negative_ids"].tolist()[: len(wanted)] == wanted
        assert len(batch["negative_ids"]) == len(batch["negative_tokens"]) == 20


def test_scenes_stream_through_the_loader():
    loader = Loader(open_scenes(32), CROP, words, batch_size=16)
    batches = list(loader.stream(0, 3))
    assert batches[0]["images"].shape == (16, 3, 32, 32)
    assert torch.equal(batches[2]["images"], loader.batch(2)["images"])
