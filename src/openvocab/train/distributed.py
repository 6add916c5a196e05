"""Several processes as one: joining a torchrun launch, gathering rows with exact gradients, averaging gradients.

Each rank holds its own rows of the batch and a full copy of the model. A loss whose mean over ranks is the loss of the
whole batch, built on `gather_rows`, gives exactly the whole batch's gradient once `average_gradients` has run.
Works with gloo (CPU) and nccl (CUDA).
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.rendezvous import rendezvous

_BUCKET_BYTES = 32 << 20


def world() -> dist.ProcessGroup | None:
    """The group that `init` joined; None for a single process."""
    return dist.group.WORLD if dist.is_initialized() else None


def init() -> dist.ProcessGroup | None:
    """Joins the processes that torchrun started and returns their group; None for a process started without it.

    A process with CUDA takes the device of its local rank and talks nccl; others talk gloo.

    Raises:
        ValueError: more processes on this machine than CUDA devices.
    """
    if world() is not None or not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return world()
    device = _own_device()
    store, number, count = next(rendezvous("env://"))
    # torchrun keeps one store over its restarts, with the addresses of processes that are gone.
    store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)  # type: ignore[attr-defined]
    backend = "gloo" if device is None else "nccl"
    dist.init_process_group(backend, store=store, rank=number, world_size=count, device_id=device)
    return world()


def _own_device() -> torch.device | None:
    if not torch.cuda.is_available():
        return None
    local_rank, devices = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if local_rank >= devices:
        raise ValueError(f"local rank {local_rank} has no CUDA device of its own: start at most {devices} per machine")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def device() -> torch.device:
    """Where this process trains: its CUDA device if there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def shutdown() -> None:
    """Leaves the group that `init` joined; nothing to do for a single process."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank(group: dist.ProcessGroup | None) -> int:
    """This process's place in the group; 0 for a single process."""
    return 0 if group is None else dist.get_rank(group)


def world_size(group: dist.ProcessGroup | None) -> int:
    """The number of processes in the group; 1 for a single process."""
    return 1 if group is None else dist.get_world_size(group)


def barrier(group: dist.ProcessGroup | None) -> None:
    """Waits until every rank is here."""
    if group is not None:
        dist.barrier(group)


def gather_rows(rows: Shaped[Tensor, "row ..."], group: dist.ProcessGroup | None) -> Shaped[Tensor, "rows ..."]:
    """Every rank's rows, in rank order; each rank must bring the same number of rows.

    Differentiable: a row's gradient is the sum of what every rank says about it (backward is a reduce-scatter), so no
    term that passes through another rank's loss is lost.
    """
    return rows if group is None else _GatherRows.apply(rows, group)  # type: ignore[return-value]


def mean_over_ranks(value: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The mean of a number (or of each entry) over ranks, without gradient."""
    if group is None:
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total, group=group)
    return total / dist.get_world_size(group)


def mean_values(values: Mapping[str, Tensor], group: dist.ProcessGroup | None) -> dict[str, Tensor]:
    """Each number's mean over ranks, without gradient, in one message for all."""
    if group is None:
        return {name: value.detach() for name, value in values.items()}
    return dict(zip(values, mean_over_ranks(torch.stack([value.detach().float() for value in values.values()]), group)))


@torch.no_grad()
def average_gradients(parameters: Iterable[Tensor], group: dist.ProcessGroup | None) -> None:
    """Replaces each gradient by its mean over ranks, in place, in a few large messages instead of one per parameter.

    Where only some ranks have a gradient the others count as zero; a parameter that no rank used keeps `grad=None`.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if group is None or not trained:
        return
    used = torch.tensor([p.grad is not None for p in trained], dtype=torch.int32, device=trained[0].device)
    dist.all_reduce(used, dist.ReduceOp.MAX, group=group)
    gradients = []
    for parameter, anywhere in zip(trained, used.tolist()):
        if anywhere and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if anywhere:
            gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(flat, group=group)
        flat /= dist.get_world_size(group)
        for gradient, mean in zip(bucket, flat.split([gradient.numel() for gradient in bucket])):
            gradient.copy_(mean.view_as(gradient))


@torch.no_grad()
def broadcast(tensors: Iterable[Tensor], group: dist.ProcessGroup | None) -> None:
    """Overwrites parameters and buffers, in place, by those of the group's first rank."""
    if group is not None:
        for tensor in tensors:
            source = tensor.detach().contiguous()
            dist.broadcast(source, group=group, group_src=0)
            tensor.copy_(source)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        gathered = rows.new_empty(dist.get_world_size(group) * rows.shape[0], *rows.shape[1:])
        dist.all_gather(list(gathered.chunk(dist.get_world_size(group))), rows.contiguous(), group=group)
        return gathered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        parts = list(grad.contiguous().chunk(dist.get_world_size(ctx.group)))
        own = torch.empty_like(parts[0])
        dist.reduce_scatter(own, parts, group=ctx.group)
        return own, None


def _buckets(gradients: Sequence[Tensor]) -> list[list[Tensor]]:
    """Neighbours of one dtype and device together, up to the message size."""
    buckets: list[list[Tensor]] = []
    room = 0
    for gradient in gradients:
        size = gradient.numel() * gradient.element_size()
        last = buckets[-1][0] if buckets else None
        if last is None or size > room or (last.dtype, last.device) != (gradient.dtype, gradient.device):
            buckets.append([])
            room = _BUCKET_BYTES
        buckets[-1].append(gradient)
        room -= size
    return buckets
