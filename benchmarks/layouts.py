"""`openvocab eval` on real pictures for one model in each layout: the figures must be the same to the last bit.

The model is a small ViT with random weights and CLIP's own tokenizer, which every layout can hold; its figures are
chance and say nothing but that they agree.

    .venv/bin/python benchmarks/layouts.py
"""

import tempfile
from pathlib import Path
from typing import Any

import harness
import torch

from openvocab.blocks.text import TextConfig
from openvocab.blocks.vit import ViTConfig
from openvocab.clip.model import CLIP, CLIPConfig
from openvocab.clip.tokenizer import CLIPTokenizer
from openvocab.lab.evaluation import evaluate_source
from openvocab.loading import convert

LAYOUTS = ("openvocab", "hf", "open_clip", "openai")
WORK = {
    "cifar10/test.parquet": "zeroshot",
    "captions/test.tar": "retrieval",
    "emoji/twitter.tar": "retrieval",
    "photos/photos.tar": "retrieval",
    "scenes": "zeroshot",
}


def model(folder: Path) -> Path:
    torch.manual_seed(0)
    image = ViTConfig(image_size=32, patch_size=16, dim=64, layers=1, heads=1, mlp_dim=256)
    text = TextConfig(dim=64, layers=1, heads=1, mlp_dim=256)
    clip = CLIP(CLIPConfig(image=image, text=text, embed_dim=16)).eval()
    clip.tokenizer, clip.name = CLIPTokenizer(), "random ViT"
    clip.save(folder)
    return folder


def main() -> None:
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        own = model(Path(temporary) / "own")
        files = {layout: convert(own, Path(temporary) / layout, to=layout) for layout in LAYOUTS}
        for data, task in WORK.items():
            source = data if data == "scenes" else str(harness.DATA / data)
            found = {layout: evaluate_source(str(file), source, task)["metrics"] for layout, file in files.items()}
            same = all(metrics == found["openvocab"] for metrics in found.values())
            figures[f"{data}, {task}"] = {"same_in_every_layout": same, "metrics": found["openvocab"]}
    harness.record("layouts", figures)
    harness.show(figures)


if __name__ == "__main__":
    main()
