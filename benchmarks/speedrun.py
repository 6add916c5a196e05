"""Speedrun: seconds from random weights to a CLIP that names colour-shape pairs it never saw.

    python benchmarks/speedrun.py --track pairs --seeds 10

Two tracks. `pairs`: at least 95 % zero-shot on the sixteen held-out pairs (H1, 64-way). `both`: that, and at least 90 %
on choosing between the caption of a two-object scene and the same caption with its colours exchanged, in one model.

The clock runs over all that a training needs: the tokenizer, the model, scenes, captions, steps; it stops before the
examination, whose scenes come from streams of their own. A recipe has a fixed number of steps and counts when its mean
over the seeds reaches the goals. Held-out pairs occur in no training picture and no training caption, exchanged ones
included; nothing but captions says what a picture shows. Seeds that benchmarks/results/speedrun.json already holds for
the same recipe and machine are not run again.
"""

import argparse
import datetime
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from harness import RESULTS, machine
from jaxtyping import UInt8
from torch import nn

from openvocab import config, progress, storage
from openvocab.blocks.resnet import ResNetConfig
from openvocab.blocks.text import CBOWConfig, TextFeatures
from openvocab.clip.caption_bpe import train_tokenizer
from openvocab.clip.model import CLIP, CLIPConfig
from openvocab.clip.objectives import contrastive_loss
from openvocab.metrics.interval import bootstrap
from openvocab.shapes import Batch, ImageEmbeds, Images, Tokens
from openvocab.train.config import FitConfig, GroupConfig, OptimConfig
from openvocab.train.step import Losses, Step
from openvocab.world.caption import CaptionConfig, captions, fill_prompt, swap_colours
from openvocab.world.render import render
from openvocab.world.scene import CLASSES, Scenes, WorldConfig, class_scenes, draw_scenes, held_out_classes

HELD_OUT = held_out_classes("H1")
PLAIN = CaptionConfig(opening=0, style=0, size=0, texture=0, background=0, place=0, count=0, drop=0, synonym=0, bare=0)
"""Objects by colour and shape, two of them in relation or joined by "and"; nothing else is said."""
TEST_SEED, PER_CLASS, SWAPS = 20_261, 100, 2_000
FILE = RESULTS / "speedrun.json"
CHUNK = 1_024  # scenes drawn at once


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeConfig:
    """One training."""

    world: WorldConfig
    exchange: bool
    """Captions with exchanged colours are further negatives, and the text tower joins neighbouring words."""
    steps: int
    batch_size: int
    channels: int = 32
    embed_dim: int = 64
    lr: float = 4e-3
    muon_lr: float = 0.2
    muon_momentum: float = 0.85
    stages: tuple[tuple[int, float], ...] = ((16, 0.35), (24, 0.35), (32, 0.15))
    """Side of the pictures and jitter of their colours, each pair for an equal part of the run: small pictures are
    cheap, strange colours make shape independent of colour, the last part sharpens both."""


TRACKS = {
    "pairs": RecipeConfig(world=WorldConfig(max_objects=1, share_single=1.0), exchange=False, steps=600, batch_size=32),
    "both": RecipeConfig(world=WorldConfig(share_single=0.65), exchange=True, steps=1000, batch_size=64, embed_dim=128),
}
GOALS = {"pairs": {"pairs": 0.95}, "both": {"pairs": 0.95, "exchanged": 0.90}}


class Bigrams(nn.Module):
    """A bag of neighbouring words: the mean over t of A x_{t-1} * B x_t + C x_t, element by element.

    The product joins a colour to the shape after it, which a bag of words cannot. As a function of the colour times a
    function of the shape it holds for pairs that were never read together, which a deep transformer learns by heart.
    """

    def __init__(self, config: CBOWConfig, embed_dim: int, products: int = 128):
        super().__init__()
        self.skip_ids = config.skip_ids
        self.embedding = nn.Embedding(config.vocabulary_size, config.dim)
        nn.init.normal_(self.embedding.weight, std=0.5)  # products stay small at first: sums of words come before them
        self.left = nn.Linear(config.dim, products, bias=False)
        self.here = nn.Linear(config.dim, products)
        self.word = nn.Linear(config.dim, products)
        self.projection = nn.Linear(products, embed_dim, bias=False)

    def forward(self, ids: Tokens, *, tokens: bool = True) -> TextFeatures:
        words = torch.stack([ids != skipped for skipped in self.skip_ids]).all(0).unsqueeze(-1)
        x = self.embedding(ids) * words
        left = nn.functional.pad(x[:, :-1], (0, 0, 1, 0))
        features = (self.left(left) * self.here(x) + self.word(x)) * words
        return TextFeatures(features.sum(1) / words.sum(1), features)


def train(recipe: RecipeConfig, seed: int) -> CLIP:
    """A model trained from random weights on scenes drawn on the way."""
    torch.manual_seed(seed)
    clip = build(recipe, next(draw(recipe, seed)).said)
    optim = OptimConfig(lr=recipe.lr, betas=(0.9, 0.95), weight_decay=0.1, schedule="linear")
    muon = replace(optim, method="muon", lr=recipe.muon_lr, betas=(recipe.muon_momentum, 0.0), weight_decay=0.0)
    convolutions = GroupConfig(name="convolutions", prefixes=("image.stages.", "image.stem."), min_axes=4, optim=muon)
    step = Step(
        clip,
        loss,
        None,
        config=FitConfig(steps=recipe.steps, seed=seed),
        optim=optim,
        groups=(convolutions, GroupConfig()),
    )
    steps = progress.track(range(recipe.steps), f"seed {seed}", unit="step")
    for index, batch in zip(steps, batches(clip, recipe, seed)):
        step(batch, index)
    return clip.eval()


def build(recipe: RecipeConfig, said: Sequence[str]) -> CLIP:
    tokenizer = train_tokenizer(said, 512, 40)
    skip_ids = (tokenizer.pad_id, tokenizer.vocabulary_size - 2, tokenizer.vocabulary_size - 1)  # start and end
    words = CBOWConfig(
        vocabulary_size=tokenizer.vocabulary_size, context_length=40, dim=recipe.embed_dim, skip_ids=skip_ids
    )
    image = ResNetConfig(
        image_size=32, layers=(1, 1), channels=recipe.channels, heads=0, block="basic", stem_stride=4, pool="mean"
    )
    clip = CLIP(CLIPConfig(image=image, text=words, embed_dim=recipe.embed_dim))
    if recipe.exchange:
        clip.text = Bigrams(words, recipe.embed_dim)  # type: ignore[assignment]
    clip.tokenizer = tokenizer
    return clip


def loss(clip: CLIP, batch: Batch) -> Losses:
    """InfoNCE; a caption that several pictures share is encoded once and is right for all of them."""
    texts, ids = clip.encode_text(batch["tokens"]), batch["text_ids"]
    return {"loss": contrastive_loss(clip.encode_image(batch["images"]), texts[ids], clip.logit_scale, text_ids=ids)}


@dataclass(frozen=True, slots=True)
class Chunk:
    """Pictures, what is said of them, and the same with colours exchanged (None: not used)."""

    images: Images
    said: list[str]
    exchanged: list[str | None]


def draw(recipe: RecipeConfig, seed: int) -> Iterator[Chunk]:
    """The training scenes of a run, `CHUNK` at a time."""
    unseen, total = [CLASSES[number] for number in HELD_OUT], recipe.steps * recipe.batch_size
    for start in range(0, total, CHUNK):
        size_px, jitter = recipe.stages[start * len(recipe.stages) // total]
        world = replace(recipe.world, colour_jitter=jitter)
        scenes = draw_scenes(CHUNK, world, seed, start, split="train", holdout="H1")
        said = captions(scenes, seed, config=PLAIN)
        exchanged = swap_colours(said, scenes) if recipe.exchange else [None] * CHUNK
        allowed = [text if text and not any(name in text for name in unseen) else None for text in exchanged]
        yield Chunk(pixels(render(scenes, size_px)), [caption.text for caption in said], allowed)


def batches(clip: CLIP, recipe: RecipeConfig, seed: int) -> Iterator[Batch]:
    """Batches of fresh scenes; `tokens` holds every distinct text once, `text_ids` the row of each caption."""
    for chunk in draw(recipe, seed):
        for start in range(0, CHUNK, recipe.batch_size):
            rows = slice(start, start + recipe.batch_size)
            texts = chunk.said[rows] + [text for text in chunk.exchanged[rows] if text]
            row_of = {text: row for row, text in enumerate(dict.fromkeys(texts))}
            ids = torch.tensor([row_of[text] for text in texts])
            yield {"images": chunk.images[rows], "tokens": tokenize(clip, list(row_of)), "text_ids": ids}


def pixels(pictures: UInt8[np.ndarray, "image 3 height width"]) -> Images:
    return (torch.from_numpy(pictures).float() - 115) / 64


def tokenize(clip: CLIP, texts: Sequence[str]) -> Tokens:
    tokens = clip.tokenize(list(texts))
    return tokens[:, : int((tokens != 0).sum(1).max())]


@torch.inference_mode()
def examine(clip: CLIP, track: str) -> dict[str, float]:
    """Accuracies on scenes that were drawn for the test."""
    labels = HELD_OUT.repeat(PER_CLASS)
    images = encode(clip, class_scenes(labels, WorldConfig(), TEST_SEED))
    names = clip.encode_text(tokenize(clip, [fill_prompt("a {}", name) for name in CLASSES]))
    found = {"pairs": ((images @ names.T).argmax(1) == torch.from_numpy(labels)).double().mean().item()}
    if "exchanged" in GOALS[track]:
        scenes = draw_scenes(SWAPS, WorldConfig(share_single=0.0), TEST_SEED)
        said = captions(scenes, TEST_SEED, config=PLAIN)
        exchanged = swap_colours(said, scenes)
        kept = [row for row, text in enumerate(exchanged) if text]
        true = clip.encode_text(tokenize(clip, [said[row].text for row in kept]))
        false = clip.encode_text(tokenize(clip, [exchanged[row] or "" for row in kept]))
        margin = (encode(clip, scenes[np.array(kept)]) * (true - false)).sum(1)
        found["exchanged"] = (margin > 0).double().mean().item()
    return found


def encode(clip: CLIP, scenes: Scenes) -> ImageEmbeds:
    return torch.cat([clip.encode_image(part) for part in pixels(render(scenes)).split(256)])


def entry(rows: list[dict], track: str, reason: str) -> dict:
    """The recorded row of this track, recipe and machine (with its threads); a new one where there is none."""
    recipe, here = config.to_dict(TRACKS[track]), machine()
    for row in rows:
        if (row["track"], row["recipe"], row["machine"]) == (track, recipe, here):
            return row
    today = datetime.date.today().isoformat()
    rows.append({"date": today, "track": track, "reason": reason, "recipe": recipe, "machine": here, "seeds": []})
    return rows[-1]


def summary(row: dict) -> dict[str, tuple[float, float, float]]:
    """Mean over the seeds and its 95 % interval, by figure."""
    names = [name for name in row["seeds"][0] if name != "seed"]
    values = {name: torch.tensor([found[name] for found in row["seeds"]], dtype=torch.float64) for name in names}
    return {name: (value.mean().item(), *bootstrap(value)) for name, value in values.items()}


def record(rows: list[dict]) -> None:
    command = "python benchmarks/speedrun.py --seeds 10 --threads 1"
    storage.write_json(FILE, {"command": command, "machine": rows[-1]["machine"], "rows": rows, "means": means(rows)})


def means(rows: list[dict]) -> dict[str, dict[str, float]]:
    """The figures that docs/results.md shows: means over the seeds of every row."""
    return {
        f"{row['track']}, {row['reason']}, {len(row['seeds'])} seeds": {
            name: round(mean, 4) for name, (mean, _, _) in summary(row).items()
        }
        for row in rows
    }


def show(rows: list[dict]) -> None:
    """One line per recorded row: seconds, accuracies, whether the goals are met."""
    for row in rows:
        figures = summary(row)
        seconds = "{:.1f} s ({:.1f}-{:.1f})".format(*figures["seconds"])
        reached = all(figures[name][0] >= goal for name, goal in GOALS[row["track"]].items())
        scores = [f"{name} {m:.1%} ({a:.1%}-{b:.1%})" for name, (m, a, b) in figures.items() if name in GOALS["both"]]
        verdict = "counts" if reached else "misses the goal"
        print(
            f"{row['date']}  {row['track']:5}  {len(row['seeds']):2} seeds  {seconds}  {'  '.join(scores)}  {verdict}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="seconds from random weights to zero-shot on pairs never seen")
    parser.add_argument("--track", choices=[*TRACKS, "all"], default="all")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--reason", default="", help="what this recipe changed, for the record")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    rows = storage.read_json(FILE)["rows"] if FILE.exists() else []
    for track in TRACKS if asked.track == "all" else (asked.track,):
        row = entry(rows, track, asked.reason)
        for seed in range(len(row["seeds"]), asked.seeds):
            began, cpu = time.perf_counter(), time.process_time()
            clip = train(TRACKS[track], seed)
            spent = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
            row["seeds"].append({"seed": seed, **spent, **examine(clip, track)})
            record(rows)
    show(rows)


if __name__ == "__main__":
    main()
