"""Small models on real pictures beside baselines: what they learn, with intervals over seeds.

    .venv/bin/python benchmarks/real.py                             all experiments, three seeds
    .venv/bin/python benchmarks/real.py emoji --seeds 0 1 2 3 4     one of them, more seeds

Every (experiment, seed) is written to benchmarks/results/real.json when it is done and not run again; one that was
interrupted goes on from its last checkpoint. The table of docs/real.md is rewritten each time.

The pictures are small subsets: no figure here is a published benchmark.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openvocab import storage
from openvocab.blocks.resnet import ResNet, ResNetConfig
from openvocab.blocks.text import CBOWConfig, TextConfig
from openvocab.clip.caption_bpe import CaptionTokenizer, train_tokenizer
from openvocab.clip.model import CLIP, CLIPConfig
from openvocab.clip.objectives import contrastive_loss
from openvocab.clip.preprocess import PreprocessConfig, normalize
from openvocab.data.augment import StrongAugment
from openvocab.data.loader import Loader
from openvocab.data.memory import InMemory, in_memory
from openvocab.data.pairs import open_pairs
from openvocab.data.source import text_id
from openvocab.metrics.classify import top_k_accuracy
from openvocab.metrics.retrieve import retrieval
from openvocab.systems.clip import constrain, embed, loss
from openvocab.train.fit import FitConfig, Stage, fit
from openvocab.train.optim import GroupConfig, OptimConfig

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
RESULTS = ROOT / "benchmarks" / "results" / "real.json"
PAGE = ROOT / "docs" / "real.md"
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

Figures = dict[str, float]


# --- Measuring ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def in_chunks(call: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    return torch.cat([call(chunk) for chunk in rows.split(250)])


def pictures(pairs: InMemory) -> Tensor:
    size = pairs.pixels.shape[-1]
    return normalize(torch.from_numpy(pairs.pixels), PreprocessConfig(image_size=size, mean=MEAN, std=STD))


def recalls(model: CLIP, pairs: InMemory) -> Figures:
    """Both directions; a picture with several captions has several right answers."""
    assert model.tokenizer is not None
    model.eval()
    captions = [pairs.captions(index) for index in range(len(pairs))]
    owners = torch.arange(len(pairs)).repeat_interleave(torch.tensor([len(texts) for texts in captions]))
    tokens = model.tokenizer([text for texts in captions for text in texts], truncate=True)
    found = retrieval(in_chunks(model.encode_image, pictures(pairs)), in_chunks(model.encode_text, tokens), owners)
    return {name: value for name, value in found.items() if "r@" in name}


def top1(scores: Tensor, pairs: InMemory) -> float:
    return top_k_accuracy(scores, torch.tensor([pairs.label(index) for index in range(len(pairs))]))


def zero_shot(model: CLIP, pairs: InMemory) -> Figures:
    """Top-1 with one prompt a class and with the mean of all of them; the prompts are the training captions."""
    assert model.tokenizer is not None
    model.eval()
    prompts = class_captions(pairs)
    tokens = model.tokenizer([text for texts in prompts for text in texts])
    vocabulary = in_chunks(model.encode_text, tokens).view(len(prompts), len(prompts[0]), -1)
    images = in_chunks(model.encode_image, pictures(pairs))
    ensemble = F.normalize(vocabulary.mean(1), dim=1)
    return {
        "zero_shot_top1": top1(images @ ensemble.T, pairs),
        "one_prompt_top1": top1(images @ vocabulary[:, 0].T, pairs),
    }


def class_captions(pairs: InMemory) -> list[tuple[str, ...]]:
    first = {pairs.label(index): pairs.captions(index) for index in range(len(pairs))}
    return [first[label] for label in range(len(pairs.classnames))]


# --- Emoji: names and pictures of one design, tested on a design never seen -----------------------------------------

EMOJI_PX = 48
EMOJI_BATCH = 64
EMOJI_STEPS = 3000
EMOJI_IMAGE = ResNetConfig(image_size=EMOJI_PX, layers=(1, 1, 1), channels=32, heads=0, block="basic", pool="mean")
EMOJI_AUGMENT = StrongAugment(
    size_px=EMOJI_PX,
    mean=MEAN,
    std=STD,
    rotate_deg=20.0,
    zoom=(0.8, 1.35),
    stretch=0.2,
    elastic=0.05,
    brightness=0.2,
    contrast=0.35,
    saturation=0.5,
    hue_deg=20.0,
)


def emoji(seed: int, folder: Path) -> Figures:
    """Trained on names and pictures of google.tar alone; names are looked up among the pictures of twitter.tar."""
    train = in_memory(open_pairs(DATA / "emoji" / "google.tar"), EMOJI_PX, alpha=True)
    test = in_memory(open_pairs(DATA / "emoji" / "twitter.tar"), EMOJI_PX)
    tokenizer = train_tokenizer(train.texts, 2048, context_length=24)
    text = CBOWConfig(
        vocabulary_size=tokenizer.vocabulary_size,
        context_length=24,
        dim=128,
        skip_ids=(tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id),
    )
    model = new_clip(seed, EMOJI_IMAGE, text, tokenizer)
    batches = Loader(train, EMOJI_AUGMENT, tokenizer, batch_size=EMOJI_BATCH, seed=seed, trim=False)
    names, name_ids = tokenizer(list(train.texts)), torch.tensor([text_id(text) for text in train.texts])

    def against_all_names(model: CLIP, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The names that are not in the batch are wrong answers for each of its pictures."""
        others = ~torch.isin(name_ids, batch["text_ids"])
        texts = model.encode_text(torch.cat([batch["tokens"], names[others]]))
        ids = {"image_ids": batch["image_ids"], "text_ids": torch.cat([batch["text_ids"], name_ids[others]])}
        images = model.encode_image(batch["images"])
        return {"loss": contrastive_loss(images, texts, model.logit_scale, **ids), "diag/scale": model.scale()}

    stage = Stage(data=batches, loss=against_all_names, constrain=constrain, **plan(EMOJI_STEPS, seed))
    fit(model, stage, out=folder)
    return recalls(model, test) | nearest_picture()


def nearest_picture() -> Figures:
    """The baseline: a name's google picture, then the twitter pictures by correlation at 32 px on white."""
    sides = []
    for design in ("google", "twitter"):
        pixels = torch.from_numpy(in_memory(open_pairs(DATA / "emoji" / f"{design}.tar"), 32).pixels).flatten(1).float()
        sides.append(F.normalize(pixels - pixels.mean(1, keepdim=True), dim=1))
    found = retrieval(sides[1], sides[0], torch.arange(len(sides[0])))
    return {f"nearest_picture/{name}": value for name, value in found.items() if name.startswith("t2i_r@")}


# --- CIFAR-10: class captions beside a linear head ------------------------------------------------------------------

PHOTO_PX = 32
PHOTO_BATCH = 128
PHOTO_IMAGE = ResNetConfig(
    image_size=PHOTO_PX, layers=(1, 1, 1), channels=32, heads=0, block="basic", stem_stride=2, pool="mean"
)
PHOTO_AUGMENT = StrongAugment(
    size_px=PHOTO_PX, mean=MEAN, std=STD, rotate_deg=5, zoom=(0.9, 1.25), elastic=0.02, flip=0.5
)
CIFAR10_STEPS = 500
TUNING_STEPS = 150
TUNING_RATE = 0.25
"""Of the learning rates of a training from random weights."""


class Classifier(nn.Module):
    """The control: the same tower, its projection as a linear head over the classes."""

    def __init__(self, config: ResNetConfig, num_classes: int):
        super().__init__()
        self.image = ResNet(config, num_classes)
        self.image.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        return self.image.projection(self.image(images).pooled)


def cifar10(seed: int, folder: Path) -> Figures:
    """Trained with class captions, read out zero-shot; and the same tower, batches and steps with a linear head."""
    train, test = (photographs("cifar10", part, "parquet") for part in ("train", "test"))
    model = cifar10_clip(train, seed, folder)
    labels = label_reader(train)

    def cross_entropy(head: Classifier, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(head(batch["images"]), labels(batch))}

    torch.manual_seed(seed)
    head = Classifier(PHOTO_IMAGE, len(train.classnames))
    batches = Loader(train, PHOTO_AUGMENT, photo_tokenizer(), batch_size=PHOTO_BATCH, seed=seed)
    fit(head, Stage(data=batches, loss=cross_entropy, **plan(CIFAR10_STEPS, seed)), out=folder / "head")
    return zero_shot(model, test) | {"linear_head_top1": top1(in_chunks(head.eval(), pictures(test)), test)}


def cifar10_clip(train: InMemory, seed: int, folder: Path) -> CLIP:
    """A CLIP of class captions, where two captions of the same class are both right."""
    labels = label_reader(train)
    tokenizer = photo_tokenizer()
    model = new_clip(seed, PHOTO_IMAGE, photo_text(tokenizer), tokenizer)
    batches = Loader(train, PHOTO_AUGMENT, tokenizer, batch_size=PHOTO_BATCH, seed=seed)
    train_clip(
        model,
        batches,
        CIFAR10_STEPS,
        seed,
        folder / "clip",
        relabel=lambda batch: {"text_ids": labels(batch)},
    )
    return model


def label_reader(pairs: InMemory) -> Callable[[dict[str, Tensor]], Tensor]:
    """A batch's classes, from the ids of its captions."""
    label = {text_id(text): label for label, texts in enumerate(class_captions(pairs)) for text in texts}
    return lambda batch: torch.tensor([label[number] for number in batch["text_ids"].tolist()])


def photographs(folder: str, part: str, suffix: str) -> InMemory:
    return in_memory(open_pairs(DATA / folder / f"{part}.{suffix}"), PHOTO_PX)


def photo_tokenizer() -> CaptionTokenizer:
    """One vocabulary for the class captions and for the photographs' captions that come after."""
    texts = [*photographs("cifar10", "train", "parquet").texts, *photographs("captions", "train", "tar").texts]
    return train_tokenizer(texts, 2048, context_length=32)


def photo_text(tokenizer: CaptionTokenizer) -> TextConfig:
    return TextConfig(
        vocabulary_size=tokenizer.vocabulary_size,
        context_length=32,
        dim=128,
        layers=1,
        heads=2,
        mlp_dim=512,
        end_id=tokenizer.end_id,
    )


# --- Captions: fine-tuning on little, and what is forgotten ---------------------------------------------------------


def captions(seed: int, folder: Path) -> Figures:
    """The CIFAR-10 model of this seed before and after 600 photographs x 5 captions, their mean, and untrained."""
    train, test = (photographs("captions", part, "tar") for part in ("train", "test"))
    cifar_train, cifar_test = (photographs("cifar10", part, "parquet") for part in ("train", "test"))
    figures: Figures = {}

    def measure(model: CLIP, when: str) -> None:
        values = recalls(model, test) | {"cifar10_top1": zero_shot(model, cifar_test)["zero_shot_top1"]}
        figures.update({f"{when}/{name}": value for name, value in values.items()})

    def tune(model: CLIP, out: Path, rate: float) -> None:
        assert model.tokenizer is not None
        batches = Loader(train, PHOTO_AUGMENT, model.tokenizer, batch_size=PHOTO_BATCH, seed=seed)
        train_clip(model, batches, TUNING_STEPS, seed, out, rate=rate)

    model = cifar10_clip(cifar_train, seed, folder.with_name(f"cifar10-{seed}"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure(model, "before")
    tune(model, folder / "tuned", TUNING_RATE)
    measure(model, "after")
    model.load_state_dict(
        {name: torch.lerp(before[name].float(), value.float(), 0.5) for name, value in model.state_dict().items()}
    )
    measure(model, "mean")
    tokenizer = photo_tokenizer()
    fresh = new_clip(seed, PHOTO_IMAGE, photo_text(tokenizer), tokenizer)
    tune(fresh, folder / "fresh", 1.0)
    measure(fresh, "from_scratch")
    del figures["from_scratch/cifar10_top1"]  # of a model that never saw the classes: chance
    return figures


# --- Shared by all: a model, a run ----------------------------------------------------------------------------------


def new_clip(seed: int, image: ResNetConfig, text: TextConfig | CBOWConfig, tokenizer: CaptionTokenizer) -> CLIP:
    torch.manual_seed(seed)
    preprocess = PreprocessConfig(image_size=image.image_size, mean=MEAN, std=STD)
    model = CLIP(CLIPConfig(image=image, text=text, embed_dim=128, preprocess=preprocess))
    model.tokenizer = tokenizer
    model.image.to(memory_format=torch.channels_last)  # pyright: ignore  # a third faster on two cores
    return model


def train_clip(
    model: CLIP,
    batches: Loader,
    steps: int,
    seed: int,
    out: Path,
    *,
    rate: float = 1.0,
    relabel: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda batch: {},
) -> None:
    """A CLIP run that goes on from `out`; `relabel` replaces ids of a batch, to say what counts as the same."""
    stage = Stage(
        data=batches,
        embed=embed,
        loss=lambda model, batch, embeds: loss(model, batch | relabel(batch), embeds),
        constrain=constrain,
        **plan(steps, seed, rate),
    )
    fit(model, stage, out=out)


def plan(steps: int, seed: int, rate: float = 1.0) -> dict[str, Any]:
    """Muon for the stages' convolutions and AdamW for the rest, as in the small recipe of `openvocab train clip`."""
    rest = OptimConfig(lr=3e-3 * rate, weight_decay=0.1)
    muon = OptimConfig(method="muon", lr=0.06 * rate, betas=(0.9, 0.0), weight_decay=0.0)
    convolutions = GroupConfig(name="convolutions", prefixes=("image.stages.",), min_axes=4, optim=muon)
    config = FitConfig(steps=steps, seed=seed, checkpoint_every_minutes=1)
    return {"optim": rest, "groups": (convolutions, GroupConfig()), "config": config}


# --- Running and reporting ------------------------------------------------------------------------------------------

EXPERIMENTS: dict[str, Callable[[int, Path], Figures]] = {"emoji": emoji, "cifar10": cifar10, "captions": captions}
T_97_5 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Student's t at 97.5 % for so many seeds: the half width of a 95 % interval in standard errors."""


def run(name: str, seed: int, work: Path, done: dict[str, Any]) -> None:
    """One cell, unless it is in `done` already."""
    cells = done.setdefault("cells", {}).setdefault(name, {})
    if str(seed) in cells:
        return
    wall, processor = time.perf_counter(), time.process_time()
    figures = EXPERIMENTS[name](seed, work / f"{name}-{seed}")
    cells[str(seed)] = {
        "figures": figures,
        "seconds": round(time.perf_counter() - wall, 1),
        "processor_seconds": round(time.process_time() - processor, 1),
        "threads": torch.get_num_threads(),
    }
    print(name, seed, {key: round(100 * value, 1) for key, value in figures.items()}, flush=True)


def summarise(cells: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """Mean over seeds and the half width of its 95 % interval; None for one seed."""
    out = {}
    for key in next(iter(cells.values()))["figures"]:
        values = [cell["figures"][key] for cell in cells.values()]
        spread = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
        half = None if spread is None else T_97_5[len(values)] * spread
        out[key] = {"mean": statistics.fmean(values), "half_width": half}
    return out


def hardware() -> dict[str, str | int]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return {"cpu": model, "cores": os.cpu_count() or 1}


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


def write_page(done: dict[str, Any]) -> None:
    """Puts the tables between their marks in docs/real.md; the prose around them stays."""
    text = PAGE.read_text(encoding="utf-8")
    for name, cells in done["cells"].items():
        start, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
        head, rest = text.split(start)
        text = head + start + table(name, cells) + end + rest.split(end)[1]
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
    done: dict[str, Any] = storage.read_json(RESULTS) if RESULTS.exists() else {"cells": {}}
    for seed in arguments.seeds:
        for name in arguments.experiments or EXPERIMENTS:
            run(name, seed, arguments.work, done)
            done |= {"command": "benchmarks/real.py", "hardware": hardware(), "torch": torch.__version__}
            done["summary"] = {each: summarise(cells) for each, cells in done["cells"].items()}
            storage.write_json(RESULTS, done)
            write_page(done)


if __name__ == "__main__":
    main()
