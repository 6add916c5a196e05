"""What a plan counts is what a training pass of the same model takes."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from openvocab.blocks.text import CBOWConfig, TextConfig
from openvocab.blocks.vit import ViTConfig
from openvocab.clip.model import CLIP, CLIPConfig
from openvocab.lab import plan as planning
from openvocab.lab.plan import GPUS, Counted, count, plan

IMAGE = ViTConfig(image_size=64, patch_size=8, dim=64, layers=3, heads=2, mlp_dim=256, pool="mean")
TEXT = TextConfig(vocabulary_size=512, context_length=16, dim=64, layers=2, heads=2, mlp_dim=256, end_id=511)
CONFIG = CLIPConfig(image=IMAGE, text=TEXT, embed_dim=32)
ROWS = 192


def measured_peak(checkpointing: bool) -> int:
    """The most that torch's own profiler sees allocated at a time in a real pass, gradients there before."""
    model = CLIP(CONFIG).train()
    for module in model.modules():
        if hasattr(module, "checkpointing"):
            module.checkpointing = checkpointing
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        images, tokens, ends = torch.randn(ROWS, 3, 64, 64), torch.ones(ROWS, 16).long(), torch.full((ROWS,), 15)
        with torch.autocast("cpu", torch.bfloat16):
            words = model.text.from_embeddings(model.text.embedding(tokens), ends, tokens=False)
            embeds = [model.encode_image(images), F.normalize(model.text.projection(words.pooled), dim=-1)]
        torch.autograd.backward(embeds, [torch.ones_like(rows) for rows in embeds])
        del embeds, words
    sizes = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(sizes, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize("checkpointing", [False, True])
def test_peak_memory_is_that_of_a_real_pass(checkpointing):
    costs = count(CONFIG, checkpointing=checkpointing)
    expected = costs.fixed_bytes + 2 * costs.casts + costs.row_bytes * ROWS
    assert expected == pytest.approx(measured_peak(checkpointing), rel=0.01)


def test_operations_are_those_of_the_formula():
    """Twice the multiplications: of 64 patches and 65 tokens, of 16 words and, in the last block, one."""
    dim, mlp, tokens, words = 64, 256, 65, 16
    linear, scores = 4 * dim * dim + 2 * dim * mlp, 2 * dim
    image = 64 * 3 * 8 * 8 * dim + 3 * (tokens * linear + tokens * tokens * scores) + dim * 32
    last = 2 * words * dim * dim + 2 * dim * dim + 2 * dim * mlp + words * scores
    text = words * linear + words * words * scores + last + dim * 32
    plain, again = (count(CONFIG, checkpointing=checkpointing) for checkpointing in (False, True))
    assert plain.forward_flops == 2 * (image + text)
    assert 2.9 < plain.flops / plain.forward_flops < 3.2
    # less than a whole pass: what a block computes after its last kept tensor is not computed again
    assert 0.6 < (again.flops - plain.flops) / plain.forward_flops < 1.0
    assert again.row_bytes < 0.6 * plain.row_bytes


def test_parameters_are_counted_where_they_lie():
    model, costs = CLIP(CONFIG), count(CONFIG, checkpointing=False)
    assert costs.parameters == sum(p.numel() for p in model.parameters())
    assert costs.block == sum(p.numel() for p in model.image.blocks[0].parameters())
    assert costs.outside == costs.parameters - 5 * costs.block
    products = [m for m in model.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))]
    assert costs.casts == sum(p.numel() for m in products for p in m.parameters())


COSTS = Counted(
    parameters=10**9,
    casts=10**9,
    outside=10**8,
    block=10**7,
    fixed_bytes=0.0,
    row_bytes=1e8,
    forward_flops=1e11,
    flops=3e11,
)


def way(shard: bool, gpus: int = 8, costs: Counted = COSTS, batch_size: int = 4096):
    return planning._way(costs, GPUS["H100"], gpus, batch_size, 512, shard=shard, recompute=False)


def test_weights_are_whole_on_each_gpu_or_divided():
    copies, rows = way(False), way(True)
    assert copies.settings == ("fit.precision=bfloat16", "data.batch_size=4096")
    assert rows.settings == ("fit.precision=bfloat16", "data.batch_size=4096", "fit.shard=true")
    # 16 bytes a weight and 2 of its cast, against an eighth of the 16 and 6 of what is gathered
    assert copies.memory_gb - rows.memory_gb == pytest.approx(18 - (2 + 0.1 * 6 + 0.02 * 6), abs=1e-6)


def test_what_does_not_fit_whole_is_cut_into_chunks_or_said_not_to_fit():
    assert way(False, gpus=1).settings[-1] == "fit.accumulate=8"
    assert way(False, gpus=1).step_s > 4 / 3 * 8 * way(False).step_s * 0.95
    huge = replace(COSTS, parameters=10**10)
    assert not way(False, costs=huge).fits
    assert way(True, costs=huge).fits


def test_a_plan_names_ways_and_what_is_not_shipped(monkeypatch):
    monkeypatch.setattr(planning, "count", lambda config, checkpointing: COSTS)
    planned = plan("ViT-B-32", "8xH100", 4096)
    assert [means.name for means in planned.not_shipped][:2] == ["16-bit optimizer state", "offload"]
    assert not any(means.needed for means in planned.not_shipped)
    assert "NVIDIA's data sheet of the H100" in str(planned)
    small = plan("ViT-B-32", "1x12GB@100", 4096)
    assert "does not fit" in str(small)
    assert small.not_shipped[1].needed
    for asked in ("8xH10", "0xH100", "H100", "8x80GB"):
        with pytest.raises(ValueError, match="expected 8xH100"):
            plan("ViT-B-32", asked, 4096)
    with pytest.raises(ValueError, match="does not divide over 3"):
        plan("ViT-B-32", "3xH100", 4096)
    with pytest.raises(ValueError, match="ViT-B-32"):
        plan("ViT-B-33", "8xH100", 4096)


def test_a_bag_of_words_needs_no_plan():
    with pytest.raises(ValueError, match="a text transformer"):
        count(replace(CONFIG, text=CBOWConfig(dim=8)), checkpointing=False)
