"""The contrastive objectives against open_clip's: time of forward + backward, peak memory, distance from float64.

    .venv-peers/bin/python benchmarks/loss.py

Two opponents: open_clip's loss as documented, and the same under torch.compile. Times are medians of interleaved runs;
memory is the peak resident size of a fresh process beyond its embeddings and their gradients.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import harness
import torch
from torch import Tensor

from openvocab.clip.objectives import contrastive_loss, sigmoid_loss

DIM = 512
SCALE = 1 / 0.07
TIMED_BATCHES = (512, 2048, 8192)
MEASURED_BATCHES = (8192, 32768)
EXACT_BATCH = 4096

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def inputs(batch: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unit embeddings, log scale and bias, made in place and with their gradients already allocated."""
    generator = torch.Generator().manual_seed(0)
    tensors = []
    for _ in range(2):
        rows = torch.empty(batch, DIM).normal_(generator=generator)
        tensors.append(rows.div_(torch.linalg.vector_norm(rows, dim=1, keepdim=True)))
    tensors += [torch.tensor(SCALE).log(), torch.tensor(-10.0)]
    tensors = [tensor.to(dtype).requires_grad_() for tensor in tensors]
    for tensor in tensors:
        tensor.grad = torch.empty_like(tensor).fill_(0)
    return tuple(tensors)


def ours(name: str) -> Loss:
    if name == "sigmoid":
        return sigmoid_loss
    return lambda images, texts, logit_scale, logit_bias: contrastive_loss(images, texts, logit_scale)


def open_clip_loss(name: str, compiled: bool) -> Loss:
    harness.import_peers()
    from open_clip.loss import ClipLoss, SigLipLoss

    module = ClipLoss() if name == "contrastive" else SigLipLoss()
    call = torch.compile(module) if compiled else module
    if name == "contrastive":
        return lambda images, texts, logit_scale, logit_bias: call(images, texts, logit_scale.exp())
    return lambda images, texts, logit_scale, logit_bias: call(images, texts, logit_scale.exp(), logit_bias)


def time_losses(name: str, runs: int) -> dict[str, dict[str, float]]:
    losses = {
        "ours": ours(name),
        "open_clip": open_clip_loss(name, compiled=False),
        "open_clip compiled": open_clip_loss(name, compiled=True),
    }
    table = {}
    for batch in TIMED_BATCHES:
        tensors = inputs(batch)
        works = {who: lambda loss=loss, given=tensors: loss(*given).backward() for who, loss in losses.items()}
        table[str(batch)] = harness.medians(harness.rounds(works, runs))
    return table


def extra_peak_mb(who: str, name: str, batch: int) -> float:
    """Peak resident memory of forward + backward beyond the inputs and their gradients, in a process of its own."""
    command = [sys.executable, __file__, "--measure", who, name, str(batch)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(who: str, name: str, batch: int) -> float:
    loss = ours(name) if who == "ours" else open_clip_loss(name, compiled=False)
    loss(*inputs(8)).backward()  # libraries and their thread buffers are no part of the loss
    tensors = inputs(batch)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = resident_mb("VmRSS")
    loss(*tensors).backward()
    return resident_mb("VmHWM") - before


def resident_mb(field: str) -> float:
    """VmRSS is the present resident size, VmHWM its peak (getrusage's peak would count the parent process too)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6


def distance_from_float64(name: str) -> dict[str, float]:
    """Largest error of the float32 value and gradients, each relative to the float64 tensor's largest entry."""
    sides = []
    for dtype, tile in ((torch.float32, None), (torch.float64, EXACT_BATCH)):
        tensors = inputs(EXACT_BATCH, dtype)
        value = (
            contrastive_loss(*tensors[:3], tile=tile) if name == "contrastive" else sigmoid_loss(*tensors, tile=tile)
        )
        value.backward()
        sides.append([value.detach(), *(tensor.grad for tensor in tensors)])
    names = ("value", "image_embeds", "text_embeds", "logit_scale", "logit_bias")
    return {
        what: ((got - exact).abs().max() / exact.abs().max()).item()
        for what, got, exact in zip(names, *sides)
        if exact.abs().max() > 0
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, help="default: one per core; 1 where others use the machine too")
    parser.add_argument("--measure", nargs=3, metavar=("WHO", "LOSS", "BATCH"), help="print one peak in MB")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.measure:
        who, name, batch = arguments.measure
        print(measure(who, name, int(batch)))
        return
    results: dict[str, object] = {"dim": DIM}
    for name in ("contrastive", "sigmoid"):
        times = time_losses(name, arguments.runs)
        memory = {str(batch): {"ours": extra_peak_mb("ours", name, batch)} for batch in MEASURED_BATCHES}
        memory["8192"]["open_clip"] = extra_peak_mb("open_clip", name, 8192)
        errors = distance_from_float64(name)
        results[name] = {"time_s": times, "extra_peak_mb": memory, "error_against_float64": errors}
        for batch, taken in times.items():
            best = min(taken["open_clip"], taken["open_clip compiled"])
            print(
                f"{name:<12} B={batch:<6} {taken['ours']:8.4f} s   open_clip / ours = "
                f"{taken['open_clip'] / taken['ours']:5.2f}   at its best / ours = {best / taken['ours']:5.2f}"
            )
        print(f"{name:<12} extra peak MB {json.dumps(memory)}\n{name:<12} relative error {json.dumps(errors)}")
    harness.record("loss", results, "open_clip_torch")


if __name__ == "__main__":
    main()
