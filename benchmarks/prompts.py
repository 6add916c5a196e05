"""What a second label costs: one picture and 1 or 100 labels, each of our verbs beside transformers' pipeline.

Towers are ViT-B/32 on 768 px (577 tokens) with random weights, for which time does not differ. The peer is OwlViT:
`documented` is the zero-shot-object-detection pipeline, which runs the model once for every label (timed with 4 labels,
stated per label); `best` is the model itself, asked for all labels in one call. Ours are MaskCLIP's `segment` with
labels seen before (kept) and for the first time (their texts are encoded, no cache).

    .venv/bin/python benchmarks/prompts.py
"""

import tempfile
from pathlib import Path
from typing import Any

import harness
import torch
from transformers import CLIPTokenizer as TheirTokenizer
from transformers import OwlViTConfig, OwlViTForObjectDetection, OwlViTImageProcessor, pipeline

from openvocab import systems
from openvocab.clip.architectures import architecture
from openvocab.clip.model import CLIP
from openvocab.clip.tokenizer import CLIPTokenizer
from openvocab.clip.vocabulary import vocabulary
from openvocab.data.decode import decode

SIDE = 768
ROUNDS = 3
LABELS = [f"a thing of kind {number}" for number in range(100)]


def ours(picture: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    clip = CLIP(architecture("ViT-B-32-quickgelu")).eval()
    clip.tokenizer = CLIPTokenizer()
    model = systems.get("maskclip").build("tiny", clip)
    kept = {count: vocabulary(clip, LABELS[:count], "{}", cache=False) for count in (1, 100)}

    def seen(count: int) -> Any:
        return lambda: model.segment(picture, kept[count], short_side_px=SIDE)

    def fresh(count: int) -> Any:
        return lambda: model.segment(picture, vocabulary(clip, LABELS[:count], "{}", cache=False), short_side_px=SIDE)

    return {"kept 1": seen(1), "kept 100": seen(100), "first 1": fresh(1), "first 100": fresh(100)}


def theirs(picture: Any, folder: Path) -> dict[str, Any]:
    CLIPTokenizer(16).save(folder)
    torch.manual_seed(0)
    model = OwlViTForObjectDetection(OwlViTConfig()).eval()
    tokenizer, images = TheirTokenizer.from_pretrained(folder), OwlViTImageProcessor()
    ask = pipeline("zero-shot-object-detection", model=model, tokenizer=tokenizer, image_processor=images)

    def best(count: int) -> Any:
        @torch.inference_mode()
        def work() -> Any:
            words = tokenizer(LABELS[:count], padding="max_length", max_length=16, return_tensors="pt")
            return model(**words, **images(picture, return_tensors="pt"))

        return work

    return {"documented 4": lambda: ask(picture, candidate_labels=LABELS[:4]), "best 1": best(1), "best 100": best(100)}


def main() -> None:
    picture = decode(str(sorted((harness.DATA / "coco" / "images").glob("*.jpg"))[0]))
    side = min(picture.size)
    picture = picture.crop((0, 0, side, side))
    with tempfile.TemporaryDirectory() as temporary:
        works = ours(picture) | theirs(picture, Path(temporary))
        seconds = harness.medians(harness.rounds(works, ROUNDS))
    a_label = seconds["documented 4"] / 4
    figures = {
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "100_labels_over_1": {
            "ours, kept": round(seconds["kept 100"] / seconds["kept 1"], 3),
            "ours, first sight": round(seconds["first 100"] / seconds["first 1"], 3),
            "transformers, best": round(seconds["best 100"] / seconds["best 1"], 3),
        },
        "theirs_over_ours_at_100": {
            "documented": round(100 * a_label / seconds["kept 100"], 1),
            "best": round(seconds["best 100"] / seconds["kept 100"], 2),
            "best, first sight": round(seconds["best 100"] / seconds["first 100"], 2),
        },
    }
    harness.record("prompts", figures, "transformers")
    harness.show(figures)


if __name__ == "__main__":
    main()
