"""What more labels cost: one picture and 1 or 100 labels, each system's verb beside transformers' pipelines.

Systems have their published sizes, random weights (for which time does not differ), their published resolution, and
MaskCLIP's tower is a ViT-B/32 on 768 px (577 tokens). `kept` are labels seen before, of which the vectors are there;
at `first` sight their texts are encoded, no cache; GLIP reads its words anew in every picture, so that it keeps none.

Peers are OwlViT, beside MaskCLIP's tower, and CLIPSeg. `documented` is the zero-shot-object-detection pipeline, which
runs the model once for every label (timed with 4 labels, stated per label), and for CLIPSeg the model's own page: the
picture repeated for every label (timed with 4). `best` is OwlViT asked for all labels in one call.

    .venv/bin/python benchmarks/prompts.py
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import torch
from transformers import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTImageProcessor,
    ViTImageProcessor,
    pipeline,
)
from transformers import CLIPTokenizer as TheirTokenizer

from openvocab import systems
from openvocab.clip.architectures import architecture
from openvocab.clip.engine import evaluating
from openvocab.clip.model import CLIP
from openvocab.clip.tokenizer import CLIPTokenizer
from openvocab.clip.tokenizer_files import wordpiece
from openvocab.clip.vocabulary import vocabulary
from openvocab.data.decode import decode
from openvocab.systems.clipseg.model import CLIPSeg, Prompt

SIDE = 768
ROUNDS = 3
FEW, MANY = 1, 100
LABELS = [f"a thing of kind {number}" for number in range(MANY)]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *"a thing of kind".split(), *map(str, range(MANY))]
Work = Callable[[], Any]


def ours(picture: Any, folder: Path) -> dict[str, dict[str, Work]]:
    """Of each system what it does with labels kept and at first sight."""
    torch.manual_seed(0)
    clip = CLIP(architecture("ViT-B-32-quickgelu")).eval()
    clip.tokenizer = CLIPTokenizer()
    found = {}
    for name, verb in (("maskclip", "segment"), ("lseg", "segment"), ("vild", "detect")):
        model = systems.get(name).build("paper", clip).eval()
        about = {"short_side_px": SIDE} if name == "maskclip" else {}

        def ask(words: Any, verb: Any = getattr(model, verb), about: dict[str, Any] = about) -> Any:
            return verb(picture, words, **about)

        found[name] = works(ask, lambda labels: vocabulary(clip, labels, "{}", cache=False))
    grouping = systems.get("groupvit").build("paper").eval()
    grouping.tokenizer = CLIPTokenizer()
    found["groupvit"] = works(lambda words: grouping.segment(picture, words), lambda it: grouping.vocabulary(it, "{}"))
    prompted = systems.get("clipseg").build("paper").eval()
    prompted.clip.tokenizer = CLIPTokenizer()
    found["clipseg"] = works(
        lambda conditions: maps(prompted, picture, conditions),
        lambda labels: prompted.conditions([Prompt(label) for label in labels], "{}"),
    )
    grounded = systems.get("glip").build("paper").eval()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    grounded.tokenizer = wordpiece(folder / "vocab.txt", grounded.config.text.context_length)
    found["glip"] = works(lambda labels: grounded.detect(picture, labels), None)
    return found


def works(ask: Callable[[Any], Any], read: Callable[[list[str]], Any] | None) -> dict[str, Work]:
    """A few labels and many: at first sight, and kept where labels are read apart from the picture."""
    given = {count: LABELS[:count] for count in (FEW, MANY)}
    if read is None:
        return {f"first {count}": lambda labels=labels: ask(labels) for count, labels in given.items()}
    kept = {f"kept {count}": read(labels) for count, labels in given.items()}
    seen = {name: lambda words=words: ask(words) for name, words in kept.items()}
    return seen | {
        f"first {count}": lambda labels=labels, read=read: ask(read(labels)) for count, labels in given.items()
    }


def maps(model: CLIPSeg, picture: Any, conditions: Any) -> Any:
    with evaluating(model):
        return torch.cat(list(model.maps(picture, conditions)))


def theirs(picture: Any, folder: Path) -> dict[str, dict[str, Work]]:
    CLIPTokenizer(16).save(folder)
    torch.manual_seed(0)
    model = OwlViTForObjectDetection(OwlViTConfig()).eval()
    tokenizer, images = TheirTokenizer.from_pretrained(folder), OwlViTImageProcessor()
    ask = pipeline("zero-shot-object-detection", model=model, tokenizer=tokenizer, image_processor=images)

    def read(count: int) -> Any:
        return tokenizer(LABELS[:count], padding="max_length", max_length=16, return_tensors="pt")

    @torch.inference_mode()
    def best(count: int) -> Any:
        return model(**read(count), **images(picture, return_tensors="pt"))

    published = CLIPSegConfig(vision_config={"patch_size": 16}, reduce_dim=64)
    clipseg, shown = CLIPSegForImageSegmentation(published).eval(), ViTImageProcessor(size=352)

    @torch.inference_mode()
    def repeated(count: int) -> Any:
        return clipseg(**read(count), **shown([picture] * count, return_tensors="pt"))

    owl = {"documented 4": lambda: ask(picture, candidate_labels=LABELS[:4])}
    owl |= {f"best {count}": lambda count=count: best(count) for count in (FEW, MANY)}
    return {"owlvit": owl, "clipseg": {f"documented {count}": lambda count=count: repeated(count) for count in (1, 4)}}


def main() -> None:
    picture = decode(str(sorted((harness.DATA / "coco" / "images").glob("*.jpg"))[0]))
    side = min(picture.size)
    picture = picture.crop((0, 0, side, side))
    seconds, more = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        mine, peers = ours(picture, Path(temporary)), theirs(picture, Path(temporary))
        pairs = {name: mine[name] for name in mine} | {f"transformers' {name}": peers[name] for name in peers}
        for name, each in pairs.items():
            seconds[name] = harness.medians(harness.rounds(each, ROUNDS))
            ways = {way.split()[0] for way in each if f"{way.split()[0]} {MANY}" in each}
            more[name] = {way: round(seconds[name][f"{way} {MANY}"] / seconds[name][f"{way} {FEW}"], 3) for way in ways}
    owl, clipseg = seconds["transformers' owlvit"], seconds["transformers' clipseg"]
    figures = {
        "seconds": {name: {way: round(value, 3) for way, value in each.items()} for name, each in seconds.items()},
        "100_labels_over_1": {name: each for name, each in more.items() if each},
        "theirs_over_ours_at_100": {
            "owlvit, documented / maskclip, kept": round(
                MANY * owl["documented 4"] / 4 / seconds["maskclip"]["kept 100"], 1
            ),
            "owlvit, best / maskclip, kept": round(owl["best 100"] / seconds["maskclip"]["kept 100"], 2),
            "owlvit, best / maskclip, first": round(owl["best 100"] / seconds["maskclip"]["first 100"], 2),
            "clipseg, documented / clipseg, first": round(
                MANY * clipseg["documented 4"] / 4 / seconds["clipseg"]["first 100"], 1
            ),
        },
    }
    harness.record("prompts", figures, "transformers")
    harness.show(figures)


if __name__ == "__main__":
    main()
