"""What a training run can be told, as plain configs: the optimiser, its groups of parameters, the loop."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """Decoupled weight decay on all weights that are not gains or biases (CLIP, section 2.5).

    `warmup_steps=None` derives the warm-up from the run's length: a twentieth of it, at most 2,000 steps.
    """

    method: Literal["adamw", "muon", "sgd"] = "adamw"
    """`muon` (see `train.muon`) and `sgd` take the first of `betas` as momentum; muon is for weight matrices alone."""
    lr: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.2
    warmup_steps: int | None = None
    schedule: Literal["cosine", "cosine_of_all", "linear", "constant", "poly", "drops", "ramps"] = "cosine"
    """After the warm-up; `poly` is what is left of the run to the power of 0.9, `cosine_of_all` counts it all; `drops`
    falls to 0.4 halfway and to 0.1 after three quarters (CLIPDraw); `ramps`
    rises from 0 over a twentieth and falls along a cosine in the last quarter (StyleGAN2's projector)."""
    clip_norm: float | None = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupConfig:
    """A named set of parameters that one optimiser steps on one key of the loss.

    `prefixes` select parameters by the beginning of their names (empty: all that no other group names), of at least
    `min_axes` axes; `optim` replaces the run's for this group. Groups may share a loss key.
    """

    name: str = "all"
    prefixes: tuple[str, ...] = ()
    min_axes: int = 0
    loss: str = "loss"
    optim: OptimConfig | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FitConfig:
    """How long a stage trains and what it writes on the way; `*_every_* = 0` switches that off."""

    steps: int = 1000
    seed: int = 0
    accumulate: int = 1
    """Chunks that a batch is embedded in."""
    precision: str = "float32"
    ema_decay: float = 0.0
    gradient_checkpointing: bool = False
    """Transformer blocks are computed again in the backward pass: their memory is saved for a third more work."""
    shard: bool = False
    """Under torchrun: each rank keeps its rows of weights, gradients and optimiser state instead of all of them."""
    log_every_steps: int = 10
    evaluate_every_steps: int = 0
    checkpoint_every_steps: int = 500
    checkpoint_every_minutes: float = 10.0
    rewind_after_steps: int = 3
    tensorboard: bool = False
