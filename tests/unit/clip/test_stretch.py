import pytest
import torch
from tiny import tiny_clip

import openvocab as ov
from openvocab.blocks.posemb import stretch_positions
from openvocab.clip.stretch import stretch_context
from openvocab.loading import convert

SHORT = ["a cat", "two dogs on a sofa", "a photo of a red circle."]


def test_positions_follow_the_papers_formula(rng):
    p = torch.randn(77, 5, generator=rng, dtype=torch.float64)
    new = stretch_positions(p, 4, 20)
    assert new.shape == (248, 5)
    assert torch.equal(new[:20], p[:20])
    for i in range(56):
        for j in range(4):
            expected = ((4 - j) * p[20 + i] + j * p[21 + i]) / 4
            torch.testing.assert_close(new[20 + 4 * i + j], expected, rtol=0, atol=1e-12)
    for j in range(4):
        torch.testing.assert_close(new[244 + j], p[76] + j * (p[76] - p[75]) / 4, rtol=0, atol=1e-12)


def test_short_texts_do_not_change_by_a_bit_and_long_ones_are_read():
    clip = tiny_clip()
    longer = stretch_context(clip)
    assert torch.equal(longer.embed_texts(SHORT), clip.embed_texts(SHORT))
    tail = "a small picture of a thing that is told at length " * 12
    texts = [f"{tail} and it is a cat", f"{tail} and it is a dog"]
    with pytest.raises(ValueError, match="the limit is 77"):
        clip.embed_texts(texts)
    one, other = longer.embed_texts(texts)
    assert not torch.equal(one, other)
    assert longer.fingerprint not in ("", clip.fingerprint)
    assert clip.config.text.context_length == 77
    longer.text.norm.weight.data.fill_(7.0)
    assert clip.text.norm.weight.data.max() == 1.0  # nothing is shared


@pytest.mark.parametrize("layout", ["openvocab", "hf", "openai"])
def test_a_stretched_model_is_a_model_in_every_layout(tmp_path, layout):
    from tiny_models import tiny_clip as exportable

    exportable().save(tmp_path / "model")
    written = convert(tmp_path / "model", tmp_path / layout, to=layout, context_length=248)
    longer, clip = ov.load(written), ov.load(tmp_path / "model")
    assert longer.tokenize(["a cat"]).shape == (1, 248)
    torch.testing.assert_close(longer.embed_texts(SHORT), clip.embed_texts(SHORT), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "length", "said"),
    [
        ({}, 250, "to 20 \\+ 57 f tokens for whole f, not to 250; the nearest is 248"),
        ({}, 77, "the nearest is 134"),
        ({"causal": False}, 248, "only a causal text tower"),
        ({"context_length": 21}, 248, "leaves nothing to stretch after 20"),
    ],
)
def test_what_cannot_be_stretched_is_refused(text, length, said):
    with pytest.raises(ValueError, match=said):
        stretch_context(tiny_clip(**text), length)
