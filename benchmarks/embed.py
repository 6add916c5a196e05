"""Photographs on disk to embeddings with ViT-B/32: `embed_files` beside open_clip, with the same weights.

    .venv-peers/bin/python benchmarks/embed.py [--images 64] [--rounds 3] [--compile]

"Documented" is open_clip's readme: open, preprocess, encode_image in float32, here in batches of 32 instead of one
picture at a time (which is printed too). "At its best" is the fastest of its loop with a DataLoader worker for each
core, the same with bfloat16 autocast where the processor has it, and with --compile the same compiled.
Rounds are interleaved, figures are medians of wall seconds; `cosine` is the worst against our own exact float32.
"""

import argparse
import os
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import torch
from PIL import Image

from openvocab.clip.architectures import architecture
from openvocab.clip.collection import embed_files
from openvocab.clip.encoder import encoder
from openvocab.clip.weights import build, clean
from openvocab.progress import silence

BATCH, CORES = 32, os.cpu_count() or 1


class Pictures(torch.utils.data.Dataset):
    def __init__(self, paths: list[Path], transform: Callable[[Image.Image], torch.Tensor]):
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(Image.open(self.paths[index]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    silence()
    harness.import_peers()
    import open_clip

    theirs, _, transform = open_clip.create_model_and_transforms("ViT-B-32")
    theirs.eval()
    clip = build(architecture("ViT-B-32"), clean(theirs.state_dict())).eval()
    fast = encoder(clip)
    precision = fast.precision
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(harness.DATA / "photos" / "photos.tar") as tar:
            members = [member for member in tar if member.name.endswith(".jpg")][: options.images]
            tar.extractall(folder, members, filter="data")
        paths = sorted(Path(folder).rglob("*.jpg"))
        works = _works(theirs, transform, paths, options.compile, precision == "bfloat16")
        works["openvocab float32"] = lambda: embed_files(clip, folder).vectors
        if precision != "float32":
            works[f"openvocab {precision}"] = lambda: embed_files(fast, folder).vectors
        with torch.no_grad():
            exact = torch.cat([clip.encode_image(clip.preprocess(Image.open(path)).unsqueeze(0)) for path in paths])
            cosines = {name: (work() * exact).sum(dim=1).min().item() for name, work in works.items()}
            times = harness.medians(harness.rounds(works, options.rounds))
    per_image = {name: round(time_s / len(paths) * 1e3, 1) for name, time_s in times.items()}
    ours = min(value for name, value in times.items() if name.startswith("openvocab"))
    best = min(value for name, value in times.items() if not name.startswith("openvocab"))
    figures: dict[str, Any] = {
        "images": len(paths),
        "rounds": options.rounds,
        "fast_precision": precision,
        "ms_per_image": per_image,
        "over_documented": round(times["documented"] / ours, 2),
        "over_one_by_one": round(times["one by one"] / ours, 2),
        "over_its_best": round(best / ours, 2),
        "cosine": {name: round(cosine, 6) for name, cosine in cosines.items()},
    }
    harness.record("embed", figures, "open_clip_torch", "torchvision", "pillow")
    harness.show(figures)


def _works(
    model: Any, transform: Callable[[Image.Image], torch.Tensor], paths: list[Path], compiled: bool, bfloat16: bool
) -> dict[str, Callable[[], torch.Tensor]]:
    def documented(batch: int = BATCH) -> torch.Tensor:
        rows = []
        for start in range(0, len(paths), batch):
            images = torch.stack([transform(Image.open(path)) for path in paths[start : start + batch]])
            rows.append(model.encode_image(images, normalize=True))
        return torch.cat(rows)

    def loader(encode: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype | None) -> torch.Tensor:
        batches = torch.utils.data.DataLoader(Pictures(paths, transform), BATCH, num_workers=CORES)
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            return torch.cat([torch.nn.functional.normalize(encode(images).float(), dim=-1) for images in batches])

    works = {
        "one by one": lambda: documented(1),
        "documented": documented,
        "DataLoader": lambda: loader(model.visual, None),
    }
    if bfloat16:
        works["DataLoader bfloat16"] = lambda: loader(model.visual, torch.bfloat16)
    if compiled:
        fast = torch.compile(model.visual)
        works["DataLoader compiled"] = lambda: loader(fast, torch.bfloat16 if bfloat16 else None)
    return works


if __name__ == "__main__":
    main()
