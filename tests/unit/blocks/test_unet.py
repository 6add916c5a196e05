from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from openvocab.blocks.unet import Attention, UNet, UNetConfig

SMALL = UNetConfig(channels=8, multipliers=(1, 2), depth=1, attention=(1,), head_dim=8, context_dim=6, groups=4)


def random(config: UNetConfig) -> UNet:
    torch.manual_seed(0)
    unet = UNet(config).eval()
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return unet


def test_what_changes_what_is_said():
    unet = random(SMALL)
    x, t, context = torch.randn(2, 3, 8, 8), torch.tensor([1, 500]), torch.randn(2, 4, 6)
    said = torch.tensor([[True] * 4, [True, True, False, False]])
    found = unet(x, t, context=context, said=said)
    assert found.shape == x.shape
    other = context.clone()
    other[:, 2:] += 1
    changed = (unet(x, t, context=other, said=said) - found).abs().amax((1, 2, 3)) > 1e-4
    assert changed.tolist() == [True, False]
    assert not torch.allclose(unet(x, t + 10, context=context, said=said), found, atol=1e-4)
    assert not torch.allclose(unet(x, t, context=context, said=said, added=torch.ones(2, 32)), found, atol=1e-4)


def test_a_new_unet_says_nothing_yet():
    assert not UNet(SMALL)(torch.randn(1, 3, 8, 8), torch.tensor([3]), context=torch.randn(1, 2, 6)).any()


def test_patches_are_channels_of_a_coarser_grid():
    fine, t = random(replace(SMALL, in_channels=12, out_channels=12)), torch.tensor([3])
    coarse = UNet(replace(SMALL, patch=2)).eval()
    coarse.load_state_dict(fine.state_dict())
    x, context = torch.randn(1, 3, 16, 16), torch.randn(1, 2, 6)
    expected = F.pixel_shuffle(fine(F.pixel_unshuffle(x, 2), t, context=context), 2)
    torch.testing.assert_close(coarse(x, t, context=context), expected)


def test_any_size_that_can_be_halved():
    unet = random(replace(SMALL, attention=(), middle=False, context_dim=None))
    assert unet(torch.randn(1, 3, 12, 20), torch.tensor([3])).shape == (1, 3, 12, 20)
    with pytest.raises(ValueError, match="9 x 8 pixels; sides must be multiples of 2"):
        unet(torch.randn(1, 3, 9, 8), torch.tensor([3]))
    with pytest.raises(ValueError, match="heads of 8 do not divide 12"):
        Attention(SMALL, 12)
