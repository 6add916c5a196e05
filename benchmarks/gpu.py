"""On a GPU: bf16 and torch.compile against float32, and images per second of a training step beside open_clip's.

make gpu OPENVOCAB_PYTHON=python3          the peer row appears where open_clip is installed
python benchmarks/gpu.py --device cpu --arch tiny --batch 8      the same code on a small model
"""

import argparse
import importlib.util
import time
from collections.abc import Callable

import harness
import torch
import torch.nn.functional as F

from openvocab.clip.architectures import architecture
from openvocab.clip.model import CLIP
from openvocab.systems import clip as system
from openvocab.train.config import FitConfig, GroupConfig, OptimConfig
from openvocab.train.step import Step


def parity(model: CLIP, batch: dict[str, torch.Tensor], device: str) -> dict[str, float]:
    """Smallest cosine between float32 embeddings and those of bf16 autocast, and of the compiled tower."""
    model.eval()
    with torch.inference_mode():
        exact = model.encode_image(batch["images"])
        with torch.autocast(device, torch.bfloat16):
            half = model.encode_image(batch["images"])
    with torch.no_grad():
        compiled = torch.compile(model.encode_image)(batch["images"])
    return {
        "bfloat16": F.cosine_similarity(exact, half.float()).min().item(),
        "compiled": F.cosine_similarity(exact, compiled).min().item(),
    }


def ours(model: CLIP, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    step = Step(
        model.train(),
        system.loss,
        system.embed,
        config=FitConfig(precision="bfloat16", steps=10_000, seed=0),
        optim=OptimConfig(clip_norm=None),
        groups=(GroupConfig(),),
        constrain=system.constrain,
    )
    return lambda: step(batch, 0) and None


def theirs(name: str, batch: dict[str, torch.Tensor], device: str) -> Callable[[], None]:
    """open_clip's step under amp_bf16, its default, with a fused AdamW."""
    import open_clip

    model = open_clip.create_model(name, device=device).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-4, betas=(0.9, 0.98), eps=1e-6, fused=True)
    loss = open_clip.ClipLoss()

    def work() -> None:
        optimiser.zero_grad()
        with torch.autocast(device, torch.bfloat16):
            value = loss(*model(batch["images"], batch["tokens"]))
        value.backward()
        optimiser.step()

    return work


def embedding(model: CLIP, batch: dict[str, torch.Tensor], device: str) -> Callable[[], None]:
    def work() -> None:
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
            model.encode_image(batch["images"])

    return work


def images_per_s(work: Callable[[], None], batch: int, device: str, steps: int) -> float:
    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    for _ in range(3):
        work()
    wait()
    start = time.perf_counter()
    for _ in range(steps):
        work()
    wait()
    return batch * steps / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--arch", default="ViT-B-32")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here; --device cpu --arch tiny runs the same code on a small model")
    tiny = options.arch == "tiny"
    model = CLIP(system.SIZES["tiny"] if tiny else architecture(options.arch)).to(options.device)
    batch = {name: value.to(options.device) for name, value in system.example(model, options.batch).items()}
    figures = {
        "device": options.device,
        "arch": options.arch,
        "batch": options.batch,
        "cosine_to_float32": parity(model, batch, options.device),
        "embedded_per_s": images_per_s(
            embedding(model, batch, options.device), options.batch, options.device, options.steps
        ),
        "images_per_s": {"ours": images_per_s(ours(model, batch), options.batch, options.device, options.steps)},
    }
    peer = not tiny and importlib.util.find_spec("open_clip") is not None
    if peer:
        work = theirs(options.arch, batch, options.device)
        figures["images_per_s"]["open_clip"] = images_per_s(work, options.batch, options.device, options.steps)
    if options.device == "cuda":
        harness.record("gpu", figures, *(["open_clip_torch"] if peer else []))
    harness.show(figures)


if __name__ == "__main__":
    main()
