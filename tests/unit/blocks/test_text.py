import math
from dataclasses import replace

import pytest
import torch

from openvocab.blocks.text import CBOW, CBOWConfig, TextConfig, TextFeatures, TextTransformer

SMALL = TextConfig(vocabulary_size=50, context_length=12, dim=16, layers=2, heads=2, mlp_dim=32, end_id=49)
BIDIRECTIONAL = replace(SMALL, causal=False, pool="last", projection="affine")
IDS = torch.tensor([[48, 5, 6, 49, 0, 0, 0, 0], [48, 5, 6, 7, 8, 9, 10, 49]])


def tower(config: TextConfig = SMALL) -> TextTransformer:
    torch.manual_seed(0)
    return TextTransformer(config, 8).eval()


def test_length_and_padding_do_not_matter_to_a_causal_tower():
    model = tower()
    short = model(IDS[:1, :4]).pooled
    padded = IDS[:1].clone()
    padded[:, 4:] = torch.tensor([49, 3, 49, 11])
    for ids in (IDS[:1], padded):
        torch.testing.assert_close(model(ids).pooled, short, atol=1e-6, rtol=1e-5)


def test_without_tokens_the_pooled_vector_is_the_same():
    for config, ids in ((SMALL, IDS), (BIDIRECTIONAL, torch.randint(0, 50, (2, 12)))):
        features = tower(config)(ids, tokens=False)
        torch.testing.assert_close(features.pooled, tower(config)(ids).pooled, atol=1e-6, rtol=1e-5)
        assert features.tokens.shape == (2, 0, 16)


def test_from_embeddings_is_the_same_body():
    model = tower()
    features = model.from_embeddings(model.embedding(IDS), torch.tensor([3, 7]))
    assert torch.equal(features.pooled, model(IDS).pooled)
    assert torch.equal(features.tokens[1, 7], features.pooled[1])


def test_learned_embeddings_receive_gradients():
    model = tower().requires_grad_(False)
    context = torch.zeros(1, 5, 16, requires_grad=True)
    model.from_embeddings(context, torch.tensor([4])).pooled.square().sum().backward()
    assert context.grad.abs().min() > 0


def test_layers_and_attention_are_given_when_asked():
    features = tower()(IDS, layers=(0, 1), attention=True)
    assert [layer.shape for layer in features.layers] == [(2, 8, 16)] * 2
    assert not features.weights[0][..., 0, 1:].any()


def test_a_row_without_end_is_named():
    ids = IDS.clone()
    ids[1, 7] = 3
    with pytest.raises(ValueError, match="row 1 of the token ids lacks the end id 49"):
        tower()(ids)


def test_elsewhere_than_on_the_cpu_a_row_without_end_gives_nan(monkeypatch):
    """No look at the values, which would stall a GPU: the row's vector is masked where it is."""
    with torch.device("meta"):
        model = TextTransformer(SMALL, 8)
        features = TextFeatures(torch.empty(2, 16), torch.empty(2, 4, 16))
        ids = torch.empty(2, 4, dtype=torch.int64)
    monkeypatch.setattr(model, "from_embeddings", lambda *_, **__: features)
    masked = []
    monkeypatch.setattr(torch.Tensor, "masked_fill", lambda x, mask, value: masked.append((mask.shape, value)) or x)
    model(ids)
    assert [shape for shape, _ in masked] == [(2, 1)]
    assert math.isnan(masked[0][1])


def test_a_bidirectional_tower_takes_its_whole_context_only():
    model = tower(BIDIRECTIONAL)
    ids = torch.randint(0, 50, (2, 12))
    assert torch.equal(model(ids).pooled, model(ids).tokens[:, -1])
    with pytest.raises(ValueError, match="pad to 12 tokens, not 8"):
        model(IDS)


def test_texts_beyond_the_context_are_refused():
    with pytest.raises(ValueError, match="13 tokens are more than the model's context of 12"):
        tower()(torch.full((1, 13), 49))


def test_an_end_id_outside_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="end_id 49407 is outside a vocabulary of 50"):
        TextConfig(vocabulary_size=50)


def test_a_bag_of_words_is_the_mean_of_its_words_in_any_order():
    torch.manual_seed(0)
    model = CBOW(CBOWConfig(vocabulary_size=50, context_length=8, dim=16, skip_ids=(0, 48, 49)), 8)
    features = model(torch.tensor([[48, 5, 6, 49, 0], [48, 6, 5, 49, 0], [48, 49, 0, 0, 0]]))
    torch.testing.assert_close(features.pooled[0], model.embedding.weight[[5, 6]].mean(dim=0))
    torch.testing.assert_close(features.pooled[0], features.pooled[1])
    assert not features.pooled[2].any()
    assert model.projection(features.pooled).shape == (3, 8)


def test_neighbours_join_each_word_to_the_one_before_it():
    config = CBOWConfig(vocabulary_size=50, context_length=8, dim=16, skip_ids=(0, 48, 49), neighbours=True)
    model = CBOW(config, 8)
    ids = torch.tensor([[48, 5, 9, 49, 0]])
    first, second = model.embedding.weight[5], model.embedding.weight[9]
    here_first, here_second = model.here(first), model.here(second)
    product = model.before.weight @ first * here_second
    assert torch.allclose(model(ids).pooled[0], (first + second + product) / 2, atol=1e-5)
    swapped = model(torch.tensor([[48, 9, 5, 49, 0]])).pooled[0]
    assert torch.allclose(swapped, (first + second + model.before.weight @ second * here_first) / 2, atol=1e-5)
    assert not torch.allclose(swapped, model(ids).pooled[0])
    assert torch.allclose(model(torch.tensor([[48, 5, 9, 49, 0, 0]])).pooled, model(ids).pooled, atol=1e-6)
