import dataclasses

import numpy as np
import pytest
import torch
from made import noise
from PIL import Image

from openvocab.data.augment import RandomCrop, StrongAugment, square
from openvocab.data.order import keys_of

COLOURS = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
STILL = StrongAugment(
    size_px=16,
    rotate_deg=0.0,
    zoom=(1.0, 1.0),
    stretch=0.0,
    shift=0.0,
    elastic=0.0,
    brightness=0.0,
    contrast=0.0,
    saturation=0.0,
    hue_deg=0.0,
    any_background=0.0,
    **COLOURS,
)


def keys(num, epoch=0):
    return keys_of(0, epoch, 2, np.arange(num))


def pixels(num=3, channels=3, size=16):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (num, channels, size, size), dtype=np.uint8))


def test_square_is_the_centre_of_the_picture_resized_by_pillow():
    image = noise(0, (30, 20))
    expected = image.resize((12, 8), Image.Resampling.BICUBIC).crop((2, 0, 10, 8))
    found = square(image, 8).permute(1, 2, 0).int().numpy()
    assert np.abs(found - np.asarray(expected).astype(int)).max() <= 1
    assert square(image, 8, alpha=True).shape == (4, 8, 8)


def test_crop_of_the_paper_is_the_largest_square_at_a_random_place():
    image = Image.fromarray(np.tile(np.arange(40, dtype=np.uint8)[None, :, None], (10, 1, 3)))
    crop = RandomCrop(size_px=10, **COLOURS)
    starts = set()
    for seed in range(40):
        row = crop.picture(image, np.random.default_rng(seed))[0, 0].int()
        assert ((row[2:-2].diff() - 1).abs() <= 1).all()
        starts.add(int(row[0]))
    assert len(starts) > 15
    assert min(starts) >= 0
    assert max(starts) <= 30


def test_crop_of_open_clip_keeps_the_asked_share_of_the_area():
    ramp = np.tile(np.linspace(0, 255, 200).round().astype(np.uint8)[None, :, None], (200, 1, 3))
    crop = RandomCrop(size_px=32, scale=(0.25, 0.25), ratio=(1.0, 1.0), **COLOURS)
    for seed in range(10):
        row = crop.picture(Image.fromarray(ramp), np.random.default_rng(seed))[0, 5].float()
        assert float(row[-1] - row[0]) == pytest.approx(255 / 2, abs=8)
    long = Image.new("RGB", (400, 4))
    assert RandomCrop(size_px=8, scale=(0.9, 1.0), **COLOURS).picture(long, np.random.default_rng(0)).shape == (3, 8, 8)


def test_normalised_pixels_are_those_of_the_formula():
    crop = RandomCrop(size_px=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    given = pixels()
    mean, std = torch.tensor(crop.mean)[:, None, None], torch.tensor(crop.std)[:, None, None]
    torch.testing.assert_close(crop.batch(given, keys(3)), (given / 255 - mean) / std)


def test_pixels_in_memory_are_cropped_at_random_places():
    given = pixels(50, size=20)
    out = (RandomCrop(size_px=16, **COLOURS).batch(given, keys(50)) * 255).round().byte()
    places = set()
    for one, whole in zip(out, given):
        windows = whole.unfold(1, 16, 1).unfold(2, 16, 1)
        found = (windows == one[:, None, None]).all(-1).all(-1).all(0).nonzero()
        assert len(found) == 1
        places.add(tuple(found[0].tolist()))
    assert len(places) > 12


@pytest.mark.parametrize("channels", [3, 4])
def test_no_change_asked_is_no_change(channels):
    given = pixels(channels=channels)
    if channels == 4:
        given[:, 3] = 255
    torch.testing.assert_close(STILL.batch(given, keys(3)), given[:, :3] / 255, atol=2e-6, rtol=0)


def test_transparency_shows_white_or_any_colour():
    given = pixels(200, channels=4)
    given[:, 3] = 0
    assert torch.equal(STILL.batch(given, keys(200)), torch.ones(200, 3, 16, 16))
    coloured = dataclasses.replace(STILL, any_background=0.5).batch(given, keys(200))
    assert torch.equal(coloured.amin((2, 3)), coloured.amax((2, 3)))
    assert 0.35 < float((coloured[:, :, 0, 0] == 1).all(1).float().mean()) < 0.65


def test_colour_under_transparent_pixels_does_not_bleed():
    given = torch.zeros(20, 4, 16, 16, dtype=torch.uint8)
    given[:, :, 4:12, 4:12] = 255
    turned = dataclasses.replace(STILL, rotate_deg=30.0, zoom=(0.8, 1.2), elastic=0.05).batch(given, keys(20))
    torch.testing.assert_close(turned, torch.ones_like(turned), atol=1e-6, rtol=0)


def test_rotation_by_a_half_turn_is_exact():
    # tan(89.99 degrees / 2) is almost 1: sine 1, cosine 0, a quarter turn.
    given = pixels(40)
    quarter = dataclasses.replace(STILL, rotate_deg=90.0).batch(given, keys(40))
    assert not torch.allclose(quarter, given / 255, atol=0.1)
    mirrored = dataclasses.replace(STILL, flip=1.0).batch(given, keys(40))
    torch.testing.assert_close(mirrored, given.flip(-1) / 255, atol=2e-6, rtol=0)


def test_shift_moves_the_picture_by_at_most_its_share():
    given = torch.zeros(64, 3, 16, 16, dtype=torch.uint8)
    given[:, :, 8, 8] = 255
    moved = dataclasses.replace(STILL, shift=0.25).batch(given, keys(64))[:, 0]
    mass = moved.sum((1, 2))
    place = torch.arange(16.0)
    down, across = (moved.sum(2) * place).sum(1) / mass - 8, (moved.sum(1) * place).sum(1) / mass - 8
    assert float(torch.stack([down, across]).abs().max()) <= 4.01
    assert float(down.std()) > 1.5
    assert float(across.std()) > 1.5


def test_grey_has_no_hue_or_saturation_to_change():
    given = pixels(20)[:, :1].expand(-1, 3, -1, -1).contiguous()
    out = dataclasses.replace(STILL, hue_deg=60.0, saturation=0.9).batch(given, keys(20))
    torch.testing.assert_close(out, given / 255, atol=2e-6, rtol=0)


def test_hue_keeps_the_grey_level_and_saturation_keeps_the_luma():
    given = (pixels(30) // 4) + 96
    turned = dataclasses.replace(STILL, hue_deg=10.0).batch(given, keys(30))
    torch.testing.assert_close(turned.mean(1), given.float().mean(1) / 255, atol=1e-5, rtol=0)
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    faded = dataclasses.replace(STILL, saturation=0.5).batch(given, keys(30))
    torch.testing.assert_close((faded * luma).sum(1), (given / 255 * luma).sum(1), atol=1e-5, rtol=0)
    assert not torch.allclose(faded, given / 255, atol=0.01)


@pytest.mark.parametrize("change", [{"tone": 0.8}, {"blur": 1.0}, {"filter": 1.0}, {"posterize": 1.0}])
def test_style_changes_spare_what_is_of_one_tone_or_extreme(change):
    styled = dataclasses.replace(STILL, **change)
    assert not torch.allclose(styled.batch(pixels(20), keys(20)), pixels(20) / 255, atol=0.05)
    plain = torch.randint(0, 256, (20, 3, 1, 1), dtype=torch.uint8).expand(-1, -1, 16, 16).contiguous()
    out = styled.batch(plain, keys(20))
    torch.testing.assert_close(out, out[:, :, :1, :1].expand_as(out), atol=1e-6, rtol=0)  # no edge appears
    if "blur" in change:
        torch.testing.assert_close(out, plain / 255, atol=1e-6, rtol=0)
    if "tone" in change:
        black_and_white = torch.tensor([0, 255], dtype=torch.uint8).repeat(128).view(1, 1, 16, 16).expand(20, 3, -1, -1)
        torch.testing.assert_close(styled.batch(black_and_white, keys(20)), black_and_white / 255, atol=2e-6, rtol=0)
    if "posterize" in change:
        given = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(20, 3, -1, -1)
        assert max(len(picture.unique()) for picture in styled.batch(given, keys(20))) <= 9


def test_rows_depend_on_themselves_and_their_keys_alone():
    strong = StrongAugment(size_px=12, tone=0.5, blur=0.5, posterize=0.5, filter=0.5, **COLOURS)
    given = pixels(10, channels=4)
    whole = strong.batch(given, keys(10))
    assert torch.equal(strong.batch(given[3:7], keys(10)[3:7]), whole[3:7])
    assert not torch.equal(strong.batch(given, keys(10, epoch=1)), whole)
    assert 0 <= float(whole.min()) < float(whole.max()) <= 1
