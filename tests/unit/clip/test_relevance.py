"""Where a picture shows what a text says: models whose answer is known, and the attention rule step by step."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import tiny_clip

from openvocab.blocks.resnet import ResNetConfig
from openvocab.blocks.text import TextConfig
from openvocab.blocks.vit import ViTConfig
from openvocab.clip.model import CLIP, CLIPConfig
from openvocab.clip.relevance import (
    CELLS,
    attention_relevance,
    explain,
    gradient_relevance,
    relevance,
    spots,
    whole,
)


class Weighing(CLIP):
    """Its image embedding is linear in the pixels: `weights` says how much each counts for each direction."""

    def encode_image(self, images, normalize=True):
        return torch.einsum("ichw,ehw->ie", images, self.weights)


def weighing(weights) -> CLIP:
    clip = tiny_clip()
    clip.__class__, clip.weights = Weighing, weights
    return clip


def test_the_shares_of_a_linear_model_are_its_weights():
    torch.manual_seed(0)
    pixels, weights = torch.randn(1, 3, 16, 32), torch.randn(3, 16, 32)
    texts = torch.randn(5, 3)
    found = relevance(weighing(weights), pixels, texts, looks_per_cell=64)
    assert found.shape == (5, CELLS, 2 * CELLS)
    values = ((pixels - pixels.mean((2, 3), keepdim=True))[0].sum(0) * weights).unfold(1, 2, 2).unfold(2, 2, 2)
    expected = torch.einsum("erc,te->trc", values.sum((3, 4)), texts)
    agreement = F.cosine_similarity(found.flatten(1), expected.flatten(1))
    assert agreement.min() > 0.97


def test_one_of_two_things_is_pointed_at():
    picture = Image.new("RGB", (48, 32), "black")
    picture.paste((255, 255, 255), (36, 4, 44, 12))
    weights = torch.zeros(8, 16, 24)
    weights[0, :8, 16:] = 1
    clip = weighing(weights)
    found = explain(clip, picture, "one thing")
    assert found.map.shape == (32, 48)
    peak = divmod(int(found.map.argmax()), 48)
    sign = 1 if clip.embed_texts(["one thing"])[0, 0] > 0 else -1
    if sign > 0:
        assert peak[0] < 16
        assert peak[1] >= 32
    assert [word for word, _ in found.words] == ["one", "thing"]
    again = explain(clip, picture, "one thing")
    assert torch.equal(found.map, again.map)


def test_what_is_common_to_other_texts_does_not_count():
    torch.manual_seed(0)
    clip = tiny_clip().train()
    picture = Image.effect_noise((40, 40), 90).convert("RGB")
    same = explain(clip, picture, "a dog", ["a dog"])
    assert same.map.abs().max() < 1e-6
    assert explain(clip, picture, "a dog").map.abs().max() > 1e-5
    assert clip.training


def test_words_are_weighed_by_leaving_them_out():
    clip = tiny_clip()
    picture = Image.effect_noise((40, 40), 90).convert("RGB")
    found = explain(clip, picture, "a dog")
    image = clip.encode_image(whole(clip, picture))[0]
    full, without = (image @ clip.embed_texts([text])[0] for text in ("a dog", "dog"))
    assert found.score == pytest.approx(full.item(), abs=1e-6)
    assert dict(found.words)["a"] == pytest.approx((full - without).item(), abs=1e-6)
    with pytest.raises(ValueError, match="the text is empty"):
        explain(clip, picture, "  ")


def test_spots_reach_to_half_the_height_of_the_peak():
    each = torch.zeros(2, 6, 6)
    each[0, 1:3, 1:4] = torch.tensor([[4.0, 2.0, 2.0], [1.0, 3.0, 1.9]])
    each[0, 5, 5] = 3.9  # high, but apart
    each[1] -= 1
    each[1, 4, 2] = -0.1
    assert spots(each).tolist() == [[1, 1, 4, 3], [2, 4, 3, 5]]


def towers(kind: str) -> CLIP:
    torch.manual_seed(1)
    text = TextConfig(dim=16, layers=1, heads=2, mlp_dim=32)
    vit = {"image_size": 16, "patch_size": 4, "dim": 16, "layers": 3, "heads": 2, "mlp_dim": 32}
    image = {
        "class": ViTConfig(**vit),
        "attention": ViTConfig(**vit, pool="attention", class_token=False),
        "mean": ViTConfig(**vit, pool="mean", class_token=False),
        "resnet": ResNetConfig(image_size=32, layers=(1, 1), channels=8, heads=4, block="basic", stem_stride=2),
    }[kind]
    clip = CLIP(CLIPConfig(image=image, text=text, embed_dim=8)).eval()
    for parameter in clip.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return clip


@pytest.mark.parametrize("kind", ["class", "attention", "mean"])
def test_attention_relevance_multiplies_block_by_block(kind):
    clip = towers(kind)
    images, texts = torch.randn(2, 3, 16, 16), F.normalize(torch.randn(2, 8), dim=1)
    found = attention_relevance(clip, images, texts)
    assert found.shape == (2, 4, 4)
    for row in range(2):
        seen = clip.image(images[row : row + 1], attention=True)
        fit = F.normalize(clip.image.projection(seen.pooled), dim=1)[0] @ texts[row]
        gradients = torch.autograd.grad(fit, seen.weights)
        flow = torch.eye(16 + (kind == "class"))
        for weights, gradient in zip(seen.weights[:3], gradients):
            flow = flow + (weights * gradient)[0].clamp_min(0).mean(0) @ flow
        if kind == "attention":
            expected = ((seen.weights[3] * gradients[3])[0].clamp_min(0).mean(0) @ flow)[0]
        else:
            expected = flow[0, 1:] if kind == "class" else flow.mean(0)
        torch.testing.assert_close(found[row].flatten(), expected, rtol=1e-4, atol=1e-6)


def test_gradient_relevance_is_the_positive_part_of_weighted_maps():
    for kind in ("resnet", "class"):
        clip = towers(kind)
        images, texts = torch.randn(2, 3, *(2 * [clip.config.image.image_size])), F.normalize(torch.randn(2, 8), dim=1)
        found = gradient_relevance(clip, images, texts)
        assert found.shape[0] == 2
        assert found.min() == 0
        assert found.max() > 0
    with pytest.raises(ValueError, match="no attention between patches"):
        attention_relevance(towers("resnet"), images, texts)


@pytest.mark.parametrize("kind", ["class", "attention", "mean", "resnet"])
def test_any_tower_can_be_asked(kind):
    clip = towers(kind)
    found = relevance(clip, torch.randn(1, 3, 32, 64), F.normalize(torch.randn(3, 8), dim=1))
    assert found.shape == (3, 8, 16)
    assert bool(found.isfinite().all())
