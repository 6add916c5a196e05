import pytest
import torch

from openvocab.blocks.attention import CrossAttention, MultiHeadAttention


@pytest.fixture
def layer(rng):
    layer = MultiHeadAttention(16, 4)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=rng)
    return layer


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_asking_for_weights_changes_neither_values_nor_gradients(layer, rng, causal, biased):
    x = torch.randn(3, 7, 16, generator=rng)
    bias = torch.randn(3, 1, 7, 7, generator=rng) if biased else None
    results = []
    for weights in (False, True):
        layer.zero_grad()
        out, attention = layer(x, bias=bias, causal=causal, weights=weights)
        (out * torch.linspace(0, 1, out.numel()).view_as(out)).sum().backward()
        results.append((out.detach(), layer.qkv.weight.grad.clone()))
        assert (attention is not None) == weights
    for fused, explicit in zip(*results):
        torch.testing.assert_close(fused, explicit, atol=1e-5, rtol=1e-5)


def test_weights_are_distributions_and_differentiable(layer, rng):
    x = torch.randn(2, 5, 16, generator=rng)
    out, attention = layer(x, causal=True, weights=True)
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 4, 5))
    assert not attention[..., 0, 1:].any()
    (gradient,) = torch.autograd.grad(out.sum(), attention)
    assert gradient.abs().max() > 0


def test_a_bias_of_minus_infinity_hides_a_token(layer, rng):
    x = torch.randn(2, 5, 16, generator=rng)
    bias = torch.zeros(5, 5)
    bias[:, 3] = float("-inf")
    changed = x.clone()
    changed[:, 3] += 1
    seen, hidden = layer(x, bias=bias)[0], layer(changed, bias=bias)[0]
    others = [0, 1, 2, 4]
    torch.testing.assert_close(seen[:, others], hidden[:, others])


@pytest.mark.parametrize("causal", [False, True])
def test_one_token_alone_equals_the_whole(layer, rng, causal):
    x = torch.randn(3, 7, 16, generator=rng)
    position = torch.tensor([0, 3, 6])
    whole = layer(x, causal=causal)[0][torch.arange(3), position].unsqueeze(1)
    torch.testing.assert_close(layer.at(x, position, causal=causal), whole, atol=1e-6, rtol=1e-5)


def test_cross_attention_weights_cover_the_sequence(rng):
    layer = CrossAttention(16, 2)
    queries, x = torch.randn(3, 2, 16, generator=rng), torch.randn(3, 5, 16, generator=rng)
    values, none = layer(queries, x)
    same, weights = layer(queries, x, weights=True)
    assert none is None
    assert weights.shape == (3, 2, 2, 5)
    torch.testing.assert_close(values, same, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("layer", [MultiHeadAttention, CrossAttention])
def test_heads_that_do_not_divide_the_width_are_refused(layer):
    with pytest.raises(ValueError, match="3 heads do not divide dim 16"):
        layer(16, 3)
