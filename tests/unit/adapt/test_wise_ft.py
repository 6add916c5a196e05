import pytest
import torch
from tiny_models import tiny_clip

from openvocab.adapt.wise_ft import interpolate


def test_the_ends_are_exact_and_between_lies_the_line():
    before, after = tiny_clip("resnet", 0).state_dict(), tiny_clip("resnet", 1).state_dict()
    assert all(torch.equal(value, before[name]) for name, value in interpolate(before, after, 0.0).items())
    assert all(torch.equal(value, after[name]) for name, value in interpolate(before, after, 1.0).items())
    mixed = interpolate(before, after, 0.3)
    clip = tiny_clip("resnet")
    clip.load_state_dict(mixed)
    for name, value in clip.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.7 * before[name] + 0.3 * after[name], atol=1e-6, rtol=1e-6)


def test_for_a_linear_head_the_mean_of_weights_is_the_mean_of_answers(rng):
    x, (a, b) = torch.randn(5, 4, generator=rng), torch.randn(2, 3, 4, generator=rng)
    mixed = interpolate({"w": a}, {"w": b}, 0.25)["w"]
    torch.testing.assert_close(x @ mixed.T, 0.75 * x @ a.T + 0.25 * x @ b.T)


def test_other_models_and_shares_are_refused():
    vit, words = tiny_clip("vit").state_dict(), tiny_clip("words").state_dict()
    with pytest.raises(ValueError, match="two different models"):
        interpolate(vit, words, 0.5)
    with pytest.raises(ValueError, match=r"share is 1\.5"):
        interpolate(vit, vit, 1.5)
