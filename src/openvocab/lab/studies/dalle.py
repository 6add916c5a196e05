"""Studies of DALL-E in the quiet world: what it draws of captions whose pairs it has seen, or not, and best of N.

One training, whose test captions and samples are drawn anew for each seed: the intervals are over these draws.
"""

from functools import cache

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from openvocab.clip.created import Pictures
from openvocab.clip.engine import embed_images, embed_texts
from openvocab.data.scenes import TEST_SEED
from openvocab.lab import report
from openvocab.lab.claims import Claim, Figures, Gate
from openvocab.lab.starts import CODES, OPTIMISER, QUIET
from openvocab.lab.study import Arm, opened
from openvocab.world.caption import Caption, CaptionConfig, captions
from openvocab.world.judge import Verdict, judge, verdict
from openvocab.world.render import render
from openvocab.world.scene import Scenes, draw_scenes

DRAWER = Arm(system="dalle", init=CODES, seed=0)
SPLITS = {"seen": "train", "held-out": "held_out"}
PROMPTS, NUM = 100, 16
ATTRIBUTES = ("colour", "shape", "size", "place", "joint")
CHANCE = 1 / 64
"""Of a colour and a shape together."""
_STREAM = TEST_SEED + 300
"""Of test captions; no choice was made on them."""
_SAID = CaptionConfig(place=0.5, size=0.4, background=0.0, drop=0.0, synonym=0.0)
_WORLD = "quiet world of 32 pixels, 8 x 8 codes of 1,024; 20,000 pictures, 16 of 64 pairs held out; 1.6 M parameters"


@cache
def asked(split: str, seed: int) -> tuple[Scenes, list[Caption]]:
    """Scenes whose captions are prompts; captions name colour and shape, half of them the place, some the size."""
    scenes = draw_scenes(PROMPTS, QUIET, _STREAM + seed, split=SPLITS[split], holdout="H1")  # type: ignore[arg-type]
    return scenes, captions(scenes, 0, 0, _SAID)


def judged(pixels_01: Float[Tensor, "image 3 size size"], scenes: Scenes, said: list[Caption]) -> Verdict:
    """Whether pictures, equally many of each prompt, show what their captions say."""
    rows = np.arange(len(scenes)).repeat(len(pixels_01) // len(scenes))
    levels = (pixels_01 * 255).round().byte().numpy()
    return verdict(judge(levels), scenes[rows], [said[row] for row in rows])


@cache
def drawn(arm: Arm, seed: int, split: str) -> Float[Tensor, "image 3 size size"]:
    """`NUM` pictures of each prompt."""
    model, said = opened(arm), asked(split, seed)[1]
    return model.generate([each.text for each in said], NUM, seed=seed, batch_size=320).pixels_01


@cache
def fits(arm: Arm, seed: int, split: str) -> Float[Tensor, "prompt sample"]:
    """How well each picture fits its prompt, as the CLIP says that pictures are chosen by."""
    clip = opened(OPTIMISER)
    pictures = embed_images(clip, Pictures(drawn(arm, seed, split)).images(), batch_size=256)
    texts = embed_texts(clip, [each.text for each in asked(split, seed)[1]])
    return torch.einsum("pnd,pd->pn", pictures.unflatten(0, (-1, NUM)), texts)


def best_of(right: Bool[Tensor, "prompt sample"], scores: Float[Tensor, "prompt sample"], count: int) -> float:
    """How often the best scored of `count` pictures is right, over all samples cut into so many."""
    best = scores.unflatten(1, (-1, count)).argmax(2, keepdim=True)
    return right.unflatten(1, (-1, count)).gather(2, best).double().mean().item()


@cache
def drawing(seed: int, arm: Arm = DRAWER) -> Figures:
    """What the pictures of a prompt show, on average and the best of N; controls and bounds beside.

    `other prompts`: held against the captions of other scenes. `real pictures`: the scenes themselves through the
    autoencoder. `any`: whether one of N is right. `at random`: one of N whichever, which is the mean of one.
    """
    figures: Figures = {}
    for split in SPLITS:
        (scenes, said), made = asked(split, seed), drawn(arm, seed, split)
        found = judged(made, scenes, said)
        figures |= {f"{split}: {name}": float(getattr(found, name).mean()) for name in ATTRIBUTES}
        order = np.roll(np.arange(PROMPTS), 1)
        figures[f"{split}: other prompts"] = float(
            judged(made, scenes[order], [said[row] for row in order]).joint.mean()
        )
        real = opened(arm).coder.reconstruct(torch.from_numpy(render(scenes, QUIET.size_px)).float() / 255)
        figures[f"{split}: real pictures"] = float(judged(real, scenes, said).joint.mean())
        right, scores = torch.from_numpy(found.joint).view(-1, NUM), fits(arm, seed, split)
        chance = torch.rand(scores.shape, generator=torch.Generator().manual_seed(seed))
        for count in (4, NUM):
            figures[f"{split}: best of {count}"] = best_of(right, scores, count)
            figures[f"{split}: any of {count}"] = best_of(right, right.float(), count)
        figures[f"{split}: at random of {NUM}"] = best_of(right, chance, NUM)
    return figures


def reranking(seed: int) -> Figures:
    """How much more often the best of N by a CLIP is right than one picture, of pairs never seen together."""
    figures = drawing(seed)
    return {"gain": figures[f"held-out: best of {NUM}"] - figures["held-out: joint"], **figures}


def combining(seed: int) -> Figures:
    """How far one picture of a prompt is above ten times chance, of pairs never seen together."""
    figures = drawing(seed)
    return {"ahead": figures["held-out: joint"] - 10 * CHANCE, **figures}


_CURVE = ("held-out: joint", "held-out: best of 4", f"held-out: best of {NUM}", f"held-out: any of {NUM}")
CLAIMS = (
    Claim(
        name="rerank-gain",
        says="Choosing the best of 16 samples by a CLIP makes pictures of new sentences right much more often.",
        source="DALL-E, arXiv 2102.12092, section 2.6",
        expects="Of pairs never seen together the best of 16 shows all that was asked 15 points more often than one.",
        gate=Gate(figure="gain", above=0.15),
        world=_WORLD,
        study=reranking,
        picture=report.bars_of("pictures that show all that their prompt says", *_CURVE),
    ),
    Claim(
        name="new-combinations-drawn",
        says="A transformer over words and codes draws combinations that no training picture showed.",
        source="DALL-E, arXiv 2102.12092, section 3.3",
        expects="All that is asked of held-out pairs is right more than ten times as often as both words by chance.",
        gate=Gate(figure="ahead", above=0.0),
        world=_WORLD,
        study=combining,
        picture=report.bars_of(
            "pictures that show all that their prompt says",
            *(f"{split}: {name}" for split in SPLITS for name in ("joint", "other prompts", "real pictures")),
        ),
    ),
)
