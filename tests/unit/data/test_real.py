"""The readers on real files, where the folder of real material lies beside the checkout."""

from pathlib import Path

import pytest

from openvocab.data.augment import square
from openvocab.data.pairs import open_pairs

DATA = Path(__file__).resolve().parents[3].parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="no folder of real material beside the checkout")


@pytest.mark.parametrize(
    ("source", "num_samples", "key", "caption", "num_captions"),
    [
        ("emoji/google.tar", 1911, "0023-fe0f-20e3", "hash key", 1),
        ("captions/test.tar", 200, "1009434119_febe49276a", "A black and white dog", 5),
        ("photos/photos.tar", 1000, "n01440764", "tench", 1),
        ("cifar10/test.parquet", 2000, "test-0", "a photo of a", 5),
    ],
)
def test_real_sources_open_whole(source, num_samples, key, caption, num_captions):
    pairs = open_pairs(DATA / source)
    assert len(pairs) == num_samples
    assert not pairs.excluded
    sample = pairs[0]
    assert sample.key == key
    assert sample.captions[0].startswith(caption)
    assert len(sample.captions) == num_captions


def test_real_labels_have_their_names():
    pairs = open_pairs(DATA / "cifar10" / "test.parquet")
    labels = [pairs.label(index) for index in range(len(pairs))]
    assert pairs.classnames[3] == "cat"
    assert all(labels.count(label) == 200 for label in range(10))
    assert pairs.captions(labels.index(3))[0] == "a photo of a cat."


def test_real_emoji_keep_their_transparency():
    pairs = open_pairs(DATA / "emoji" / "twitter.tar")
    for index in range(0, len(pairs), 200):
        opacity = square(pairs.image(index), 32, alpha=True)[3]
        assert int(opacity.max()) == 255
        assert int(opacity.min()) < 32


def test_real_pictures_without_captions_say_what_is_missing():
    with pytest.raises(ValueError, match="30 pictures without captions; expected NAME"):
        open_pairs(DATA / "coco" / "images")
    with pytest.raises(ValueError, match=r"no picture column among .* it has key, name, keywords"):
        open_pairs(DATA / "emoji" / "names.jsonl")
