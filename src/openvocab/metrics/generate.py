"""Figures of made pictures: how near to a picture, how many codes, and what the exact judge of the world says."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from openvocab.world.judge import judge, verdict
from openvocab.world.scene import Scenes

Embeds = Float[Tensor, "_ embed"]
Pixels = Float[Tensor, "image 3 height width"]


def psnr(found: Pixels, true: Pixels) -> float:
    """10 log10(1 / mean squared error) in decibels, over all pixels of values 0 to 1."""
    return -10 * math.log10(max((found - true).square().mean().item(), 1e-12))


def frechet(found: Embeds, true: Embeds) -> float:
    """|m - n|^2 + tr(A + B - 2 (A B)^1/2) of two sets of features with means m, n and covariances A, B.

    Of Inception's features it is the FID (arXiv 1706.08500). Few rows make it larger: compare sets of equal sizes.
    """
    (m, a), (n, b) = ((rows.double().mean(0), torch.cov(rows.double().T, correction=1)) for rows in (found, true))
    values, vectors = torch.linalg.eigh(a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    mixed = torch.linalg.eigvalsh(root @ b @ root).clamp(min=0).sqrt().sum()
    return float((m - n).square().sum() + a.trace() + b.trace() - 2 * mixed)


def judged(pixels_01: Pixels, scenes: Scenes) -> dict[str, float]:
    """The share of pictures that show their scene: `joint` in all that it says, and each attribute by itself.

    `valid` is the share that shows as many objects as its scene has, each clearly one of the shapes.
    """
    levels = pixels_01.detach().cpu().clamp(0, 1).mul(255).round().to(torch.uint8).numpy()
    found = verdict(judge(levels), scenes)
    names = ("joint", "valid", "colour", "shape", "size", "place")
    return {name: float(getattr(found, name).mean()) for name in names}
