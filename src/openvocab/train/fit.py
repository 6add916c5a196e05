"""The only training loop of the house.

A run is one or more stages over one model; each stage has its data, its loss and its own parameter groups. The loop
knows nothing else about models. It streams batches that are a function of the step, so that a run killed at any step
and started again by the same command ends with the same bytes on CPU.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from openvocab import progress, storage
from openvocab.config import to_dict
from openvocab.shapes import Batch
from openvocab.train import checkpoint, distributed
from openvocab.train.config import FitConfig, GroupConfig, OptimConfig
from openvocab.train.doctor import diagnose
from openvocab.train.log import Log, Row
from openvocab.train.optim import warmup_steps
from openvocab.train.step import Embed, Loss, Step

CHECKPOINT = "checkpoint.safetensors"
MAX_REWINDS = 3


@runtime_checkable
class Data(Protocol):
    """Batches as a function of the step; `report` says what the doctor should know (broken, truncated, duplicate)."""

    def stream(self, start_step: int, steps: int) -> Iterator[Batch]: ...

    def report(self) -> dict[str, Any]: ...


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training of a run: data, loss contract (see `train.step`), optimiser and length."""

    data: Data
    loss: Loss
    embed: Embed | None = None
    name: str = "train"
    config: FitConfig = FitConfig()
    optim: OptimConfig = OptimConfig()
    groups: tuple[GroupConfig, ...] = (GroupConfig(),)
    constrain: Callable[[Any], None] | None = None
    evaluate: Callable[[Any], dict[str, float]] | None = None


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What a run did. `rows` is its log; `resumed_step` is where this process took over."""

    rows: list[Row]
    seconds: float
    resumed_step: int
    findings: tuple[str, ...]


def fit(
    model: nn.Module,
    *stages: Stage,
    out: Path | str | None = None,
    identity: str = "",
    device: torch.device | str = "cpu",
) -> Fitted:
    """Trains `model` in place through `stages`; with `out`, writes checkpoints and log there and resumes from them.

    Parameters that a stage's groups do not select are frozen during that stage. The average of weights, where a stage
    keeps one, becomes the weights when the stage ends. Randomness of the caller is left as found.

    Raises:
        ValueError: `out` holds a run with another identity or other stages.
        RuntimeError: the loss stayed non-finite after three rewinds.
    """
    out = Path(out) if out is not None else None
    identity = storage.fingerprint(identity, [_plan(stage) for stage in stages])
    model.to(device)
    distributed.broadcast(chain(model.parameters(), model.buffers()), distributed.world())
    saved = _saved(out, identity)
    distributed.barrier(distributed.world())  # nobody writes before all have looked
    findings: list[str] = []
    began, rows, first = time.perf_counter(), [], 0
    with torch.random.fork_rng(devices=_cuda_devices(device)):
        for number, stage in enumerate(stages):
            if saved and saved["stage"] > number:
                continue
            run = _Run(
                model,
                stage,
                number=number,
                final=number == len(stages) - 1,
                out=out,
                identity=identity,
                device=device,
                findings=findings,
            )
            first = saved["step"] if saved else first
            rows = run(saved)
            saved = None
    return Fitted(rows=rows, seconds=time.perf_counter() - began, resumed_step=first, findings=tuple(findings))


def finished(out: Path | str) -> bool:
    """Whether the run in `out` reached its last step."""
    path = Path(out) / CHECKPOINT
    return path.exists() and bool(checkpoint.record(path)["finished"])


class _Run:
    """One stage on its way: the loop and its clocks."""

    def __init__(
        self,
        model: nn.Module,
        stage: Stage,
        *,
        number: int,
        final: bool,
        out: Path | None,
        identity: str,
        device: torch.device | str,
        findings: list[str],
    ):
        self.stage, self.number, self.final = stage, number, final
        self.out, self.identity, self.device, self.findings = out, identity, device, findings
        self.config = config = stage.config
        self.ranks = distributed.world_size(distributed.world())
        self.main = distributed.rank(distributed.world()) == 0
        self.frozen = _freeze_others(model, stage.groups)
        _set_checkpointing(model, config.gradient_checkpointing)
        self.step = Step(
            model,
            stage.loss,
            stage.embed,
            config=config,
            optim=stage.optim,
            groups=stage.groups,
            constrain=stage.constrain,
        )
        self.parallel, self.model = self.step.parallel, self.step.model
        self.facts: dict[str, Any] = {"steps": config.steps, "warmup_steps": warmup_steps(stage.optim, config.steps)}
        self.skipped, self.rewinds = 0, 0

    def __call__(self, saved: dict[str, Any] | None) -> list[Row]:
        start = saved["step"] if saved else 0
        log = Log(self.out if self.main else None, self.number, start, self.config.tensorboard)
        if saved:
            self._restore()
            self.rewinds = saved["rewinds"]
            progress.note(f"{self.stage.name}: resumed at step {start} of {self.config.steps}")
        else:
            self._save(start)
        if not (saved and saved["finished"]):
            self._loop(start, log)
            if self.step.average:
                self.step.average.swap()
            self._finish()
        self.parallel.finish()
        for parameter in self.frozen:
            parameter.requires_grad_(True)
        return log.rows

    def _loop(self, start: int, log: Log) -> None:
        config, last = self.config, self.config.steps
        batches = self.stage.data.stream(start, config.steps - start)
        bar = progress.track(range(start, config.steps), self.stage.name, config.steps - start, "step")
        clock = saved_at = time.perf_counter()
        waited, images = 0.0, 0
        self.model.train()
        for index in bar:
            before = time.perf_counter()
            batch = {name: value.to(self.device, non_blocking=True) for name, value in next(batches).items()}
            waited += time.perf_counter() - before
            stepped = self.step(batch, index)
            self._guard(stepped.moved, index)
            done = index + 1
            self.facts["batch_size"] = len(next(iter(batch.values()))) * self.ranks
            images += self.facts["batch_size"]
            if _due(done, config.log_every_steps) or done == last:
                now = time.perf_counter()
                row: Row = {"step": done, "stage": self.number}
                row |= {name: float(value) for name, value in stepped.values.items()}
                row |= {"images_per_s": images / (now - clock), "data_share": waited / (now - clock)}
                clock, waited, images = now, 0.0, 0
                log.write(row)
                bar.set_postfix_str(_line(row), refresh=False)
                self._diagnose(log.rows)
            if self.stage.evaluate and (_due(done, config.evaluate_every_steps) or done == last):
                log.write({"step": done, "stage": self.number, "evaluation": self._evaluate()})
            late = 0 < config.checkpoint_every_minutes <= (time.perf_counter() - saved_at) / 60
            if done < last and (_due(done, config.checkpoint_every_steps) or self.parallel.agreed(late)):
                self._save(done)
                saved_at = time.perf_counter()

    def _evaluate(self) -> dict[str, float]:
        assert self.stage.evaluate
        average = self.step.average
        if average:
            average.swap()
        self.model.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=_cuda_devices(self.device)):
            values = self.parallel(self.stage.evaluate)
        self.model.train()
        if average:
            average.swap()
        return values

    def _guard(self, moved: bool, index: int) -> None:
        """A non-finite step changes no weight; several in a row go back to the last checkpoint, with the next data."""
        self.skipped = 0 if moved else self.skipped + 1
        poisoned = not moved and not all(bool(torch.isfinite(buffer).all()) for buffer in self.model.buffers())
        if not poisoned and self.skipped < max(1, self.config.rewind_after_steps):
            return
        if self.rewinds >= MAX_REWINDS or self.out is None:
            raise RuntimeError(
                f"{self.stage.name}: the loss is not finite at step {index} (after {self.rewinds} rewinds); "
                f"lower optim.lr (now {self.stage.optim.lr:g}) or check the data of this step"
            )
        self._restore()
        self.rewinds, self.skipped = self.rewinds + 1, 0
        back = checkpoint.record(self.out / CHECKPOINT)["step"]
        progress.warn(f"{self.stage.name}: non-finite loss at step {index}: weights are back at step {back}")

    def _diagnose(self, rows: list[Row]) -> None:
        self.facts |= self.stage.data.report()
        mine = [row for row in rows if row["stage"] == self.number]
        for finding in diagnose(mine, self.facts):
            if finding.name not in self.findings:
                self.findings.append(finding.name)
                if self.main:
                    progress.note(f"doctor: {finding}")

    def _restore(self) -> None:
        assert self.out
        self.step.restore(self.parallel.read(self.out / CHECKPOINT))

    def _save(self, step: int) -> None:
        self._write(self.step.tensors(), stage=self.number, step=step, finished=False)

    def _finish(self) -> None:
        """The last checkpoint of a stage holds the weights alone: the run is done, or its next stage begins."""
        if self.final:
            self._write(self.step.weights(), stage=self.number, step=self.config.steps, finished=True)
        else:
            self._write(self.step.weights(), stage=self.number + 1, step=0, finished=False)

    def _write(self, tensors: dict[str, Tensor], **record: Any) -> None:
        if self.out is None:
            return
        record |= {"identity": self.identity, "rewinds": self.rewinds}
        self.parallel.write(self.out / CHECKPOINT, tensors, record)
        if self.main:
            storage.write_json(self.out / "facts.json", self.facts)


def _saved(out: Path | None, identity: str) -> dict[str, Any] | None:
    """Where the run in `out` stands."""
    if out is None or not (out / CHECKPOINT).exists():
        return None
    record = checkpoint.record(out / CHECKPOINT)
    if record["identity"] != identity:
        raise ValueError(f"{out} holds a run with another configuration; choose another folder or delete it")
    return record


def _freeze_others(model: nn.Module, groups: tuple[GroupConfig, ...]) -> list[nn.Parameter]:
    """Freezes what no group selects; returns those parameters so that the stage can thaw them."""
    if any(not group.prefixes for group in groups):
        return []
    prefixes = tuple(prefix for group in groups for prefix in group.prefixes)
    others = [p for name, p in model.named_parameters() if p.requires_grad and not name.startswith(prefixes)]
    for parameter in others:
        parameter.requires_grad_(False)
    return others


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def _line(row: Row) -> str:
    """The progress line: loss, learning rate of each group, scale and the share of time spent waiting for data."""
    parts = [f"loss {row['loss']:.3f}"] if "loss" in row else []
    rates = [f"{value:.1e}" for name, value in row.items() if name == "lr" or name.startswith("lr_")]
    parts += ["lr " + " ".join(rates)] if rates else []
    parts += [f"scale {row['diag/scale']:.1f}"] if "diag/scale" in row else []
    return ", ".join([*parts, f"{row['images_per_s']:.0f} images/s", f"data {row['data_share']:.0%}"])


def _set_checkpointing(model: nn.Module, enabled: bool) -> None:
    """Switches every part that can recompute itself in the backward pass (`checkpointing`, as transformers have it)."""
    able = [module for module in model.modules() if hasattr(module, "checkpointing")]
    if enabled and not able:
        raise ValueError("gradient_checkpointing=true: the model has no transformer blocks to compute again")
    for module in able:
        module.checkpointing = enabled  # type: ignore[assignment]


_WATCHING = {
    "log_every_steps",
    "evaluate_every_steps",
    "checkpoint_every_steps",
    "checkpoint_every_minutes",
    "tensorboard",
    "gradient_checkpointing",
    "shard",
}
"""What does not change the weights that a stage comes to."""


def _plan(stage: Stage) -> dict[str, Any]:
    kept = {name: value for name, value in _chosen(stage.config).items() if name not in _WATCHING}
    return {"name": stage.name, "fit": kept, "optim": _chosen(stage.optim), "groups": list(map(_chosen, stage.groups))}


def _chosen(config: Any) -> dict[str, Any]:
    return to_dict(config, defaults=False)


def _cuda_devices(device: torch.device | str) -> list[int]:
    device = torch.device(device)
    return [device.index or 0] if device.type == "cuda" else []
