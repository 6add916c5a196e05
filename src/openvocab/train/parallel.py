"""How ranks train one model together: each holds a copy of it, or each holds its rows of every weight (FSDP2).

Either way a step calls functions of the model, lets the gradients come together, and moves plain tensors: whole weights
or this rank's rows of them. No more of it is seen elsewhere.
"""

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from openvocab.train import checkpoint, distributed


class Copies:
    """A copy of the model on every rank (data parallelism), or the only one.

    Attributes:
        model: what functions are called with.
        parameters: what an optimiser steps, by name.
    """

    def __init__(self, model: nn.Module, group: dist.ProcessGroup | None):
        self.model, self.group = model, group
        self.parameters = dict(model.named_parameters())

    def __call__(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """`work(model, *arguments)`."""
        return work(self.model, *arguments)

    def average_gradients(self) -> None:
        """Replaces the gradients of this rank's rows of the batch by their mean over ranks."""
        distributed.average_gradients(self.parameters.values(), self.group)

    def norm(self, gradients: Iterable[Tensor]) -> Float[Tensor, ""]:
        """The norm of gradients of whole weights."""
        return nn.utils.get_total_norm(gradients)

    def state(self) -> dict[str, Tensor]:
        """The model's tensors by name, as this rank holds them; writing to them writes to the model."""
        return self.model.state_dict()

    def agreed(self, late: bool) -> bool:
        """Whether it is time to save: for copies the first rank saves and asks nobody."""
        return late

    def write(self, path: Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Writes a training state: the ranks' copies are equal, so the first one's is enough."""
        if distributed.rank(self.group) == 0:
            checkpoint.save(path, tensors, record)

    def read(self, path: Path) -> dict[str, Tensor]:
        """This rank's part of a written training state."""
        return checkpoint.load(path)

    def finish(self) -> None:
        """Leaves the trained weights in the model that was given."""


class Shards(Copies):
    """Each rank holds its rows of weights, gradients and optimiser state; a block is whole only while it computes.

    FSDP2 gathers every transformer block on its own, all the rest together, and sums up gradients by rows. Numbers (the
    temperature) stay whole on every rank. The model that was given waits on the CPU, and gets its weights at the end.
    In bfloat16 what is gathered has 16 bits, and so has the residual stream, which autocast over copies keeps in 32.

    Raises:
        ValueError: the process was not started by torchrun.
    """

    def __init__(self, model: nn.Module, group: dist.ProcessGroup | None, precision: str):
        # Imported here: this takes as long as the rest of torch.
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        if group is None:
            raise ValueError("fit.shard=true needs ranks: start by `torchrun --nproc-per-node N -m openvocab.cli ...`")
        self.device = next(model.parameters()).device
        self.given, self.group = model.cpu(), group
        self.model = copy.deepcopy(model)
        for parameter in self.model.parameters():
            parameter.data = parameter.data.contiguous()  # FSDP2 takes no channels-last convolution
        self.numbers = {parameter for parameter in self.model.parameters() if parameter.ndim == 0}
        options: dict[str, Any] = {
            "mesh": init_device_mesh(self.device.type, (distributed.world_size(group),)),
            "ignored_params": self.numbers,
        }
        if precision == "bfloat16":
            # Not what calls are given: losses take embeddings in 32 bits.
            options["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        for stack in self.model.modules():
            if isinstance(stack, nn.ModuleList) and hasattr(stack, "checkpointing"):
                for block in stack:
                    fully_shard(block, **options)
        self._called = _Called(self.model)
        fully_shard(self._called, reshard_after_forward=True, **options)
        for number in self.numbers:
            number.data = number.data.to(self.device)
        self.parameters = {
            name: parameter if parameter in self.numbers else nn.Parameter(_rows(parameter), parameter.requires_grad)
            for name, parameter in self.model.named_parameters()
        }

    def __call__(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return self._called(work, *arguments)

    def average_gradients(self) -> None:
        distributed.average_gradients(self.numbers, self.group)
        for rows, parameter in zip(self.parameters.values(), self.model.parameters()):
            if rows is not parameter and parameter.grad is not None:
                rows.grad, parameter.grad = _rows(parameter.grad), None

    def norm(self, gradients: Iterable[Tensor]) -> Float[Tensor, ""]:
        numbers = [gradient for gradient in gradients if gradient.ndim == 0]
        squares = nn.utils.get_total_norm([gradient for gradient in gradients if gradient.ndim]).square()
        squares = distributed.mean_over_ranks(squares.to(self.device), self.group) * distributed.world_size(self.group)
        return (squares + nn.utils.get_total_norm(numbers).square()).sqrt()

    def state(self) -> dict[str, Tensor]:
        return {name: _rows(value) for name, value in self.model.state_dict().items()}

    def agreed(self, late: bool) -> bool:
        """Whether a rank's clock says that it is time to save, which is everybody's work."""
        return bool(distributed.mean_over_ranks(torch.tensor(float(late), device=self.device), self.group) > 0)

    def write(self, path: Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Each rank writes its rows; what every rank holds whole is the first one's to write."""
        if distributed.rank(self.group):
            tensors = {name: value for name, value in tensors.items() if value.ndim and name not in self._buffers()}
        checkpoint.save(path, tensors, record, self.group)

    def read(self, path: Path) -> dict[str, Tensor]:
        rank, ranks = distributed.rank(self.group), distributed.world_size(self.group)
        return checkpoint.load(path, rank=rank, ranks=ranks, whole=self._buffers())

    @torch.no_grad()
    def finish(self) -> None:
        whole = self.given.state_dict()
        for name, value in self.model.state_dict().items():
            whole[name].copy_(value.full_tensor() if hasattr(value, "full_tensor") else value)
        self.given.to(self.device)

    def _buffers(self) -> set[str]:
        return {f"model.{name}" for name, _ in self.model.named_buffers()}


class _Called(nn.Module):
    """The root of a sharded model: what lies outside its blocks is whole during a call, whichever function it is."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return work(self.model, *arguments)


def _rows(tensor: Any) -> Tensor:
    """This rank's rows of a sharded tensor, in the same memory; a tensor that is not sharded as it is."""
    tensor = tensor.detach()
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
