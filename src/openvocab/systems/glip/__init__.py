"""GLIP: detection as grounding of a prompt in a picture (Li et al. 2022, arXiv 2112.03857).

The names of what is looked for are one sentence; places o of the picture are compared with its tokens p, after rounds i
in which the encoders read each other:

    O_t2i, P_i2t = X-MHA(O^i, P^i),   O^(i+1) = DyHead(O^i + O_t2i),   P^(i+1) = BERTLayer(P^i + P_i2t)     equation 4
    S_ground = O P^T,   L = focal(S_ground, T) + 2 GIoU + centerness                                  equations 2 and 3

T marks the tokens of each place's phrase. Reproduced: Swin, pyramid, BERT, deep fusion, dynamic head, the scores, ATSS
and the losses, prompts of names in as many parts as the context asks for, grounding of a sentence's phrases; official
checkpoints open, with their BERT's `vocab.txt` beside them, and have not been run on the published files.
Differs from the official code: sides of pictures become whole multiples of 32 by (bicubic) resizing, not padding; parts
of a prompt are as long as its context allows, not 40 names; training reads offsets of coarser levels resized
(`official_offsets`), the token [NoObj] is left out, so are dropped branches and dropout in the fusion. A sentence's
phrases are found by `data.nouns`. There is no recipe yet: the loss is whole, what trains it is not.

    openvocab convert glip_tiny_model_o365_goldg_cc_sbu.pth glip-t --to openvocab --system glip
    openvocab detect picture.jpg --labels "person,traffic light" --model glip-t
    openvocab ground picture.jpg "a man with a red hat" --model glip-t
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from openvocab.blocks.atss import assign, centerness, focal_loss
from openvocab.blocks.bert import BertConfig
from openvocab.blocks.boxes import box_area, generalized_iou
from openvocab.blocks.detector import decode
from openvocab.blocks.swin import SwinConfig
from openvocab.clip.learning import PIXELS
from openvocab.clip.regions import measure_detection
from openvocab.data.annotated import Annotated
from openvocab.shapes import Batch
from openvocab.system import System
from openvocab.systems.glip.model import BOX_WEIGHTS, GLIP, GLIPConfig
from openvocab.systems.glip.official import from_official
from openvocab.train.step import Losses

_BOX_WEIGHT = 2.0
_SMALL = GLIPConfig(
    image=SwinConfig(image_size=96, dim=32, depths=(2, 2, 2), heads=(1, 2, 4), window=6, out_stages=(0, 1, 2)),
    text=BertConfig(vocabulary_size=512, context_length=128, dim=128, layers=2, heads=4, mlp_dim=256),
    preprocess=replace(PIXELS, image_size=96),
    longest_px=128,
    dim=64,
    levels=3,
    rounds=2,
    fusion_dim=128,
    fusion_heads=4,
)
SIZES = {
    "tiny": replace(
        _SMALL,
        image=SwinConfig(image_size=32, dim=8, depths=(1, 2), heads=(1, 2), window=4, out_stages=(0, 1)),
        text=BertConfig(vocabulary_size=60, context_length=64, dim=16, layers=1, heads=2, mlp_dim=32),
        preprocess=PIXELS,
        longest_px=48,
        dim=16,
        fusion_dim=16,
        fusion_heads=2,
    ),
    "small": _SMALL,
    "paper": GLIPConfig(),
}


def build(config: GLIPConfig | str) -> GLIP:
    return GLIP(SIZES[config] if isinstance(config, str) else config)


def load(path: Path | str, vocabulary: Path | str | None = None) -> GLIP:
    """A folder that `save` wrote, or an official checkpoint, whose BERT's words are in `vocabulary` or beside it."""
    return from_official(path, vocabulary) if Path(path).is_file() else GLIP.load(path)


def loss(model: GLIP, batch: Batch) -> Losses:
    """Of words, boxes and centres; an object without area is filling."""
    found = model(batch["images"], batch["ids"], batch["mask"])
    matched, boxes, wanted = [], [], torch.zeros_like(found.scores)
    for row, (objects, positive) in enumerate(zip(batch["boxes"], batch["positive"])):
        real = box_area(objects) > 0
        mine = assign(found.anchors, found.counts, objects[real])
        own = mine >= 0
        wanted[row, own] = positive[real][mine[own]].to(wanted)
        matched.append(own)
        boxes.append(objects[real][mine[own]])
    own, true = torch.stack(matched), torch.cat(boxes)
    around = found.anchors.expand(len(own), -1, -1)[own]
    count, middle = max(1, len(true)), centerness(around, true)
    words = focal_loss(found.scores, wanted) * batch["mask"][:, None]
    overlap = generalized_iou(decode(found.deltas[own], around, BOX_WEIGHTS), true)
    centres = F.binary_cross_entropy_with_logits(found.centerness[own], middle, reduction="sum")
    parts = {
        "words": words.sum() / count,
        "boxes": _BOX_WEIGHT * ((1 - overlap) * middle).sum() / middle.sum().clamp_min(1e-6),
        "centerness": centres / count,
    }
    return {"loss": torch.stack(list(parts.values())).sum(), **parts, "diag/matched": own.float().sum(1).mean()}


def example(model: GLIP, rows: int) -> Batch:
    """Pictures of noise with two objects each, in prompts of different lengths."""
    side, words = model.preprocessing.image_size, model.config.text.vocabulary_size
    corners = torch.rand(rows, 2, 2) * side / 2
    length = 8
    mask = torch.arange(length) < torch.randint(5, length + 1, (rows, 1))
    positive = torch.zeros(rows, 2, length, dtype=torch.bool)
    positive[:, 0, 1:3] = positive[:, 1, 3] = True
    return {
        "images": torch.randn(rows, 3, side, side),
        "ids": torch.randint(0, words, (rows, length)),
        "mask": mask,
        "boxes": torch.cat([corners, corners + 6 + torch.rand(rows, 2, 2) * side / 3], 2),
        "positive": positive,
    }


def evaluate(model: Any, data: Annotated, novel: Sequence[str] = ()) -> dict[str, float]:
    """Average precision with every label a choice; those of `novel` apart."""
    return measure_detection(lambda image: model.detect(image, data.labels), data, tuple(novel))


SYSTEM = System(
    name="glip",
    title="GLIP",
    paper="arXiv 2112.03857",
    sizes=SIZES,
    build=build,
    loss=loss,
    evaluate=evaluate,
    example=example,
    load=load,
)
