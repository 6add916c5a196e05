import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openvocab.clip import preprocess as module
from openvocab.clip.preprocess import (
    PreprocessConfig,
    fit,
    from_hf,
    from_open_clip,
    normalize,
    preprocess,
    preprocess_bytes,
    to_hf,
    to_open_clip,
    to_pixels,
)
from openvocab.data.decode import decode, to_rgb

REAL = Path(__file__).parents[4] / "shared" / "data"


def picture(width=96, height=64, mode="RGB", seed=0):
    """Smooth colours with some noise, so that jpeg keeps them and resizing has something to do."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(seed).integers(0, 60, (height, width, 3))
    waves = np.stack([np.sin(x / 5), np.cos(y / 7), np.sin((x + y) / 9)], -1) * 90 + 100
    return Image.fromarray((waves + noise).clip(0, 255).astype(np.uint8)).convert(mode)


def encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def reference(content, config, exif=True):
    return to_pixels(to_rgb(decode(content, exif=exif)), config).float()


def levels_apart(content, config):
    return (preprocess_bytes(content, config).float() - reference(content, config)).abs().max()


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(96, 64), (64, 97), (20, 30), (32, 32), (33, 200), (200, 33)])
def test_fast_path_is_within_one_level_of_the_reference(size, interpolation, mode):
    config = PreprocessConfig(image_size=32, resize_mode=mode, interpolation=interpolation)
    assert levels_apart(encoded(picture(*size), quality=95), config) <= 1


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data")
def test_fast_path_is_within_one_level_on_real_photographs():
    with tarfile.open(REAL / "photos" / "photos.tar") as archive:
        members = [member for member in archive if member.name.endswith(".jpg")][:60]
        contents = [archive.extractfile(member).read() for member in members]
    contents += [path.read_bytes() for path in sorted((REAL / "coco" / "images").glob("*.jpg"))[:10]]
    assert max(levels_apart(content, PreprocessConfig()) for content in contents) <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_files_unless_told_not_to(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(picture(), exif=exif, quality=95)
    config = PreprocessConfig(image_size=32)
    assert levels_apart(content, config) <= 1
    untouched = preprocess_bytes(content, config, exif=False)
    assert torch.equal(untouched, preprocess_bytes(encoded(picture(), quality=95), config))


def test_reference_ignores_exif():
    exif = Image.Exif()
    exif[0x0112] = 6
    with_exif = Image.open(io.BytesIO(encoded(picture(), exif=exif)))
    assert torch.equal(
        preprocess(with_exif, PreprocessConfig()),
        preprocess(Image.open(io.BytesIO(encoded(picture()))), PreprocessConfig()),
    )


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_every_kind_of_jpeg_gives_the_pixels_of_pillow(mode):
    assert levels_apart(encoded(picture(mode=mode), quality=95), PreprocessConfig(image_size=32)) <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "RGB"])
def test_other_files_become_rgb_as_decode_says(mode):
    image = picture(mode=mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    content = encoded(image, "PNG")
    config = PreprocessConfig(image_size=32)
    assert levels_apart(content, config) <= 1


def test_files_without_the_fast_extra_give_the_same_pixels(monkeypatch, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(picture()))
    config = PreprocessConfig(image_size=32)
    fast = preprocess_bytes(path, config)
    assert torch.equal(fast, preprocess_bytes(path.read_bytes(), config))
    monkeypatch.setattr(module, "_HAS_SIMPLEJPEG", False)
    assert torch.equal(fast, preprocess_bytes(path, config))


@pytest.mark.parametrize("cut", [3, 40, 700])
def test_damaged_jpeg_raises_one_line(cut):
    with pytest.raises(ValueError, match="picture") as raised:
        preprocess_bytes(encoded(picture())[:cut], PreprocessConfig())
    assert "\n" not in str(raised.value)


def test_damaged_file_is_named(tmp_path):
    (tmp_path / "half.jpg").write_bytes(encoded(picture())[:300])
    with pytest.raises(ValueError, match=r"half\.jpg"):
        preprocess_bytes(tmp_path / "half.jpg", PreprocessConfig())


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.jpg"):
        preprocess_bytes(tmp_path / "nothing.jpg", PreprocessConfig())


def test_oversized_jpeg_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(module, "MAX_PIXELS", 96 * 64 - 1)
    seen = []
    monkeypatch.setattr(module, "decode", lambda source, name, exif: seen.append(len(source)) or picture())
    preprocess_bytes(encoded(picture()), PreprocessConfig(image_size=16))
    assert len(seen) == 1


def test_normalize_equals_the_reference_formula():
    config = PreprocessConfig(image_size=8)
    pixels = torch.arange(3 * 64, dtype=torch.uint8).view(1, 3, 8, 8)
    mean, std = torch.tensor(config.mean).view(3, 1, 1), torch.tensor(config.std).view(3, 1, 1)
    expected = (pixels / 255 - mean) / std
    torch.testing.assert_close(normalize(pixels, config), expected, rtol=0, atol=2e-6)
    assert torch.equal(normalize(pixels, config, torch.bfloat16), normalize(pixels, config).bfloat16())


def test_fit_pads_with_black_when_the_longest_side_decides():
    pixels = np.full((10, 40, 3), 200, np.uint8)
    fitted = fit(pixels, PreprocessConfig(image_size=20, resize_mode="longest"))
    assert fitted.shape == (3, 20, 20)
    assert (fitted[0, :, 0] == 200).nonzero().flatten().tolist() == [7, 8, 9, 10, 11]


def test_extreme_shapes_still_give_a_square():
    config = PreprocessConfig(image_size=16, resize_mode="longest")
    assert preprocess(picture(200, 2), config).shape == (3, 16, 16)
    assert preprocess(picture(2, 200), PreprocessConfig(image_size=16)).shape == (3, 16, 16)
    with pytest.raises(ValueError, match="20000 x 1 pixels is too thin"):
        preprocess_bytes(encoded(Image.new("RGB", (20000, 1))), PreprocessConfig())


OLD = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 224,
}
NEW = OLD | {
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "do_convert_rgb": True,
    "do_rescale": True,
    "rescale_factor": 0.00392156862745098,
    "image_processor_type": "CLIPImageProcessor",
    "do_pad": None,
}


def test_old_and_new_style_preprocessor_files_are_the_same_steps():
    assert from_hf(OLD) == from_hf(NEW) == PreprocessConfig()


def test_siglip_files_squash():
    values = {"size": {"height": 256, "width": 256}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
    config = from_hf(values)
    assert (config.resize_mode, config.image_size, config.interpolation) == ("squash", 256, "bilinear")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"do_pad": True}, "do_pad"),
        ({"do_resize": False}, "do_resize"),
        ({"do_rescale": False}, "rescaled"),
        ({"rescale_factor": 1 / 127.5}, "rescaled"),
        ({"resample": 1}, "resample"),
        ({"size": {"shortest_edge": 256}}, "crop_size"),
        ({"size": {"height": 224, "width": 336}}, "square"),
        ({"size": {"shortest_edge": 224, "longest_edge": 448}}, "longest_edge"),
        ({"do_center_crop": False}, "do_center_crop"),
        ({"image_mean": [0.5]}, "one number per colour"),
    ],
)
def test_steps_that_no_pipeline_here_has_are_refused_by_name(change, word):
    with pytest.raises(ValueError, match=word) as raised:
        from_hf(NEW | change)
    assert "\n" not in str(raised.value)


def test_unnormalised_files_keep_pixels_between_0_and_1():
    config = from_hf(NEW | {"do_normalize": False})
    assert (config.mean, config.std) == ((0, 0, 0), (1, 1, 1))


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_hf_round_trip(mode):
    config = PreprocessConfig(image_size=96, resize_mode=mode, interpolation="bilinear", mean=(0.1, 0.2, 0.3))
    assert from_hf(to_hf(config)) == config


def test_padding_cannot_be_written_for_transformers():
    with pytest.raises(ValueError, match="pad"):
        to_hf(PreprocessConfig(resize_mode="longest"))


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_open_clip_round_trip(mode):
    config = PreprocessConfig(image_size=96, resize_mode=mode, interpolation="bilinear", mean=(0.1, 0.2, 0.3))
    assert from_open_clip(to_open_clip(config), 96) == config


def test_open_clip_defaults_and_its_random_interpolation():
    assert from_open_clip({"interpolation": "random", "mean": None}, [224, 224]) == PreprocessConfig()
    assert from_open_clip({"mean": 0.5}, 224).mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    "values", [{"fill_color": 7}, {"mode": "L"}, {"crop": 3}, {"resize_mode": "tile"}, {"size": [224, 336]}]
)
def test_unknown_open_clip_steps_are_refused(values):
    with pytest.raises(ValueError, match="supported"):
        from_open_clip(values, 224)
