"""CLIP-Event: events and their roles in one space with pictures (Li et al. 2022, arXiv 2201.05078).

    L = 1/2 [CE(s I [T; N]^t, rows) + CE(s T I^t, rows)] + w sum_b <P_b, 1 - cos(mentions_b, regions_b)>

T describes the picture's event, N the same with another type (event negative) or with its participants in each other's
roles (argument negative); P is the transport plan of `blocks.transport.ipot`, a constant.
Reproduced: events, prompt functions and both kinds of negatives as data; negatives as columns of the pictures alone,
over the batch or within the instance; event negatives from what CLIP confuses; alignment by optimal transport with the
authors' weight; their checkpoints, which are a CLIP's.
Differs from the paper: events come from rules over word classes, or from spaCy, not from an information extraction
system of 187 types; a caption without an event stays, as a pair without false descriptions of its own; equal captions
are no negatives of each other; both directions are averaged, not summed; regions are means of patches (the official
`use_grid`, its rows and columns in their places), not crops, and the surest boxes are kept, not the least sure; a
picture without boxes adds nothing to the transport.

    openvocab train clip_event --out run                                    generated events
    openvocab train clip_event --size paper --data news.csv --init hf:openai/clip-vit-base-patch32 --out run
    openvocab events picture.jpg --model run                                what happens, who plays which role
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from openvocab.clip.architectures import architecture
from openvocab.clip.dense import TINY_CLIP
from openvocab.clip.learning import annotated_batches, hold_scale, words
from openvocab.clip.model import CLIP
from openvocab.clip.published import clip_within
from openvocab.clip.weights import read_tensors
from openvocab.data.annotated import Annotated, AnnotatedConfig, open_annotated, open_source
from openvocab.data.pairs import open_pairs
from openvocab.shapes import Batch, Scalar
from openvocab.system import Recipe, System
from openvocab.systems.clip_event.descriptions import AnnotatedPairs, DescriptionConfig, Descriptions
from openvocab.systems.clip_event.measure import evaluate
from openvocab.systems.clip_event.model import CLIPEvent, CLIPEventConfig
from openvocab.systems.clip_event.structure import read_ontology
from openvocab.train import distributed
from openvocab.train.config import FitConfig, GroupConfig, OptimConfig
from openvocab.train.fit import Stage
from openvocab.train.step import Losses

SIZES = {
    "tiny": CLIPEventConfig(clip=TINY_CLIP, ontology="scenes"),
    "small": CLIPEventConfig(clip=TINY_CLIP, ontology="scenes"),
    "paper": CLIPEventConfig(clip=architecture("ViT-B-32-quickgelu")),
}
"""A run's CLIP is the one that it is given."""


def build(config: CLIPEventConfig | str, clip: CLIP | None = None) -> CLIPEvent:
    """Around `clip`; without one around one of random weights."""
    return CLIPEvent.around(SIZES[config] if isinstance(config, str) else config, clip)


def embed(model: CLIPEvent, batch: Batch) -> dict[str, Tensor]:
    """Unit rows of pictures, true and false descriptions; with transport also of mentions and regions."""
    clip, aligned = model.clip, model.config.transport > 0
    kinds = ("negative", "mention") if aligned else ("negative",)
    parts = [batch["tokens"][:, None], *(batch[f"{kind}_tokens"] for kind in kinds)]
    every = model.read(torch.cat(parts, 1).flatten(0, 1)).unflatten(0, (len(batch["tokens"]), -1))
    texts = every.split([part.shape[1] for part in parts], 1)
    seen = clip.image(batch["images"], tokens=aligned)
    found = {"image": torch.nn.functional.normalize(clip.image.projection(seen.pooled), dim=-1)}
    found |= {"text": texts[0][:, 0], "negative": texts[1]}
    if aligned:
        found |= {"mention": texts[2], "region": model.regions(seen.tokens, seen.grid, batch["boxes"])}
    return found


def loss(model: CLIPEvent, batch: Batch, embeds: dict[str, Tensor]) -> Losses:
    """The contrast of both directions, over all ranks, and the transport of this rank's pictures."""
    group = distributed.world()

    def everybody(rows: Tensor) -> Tensor:
        return distributed.gather_rows(rows, group)

    scale, own = model.clip.scale(), batch["text_ids"][:, None]
    same_image = batch["image_ids"][:, None] == everybody(batch["image_ids"])
    right = same_image | (own == everybody(batch["text_ids"]))
    false = everybody(embeds["negative"]).flatten(0, 1)
    false_here = everybody(batch["negatives_there"]).flatten() & (own != everybody(batch["negative_ids"]).flatten())
    here = torch.cat([torch.ones_like(right), false_here], 1)
    if model.config.contrast == "instance":
        number = embeds["negative"].shape[1]
        here &= torch.cat([same_image, same_image.repeat_interleave(number, 1)], 1)
    columns = torch.cat([everybody(embeds["text"]), false])
    no_false = torch.zeros_like(false_here)
    seen = contrast(scale * embeds["image"] @ columns.T, torch.cat([right, no_false], 1) & here, here)
    said = contrast(scale * embeds["text"] @ everybody(embeds["image"]).T, right, torch.ones_like(right))
    losses = {"loss": (seen + said) / 2, "diag/scale": scale}
    if "region" in embeds:
        nodes = embeds["mention"], embeds["region"]
        far = model.transport(*nodes, batch["mentions_there"], batch["boxed"])[1].sum()
        losses = {**losses, "loss": losses["loss"] + model.config.transport * far, "transport": far}
    return losses


def contrast(logits: Float[Tensor, "row column"], right: Bool[Tensor, "row column"], here: Tensor) -> Scalar:
    """The mean cross entropy of each row over the columns that are here, the target uniform over the right ones."""
    told = logits.masked_fill(~here, -torch.inf).log_softmax(1)
    return -(torch.where(right, told, 0.0).sum(1) / right.sum(1)).mean()


def example(model: CLIPEvent, rows: int) -> Batch:
    """Pictures and texts of noise, with different numbers of false descriptions, mentions and boxes."""
    config, text = model.config, model.config.clip.text
    side, at = config.image.image_size, torch.arange(rows)

    def tokens(*shape: int) -> Tensor:
        found = torch.randint(1, text.vocabulary_size - 2, (*shape, text.context_length))
        found[..., -1] = text.vocabulary_size - 1
        return found

    corners = torch.rand(rows, 4, 2) * 0.5
    return {
        "images": torch.randn(rows, 3, side, side),
        **{"tokens": tokens(rows), "negative_tokens": tokens(rows, 2), "mention_tokens": tokens(rows, 3)},
        **{"image_ids": at, "text_ids": at, "negative_ids": rows + torch.arange(2 * rows).view(rows, 2)},
        "negatives_there": torch.arange(2) < at[:, None] % 3,
        "mentions_there": torch.arange(3) < 1 + at[:, None] % 3,
        "boxes": torch.cat([corners, corners + 0.4], 2),
        "boxed": torch.arange(4) < at[:, None] % 4,
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class CLIPEventData:
    """Pictures with captions, perhaps with boxes, and what is said of them."""

    pictures: AnnotatedConfig = AnnotatedConfig(source="events")
    said: DescriptionConfig = DescriptionConfig()


def recipe(size: str, source: str = "scenes") -> Recipe[CLIPEventConfig]:
    """The training run of a size; `paper` is the authors' example on 76,256 pictures of news."""
    drawn = source == "scenes"
    pictures = AnnotatedConfig(source="events" if drawn else source, num_scenes=6000, batch_size=64)
    said = DescriptionConfig(ontology="scenes" if drawn else "news")
    config = SIZES[size] if drawn else replace(SIZES[size], ontology="news")
    if size == "paper":
        return Recipe(
            model=config,
            data=CLIPEventData(pictures=replace(pictures, batch_size=16, workers=8), said=said),
            optim=OptimConfig(lr=1e-6),
            fit=FitConfig(steps=142_980),
            groups=(GroupConfig(),),
        )
    pictures = replace(pictures, num_scenes=64, batch_size=16) if size == "tiny" else pictures
    optim = OptimConfig(lr=2e-3, weight_decay=0.2, schedule="linear")
    muon = replace(optim, method="muon", lr=0.01, betas=(0.9, 0.0), weight_decay=0.0)
    towers = ("clip.image.blocks.", "clip.text.blocks.")
    return Recipe(
        model=config,
        data=CLIPEventData(pictures=pictures, said=said),
        optim=optim,
        fit=FitConfig(steps=10 if size == "tiny" else 400, ema_decay=0.98),
        groups=(GroupConfig(name="blocks", prefixes=towers, min_axes=2, optim=muon), GroupConfig()),
    )


def prepare(
    recipe: Recipe[CLIPEventConfig], init: CLIP | CLIPEvent | None = None, folder: Path | None = None
) -> tuple[CLIPEvent, tuple[Stage]]:
    """Opens the pictures, finds the events of their captions, builds the model around the CLIP `init`.

    Raises:
        ValueError: no CLIP with its tokenizer, or too few types of events to tell them apart.
    """
    clip: Any = init.clip if isinstance(init, CLIPEvent) else init
    if clip is None or clip.tokenizer is None:
        raise ValueError("clip_event stands on a trained CLIP with its tokenizer: give --init MODEL")
    data, seed = recipe.data, recipe.fit.seed
    pictures = open_pictures(data.pictures, seed)
    torch.manual_seed(seed)
    clip.fingerprint = ""  # what is kept for its weights is not right for those that it will have
    model = build(recipe.model, clip)
    made = Descriptions(pictures, data.said, read_ontology(data.said.ontology), clip)
    if "event" in data.said.negatives and len(made.types) < 2:
        told = ", ".join(made.types) or "none"
        raise ValueError(f"{pictures.source}: event negatives need two types of events, its captions tell {told}")
    model.name = f"clip_event-{Path(data.pictures.source).stem}"
    known = (clip.trained_on or {}).get("words")
    clip.trained_on = {"source": pictures.source, "pairs": len(pictures), "words": words([*(known or ()), *made.texts])}
    model.trained_on = {"clip": clip.trained_on, "events": len(made.told), "types": dict(made.types.most_common())}
    batches = annotated_batches(pictures, made, data.pictures, seed=seed, folder=folder)
    return model, (recipe.stage(name="clip_event", data=batches, loss=loss, embed=embed, constrain=hold_scale),)


def open_pictures(config: AnnotatedConfig, seed: int = 0) -> Annotated:
    """Annotated pictures, or pairs of pictures and captions without boxes."""
    if config.source in ("events", "relations", "scenes") or config.source.endswith(".json"):
        return open_annotated(config, seed)
    return AnnotatedPairs(open_pairs(config.source))


def load(path: Path | str, clip: CLIP | None = None) -> CLIPEvent:
    """openvocab's folder, or an official checkpoint `{epoch, model, state_dict, ...}`: a file, which holds a CLIP.

    Raises:
        ValueError: not a CLIP's tensors.
    """
    if not Path(path).is_file():
        return CLIPEvent.load(path)
    state = {name: tensor.float() for name, tensor in read_tensors(path).items()}
    model = build("paper", clip_within(state, path, Path(path).stem))
    return model.named(model.clip.name).eval()


SYSTEM = System(
    name="clip_event",
    title="CLIP-Event",
    paper="arXiv 2201.05078",
    sizes=SIZES,
    build=build,
    loss=loss,
    embed=embed,
    recipe=recipe,
    prepare=prepare,
    evaluate=evaluate,
    open=open_source,
    example=example,
    load=load,
    init=("clip", "dense"),
    parameters={"paper": 151_277_313},
    minutes={"small": 5.0},
)
