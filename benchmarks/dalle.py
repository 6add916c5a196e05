"""Drawing the 1,024 codes of a picture after 256 words: ours beside DALLE-pytorch of the same size and patterns.

Of one prompt, on one thread, in seconds of processor time; random weights, what is not in the paper switched off.
`documented` is what its `generate_images` does as in its README: everything is read again for each code. `cached` hands
the model a cache (as `use_cache=True` is meant to; without guidance `generate_images` drops it), which sparse layers
leave aside; `best` also sets `optimize_for_inference=True`, whose masked layers use it, and which cannot be had with
conv_like: there both have the other three patterns. Ours draws every code; theirs is timed at codes evenly spread over
the picture, its state before each being made off the clock.

    git clone https://github.com/lucidrains/DALLE-pytorch
    pip install einops axial-positional-embedding==0.2.1
    python benchmarks/dalle.py DALLE-pytorch
"""

import importlib
import sys
import time
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
TIMED = 24
"""Codes at which theirs is timed."""


def ours(patterns: tuple[str, ...]) -> float:
    """Seconds of all codes: the median of three pictures."""
    sizes = {"vocabulary_size": WORDS, "text_length": TEXT - 1, "num_codes": CODES, "rows": SIDE, "cols": SIDE}
    config = DALLEConfig(**sizes, dim=DIM, heads=HEADS, layers=patterns, kernel=5)  # type: ignore[arg-type]
    model, generator, times = DALLE(config).eval(), torch.Generator().manual_seed(0), []
    tokens, nothing = torch.ones(1, TEXT, dtype=torch.int64), torch.empty(1, 0, dtype=torch.int64)
    for _ in range(3):
        start = time.process_time()
        model.draw_codes(tokens, nothing, generator, top_k=TOP_K)
        times.append(time.process_time() - start)
    return sorted(times)[1]


def theirs(clone: Path, patterns: tuple[str, ...], *, use_cache: bool, masked: bool = False) -> float:
    """Seconds of all codes, from those of some."""
    fakes = ("taming", "taming.models", "taming.models.vqgan", "omegaconf", "rotary_embedding_torch", "pkg_resources")
    with record.importing(clone, *fakes, "requests", "dall_e") as fake:
        fake["taming.models.vqgan"].VQModel = fake["taming.models.vqgan"].GumbelVQ = object
        peer = importlib.import_module("dalle_pytorch.dalle_pytorch")
    vae = peer.DiscreteVAE(image_size=8 * SIDE, num_layers=3, num_tokens=CODES, hidden_dim=8)
    sizes = {"num_text_tokens": WORDS, "text_seq_len": TEXT, "depth": len(patterns), "heads": HEADS, "dim_head": 64}
    off = {"shift_tokens": False, "rotary_emb": False, "attn_types": patterns, "optimize_for_inference": masked}
    model = peer.DALLE(dim=DIM, vae=vae, **sizes, **off).eval()
    for part in model.modules():
        if type(part).__name__ == "FeedForward":  # plain, as ours: gates cost half as much again
            part.net[0], part.net[1] = torch.nn.Linear(DIM, 4 * DIM), torch.nn.GELU()
    text, codes = torch.ones(1, TEXT, dtype=torch.int64), torch.randint(CODES, (1, SIDE**2))
    total = 0.0
    for number in range(TIMED):
        place = (2 * number + 1) * SIDE**2 // (2 * TIMED)
        cache: dict[str, Any] | None = {} if use_cache else None
        if use_cache:
            model(text, codes[:, : place - 1], cache=cache)
        start = time.process_time()
        logits = model(text, codes[:, :place], cache=cache)[:, -1]
        peer.gumbel_sample(peer.top_k(logits, thres=1 - TOP_K / model.total_tokens))
        total += time.process_time() - start
    return total / TIMED * SIDE**2


@torch.no_grad()
def main() -> None:
    clone = Path(sys.argv[1])
    torch.set_num_threads(1)
    three = PATTERNS[:3]
    found = {
        "ours": ours(PATTERNS),
        "cached": theirs(clone, PATTERNS, use_cache=True),
        "documented": theirs(clone, PATTERNS, use_cache=False),
        "ours, three patterns": ours(three),
        "best, three patterns": theirs(clone, three, use_cache=True, masked=True),
    }
    ratios = {way: found[way] / found["ours"] for way in ("documented", "cached")}
    ratios["best"] = found["best, three patterns"] / found["ours, three patterns"]
    figures = {"seconds": found, "theirs_over_ours": ratios}
    figures = {part: {name: round(value, 2) for name, value in each.items()} for part, each in figures.items()}
    sys.argv[1] = clone.name.split("+")[-1]
    harness.record("dalle", figures)
    harness.show(figures)


if __name__ == "__main__":
    main()
