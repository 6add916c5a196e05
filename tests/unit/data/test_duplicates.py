import io

import numpy as np
import pytest
from made import encode, noise
from PIL import Image, ImageEnhance

from openvocab.data.duplicates import SIMILAR, Kept, print_of
from openvocab.data.scenes import open_scenes


def jpeg(image: Image.Image) -> Image.Image:
    return Image.open(io.BytesIO(encode(image, "JPEG", quality=60)))


def half(image: Image.Image) -> Image.Image:
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)


def dark(image: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(0.8)


@pytest.fixture(scope="module")
def scenes():
    pairs = open_scenes(300)
    return [pairs.image(index) for index in range(len(pairs))]


@pytest.mark.parametrize(("alter", "recall"), [(jpeg, 0.5), (half, 0.98), (dark, 0.98)])
def test_altered_scenes_are_found(scenes, alter, recall):
    """What a picture of 32 px keeps of itself; a photograph keeps more."""
    near = [float(print_of(alter(image)) @ print_of(image)) >= SIMILAR for image in scenes]
    assert np.mean(near) >= recall


def test_other_scenes_rarely_resemble_each_other(scenes):
    prints = np.stack([print_of(image) for image in scenes])
    assert np.triu(prints @ prints.T >= SIMILAR, 1).sum() <= 3


def test_bands_find_nearly_all_of_what_a_full_search_finds(scenes):
    prints = np.stack([print_of(image) for image in scenes])
    kept = Kept([(np.zeros((len(prints), 16), np.uint8), prints)])
    altered = np.stack([print_of(jpeg(image)) for image in scenes])
    full = (altered @ prints.T >= SIMILAR).any(1)
    banded = np.array([kept.resembles(picture) for picture in altered])
    assert not (banded & ~full).any()
    assert banded.sum() >= 0.95 * full.sum()


def test_a_flat_picture_resembles_nothing():
    black = print_of(Image.new("RGB", (20, 20)))
    assert not black.any()
    kept = Kept([(np.zeros((1, 16), np.uint8), black[None])])
    assert not kept.resembles(black)
    assert not kept.resembles(print_of(noise(1)))
