"""Ray Data on two local workers writes the folder that one process writes."""

import os
import secrets
import subprocess
import sys
from pathlib import Path

import torch
from tiny import tiny_clip, write_picture

from openvocab.clip.collection import embed_files
from openvocab.clip.embedded import load_embedded
from openvocab.loading import encoder

ASKED = {"batch_size": 2, "part_size": 3}
LOST = ("metadata/metadata_000002.jsonl", "img_emb/img_emb_000000.npy", "metadata/metadata_000000.jsonl")
PROGRAM = f"""
import ray, shutil, sys
from pathlib import Path
from openvocab.lab.bulk import embed_on_ray
model, pictures, out, begun = sys.argv[1:]
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
embed_on_ray(model, pictures, out=out, workers=2, **{ASKED})
shutil.copytree(out, begun)
for lost in {LOST}:
    Path(begun, lost).unlink()
embed_on_ray(model, pictures, out=begun, workers=2, **{ASKED})
"""


def on_ray(*arguments: Path) -> None:
    """In a process of its own, as Ray leaves its children to be collected; no token is written into the home folder."""
    settings = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "OMP_NUM_THREADS": "1"}
    settings["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, sys.path))
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_two_workers_write_what_one_process_writes(tmp_path):
    model, pictures = tmp_path / "model", tmp_path / "pictures"
    for number in range(11):
        write_picture(pictures / f"{number}.png", number)
    (pictures / "broken.jpg").write_bytes(b"nothing")
    tiny_clip().save(model)
    torch.set_num_threads(1)
    alone = embed_files(encoder(model), str(pictures), out=tmp_path / "alone", **ASKED)
    on_ray(model, pictures, tmp_path / "shared", tmp_path / "gone on")
    shared = load_embedded(tmp_path / "shared")
    assert shared.keys == alone.keys
    assert torch.equal(shared.vectors, alone.vectors)
    assert list(shared.failures) == ["broken.jpg"]
    whole = files(tmp_path / "alone")
    assert len(whole) == 2 * 4 + 2  # vectors and keys of four parts, the manifest, the failures of one
    assert files(tmp_path / "shared") == whole
    assert files(tmp_path / "gone on") == whole
