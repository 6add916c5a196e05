"""Drawing the 1,024 codes of a picture after 256 words: ours beside DALLE-pytorch of the same size and patterns.

Of one prompt, on one thread, in seconds of processor time; random weights, what is not in the paper switched off.
`documented` is its `generate_images` as in its README: everything is read again for each code. `cached` sets
`use_cache=True`, which its sparse layers leave aside; `best` also `optimize_for_inference=True`, whose masked layers
take a cache, and which cannot be had with conv_like, so there both have the other three patterns.

    git clone https://github.com/lucidrains/DALLE-pytorch
    pip install einops axial-positional-embedding==0.2.1
    python benchmarks/dalle.py DALLE-pytorch
"""

import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import torch

from openvocab.systems.dalle.model import DALLE, DALLEConfig

sys.path.insert(0, str(harness.HERE.parent / "scripts"))
import record

DIM, HEADS, WORDS, CODES, TEXT, SIDE = 256, 4, 1000, 1024, 256, 32
PATTERNS = ("full", "axial_row", "axial_col", "conv_like")
TOP_K = CODES // 2


def ours(patterns: tuple[str, ...]) -> Callable[[], Any]:
    sizes = {"vocabulary_size": WORDS, "text_length": TEXT - 1, "num_codes": CODES, "rows": SIDE, "cols": SIDE}
    config = DALLEConfig(**sizes, dim=DIM, heads=HEADS, layers=patterns, kernel=5)  # type: ignore[arg-type]
    model, generator = DALLE(config).eval(), torch.Generator().manual_seed(0)
    tokens, nothing = torch.ones(1, TEXT, dtype=torch.int64), torch.empty(1, 0, dtype=torch.int64)
    return torch.no_grad()(lambda: model.draw_codes(tokens, nothing, generator, top_k=TOP_K))


def theirs(clone: Path, patterns: tuple[str, ...], **how: bool) -> Callable[[], Any]:
    fakes = ("taming", "taming.models", "taming.models.vqgan", "omegaconf", "rotary_embedding_torch", "pkg_resources")
    with record.importing(clone, *fakes, "requests", "dall_e") as fake:
        fake["taming.models.vqgan"].VQModel = fake["taming.models.vqgan"].GumbelVQ = object
        peer = importlib.import_module("dalle_pytorch.dalle_pytorch")
    vae = peer.DiscreteVAE(image_size=8 * SIDE, num_layers=3, num_tokens=CODES, hidden_dim=8)
    vae.decode = lambda codes: codes
    sizes = {"num_text_tokens": WORDS, "text_seq_len": TEXT, "depth": len(patterns), "heads": HEADS, "dim_head": 64}
    masked = how.pop("optimize_for_inference", False)
    off = {"shift_tokens": False, "rotary_emb": False, "attn_types": patterns, "optimize_for_inference": masked}
    model = peer.DALLE(dim=DIM, vae=vae, **sizes, **off).eval()
    for part in model.modules():
        if type(part).__name__ == "FeedForward":  # plain, as ours: gates cost half as much again
            part.net[0], part.net[1] = torch.nn.Linear(DIM, 4 * DIM), torch.nn.GELU()
    text = torch.ones(1, TEXT, dtype=torch.int64)
    return lambda: model.generate_images(text, filter_thres=1 - TOP_K / model.total_tokens, **how)


def seconds(draw: Callable[[], Any], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.process_time()
        assert draw().numel() == SIDE**2
        times.append(time.process_time() - start)
    return sorted(times)[rounds // 2]


def main() -> None:
    clone = Path(sys.argv[1])
    torch.set_num_threads(1)
    cacheable = PATTERNS[:3]
    mine, fewer = seconds(ours(PATTERNS), 3), seconds(ours(cacheable), 3)
    found = {
        "ours": mine,
        "ours, three patterns": fewer,
        "best, three patterns": seconds(theirs(clone, cacheable, use_cache=True, optimize_for_inference=True), 1),
        "cached": seconds(theirs(clone, PATTERNS, use_cache=True), 1),
        "documented": seconds(theirs(clone, PATTERNS), 1),
    }
    ratios = {way: found[way] / mine for way in ("documented", "cached")}
    ratios["best"] = found["best, three patterns"] / fewer
    figures = {"seconds": found, "theirs_over_ours": ratios}
    figures = {part: {name: round(value, 2) for name, value in each.items()} for part, each in figures.items()}
    sys.argv[1] = clone.name.split("+")[-1]
    harness.record("dalle", figures)
    harness.show(figures)


if __name__ == "__main__":
    main()
