"""A training step of ViT-B/32, ours beside open_clip's: same weights' shapes, same pictures, same captions.

    .venv-peers/bin/python benchmarks/train.py [--batch 16] [--rounds 7] [--compile]

"Documented" is open_clip's loop: tokenizer at 77 tokens, ClipLoss, AdamW with its parameter groups, fp32 on a CPU.
"At its best" adds a fused AdamW (and torch.compile with --compile), whichever is faster. Ours trims captions to the
longest of the batch, as our loader does, which is exact for a causal tower; the 77-token row shows the rest.
"""

import argparse
import statistics

import harness
import torch

from openvocab.clip.architectures import architecture
from openvocab.clip.model import CLIP
from openvocab.clip.tokenizer import CLIPTokenizer
from openvocab.systems import clip as system
from openvocab.train.config import FitConfig, GroupConfig, OptimConfig
from openvocab.train.step import Step

CAPTIONS = (
    "a brown dog runs over the wet grass with a ball",
    "two children in red jackets play in the snow near a tree",
    "a man on a bicycle waits at the traffic lights",
    "people sit at tables in front of a small restaurant at night",
)


def ours(images: torch.Tensor, tokens: torch.Tensor):
    model = CLIP(architecture("ViT-B-32"))
    step = Step(
        model,
        system.loss,
        system.embed,
        config=FitConfig(steps=1000, seed=0),
        optim=OptimConfig(clip_norm=None),
        groups=(GroupConfig(),),
        constrain=system.constrain,
    )
    ids = torch.arange(len(images))
    batch = {"images": images, "tokens": tokens, "image_ids": ids, "text_ids": ids}
    return lambda: step(batch, 0)


def theirs(images: torch.Tensor, tokens: torch.Tensor, fused: bool, compiled: bool):
    import open_clip

    model = open_clip.create_model("ViT-B-32")
    model.train()
    decayed = [p for n, p in model.named_parameters() if p.ndim >= 2 and not any(w in n for w in ("bn", "ln", "bias"))]
    kept = [p for p in model.parameters() if not any(p is d for d in decayed)]
    groups = [{"params": kept, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.2}]
    optimiser = torch.optim.AdamW(groups, lr=5e-4, betas=(0.9, 0.98), eps=1e-6, fused=fused or None)
    loss = open_clip.ClipLoss()
    forward = torch.compile(model) if compiled else model

    def work() -> None:
        optimiser.zero_grad()
        image_features, text_features, scale = forward(images, tokens)
        loss(image_features, text_features, scale).backward()
        optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)

    return work


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    harness.import_peers()
    images = torch.randn(options.batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    captions = [f"{CAPTIONS[row % len(CAPTIONS)]} {row}" for row in range(options.batch)]
    padded = CLIPTokenizer()(captions)
    trimmed = padded[:, : int(padded.any(0).nonzero().max()) + 1].contiguous()
    works = {
        "open_clip, documented": theirs(images, padded, fused=False, compiled=False),
        "open_clip, fused AdamW": theirs(images, padded, fused=True, compiled=False),
        "ours, 77 tokens": ours(images, padded),
        f"ours, trimmed to {trimmed.shape[1]} tokens": ours(images, trimmed),
    }
    if options.compile:
        works["open_clip, fused AdamW, compiled"] = theirs(images, padded, fused=True, compiled=True)
    times = harness.rounds(works, options.rounds)
    seconds = harness.medians(times)
    best = min(value for name, value in seconds.items() if name.startswith("open_clip"))
    figures = {
        "batch": options.batch,
        "median_step_s": seconds,
        "spread_s": {name: [min(values), statistics.median(values), max(values)] for name, values in times.items()},
        "speedup": {
            name: {"documented": seconds["open_clip, documented"] / value, "at_its_best": best / value}
            for name, value in seconds.items()
            if name.startswith("ours")
        },
        "goal": 1.25,
    }
    harness.record("train", figures, "open_clip_torch")
    harness.show(figures["speedup"])


if __name__ == "__main__":
    main()
