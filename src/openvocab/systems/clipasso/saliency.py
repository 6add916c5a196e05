"""Where a sketch begins: what a CLIP looks at in a picture, times where its edges are.

Attention as the released code has it is the mean over blocks and heads of what the class token looks at, up to its
extent from 0 to 1; XDoG (Winnemoeller et al. 2012) keeps edges. Pixels are drawn with exp(map / temperature).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from openvocab.blocks.vit import ViT
from openvocab.clip.drawing import normalised
from openvocab.clip.model import CLIP
from openvocab.shapes import Images

Saliency = Literal["attention", "last", "none"]
"""Attention of all blocks; of the last alone; or nothing, so that every pixel is as likely."""
Gray = Float[Tensor, "height width"]
_LUMA = (0.2125, 0.7154, 0.0721)


def attention_map(clip: CLIP, square: Float[Tensor, "1 3 size size"], kind: Saliency) -> Gray:
    """What a CLIP looks at in a picture from 0 to 1, at the picture's own size.

    A tower without a class token tells by what all its patches look at, or by its pooling query; one that pools by the
    mean has no attention, there it is how much each place says of what the picture says as a whole.
    """
    rows, (height, width) = _looks(clip, normalised(clip, square))
    seen = rows[-1:] if kind == "last" else rows
    grid = seen.mean(0).view(1, 1, height, width)
    return _extent(F.interpolate(grid, size=square.shape[2:], mode="bicubic")[0, 0])


def _looks(clip: CLIP, images: Images) -> tuple[Float[Tensor, "block patch"], tuple[int, int]]:
    """A row a block, and the grid."""
    tower = clip.image
    if not isinstance(tower, ViT) and tower.pool is None:
        found = tower(images)
        places, whole = tower.projection(found.tokens[0]), tower.projection(found.pooled)[0]
        return (places @ F.normalize(whole, dim=0)).clamp_min(0)[None], found.grid
    found = tower(images, attention=True)
    patches = found.grid[0] * found.grid[1]
    by_class = not isinstance(tower, ViT) or tower.class_token is not None
    looks = (seen[0].mean(0) for seen in found.weights)
    return torch.stack([(look[0] if by_class else look.mean(0))[-patches:] for look in looks]), found.grid


def edges(
    gray: Gray, *, sigma: float = 0.8, k: float = 10.0, gamma: float = 0.98, phi: float = 200.0, epsilon: float = -0.1
) -> Gray:
    """XDoG in two tones, 1 at edges: D = G_s - gamma G_ks, 1 below epsilon and 1 + tanh(phi D) above, Otsu's threshold.

    Constants are those of the released code, for pixels as CLIP normalises them.
    """
    difference = _blur(gray, sigma) - gamma * _blur(gray, k * sigma)
    tone = _extent(torch.where(difference < epsilon, 1.0, 1 + torch.tanh(phi * difference)))
    return (tone < otsu(tone)).to(gray)


def otsu(values: Gray, bins: int = 256) -> float:
    """The centre of the bin after which the variance between what lies below and above is greatest (Otsu 1979)."""
    low, high = values.min().item(), values.max().item()
    if low == high:
        return low
    counts = torch.histc(values.double(), bins, low, high)
    centres = low + (torch.arange(bins, dtype=torch.float64) + 0.5) * (high - low) / bins
    below, total = counts.cumsum(0), (counts * centres).cumsum(0)
    above = below[-1] - below
    between = below * above * (total / below - (total[-1] - total) / above).square()
    return centres[between[:-1].argmax()].item()


def likelihood(
    clip: CLIP, square: Float[Tensor, "1 3 size size"], kind: Saliency, *, with_edges: bool, temperature: float
) -> Gray:
    """How likely a stroke begins at each pixel; the sum is 1."""
    found = torch.zeros(square.shape[2:]) if kind == "none" else attention_map(clip, square, kind).detach().cpu()
    if with_edges:
        found = found * edges((normalised(clip, square)[0].cpu() * torch.tensor(_LUMA).view(3, 1, 1)).sum(0))
    weights = torch.where(found > 0, (found / temperature).exp(), 0.0)
    weights = weights if weights.any() else torch.ones_like(weights)
    return weights / weights.sum()


def _extent(values: Gray) -> Gray:
    low, high = values.min(), values.max()
    return (values - low) / (high - low).clamp_min(1e-12)


def _blur(gray: Gray, sigma: float) -> Gray:
    """Gaussian, cut off after four deviations; the picture is mirrored at its borders."""
    rows, cols = (_gaussian(side, sigma) for side in gray.shape)
    return rows @ gray @ cols.T


def _gaussian(side: int, sigma: float) -> Float[Tensor, "side side"]:
    reach = int(4 * sigma + 0.5)
    offsets = torch.arange(-reach, reach + 1)
    weights = (-0.5 * (offsets / sigma) ** 2).exp()
    places = (torch.arange(side)[:, None] + offsets) % (2 * side)
    places = torch.minimum(places, 2 * side - 1 - places)
    return torch.zeros(side, side).scatter_add_(1, places, (weights / weights.sum()).expand(side, -1))
