"""ActionCLIP: recognising what is done in a video by what it is called (Wang et al. 2021, arXiv 2109.08472).

    v = mean_f z_f / |.|,   z = v (meanP),  v + conv(v) (Conv1D),  v + LSTM(v),  v + Transformer(v + p) (Transf);
    v = Transformer([c; v_1 .. v_F] + p)_1 (Transf_cls);   t = text tower of a prompt of the label, S = exp(s) v t^T
    loss = (KL(Q || softmax S) + KL(Q || softmax S^T)) / 2,   Q = softmax of 10 where labels are equal, else 0

Reproduced: the 16 textual prompts, one drawn for each clip and step, the mean of their probabilities at the test; the
visual prompts before the tower (joint), in it (shift) and behind it (five heads); segments, of which training looks at
any frame and a test at the middle one; tests in several views; the official checkpoints.
Differs from the paper: joint, which the released code cannot run, has one class token a clip, and places in time that
begin at zero, so that a clip of one frame is plain CLIP; short and empty clips are hidden behind a mask, no frame is
repeated; Conv1D filters over time (the official code mixes frames and channels: `model.official_layout` for its
weights); new heads begin as CLIP4Clip's do; no test clip is dropped; the temperature is clamped; no augmentation.
The image tower is frozen in `small`: frames go through it once, and are kept (`data.look=frames` trains it too).

    openvocab train actionclip --out run                                    generated clips
    openvocab train actionclip --size paper --data clips.csv --init hf:openai/clip-vit-base-patch32 --out run
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from openvocab.clip.architectures import architecture
from openvocab.clip.dense import TINY_CLIP
from openvocab.clip.frames import Look, clip_batches
from openvocab.clip.learning import hold_scale, reached
from openvocab.clip.measure import Labelled
from openvocab.clip.model import CLIP
from openvocab.clip.objectives import contrastive_loss, equal_label_loss
from openvocab.clip.templates import fill
from openvocab.clip.templates import templates as read_templates
from openvocab.clip.videos import begin_looking, noise_clips, open_test
from openvocab.data.clips import ClipsConfig, ClipSource, Sampling, Wrapped, open_clips
from openvocab.metrics.calibration import reliability
from openvocab.metrics.classify import mean_per_class_recall, top_k_accuracy, top_k_credits
from openvocab.shapes import Batch
from openvocab.system import Recipe, System
from openvocab.systems.actionclip.model import ActionCLIP, ActionCLIPConfig, Mean
from openvocab.systems.actionclip.official import from_official
from openvocab.train import distributed
from openvocab.train.config import FitConfig, GroupConfig, OptimConfig
from openvocab.train.fit import Stage
from openvocab.train.step import Losses

SIZES = {
    "tiny": ActionCLIPConfig(clip=TINY_CLIP, layers=1, heads=2, sampling=Sampling(fps=30.0, most=4, pick="segments")),
    "small": ActionCLIPConfig(clip=TINY_CLIP, layers=2, heads=4, place_std=1.0),
    "paper": ActionCLIPConfig(clip=architecture("ViT-B-32-quickgelu")),
}
"""A run's CLIP is the one that it is given; frames of a small one are so large that small places are not seen."""


def build(config: ActionCLIPConfig | str, clip: CLIP | None = None) -> ActionCLIP:
    """Around `clip`; without one around one of random weights."""
    return ActionCLIP.around(SIZES[config] if isinstance(config, str) else config, clip)


def embed(model: ActionCLIP, batch: Batch) -> dict[str, Tensor]:
    """Clips and their prompts; a prompt that several clips have is read once."""
    features = batch["features"] if "features" in batch else model.look(batch["images"], batch["shown"])
    prompts, which = batch["tokens"].unique(dim=0, return_inverse=True)
    return {"video": model.watch(features, batch["shown"]), "text": model.clip.encode_text(prompts)[which]}


def loss(model: ActionCLIP, batch: Batch, embeds: dict[str, Tensor]) -> Losses:
    """KL both ways: all clips and prompts of one label are right answers for each other."""
    about = {"labels": batch["labels"], "group": distributed.world()}
    value = equal_label_loss(embeds["video"], embeds["text"], model.clip.logit_scale, **about)
    return {"loss": value, "diag/scale": model.clip.scale()}


def one_positive(model: ActionCLIP, batch: Batch, embeds: dict[str, Tensor]) -> Losses:
    """The control: a clip's own prompt is its only right answer, as if no two clips showed the same."""
    value = contrastive_loss(embeds["video"], embeds["text"], model.clip.logit_scale, group=distributed.world())
    return {"loss": value, "diag/scale": model.clip.scale()}


OBJECTIVES = {"kl": loss, "cross-entropy": one_positive}


def example(model: ActionCLIP, rows: int) -> Batch:
    """Clips of noise, of different lengths, two of each label."""
    return noise_clips(model, rows) | {"labels": torch.arange(rows) // 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class ActionCLIPData:
    """Clips with labels, and what a step sees of them.

    `look`: `features` go through the image tower once, which stays as it is; `frames` are read in every step.
    `templates`: what is said of a clip, one of them with its label in each step; see `clip.templates`.
    `objective`: `cross-entropy` knows one right prompt a clip.
    """

    clips: ClipsConfig = ClipsConfig()
    look: Literal["features", "frames"] = "features"
    templates: str = "actionclip"
    objective: Literal["kl", "cross-entropy"] = "kl"


def recipe(size: str, source: str = "scenes") -> Recipe[ActionCLIPConfig]:
    """The training run of a size; `paper` is that of Kinetics-400 with 8 frames, 50 epochs of 240,000 clips."""
    clips, head = ClipsConfig(source=source), GroupConfig(name="head", prefixes=("temporal.",))
    towers = GroupConfig(name="clip", prefixes=("clip.", "time"))
    if size == "paper":
        optim = OptimConfig(lr=5e-5, eps=1e-8, warmup_steps=9375)
        return Recipe(
            model=SIZES[size],
            data=ActionCLIPData(clips=replace(clips, batch_size=128, workers=8), look="frames"),
            optim=optim,
            fit=FitConfig(steps=93_750),
            groups=(replace(towers, optim=replace(optim, lr=5e-6)), head),
        )
    tiny = size == "tiny"
    few = {"num_clips": 64, "batch_size": 16} if tiny and source == "scenes" else {"batch_size": 96}
    optim = OptimConfig(lr=6e-3)
    return Recipe(
        model=SIZES[size],
        data=ActionCLIPData(clips=replace(clips, **few)),
        optim=optim,
        fit=FitConfig(steps=10 if tiny else 600, checkpoint_every_steps=200),
        groups=(replace(towers, optim=replace(optim, lr=1e-3)), head),
    )


def prepare(
    recipe: Recipe[ActionCLIPConfig], init: CLIP | None = None, folder: Path | None = None
) -> tuple[ActionCLIP, tuple[Stage]]:
    """Opens the clips, builds the model around the CLIP `init`, looks at the frames where that is done once.

    Raises:
        ValueError: no CLIP with its tokenizer, no clip that can be read, fewer than two labels, or places in time that
            `data.look` would not train.
    """
    if init is None or init.tokenizer is None:
        raise ValueError("actionclip stands on a trained CLIP with its tokenizer: give --init MODEL")
    data, config = recipe.data, recipe.model
    if config.prompt == "joint" and data.look == "features":
        raise ValueError("joint learns its places in time with the image tower: set data.look=frames")
    clips = open_clips(data.clips, recipe.fit.seed)
    labels = labels_of(clips)
    if len(labels) < 2:
        raise ValueError(f"{clips.source}: clips of {len(labels)} labels, actions are told apart from 2 on")
    torch.manual_seed(recipe.fit.seed)
    model = build(config, init)
    model.name = f"actionclip-{Path(data.clips.source).stem}"
    model.trained_on = {"clip": init.trained_on, "source": clips.source, "clips": len(clips), "labels": labels}
    look = labelled_look(begin_looking(model, clips, data.look), clips, labels)
    tokenize = partial(init.tokenizer, context_length=init.config.text.context_length)
    prompted = Prompted(clips, read_templates(data.templates))
    batches = clip_batches(look, prompted, tokenize, data.clips, seed=recipe.fit.seed, folder=folder)
    aim: Any = OBJECTIVES[data.objective]
    stage = recipe.stage(name="actionclip", data=batches, loss=aim, embed=embed, constrain=hold_scale)
    return model, (replace(stage, groups=reached(model, recipe.groups)),)


class Prompted(Wrapped):
    """Clips of which their label is said, in the words of each template; nothing of clips without one."""

    def __init__(self, clips: ClipSource, templates: tuple[str, ...]):
        super().__init__(clips)
        self.templates = templates

    def captions(self, index: int) -> tuple[str, ...]:
        label = self.label(index)
        return () if label is None else tuple(fill(template, label) for template in self.templates)


def labels_of(clips: ClipSource) -> list[str]:
    return sorted({label for index in range(len(clips)) if (label := clips.label(index)) is not None})


def labelled_look(look: Look, clips: ClipSource, labels: list[str]) -> Look:
    row_of = {label: row for row, label in enumerate(labels)}

    def seen(index: int, key: np.uint64 | None = None) -> dict[str, Tensor]:
        return look(index, key) | {"labels": torch.tensor(row_of[clips.label(index) or ""])}

    return seen


def embed_labelled(model: ActionCLIP, clips: ClipSource, labels: list[str]) -> Labelled:
    """The clips of these labels as unit vectors: what few-shot classifiers (`adapt.heads`) are fitted to."""
    found = model.features(clips, kept=True)
    rows = [row for row, index in enumerate(found.rows) if clips.label(index) in labels]
    classes = torch.tensor([labels.index(clips.label(found.rows[row]) or "") for row in rows])
    return Labelled(model.embed_features(found)[rows], classes, len(found.failures))


def evaluate(
    model: ActionCLIP,
    data: ClipSource,
    *,
    labels: list[str] | None = None,
    templates: str = "actionclip",
    mean: Mean = "probability",
    views: tuple[int, int] = (1, 1),
) -> dict[str, float]:
    """Top-1, top-5, recall of each label and calibration, over all clips of the labels; ties are worth their chance.

    Args:
        labels: the choices, and whose clips are judged; all of the source by default.
    """
    labels = labels_of(data) if labels is None else labels
    seen = [embed_labelled(model, view, labels) for view in model.views(data, views)]
    truth = seen[0].labels
    found = model.compare([each.features for each in seen], labels, templates=templates, mean=mean).probabilities
    right = top_k_credits(found, truth)
    figures = {"top1": right.mean().item(), "mean_per_class_recall": mean_per_class_recall(found, truth)}
    if len(labels) > 5:
        figures["top5"] = top_k_accuracy(found, truth, 5)
    figures |= {"ece": reliability(found, truth).ece, "clips": float(len(truth)), "broken": float(seen[0].broken)}
    return figures | {f"recall/{labels[row]}": right[truth == row].mean().item() for row in truth.unique().tolist()}


def load(path: Path | str, clip: CLIP | None = None) -> ActionCLIP:
    """openvocab's folder, or an official checkpoint: a file, which holds its own CLIP."""
    return from_official(path) if Path(path).is_file() else ActionCLIP.load(path)


SYSTEM = System(
    name="actionclip",
    title="ActionCLIP",
    paper="arXiv 2109.08472",
    sizes=SIZES,
    build=build,
    loss=loss,
    embed=embed,
    recipe=recipe,
    prepare=prepare,
    evaluate=evaluate,
    open=open_test,
    example=example,
    load=load,
    init=("clip", "dense"),
    minutes={"small": 2.0},
)
