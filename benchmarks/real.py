"""Small CLIPs on real pictures beside baselines: what `openvocab train clip` learns, with intervals over seeds.

    .venv/bin/python benchmarks/real.py                             all experiments, three seeds
    .venv/bin/python benchmarks/real.py emoji --seeds 0 1 2 3 4     one of them, more seeds

Every (experiment, seed) is written to benchmarks/results/real.json when it is done and not run again; one that was
interrupted goes on from its last checkpoint. The tables of docs/real.md are rewritten each time.

The pictures are small subsets: no figure here is a published benchmark.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openvocab import loading, storage, systems
from openvocab.blocks.resnet import ResNet, ResNetConfig
from openvocab.clip.model import CLIP
from openvocab.data.memory import in_memory
from openvocab.data.pairs import open_pairs
from openvocab.data.source import Pairs, image_id
from openvocab.lab.training import plan, train_system
from openvocab.metrics.classify import top_k_accuracy
from openvocab.metrics.retrieve import retrieval
from openvocab.systems.clip import evaluate, prepare
from openvocab.train.fit import fit

PAGE = harness.HERE.parent / "docs" / "real.md"
Figures = dict[str, float]


def data(name: str) -> str:
    return str(harness.DATA / name)


def train(folder: Path, name: str, seed: int, settings: list[str], init: Path | None = None) -> CLIP:
    """`openvocab train clip --data NAME`, with these settings."""
    settings = [f"fit.seed={seed}", *settings]
    made = train_system("clip", folder, data=data(name), settings=settings, init=str(init) if init else None)
    return loading.load(made["model"])


def recalls(clip: CLIP, pairs: Pairs) -> Figures:
    return {name: value for name, value in evaluate(clip, pairs, "retrieval").items() if "r@" in name}


# --- Emoji: names and pictures of one design, tested on a design never seen -----------------------------------------


ANOTHER_STYLE = [
    "data.augment.tone=0.5",
    "data.augment.blur=0.5",
    "data.augment.posterize=0.3",
    "data.augment.filter=0.5",
]


def emoji(seed: int, folder: Path) -> Figures:
    """Trained on names and pictures of google.tar alone; names are looked up among the pictures of twitter.tar."""
    clip = train(folder, "emoji/google.tar", seed, ANOTHER_STYLE)
    return recalls(clip, open_pairs(data("emoji/twitter.tar"))) | nearest_picture()


def nearest_picture() -> Figures:
    """The baseline: a name's google picture, then the twitter pictures by correlation at 32 px on white."""
    sides = []
    for design in ("google", "twitter"):
        pixels = torch.from_numpy(in_memory(open_pairs(data(f"emoji/{design}.tar")), 32).pixels).flatten(1).float()
        sides.append(F.normalize(pixels - pixels.mean(1, keepdim=True), dim=1))
    found = retrieval(sides[1], sides[0], torch.arange(len(sides[0])))
    return {f"nearest_picture/{name}": value for name, value in found.items() if name.startswith("t2i_r@")}


# --- CIFAR-10: class captions beside a linear head ------------------------------------------------------------------

PHOTOS = [
    'model.image={"kind": "ResNetConfig", "image_size": 32, "layers": [1, 1, 1], "channels": 32, "heads": 0,'
    ' "block": "basic", "stem_stride": 2, "pool": "mean"}',
    "model.preprocess.image_size=32",
    "data.batch_size=128",
    "data.tokenizer=clip",
    "data.negatives=0",
    'data.augment={"kind": "StrongConfig", "rotate_deg": 5, "zoom": [0.9, 1.25], "stretch": 0.15, "elastic": 0.02,'
    ' "flip": 0.5, "brightness": 0.15, "contrast": 0.25, "saturation": 0.4, "hue_deg": 15}',
]
CLASSES = [*PHOTOS, "data.positives=class", "fit.steps=1000"]
TUNING = [*PHOTOS, "fit.steps=150"]
GENTLE = [
    "optim.lr=0.00075",
    'groups=[{"name": "convolutions", "prefixes": ["image.stages."], "min_axes": 4, "optim": {"method": "muon",'
    ' "lr": 0.015, "betas": [0.9, 0.0], "weight_decay": 0.0}}, {"name": "all"}]',
]
"""A quarter of the learning rates of a training from random weights."""


class Classifier(nn.Module):
    """The control: the same tower, its projection as a linear head over the classes."""

    def __init__(self, config: ResNetConfig, num_classes: int):
        super().__init__()
        self.image = ResNet(config, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.image.projection(self.image(images).pooled)


def cifar10(seed: int, folder: Path) -> Figures:
    """Trained with class captions, read out zero-shot; and the same tower, batches and steps with a linear head."""
    clip = train(folder / "clip", "cifar10/train.parquet", seed, CLASSES)
    test = open_pairs(data("cifar10/test.parquet"))
    recipe = plan(
        systems.get("clip"),
        size="small",
        data=data("cifar10/train.parquet"),
        arch=None,
        settings=[*CLASSES, f"fit.seed={seed}"],
    )
    same, (stage,) = prepare(recipe)
    assert isinstance(same.config.image, ResNetConfig)
    pairs = open_pairs(recipe.data.pairs)
    label = {image_id(pairs.key(index)): pairs.label(index) for index in range(len(pairs))}

    def cross_entropy(head: Classifier, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        labels = torch.tensor([label[number] for number in batch["image_ids"].tolist()])
        return {"loss": F.cross_entropy(head(batch["images"]), labels)}

    torch.manual_seed(seed)
    head = Classifier(same.config.image, len(pairs.classnames))
    fit(head, replace(stage, loss=cross_entropy, embed=None, constrain=None), out=folder / "head")
    return {
        "zero_shot_top1": evaluate(clip, test, "zeroshot", prompts(test))["top1"],
        "one_prompt_top1": evaluate(clip, test, "zeroshot", prompts(test)[:1])["top1"],
        "linear_head_top1": classified(head.eval(), clip, test),
    }


def prompts(pairs: Pairs) -> tuple[str, ...]:
    """The wordings of the class captions, `{}` for the name."""
    label = pairs.label(0)
    assert label is not None
    return tuple(text.replace(pairs.classnames[label], "{}") for text in pairs.captions(0))


@torch.no_grad()
def classified(head: Classifier, clip: CLIP, pairs: Pairs) -> float:
    """Top-1 of the head on pictures preprocessed as the CLIP's are."""
    pixels = torch.stack([clip.preprocess(pairs.image(index)) for index in range(len(pairs))])
    scores = torch.cat([head(part) for part in pixels.split(250)])
    return top_k_accuracy(scores, torch.tensor([pairs.label(index) for index in range(len(pairs))]))


# --- Captions: fine-tuning on little, and what is forgotten ---------------------------------------------------------


def captions(seed: int, folder: Path) -> Figures:
    """The CIFAR-10 model of this seed before and after 600 photographs x 5 captions, their mean, and untrained."""
    test, classes = open_pairs(data("captions/test.tar")), open_pairs(data("cifar10/test.parquet"))
    origin = folder.with_name(f"cifar10-{seed}") / "clip"
    before = train(origin, "cifar10/train.parquet", seed, CLASSES)
    after = train(folder / "tuned", "captions/train.tar", seed, [*TUNING, *GENTLE], origin / "model")
    mean = loading.load(origin / "model")
    ends = before.state_dict(), after.state_dict()
    mean.fingerprint = ""  # what is kept for the weights it had is not right for these
    mean.load_state_dict({name: torch.lerp(ends[0][name].float(), ends[1][name].float(), 0.5) for name in ends[0]})
    fresh = train(folder / "fresh", "captions/train.tar", seed, TUNING)
    figures: Figures = {}
    for when, clip in {"before": before, "after": after, "mean": mean, "from_scratch": fresh}.items():
        figures |= {f"{when}/{name}": value for name, value in recalls(clip, test).items()}
        if clip is not fresh:  # a model that never saw the classes is at chance
            figures[f"{when}/cifar10_top1"] = evaluate(clip, classes, "zeroshot", prompts(classes))["top1"]
    return figures


# --- Running and reporting ------------------------------------------------------------------------------------------

EXPERIMENTS: dict[str, Callable[[int, Path], Figures]] = {"emoji": emoji, "cifar10": cifar10, "captions": captions}
T_97_5 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Student's t at 97.5 % for so many seeds: the half width of a 95 % interval in standard errors."""


def run(name: str, seed: int, work: Path) -> dict[str, Any]:
    wall, processor = time.perf_counter(), time.process_time()
    figures = EXPERIMENTS[name](seed, work / f"{name}-{seed}")
    print(name, seed, {key: round(100 * value, 1) for key, value in figures.items()}, flush=True)
    return {
        "figures": figures,
        "seconds": round(time.perf_counter() - wall, 1),
        "processor_seconds": round(time.process_time() - processor, 1),
        "threads": torch.get_num_threads(),
    }


def read_cells() -> dict[str, Any]:
    """What is done so far, by experiment and seed; other processes may have added to it."""
    path = harness.RESULTS / "real.json"
    return storage.read_json(path)["cells"] if path.exists() else {}


def summarise(cells: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """Mean over seeds and the half width of its 95 % interval; None for one seed."""
    out = {}
    for key in next(iter(cells.values()))["figures"]:
        values = [cell["figures"][key] for cell in cells.values()]
        spread = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
        half = None if spread is None else T_97_5[len(values)] * spread
        out[key] = {"mean": statistics.fmean(values), "half_width": half}
    return out


ROWS = {
    "emoji": {
        "t2i_r@1": "name -> twitter picture, R@1",
        "t2i_r@5": "name -> twitter picture, R@5",
        "t2i_r@10": "name -> twitter picture, R@10",
        "i2t_r@1": "twitter picture -> name, R@1",
        "i2t_r@5": "twitter picture -> name, R@5",
        "nearest_picture/t2i_r@1": "baseline: name -> its google picture -> nearest twitter picture, R@1",
        "nearest_picture/t2i_r@5": "the same baseline, R@5",
    },
    "cifar10": {
        "zero_shot_top1": "class captions, zero-shot, five prompts averaged: top-1",
        "one_prompt_top1": "class captions, zero-shot, one prompt: top-1",
        "linear_head_top1": "linear head with cross-entropy, same tower, batches and steps: top-1",
    },
    "captions": {
        f"{when}/{key}": f"{label}: {text}"
        for when, label in (
            ("before", "before"),
            ("after", "after fine-tuning"),
            ("mean", "mean of the weights before and after"),
            ("from_scratch", "fine-tuning alone, from random weights"),
        )
        for key, text in (
            ("t2i_r@1", "caption -> picture, R@1"),
            ("t2i_r@5", "R@5"),
            ("t2i_r@10", "R@10"),
            ("i2t_r@1", "picture -> any of its captions, R@1"),
            ("i2t_r@5", "R@5"),
            ("i2t_r@10", "R@10"),
            ("cifar10_top1", "CIFAR-10 zero-shot top-1"),
        )
        if (when, key) != ("from_scratch", "cifar10_top1")
    },
}


def table(name: str, cells: dict[str, Any]) -> str:
    """One experiment in Markdown, in percent."""
    figures = summarise(cells)
    minutes = statistics.fmean(cell["processor_seconds"] for cell in cells.values()) / 60
    lines = [
        f"{len(cells)} seeds, {minutes:.1f} minutes of one core each.",
        "",
        "| what | mean, % | 95 % interval |",
        "|---|---|---|",
    ]
    for key, label in ROWS[name].items():
        mean, half = 100 * figures[key]["mean"], figures[key]["half_width"]
        interval = "of one seed: none" if half is None else f"+- {100 * half:.1f}" if half else "the same each time"
        lines.append(f"| {label} | {mean:.1f} | {interval} |")
    return "\n".join(lines)


def write_page(cells: dict[str, Any]) -> None:
    """Puts the tables between their marks in docs/real.md; the prose around them stays."""
    text = PAGE.read_text(encoding="utf-8")
    for name in cells:
        start, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
        head, rest = text.split(start)
        text = head + start + table(name, cells[name]) + end + rest.split(end)[1]
    storage.write_text(PAGE, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "experiments", nargs="*", metavar="EXPERIMENT", help=f"of {', '.join(EXPERIMENTS)}; default all"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--work", type=Path, default=storage.cache_folder("benchmarks", "real"), help="checkpoints")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for seed in arguments.seeds:
        for name in arguments.experiments or EXPERIMENTS:
            if str(seed) in read_cells().get(name, {}):
                continue
            cell = run(name, seed, arguments.work)
            cells = read_cells()
            cells.setdefault(name, {})[str(seed)] = cell
            cells = {each: dict(sorted(cells[each].items())) for each in EXPERIMENTS if each in cells}
            harness.record("real", {"summary": {each: summarise(cells[each]) for each in cells}, "cells": cells})
            write_page(cells)


if __name__ == "__main__":
    main()
