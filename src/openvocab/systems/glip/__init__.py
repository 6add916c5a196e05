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
(`official_offsets`), the token [NoObj] is left out, so are dropped branches and dropout in the fusion, and the words of
a model from scratch are learnt from its own texts. A sentence's phrases are found by `data.nouns`. Small models read
pictures with a ResNet, and their rounds have plain convolutions and residuals, without which they learn no names.

    openvocab train glip --out run                        generated scenes: base pairs in boxes, all in sentences
    openvocab train glip --size paper --data instances.json --init glip-t \
        --set 'data.told=[{"source": "captions.json"}]' --out run
    openvocab eval run --task ground --data captions.json
    openvocab convert glip_tiny_model_o365_goldg_cc_sbu.pth glip-t --to openvocab --system glip
    openvocab detect picture.jpg --labels "person,traffic light" --model glip-t
    openvocab ground picture.jpg "a man with a red hat" --model glip-t
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from openvocab.blocks.atss import assign, centerness, focal_loss
from openvocab.blocks.bert import BertConfig
from openvocab.blocks.boxes import box_area, generalized_iou
from openvocab.blocks.detector import decode
from openvocab.blocks.resnet import ResNetConfig
from openvocab.blocks.swin import SwinConfig
from openvocab.clip.learning import PIXELS, annotated_batches
from openvocab.clip.model import CLIP
from openvocab.clip.regions import measure_detection, measure_grounding
from openvocab.clip.tokenizer_files import learn_wordpiece
from openvocab.data.annotated import Annotated, AnnotatedConfig, open_source
from openvocab.shapes import Batch
from openvocab.system import Recipe, System
from openvocab.systems.glip.model import BOX_WEIGHTS, GLIP, GLIPConfig
from openvocab.systems.glip.official import from_official
from openvocab.systems.glip.samples import GLIPData, Sample, open_mixed
from openvocab.train.config import FitConfig, GroupConfig, OptimConfig
from openvocab.train.fit import Stage
from openvocab.train.step import Losses

_BOX_WEIGHT = 2.0
_SMALL = GLIPConfig(
    image=ResNetConfig(image_size=32, layers=(1, 1, 1), channels=32, heads=0, block="basic", pool="mean"),
    text=BertConfig(vocabulary_size=512, context_length=128, dim=64, layers=1, heads=4, mlp_dim=128, dropout=0.0),
    preprocess=PIXELS,
    longest_px=64,
    dim=64,
    levels=3,
    rounds=2,
    fusion_dim=128,
    fusion_heads=4,
    deformable=False,
    residual=True,
    names_at_once=16,
)
SIZES = {
    "tiny": replace(
        _SMALL,
        image=SwinConfig(image_size=32, dim=8, depths=(1, 2), heads=(1, 2), window=4, out_stages=(0, 1)),
        text=BertConfig(vocabulary_size=240, context_length=64, dim=16, layers=1, heads=2, mlp_dim=32),
        longest_px=48,
        dim=16,
        deformable=True,
        residual=False,
        names_at_once=None,
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
    """Of words, boxes and centres; an object without area is filling, as are tokens that no row has."""
    length = int(batch["mask"].any(0).sum())
    mask = batch["mask"][:, :length]
    found = model(batch["images"], batch["ids"][:, :length], mask)
    matched, boxes, wanted = [], [], torch.zeros_like(found.scores)
    for row, (objects, positive) in enumerate(zip(batch["boxes"], batch["positive"][..., :length])):
        real = box_area(objects) > 0
        mine = assign(found.anchors, found.counts, objects[real])
        own = mine >= 0
        wanted[row, own] = positive[real][mine[own]].to(wanted)
        matched.append(own)
        boxes.append(objects[real][mine[own]])
    own, true = torch.stack(matched), torch.cat(boxes)
    around = found.anchors.expand(len(own), -1, -1)[own]
    count, middle = max(1, len(true)), centerness(around, true)
    words = focal_loss(found.scores, wanted) * mask[:, None]
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


def recipe(size: str, source: str = "scenes") -> Recipe[GLIPConfig]:
    """The training run of a size: names for boxes, and on generated scenes sentences too, which speak of all pairs."""
    shown, model = AnnotatedConfig(source=source), SIZES[size]
    if size == "paper":
        text = OptimConfig(lr=1e-5, weight_decay=1e-4, warmup_steps=2000)
        return Recipe(
            model=model,
            data=GLIPData(shown=replace(shown, batch_size=64, workers=8)),
            optim=replace(text, lr=1e-4),
            fit=FitConfig(steps=300_000, precision="bfloat16", ema_decay=0.999),
            groups=(GroupConfig(name="text", prefixes=("text.",), optim=text), GroupConfig(name="rest")),
        )
    tiny = size == "tiny"
    shown, told = replace(shown, num_scenes=60 if tiny else 4000, batch_size=6 if tiny else 16), ()
    if source == "scenes":
        whole = replace(shown, holdout="none")
        related = replace(whole, source="relations", num_scenes=20 if tiny else 1500)
        told = (replace(whole, num_scenes=40 if tiny else 2500), related)
    return Recipe(
        model=model,
        data=GLIPData(shown=shown, told=told, names=(8, 16), resize=(1.0, 1.0), most_objects=4),
        optim=OptimConfig(lr=2e-3, weight_decay=0.05),
        fit=FitConfig(steps=10 if tiny else 1500, ema_decay=0.99, checkpoint_every_steps=200),
        groups=(GroupConfig(),),
    )


def prepare(
    recipe: Recipe[GLIPConfig], init: CLIP | GLIP | None = None, folder: Path | None = None
) -> tuple[GLIP, tuple[Stage]]:
    """Opens the data, learns the words of names and sentences, builds the model; or goes on from `init`."""
    if isinstance(init, CLIP):
        raise ValueError("glip begins with nothing or goes on from a glip: --init is a CLIP")
    data = open_mixed(recipe.data, recipe.fit.seed)
    if init is None:
        text = recipe.model.text
        tokenizer = learn_wordpiece(data.texts(), text.vocabulary_size, text.context_length)
        torch.manual_seed(recipe.fit.seed)
        model = GLIP(replace(recipe.model, text=replace(text, vocabulary_size=tokenizer.vocabulary_size)))
        model.tokenizer = tokenizer
    else:
        model, tokenizer = init, init.reader()
    model.name = f"glip-{Path(recipe.data.shown.source).stem}"
    model.trained_on = {"source": Path(data.source).name, "pictures": len(data), "labels": list(data.labels)}
    samples = Sample(recipe.data, model.preprocessing, data.labels, tokenizer)
    loader = annotated_batches(data, samples, recipe.data.shown, seed=recipe.fit.seed, folder=folder)
    return model, (recipe.stage(name="glip", data=loader, loss=loss),)


def evaluate(model: GLIP, data: Annotated, novel: Sequence[str] | None = None) -> dict[str, float]:
    """Average precision with every label a choice, and recall of the phrases of sentences, where the data has some.

    Args:
        novel: labels reported apart; those that no prompt of training named by default.
    """
    known = set((model.trained_on or {}).get("labels", data.labels))
    unseen = tuple(label for label in data.labels if label not in known) if novel is None else tuple(novel)
    found = measure_detection(lambda image: model.detect(image, data.labels), data, unseen)
    return found | measure_grounding(model.ground, data)


SYSTEM = System(
    name="glip",
    title="GLIP",
    paper="arXiv 2112.03857",
    sizes=SIZES,
    build=build,
    loss=loss,
    recipe=recipe,
    prepare=prepare,
    evaluate=evaluate,
    open=open_source,
    example=example,
    load=load,
    minutes={"small": 9.0},
)
