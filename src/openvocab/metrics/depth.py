"""Errors of distances, picture by picture, under the protocols of NYU and KITTI; and what predicts without looking."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from openvocab.metrics.classify import mean_ranks

DepthM = Float[Tensor, "height width"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """Which pixels count, and to what range predictions are clamped.

    Fields:
        crop: top, bottom, left and right of what is judged, as shares of height and width.
    """

    near_m: float = 1e-3
    far_m: float = torch.inf
    crop: tuple[float, float, float, float] = (0.0, 1.0, 0.0, 1.0)

    def judged(self, truth_m: DepthM) -> Bool[Tensor, "height width"]:
        """Pixels inside the crop whose distance is known and in range."""
        height, width = truth_m.shape
        top, bottom, left, right = (int(e * n + 1e-6) for e, n in zip(self.crop, (height, height, width, width)))
        inside = torch.zeros(height, width, dtype=torch.bool)
        inside[top:bottom, left:right] = True
        return inside & (truth_m > self.near_m) & (truth_m < self.far_m)


EVERYWHERE = Protocol()
NYU = Protocol(far_m=10.0, crop=(45 / 480, 471 / 480, 46 / 640, 601 / 640))
"""Eigen's crop as DepthCLIP's code has it; others begin 5 columns further left."""
KITTI = Protocol(far_m=80.0, crop=(0.40810811, 0.99189189, 0.03594771, 0.96405229))
"""Garg's crop."""


def depth_errors(
    predicted_m: DepthM, truth_m: Float[Tensor, "_ _"], protocol: Protocol = EVERYWHERE
) -> dict[str, float]:
    """The errors of one picture: p predicted, g true, means over the pixels that are judged.

    abs_rel |p - g| / g,  sq_rel (p - g)^2 / g,  rmse, rmse_log (natural), log10,  deltaK: max(p/g, g/p) < 1.25^K,
    and spearman, the correlation of ranks, which no choice of bins changes much; 0 of a constant.

    Args:
        predicted_m: NaN where nothing is predicted, which is not judged; what is out of range is clamped to it.

    Raises:
        ValueError: different sizes, or no pixel to judge.
    """
    if predicted_m.shape != truth_m.shape:
        sizes = [" x ".join(map(str, reversed(each.shape))) for each in (predicted_m, truth_m)]
        raise ValueError(f"predicted distances are {sizes[0]}, the true ones {sizes[1]}; expected the same size")
    judged = protocol.judged(truth_m) & ~predicted_m.isnan()
    if not judged.any():
        raise ValueError("no pixel to judge: none has a distance within the protocol's crop and range")
    p, g = predicted_m[judged].double().clamp(protocol.near_m, protocol.far_m), truth_m[judged].double()
    off, ratio = p - g, torch.maximum(p / g, g / p)
    errors = {
        "abs_rel": (off.abs() / g).mean(),
        "sq_rel": (off.square() / g).mean(),
        "rmse": off.square().mean().sqrt(),
        "rmse_log": (p.log() - g.log()).square().mean().sqrt(),
        "log10": (p.log10() - g.log10()).abs().mean(),
        **{f"delta{k}": (ratio < 1.25**k).double().mean() for k in (1, 2, 3)},
        "spearman": spearman(p, g),
    }
    return {name: value.item() for name, value in errors.items()}


def spearman(first: Float[Tensor, " row"], second: Float[Tensor, " row"]) -> Float[Tensor, ""]:
    """The correlation of ranks, ties sharing their mean rank; 0 where either is constant."""
    ranks = torch.stack([mean_ranks(first), mean_ranks(second)])
    ranks = ranks - ranks.mean(1, keepdim=True)
    return (ranks[0] * ranks[1]).sum() / ranks.norm(dim=1).prod().clamp_min(1e-12)


@dataclass(frozen=True)
class Blind:
    """What the distances of some pictures say of any picture; told of the judged ones themselves it is hard to beat."""

    mean_m: float
    median_m: float
    rows_m: Float[Tensor, " row"]
    far_m: float

    def guesses(self, height: int, width: int, seed: int = 0) -> dict[str, DepthM]:
        """The same for every picture of this size; `uniform` is drawn between 0 and the largest distance."""
        rows = F.interpolate(self.rows_m[None, None], height, mode="linear", align_corners=False)[0, 0]
        draws = torch.rand(height, width, generator=torch.Generator().manual_seed(seed))
        return {
            "uniform": draws * self.far_m,
            "mean": torch.full((height, width), self.mean_m),
            "median": torch.full((height, width), self.median_m),
            "row mean": rows[:, None].expand(height, width),
        }


def blind(truths_m: Sequence[DepthM], protocol: Protocol = EVERYWHERE) -> Blind:
    """Mean, median and mean of every row over the pixels that are judged, of pictures of any size thinned to one."""
    height, width = (min(n, most) for n, most in zip(truths_m[0].shape, (240, 320)))
    thin = [torch.where(protocol.judged(each), each, torch.nan) for each in truths_m]
    every = torch.stack([F.interpolate(each[None, None], (height, width))[0, 0] for each in thin])
    mean = every.nanmean()
    rows = every.nanmean((0, 2))
    far = protocol.far_m if protocol.far_m < torch.inf else every.nan_to_num(0).max().item()
    return Blind(mean.item(), every.nanmedian().item(), torch.where(rows.isnan(), mean, rows), far)
