"""Studies of GroupViT: what captions alone teach about pixels, how many groups it takes, and what is nothing."""

from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from openvocab import systems
from openvocab.clip.dense import Segmentation
from openvocab.clip.vocabulary import vocabulary
from openvocab.data.annotated import Annotated, open_source
from openvocab.lab import report
from openvocab.lab.claims import Claim, Figures, Gate
from openvocab.lab.study import Arm, opened
from openvocab.metrics.interval import bootstrap
from openvocab.metrics.segment import best_segment_iou, pixel_counts

GROUPED = Arm(system="groupvit")
CONTROL = Arm(system="clip", size="dense")
"""The same captions, steps and batch, larger pictures, and no groups: read by MaskCLIP."""
PLAIN, SOFT = GROUPED.but("model.image.grouping=none"), GROUPED.but("model.image.grouping=soft")
FEW = GROUPED.but("model.image.groups=[2,0]", "model.image.group_tokens=[2,0]")
MANY = GROUPED.but("model.image.groups=[16,0]", "model.image.group_tokens=[16,0]")
WORLD = "generated scenes, seen at 48 pixels, 0.3 M parameters, 2,400 steps of 64 captions, no mask"

VALIDATION, TEST = "scenes:150:31", "scenes:400:32"
THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
SHORT_SIDES_PX = (48, 64, 96)
REFINED = 4
TEMPLATE = "a {}"
Segmenter = Callable[[Image.Image, dict], Segmentation]
Overlap = Float[Tensor, "picture 2 label"]
"""Of each picture the intersections and unions of nothing and every label."""


def overlaps(segment: Segmenter, data: Annotated, how: dict) -> Overlap:
    """What mIoU is made of, a row a picture, so that pictures can be drawn again."""
    rows = []
    for index in range(len(data)):
        found = data.read(index)
        counts = pixel_counts(
            segment(found.image, how).classes + 1, torch.from_numpy(found.classes), len(data.labels) + 1
        )
        both = counts.diagonal()
        rows.append(torch.stack([both, counts.sum(0) + counts.sum(1) - both]))
    return torch.stack(rows).double()


def mean_iou(rows: Overlap) -> float:
    """Over the labels that occur in these pictures, nothing among them."""
    both, either = rows.sum(0)
    return (both / either).nanmean().item()


def chosen(segment: Segmenter) -> dict:
    """The threshold and the resolution that are best on validation scenes."""
    data = open_source(VALIDATION)
    ways = [{"none_below": below, "short_side_px": side} for below in THRESHOLDS for side in SHORT_SIDES_PX]
    return max(ways, key=lambda how: mean_iou(overlaps(segment, data, how)))


def segmenter(arm: Arm, seed: int) -> Segmenter:
    """GroupViT's own inference, or MaskCLIP's reading of a CLIP."""
    model = opened(arm, seed)
    labels = open_source("scenes:1").labels
    if arm.system == "clip":
        model = systems.get("maskclip").build("tiny", model)
        words = vocabulary(model.clip, labels, TEMPLATE)
    else:
        words = model.vocabulary(labels, TEMPLATE)
    return lambda image, how: model.segment(image, words, **how)


@cache
def measured(arm: Arm, seed: int) -> tuple[Overlap, dict]:
    """Test pictures in the way that validation chose."""
    segment = segmenter(arm, seed)
    how = chosen(segment)
    return overlaps(segment, open_source(TEST), how), how


def object_iou(arm: Arm, seed: int, crowded: bool = False, **how: int) -> Figures:
    """How well the best segment of each object fits it, and so many segments of random patches.

    Args:
        crowded: of pictures with three objects alone.
    """
    model, data = opened(arm, seed), open_source(TEST)
    rng, fits, drawn = torch.Generator().manual_seed(seed), [], []
    for index in range(len(data)):
        found = data.read(index)
        if crowded and len(found.label_ids) < 3:
            continue
        masks, groups = torch.from_numpy(found.masks), model.groups(found.image, **how)
        fits += best_segment_iou(groups, masks).tolist()
        patches = torch.randint(model.config.image.segments, (8, 8), generator=rng)
        drawn += best_segment_iou(patches.repeat_interleave(8, 0).repeat_interleave(8, 1), masks).tolist()
    return {"fit": sum(fits) / len(fits), "random": sum(drawn) / len(drawn)}


def without_masks(seed: int) -> Figures:
    """mIoU of both, the gain with its lower end over pictures, the segments whatever their names, the ablations."""
    (ours, how), (theirs, _) = measured(GROUPED, seed), measured(CONTROL, seed)
    both = torch.stack([ours, theirs], dim=1)
    low, _ = bootstrap(both, lambda rows: mean_iou(rows[:, 0]) - mean_iou(rows[:, 1]))
    shapes = object_iou(GROUPED, seed, short_side_px=how["short_side_px"])
    refined = object_iou(GROUPED, seed, short_side_px=how["short_side_px"], refine_rounds=REFINED)
    edges = overlaps(segmenter(GROUPED, seed), open_source(TEST), how | {"refine_rounds": REFINED})
    return {
        "GroupViT": mean_iou(ours),
        "MaskCLIP": mean_iou(theirs),
        "gain": mean_iou(ours) - mean_iou(theirs),
        "gain, low end": low,
        "GroupViT, refined": mean_iou(edges),
        "segments fit objects": shapes["fit"],
        "refined segments": refined["fit"],
        "random segments": shapes["random"],
        "no groups": mean_iou(measured(PLAIN, seed)[0]),
        "soft groups": mean_iou(measured(SOFT, seed)[0]),
    }


def group_limit(seed: int) -> Figures:
    """Pictures of three objects, by the number of groups."""
    arms = {"2 groups": FEW, "8 groups": GROUPED, "16 groups": MANY}
    fits = {name: object_iou(arm, seed, crowded=True)["fit"] for name, arm in arms.items()}
    return fits | {"gain": fits["8 groups"] - fits["2 groups"]}


def background(seed: int) -> Figures:
    """mIoU with and without a threshold below which a pixel shows nothing."""
    rows, how = measured(GROUPED, seed)
    forced = overlaps(segmenter(GROUPED, seed), open_source(TEST), how | {"none_below": None})
    low, _ = bootstrap(torch.stack([rows, forced], 1), lambda both: mean_iou(both[:, 0]) - mean_iou(both[:, 1]))
    return {"with nothing": mean_iou(rows), "always a label": mean_iou(forced), "gain, low end": low}


CLAIMS = (
    Claim(
        name="groupvit-without-masks",
        says="Groups learned from captions alone segment far better than what a CLIP of the same captions says itself.",
        source="GroupViT, sections 4.2 and 4.3",
        expects="At least 10 points of mIoU above MaskCLIP, at the lower end of its interval over test pictures.",
        gate=Gate(figure="gain, low end", above=0.1),
        world=WORLD,
        study=without_masks,
        seeds=1,
        picture=report.bars_of("mIoU", "MaskCLIP", "no groups", "soft groups", "GroupViT", "GroupViT, refined"),
    ),
    Claim(
        name="groupvit-group-limit",
        says="A picture with more things than groups does not come apart; the number of groups is the limit.",
        source="GroupViT's fixed eight segments",
        expects="Three objects: the best of 8 groups fits an object at least 5 points of IoU better than of 2.",
        gate=Gate(figure="gain", above=0.05),
        world=WORLD,
        study=group_limit,
        seeds=1,
        picture=report.bars_of("IoU of an object and its best group", "2 groups", "8 groups", "16 groups"),
    ),
    Claim(
        name="groupvit-background",
        says="GroupViT has no idea of nothing: without a threshold every pixel is given one of the labels.",
        source="GroupViT, section 4.1 (thresholds by data set)",
        expects="A threshold picked on other scenes gains at least 1 point of mIoU over 65 classes.",
        gate=Gate(figure="gain, low end", above=0.01),
        world=WORLD,
        study=background,
        seeds=1,
        picture=report.bars_of("mIoU", "always a label", "with nothing"),
    ),
)
