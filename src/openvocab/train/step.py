"""One training step: loss, backward, average over ranks, clip, step, schedule, guard.

The loss contract. One part: `loss(model, batch) -> dict`; the key `loss` is minimised, the others are logged.
Two parts: `embed(model, batch) -> dict` with one row per sample, and `loss(model, batch, embeds) -> dict` over the
whole batch. Only the two parts allow `accumulate > 1`, which is exact (feature-cached, GradCache, arXiv 2101.06983):

1. every chunk is embedded without a graph,
2. the loss of all rows together gives the gradient of every row (and of the temperature, once),
3. every chunk is embedded again from the same random state and back-propagates its rows' gradients.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from openvocab.shapes import Batch
from openvocab.train import distributed
from openvocab.train.checkpoint import optimiser_tensors, restore_optimiser
from openvocab.train.config import FitConfig, GroupConfig, OptimConfig
from openvocab.train.optim import Average, learning_rate, make_optimiser, select_parameters
from openvocab.train.parallel import Copies, Shards

Losses = dict[str, Tensor]
Embed = Callable[[Any, Batch], dict[str, Tensor]]
Loss = Callable[..., Losses]


@dataclass(frozen=True, slots=True)
class Stepped:
    """What one step did: its logged values, and whether the weights moved (a non-finite step leaves them alone)."""

    values: dict[str, Tensor | float]
    moved: bool


class Step:
    """Owns the optimisers of a model and takes steps; everything that must survive a restart is in `tensors()`."""

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        embed: Embed | None,
        *,
        config: FitConfig,
        optim: OptimConfig,
        groups: tuple[GroupConfig, ...],
        constrain: Callable[[Any], None] | None = None,
    ):
        _check(model, embed, config, optim, groups)
        self.group = distributed.world()
        self.parallel = Shards(model, self.group, config.precision) if config.shard else Copies(model, self.group)
        self.model, self.loss, self.embed, self.constrain = self.parallel.model, loss, embed, constrain
        self.config = config
        self.groups = {group.name: group for group in groups}
        self.optims = {group.name: group.optim or optim for group in groups}
        self.parameters = select_parameters(self.parallel.parameters, groups)
        self.optimisers = {name: make_optimiser(p.values(), self.optims[name]) for name, p in self.parameters.items()}
        self.average = Average(self.parallel.parameters, config.ema_decay) if config.ema_decay else None
        self.device_type = next(model.parameters()).device.type

    def __call__(self, batch: Batch, index: int) -> Stepped:
        """Takes step `index` (from 0); randomness inside the model is a function of seed, step, chunk and rank."""
        losses = self._gradients(batch, index)
        self.parallel.average_gradients()
        values: dict[str, Any] = distributed.mean_values(losses, self.group)
        finite = all(bool(torch.isfinite(values[group.loss])) for group in self.groups.values())
        for name, optim in self.optims.items():
            norm = self._clip(self.parameters[name].values(), optim.clip_norm)
            finite = finite and bool(torch.isfinite(norm))
            suffix = "" if len(self.groups) == 1 else f"_{name}"
            values[f"grad_norm{suffix}"] = norm.detach()
            values[f"lr{suffix}"] = learning_rate(optim, index, self.config.steps)
        if finite:
            self._move(index)
        for optimiser in self.optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        return Stepped(values, finite)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, as this rank holds it."""
        out = self.weights()
        for name, optimiser in self.optimisers.items():
            out |= optimiser_tensors(optimiser, f"optim.{name}")
        if self.average:
            out |= {f"average.{name}": value for name, value in self.average.values.items()}
        return out

    def weights(self) -> dict[str, Tensor]:
        """The model's part of `tensors()`."""
        return {f"model.{name}": value for name, value in self.parallel.state().items()}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts back what `tensors()` gave; without an average, it begins at the weights."""
        for name, value in self.parallel.state().items():
            value.copy_(tensors[f"model.{name}"])
        for name, optimiser in self.optimisers.items():
            restore_optimiser(optimiser, tensors, f"optim.{name}")
        if self.average:
            for name, value in self.average.values.items():
                value.copy_(tensors.get(f"average.{name}", self.average.parameters[name]))

    def _move(self, index: int) -> None:
        for name, optimiser in self.optimisers.items():
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(self.optims[name], index, self.config.steps)
            optimiser.step()
        if self.constrain:
            self.constrain(self.model)
        if self.average:
            self.average.update(index)

    def _gradients(self, batch: Batch, index: int) -> Losses:
        """Fills `.grad` of every trained parameter and returns the losses."""
        if self.embed is not None and self.config.accumulate > 1:
            return self._cached(batch, index)
        self._seed(index, 0)
        with self._autocast():
            losses = self.parallel(self._losses, batch)
        self._backward(losses)
        return losses

    def _losses(self, model: nn.Module, batch: Batch) -> Losses:
        return self.loss(model, batch, *([] if self.embed is None else [self.embed(model, batch)]))

    def _backward(self, losses: Losses) -> None:
        """Each group's gradient from its own loss key; all gradients are taken before any group moves."""
        keys = list(dict.fromkeys(group.loss for group in self.groups.values()))
        if len(keys) == 1:
            losses[keys[0]].backward()
            return
        for key in keys:
            names = [name for name, group in self.groups.items() if group.loss == key]
            parameters = [parameter for name in names for parameter in self.parameters[name].values()]
            found = torch.autograd.grad(losses[key], parameters, retain_graph=key != keys[-1], allow_unused=True)
            for parameter, gradient in zip(parameters, found):
                parameter.grad = gradient

    def _cached(self, batch: Batch, index: int) -> Losses:
        assert self.embed is not None
        rows = len(next(iter(batch.values())))
        chunks = [_rows(batch, part) for part in torch.arange(rows).chunk(self.config.accumulate)]
        embedded = []
        for number, chunk in enumerate(chunks):
            self._seed(index, number)
            with torch.no_grad(), self._autocast():
                embedded.append(self.parallel(self.embed, chunk))
        leaves = {name: torch.cat([part[name] for part in embedded]).requires_grad_() for name in embedded[0]}
        with self._autocast():
            losses = self.parallel(self.loss, batch, leaves)
        losses["loss"].backward()
        gradients = {
            name: leaf.grad.split([len(part[name]) for part in embedded])
            for name, leaf in leaves.items()
            if leaf.grad is not None
        }
        for number, chunk in enumerate(chunks):
            self._seed(index, number)
            with self._autocast():
                again = self.parallel(self.embed, chunk)
            torch.autograd.backward([again[name] for name in gradients], [rows[number] for rows in gradients.values()])
        return losses

    def _clip(self, parameters: Iterable[nn.Parameter], most: float | None) -> Tensor:
        """The norm of all gradients before they are scaled down to `most`; nothing is written that would not change."""
        parameters = list(parameters)
        norm = self.parallel.norm([p.grad for p in parameters if p.grad is not None])
        if most is not None and (norm.device.type != "cpu" or norm > most):
            nn.utils.clip_grads_with_norm_(parameters, most, norm)
        return norm

    def _seed(self, index: int, chunk: int) -> None:
        torch.manual_seed((self.config.seed * 1_000_003 + index) * 1_009 + chunk * 31 + distributed.rank(self.group))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device_type, torch.bfloat16, enabled=self.config.precision == "bfloat16")


def _check(
    model: nn.Module, embed: Embed | None, config: FitConfig, optim: OptimConfig, groups: tuple[GroupConfig, ...]
) -> None:
    if config.precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision is {config.precision!r}, expected float32 or bfloat16")
    if config.accumulate < 1:
        raise ValueError(f"accumulate is {config.accumulate}, expected at least 1 chunk")
    if config.shard and len({group.loss for group in groups}) > 1:
        raise ValueError("shard=true minimises one key of the loss; this run has groups with several: shard=false")
    if config.shard and any((group.optim or optim).method == "muon" for group in groups):
        raise ValueError("shard=true cuts weights into rows and muon steps whole matrices: adamw, or shard=false")
    if config.accumulate == 1:
        return
    if embed is None:
        raise ValueError("accumulate > 1 needs a two-part loss (embed and loss); this one has one part")
    if any(group.loss != "loss" for group in groups):
        raise ValueError("accumulate > 1 minimises the key 'loss' alone; this run has groups with other keys")
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ValueError(f"accumulate > 1 is not exact with BatchNorm ({name}); use a ViT tower or accumulate=1")


def _rows(batch: Batch, rows: Tensor) -> Batch:
    first, last = int(rows[0]), int(rows[-1]) + 1
    return {name: value[first:last] for name, value in batch.items()}
