"""StyleGAN2's generator: modulated convolutions in their grouped form, S and its layers, filters by hand."""

import pytest
import torch
import torch.nn.functional as F

from openvocab.blocks.styled import (
    EqualLinear,
    ModulatedConv,
    StyledConfig,
    StyleGenerator,
    blurred,
    doubled,
    pixel_norm,
)

SMALL = StyledConfig(channels=(6, 5, 4), latent_dim=8, mapping_layers=2)


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    generator = StyleGenerator(SMALL).double()
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter)
    return generator


def grouped(conv, x, gains):
    """A convolution of its own for each picture: weights scaled and demodulated, one group a picture."""
    weight = conv.weight * conv.scale * gains[:, None, :, None, None]
    if conv.demodulate:
        weight = weight / (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).sqrt()
    rows, after, before, kernel, _ = weight.shape
    flat = x.reshape(1, rows * before, *x.shape[2:])
    if conv.up:
        turned = weight.transpose(1, 2).reshape(rows * before, after, kernel, kernel)
        found = F.conv_transpose2d(flat, turned, stride=2, groups=rows)
        return blurred(found.view(rows, after, *found.shape[2:]))
    found = F.conv2d(flat, weight.flatten(0, 1), padding=kernel // 2, groups=rows)
    return found.view(rows, after, *x.shape[2:])


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("demodulate", [False, True])
@pytest.mark.parametrize("kernel", [1, 3])
def test_scaled_channels_are_the_grouped_convolution(up, demodulate, kernel):
    if up and kernel == 1:
        return  # the blur is for what a kernel of 3 leaves
    conv = ModulatedConv(6, 5, kernel, 8, up=up, demodulate=demodulate).double()
    x, gains = torch.randn(3, 6, 4, 4).double(), torch.randn(3, 6).double().requires_grad_()
    found, expected = conv(x, gains), grouped(conv, x, gains)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    ours, theirs = (torch.autograd.grad(value.square().sum(), (gains, conv.weight)) for value in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_a_doubled_map_is_the_filter_over_values_with_zeros_between():
    x = torch.randn(2, 3, 4, 5).double()
    stuffed = torch.zeros(2, 3, 8, 10).double()
    stuffed[:, :, ::2, ::2] = x
    line = torch.tensor([1.0, 3, 3, 1]).double() / 4
    kernel = (line[:, None] * line).expand(3, 1, 4, 4)
    expected = F.conv2d(F.pad(stuffed, (2, 1, 2, 1)), kernel, groups=3)
    torch.testing.assert_close(doubled(x), expected)
    inner = F.interpolate(x, scale_factor=2, mode="bilinear")[:, :, 1:-1, 1:-1]
    torch.testing.assert_close(doubled(x)[:, :, 1:-1, 1:-1], inner)
    assert blurred(torch.ones(1, 1, 9, 9))[0, 0, 4, 4] == 4


def test_every_column_of_s_has_a_layer(generator):
    assert generator.num_styles == 6 + 6 + 6 + 5 + 5 + 5 + 4 + 4
    names = ["conv0", "rgb0", "conv1", "conv2", "rgb1", "conv3", "conv4", "rgb2"]
    assert [layer.name for layer in generator.layers] == names
    assert [layer.latent for layer in generator.layers] == [0, 1, 1, 2, 3, 3, 4, 5]
    assert generator.is_conv().sum() == generator.num_styles - (6 + 5 + 4)
    assert not generator.is_conv()[generator.layers[1].columns].any()


def test_published_spaces_have_their_sizes():
    with torch.device("meta"):
        generator = StyleGenerator(StyledConfig())
    assert (generator.config.image_size, generator.config.num_latents, generator.num_styles) == (1024, 18, 9088)
    assert sum(layer.columns.stop - layer.columns.start for layer in generator.layers if not layer.draws) == 6048


@torch.no_grad()
def test_w_plus_and_s_lead_to_one_picture(generator):
    w = generator.map(torch.randn(2, 8).double())
    plus = generator.spread(w)
    assert plus.shape == (2, 6, 8)
    styles = generator.styles(w)
    torch.testing.assert_close(generator.styles(plus), styles, rtol=0, atol=0)
    moved = torch.randn_like(plus)
    half = generator.styles(plus + 0.5 * moved)
    torch.testing.assert_close(half, (styles + generator.styles(plus + moved)) / 2)  # S is linear in W+
    layer = generator.layers[5]
    changed = plus.clone()
    changed[:, layer.latent] += 1
    outside = [each.columns for each in generator.layers if each.latent != layer.latent]
    for columns in outside:
        assert torch.equal(generator.styles(changed)[:, columns], styles[:, columns])
    assert generator.draw(styles).shape == (2, 3, 16, 16)


@torch.no_grad()
def test_truncation_goes_towards_the_mean(generator):
    z = torch.randn(3, 8).double()
    w = generator.map(z)
    torch.testing.assert_close(generator.map(z, 0.25), generator.mean + 0.25 * (w - generator.mean))
    torch.testing.assert_close(generator.map(z, 0.0), generator.mean.expand(3, -1))
    torch.testing.assert_close(generator.map(7 * z), w)  # z is brought to unit length


@torch.no_grad()
def test_noise_is_the_models_own_or_what_is_given(generator):
    styles = generator.styles(generator.map(torch.randn(2, 8).double()))
    own = [getattr(generator, f"noise_{number}") for number in range(5)]
    first = generator.draw(styles)
    torch.testing.assert_close(generator.draw(styles, own), first, rtol=0, atol=0)
    assert not torch.allclose(generator.draw(styles, [torch.randn_like(noise) for noise in own]), first)


def test_patches_draw_the_same_size_with_fewer_places():
    generator = StyleGenerator(StyledConfig(channels=(6, 4), latent_dim=8, mapping_layers=1, patch=4))
    assert generator.config.image_size == 32
    assert generator(torch.randn(2, 8)).shape == (2, 3, 32, 32)


def test_equal_linear_by_hand():
    layer = EqualLinear(4, 3, rate=0.01, bias=2.0)
    x = torch.randn(5, 4)
    expected = x @ (layer.weight.T * 0.01 / 2) + 0.01 * 2.0
    torch.testing.assert_close(layer(x), expected)
    assert 30 < layer.weight.std() < 300
    assert pixel_norm(3 * x).square().mean(1).tolist() == pytest.approx([1.0] * 5, abs=1e-6)
