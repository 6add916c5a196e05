"""Where a picture shows what a text says, and which words say it, asked of any CLIP from outside.

    min_b  sum_i (s_i - mean s - b . (m_i - mean m))^2 + ridge |b|^2

The picture is looked at many times, each time with other cells m_i hidden behind its mean colour; s_i is how well what
is left fits the text. b, the share of each cell in the score, is the map (LIME, arXiv 1602.04938, with the random masks
of RISE, arXiv 1806.07421). Masks come in pairs, each with its complement. One set of looks serves all texts, no
gradient is needed, and so any tower, precision or back end will do. The map of t - t' says what speaks for t rather
than for t': beside other things, it is the sharper question.

`attention_relevance` and `gradient_relevance` look inside instead: one look each, of a tower that has what they need.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from openvocab.blocks.boxes import Boxes
from openvocab.blocks.vit import ViT, ViTConfig
from openvocab.clip.dense import dense_pixels
from openvocab.clip.engine import Picture, embed_texts, evaluating
from openvocab.clip.model import CLIP
from openvocab.data.decode import opened, to_rgb
from openvocab.progress import track
from openvocab.shapes import Images, TextEmbeds

Maps = Float[Tensor, "text rows cols"]

CELLS = 8
"""Along a picture's short side."""
LOOKS_PER_CELL = 4
_RIDGE = 0.1
_AT_ONCE = 64


@dataclass(frozen=True)
class Relevance:
    """Why a picture fits a text.

    Fields:
        map: each pixel's share in the score, at the picture's own size; what speaks against the text is negative.
        score: the cosine of the two.
        words: each word of the text with what the score would lose without it.
    """

    text: str
    map: Float[Tensor, "height width"]
    score: float
    words: tuple[tuple[str, float], ...]


def explain(clip: CLIP, picture: Picture, text: str, others: Sequence[str] = ()) -> Relevance:
    """Where a picture shows what a text says, and which of its words count.

    Args:
        others: what else it might be; the map says what speaks for the text rather than for the mean of these.

    Raises:
        ValueError: an empty text, or one longer than the model's context.
    """
    words = text.split()
    if not words:
        raise ValueError("explain: the text is empty; say what to look for")
    image = opened(picture)
    without = [" ".join([*words[:place], *words[place + 1 :]]) for place in range(len(words))]
    texts = embed_texts(clip, [text, *without])
    asked = texts[:1] - embed_texts(clip, list(others)).mean(0) if others else texts[:1]
    pixels = whole(clip, image)
    with evaluating(clip):
        scores = (clip.encode_image(pixels.to(clip.device)).cpu().float() @ texts.T)[0]
    large = F.interpolate(
        relevance(clip, pixels, asked)[None], size=image.size[::-1], mode="bilinear", align_corners=False
    )
    return Relevance(text, large[0, 0], scores[0].item(), tuple(zip(words, (scores[0] - scores[1:]).tolist())))


def whole(clip: CLIP, picture: Image.Image) -> Float[Tensor, "1 3 height width"]:
    """All of a picture, nothing cropped, as the tower reads it."""
    return dense_pixels(to_rgb(picture), clip.preprocessing, clip.config.image.stride)


def relevance(
    clip: CLIP, pixels: Float[Tensor, "1 3 height width"], texts: TextEmbeds, looks_per_cell: int = LOOKS_PER_CELL
) -> Maps:
    """The share of each cell of one picture in its score with each text; about `CELLS` along the short side.

    Args:
        texts: of any length: differences of embeddings too.
    """
    height, width = pixels.shape[2:]
    cell = max(1, min(height, width) // CELLS)
    rows, cols = max(1, round(height / cell)), max(1, round(width / cell))
    random = torch.Generator().manual_seed(0)
    half = max(1, rows * cols * looks_per_cell // 2)
    kept = torch.rand(half, rows * cols, generator=random) < torch.rand(half, 1, generator=random)
    masks = torch.cat([kept, ~kept]).float()
    mean = pixels.mean((2, 3), keepdim=True)
    scores = []
    with evaluating(clip):
        for first in track(range(0, len(masks), _AT_ONCE), "looking", unit="batch"):
            shown = masks[first : first + _AT_ONCE].unflatten(1, (1, rows, cols))
            shown = F.interpolate(shown, size=(height, width), mode="nearest")
            looks = (mean + (pixels - mean) * shown).to(clip.device)
            scores.append(clip.encode_image(looks).cpu().float() @ texts.T)
    masks, fits = masks - masks.mean(0), torch.cat(scores)
    covariance = masks.T @ masks / len(masks) + _RIDGE * torch.eye(rows * cols)
    shares = torch.linalg.solve(covariance, masks.T @ (fits - fits.mean(0)) / len(masks))
    return shares.T.unflatten(1, (rows, cols))


def spots(maps: Maps) -> Boxes:
    """Around the peak of each map, as far as it stays above half its height; in cells, right and bottom exclusive."""
    found = []
    for each in maps:
        high = each >= each.max() - each.max().abs() / 2
        spot = torch.zeros_like(each)
        spot.view(-1)[each.argmax()] = 1
        while True:
            grown = F.max_pool2d(spot[None, None], 3, stride=1, padding=1)[0, 0] * high
            if torch.equal(grown, spot):
                break
            spot = grown
        ys, xs = spot.nonzero().unbind(1)
        found.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    return torch.tensor(found, dtype=torch.float32).reshape(-1, 4)


def attention_relevance(clip: CLIP, images: Images, texts: TextEmbeds) -> Float[Tensor, "image rows cols"]:
    """R <- R + mean_h(relu(grad A * A)) R through the blocks of a ViT, where image i meets text i.

    The row of the class token, or of what pools (Chefer et al. 2021, arXiv 2103.15679, equations 5 and 6).

    Raises:
        ValueError: a tower without attention between its patches.
    """
    if not isinstance(clip.image, ViT):
        raise ValueError(f"{clip.name}: a {type(clip.image).__name__} has no attention between patches")
    with evaluating(clip), torch.enable_grad():
        features = clip.image(images, attention=True)
        fits = (F.normalize(clip.image.projection(features.pooled), dim=1) * texts).sum()
        gradients = torch.autograd.grad(fits, features.weights)
    tokens = features.weights[0].shape[-1]
    flow = torch.eye(tokens).expand(len(images), -1, -1)
    for weights, gradient in zip(features.weights, gradients):
        step = (weights * gradient).clamp_min(0).mean(1).detach()
        flow = step @ flow if step.shape[1] == 1 else flow + step @ flow
    lead = tokens - features.grid[0] * features.grid[1]
    pooled = flow[:, 0] if lead or flow.shape[1] == 1 else flow.mean(1)
    return pooled[:, lead:].unflatten(1, features.grid)


def gradient_relevance(clip: CLIP, images: Images, texts: TextEmbeds) -> Float[Tensor, "image rows cols"]:
    """relu(sum_c mean(grad A_c) A_c) over a tower's last maps, where image i meets text i (arXiv 1610.02391)."""
    # What leaves the last block of a ViT reaches its class token no more.
    config = clip.config.image
    layer = config.layers - 2 if isinstance(config, ViTConfig) else len(config.layers) - 1
    with evaluating(clip), torch.enable_grad():
        features = clip.image(images, layers=(layer,))
        fits = (F.normalize(clip.image.projection(features.pooled), dim=1) * texts).sum()
        (gradient,) = torch.autograd.grad(fits, features.layers)
    maps = features.layers[0].detach()
    if maps.ndim == 3:
        lead = maps.shape[1] - features.grid[0] * features.grid[1]
        maps, gradient = (each[:, lead:].transpose(1, 2).unflatten(2, features.grid) for each in (maps, gradient))
    return (maps * gradient.mean((2, 3), keepdim=True)).sum(1).clamp_min(0)
