"""Heads over time: the official code's numbers on formula weights, masks, and what an order can be seen by."""

import pytest
import torch
import torch.nn.functional as F
from formula import formula_weights, sine

from openvocab.blocks.temporal import (
    Conv1D,
    SeqLSTM,
    SeqTransf,
    TightTransf,
    TransfCls,
    frame_mean,
    mean_pool,
    shift_tokens,
)
from openvocab.clip.layouts import openai_blocks, same, to_ours, to_theirs, torch_blocks

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
    torch.testing.assert_close(together[1:, :2], alone, atol=1e-5, rtol=0)


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


WHOLE = torch.ones(2, 4, dtype=torch.bool)
PLACED = "frame_position_embeddings.weight"


def actionclip_transf() -> SeqTransf:
    shapes = {PLACED: (77, 64)}
    for number in range(6):
        shapes |= {f"transformer.{name}": shape for name, shape in official_block(number).items()}
    state = formula_weights(shapes)
    head = SeqTransf(64, layers=6, heads=1, context=77)
    places = {"positions": state.pop(PLACED)}
    head.load_state_dict(places | to_ours(state, openai_blocks("blocks", "transformer.resblocks")))
    return head.eval()


def actionclip_lstm() -> SeqLSTM:
    head = SeqLSTM(64)
    names = {name: f"lstm_visual.{name}" for name in head.lstm.state_dict()}
    state = formula_weights({PLACED: (77, 64)} | {names[n]: tuple(v.shape) for n, v in head.lstm.state_dict().items()})
    head.lstm.load_state_dict({name: state[theirs] for name, theirs in names.items()})
    return head.eval()


@pytest.mark.parametrize(
    ("head", "first", "total", "size"),
    [
        (lambda frames, shown: frames, (-0.072256, -0.085563, -0.087290, -0.077202), 0.175129, 7.331929),
        (Conv1D(64, official_layout=True), (0.186719, 0.602867, -0.221423, -0.789956), 0.599337, 65.842712),
        (Conv1D(64), (-0.378997, -0.358390, -0.289276, -0.181010), 0.367428, 22.535469),
        (actionclip_transf(), (-0.025048, -0.032759, -0.222736, -0.296714), 0.056203, 19.659616),
        (actionclip_lstm(), (-0.085198, -0.083512, -0.102813, -0.067450), 0.143475, 8.051332),
    ],
    ids=["meanP", "Conv_1D", "Conv_1D corrected", "Transf", "LSTM"],
)
def test_the_official_numbers_of_actionclip(head, first, total, size):
    """The means of its heads: the first four numbers of the first clip, the sum of all and of their absolutes."""
    with torch.no_grad():
        found = frame_mean(head(FRAMES, WHOLE), WHOLE)
    close(found[0, :4], first)
    torch.testing.assert_close(found.sum(), torch.tensor(total), atol=5e-5, rtol=0)
    torch.testing.assert_close(found.abs().sum(), torch.tensor(size), atol=2e-4, rtol=0)


def test_filters_begin_as_a_shift_of_channels():
    with torch.no_grad():
        moved = Conv1D(64)(FRAMES, WHOLE) - FRAMES
    zeros = torch.zeros(2, 1, 16)
    torch.testing.assert_close(moved[:, :, :16], torch.cat([zeros, FRAMES[:, :3, :16]], dim=1))
    torch.testing.assert_close(moved[:, :, 16:48], FRAMES[:, :, 16:48])
    torch.testing.assert_close(moved[:, :, 48:], torch.cat([FRAMES[:, 1:, 48:], zeros], dim=1))


def test_the_official_shift_of_tokens():
    """Official tokens stand token by token, ours picture by picture."""
    tokens = sine(5 * 4 * 16, 0.21).view(5, 4, 16)
    found = shift_tokens(tokens.transpose(0, 1), torch.ones(2, 2, dtype=torch.bool)).transpose(0, 1)
    torch.testing.assert_close(found.sum(), torch.tensor(1.423295), atol=2e-5, rtol=0)
    torch.testing.assert_close(found.abs().sum(), torch.tensor(181.507126), atol=2e-4, rtol=0)
    torch.testing.assert_close((found.flatten() * sine(320, 0.05)).sum(), torch.tensor(-0.460880), atol=2e-5, rtol=0)


def test_the_shift_ends_where_a_clip_ends():
    tokens, shown = torch.randn(2 * 3, 5, 16), torch.tensor([[True, True, False], [True, False, False]])
    found = shift_tokens(tokens, shown)
    torch.testing.assert_close(found[:2], shift_tokens(tokens[:2], shown[:1, :2]))
    alone = shift_tokens(tokens[3:4], shown[1:, :1])
    torch.testing.assert_close(found[3:4], alone)
    assert not alone[:, 1:, :4].any()
    torch.testing.assert_close(alone[:, 1:, 4:], tokens[3:4, 1:, 4:])
    torch.testing.assert_close(found[:, 0], tokens[:, 0])


def test_transf_cls_is_torchs_encoder():
    head = TransfCls(64, layers=2, heads=4, context=4).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    layer = torch.nn.TransformerEncoderLayer(64, 4, batch_first=True)
    peer = torch.nn.TransformerEncoder(layer, 2, torch.nn.LayerNorm(64), enable_nested_tensor=False).eval()
    rules = (*torch_blocks("blocks", "layers"), same("norm.{p}", "norm.{p}"))
    state = {name: value for name, value in head.state_dict().items() if name not in ("token", "positions")}
    peer.load_state_dict(to_theirs(state, rules))
    with torch.no_grad():
        for clip in range(2):
            frames = FRAMES[clip][SHOWN[clip]]
            x = torch.cat([head.token[None], frames]) + head.positions[: len(frames) + 1]
            torch.testing.assert_close(head(FRAMES, SHOWN)[clip], peer(x[None])[0, 0], atol=1e-5, rtol=1e-5)


def test_the_mean_and_every_head_pass_over_frames_that_are_not_there():
    other = torch.where(SHOWN[:, :, None], FRAMES, torch.full_like(FRAMES, 9.0))
    with torch.no_grad():
        for head in (Conv1D(64), actionclip_transf(), actionclip_lstm()):
            one, same = (frame_mean(head(frames, SHOWN), SHOWN) for frames in (FRAMES, other))
            torch.testing.assert_close(one, same, atol=1e-6, rtol=0)
        whole = TransfCls(64, layers=1, heads=4, context=4).eval()
        torch.testing.assert_close(whole(FRAMES, SHOWN), whole(other, SHOWN), atol=1e-6, rtol=0)
        assert not frame_mean(FRAMES, torch.zeros(2, 4, dtype=torch.bool)).any()
