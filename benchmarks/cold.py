"""From shell Enter to the printed answer: `openvocab classify one.jpg --labels ... --model FOLDER`, ViT-B/32.

    .venv-peers/bin/python benchmarks/cold.py [--rounds 5]

Every round starts processes anew, one after the other: torch alone; our verb with the labels never seen before (their
vectors are thrown away before each round) and with labels kept; open_clip's readme as a script with the same weights,
picture and labels. Files are in the page cache. `parts_s` is where one cold run spends its time.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import harness
import torch
from safetensors.torch import save_file

from openvocab.clip.architectures import architecture
from openvocab.clip.model import CLIP
from openvocab.clip.tokenizer import CLIPTokenizer
from openvocab.clip.weights import to_layout

LABELS = "cat,dog,horse,car,tree,house,person,boat,bird,fish"
PEER = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("peers", sys.argv[4])
spec.loader.exec_module(importlib.util.module_from_spec(spec))
import torch
import open_clip
from PIL import Image
model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32", pretrained=sys.argv[2])
model.eval()
tokenizer, labels = open_clip.get_tokenizer("ViT-B-32"), sys.argv[3].split(",")
with torch.no_grad():
    image = model.encode_image(preprocess(Image.open(sys.argv[1])).unsqueeze(0), normalize=True)
    texts = model.encode_text(tokenizer([f"a photo of a {label}." for label in labels]), normalize=True)
    shares = (model.logit_scale.exp() * image @ texts.T).softmax(dim=-1)[0]
print({label: f"{share:.1%}" for label, share in zip(labels, shares.tolist())})
"""
PARTS = """
import time
start = time.perf_counter()
marks = {}
def mark(name):
    global start
    marks[name], start = round(time.perf_counter() - start, 3), time.perf_counter()
import json, os, sys
import openvocab.cli
os.environ["GOMP_SPINCOUNT"] = "1000"  # as the command line sets it
mark("command line")
import torch
mark("torch")
from openvocab import loading
from openvocab.clip import answers, folder, golden, weights, zeroshot
mark("the rest of our own code")
from pathlib import Path
path = Path(sys.argv[1])
clip = folder.read(path, verify=False)
mark("reading, with its fingerprint")
weights.fingerprint(clip)
mark("of that the fingerprint")
golden.verify(clip, json.loads((path / "golden.json").read_text()))
mark("golden embeddings")
words = clip.vocabulary(sys.argv[3].split(","), cache=False)
mark("labels")
clip.classify([sys.argv[2]], words)
mark("the picture")
print(json.dumps(marks))
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    clip = CLIP(architecture("ViT-B-32")).eval()
    clip.name, clip.tokenizer = "random ViT-B/32", CLIPTokenizer()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip.save(folder / "model")
        state = {key: tensor.clone() for key, tensor in to_layout(clip, "open_clip").items()}
        save_file(state, folder / "open_clip_model.safetensors")
        with tarfile.open(harness.DATA / "photos" / "photos.tar") as tar:
            first = next(member for member in tar if member.name.endswith(".jpg"))
            tar.extract(first, folder, filter="data")
        picture, model = str(folder / first.name), str(folder / "model")
        ours = ["-m", "openvocab.cli", "classify", picture, "--labels", LABELS, "--model", model]
        shim = str(harness.HERE.parent / "tests" / "parity" / "conftest.py")
        theirs = ["-c", PEER, picture, str(folder / "open_clip_model.safetensors"), LABELS, shim]

        def run(arguments: list[str], forget: bool = False) -> Callable[[], object]:
            if forget:
                shutil.rmtree(folder / "cache", ignore_errors=True)
            environment = os.environ | {"OPENVOCAB_CACHE": str(folder / "cache"), "OPENVOCAB_QUIET": "1"}
            return lambda: (
                subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=environment).stdout
            )

        times = harness.medians(
            harness.fresh_rounds(
                {
                    "import torch": lambda: run(["-c", "import torch"]),
                    "open_clip's readme": lambda: run(theirs),
                    "openvocab classify": lambda: run(ours, forget=True),
                    "openvocab classify, labels kept": lambda: run(ours),
                },
                options.rounds,
            )
        )
        parts = run(["-c", PARTS, model, picture, LABELS])()
    figures = {
        "rounds": options.rounds,
        "seconds": {each: round(time_s, 2) for each, time_s in times.items()},
        "over_open_clip": round(times["open_clip's readme"] / times["openvocab classify"], 2),
        "parts_s": json.loads(parts),
    }
    harness.record("cold", figures, "open_clip_torch")
    harness.show(figures)


if __name__ == "__main__":
    main()
