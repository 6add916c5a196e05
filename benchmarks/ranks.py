"""A training step on two ranks: copies and rows of the model beside torch's DistributedDataParallel, over gloo.

    .venv/bin/python benchmarks/ranks.py [--rounds 7] [--layers 6]

One thread a rank. Rounds are interleaved inside the same two processes, figures are medians; all three train the same
CLIP on the same rows with the same optimizer. `held_mb` is what a rank keeps between steps: weights, gradients' room
and AdamW's moments, counted by their tensors.
"""

import argparse
import json
import os
import socket
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import harness
import torch
import torch.multiprocessing as mp
from torch import nn

from openvocab.clip.architectures import architecture
from openvocab.clip.model import CLIP
from openvocab.systems import clip as system
from openvocab.train import distributed
from openvocab.train.config import FitConfig, GroupConfig, OptimConfig
from openvocab.train.step import Step


class Whole(nn.Module):
    """A step's loss as one forward pass, as DistributedDataParallel wants it."""

    def __init__(self, model: CLIP):
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return system.loss(self.model, batch, system.embed(self.model, batch))["loss"]


def made(layers: int) -> CLIP:
    torch.manual_seed(0)
    config = architecture("ViT-B-32")
    image, text = (
        replace(config.image, layers=layers),
        replace(config.text, layers=layers, vocabulary_size=4096, end_id=0),
    )
    return CLIP(replace(config, image=image, text=text)).train()


def ours(layers: int, shard: bool, batch: dict[str, torch.Tensor]) -> tuple[Callable[[], object], Callable[[], int]]:
    step = Step(
        made(layers),
        system.loss,
        system.embed,
        config=FitConfig(shard=shard, steps=1000, seed=0),
        optim=OptimConfig(clip_norm=None),
        groups=(GroupConfig(),),
        constrain=system.constrain,
    )
    return lambda: step(batch, 0), lambda: sum(tensor.nbytes for tensor in step.tensors().values())


def theirs(layers: int, batch: dict[str, torch.Tensor]) -> tuple[Callable[[], object], Callable[[], int]]:
    whole = nn.parallel.DistributedDataParallel(Whole(made(layers)))
    optimiser = torch.optim.AdamW(whole.parameters(), lr=5e-4, betas=(0.9, 0.98), eps=1e-6, fused=True)

    def work() -> None:
        optimiser.zero_grad()
        whole(batch).backward()
        optimiser.step()

    def held() -> int:
        moments = [value for state in optimiser.state.values() for value in state.values()]
        return sum(tensor.nbytes for tensor in (*whole.parameters(), *moments))

    return work, held


def ranked(rank: int, port: int, options: argparse.Namespace, out: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init()
    torch.manual_seed(rank)
    batch = system.example(made(1), options.rows)
    works = {
        "DistributedDataParallel": theirs(options.layers, batch),
        "copies": ours(options.layers, False, batch),
        "rows (FSDP2)": ours(options.layers, True, batch),
    }
    times = harness.rounds({name: work for name, (work, _) in works.items()}, options.rounds)
    if rank == 0:
        found = {name: {"step_s": time_s} for name, time_s in harness.medians(times).items()}
        for name, (_, held) in works.items():
            found[name]["held_mb"] = held() / 1e6
        out.write_text(json.dumps(found))
    distributed.barrier(distributed.world())
    distributed.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rows", type=int, default=8, help="of a rank")
    options = parser.parse_args()
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port, out = free.getsockname()[1], Path(folder) / "times.json"
        free.close()
        mp.start_processes(ranked, args=(port, options, out), nprocs=2, start_method="spawn")
        found = json.loads(out.read_text())
    best = found["DistributedDataParallel"]["step_s"]
    figures = {**vars(options), "ranks": found, "over_ddp": {n: best / v["step_s"] for n, v in found.items()}}
    harness.record("ranks", figures | {"load": os.getloadavg()[0]})
    rows = [f"| {n} | {v['step_s']:.2f} s | {v['held_mb']:,.0f} MB |" for n, v in found.items()]
    head = "| way | a step | held by a rank between steps |\n|---|---|---|\n"
    harness.write_part("scaling", "ranks", head + "\n".join(rows))
    harness.show(figures)


if __name__ == "__main__":
    main()
