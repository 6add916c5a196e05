"""ViLD: a detector of anything, distilled from a CLIP (Gu et al. 2022, arXiv 2104.13921).

A detector trained on boxes of base classes proposes regions r whatever they show; its head gives each a vector e_r:

    L_text  = CE(softmax(s [cos(e_r, e_bg), cos(e_r, t_1), ..]), y_r)      t the base labels' text vectors, e_bg learned
    L_image = mean over stored regions m of |v_m - e_m|_1                  v_m the CLIP vector of m's crops
    L = L_proposals + L_boxes + L_text + w L_image
    p = p_text^(2/3) p_image^(1/3) for base labels, the exponents exchanged for novel ones           two heads

Labels at inference are words alone. Reproduced: ViLD-text, ViLD-image, ViLD and the ensemble of two heads; crops once
and one and a half times as wide as their boxes, summed, stored once; boxes that know no class; suppression per label.
Differs from the paper: the trunk is CLIP's ResNet, whose strides are averages; the detector that proposes the stored
regions is a ViLD-text trained alike; names that training must not know are absent from its softmax, where the official
code gives them the logit 0 (`zero_logits`). Left out: masks, TensorFlow's checkpoints.

    openvocab train vild --out run                        generated scenes
    openvocab train vild --size paper --data coco.json --set data.shown.withheld=nothing \
        --set data.shown.novel='["cat", "dog"]' --init hf:openai/clip-vit-base-patch32 --out run
    openvocab detect picture.jpg --labels "cat,red ring" --model run
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from openvocab import storage
from openvocab.blocks.detector import DetectorConfig, encode, match, sample
from openvocab.blocks.resnet import ResNetConfig
from openvocab.clip.architectures import architecture
from openvocab.clip.dense import TINY_CLIP
from openvocab.clip.learning import PIXELS, annotated_batches
from openvocab.clip.model import CLIP
from openvocab.clip.regions import measure_detection
from openvocab.config import to_dict
from openvocab.data.annotated import Annotated, AnnotatedConfig, open_annotated, open_source
from openvocab.metrics.detect import proposal_recall
from openvocab.progress import note
from openvocab.shapes import Batch
from openvocab.system import Recipe, System
from openvocab.systems.vild.model import BOX_WEIGHTS, ViLD, ViLDConfig, plain
from openvocab.systems.vild.regions import Sample, Stored, ViLDData, by_picture, store_regions
from openvocab.train import distributed
from openvocab.train.config import FitConfig, GroupConfig, OptimConfig
from openvocab.train.fit import Stage, fit
from openvocab.train.step import Losses

_TRUNK = ResNetConfig(image_size=64, layers=(1, 1, 1), channels=32, heads=0, block="basic", pool="mean")
_SMALL = DetectorConfig(
    trunk=_TRUNK, dim=64, levels=3, convs=1, anchor_cells=4.0, samples=64, per_level=60, kept=50, overlap=0.7
)
SIZES = {
    "tiny": ViLDConfig(
        clip=TINY_CLIP,
        detector=replace(_SMALL, trunk=replace(_TRUNK, channels=4), dim=8, samples=16, per_level=20, kept=10),
        preprocess=PIXELS,
        region_size=3,
        head_convs=1,
        head_dim=16,
        samples=8,
    ),
    "small": ViLDConfig(
        clip=TINY_CLIP,
        detector=_SMALL,
        preprocess=replace(PIXELS, image_size=64),
        head_convs=0,
        head_dim=256,
        samples=32,
        most=100,
    ),
    "paper": ViLDConfig(
        clip=architecture("ViT-B-32-quickgelu"),
        detector=DetectorConfig(trunk=ResNetConfig(image_size=1024, heads=0, pool="mean")),
    ),
}


def build(config: ViLDConfig | str, clip: CLIP | None = None) -> ViLD:
    """Around `clip`; without one around one of random weights."""
    config = SIZES[config] if isinstance(config, str) else config
    return ViLD(replace(config, clip=clip.config) if clip else config, clip)


def loss(model: ViLD, batch: Batch) -> Losses:
    """The detector's losses and those of the method; regions of no length are fillings."""
    config, images = model.config, batch["images"]
    truth = [boxes[labels >= 0] for boxes, labels in zip(batch["boxes"], batch["labels"])]
    maps = model.pyramid(images)
    anchored = model.proposals(maps)
    objectness, moved = model.proposals.losses(anchored, truth)
    proposals = model.proposals.propose(anchored, (images.shape[2], images.shape[3]))

    boxes, image, answers, targets = [], [], [], []
    for number, (found, true, labels) in enumerate(zip(proposals, truth, batch["labels"])):
        candidates = torch.cat([true, found.boxes])
        matched = match(candidates, true, config.overlap, config.overlap)
        objects, nothing = sample(matched, config.samples, config.objects)
        chosen = torch.cat([objects, nothing])
        boxes.append(candidates[chosen])
        image.append(torch.full((len(chosen),), number, device=images.device))
        answers.append(torch.cat([labels[labels >= 0][matched[objects]] + 1, torch.zeros_like(nothing)]))
        targets.append(encode(true[matched[objects]], candidates[objects], BOX_WEIGHTS))
    stored = batch["regions"].amax(2) > 0
    sampled = sum(map(len, boxes))
    of = torch.cat([*image, stored.nonzero()[:, 0]])
    seen = model.see(maps, torch.cat([*boxes, batch["regions"][stored]]), of)

    wanted = torch.cat(answers)
    deltas = seen.deltas[:sampled][wanted > 0]
    parts = {"objectness": objectness, "proposals": moved}
    parts["boxes"] = F.huber_loss(deltas, torch.cat(targets), reduction="sum") / max(1, sampled)
    if seen.text is not None:
        logits = seen.text[:sampled]
        if config.method != "closed":
            logits = F.pad(model.text_logits(logits, model.texts), (0, config.zero_logits))
        parts["text"] = F.cross_entropy(logits, wanted)
    if seen.image is not None:
        off = (seen.image[sampled:] - batch["vectors"][stored]).abs().sum(1)
        parts["image"] = config.distill * off.sum() / max(1, len(off))
    logged = {"diag/stored": stored.float().mean()} if stored.numel() else {}
    return {"loss": torch.stack(list(parts.values())).sum(), **parts, **logged}


def example(model: ViLD, rows: int) -> Batch:
    """Pictures of noise, two objects and three regions in each."""
    side, embed = model.preprocessing.image_size, model.clip.config.embed_dim
    corners = torch.rand(rows, 5, 2) * side / 2
    boxes = torch.cat([corners, corners + 4 + torch.rand(rows, 5, 2) * side / 3], 2)
    labels = torch.arange(2 * rows).view(rows, 2) % len(model.config.labels)
    vectors = F.normalize(torch.randn(rows, 3, embed), dim=2)
    found = {"images": torch.randn(rows, 3, side, side), "boxes": boxes[:, :2], "labels": labels}
    return found | {"regions": boxes[:, 2:], "vectors": vectors}


def recipe(size: str, source: str = "scenes") -> Recipe[ViLDConfig]:
    """The training run of a size, on generated scenes in which rings and crescents have no boxes, or on `source`."""
    shown = AnnotatedConfig(source=source)
    if size == "paper":
        return Recipe(
            model=SIZES[size],
            data=ViLDData(shown=replace(shown, batch_size=256, workers=8)),
            optim=OptimConfig(method="sgd", lr=0.32, betas=(0.9, 0.0), weight_decay=4e-5, warmup_steps=1000),
            fit=FitConfig(steps=180_000, precision="bfloat16"),
            groups=(GroupConfig(),),
        )
    tiny = size == "tiny"
    hold = {"holdout": "H2", "withheld": "nothing"} if source == "scenes" else {}
    shown = replace(shown, num_scenes=60 if tiny else 2000, batch_size=6 if tiny else 8, **hold)
    return Recipe(
        model=SIZES[size],
        data=ViLDData(shown=shown, regions=4 if tiny else 16, most_objects=4, resize=(1.0, 1.0)),
        optim=OptimConfig(lr=2e-3, weight_decay=0.05, clip_norm=5.0),
        fit=FitConfig(steps=10 if tiny else 1000, checkpoint_every_steps=200),
        groups=(GroupConfig(),),
    )


def prepare(
    recipe: Recipe[ViLDConfig], init: CLIP | ViLD | None = None, folder: Path | None = None
) -> tuple[ViLD, tuple[Stage]]:
    """Opens the data, stores the regions that are distilled, builds the model around the CLIP of `init`.

    A detector as `init` proposes those regions; without one a ViLD-text is trained first, in `folder/proposer`.
    """
    if init is None:
        raise ValueError("vild stands on a trained CLIP: give --init MODEL")
    if isinstance(init, CLIP) and init.tokenizer is None:
        raise ValueError(f"{init.name} has no tokenizer: labels cannot be read")
    clip = init.clip if isinstance(init, ViLD) else init
    data = open_annotated(recipe.data.shown, recipe.fit.seed)
    stored: Stored = {}
    if recipe.model.method not in ("text", "closed"):
        detector = init if isinstance(init, ViLD) else _proposer(recipe, init, folder)
        stored = by_picture(store_regions(detector.to(distributed.device()), data, recipe.data.regions), data)
    torch.manual_seed(recipe.fit.seed)
    model = ViLD(replace(recipe.model, clip=clip.config, labels=data.labels), clip)
    model.texts.copy_(model.words(data.labels).embeds)
    model.name = f"vild-{Path(recipe.data.shown.source).stem}"
    model.trained_on = {"clip": clip.trained_on, "source": Path(data.source).name, "pictures": len(data)}
    samples = Sample(recipe.data, model.preprocessing, stored)
    loader = annotated_batches(data, samples, recipe.data.shown, seed=recipe.fit.seed, folder=folder)
    return model, (recipe.stage(name="vild", data=loader, loss=loss),)


def _proposer(recipe: Recipe[ViLDConfig], clip: CLIP, folder: Path | None) -> ViLD:
    """ViLD-text by the same recipe, trained once."""
    recipe = replace(recipe, model=replace(recipe.model, method="text"))
    identity = storage.fingerprint(to_dict(recipe), clip.fingerprint)
    run = folder / "proposer" if folder else storage.cache_folder("proposers", identity)
    if not (run / "model").exists():
        note(f"a detector that proposes regions, into {run}")
        model, stages = prepare(recipe, clip, run)
        fit(model, *stages, out=run, identity=identity, device=distributed.device())
        model.save(run / "model")
    return ViLD.load(run / "model")


def evaluate(model: ViLD, data: Annotated, novel: Sequence[str] | None = None) -> dict[str, float]:
    """Average precision with every label a choice, and how many objects the first 50 proposals find.

    Args:
        novel: labels reported apart; those that training did not name by default.
    """
    base = {plain(label) for label in model.config.labels}
    unseen = tuple(label for label in data.labels if plain(label) not in base) if novel is None else tuple(novel)
    words = model.words(data.labels)
    figures = measure_detection(lambda image: model.detect(image, words), data, unseen)
    proposed, wanted = [], {"base": [], "novel": []}
    rows = np.array([label in unseen for label in data.labels])
    for index in range(len(data)):
        found = data.read(index)
        proposed.append(model.propose(found.image).boxes.cpu())
        for name, chosen in (("base", ~rows[found.label_ids]), ("novel", rows[found.label_ids])):
            wanted[name].append(torch.from_numpy(found.boxes_xyxy_px[chosen]))
    for name, truth in wanted.items():
        figures[f"recall@50_{name}"] = proposal_recall(proposed, truth, 50)
    return figures


SYSTEM = System(
    name="vild",
    title="ViLD",
    paper="arXiv 2104.13921",
    sizes=SIZES,
    build=build,
    loss=loss,
    recipe=recipe,
    prepare=prepare,
    evaluate=evaluate,
    open=open_source,
    example=example,
    load=ViLD.load,
    init=("clip", "dense"),
    minutes={"small": 9.0},
)
