"""Studies of relevance maps: whether they point at what a text names, and not at the other thing in the picture."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from openvocab.blocks.vit import ViT
from openvocab.clip.engine import evaluating
from openvocab.clip.model import CLIP
from openvocab.clip.relevance import attention_relevance, gradient_relevance, relevance, whole
from openvocab.data.annotated import Annotation
from openvocab.data.scenes import open_annotated_scenes
from openvocab.lab import report
from openvocab.lab.claims import Claim, Figures, Gate
from openvocab.lab.starts import JUDGE, OPTIMISER
from openvocab.lab.study import opened
from openvocab.shapes import Images
from openvocab.world.scene import CLASSES, WorldConfig

_PICTURES = 120
_PAIRS = WorldConfig(max_objects=2, share_single=0.0, colour_jitter=0.1)
Maps = Float[Tensor, "image rows cols"]


def points_at(clip: CLIP, seed: int) -> Figures:
    """Per method the share of peaks in the box and on the mask of the object that is named, and IoU at half height."""
    data = open_annotated_scenes(_PICTURES, _PAIRS, seed=31_000 + seed)
    shown = [found for found in map(data.read, range(len(data))) if _named(found)]
    images = torch.cat([whole(clip, found.image) for found in shown])
    rows = [int(found.label_ids[0]) for found in shown]
    names = clip.embed_texts([f"a {name}" for name in CLASSES])
    texts = names[rows]
    hidden = torch.stack(
        [relevance(clip, image[None], torch.stack([text, text - names.mean(0)])) for image, text in zip(images, texts)]
    )
    maps = {"hiding": hidden[:, 0], "against the other names": hidden[:, 1]}
    maps["grad-cam"] = gradient_relevance(clip, images, texts)
    maps["random"] = torch.rand(len(images), 8, 8, generator=torch.Generator().manual_seed(seed))
    if isinstance(clip.image, ViT):
        maps["attention and gradient"] = attention_relevance(clip, images, texts)
        maps |= {"raw attention": _attention(clip, images), "rollout": _attention(clip, images, rollout=True)}
    figures: Figures = {}
    for name, found in maps.items():
        figures |= _scores(name, found, shown)
    return figures


def _named(found: Annotation) -> bool:
    """Two different things, the first well visible."""
    return found.masks is not None and len(set(found.label_ids.tolist())) == 2 and bool(found.masks[0].sum() >= 10)


def _scores(name: str, maps: Maps, shown: list[Annotation]) -> Figures:
    size = shown[0].image.height
    large = F.interpolate(maps[:, None], size=(size, size), mode="bilinear", align_corners=False)[:, 0]
    in_box, on_mask, overlap = [], [], []
    for each, found in zip(large, shown):
        assert found.masks is not None
        y, x = divmod(int(each.argmax()), size)
        left, top, right, bottom = found.boxes_xyxy_px[0].tolist()
        mask: Bool[Tensor, "height width"] = torch.from_numpy(found.masks[0])
        high = each >= each.max() / 2
        in_box.append(left <= x < right and top <= y < bottom)
        on_mask.append(bool(mask[y, x]))
        overlap.append(((high & mask).sum() / (high | mask).sum()).item())
    parts = {"": in_box, ", mask": on_mask, ", IoU": overlap}
    return {name + part: sum(values) / len(values) for part, values in parts.items()}


def _attention(clip: CLIP, images: Images, *, rollout: bool = False) -> Maps:
    """The class token's attention in the last block; or through all of them, half of each kept (arXiv 2005.00928)."""
    with evaluating(clip):
        features = clip.image(images, attention=True)
    flow = features.weights[-1].mean(1)
    if rollout:
        same = torch.eye(flow.shape[-1]).expand_as(flow)
        flow = same
        for weights in features.weights:
            flow = (weights.mean(1) + same) / 2 @ flow
    return flow[:, 0, 1:].unflatten(1, features.grid)


def vit(seed: int) -> Figures:
    return points_at(opened(JUDGE), seed)


def resnet(seed: int) -> Figures:
    return points_at(opened(OPTIMISER), seed)


_SAYS = "Hiding parts of a picture tells where it shows what a text names, whatever the tower."
_WORLD = "120 generated scenes of two things a seed, 32 pixels, {} of {} M parameters; a hit lies in the thing's box"
CLAIMS = (
    Claim(
        name="relevance-points-vit",
        says=_SAYS,
        source="LIME, arXiv 1602.04938, against Chefer et al., arXiv 2103.15679",
        expects="At least 85 of 100 peaks in the box of what is named.",
        gate=Gate(figure="hiding", above=0.85),
        world=_WORLD.format("a ViT", "0.7"),
        study=vit,
        picture=report.bars_of(
            "pointing game", "hiding", "against the other names", "attention and gradient", "rollout", "random"
        ),
    ),
    Claim(
        name="relevance-points-resnet",
        says=_SAYS,
        source="LIME, arXiv 1602.04938, against Grad-CAM, arXiv 1610.02391",
        expects="At least 85 of 100 peaks in the box of what is named.",
        gate=Gate(figure="hiding", above=0.85),
        world=_WORLD.format("a ResNet", "0.3"),
        study=resnet,
        picture=report.bars_of("pointing game", "hiding", "against the other names", "grad-cam", "random"),
    ),
)
