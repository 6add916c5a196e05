"""Studies of VQGAN+CLIP on generated scenes: what cutouts are for, and what an image prior is for.

A CLIP that pictures are optimised for can be satisfied by pictures that show nothing. What they show is told by another
CLIP, which nothing was optimised for, and by the exact judge.
"""

from dataclasses import replace

import torch
from torch import nn

from openvocab.clip.created import Pictures
from openvocab.clip.drawing import PLAIN, clamp, frozen, optimise
from openvocab.lab import report
from openvocab.lab.claims import Claim, Figures, Gate
from openvocab.lab.starts import CODES, JUDGE, OPTIMISER
from openvocab.lab.study import opened
from openvocab.shapes import Images
from openvocab.systems.vqgan_clip import SIZES, VQGANCLIP, build
from openvocab.train.config import GroupConfig
from openvocab.world.judge import judge
from openvocab.world.scene import CLASSES, SHAPES

_CONFIG = SIZES["small"]
ARMS = {"cutouts": _CONFIG, "no cutouts": replace(_CONFIG, cutouts=0), "random codes": replace(_CONFIG, rate=0.0)}


class Pixels(nn.Module):
    """Pictures as pixels: what is optimised where no VQGAN says what pictures are like."""

    def __init__(self, pixels_01: Images):
        super().__init__()
        self.pixels = nn.Parameter(pixels_01.clone())

    def forward(self) -> Images:
        return clamp(self.pixels)


def optimised(seed: int) -> Figures:
    """Of pictures of every class, per way of making them: the share that each CLIP and the judge name rightly."""
    coder = opened(CODES)
    texts = opened(OPTIMISER).embed_texts([f"a {name}" for name in CLASSES])[:, None]
    weights = torch.tensor([1.0, -torch.inf]).expand(len(texts), 1, 2)
    batch = {"texts": texts, "weights": weights}
    figures: Figures = {}
    for name, config in ARMS.items():
        made = build(config, opened(OPTIMISER), coder).optimised(batch, seed)
        figures |= _named(name, made)
    return (
        figures
        | _named("pixels", _from_pixels(build(_CONFIG, opened(OPTIMISER), coder), batch, seed))
        | {"gain of cutouts": figures["cutouts, other CLIP"] - figures["no cutouts, other CLIP"]}
    )


def _from_pixels(model: VQGANCLIP, batch: dict[str, torch.Tensor], seed: int) -> Images:
    with torch.no_grad():
        pixels = Pixels(model.begin(len(batch["texts"]), seed)())
    group = GroupConfig(optim=replace(PLAIN, lr=0.02))
    with frozen(model):
        optimise(pixels, [model.loss], batch, [(group,)], steps=_CONFIG.steps, seed=seed)
        return pixels().detach()


def _named(name: str, made: Images) -> Figures:
    images, rows = Pictures(made).images(), torch.arange(len(CLASSES))
    figures: Figures = {}
    for who, arm in (("own CLIP", OPTIMISER), ("other CLIP", JUDGE)):
        model = opened(arm)
        scores = model.embed_images(images) @ model.embed_texts([f"a {name}" for name in CLASSES]).T
        figures[f"{name}, {who}"] = (scores.argmax(1) == rows).double().mean().item()
    found = judge((made.clamp(0, 1) * 255).round().byte().numpy())
    right = [
        (things[0].colour == row // len(SHAPES), things[0].shape == row % len(SHAPES)) if things else (False, False)
        for row, things in enumerate(found)
    ]
    colours, shapes = zip(*right)
    both = [colour and shape for colour, shape in right]
    parts = {"colour": colours, "shape": shapes, "both": both}
    return figures | {f"{name}, judge: {part}": sum(values) / len(values) for part, values in parts.items()}


CLAIMS = (
    Claim(
        name="cutouts-against-collapse",
        says="Without cutouts a picture satisfies the CLIP it is made for and no other.",
        source="VQGAN+CLIP, arXiv 2204.08583, section 3",
        expects="At least 10 points more pictures that another CLIP names rightly.",
        gate=Gate(figure="gain of cutouts", above=0.1),
        world="a picture of each of 64 pairs of colour and shape a seed, 32 pixels, 64 of 1,024 codes, 100 steps",
        study=optimised,
        picture=report.bars_of(
            "named by another CLIP",
            *(f"{name}, other CLIP" for name in ("cutouts", "no cutouts", "pixels", "random codes")),
        ),
    ),
)
