import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made import noise
from PIL import Image

from openvocab.clip.dense import NONE, Segmentation
from openvocab.clip.preprocess import PreprocessConfig
from openvocab.clip.protocols import cut, measure_fold, read_fold, segment_at_scales, window_scores
from openvocab.data.annotated import Annotated, Annotation
from openvocab.metrics.segment import IGNORED

PIXELS = PreprocessConfig(image_size=12, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def channels(images):
    """A model whose scores are the pixels themselves: wherever its windows lie, they must say the same."""
    return images[:, :2]


def sums(images):
    """A model that looks around itself, and to the right more than to the left."""
    kernel = torch.tensor([[[[1.0, 2.0, 5.0]]]])
    return F.conv2d(images[:, :1], kernel, padding=(0, 1))


@pytest.mark.parametrize("size", [(12, 12), (13, 12), (40, 5), (7, 31), (1, 1)])
def test_windows_cover_every_pixel_once_on_average(size):
    picture = np.array(noise(0, size))
    found = window_scores(picture, channels, PIXELS)
    expected = 2 * (torch.from_numpy(picture).permute(2, 0, 1)[:2] / 255 - 0.5) / 0.5
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_mirrors_are_looked_at_mirrored():
    picture = np.array(noise(1, (12, 12)))
    found = window_scores(picture, sums, PIXELS)
    row = torch.from_numpy(picture[4, :, 0] / 255 - 0.5).float() / 0.5
    expected = 1 * (row[2:] + row[:-2]) + 2 * 2 * row[1:-1] + 5 * (row[:-2] + row[2:])
    torch.testing.assert_close(found[0, 4, 1:-1], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("extra", [0, 1])
def test_scores_of_all_scales_are_summed_at_the_pictures_size(extra):
    picture = Image.new("RGB", (30, 20), (10, 200, 0))
    labels = ("red", "green")[extra:]
    found = segment_at_scales(picture, labels, channels, PIXELS, scales=(0.5, 1.0), long_side_px=24)
    assert found.classes.shape == (20, 30)
    assert set(found.classes.unique().tolist()) == {1 - extra}
    assert found.scores.shape == (2 - extra,)
    red = segment_at_scales(Image.new("RGB", (30, 20), (200, 10, 0)), labels, channels, PIXELS, scales=(1.0,))
    assert set(red.classes.unique().tolist()) == {0 if not extra else NONE}


def test_a_cut_keeps_pixels_with_their_classes():
    levels = np.random.default_rng(0).integers(0, 4, (30, 20))
    image = Image.fromarray((levels * 60).astype(np.uint8)[..., None].repeat(3, 2))
    for seed in range(12):
        scale = (2 / 3, 5 / 3, 20 / 12)[seed % 3]
        rng = np.random.default_rng(seed)
        pixels, classes = cut(image.resize((20, 30), Image.Resampling.NEAREST), levels, rng, PIXELS, (scale, scale))
        assert pixels.shape == (3, 12, 12)
        assert classes.shape == (12, 12)
        if scale == 20 / 12:  # as it is: every pixel stays itself
            torch.testing.assert_close(((pixels[0] * 0.5 + 0.5) * 255 / 60).round().long(), classes)
        if scale < 1:
            outside = classes == IGNORED
            assert outside.any()
            assert (pixels[:, outside] == -1).all()


def test_a_cut_mirrors_half_of_the_time():
    ramp = np.arange(12)[None].repeat(12, 0)
    image = Image.fromarray(ramp.astype(np.uint8)[..., None].repeat(3, 2))
    cuts = [cut(image, ramp, np.random.default_rng(seed), PIXELS, (1.0, 1.0))[1] for seed in range(40)]
    mirrored = sum(torch.equal(found, torch.from_numpy(ramp[:, ::-1].copy())) for found in cuts)
    assert sum(torch.equal(found, torch.from_numpy(ramp)) for found in cuts) == 40 - mirrored
    assert 10 < mirrored < 30


class Few(Annotated):
    source, labels, fingerprint = "few", ("cat", "dog"), "few"

    def __init__(self):
        self.truth = {"a": [[1, 1], [0, IGNORED]], "b": [[2, 0], [0, 0]], "c": [[1, 2], [2, 2]]}

    def __len__(self):
        return len(self.truth)

    def key(self, index):
        return f"{list(self.truth)[index]}.jpg"

    def read(self, index):
        none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), None
        classes = np.array(list(self.truth.values())[index])
        return Annotation(Image.new("RGB", (2, 2), (index, 0, 0)), self.key(index), *none, classes)


def test_a_fold_is_measured_by_the_counts_of_each_class(tmp_path):
    data = Few()
    said = {(0, "cat"): [[0, NONE], [0, 0]], (2, "cat"): [[0, 0], [NONE, NONE]], (1, "dog"): [[0, NONE], [NONE, NONE]]}

    def segment(image, label):
        classes = torch.tensor(said[image.getpixel((0, 0))[0], label])
        return Segmentation((label,), classes, torch.ones(1))

    (tmp_path / "fold.txt").write_text("a__1\nc__1\nb__2\n")
    fold = read_fold(tmp_path / "fold.txt")
    assert fold == [("a", 0), ("c", 0), ("b", 1)]
    found = measure_fold(segment, data, fold, size_px=2)
    # cats: of a 1 right, 1 missed, 1 too many; of c 1 right, 1 too many. dogs: all right.
    assert found["miou"] == pytest.approx((2 / 5 + 1) / 2)
    assert found["fb_iou"] == pytest.approx((3 / 6 + 5 / 8) / 2)
    (tmp_path / "fold.txt").write_text("a__0\n")
    with pytest.raises(ValueError, match="line 1: 'a__0' is not imageid__class"):
        read_fold(tmp_path / "fold.txt")
    with pytest.raises(ValueError, match="asks for 'z', which is not there"):
        measure_fold(segment, data, [("z", 0)])
