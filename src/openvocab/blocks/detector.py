"""The part of a two-stage detector that knows no classes: a pyramid of maps, anchors, proposals, region features.

Ren et al. 2015 (arXiv 1506.01497), Lin et al. 2017 (arXiv 1612.03144), He et al. 2017 (arXiv 1703.06870). Boxes are
xyxy in pixels of the pictures that the pyramid reads; the trunk is `blocks.resnet`'s.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from openvocab.blocks.boxes import Boxes, box_area, box_iou, clip_boxes, nms, roi_align
from openvocab.blocks.resnet import ResNetConfig, without_pool
from openvocab.shapes import Images, Scalar

Maps = tuple[Float[Tensor, "image _ _ _"], ...]
Deltas = Float[Tensor, "box 4"]
Four = tuple[float, float, float, float]

BACKGROUND, BETWEEN = -1, -2
"""What `match` gives a box that overlaps no object, and one that overlaps an object too much for that."""
_LARGEST = math.log(1000 / 16)
_CELLS = 14
"""A region is read from the coarsest level at which it is at least so many cells long (Lin et al., equation 1)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectorConfig:
    """Pyramid and proposals; the defaults are those of Mask R-CNN with a pyramid.

    `levels`: beyond the trunk's stages each level is every second cell of the one before.
    `anchor_cells`, `aspects`: an anchor's length in cells of its level, and its height over its width.
    `positive`, `negative`: the overlap from which an anchor is an object, and below which it is none.
    `per_level`, `kept`: proposals before and after suppression; `kept` of all levels together.
    """

    trunk: ResNetConfig
    dim: int = 256
    levels: int = 5
    convs: int = 2
    anchor_cells: float = 8.0
    aspects: tuple[float, ...] = (1.0, 2.0, 0.5)
    samples: int = 256
    positive: float = 0.7
    negative: float = 0.3
    per_level: int = 1000
    kept: int = 1000
    overlap: float = 0.7

    @property
    def strides(self) -> tuple[int, ...]:
        return tuple(self.trunk.stem_stride * 2**level for level in range(self.levels))


@dataclass(frozen=True)
class Proposals:
    """Regions of one picture that may hold an object, the most likely first."""

    boxes: Boxes
    objectness: Float[Tensor, " box"]


class Pyramid(nn.Module):
    """The trunk's stages, each with what all coarser ones know (Lin et al., section 3)."""

    def __init__(self, config: DetectorConfig):
        super().__init__()
        self.config = config
        self.trunk = without_pool(config.trunk)
        widths = config.trunk.widths
        self.laterals = nn.ModuleList(nn.Conv2d(width, config.dim, 1) for width in widths)
        self.outs = nn.ModuleList(_convolution(config.dim, config.dim) for _ in widths)

    def forward(self, images: Images) -> Maps:
        """Maps at `config.strides`; sides are multiples of the trunk's stride."""
        stages = self.trunk.maps(images)
        joined = [self.laterals[-1](stages[-1])]
        for lateral, stage in zip(reversed(self.laterals[:-1]), reversed(stages[:-1])):
            joined.insert(0, lateral(stage) + F.interpolate(joined[0], scale_factor=2, mode="nearest"))
        maps = [out(each) for out, each in zip(self.outs, joined)]
        while len(maps) < self.config.levels:
            maps.append(F.max_pool2d(maps[-1], 1, stride=2))
        return tuple(maps)


@dataclass(frozen=True)
class Anchored:
    """What the proposal head says of every anchor, level after level; `counts` anchors belong to each."""

    logits: Float[Tensor, "image anchor"]
    deltas: Float[Tensor, "image anchor 4"]
    anchors: Float[Tensor, "anchor 4"]
    counts: tuple[int, ...]


class ProposalHead(nn.Module):
    """Whether there is an object at each anchor, and how its box differs from the anchor; shared by all levels."""

    def __init__(self, config: DetectorConfig):
        super().__init__()
        self.config = config
        self.convs = nn.Sequential(*(_convolution(config.dim, config.dim) for _ in range(config.convs)))
        self.logits = nn.Conv2d(config.dim, len(config.aspects), 1)
        self.deltas = nn.Conv2d(config.dim, 4 * len(config.aspects), 1)
        for head in (self.logits, self.deltas):
            nn.init.normal_(head.weight, std=0.01)

    def forward(self, maps: Maps) -> Anchored:
        found = []
        for each, stride in zip(maps, self.config.strides):
            hidden = self.convs(each)
            logits, deltas = self.logits(hidden), self.deltas(hidden)
            grid = anchors(each.shape[2:], stride, self.config.anchor_cells * stride, self.config.aspects)  # type: ignore[arg-type]
            found.append((logits.permute(0, 2, 3, 1).flatten(1), deltas.permute(0, 2, 3, 1), grid.to(each)))
        counts = tuple(len(grid) for *_, grid in found)
        deltas = torch.cat([part.reshape(len(part), -1, 4) for _, part, _ in found], 1)
        return Anchored(torch.cat([f[0] for f in found], 1), deltas, torch.cat([f[2] for f in found]), counts)

    def losses(self, found: Anchored, truth: Sequence[Float[Tensor, "_ 4"]]) -> tuple[Scalar, Scalar]:
        """Of objectness and of boxes, over a random sample of anchors, half of them objects where there are enough."""
        config = self.config
        score, box = [], []
        for logits, deltas, true in zip(found.logits, found.deltas, truth):
            matched = match(found.anchors, true, config.positive, config.negative, force=True)
            objects, nothing = sample(matched, config.samples, 0.5)
            chosen = torch.cat([objects, nothing])
            wanted = (torch.arange(len(chosen), device=logits.device) < len(objects)).to(logits)
            score.append(F.binary_cross_entropy_with_logits(logits[chosen], wanted))
            target = encode(true[matched[objects]], found.anchors[objects])
            box.append(F.huber_loss(deltas[objects], target, delta=1 / 9, reduction="sum") / max(1, len(chosen)))
        return torch.stack(score).mean(), torch.stack(box).mean()

    @torch.no_grad()
    def propose(self, found: Anchored, size: tuple[int, int]) -> list[Proposals]:
        """The best boxes of pictures of this size (height, width)."""
        config, proposals = self.config, []
        for logits, deltas in zip(found.logits, found.deltas):
            parts, start = [], 0
            for count in found.counts:
                level = logits[start : start + count]
                best = level.topk(min(config.per_level, count)).indices
                boxes = clip_boxes(decode(deltas[start + best], found.anchors[start + best]), size)
                best, boxes = best[box_area(boxes) >= 1], boxes[box_area(boxes) >= 1]
                stays = nms(boxes, level[best, None].float(), config.overlap)[:, 0]
                parts.append((boxes[stays], level[best][stays]))
                start += count
            boxes, scores = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
            order = scores.argsort(descending=True, stable=True)[: config.kept]
            proposals.append(Proposals(boxes[order], scores[order].sigmoid()))
        return proposals


class RegionHead(nn.Module):
    """Region features to one vector a region: convolutions, then two layers (each with BatchNorm and ReLU)."""

    def __init__(self, channels: int, size: int, convs: int, dim: int):
        super().__init__()
        self.convs = nn.Sequential(*(_convolution(channels, channels) for _ in range(convs)))
        self.layers = nn.Sequential()
        for width in (channels * size * size, dim):
            self.layers.extend([nn.Linear(width, dim, bias=False), nn.BatchNorm1d(dim), nn.ReLU(inplace=True)])

    def forward(self, regions: Float[Tensor, "box channel size size"]) -> Float[Tensor, "box dim"]:
        return self.layers(self.convs(regions).flatten(1))


def region_features(
    maps: Maps, strides: Sequence[int], boxes: Boxes, image: Int[Tensor, " box"], size: int
) -> Float[Tensor, "box channel {size} {size}"]:
    """Every region at the level that fits its size."""
    length = box_area(boxes).sqrt().clamp_min(1e-6)
    level = (length / (_CELLS * strides[0])).log2().floor().clamp(0, len(maps) - 1)
    found = boxes.new_zeros(len(boxes), maps[0].shape[1], size, size)
    for number, (each, stride) in enumerate(zip(maps, strides)):
        rows = level == number
        if rows.any():
            found[rows] = roi_align(each, boxes[rows], image[rows], size, float(stride)).to(found)
    return found


def anchors(grid: tuple[int, int], stride: int, length: float, aspects: Sequence[float]) -> Boxes:
    """One box for each aspect around the centre of every cell, row by row; all have the area of `length` squared."""
    tall = torch.tensor(aspects).sqrt()
    half = torch.stack([length / tall, length * tall], 1) / 2
    y, x = torch.meshgrid(*((torch.arange(side) + 0.5) * stride for side in grid), indexing="ij")
    centre = torch.stack([x, y], -1).reshape(-1, 1, 2)
    return torch.cat([centre - half, centre + half], -1).reshape(-1, 4)


def encode(boxes: Boxes, around: Boxes, weights: Four = (1.0, 1.0, 1.0, 1.0)) -> Deltas:
    """How boxes differ from those around them: ((x - x_a) / w_a, (y - y_a) / h_a, ln w / w_a, ln h / h_a), weighted."""
    size, base = boxes[:, 2:] - boxes[:, :2], around[:, 2:] - around[:, :2]
    move = ((boxes[:, :2] + boxes[:, 2:]) / 2 - (around[:, :2] + around[:, 2:]) / 2) / base
    return torch.cat([move, (size / base).log()], 1) * boxes.new_tensor(weights)


def decode(deltas: Deltas, around: Boxes, weights: Four = (1.0, 1.0, 1.0, 1.0)) -> Boxes:
    """The boxes that `encode` came from; none grows beyond bounds."""
    deltas, base = deltas / deltas.new_tensor(weights), around[:, 2:] - around[:, :2]
    centre = (around[:, :2] + around[:, 2:]) / 2 + deltas[:, :2] * base
    half = base * deltas[:, 2:].clamp(max=_LARGEST).exp() / 2
    return torch.cat([centre - half, centre + half], 1)


def match(
    boxes: Boxes, truth: Float[Tensor, "object 4"], high: float, low: float, *, force: bool = False
) -> Int[Tensor, " box"]:
    """The object that each box overlaps most, by `high` or more; `BACKGROUND` below `low`, `BETWEEN` else.

    Args:
        force: the boxes that overlap an object most are its own, however little that is.
    """
    if not len(truth):
        return torch.full((len(boxes),), BACKGROUND, device=boxes.device)
    overlap = box_iou(boxes, truth)
    best, which = overlap.max(1)
    found = torch.where(best >= high, which, torch.where(best < low, BACKGROUND, BETWEEN))
    if force:
        most = overlap.amax(0)
        own = ((overlap == most) & (most > 0)).any(1)
        found = torch.where(own, which, found)
    return found


def sample(matched: Int[Tensor, " box"], count: int, share: float) -> tuple[Int[Tensor, " _"], Int[Tensor, " _"]]:
    """Random rows of boxes on objects, at most this share of `count`, and of boxes on nothing, to fill it up."""
    objects, nothing = _shuffled(matched >= 0), _shuffled(matched == BACKGROUND)
    objects = objects[: int(count * share)]
    return objects, nothing[: count - len(objects)]


def _shuffled(rows: Bool[Tensor, " box"]) -> Int[Tensor, " _"]:
    found = rows.nonzero()[:, 0]
    return found[torch.randperm(len(found), device=found.device)]


def _convolution(before: int, after: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU())
