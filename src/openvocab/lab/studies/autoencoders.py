"""Studies of autoencoders on the quiet world: what survives codes, what a prior is good for, which codes are used."""

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from openvocab.blocks.quantize import spread
from openvocab.clip.created import Pictures
from openvocab.data.scenes import TEST_SEED
from openvocab.lab import report
from openvocab.lab.claims import Claim, Figures, Gate
from openvocab.lab.starts import CODES, JUDGE, QUIET
from openvocab.lab.study import Arm, opened
from openvocab.metrics.generate import frechet, judged
from openvocab.world.pairs import scene_pairs
from openvocab.world.scene import Scenes

VAE = Arm(system="autoencoders", size="vae-small")
PLAIN = VAE.but("model.network.variational=false")
DVAE = Arm(system="autoencoders", size="dvae-small")
PIXELS = Arm(system="autoencoders")
SHORT = PIXELS.but("fit.steps=800")
BRIEFLY = {
    "briefly": SHORT,
    "briefly, 4 codes": SHORT.but("model.network.quantizer.num_codes=4"),
    "briefly, no straight-through": SHORT.but("model.network.quantizer.straight_through=false"),
}
"""A VQGAN and two that cannot do it, in equal steps."""
BOOKS = {
    "plain": SHORT.but("model.network.quantizer.method=gradient", "model.network.quantizer.restart_below=0"),
    "restart": SHORT.but("model.network.quantizer.method=gradient"),
    "ema": SHORT.but("model.network.quantizer.restart_below=0"),
    "ema and restart": SHORT,
}
"""How the codebook learns, in equal steps."""
_STREAM = TEST_SEED + 400
"""Of test pictures; no choice was made on them."""
AT_LEAST = 0.97


@cache
def pictures(seed: int) -> tuple[Float[Tensor, "image 3 height width"], Scenes]:
    """Of all classes, those too that no training showed."""
    drawn = scene_pairs(1000, QUIET, _STREAM + seed)
    return torch.from_numpy(drawn.pictures.copy()).float() / 255, drawn.scenes


def kept(arm: Arm, seed: int) -> float:
    """The share of pictures in which the judge still finds all that was drawn."""
    pixels, scenes = pictures(seed)
    return judged(opened(arm, seed).reconstruct(pixels), scenes)["joint"]


def reconstructions(seed: int) -> Figures:
    """What is found in pictures as they are, after codes, and after codes that cannot do it."""
    arms = {"VQGAN": CODES, "by pixels alone": PIXELS, "dVAE": DVAE, **BRIEFLY}
    figures = {name: kept(arm, seed) for name, arm in arms.items()}
    real = judged(*pictures(seed))["joint"]
    return {"worse": min(figures["VQGAN"], figures["dVAE"]), "as drawn": real, **figures}


def prior(seed: int) -> Figures:
    """The share of drawn pictures that show one clear shape; every latent of N(0, 1).

    `fitted` gives the plain autoencoder its own means and deviations instead, which it was not made for. `far`: Frechet
    distance of a CLIP's embeddings to those of real pictures.
    """
    pixels, scenes = pictures(seed)
    vae, plain = opened(VAE, seed), opened(PLAIN, seed)
    codes = plain.encode(pixels)
    noise = torch.randn(codes.shape, generator=torch.Generator().manual_seed(seed))
    made = {
        "VAE": vae.sample(len(pixels), seed=seed).pixels_01,
        "autoencoder": plain.sample(len(pixels), seed=seed).pixels_01,
        "autoencoder, fitted": plain.decode(codes.mean(0) + codes.std(0) * noise),
    }
    figures = {name: judged(found, scenes)["valid"] for name, found in made.items()}
    clip = opened(JUDGE)
    real = clip.embed_images(Pictures(pixels).images())
    for name, found in made.items():
        figures[f"{name}, far"] = frechet(clip.embed_images(Pictures(found).images()), real)
    return {"ahead": figures["VAE"] - figures["autoencoder"], **figures}


def collapse(seed: int) -> Figures:
    """Perplexities of the codes of test pictures."""
    figures = {}
    for name, arm in BOOKS.items():
        model = opened(arm, seed)
        figures[name] = float(spread(model.encode(pictures(seed)[0]), model.network.num_codes)["perplexity"])
    return {"gain": figures["ema and restart"] / figures["plain"], **figures}


CLAIMS = (
    Claim(
        name="codes-keep-scenes",
        says="A grid of 8 x 8 codes of 1,024 keeps what a picture shows: its colour, shape, size and place.",
        source="VQ-VAE, arXiv 1711.00937; DALL-E, arXiv 2102.12092, section 2.1",
        expects="At least 97 % judged right for dVAE and VQGAN; far fewer with 4 codes or without straight-through.",
        gate=Gate(figure="worse", above=AT_LEAST),
        world="quiet scenes of 32 pixels, all classes; a VQGAN of 0.5 M parameters, a dVAE of 0.7 M and 256 codes",
        study=reconstructions,
        seeds=1,
        picture=report.bars_of("pictures judged right", "as drawn", "VQGAN", "by pixels alone", "dVAE", *BRIEFLY),
    ),
    Claim(
        name="vae-prior",
        says="Latents held to a Gaussian can be drawn from it: the decoder alone then makes pictures.",
        source="Kingma and Welling, arXiv 1312.6114",
        expects="Drawn latents give valid scenes more often, by at least 10 points, than those of a plain autoencoder.",
        gate=Gate(figure="ahead", above=0.1),
        world="quiet scenes of 32 pixels, 32 latents; networks of 0.3 M parameters",
        study=prior,
        picture=report.bars_of("drawn pictures that show one clear shape", "VAE", "autoencoder", "autoencoder, fitted"),
    ),
    Claim(
        name="codebook-collapse",
        says="Codes that learn by gradient alone fall out of use; moving averages and restarts keep them.",
        source="VQ-VAE, arXiv 1711.00937, appendix A.1",
        expects="At least 1.5 times the perplexity of plain codes.",
        gate=Gate(figure="gain", above=1.5),
        world="quiet scenes of 32 pixels, 1,024 codes, 800 steps each",
        study=collapse,
        picture=report.bars_of("perplexity of codes", *BOOKS),
    ),
)
