import math

import pytest
import torch
from torch import nn

from openvocab.blocks.dyhead import DeformableConv, DyConv, DyReLU, deformable_convolution


def at(plane, y, x):
    """Bilinear, 0 outside."""
    total = 0.0
    for row, col in ((math.floor(y) + a, math.floor(x) + b) for a in (0, 1) for b in (0, 1)):
        if 0 <= row < plane.shape[0] and 0 <= col < plane.shape[1]:
            total += plane[row, col].item() * (1 - abs(y - row)) * (1 - abs(x - col))
    return total


@pytest.mark.parametrize(("size", "out", "stride"), [((5, 4), (5, 4), 1), ((5, 4), (3, 2), 2), ((1, 1), (1, 1), 1)])
def test_deformable_convolution_is_its_formula(rng, size, out, stride):
    x = torch.randn(2, 2, *size, generator=rng)
    offsets = torch.randn(2, 18, *out, generator=rng) * 1.5
    mask = torch.rand(2, 9, *out, generator=rng)
    weight, bias = torch.randn(3, 2, 3, 3, generator=rng), torch.randn(3, generator=rng)
    found = deformable_convolution(x, offsets, mask, weight, bias, stride)
    expected = torch.empty_like(found)
    for image, o, row, col in torch.cartesian_prod(*(torch.arange(side) for side in found.shape)).tolist():
        total = bias[o].item()
        for k in range(9):
            y = row * stride + k // 3 - 1 + offsets[image, 2 * k, row, col].item()
            x_at = col * stride + k % 3 - 1 + offsets[image, 2 * k + 1, row, col].item()
            share = mask[image, k, row, col].item()
            total += sum(weight[o, c, k // 3, k % 3].item() * share * at(x[image, c], y, x_at) for c in range(2))
        expected[image, o, row, col] = total
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_without_offsets_it_is_a_convolution(rng):
    x, weight, bias = torch.randn(2, 4, 6, 7), torch.randn(4, 4, 3, 3), torch.randn(4)
    still = deformable_convolution(x, torch.zeros(2, 18, 3, 4), torch.ones(2, 9, 3, 4), weight, bias, 2)
    plain = nn.functional.conv2d(x, weight, bias, stride=2, padding=1)
    torch.testing.assert_close(still, plain, atol=1e-5, rtol=1e-5)


def randomized(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def test_dyrelu_is_its_formula():
    layer, x = randomized(DyReLU(8)), torch.randn(2, 8, 3, 5)
    told = layer.widen(torch.relu(layer.narrow(x.mean((2, 3)))))
    gate = (torch.clamp(told + 3, 0, 6) / 6).view(2, 4, 8, 1, 1)
    first = x * ((gate[:, 0] - 0.5) * 2 + 1) + gate[:, 1] - 0.5
    second = x * ((gate[:, 2] - 0.5) * 2) + gate[:, 3] - 0.5
    torch.testing.assert_close(layer(x), torch.maximum(first, second))
    assert (second > first).any()


def test_official_offsets_are_the_first_numbers_of_each_pictures_memory():
    layer = DyConv(8, official_offsets=True)
    told = torch.arange(2 * 18 * 8 * 6, dtype=torch.float).view(2, 18, 8, 6)
    found = layer._on(told, torch.Size((4, 3)))
    for picture in range(2):
        assert torch.equal(found[picture], told[picture].reshape(4, 18, 4, 3)[0])
    resized = DyConv(8, official_offsets=False)._on(told, torch.Size((4, 3)))
    torch.testing.assert_close(resized, nn.functional.avg_pool2d(told, 2))


@pytest.mark.parametrize("official", [True, False])
def test_levels_are_weighted_means_of_their_neighbours(official):
    torch.manual_seed(0)
    layer = randomized(DyConv(8, official))
    maps = tuple(torch.randn(2, 8, side, side + 1) for side in (7, 4, 2))
    found = layer(maps)
    assert [each.shape for each in found] == [each.shape for each in maps]
    told = layer.offset(maps[2])
    offsets, mask = told[:, :18], told[:, 18:].sigmoid()
    parts = [layer.same(maps[2], offsets, mask), layer.finer(maps[1], offsets, mask)]
    shares = [torch.clamp(torch.relu(layer.scale(part.mean((2, 3), keepdim=True))) + 3, 0, 6) / 6 for part in parts]
    last = layer.activation((parts[0] * shares[0] + parts[1] * shares[1]) / 2)
    torch.testing.assert_close(found[2], last)
    moved = layer((maps[0], maps[1], maps[2] + 1))
    assert torch.equal(moved[0], found[0])
    assert not torch.equal(moved[1], found[1])


@pytest.mark.parametrize("stride", [1, 2])
def test_plain_convolutions_are_deformable_ones_whose_samples_stay(stride):
    torch.manual_seed(0)
    layer, x = randomized(DeformableConv(8, stride)), torch.randn(2, 8, 6, 4)
    rows, cols = -(-6 // stride), -(-4 // stride)
    stay, alike = torch.zeros(2, 18, rows, cols), torch.ones(2, 9, rows, cols)
    torch.testing.assert_close(layer(x, None, None), layer(x, stay, alike))
    assert DyConv(8, official_offsets=False, deformable=False).offset is None
