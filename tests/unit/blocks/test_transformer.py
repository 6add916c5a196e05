import pytest
import torch
from torch import nn

from openvocab.blocks.transformer import ACTIVATIONS, Transformer, initialize_blocks, projection, quick_gelu


@pytest.fixture
def blocks(rng):
    blocks = Transformer(3, 16, 2, 32, "quick_gelu", 1e-5)
    for parameter in blocks.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=rng)
    return blocks


def test_quick_gelu_is_its_definition_and_differentiable():
    x = torch.linspace(-6, 6, 41, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(quick_gelu(x), x * torch.sigmoid(1.702 * x))
    assert torch.autograd.gradcheck(quick_gelu, x)


@pytest.mark.parametrize("name", ["quick_gelu", "gelu_tanh"])
def test_approximations_stay_close_to_gelu(name):
    x = torch.linspace(-4, 4, 100)
    assert (ACTIVATIONS[name](x) - nn.functional.gelu(x)).abs().max() < 0.03


def test_layers_come_back_in_the_order_asked(blocks, rng):
    x = torch.randn(2, 5, 16, generator=rng)
    hidden = blocks(x, layers=(2, 0), attention=True)
    torch.testing.assert_close(hidden.layers[0], hidden.tokens)
    torch.testing.assert_close(hidden.layers[1], blocks[0](x)[0], atol=1e-6, rtol=1e-5)
    assert [weights.shape for weights in hidden.weights] == [(2, 2, 5, 5)] * 3


def test_a_bias_reaches_the_layers_it_names(blocks, rng):
    x, bias = torch.randn(2, 5, 16, generator=rng), torch.randn(5, 5, generator=rng)
    plain = blocks(x, layers=(0, 1, 2)).layers
    named = blocks(x, layers=(0, 1, 2), bias={1: bias}).layers
    torch.testing.assert_close(plain[0], named[0])
    assert (plain[1] - named[1]).abs().max() > 1e-3
    everywhere = blocks(x, bias=bias).tokens
    torch.testing.assert_close(everywhere, blocks(x, bias={0: bias, 1: bias, 2: bias}).tokens)


def test_layers_that_do_not_exist_are_refused(blocks, rng):
    x = torch.randn(1, 2, 16, generator=rng)
    with pytest.raises(ValueError, match="layer 3 does not exist: layers are numbered 0 to 2"):
        blocks(x, layers=(3,))
    with pytest.raises(ValueError, match="layer -1 does not exist"):
        blocks(x, bias={-1: torch.zeros(2, 2)})


@pytest.mark.parametrize("causal", [False, True])
def test_one_token_alone_equals_the_whole(blocks, rng, causal):
    x, position = torch.randn(3, 6, 16, generator=rng), torch.tensor([5, 0, 2])
    whole = blocks(x, causal=causal).tokens[torch.arange(3), position]
    alone = blocks(x, causal=causal, only=position).tokens
    torch.testing.assert_close(alone.squeeze(1), whole, atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="goes with no layers, attention or bias"):
        blocks(x, only=position, attention=True)


def test_tokens_change_on_their_way_into_each_block(blocks, rng):
    x, first = torch.randn(3, 6, 16, generator=rng), torch.zeros(3, dtype=torch.int64)
    expected = x
    for block in blocks:
        expected = block(expected.roll(1, dims=0))[0]
    found = blocks(x, before=lambda tokens: tokens.roll(1, dims=0)).tokens
    torch.testing.assert_close(found, expected)
    alone = blocks(x, only=first, before=lambda tokens: tokens.roll(1, dims=0)).tokens
    torch.testing.assert_close(alone[:, 0], expected[:, 0], atol=1e-6, rtol=1e-5)


def test_checkpointing_gives_the_same_gradients(blocks, rng):
    x = torch.randn(2, 5, 16, generator=rng)
    gradients = []
    for blocks.checkpointing in (False, True):
        blocks.zero_grad()
        hidden = blocks(x, layers=(1,), attention=True)
        (hidden.tokens.square().sum() + hidden.layers[0].sum()).backward()
        gradients.append([parameter.grad.clone() for parameter in blocks.parameters()])
    assert all(torch.equal(plain, recomputed) for plain, recomputed in zip(*gradients))


def test_norms_keep_float32_statistics_in_half_precision():
    norm = nn.LayerNorm(64).to(torch.float16)
    x = torch.full((1, 64), 6e4).to(torch.float16)
    x[0, ::2] = -6e4  # squares overflow float16
    expected = nn.functional.layer_norm(x.float(), (64,)).to(torch.float16)
    assert torch.equal(norm(x), expected)


def test_dropout_acts_in_training_only(rng):
    blocks = Transformer(1, 16, 2, 32, "gelu", 1e-5, dropout=0.5)
    x = torch.randn(2, 5, 16, generator=rng)
    assert not torch.equal(blocks(x).tokens, blocks(x).tokens)
    blocks.eval()
    assert torch.equal(blocks(x).tokens, blocks(x).tokens)


def test_initial_scales_are_the_published_ones():
    torch.manual_seed(0)
    blocks = Transformer(4, 128, 2, 512, "gelu", 1e-5)
    initialize_blocks(blocks, 128)
    block = blocks[2]
    scales = {
        block.attention.qkv.weight: 128**-0.5,
        block.attention.out.weight: 128**-0.5 * 8**-0.5,
        block.mlp.up.weight: 256**-0.5,
        block.mlp.down.weight: 128**-0.5 * 8**-0.5,
    }
    for weight, scale in scales.items():
        assert weight.std().item() == pytest.approx(scale, rel=0.03)
    assert not block.attention.qkv.bias.any()


def test_projections_are_a_matrix_a_matrix_with_bias_or_nothing():
    assert projection("linear", 8, 4).bias is None
    assert projection("affine", 8, 4).bias.shape == (4,)
    assert isinstance(projection("none", 8, 8), nn.Identity)
    with pytest.raises(ValueError, match="'none' needs dim 8 to equal embed_dim 4"):
        projection("none", 8, 4)
