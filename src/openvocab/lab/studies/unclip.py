"""Studies of unCLIP on generated scenes, judged exactly: what its prior is for, and what inversion lets one change.

One training of each model, whose test captions, noise and pictures are drawn anew for each seed: the intervals are over
these draws, not over trainings. Half of the captions speak of combinations that no training has shown.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from openvocab.blocks.diffusion import DDIM
from openvocab.clip.created import Pictures
from openvocab.data.scenes import TEST_SEED
from openvocab.lab import report
from openvocab.lab.claims import Claim, Figures, Gate
from openvocab.lab.starts import JUDGE, QUIET
from openvocab.lab.study import Arm, opened
from openvocab.metrics.generate import frechet
from openvocab.metrics.retrieve import score_ranks
from openvocab.shapes import Embeds
from openvocab.systems.unclip.model import UnCLIP, slerp
from openvocab.systems.unclip.prior import Caption
from openvocab.world import caption as grammar
from openvocab.world.judge import judge, verdict
from openvocab.world.pairs import ScenePairs, scene_pairs
from openvocab.world.scene import CLASSES, COLOURS, Scenes, join_scenes

UNCLIP = Arm(system="unclip", seed=0)
AUTOREGRESSIVE = UNCLIP.but(
    'model.prior={"kind":"ARPriorConfig","dim":128,"layers":3,"heads":4,"axes":32,"buckets":64}',
    "data.prior_steps=1000",
    "fit.steps=0",
)
"""The other prior, without a decoder of its own."""
_STREAM = TEST_SEED + 300
_EACH, _STEPS, _GUIDANCE, _AT_ONCE = 64, 20, 2.0, 64
_EDITED, _FINE = 32, 50
_THETAS = (0.15, 0.25, 0.35, 0.5, 0.65)
_MANY = 512
"""Pictures among which a prior's embedding is looked for."""
_NO_WORSE, _PSNR, _KEPT, _TURNS, _CHANGED = -0.02, 25.0, 0.5, 0.7, 0.3
"""What is asked: of the better of two against one; of inversion by 100 steps, of variations at eta 1, of the colour on
the way from picture to picture, of the best text diff."""
_SHOWN = ("best of 1", "best of 2", "no prior", "mean embedding", "true embedding", "captions alone")
_SHOWN += ("best of 2, unheard", "no prior, unheard", "captions of others", "real pictures")
WORLD = "generated scenes of one object, 32 px; a CLIP of 0.7 M parameters, a prior of 0.7 M, a decoder of 0.5 M"


@cache
def pictures(seed: int, each: int = _EACH) -> ScenePairs:
    """So many seen and then so many held-out scenes."""
    parts = [scene_pairs(each, QUIET, _STREAM + seed, split=s, holdout="H1") for s in ("train", "held_out")]
    return ScenePairs(join_scenes([p.scenes for p in parts]), np.concatenate([p.pictures for p in parts]))


def embeds_of(unclip: UnCLIP, shown: UInt8[np.ndarray, "scene 3 size size"]) -> Embeds:
    return torch.cat([unclip.look(part) for part in torch.from_numpy(shown.copy()).split(_AT_ONCE)])


def pixels_of(drawn: ScenePairs) -> Tensor:
    return torch.from_numpy(drawn.pictures.copy()).float() / 127.5 - 1


def bytes_of(made: Tensor) -> UInt8[np.ndarray, "scene 3 size size"]:
    return ((made + 1) * 127.5).round().clamp(0, 255).byte().numpy()


def painted(unclip: UnCLIP, image: Embeds, text: Caption | None, noise: Tensor, **options) -> Tensor:
    parts = []
    for rows in torch.arange(len(image)).split(_AT_ONCE):
        heard = None if text is None else Caption(text.embed[rows], text.tokens[rows], text.said[rows])
        parts.append(unclip.paint(image[rows], heard, noise[rows], **options))
    return torch.cat(parts)


@cache
def prior_or_none(seed: int) -> Figures:
    """What the judge says of pictures of the same captions and the same noise, by where z_i is from.

    `far`: Frechet distance of another CLIP's embeddings to those of other real pictures.
    """
    unclip, drawn = opened(UNCLIP), pictures(seed)
    said = grammar.captions(drawn.scenes, _STREAM + seed)
    text, true = unclip.captions([each.text for each in said]), embeds_of(unclip, drawn.pictures)
    noise = unclip.noise(len(said), torch.Generator().manual_seed(seed))
    sources = {f"best of {number}": imagined(unclip, text, number, seed) for number in (1, 2)}
    sources |= {"no prior": text.embed, "mean embedding": true.mean(0).expand_as(true), "true embedding": true}
    how = {"guidance": _GUIDANCE, "steps": _STEPS}
    made = {name: painted(unclip, image, text, noise, **how) for name, image in sources.items()}
    for name in ("best of 2", "no prior"):
        made[f"{name}, unheard"] = painted(unclip, sources[name], None, noise, **how)
    made["captions alone"] = painted(unclip, true, text, noise, given=False, **how)
    made["real pictures"] = pixels_of(drawn)
    figures: Figures = {}
    real = seen_by_judge(pixels_of(pictures(seed + 20)))
    for name, each in made.items():
        figures[f"{name}, far"] = frechet(seen_by_judge(each), real)
        found = verdict(judge(bytes_of(each)), drawn.scenes, said)
        halves = zip(("seen", "held out"), np.split(found.joint, 2))
        figures |= {name: float(found.joint.mean()), **{f"{name}, {half}": float(rows.mean()) for half, rows in halves}}
        figures |= {f"{name}, {what}": float(getattr(found, what).mean()) for what in ("colour", "shape")}
    other = np.roll(np.arange(len(said)), _EACH // 2)
    mixed = verdict(judge(bytes_of(made["best of 2"])), drawn.scenes[other], [said[row] for row in other])
    ahead, better = (figures["best of 2"] - figures[name] for name in ("no prior", "best of 1"))
    figures |= {"captions of others": float(mixed.joint.mean()), "ahead": ahead, "better": better}
    nearer = figures["no prior, unheard, far"] - figures["best of 2, unheard, far"]
    return {"margin": min(ahead, better - _NO_WORSE), "nearer": nearer, **figures}


def seen_by_judge(made: Tensor) -> Embeds:
    clip = opened(JUDGE)
    return clip.embed_images(Pictures(((made + 1) / 2).clamp(0, 1)).images())


def imagined(unclip: UnCLIP, text: Caption, candidates: int, seed: int) -> Embeds:
    rng = torch.Generator().manual_seed(seed)
    return unclip.imagine(text, candidates=candidates, guidance=_GUIDANCE, steps=_STEPS, generator=rng)


def two_priors(seed: int) -> Figures:
    """Cosine with the true z_i, and how often that is the nearest of all, of what either prior says and of z_t."""
    unclip, drawn = opened(UNCLIP), pictures(seed + 10, _MANY // 2)
    true, text = embeds_of(unclip, drawn.pictures), unclip.captions(grammar.texts(drawn.scenes, _STREAM + seed))
    sources = {f"diffusion, best of {number}": imagined(unclip, text, number, seed) for number in (1, 2)}
    sources |= {"autoregressive": imagined(opened(AUTOREGRESSIVE), text, 2, seed), "text": text.embed}
    figures: Figures = {}
    for name, found in sources.items():
        ranks, _ = score_ranks([found @ true.T], torch.arange(len(true)))
        figures[f"{name}, cosine"] = (found * true).sum(1).mean().item()
        figures[f"{name}, r@1"] = (ranks <= 1).double().mean().item()
    return {"nearer": figures["diffusion, best of 2, cosine"] - figures["autoregressive, cosine"], **figures}


def guidance(seed: int) -> Figures:
    """Four pictures of a caption at rising guidance: how many show it, and how far they differ from each other."""
    unclip, drawn = opened(UNCLIP), pictures(seed, _EDITED // 2)
    rows = np.repeat(np.arange(0, _EDITED, 4), 4)
    said, scenes = grammar.captions(drawn.scenes, _STREAM + seed), drawn.scenes[rows]
    said = [said[row] for row in rows]
    text = unclip.captions([each.text for each in said])
    image, noise = imagined(unclip, text, 2, seed), unclip.noise(len(rows), torch.Generator().manual_seed(seed))
    figures: Figures = {}
    for scale in (1.0, 2.0, 4.0, 8.0):
        made = painted(unclip, image, text, noise, guidance=scale, steps=_STEPS)
        four = made.clamp(-1, 1).unflatten(0, (-1, 4)).flatten(2)
        figures[f"joint at {scale:g}"] = float(verdict(judge(bytes_of(made)), scenes, said).joint.mean())
        figures[f"spread at {scale:g}"] = torch.cdist(four, four).mean().item() / four.shape[2] ** 0.5
    return {"fall of spread": figures["spread at 1"] - figures["spread at 8"], **figures}


def manipulations(seed: int) -> Figures:
    """Inversion, variations, interpolations and text diffs of real pictures; `margin` is the least of what is asked."""
    unclip, drawn = opened(UNCLIP), pictures(seed, _EDITED // 2)
    image, scenes, real = embeds_of(unclip, drawn.pictures), drawn.scenes, pixels_of(drawn)
    process, figures = unclip.decoder.process, {}
    for steps in (20, 50, 100):
        noise = unclip.unpaint(image, real, steps=steps)
        made = painted(unclip, image, None, noise, steps=steps, sampler=DDIM(process)).clamp(-1, 1)
        figures[f"PSNR, {steps} steps"] = -10 * ((made - real) / 2).square().mean((1, 2, 3)).log10().mean().item()
    noise = unclip.unpaint(image, real, steps=_FINE)
    for eta in (0.0, 0.5, 1.0):
        sampler, rng = DDIM(process, eta), torch.Generator().manual_seed(seed)
        made = painted(unclip, image, None, noise, steps=_FINE, sampler=sampler, generator=rng)
        found = verdict(judge(bytes_of(made)), scenes)
        figures[f"kept at eta {eta:g}"] = float((found.colour & found.shape).mean())
        figures[f"moved at eta {eta:g}"] = ((made.clamp(-1, 1) - real) / 2).square().mean().sqrt().item()
    figures |= _between(unclip, image, noise, scenes) | _text_diffs(unclip, image, noise, scenes)
    changed = max(figures[f"changed at {theta:g}"] for theta in _THETAS)
    margins = (figures["PSNR, 100 steps"] / _PSNR - 1, figures["kept at eta 1"] - _KEPT)
    return {"margin": min(*margins, figures["turns once"] - _TURNS, changed - _CHANGED), **figures}


def _between(unclip: UnCLIP, image: Embeds, noise: Tensor, scenes: Scenes) -> Figures:
    """From each picture to the next: how often the judge sees the one colour, then the other, and no third."""
    colour = scenes.colour[:, 0]
    rows = np.flatnonzero(colour != np.roll(colour, -1))
    other, path = (rows + 1) % len(colour), []
    for share in np.linspace(0, 1, 7).tolist():
        between, start = (slerp(each[rows], each[other], share) for each in (image, noise))
        made = painted(unclip, between, None, start, steps=_STEPS, sampler=DDIM(unclip.decoder.process))
        path.append([objects[0].colour if objects else -1 for objects in judge(bytes_of(made))])
    once = []
    for line, first, last in zip(np.array(path).T.tolist(), colour[rows], colour[other]):
        seen = [each for each in line if each >= 0]
        turn = seen.index(last) if last in seen else 0
        once.append(turn > 0 and seen == [first] * turn + [last] * (len(seen) - turn))
    return {"turns once": float(np.mean(once))}


def _text_diffs(unclip: UnCLIP, image: Embeds, noise: Tensor, scenes: Scenes) -> Figures:
    """To another colour in words: how often the judge then sees it, how often it sees the same shape in its place."""
    target = replace(scenes, colour=(scenes.colour + 3) % len(COLOURS))
    before, after = (
        unclip.captions([f"a {CLASSES[row]}" for row in each.class_id[:, 0]]).embed for each in (scenes, target)
    )
    direction, figures = F.normalize(after - before, dim=1), {}
    for theta in _THETAS:
        turned, sampler = slerp(image, direction, theta), DDIM(unclip.decoder.process)
        found = verdict(judge(bytes_of(painted(unclip, turned, None, noise, steps=_FINE, sampler=sampler))), target)
        figures[f"changed at {theta:g}"] = float(found.colour.mean())
        figures[f"preserved at {theta:g}"] = float((found.shape & found.place).mean())
        figures[f"both at {theta:g}"] = float((found.colour & found.shape & found.place).mean())
    return figures


CLAIMS = (
    Claim(
        name="prior-or-none",
        says="A decoder draws captions better from what a prior makes of them than from their own embeddings.",
        source="DALL-E 2, arXiv 2204.06125, sections 2.2 and 5.1",
        expects="More pictures that show all that was said with the prior than with z_t in place of z_i; the better of "
        "two samples is no worse than one, by 2 points.",
        gate=Gate(figure="margin", above=0.0),
        world=WORLD,
        study=prior_or_none,
        seeds=4,
        picture=report.bars_of("pictures that show all that was said, by where the embedding is from", *_SHOWN),
    ),
    Claim(
        name="prior-for-variety",
        says="What a prior makes of captions gives pictures spread like real ones; captions' own embeddings less so.",
        source="DALL-E 2, arXiv 2204.06125, section 5.1",
        expects="A smaller Frechet distance to real pictures with the prior, where the decoder hears no caption.",
        gate=Gate(figure="nearer", above=0.0),
        world=WORLD,
        study=prior_or_none,
        seeds=4,
        picture=report.bars_of(
            "Frechet distance to real pictures",
            *(f"{name}, far" for name in ("best of 2, unheard", "no prior, unheard", "real pictures")),
        ),
    ),
    Claim(
        name="two-priors",
        says="Diffusion comes nearer to the embedding of a picture than a transformer over its quantised axes.",
        source="DALL-E 2, arXiv 2204.06125, section 2.2 and table 1",
        expects="A higher cosine with the true embedding of 512 pictures.",
        gate=Gate(figure="nearer", above=0.0),
        world=WORLD,
        study=two_priors,
    ),
    Claim(
        name="guidance-costs-variety",
        says="Guidance makes the pictures of one caption alike.",
        source="DALL-E 2, arXiv 2204.06125, section 5.3",
        expects="Four pictures of a caption differ less at guidance 8 than at 1.",
        gate=Gate(figure="fall of spread", above=0.0),
        world=WORLD,
        study=guidance,
    ),
    Claim(
        name="unclip-manipulations",
        says="Inversion keeps a picture, noise varies it, circles join two, and words turn it.",
        source="DALL-E 2, arXiv 2204.06125, section 3",
        expects="PSNR of 25 with 100 steps; colour and shape kept in half of the variations; one turn of the colour in "
        "70 % of the ways from picture to picture; 30 % of colours changed by the best text diff.",
        gate=Gate(figure="margin", above=0.0),
        world=WORLD,
        study=manipulations,
    ),
)
