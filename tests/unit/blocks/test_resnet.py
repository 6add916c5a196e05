from dataclasses import replace

import pytest
import torch

from openvocab.blocks.resnet import ResNet, ResNetConfig

PUBLISHED = ResNetConfig(image_size=64, layers=(1, 2, 1, 1), channels=8, heads=4)
SMALL = ResNetConfig(image_size=32, layers=(1, 1), channels=8, heads=0, block="basic", stem_stride=2, pool="mean")


def tower(config: ResNetConfig) -> ResNet:
    torch.manual_seed(0)
    return ResNet(config, 6).eval()


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("stem_stride", [1, 2, 4])
@pytest.mark.parametrize("layers", [(1,), (2, 1), (1, 1, 1)])
def test_any_number_of_stages_halves_the_grid_between_them(block, stem_stride, layers, rng):
    config = replace(SMALL, block=block, stem_stride=stem_stride, layers=layers)
    features = tower(config)(torch.randn(2, 3, 32, 32, generator=rng))
    side = 32 // stem_stride // 2 ** (len(layers) - 1)
    assert features.grid == config.grid == (side, side)
    assert features.tokens.shape == (2, side * side, config.dim)
    torch.testing.assert_close(features.pooled, features.tokens.mean(dim=1))


def test_layers_are_maps_and_attention_is_the_pools(rng):
    features = tower(PUBLISHED)(torch.randn(2, 3, 64, 64, generator=rng), layers=(3, 0), attention=True)
    assert [tuple(maps.shape) for maps in features.layers] == [(2, 256, 2, 2), (2, 32, 16, 16)]
    torch.testing.assert_close(features.layers[0].flatten(2).transpose(1, 2), features.tokens)
    assert features.weights[0].shape == (2, 4, 1, 5)


def test_any_picture_size_resamples_the_pools_positions(rng):
    features = tower(PUBLISHED)(torch.randn(1, 3, 96, 160, generator=rng))
    assert features.grid == (3, 5)
    assert features.pooled.shape == (1, 256)


def test_without_tokens_the_pooled_vector_is_the_same(rng):
    model, images = tower(PUBLISHED), torch.randn(2, 3, 64, 64, generator=rng)
    assert torch.equal(model(images, tokens=False).pooled, model(images).pooled)
    assert model(images, tokens=False).tokens.shape == (2, 0, 256)


def test_residual_branches_start_at_zero():
    for config, last in ((PUBLISHED, "norm3"), (SMALL, "norm2")):
        for stage in tower(config).stages:
            assert all(not getattr(block, last).weight.any() for block in stage)


def test_what_a_tower_cannot_do_raises(rng):
    model = tower(SMALL)
    with pytest.raises(ValueError, match="it has no attention weights"):
        model(torch.randn(1, 3, 32, 32, generator=rng), attention=True)
    with pytest.raises(ValueError, match="statistics would be updated twice"):
        model.checkpointing = True
    model.checkpointing = False
    assert not model.checkpointing
    with pytest.raises(ValueError, match="layer 2 does not exist"):
        model(torch.randn(1, 3, 32, 32, generator=rng), layers=(2,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": ()}, "at least one stage"),
        ({"layers": (1, 0)}, "at least one block"),
        ({"image_size": 30}, "stride 4 does not divide image_size 30"),
        ({"heads": 4}, "'mean' has heads=0"),
    ],
)
def test_impossible_configs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)
