import torch

from openvocab.blocks.posemb import resample_grid


def test_its_own_grid_is_left_alone(rng):
    positions = torch.randn(13, 4, generator=rng)
    assert resample_grid(positions, (3, 4), (3, 4)) is positions


def test_leading_rows_are_kept_and_the_grid_takes_any_shape(rng):
    positions = torch.randn(17, 4, generator=rng)
    resampled = resample_grid(positions, (4, 4), (7, 2))
    assert resampled.shape == (15, 4)
    assert torch.equal(resampled[0], positions[0])


def test_a_constant_table_stays_constant():
    resampled = resample_grid(torch.full((9, 2), 0.7), (3, 3), (8, 5))
    torch.testing.assert_close(resampled, torch.full((40, 2), 0.7))


def test_a_ramp_over_columns_stays_a_ramp_over_columns():
    ramp = torch.arange(6.0).repeat(6, 1).reshape(36, 1)
    larger = resample_grid(ramp, (6, 6), (6, 12)).view(6, 12)
    assert torch.all(larger[:, 1:] >= larger[:, :-1])
    torch.testing.assert_close(larger[0], larger[5])


def test_bilinear_positions_are_those_between():
    between = resample_grid(torch.tensor([9.0, 0.0, 1.0]).view(3, 1), (1, 2), (1, 4), "bilinear")
    torch.testing.assert_close(between[:, 0], torch.tensor([9.0, 0.0, 0.25, 0.75, 1.0]))


def test_gradients_reach_the_table_in_its_own_precision(rng):
    positions = torch.randn(10, 4, generator=rng).to(torch.bfloat16).requires_grad_()
    resampled = resample_grid(positions, (3, 3), (5, 5))
    assert resampled.dtype == torch.bfloat16
    resampled.float().sum().backward()
    assert positions.grad.abs().min() > 0
