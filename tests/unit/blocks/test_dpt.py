import pytest
import torch
import torch.nn.functional as F

from openvocab.blocks.dpt import DPT, Fusion


@pytest.mark.parametrize("grid", [(1, 1), (5, 3), (4, 6)])
@pytest.mark.parametrize("finest", [4, 1])
def test_the_map_is_twice_as_fine_as_the_finest_layer_on_any_grid(grid, finest):
    neck = DPT(6, 4, (3, 5, 7), finest)
    layers = [torch.randn(2, grid[0] * grid[1] + 1, 6) for _ in range(3)]
    assert neck(layers, grid).shape == (2, 4, 2 * finest * grid[0], 2 * finest * grid[1])


def test_the_coarsest_fusion_has_no_unit_without_use():
    neck = DPT(6, 4, (3, 5), 2)
    out = neck([torch.randn(2, 5, 6) for _ in range(2)], (2, 2))
    out.square().sum().backward()
    assert all(parameter.grad is not None for parameter in neck.parameters())


def test_a_1x1_convolution_commutes_with_enlarging():
    fusion, x = Fusion(4, coarsest=True).eval(), torch.randn(1, 4, 3, 5)
    after = fusion.out(F.interpolate(fusion.refine(x), size=(7, 9), mode="bilinear", align_corners=True))
    torch.testing.assert_close(fusion(x, None, (7, 9)), after, atol=1e-6, rtol=1e-5)
