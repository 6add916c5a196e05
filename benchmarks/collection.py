"""A million pictures through `openvocab classify`: peak memory, pictures a second, kills and shards.

    python benchmarks/collection.py [--pictures 1000000] [--small 20000] [--kills 5]

Distinct pictures of 8 x 8 px in ten tar shards and a random model of 16 px, so that what is measured is all but the
model: the pictures a second are the most that any accelerator can get from one such process. Peak memory is the verb's
own, by the kernel's account; its slope is from one shard to all ten. A smaller collection is killed with signal 9 at
random moments until it is whole, and made once more by three shards in one folder; the bytes of all parts are compared
with those of a run that nothing disturbed.
"""

import argparse
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch

from openvocab.blocks.text import TextConfig
from openvocab.blocks.vit import ViTConfig
from openvocab.clip.model import CLIP, CLIPConfig
from openvocab.clip.tokenizer import CLIPTokenizer

LABELS = ",".join(f"thing {number}" for number in range(20))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=int, default=1_000_000)
    parser.add_argument("--small", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=5)
    options = parser.parse_args()
    tenth = options.pictures // 10
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["OPENVOCAB_CACHE"] = str(folder / "cache")
        save_model(folder / "model")
        for number in range(10):
            write_shard(folder / f"{number}.tar", number * tenth, tenth)
        write_shard(folder / "small.tar", 10 * tenth, options.small)
        one = run(folder, "classify", "0.tar", "one.jsonl/")
        ten = run(folder, "classify", "{0..9}.tar", "ten.jsonl/")
        figures: dict[str, Any] = {
            "pictures": options.pictures,
            "peak_mb": {"classify a tenth": one["peak_mb"], "classify all": ten["peak_mb"]},
            "bytes_per_picture": round((ten["peak_mb"] - one["peak_mb"]) * 1e6 / (9 * tenth)),
            "pictures_per_s": round(9 * tenth / (ten["wall_s"] - one["wall_s"])),
            "processor_us_per_picture": round((ten["processor_s"] - one["processor_s"]) * 1e6 / (9 * tenth)),
            "rows": sum(path.read_bytes().count(b"\n") for path in (folder / "ten.jsonl").glob("part-*")),
        }
        embed = run(folder, "embed", "0.tar", "one")
        figures["peak_mb"]["embed a tenth"] = embed["peak_mb"]
        times = {"classify a tenth": one, "classify all": ten, "embed a tenth": embed}
        figures["wall_s"] = {name: round(each["wall_s"], 1) for name, each in times.items()}
        figures |= disturbed(folder, options.kills)
        figures["load"] = os.getloadavg()[0]
    harness.record("collection", figures, "pillow", "numpy")
    harness.show(figures)


def disturbed(folder: Path, kills: int) -> dict[str, Any]:
    """Runs of the small collection that were killed, and that were shared, beside one that was neither."""
    run(folder, "classify", "small.tar", "whole.jsonl/")
    chance, done = random.Random(0), 0
    while done < kills:
        process = start(folder, "classify", "small.tar", "killed.jsonl/")
        before = parts(folder / "killed.jsonl")
        while process.poll() is None and parts(folder / "killed.jsonl") == before:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            break  # it was whole before it could be killed
        done += 1
    run(folder, "classify", "small.tar", "killed.jsonl/")
    for number in (2, 0, 1):
        run(folder, "classify", "small.tar", "shared.jsonl/", "--shard", f"{number}/3")
    whole = parts(folder / "whole.jsonl")
    same = {name: parts(folder / f"{name}.jsonl") == whole for name in ("killed", "shared")}
    return {"kills": done, "parts": len(whole), "equal_after_kills": same["killed"], "equal_of_shards": same["shared"]}


def parts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("part-*")}


def run(folder: Path, *arguments: str) -> dict[str, float]:
    """Wall and processor seconds and peak resident memory of a verb."""
    began = time.perf_counter()
    _, status, usage = os.wait4(start(folder, *arguments).pid, 0)
    assert status == 0, arguments
    spent = {"wall_s": time.perf_counter() - began, "processor_s": usage.ru_utime + usage.ru_stime}
    return spent | {"peak_mb": round(usage.ru_maxrss * 1024 / 1e6)}


def start(folder: Path, verb: str, source: str, out: str, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "openvocab.cli", verb, str(folder / source), "--model", str(folder / "model")]
    command += ["--out", f"{folder}/{out}", "--batch-size", "256", "--json", *more]
    command += ["--labels", LABELS] if verb == "classify" else []
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def save_model(folder: Path) -> None:
    torch.manual_seed(0)
    image = ViTConfig(image_size=16, patch_size=8, dim=16, layers=1, heads=2, mlp_dim=32)
    text = TextConfig(dim=16, layers=1, heads=2, mlp_dim=32)
    clip = CLIP(CLIPConfig(image=image, text=text, embed_dim=16)).eval()
    clip.tokenizer, clip.name = CLIPTokenizer(), "random"
    clip.save(folder)


def write_shard(path: Path, first: int, count: int, side: int = 8) -> None:
    """Pictures of noise as PNG, without the minutes that Pillow and tarfile take for a million."""
    scanlines = np.zeros((count, side, 1 + 3 * side), np.uint8)
    scanlines[:, :, 1:] = np.random.default_rng(first).integers(0, 256, (count, side, 3 * side), np.uint8)
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    end = chunk(b"IEND", b"")
    with path.open("wb") as file:
        for number, rows in enumerate(scanlines.reshape(count, -1), first):
            content = head + chunk(b"IDAT", zlib.compress(rows.tobytes(), 0)) + end
            header = bytearray(512)
            header[:12], header[100:108] = b"%08d.png" % number, b"0000644\0"
            header[124:136], header[136:148] = b"%011o\0" % len(content), b"00000000000\0"
            header[148:157], header[257:265] = b"        0", b"ustar\x0000"
            header[148:156] = b"%06o\0 " % sum(header)
            file.write(bytes(header) + content + bytes(-len(content) % 512))
        file.write(bytes(1024))


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


if __name__ == "__main__":
    main()
