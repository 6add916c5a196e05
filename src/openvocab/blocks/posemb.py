"""Learned position embeddings at grids and lengths other than the one they were learned on."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Positions = Float[Tensor, "_ dim"]
"""One row per position; for images the class token's row first (where there is one), then the grid, row by row."""

Resampling = Literal["antialiased", "bicubic", "bilinear"]
"""Bicubic with the filter of big_vision and open_clip, plain (CLIPSeg), or bilinear (DPT)."""


def resample_grid(
    positions: Positions, grid: tuple[int, int], to: tuple[int, int], how: Resampling = "antialiased"
) -> Positions:
    """Image positions learned on `grid`, read at grid `to`; leading rows stay as they are."""
    if grid == to:
        return positions
    rows, cols = grid
    lead = positions.shape[0] - rows * cols
    table = positions[lead:].float().view(1, rows, cols, -1).permute(0, 3, 1, 2)
    mode = "bilinear" if how == "bilinear" else "bicubic"
    table = F.interpolate(table, size=to, mode=mode, antialias=how == "antialiased", align_corners=False)
    table = table.flatten(2).squeeze(0).T.to(positions.dtype)
    return torch.cat([positions[:lead], table])


def stretch_positions(positions: Positions, factor: int, keep: int) -> Positions:
    """Text positions after the first `keep`, stretched by a whole factor; see `clip.stretch` for the formula."""
    rest = positions[keep:]
    after = torch.cat([rest[1:], 2 * rest[-1:] - rest[-2:-1]])
    share = torch.arange(factor, dtype=positions.dtype, device=positions.device).view(1, -1, 1) / factor
    return torch.cat([positions[:keep], torch.lerp(rest.unsqueeze(1), after.unsqueeze(1), share).flatten(0, 1)])
