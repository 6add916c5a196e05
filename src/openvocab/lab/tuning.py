"""Moving a CLIP's weights on a few hundred pictures: all of them (FLYP), or by LoRA, through the one training loop.

FLYP (Goyal et al. 2022, arXiv 2212.00638): fine-tune as CLIP was trained, on prompts made from the labels, and classify
zero-shot afterwards. Differs from the paper: prompts of one class are positives of each other.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openvocab.adapt.lora import add_lora, merge
from openvocab.blocks.text import TextConfig
from openvocab.clip.learning import DataConfig, batches
from openvocab.clip.model import CLIP
from openvocab.data.augment import CropConfig
from openvocab.data.loader import Loader
from openvocab.data.memory import InMemory
from openvocab.data.source import PairsConfig
from openvocab.shapes import Batch
from openvocab.systems.clip import constrain, embed, loss
from openvocab.train.config import FitConfig, OptimConfig
from openvocab.train.fit import Stage, fit


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuning:
    """How far weights may move. `rank` None moves every weight, a number moves a LoRA of that rank."""

    lr: float
    rank: int | None = None
    steps: int = 100
    batch_size: int = 64


TUNINGS: dict[str, tuple[Tuning, ...]] = {
    "LoRA": tuple(Tuning(lr=lr, rank=4) for lr in (1e-3, 5e-3)),
    "fine-tuning": tuple(Tuning(lr=lr) for lr in (1e-4, 1e-3)),
}
CHECKED, CHECK_STEPS, CHECK_RATES = 8, 60, (3e-3, 3e-4, 3e-5)


def tune(
    clip: CLIP, pairs: InMemory, tuning: Tuning, *, by_class: bool, seed: int = 0, out: Path | None = None
) -> CLIP:
    """A tuned copy of the model, LoRA merged. `out` keeps checkpoints, from which the same call goes on."""
    model = copy.deepcopy(clip)
    model.fingerprint = ""  # what is kept for its weights is not right for those that it will have
    if tuning.rank is not None:
        add_lora(model, tuning.rank, seed=seed)
        model.logit_scale.requires_grad_(True)
    stage = Stage(
        name="LoRA" if tuning.rank else "fine-tuning",
        data=_batches(model, pairs, tuning.batch_size, by_class, seed),
        loss=loss,
        embed=embed,
        constrain=constrain,
        optim=OptimConfig(lr=tuning.lr, weight_decay=0.1),
        config=FitConfig(steps=tuning.steps, seed=seed),
    )
    fit(model, stage, out=out, identity=f"{clip.fingerprint} {pairs.fingerprint}")
    merge(model)
    return model.eval()


def check_overfit(clip: CLIP, pairs: InMemory, *, by_class: bool, seed: int = 0) -> float:
    """Learns one batch by heart and returns the loss above its least possible value, about zero for a healthy model.

    Raises:
        ValueError: the model has nothing to train, or does not learn the batch at any rate.
    """
    if not any(parameter.requires_grad for parameter in clip.parameters()):
        raise ValueError(f"overfit check: every weight of {clip.name} is frozen")
    batch = _batches(clip, pairs, CHECKED, by_class, seed).batch(0)
    size, left = len(batch["text_ids"]), math.inf
    floor = _entropy(batch["text_ids"]) if clip.logit_bias is None else 0.0
    for lr in CHECK_RATES:
        model = copy.deepcopy(clip)
        stage = Stage(
            name="overfit check",
            data=_Again(batch),
            loss=loss,
            embed=embed,
            constrain=constrain,
            optim=OptimConfig(lr=lr, weight_decay=0.0),
            config=FitConfig(steps=CHECK_STEPS, seed=seed),
        )
        left = min(left, fit(model, stage).rows[-1]["loss"] - floor)
        if left < 0.1 * math.log(size):
            return left
    raise ValueError(
        f"overfit check: the loss on one batch of {size} pairs stays {left:.2f} above its least value (chance has "
        f"{math.log(size):.2f}): equal pictures with different captions, or a model that cannot learn"
    )


class _Again:
    """The same batch at every step."""

    def __init__(self, batch: Batch):
        self.batch = batch

    def stream(self, start_step: int, steps: int) -> Iterator[Batch]:
        return (dict(self.batch) for _ in range(steps))

    def report(self) -> dict[str, Any]:
        return {}


def _batches(clip: CLIP, pairs: InMemory, batch_size: int, by_class: bool, seed: int) -> Loader:
    text = clip.config.text
    if clip.tokenizer is None:
        raise ValueError(f"{clip.name} has no tokenizer: its captions cannot be read")
    data = DataConfig(
        pairs=PairsConfig(source=pairs.source),
        batch_size=min(batch_size, len(pairs)),
        augment=CropConfig(scale=(0.6, 1.0)),
        positives="class" if by_class else "caption",
    )
    trim = not isinstance(text, TextConfig) or text.causal
    length = text.context_length
    return batches(data, pairs, clip.preprocessing, clip.tokenizer, context_length=length, seed=seed, trim=trim)


def _entropy(ids: Tensor) -> float:
    """Of targets that are uniform over equal ids."""
    return torch.tensor([(ids == own).sum().item() for own in ids]).log().mean().item()
