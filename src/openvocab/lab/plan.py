"""What a training will need: memory of a GPU and time of a step for an architecture, a batch and a number of GPUs.

Bytes and operations are counted, not estimated: the model's own forward and backward pass runs on tensors that have
shapes and no content, and every allocation and product is added up. What is assumed is said: the share of the published
rate that the products reach, and the share of memory that the allocator cannot use.
"""

import re
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from openvocab import loading
from openvocab.blocks.resnet import ResNetConfig
from openvocab.blocks.text import TextConfig
from openvocab.clip import architectures
from openvocab.clip.model import CLIP, CLIPConfig

UTILISATION = 0.4
"""Assumed share of the published rate; `make gpu` measures a machine's own."""
USABLE = 0.9
"""Assumed share of the memory that tensors can fill before the allocator's fragments are in the way."""
_ROWS = (128, 256)
_TILES = 3 * 2048**2 * 4


@dataclass(frozen=True)
class GPU:
    """Published figures: memory, 16-bit products without sparsity, bytes to other GPUs in one direction."""

    name: str
    memory_gb: float
    tflops: float
    link_gb_s: float
    source: str


GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU("A100", 80.0, 312.0, 300.0, "NVIDIA's data sheet of the A100 80GB SXM"),
        GPU("H100", 80.0, 989.0, 450.0, "NVIDIA's data sheet of the H100 SXM"),
        GPU("H200", 141.0, 989.0, 450.0, "NVIDIA's data sheet of the H200 SXM"),
    )
}
_PCIE_GB_S = 32.0
"""Of a GPU that is given by its figures: PCI Express 4.0, 16 lanes."""


@dataclass(frozen=True)
class Counted:
    """One training pass over rows of pictures and texts, under bfloat16 autocast, with gradients already there.

    Fields:
        casts: parameters of which autocast keeps a 16-bit copy.
        outside, block: parameters outside of transformer blocks, and of the largest block.
        fixed_bytes, row_bytes: the peak of what the pass allocates besides parameters, gradients and their casts.
        forward_flops, flops: operations of a row, forward and in all.
    """

    parameters: int
    casts: int
    outside: int
    block: int
    fixed_bytes: float
    row_bytes: float
    forward_flops: float
    flops: float


@dataclass(frozen=True)
class Way:
    """One way to train: what it needs of each GPU, and the settings that ask for it."""

    name: str
    memory_gb: float
    step_s: float
    fits: bool
    settings: tuple[str, ...]


@dataclass(frozen=True)
class Means:
    """A means that this package does not ship: what it would save on each GPU, whether anything else is left, why."""

    name: str
    saves_gb: float
    needed: bool
    why: str


@dataclass(frozen=True)
class Plan:
    """Ways from the fastest that fits to those that do not fit, and what else there is."""

    parameters: int
    batch_size: int
    gpus: int
    gpu: GPU
    ways: tuple[Way, ...]
    not_shipped: tuple[Means, ...]

    def __str__(self) -> str:
        gpu = (
            f"{self.gpus} x {self.gpu.name} ({self.gpu.memory_gb:g} GB, {self.gpu.tflops:g} TFLOP/s: {self.gpu.source})"
        )
        lines = [f"{self.parameters / 1e6:.1f} M parameters, {self.batch_size:,} pairs a step on {gpu}"]
        for way in self.ways:
            room = f"{way.memory_gb:6.1f} GB, {way.step_s:8.3f} s a step" if way.fits else "does not fit"
            lines.append(f"{way.name:38}  {room:32}  {' '.join(f'--set {setting}' for setting in way.settings)}")
        for means in self.not_shipped:
            use = "would help" if means.needed else "is not needed"
            lines.append(f"not shipped: {means.name} {use}, {means.saves_gb:.1f} GB a GPU: {means.why}")
        lines.append(f"assumed: {UTILISATION:.0%} of the published rate, {USABLE:.0%} of the memory; no data loading")
        return "\n".join(lines)


def plan(source: str, asked: str, batch_size: int) -> Plan:
    """The plan for an architecture's name or a model, on GPUs such as `8xH100` or `4x24GB@165` (TFLOP/s).

    Raises:
        ValueError: not understood, a batch that does not divide over the GPUs, or a model that is no CLIP.
    """
    if source == "demo" or source.startswith("hf:") or Path(source).exists():
        config = loading.load(source).config
    else:
        config = architectures.architecture(source)
    gpus, gpu = _gpus(asked)
    if batch_size % gpus:
        raise ValueError(f"a batch of {batch_size} does not divide over {gpus} GPUs")
    counted = {False: count(config, checkpointing=False)}
    if not isinstance(config.image, ResNetConfig):
        counted[True] = count(config, checkpointing=True)
    ways = [
        _way(costs, gpu, gpus, batch_size, config.embed_dim, shard=shard, recompute=recompute)
        for recompute, costs in counted.items()
        for shard in ((False, True) if gpus > 1 else (False,))
    ]
    ways.sort(key=lambda way: (not way.fits, way.step_s if way.fits else way.memory_gb))
    costs = counted[max(counted)]
    return Plan(costs.parameters, batch_size, gpus, gpu, tuple(ways), _others(costs, gpus, any(w.fits for w in ways)))


def count(config: Any, *, checkpointing: bool) -> Counted:
    """Counts a training pass of an architecture.

    Raises:
        ValueError: not a CLIP, or its text tower is no transformer.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode  # takes a second

    if not (isinstance(config, CLIPConfig) and isinstance(config.text, TextConfig)):
        raise ValueError("plans are for a CLIP with a text transformer")
    with torch.device("meta"):
        model = CLIP(config).train()
    with FakeTensorMode():
        for module in model.modules():
            for name, parameter in [*module.named_parameters(recurse=False)]:
                module._parameters[name] = nn.Parameter(_empty(parameter))
            for name, buffer in [*module.named_buffers(recurse=False)]:
                module._buffers[name] = _empty(buffer)
            if checkpointing and hasattr(module, "checkpointing"):
                module.checkpointing = True  # type: ignore[assignment]
        (low, high), (forward, flops) = (peak_bytes(model, rows) for rows in _ROWS), row_flops(model)
    sizes = [sum(p.numel() for p in block.parameters()) for block in _blocks(model)]
    total = sum(p.numel() for p in model.parameters())
    casts = total - sum(p.numel() for module in model.modules() for p in _uncast(module))
    row_bytes = (high - low) / (_ROWS[1] - _ROWS[0])
    return Counted(
        parameters=total,
        casts=casts,
        outside=total - sum(sizes),
        block=max(sizes, default=0),
        fixed_bytes=low - row_bytes * _ROWS[0] - 2 * casts,
        row_bytes=row_bytes,
        forward_flops=forward,
        flops=flops,
    )


def _empty(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)


def _passed(model: CLIP, rows: int) -> Iterator[None]:
    """A forward and backward pass over rows, pausing in between."""
    size, text = model.config.image.image_size, model.config.text
    images = torch.empty(rows, 3, size, size)
    tokens, ends = torch.empty(rows, text.context_length, dtype=torch.int64), torch.empty(rows, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):
        # From embeddings: the tower looks into its ids for their end.
        words = model.text.from_embeddings(model.text.embedding(tokens), ends, tokens=False)  # type: ignore[operator]
        embeds = [model.encode_image(images), F.normalize(model.text.projection(words.pooled), dim=-1)]
    yield
    torch.autograd.backward(embeds, [torch.empty_like(rows) for rows in embeds])


def peak_bytes(model: CLIP, rows: int) -> int:
    """The most that a pass and its batch hold at a time besides parameters, gradients and buffers."""
    held = [*model.parameters(), *model.buffers()]
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
        held.append(parameter.grad)
    with _Allocations(held) as live:
        for _ in _passed(model, rows):
            pass
    return live.peak


def row_flops(model: CLIP) -> tuple[float, float]:
    """Operations of a row, forward and in all."""
    rows, aten = 2, torch.ops.aten
    attention = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda *seen, **_: sdpa_flop_count(*seen[:3]),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *seen, **_: sdpa_backward_flop_count(
            *seen[:4]
        ),
    }
    with FlopCounterMode(display=False, custom_mapping=attention) as flops:
        forward, whole = (flops.get_total_flops() for _ in chain(_passed(model, rows), [None]))
    return forward / rows, whole / rows


class _Allocations(TorchDispatchMode):
    """Bytes of the storages that operations make, as long as they live."""

    def __init__(self, before: list[Tensor]):
        super().__init__()
        self.now = self.peak = 0
        self.known = {tensor.untyped_storage()._cdata for tensor in before}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and (key := tensor.untyped_storage()._cdata) not in self.known:
                storage = tensor.untyped_storage()
                self.known.add(key)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, key, storage.nbytes())
        return made

    def _freed(self, key: int, size_bytes: int) -> None:
        self.now -= size_bytes
        self.known.discard(key)


def _blocks(model: nn.Module) -> list[nn.Module]:
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and hasattr(m, "checkpointing")]
    return [block for stack in stacks for block in stack]


def _uncast(module: nn.Module) -> list[nn.Parameter]:
    """A module's own parameters that autocast leaves as they are: all but those of products."""
    return [] if isinstance(module, (nn.Linear, nn.Conv2d)) else list(module.parameters(recurse=False))


def _way(costs: Counted, gpu: GPU, gpus: int, batch_size: int, embed_dim: int, *, shard: bool, recompute: bool) -> Way:
    """The way with the fewest chunks that fit."""
    rows = batch_size // gpus
    weights = costs.parameters * 16  # value, gradient and AdamW's two moments, in float32
    gathered = 2 * costs.casts
    if shard:
        # 16-bit rows of what is outside, of the block that computes and of the next; their gradients beside them.
        weights, gathered = weights / gpus, (costs.outside + 2 * costs.block) * (2 + 4)
    fixed = weights + gathered + costs.fixed_bytes + 4 * 4 * batch_size * embed_dim + _TILES
    room = gpu.memory_gb * 1e9 * USABLE - fixed
    chunks = 1
    while chunks < rows and -(-rows // chunks) * costs.row_bytes > room:
        chunks *= 2
    chunk = -(-rows // chunks)
    flops = rows * (costs.flops + (costs.forward_flops if chunks > 1 else 0.0))
    flops += 4 * 4 * rows * batch_size * embed_dim  # both directions' similarities, forward, again and back
    computes_s = flops / (gpu.tflops * 1e12 * UTILISATION)
    link = gpu.link_gb_s * 1e9 * gpus / max(1, gpus - 1)
    talks_s = 2 * 2 * 4 * batch_size * embed_dim / link if gpus > 1 else 0.0
    if shard:  # gathered in 16 bits for each pass, reduced in 32, beside the products
        moved = chunks * costs.parameters * (2 * (3 if chunks > 1 else 2) + 4)
        step_s = max(computes_s, moved / link) + talks_s
    else:
        step_s = computes_s + talks_s + (2 * 4 * costs.parameters / link if gpus > 1 else 0.0)
    name = ("sharded" if shard else "data") + (" + recomputation" if recompute else "")
    settings = ["fit.precision=bfloat16", f"data.batch_size={batch_size}"]
    settings += ["fit.shard=true"] if shard else []
    settings += ["fit.gradient_checkpointing=true"] if recompute else []
    settings += [f"fit.accumulate={chunks}"] if chunks > 1 else []
    return Way(
        name=name + (f" + {chunks} chunks" if chunks > 1 else ""),
        memory_gb=(fixed + chunk * costs.row_bytes) / 1e9,
        step_s=step_s,
        fits=chunk * costs.row_bytes <= room,
        settings=tuple(settings),
    )


def _others(costs: Counted, gpus: int, fits: bool) -> tuple[Means, ...]:
    """What is left where nothing fits; by then each GPU holds its rows of the moments only."""
    moments_gb = 8 * costs.parameters / gpus / 1e9
    return (
        Means("16-bit optimizer state", moments_gb / 2, not fits, "AdamW's moments, rounded"),
        Means("offload", moments_gb, not fits, "AdamW's moments wait in the host's memory, a PCIe link away"),
        Means(
            "tensor parallelism",
            (1 - 1 / gpus) * 6 * costs.block / 1e9,
            False,
            "for a block that one GPU cannot hold; CLIP's are far from it, and rows of the batch cut just as well",
        ),
        Means(
            "pipeline parallelism",
            (1 - 1 / gpus) * 6 * costs.outside / 1e9,
            False,
            "for slow links between machines; a contrastive batch is wanted whole, so that stages would wait",
        ),
    )


def _gpus(asked: str) -> tuple[int, GPU]:
    found = re.fullmatch(r"(\d+)x(?:(\w+)|([\d.]+)GB@([\d.]+))", asked)
    if found is None or not int(found[1]) or (found[2] and found[2] not in GPUS):
        raise ValueError(f"{asked!r}: expected 8xH100 (or {', '.join(GPUS)}), or 8x24GB@165 for 24 GB and 165 TFLOP/s")
    if found[2]:
        return int(found[1]), GPUS[found[2]]
    return int(found[1]), GPU(f"{found[3]} GB", float(found[3]), float(found[4]), _PCIE_GB_S, "as given")
