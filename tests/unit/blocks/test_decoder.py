"""The decoder against torch's own, its mask, its two directions, and the search for sentences."""

import itertools

import pytest
import torch
from torch import nn

from openvocab.blocks.decoder import Decoder, DecoderConfig, backwards, beam_search, spoken

CONFIG = DecoderConfig(
    vocabulary_size=11, context_length=6, dim=8, layers=2, heads=2, mlp_dim=16, dropout=0.0, start_id=9, end_id=10
)


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    made = Decoder(CONFIG, directions=2).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return made


def texts(rows=5, seed=1):
    """Start, words, end, padding; lengths differ."""
    noise = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 9, (rows, 6), generator=noise)
    ids[:, 0] = 9
    for row in range(rows):
        end = 2 + row % 4
        ids[row, end], ids[row, end + 1 :] = 10, 0
    return ids


def cells(rows=5):
    return torch.randn(rows, 4, 8, generator=torch.Generator().manual_seed(2))


def torch_decoder(ours, stack):
    """torch's post-norm decoder with the weights of a stack."""
    layer = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, activation="gelu", batch_first=True)
    theirs = nn.TransformerDecoder(layer, 2).eval()
    state = {}
    for number, block in enumerate(ours.stacks[stack]):
        tensors = block.state_dict()
        for part in ("weight", "bias"):
            names = {
                "self_attn.in_proj_": "attention.qkv",
                "self_attn.out_proj.": "attention.out",
                "linear1.": "mlp.up",
            }
            names |= {"multihead_attn.out_proj.": "cross_out", "linear2.": "mlp.down"}
            names |= {f"norm{place}.": f"norm{place}" for place in (1, 2, 3)}
            for name, our in names.items():
                state[f"layers.{number}.{name}{part}"] = tensors[f"{our}.{part}"]
            cross = torch.cat([tensors[f"cross.{name}.{part}"] for name in ("q", "kv")])
            state[f"layers.{number}.multihead_attn.in_proj_{part}"] = cross
    theirs.load_state_dict(state)
    return theirs


@pytest.mark.parametrize("causal", [True, False])
def test_it_equals_torchs_decoder(decoder, causal):
    ids, seen = texts(), cells()
    embedded = nn.functional.layer_norm(
        decoder.embedding(ids) + decoder.positions, (8,), decoder.norm.weight, decoder.norm.bias, 1e-8
    )
    padded = ~spoken(ids, 10)
    mask = nn.Transformer.generate_square_subsequent_mask(6) if causal else None
    found = torch_decoder(decoder, 1)(embedded, seen, tgt_mask=mask, tgt_key_padding_mask=None if causal else padded)
    expected = found @ decoder.embedding.weight.T + decoder.bias
    ours = decoder(ids, seen, direction=1, visible=None if causal else ~padded)
    torch.testing.assert_close(ours[~padded], expected[~padded], rtol=1e-5, atol=1e-5)


def test_no_token_sees_the_future_and_every_token_sees_the_picture(decoder):
    ids, seen = texts(), cells()
    before = decoder(ids, seen)
    changed = ids.clone()
    changed[:, 4:] = 5
    torch.testing.assert_close(decoder(changed, seen)[:, :4], before[:, :4], rtol=0, atol=1e-6)
    assert not torch.allclose(decoder(changed, seen)[:, 4:], before[:, 4:], atol=1e-3)
    assert (decoder(ids, seen + 1) - before).abs().amin(dim=(1, 2)).lt(before.abs().max()).all()
    assert not torch.allclose(decoder(ids, cells() * 2), before, atol=1e-3)
    with pytest.raises(ValueError, match="7 tokens are more than the decoder's context of 6"):
        decoder(torch.ones(1, 7, dtype=torch.int64), seen[:1])


def test_backward_is_forward_on_the_reversed_text_with_the_same_blocks(decoder):
    ids, seen = texts(), cells()
    order = backwards(ids, spoken(ids, 10))
    for row, (text, turned) in enumerate(zip(ids.tolist(), order.tolist())):
        length = text.index(10) + 1
        assert turned == text[:length][::-1] + text[length:], row
    assert not torch.allclose(decoder(order, seen, direction=1), decoder(order, seen), atol=1e-3)
    decoder.stacks[1].load_state_dict(decoder.stacks[0].state_dict())
    assert torch.equal(decoder(order, seen, direction=1), decoder(order, seen))


def test_log_p_of_a_text_is_the_sum_of_its_tokens(decoder):
    ids, seen = texts(), cells()
    found = decoder.log_probabilities(ids, seen).sum(1)
    for row in range(len(ids)):
        length = ids[row].tolist().index(10) + 1
        by_hand = 0.0
        for place in range(1, length):
            logits = decoder(ids[row : row + 1, :place], seen[row : row + 1])[0, -1]
            by_hand += logits.softmax(0)[ids[row, place]].log().item()
        assert found[row].item() == pytest.approx(by_hand, abs=1e-5)


def test_one_beam_is_greedy(decoder):
    seen = cells()
    ids, log_p = beam_search(decoder, seen, 1)
    for row in range(len(seen)):
        text, total = [9], 0.0
        while len(text) < 6 and text[-1] != 10:
            log = decoder(torch.tensor([text]), seen[row : row + 1])[0, -1].log_softmax(0)
            text.append(int(log.argmax()))
            total += log.max().item()
        assert ids[row, : len(text)].tolist() == text
        assert log_p[row].item() == pytest.approx(total, abs=1e-5)


@torch.no_grad()
def test_enough_beams_find_the_most_probable_text():
    torch.manual_seed(3)
    config = DecoderConfig(
        vocabulary_size=4, context_length=4, dim=8, heads=2, mlp_dim=8, dropout=0.0, start_id=0, end_id=1
    )
    decoder = Decoder(config).eval()
    for parameter in decoder.parameters():
        parameter.add_(torch.randn_like(parameter))
    seen = torch.randn(1, 3, 8)
    best = -float("inf")
    for text in itertools.product(range(4), repeat=3):  # every text there is
        if 1 in text[:-1] and any(token != 1 for token in text[text.index(1) :]):
            continue
        ids = torch.tensor([[0, *text]])
        best = max(best, float(decoder.log_probabilities(ids, seen).sum()))
    ids, log_p = beam_search(decoder, seen, 64)
    assert log_p.item() == pytest.approx(best, abs=1e-5)
    assert log_p.item() == pytest.approx(float(decoder.log_probabilities(ids, seen).sum()), abs=1e-5)
    assert log_p.item() >= beam_search(decoder, seen, 1)[1].item()
