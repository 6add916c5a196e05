"""Pixels against the peers: bit-equal for open_clip's transform, and for transformers' where the crops agree."""

import json

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform, image_transform_v2
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from openvocab.clip.preprocess import (
    CLIP_MEAN,
    CLIP_STD,
    PreprocessConfig,
    from_hf,
    from_open_clip,
    preprocess,
    to_hf,
    to_open_clip,
)

SIZES = [(64, 48), (48, 64), (31, 97), (97, 31), (33, 33), (17, 200), (20, 15), (32, 32), (101, 100), (32, 39)]


def noise(width, height, mode="RGB"):
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 4), np.uint8)
    image = Image.fromarray(pixels)
    return image.convert("RGB").quantize(16) if mode == "P" else image.convert(mode)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("size", SIZES)
def test_bit_equal_to_open_clip(size, mode, interpolation):
    theirs = image_transform(32, False, resize_mode=mode, interpolation=interpolation)
    config = PreprocessConfig(image_size=32, resize_mode=mode, interpolation=interpolation)
    assert torch.equal(preprocess(noise(*size), config), theirs(noise(*size)))


@pytest.mark.parametrize("picture_mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_other_colour_modes_are_resized_before_they_become_rgb_as_in_open_clip(picture_mode, mode):
    image = noise(61, 47, picture_mode)
    theirs = image_transform(32, False, resize_mode=mode)
    assert torch.equal(preprocess(image, PreprocessConfig(image_size=32, resize_mode=mode)), theirs(image))


@pytest.mark.parametrize("size", [(640, 480), (426, 640), (213, 160), (224, 224), (1000, 700), (300, 301)])
def test_equal_to_transformers_wherever_its_crop_is_at_the_same_place(size):
    image = noise(*size)
    long_side = int(224 * max(size) / min(size))
    assert (long_side - 224) % 4 != 3
    theirs = CLIPImageProcessorPil()(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(preprocess(image, PreprocessConfig()), theirs, rtol=0, atol=1e-6)


def test_transformers_crops_one_pixel_earlier_where_half_an_offset_is_left_over():
    image = noise(32, 35)
    theirs = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    ours = preprocess(image, PreprocessConfig(image_size=32))
    pixels = theirs(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(ours[:, :-1], pixels[:, 1:], rtol=0, atol=1e-6)
    assert not torch.equal(ours, pixels)


def test_equal_to_the_siglip_processor():
    image = noise(300, 200)
    theirs = SiglipImageProcessorPil()
    config = from_hf(theirs.to_dict())
    assert (config.resize_mode, config.mean) == ("squash", (0.5, 0.5, 0.5))
    pixels = theirs(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(preprocess(image, config), pixels, rtol=0, atol=1e-6)


def test_reads_what_transformers_writes_and_transformers_reads_what_we_write(tmp_path):
    assert from_hf(CLIPImageProcessorPil().to_dict()) == PreprocessConfig()
    image = noise(90, 61)
    for mode in ("shortest", "squash"):
        config = PreprocessConfig(image_size=48, resize_mode=mode, mean=(0.1, 0.2, 0.3), interpolation="bilinear")
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(to_hf(config)))
        theirs = CLIPImageProcessorPil.from_pretrained(tmp_path)
        pixels = theirs(image, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(preprocess(image, config), pixels, rtol=0, atol=1e-6)


_PUBLISHED = {
    "ViT-B-32": {},
    "RN50x4": {},
    "ViT-B-16-SigLIP": {"mean": (0.5,) * 3, "std": (0.5,) * 3, "resize_mode": "squash"},
    "ViT-H-14-CLIPA": {"interpolation": "bilinear", "resize_mode": "squash"},
}


@pytest.mark.parametrize("name", _PUBLISHED)
def test_reads_open_clips_configurations_by_their_names(name):
    cfg = PreprocessCfg(size=open_clip.get_model_config(name)["vision_cfg"]["image_size"], **_PUBLISHED[name])
    ours = from_open_clip(vars(cfg), cfg.size)
    image = noise(301, 207)
    assert torch.equal(preprocess(image, ours), image_transform_v2(cfg, is_train=False)(image))


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_open_clip_reads_what_we_write(mode):
    config = PreprocessConfig(image_size=40, resize_mode=mode, interpolation="bilinear", std=(0.5, 0.4, 0.3))
    theirs = image_transform_v2(PreprocessCfg(size=40, **to_open_clip(config)), is_train=False)
    assert torch.equal(preprocess(noise(77, 50), config), theirs(noise(77, 50)))
    assert from_open_clip(to_open_clip(config), 40) == config


def test_constants_are_the_published_ones():
    assert CLIP_MEAN == tuple(open_clip.OPENAI_DATASET_MEAN)
    assert CLIP_STD == tuple(open_clip.OPENAI_DATASET_STD)
