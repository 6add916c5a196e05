"""Heads over time: the official code's numbers on formula weights, masks, and what an order can be seen by."""

import pytest
import torch
import torch.nn.functional as F
from formula import formula_weights, sine

from openvocab.blocks.temporal import SeqLSTM, SeqTransf, TightTransf, mean_pool
from openvocab.clip.layouts import openai_blocks, to_ours

FRAMES = sine(512, 0.37).view(2, 4, 64)
TEXTS = sine(128, 0.53, 0.2).view(2, 64)
SHOWN = torch.tensor([[True] * 4, [True, True, False, False]])


def official_block(number: int) -> dict[str, tuple[int, ...]]:
    names = {"attn.in_proj_weight": (192, 64), "attn.in_proj_bias": (192,), "attn.out_proj.weight": (64, 64)}
    names |= {"attn.out_proj.bias": (64,), "mlp.c_fc.weight": (256, 64), "mlp.c_fc.bias": (256,)}
    names |= {"mlp.c_proj.weight": (64, 256), "mlp.c_proj.bias": (64,)}
    names |= {f"{norm}.{part}": (64,) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")}
    return {f"resblocks.{number}.{name}": shape for name, shape in names.items()}


@pytest.fixture
def transf():
    head = SeqTransf(64, layers=2, heads=1, context=77)
    state = to_ours(formula_weights(official_block(0) | official_block(1)), openai_blocks("blocks", "resblocks"))
    head.load_state_dict(state | {"positions": sine(77 * 64, 0.03, s=0.1).view(77, 64)})
    return head.eval()


@pytest.fixture
def lstm():
    head = SeqLSTM(64)
    shapes = {name: tuple(value.shape) for name, value in head.lstm.named_parameters()}
    head.lstm.load_state_dict(formula_weights(shapes))
    return head.eval()


def similarities(frames, shown=SHOWN):
    return 20 * F.normalize(TEXTS, dim=-1) @ mean_pool(frames, shown).T


def close(found, rows):
    torch.testing.assert_close(found, torch.tensor(rows), atol=2e-5, rtol=0)


def test_the_official_numbers(transf, lstm):
    """CLIP4Clip's meanP, seqTransf and seqLSTM on the same inputs and weights; rows are texts."""
    with torch.no_grad():
        close(similarities(FRAMES), [[-1.350951, -2.950670], [2.805334, 0.873232]])
        close(similarities(transf(FRAMES, SHOWN)), [[-0.517574, -2.763611], [2.594283, 0.828443]])
        close(similarities(lstm(FRAMES, SHOWN)), [[-1.192032, -2.849572], [2.372781, 0.763844]])


def test_frames_that_are_not_there_change_nothing(transf, lstm):
    """The official meanP and seqLSTM give NaN where such frames are zeros."""
    zeros = FRAMES * SHOWN[:, :, None]
    with torch.no_grad():
        for head in (lambda frames, shown: frames, transf, lstm):
            expected = similarities(head(FRAMES, SHOWN))
            torch.testing.assert_close(similarities(head(zeros, SHOWN)), expected, atol=1e-6, rtol=0)
            short = similarities(head(FRAMES[1:, :2], SHOWN[1:, :2]), SHOWN[1:, :2])
            torch.testing.assert_close(short[:, 0], expected[:, 1], atol=1e-6, rtol=0)


def test_clips_without_frames_and_of_one_frame_stay_finite(transf, lstm):
    shown = torch.tensor([[False] * 4, [True, False, False, False]])
    frames = FRAMES.clone().requires_grad_()
    for head in (lambda frames, shown: frames, transf, lstm):
        pooled = mean_pool(head(frames, shown), shown)
        assert not pooled[0].any()
        torch.testing.assert_close(pooled[1].norm(), torch.tensor(1.0))
        pooled.sum().backward()
        assert torch.isfinite(frames.grad).all()


def test_each_clip_hides_behind_its_own_mask_at_any_number_of_heads():
    head = SeqTransf(64, layers=1, heads=4, context=8).eval()
    with torch.no_grad():
        together = head(FRAMES, SHOWN)
        alone = head(FRAMES[1:, :2], SHOWN[1:, :2])
    torch.testing.assert_close(together[1:, :2], alone, atol=1e-6, rtol=0)


def test_who_sees_the_order(transf, lstm):
    whole, back = torch.ones(2, 4, dtype=torch.bool), FRAMES.flip(1)
    unplaced = SeqTransf(64, layers=2, heads=4, context=0).eval()
    with torch.no_grad():
        for head, sees in ((lambda f, s: f, False), (unplaced, False), (transf, True), (lstm, True)):
            one, other = (mean_pool(head(frames, whole), whole) for frames in (FRAMES, back))
            assert ((one - other).abs().max() > 1e-3) == sees
            assert sees or torch.allclose(one, other, atol=1e-6)


def test_the_tight_head_looks_at_each_pair():
    """By hand with torch's own encoder layers, pair by pair, without the frames that are not there."""
    head = TightTransf(64, layers=2, heads=4, context=8).eval()
    with torch.no_grad():
        found = head(TEXTS, FRAMES, SHOWN)
        for text in range(2):
            for clip in range(2):
                frames = FRAMES[clip][SHOWN[clip]]
                x = torch.cat([TEXTS[text : text + 1], frames]) + head.positions[: len(frames) + 1]
                for block in head.blocks:
                    y = block.norm1(x)
                    qkv, out = block.attention.qkv, block.attention.out
                    about = (qkv.weight, qkv.bias, None, None, False, 0.0, out.weight, out.bias)
                    y = y[:, None]
                    x = x + F.multi_head_attention_forward(y, y, y, 64, 4, *about, training=False)[0][:, 0]
                    hidden = block.mlp.up(block.norm2(x))
                    x = x + block.mlp.down(hidden * torch.sigmoid(1.702 * hidden))
                first = head.dense(F.layer_norm(x, (64,), head.norm.weight, head.norm.bias, 1e-12)[0])
                expected = head.score(first * torch.sigmoid(1.702 * first))
                torch.testing.assert_close(found[text, clip], expected[0], atol=1e-5, rtol=1e-5)
