"""Drawing tokens against frequencies and by hand."""

import math

import pytest
import torch

from openvocab.blocks.sampling import draw, guide, keep

LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()[None]


def kept(**how):
    return keep(LOGITS, **how)[0].isfinite().tolist()


def test_what_is_kept_by_hand():
    assert kept(top_k=2) == [True, True, False, False]
    assert kept(top_k=9) == [True] * 4
    assert kept(top_p=0.5) == [True, False, False, False]
    assert kept(top_p=0.51) == [True, True, False, False]
    assert kept(top_p=1.0) == [True] * 4
    assert kept(top_k=2, top_p=0.6) == [True, False, False, False]  # of what the first rule left: 5/8 and 3/8


def test_frequencies_are_the_tempered_probabilities():
    rows, generator = LOGITS.expand(20_000, -1), torch.Generator().manual_seed(0)
    for temperature in (1.0, 2.0):
        found = draw(rows, temperature=temperature, generator=generator).bincount(minlength=4) / len(rows)
        torch.testing.assert_close(found, (LOGITS[0] / temperature).softmax(0), rtol=0, atol=0.015)
    assert draw(rows, temperature=0.0).unique().tolist() == [0]


def test_a_seed_decides_every_draw():
    first, again = (draw(LOGITS.expand(64, -1), generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)


def test_guidance_by_hand_and_without_end():
    given, null = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 3.0]])
    assert guide(given, null, 1.0).tolist() == [[1.0, 2.0]]
    assert guide(given, null, 3.0).tolist() == [[3.0, 0.0]]
    assert draw(guide(given, null, 1e30)).tolist() == [0]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1, which must not be negative"),
        ({"top_k": 0}, "top_k is 0, expected at least 1"),
        ({"top_p": 0.0}, "top_p is 0, expected a share"),
        ({"top_p": math.nan}, "top_p is nan, expected a share"),
    ],
)
def test_what_cannot_be_drawn(how, message):
    with pytest.raises(ValueError, match=message):
        draw(LOGITS, **how)
