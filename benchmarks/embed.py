"""Photographs on disk to embeddings with ViT-B/32: `embed_files` on every engine beside open_clip, same random weights.

    .venv-peers/bin/python benchmarks/embed.py [--images 256] [--rounds 3] [--engines openvino-int8 ...]

"Documented" is open_clip's readme: open, preprocess, encode_image in float32, here in batches of 32 instead of one
picture at a time (which is printed too). Its best are a DataLoader worker for each core, the same with bfloat16
autocast, and its image tower exported to OpenVINO as ours is (int8, calibrated with the same pictures) behind its own
preprocessing, in workers or not. Rounds are interleaved, figures are medians of wall seconds. Beside each stand the
worst cosine with our own exact float32 and the share of its ten nearest pictures that are kept; `demo_int8` is what the
gate of `openvocab export` measured on the small trained model.
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
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from openvocab import loading
from openvocab.clip.architectures import architecture
from openvocab.clip.collection import embed_files
from openvocab.clip.encoder import encoder
from openvocab.clip.export import export, neighbours, open_export
from openvocab.clip.int8 import on_torchao
from openvocab.clip.tokenizer import CLIPTokenizer
from openvocab.clip.towers import DEPLOYED, Calibration, Tower, quiet_exporters
from openvocab.clip.weights import build, clean
from openvocab.progress import silence

BATCH, CORES = 32, os.cpu_count() or 1
EXPORTS = ("openvino-float32", "openvino-bfloat16", "openvino-int8", "onnxruntime-float32", "onnxruntime-int8")
TORCHAO = "torchao-int8"
GATE = ("image_cosine_min", "text_cosine_min", "float32_r@1", "export_r@1")


class Pictures(torch.utils.data.Dataset):
    def __init__(self, paths: list[Path], transform: Callable[[Image.Image], Tensor]):
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(Image.open(self.paths[index]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engines", nargs="*", choices=(*EXPORTS, TORCHAO), default=(*EXPORTS, TORCHAO))
    options = parser.parse_args()
    silence()
    theirs, transform = harness.random_open_clip()
    clip = build(architecture("ViT-B-32"), clean(theirs.state_dict())).eval()
    clip.tokenizer, clip.fingerprint = CLIPTokenizer(), "random"
    with tempfile.TemporaryDirectory() as folder:
        pictures, others = _pictures(Path(folder), options.images)
        paths = sorted(pictures.iterdir())
        encoders = {f"torch {each}": encoder(clip, each) for each in ("float32", "bfloat16")}
        for name in options.engines:
            engine, precision = name.split("-")
            if name != TORCHAO:
                export(clip, Path(folder) / name, engine, precision, others)
            made = on_torchao(clip) if name == TORCHAO else open_export(Path(folder) / name)
            encoders[made.numerics] = made
        exported = _export_theirs(theirs.visual, transform, sorted(others.iterdir()), Path(folder) / "theirs.xml")
        works = _works(theirs, transform, exported, paths) | {
            f"openvocab {name}": lambda each=each: embed_files(each, pictures, batch_size=BATCH).vectors
            for name, each in encoders.items()
        }
        with torch.no_grad():
            exact = torch.cat([clip.encode_image(clip.preprocess(Image.open(path)).unsqueeze(0)) for path in paths])
            agreement = {name: _agreement(exact, work()) for name, work in works.items()}
            times = harness.medians(harness.rounds(works, options.rounds))
        gate = export(loading.load("demo"), Path(folder) / "demo", "openvino", "int8")
    ours = {name: time_s for name, time_s in times.items() if name.startswith("openvocab")}
    best = min(time_s for name, time_s in times.items() if name not in ours)
    alike = min(time_s for name, time_s in times.items() if name.startswith("exported"))
    fastest = min(ours, key=ours.__getitem__)
    figures: dict[str, Any] = {
        "images": len(paths),
        "rounds": options.rounds,
        "ms_per_image": {name: round(time_s / len(paths) * 1e3, 2) for name, time_s in times.items()},
        "agreement": agreement,
        "fastest": fastest,
        "over_documented": {name: round(times["documented"] / time_s, 2) for name, time_s in ours.items()},
        "over_one_by_one": round(times["one by one"] / ours[fastest], 2),
        "over_exported_peer": round(alike / ours[fastest], 2),
        "over_its_best": round(best / ours[fastest], 2),
        "demo_int8": {name: round(gate[name], 4) for name in GATE},
    }
    harness.record(
        "embed", figures, "open_clip_torch", "torchvision", "pillow", "openvino", "nncf", "onnxruntime", "torchao"
    )
    harness.show(figures)


def _pictures(folder: Path, count: int) -> tuple[Path, Path]:
    """So many photographs to embed, and 128 others to calibrate with."""
    with tarfile.open(harness.DATA / "photos" / "photos.tar") as tar:
        members = [member for member in tar if member.name.endswith(".jpg")]
        tar.extractall(folder / "embedded", members[:count], filter="data")
        tar.extractall(folder / "others", members[-128:], filter="data")
    return folder / "embedded", folder / "others"


def _agreement(exact: Tensor, found: Tensor) -> dict[str, float]:
    cosine = (exact * found.float()).sum(dim=1).min().item()
    return {"cosine_min": round(cosine, 6), "top10_kept": round(neighbours(exact, found.float())["neighbours@10"], 4)}


def _export_theirs(visual: nn.Module, transform: Callable, others: list[Path], path: Path) -> Tower:
    """The peer's image tower through the same exporter, quantiser and engine."""
    images = torch.stack([transform(Image.open(each)) for each in others[: len(others) // 2]])
    batches = [part.numpy() for part in images.split(BATCH)]
    with torch.no_grad(), quiet_exporters():
        dynamic = ({0: torch.export.Dim.DYNAMIC},)
        program = torch.export.export(visual, (images[:2],), dynamic_shapes=dynamic)
        DEPLOYED["openvino"].write(program, path, "int8", Calibration(batches, transformer=True))
    return DEPLOYED["openvino"].open(path, "int8")


def _works(model: Any, transform: Callable, exported: Tower, paths: list[Path]) -> dict[str, Callable[[], Tensor]]:
    def documented(batch: int = BATCH) -> Tensor:
        rows = []
        for start in range(0, len(paths), batch):
            images = torch.stack([transform(Image.open(path)) for path in paths[start : start + batch]])
            rows.append(model.encode_image(images, normalize=True))
        return torch.cat(rows)

    def loader(encode: Callable[[Tensor], Tensor], dtype: torch.dtype | None, workers: int = CORES) -> Tensor:
        batches = torch.utils.data.DataLoader(Pictures(paths, transform), BATCH, num_workers=workers)
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            return torch.cat([F.normalize(encode(images).float(), dim=-1) for images in batches])

    return {
        "one by one": lambda: documented(1),
        "documented": documented,
        "DataLoader": lambda: loader(model.visual, None),
        "DataLoader bfloat16": lambda: loader(model.visual, torch.bfloat16),
        "exported int8": lambda: loader(exported, None, 0),
        "exported int8 DataLoader": lambda: loader(exported, None),
    }


if __name__ == "__main__":
    main()
