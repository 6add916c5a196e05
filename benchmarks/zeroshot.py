"""Labels as vectors with ViT-B/32 and ImageNet's 80 templates, beside open_clip's `build_zero_shot_classifier`.

    .venv-peers/bin/python benchmarks/zeroshot.py [--labels 8] [--rounds 2]

Cold: so many labels, nothing kept; open_clip in float32 as documented and with bfloat16 autocast, ours in both too. The
work grows with the number of labels on both sides: `for_1000_s` is the time of one label a thousand times. Warm: 1,000
labels whose vectors are on disk, then one picture; against the same picture embedded and nothing else. The kept vectors
are drawn at random there, which the time does not know. Rounds are interleaved, figures are medians of wall seconds.
"""

import argparse
import os
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import torch

from openvocab.clip.architectures import architecture
from openvocab.clip.encoder import as_encoder, encoder
from openvocab.clip.engine import embed_images
from openvocab.clip.templates import templates
from openvocab.clip.tokenizer import CLIPTokenizer
from openvocab.clip.vocabulary import vocabulary
from openvocab.clip.weights import build, clean, fingerprint
from openvocab.clip.zeroshot import classify
from openvocab.progress import silence

WARM_ROUNDS = 40


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--labels", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    silence()
    theirs, _ = harness.random_open_clip()
    import open_clip

    tokenize, patterns = open_clip.get_tokenizer("ViT-B-32"), list(templates("imagenet"))
    names = list(open_clip.IMAGENET_CLASSNAMES)
    clip = build(architecture("ViT-B-32"), clean(theirs.state_dict())).eval()
    clip.tokenizer = CLIPTokenizer()
    clip.fingerprint = fingerprint(clip)
    encoders = {f"openvocab {each}": encoder(clip, each) for each in ("float32", "bfloat16")}

    def build_theirs(dtype: torch.dtype | None) -> torch.Tensor:
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            return open_clip.build_zero_shot_classifier(
                theirs, tokenize, names[: options.labels], [pattern.format for pattern in patterns], use_tqdm=False
            ).T.float()

    works: dict[str, Any] = {
        "open_clip float32": lambda: build_theirs(None),
        "open_clip bfloat16": lambda: build_theirs(torch.bfloat16),
    } | {
        name: lambda each=each: vocabulary(each, names[: options.labels], patterns, cache=False).embeds
        for name, each in encoders.items()
    }
    exact = works["openvocab float32"]()
    cosines = {
        name: (torch.nn.functional.normalize(work(), dim=1) * exact).sum(1).min() for name, work in works.items()
    }
    cold = harness.medians(harness.rounds(works, options.rounds))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["OPENVOCAB_CACHE"] = folder
        with tarfile.open(harness.DATA / "photos" / "photos.tar") as tar:
            first = next(member for member in tar if member.name.endswith(".jpg"))
            tar.extract(first, folder, filter="data")
        picture = Path(folder) / first.name
        drawn = replace(as_encoder(clip), text=lambda tokens: torch.randn(len(tokens), clip.config.embed_dim))
        thousand = [f"thing {number}" for number in range(1000)]
        vocabulary(drawn, thousand, patterns)
        warm = harness.medians(
            harness.rounds(
                {
                    "one image pass": lambda: embed_images(clip, picture),
                    "1,000 kept labels": lambda: classify(clip, picture, vocabulary(clip, thousand, patterns)),
                },
                WARM_ROUNDS,
            )
        )
    fastest = {side: min(t for name, t in cold.items() if name.startswith(side)) for side in ("open_clip", "openvocab")}
    figures = {
        "labels": options.labels,
        "templates": len(patterns),
        "rounds": options.rounds,
        "cold_s": {name: round(time_s, 2) for name, time_s in cold.items()},
        "for_1000_s": {name: round(time_s / options.labels * 1000) for name, time_s in cold.items()},
        "cosine_min": {name: round(cosine.item(), 6) for name, cosine in cosines.items()},
        "over_documented": round(cold["open_clip float32"] / fastest["openvocab"], 2),
        "over_its_best": round(fastest["open_clip"] / fastest["openvocab"], 2),
        "warm_ms": {name: round(time_s * 1e3, 2) for name, time_s in warm.items()},
        "warm_over_one_image_pass": round(warm["1,000 kept labels"] / warm["one image pass"], 3),
    }
    harness.record("zeroshot", figures, "open_clip_torch")
    harness.show(figures)


if __name__ == "__main__":
    main()
