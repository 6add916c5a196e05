from dataclasses import replace

import pytest
import torch
from torch import nn

from openvocab.blocks.transformer import Hidden
from openvocab.blocks.vit import ViT, ViTConfig

SMALL = ViTConfig(image_size=32, patch_size=8, dim=24, layers=2, heads=2, mlp_dim=48)
SIGLIP = replace(SMALL, class_token=False, pool="attention", pre_norm=False, patch_bias=True, projection="none")
POOLS = {"class": SMALL, "mean": replace(SMALL, pool="mean", pre_norm=False), "attention": SIGLIP}


def tower(config: ViTConfig) -> ViT:
    torch.manual_seed(0)
    return ViT(config, 24).eval()


@pytest.mark.parametrize("pool", POOLS)
def test_every_pool_gives_tokens_over_the_grid_of_any_picture(pool, rng):
    features = tower(POOLS[pool])(torch.randn(2, 3, 40, 16, generator=rng))
    assert features.grid == (5, 2)
    assert features.tokens.shape == (2, 10, 24)
    assert features.pooled.shape == (2, 24)


@pytest.mark.parametrize("pool", POOLS)
def test_without_tokens_the_pooled_vector_is_the_same(pool, rng):
    model, images = tower(POOLS[pool]), torch.randn(2, 3, 32, 32, generator=rng)
    features = model(images, tokens=False)
    torch.testing.assert_close(features.pooled, model(images).pooled, atol=1e-6, rtol=1e-5)
    assert features.tokens.shape == (2, 0, 24)


def test_layers_and_attention_hold_the_class_token_first(rng):
    features = tower(SMALL)(torch.randn(2, 3, 32, 32, generator=rng), layers=(1,), attention=True, tokens=False)
    assert features.layers[0].shape == (2, 17, 24)
    assert [weights.shape for weights in features.weights] == [(2, 2, 17, 17)] * 2


def test_the_pooling_heads_attention_comes_last(rng):
    features = tower(SIGLIP)(torch.randn(2, 3, 32, 32, generator=rng), attention=True)
    assert [weights.shape for weights in features.weights] == [(2, 2, 16, 16)] * 2 + [(2, 2, 1, 16)]


def test_pooled_gradients_flow_through_the_attention_weights(rng):
    features = tower(SMALL)(torch.randn(1, 3, 32, 32, generator=rng), attention=True)
    gradients = torch.autograd.grad(features.pooled.sum(), features.weights)
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_a_bias_can_leave_the_last_layer_its_own_values_only(rng):
    """What MaskCLIP does: no token looks at another in the last layer."""
    model, images = tower(SMALL), torch.randn(1, 3, 32, 32, generator=rng)
    alone = torch.full((17, 17), float("-inf")).fill_diagonal_(0)
    features = model(images, layers=(0,), bias={1: alone})
    block, x = model.blocks[1], features.layers[0]
    values = block.attention.out(block.attention.qkv(block.norm1(x))[..., 48:])
    expected = x + values
    expected = model.norm(expected + block.mlp(block.norm2(expected)))
    torch.testing.assert_close(features.tokens, expected[:, 1:], atol=1e-5, rtol=1e-5)


def test_patch_dropout_keeps_a_share_in_training_and_all_in_evaluation(rng):
    model, images = tower(replace(SMALL, patch_dropout=0.75)), torch.randn(2, 3, 32, 32, generator=rng)
    assert model(images).tokens.shape[1] == 16
    model.train()
    assert model(images).tokens.shape[1] == 4
    torch.manual_seed(3)
    first = model(images).pooled
    torch.manual_seed(3)
    assert torch.equal(first, model(images).pooled)


class _Pass(nn.Module):
    """Stands in for the blocks and keeps what it is given."""

    def forward(self, x, **_):
        self.seen = x
        return Hidden(x)


def test_dropped_patches_leave_the_others_their_positions():
    torch.manual_seed(0)
    model = ViT(replace(SMALL, patch_dropout=0.5), 24, blocks=_Pass()).train()
    model.pre_norm = nn.Identity()
    images = torch.ones(1, 3, 32, 32)  # equal patches differ by their positions only
    model(images)
    whole = model.stem(images).flatten(2).transpose(1, 2)[0] + model.positions[1:]
    distances = torch.cdist(model.blocks.seen[0, 1:], whole)
    assert distances.min(dim=1).values.max() < 1e-4
    assert len(distances.argmin(dim=1).unique()) == 8


def test_another_stem_takes_the_place_of_the_patches(rng):
    stem = nn.Sequential(nn.Conv2d(1, 24, 3, stride=2, padding=1), nn.GELU(), nn.AvgPool2d(4))
    model = ViT(SMALL, 24, stem=stem)
    assert model(torch.randn(2, 1, 32, 32, generator=rng)).grid == (4, 4)


def test_pixels_beyond_the_last_whole_patch_are_not_seen(rng):
    model, images = tower(replace(SMALL, image_size=36)), torch.randn(1, 3, 36, 36, generator=rng)
    changed = images.clone()
    changed[..., 32:] = 5
    assert torch.equal(model(images).pooled, model(changed).pooled)


def test_impossible_configs_are_refused():
    with pytest.raises(ValueError, match="pool 'class' needs class_token=True"):
        replace(SMALL, class_token=False)
    with pytest.raises(ValueError, match="patch_size 64 does not fit image_size 32"):
        replace(SMALL, patch_size=64)


def test_checkpointing_is_one_switch():
    model = tower(SMALL)
    model.checkpointing = True
    assert model.blocks.checkpointing
    assert model.checkpointing


def test_convolutions_see_over_the_edges_of_patches_and_keep_the_grid():
    config = ViTConfig(image_size=32, patch_size=8, dim=32, layers=1, heads=2, mlp_dim=64, stem="convolutions")
    tower = ViT(config, 16).eval()
    assert tower(torch.randn(2, 3, 32, 48)).grid == (4, 6)
    pixels = torch.randn(1, 3, 32, 32, requires_grad=True)
    tower.stem(pixels)[0, :, 1, 1].sum().backward()
    seen = pixels.grad.abs().sum((0, 1)).nonzero()
    assert seen.min() < 8
    assert seen.max() < 24
    with pytest.raises(ValueError, match="no power of 2"):
        ViTConfig(image_size=28, patch_size=14, stem="convolutions")
