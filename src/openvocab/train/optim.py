"""Optimisers with the paper's parameter groups, the warm-up and cosine schedule, and the average of weights (EMA)."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from openvocab.train.config import GroupConfig, OptimConfig
from openvocab.train.muon import Muon


def warmup_steps(optim: OptimConfig, steps: int) -> int:
    """Steps of linear warm-up in a run of `steps`."""
    return optim.warmup_steps if optim.warmup_steps is not None else min(2000, steps // 20)


def learning_rate(optim: OptimConfig, step: int, steps: int) -> float:
    """The learning rate of step `step` (from 0) of `steps`: linear warm-up, then what `schedule` says."""
    warm = warmup_steps(optim, steps)
    if step < warm:
        return optim.lr * (step + 1) / warm
    left = 1.0 - (step - warm) / max(1, steps - warm)
    if optim.schedule == "constant":
        return optim.lr
    if optim.schedule == "drops":
        return optim.lr * (1.0 if left > 0.5 else 0.4 if left > 0.25 else 0.1)
    if optim.schedule == "ramps":
        down = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - step / steps) / 0.25))
        return optim.lr * down * min(1.0, step / steps / 0.05)
    if optim.schedule in ("linear", "poly"):
        return optim.lr * (left if optim.schedule == "linear" else left**0.9)
    done = step / steps if optim.schedule == "cosine_of_all" else 1.0 - left
    return optim.lr * 0.5 * (1.0 + math.cos(math.pi * done))


def select_parameters(
    parameters: Mapping[str, nn.Parameter], groups: tuple[GroupConfig, ...]
) -> dict[str, dict[str, nn.Parameter]]:
    """Trainable parameters by group name and parameter name.

    Raises:
        ValueError: a group selects nothing, or two groups select the same parameter.
    """
    trainable = {name: value for name, value in parameters.items() if value.requires_grad}
    named: dict[str, str] = {}
    for group in groups:
        for name, value in trainable.items():
            if group.prefixes and name.startswith(group.prefixes) and value.ndim >= group.min_axes:
                if name in named:
                    raise ValueError(f"parameter {name} is in two groups, {named[name]!r} and {group.name!r}")
                named[name] = group.name
    chosen = {}
    for group in groups:
        mine = {
            n: p for n, p in trainable.items() if named.get(n, None if group.prefixes else group.name) == group.name
        }
        if not mine:
            raise ValueError(f"group {group.name!r} selects no trainable parameter (prefixes {group.prefixes})")
        chosen[group.name] = mine
    return chosen


def make_optimiser(parameters: Iterable[nn.Parameter], optim: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser that `optim` describes; AdamW lets weights of two or more axes decay, not gains or biases."""
    if optim.method == "muon":
        return Muon(parameters, lr=optim.lr, momentum=optim.betas[0], weight_decay=optim.weight_decay)
    if optim.method == "sgd":
        return torch.optim.SGD(parameters, lr=optim.lr, momentum=optim.betas[0], weight_decay=optim.weight_decay)
    parameters = list(parameters)
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": optim.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=optim.lr,
        betas=optim.betas,
        eps=optim.eps,
        fused=True,
    )


class Average:
    """Exponential moving average of parameters; buffers (BatchNorm statistics) follow as they are.

    The decay grows as (1 + t) / (10 + t) up to `decay`, so that a short run is not an average of its beginning.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float):
        self.decay = decay
        self.parameters = {name: value.detach() for name, value in parameters.items()}
        self.values = {name: value.clone() for name, value in self.parameters.items()}

    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(  # pyright: ignore
            list(self.values.values()), list(self.parameters.values()), 1.0 - decay
        )

    def swap(self) -> None:
        """Exchanges the parameters with the average; call twice to restore."""
        for held, average in zip(self.parameters.values(), self.values.values()):
            current = held.clone()
            held.copy_(average)
            average.copy_(current)
