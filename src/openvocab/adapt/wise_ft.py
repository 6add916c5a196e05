"""WiSE-FT (Wortsman et al. 2021, arXiv 2109.01903): a model between the one before and the one after fine-tuning.

theta = (1 - a) theta_zs + a theta_ft
"""

from collections.abc import Mapping

import torch
from torch import Tensor

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def interpolate(before: Mapping[str, Tensor], after: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Every tensor of two states of one model; a share of 0 or 1 gives that end, bit for bit.

    Counters, which are whole numbers, are taken from `after` unless the share is 0.

    Raises:
        ValueError: a share outside 0 to 1, or states of different models.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}: expected 0 (before) to 1 (after)")
    if before.keys() != after.keys() or any(before[name].shape != after[name].shape for name in before):
        odd = next(iter(before.keys() ^ after.keys()), "the shape of a tensor")
        raise ValueError(f"weights of two different models: {odd} is not in both")
    if share in (0, 1):
        return {name: tensor.clone() for name, tensor in (after if share else before).items()}
    return {
        name: torch.lerp(tensor, after[name], share) if tensor.is_floating_point() else after[name].clone()
        for name, tensor in before.items()
    }
