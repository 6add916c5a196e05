import dataclasses
import math

import pytest
import torch
from PIL import Image
from tiny_models import CONFIGS, tiny_clip

from openvocab.clip import architectures
from openvocab.clip.model import CLIP, CLIPConfig
from openvocab.config import from_dict, to_dict

PARAMETERS = {
    "RN50": 102_007_137,
    "RN101": 119_688_033,
    "RN50x4": 178_300_601,
    "RN50x16": 290_979_217,
    "RN50x64": 623_258_305,
    "ViT-B/32": 151_277_313,
    "ViT-B/16": 149_620_737,
    "ViT-L/14": 427_616_513,
    "ViT-L/14@336px": 427_944_193,
    "ViT-H-14": 986_109_441,
    "ViT-g-14": 1_366_678_273,
    "ViT-bigG-14": 2_539_567_105,
}


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_published_architectures_have_the_published_parameters(name, count):
    with torch.device("meta"):
        clip = CLIP(architectures.architecture(name))
    assert sum(parameter.numel() for parameter in clip.parameters()) == count


def test_every_named_architecture_is_its_own_network():
    configs = [architectures.architecture(name) for name in architectures.names()]
    assert len({(config.image, config.text, config.embed_dim) for config in configs}) == len(configs)
    assert all(architectures.name_of(config) in architectures.names() for config in configs[:3])


def test_openais_names_mean_quick_gelu_and_plain_ones_gelu():
    assert architectures.architecture("ViT-L/14@336px") == architectures.architecture("ViT-L-14-336-quickgelu")
    assert architectures.architecture("ViT-B-32").text.activation == "gelu"
    with pytest.raises(ValueError, match="unknown architecture 'ViT-B32'; nearest is 'ViT-B-32'"):
        architectures.architecture("ViT-B32")


@pytest.mark.parametrize("kind", CONFIGS)
def test_embeddings_are_unit_vectors_unless_asked_otherwise(kind, rng):
    clip = tiny_clip(kind)
    images, tokens = torch.randn(3, 3, 32, 32, generator=rng), clip.tokenize(["a cat", "two dogs"])
    out = clip(images, tokens)
    torch.testing.assert_close(out.image_embeds.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(out.text_embeds.norm(dim=1), torch.ones(2))
    raw = clip.encode_image(images, normalize=False)
    torch.testing.assert_close(raw / raw.norm(dim=1, keepdim=True), out.image_embeds)


def test_logits_are_scaled_cosines_plus_the_bias(rng):
    images, texts = torch.randn(2, 16, generator=rng), torch.randn(3, 16, generator=rng)
    plain, biased = tiny_clip(), tiny_clip("biased")
    torch.testing.assert_close(plain.logits(images, texts), images @ texts.T / 0.07)
    torch.testing.assert_close(biased.logits(images, texts), images @ texts.T / 0.07 - 10)


def test_the_scale_is_never_clamped():
    clip = tiny_clip()
    assert clip.scale().item() == pytest.approx(1 / 0.07)
    clip.logit_scale.data.fill_(math.log(117))
    assert clip.scale().item() == pytest.approx(117)


@pytest.mark.parametrize("kind", CONFIGS)
def test_gradients_reach_every_parameter(kind, rng):
    clip = tiny_clip(kind).train()
    out = clip(torch.randn(4, 3, 32, 32, generator=rng), clip.tokenize(["a b", "c d", "e f", "g h"]))
    clip.logits(out.image_embeds, out.text_embeds).square().sum().backward()
    missing = [name for name, parameter in clip.named_parameters() if parameter.grad is None]
    assert not missing


def test_models_build_without_memory_and_configs_round_trip():
    for config in CONFIGS.values():
        with torch.device("meta"):
            clip = CLIP(config)
        assert all(parameter.is_meta for parameter in clip.parameters())
        assert from_dict(CLIPConfig, to_dict(clip.full_config)) == clip.full_config


def test_pictures_and_texts_take_the_models_own_size_and_length():
    clip = tiny_clip()
    assert clip.preprocess(Image.new("RGB", (50, 40))).shape == (3, 32, 32)
    assert clip.tokenize(["a"]).shape == (1, 77)
    short = CLIP(dataclasses.replace(CONFIGS["vit"], text=dataclasses.replace(CONFIGS["vit"].text, context_length=8)))
    with pytest.raises(ValueError, match="model 'untitled' has no tokenizer"):
        short.tokenize(["a"])
    short.tokenizer = clip.tokenizer
    assert short.tokenize(["a"]).shape == (1, 8)
    assert short.tokenize(["a b c d e f g h"], truncate=True)[0, -1] == 49407
    with pytest.raises(ValueError):
        short.tokenize(["a b c d e f g h"])


def test_half_precision_towers_take_float32_pixels(rng):
    clip = tiny_clip()
    images = torch.randn(2, 3, 32, 32, generator=rng)
    expected = clip.encode_image(images)
    clip.image.to(torch.bfloat16)
    half = clip.encode_image(images)
    assert half.dtype == torch.bfloat16
    assert torch.cosine_similarity(half.float(), expected).min() > 0.99


@pytest.mark.parametrize("kind", CONFIGS)
def test_autocast_trains_in_bfloat16_with_float32_weights(kind, rng):
    clip = tiny_clip(kind)
    images, tokens = torch.randn(2, 3, 32, 32, generator=rng), clip.tokenize(["a cat", "two dogs"])
    expected = clip(images, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        out = clip(images, tokens)
        loss = clip.logits(out.image_embeds, out.text_embeds).square().mean()
    loss.backward()
    assert torch.cosine_similarity(out.image_embeds.float(), expected.image_embeds).min() > 0.98
    assert torch.cosine_similarity(out.text_embeds.float(), expected.text_embeds).min() > 0.98
    assert {parameter.grad.dtype for parameter in clip.parameters()} == {torch.float32}
