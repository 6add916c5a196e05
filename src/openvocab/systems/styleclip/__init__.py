"""StyleCLIP: words that edit pictures in the latent spaces of a StyleGAN (Patashnik et al. 2021, arXiv 2103.17249).

    latent      min_w  1 - cos(I(G(w)), t) + l2 |w - w0|^2 + identity (1 - cos(R(G(w)), R(G(w0))))
    mapper      w + 0.1 M(w), learnt once for a pair of texts
    direction   ds_c = sigma_c R_c / max|R|,   R_c = F_c . dt,   dt = norm(T(target) - T(source))

Reproduced: StyleGAN2's generator with W, W+ and S, its published weights (`published`), the three methods (`editing`).
Differs from the paper: `small` learns as a variational autoencoder, so that its encoder stands for e4e; what an edit
should keep is told by the CLIP itself where no other embedding is given; Adam in place of Ranger.

    openvocab train styleclip --out run
    openvocab edit picture.png --from "a red circle" --to "a blue circle" --model run --guide CLIP --out pictures
"""

from dataclasses import replace
from pathlib import Path

import torch

from openvocab.blocks.styled import StyledConfig
from openvocab.clip import learning
from openvocab.clip.engine import evaluating
from openvocab.clip.learning import DataConfig
from openvocab.clip.model import CLIP
from openvocab.data.source import Pairs, PairsConfig
from openvocab.metrics.generate import psnr
from openvocab.shapes import Batch
from openvocab.system import Recipe, System
from openvocab.systems.styleclip.editing import StyleCLIP
from openvocab.systems.styleclip.model import StyleCLIPConfig
from openvocab.systems.styleclip.published import load
from openvocab.train.config import FitConfig, GroupConfig, OptimConfig
from openvocab.train.fit import Stage
from openvocab.train.step import Losses
from openvocab.world.scene import quiet_world

_OF_SCENES = StyledConfig(channels=(96, 96), latent_dim=64, mapping_layers=4, mapping_rate=1.0, patch=4)
SIZES = {
    "tiny": StyleCLIPConfig(
        generator=replace(_OF_SCENES, channels=(8, 8), latent_dim=8, mapping_layers=2), encoder=(8, 8, 8)
    ),
    "small": StyleCLIPConfig(generator=_OF_SCENES, encoder=(32, 64, 96), kl_weight=1e-4),
    "paper": StyleCLIPConfig(),
}
_RATE, _ENCODER_RATE = 0.05, 2e-3
"""Weights of the generator are of size 1 and divided where they are used; those of the encoder are not."""


def build(config: StyleCLIPConfig | str, clip: CLIP | None = None) -> StyleCLIP:
    """A generator of random weights, which `clip` edits with."""
    return StyleCLIP(SIZES[config] if isinstance(config, str) else config, clip)


def loss(model: StyleCLIP, batch: Batch) -> Losses:
    """That of an autoencoder."""
    return model.losses(batch["pixels"].contiguous(memory_format=torch.channels_last))


def example(model: StyleCLIP, rows: int) -> Batch:
    """Pictures of noise."""
    return {"pixels": torch.rand(rows, 3, *(model.config.image_size,) * 2)}


def recipe(size: str, source: str = "scenes") -> Recipe[StyleCLIPConfig]:
    """The training run of a size, on large objects of the quiet world or on the pictures of `source`.

    Raises:
        ValueError: `paper`, whose generator learns against a discriminator.
    """
    config, tiny = SIZES[size], size == "tiny"
    if not config.encoder:
        raise ValueError("styleclip: a GAN is not trained here; open published weights, or train --size small")
    optim = OptimConfig(lr=_RATE, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0)
    slow = GroupConfig(name="encoder", prefixes=("encoder.",), optim=replace(optim, lr=_ENCODER_RATE))
    return Recipe(
        model=config,
        data=DataConfig(
            pairs=PairsConfig(source=source),
            batch_size=8 if tiny else 32,
            num_scenes=200 if tiny else 20_000,
            world=replace(quiet_world(), sizes=("large",)),
            holdout="none",
        ),
        optim=optim,
        fit=FitConfig(steps=10 if tiny else 2500),
        groups=(slow, GroupConfig(name="generator", prefixes=("generator.",))),
    )


def prepare(
    recipe: Recipe[StyleCLIPConfig], init: StyleCLIP | None = None, folder: Path | None = None
) -> tuple[StyleCLIP, tuple[Stage]]:
    """Opens the pictures and builds the model, anew or on the weights of `init`."""
    data, seed = recipe.data, recipe.fit.seed
    pairs = learning.open_data(data, recipe.model.image_size, seed)
    torch.manual_seed(seed)
    model = init or build(recipe.model)
    model.name = f"styleclip-{Path(data.pairs.source).stem}"
    model.trained_on = {"source": pairs.source, "pictures": len(pairs)}
    batches = learning.picture_stream(data, pairs, model.preprocessing, seed, folder)
    return model, (recipe.stage(name="styleclip", data=batches, loss=loss),)


def evaluate(model: StyleCLIP, data: Pairs) -> dict[str, float]:
    """Of pictures found by the encoder and drawn again: `psnr` in decibels, `kl` in nats."""
    pixels = model.pixels_of([data.image(index) for index in range(len(data))])
    made = model.pictures(model.generator.styles(model.invert(pixels))).pixels_01
    with evaluating(model), torch.random.fork_rng(devices=[]):
        kl = model.losses(pixels)["kl"].item()
    return {"psnr": psnr(made, pixels), "kl": kl}


SYSTEM = System(
    name="styleclip",
    title="StyleCLIP",
    paper="arXiv 2103.17249",
    sizes=SIZES,
    build=build,
    loss=loss,
    recipe=recipe,
    prepare=prepare,
    evaluate=evaluate,
    open=learning.open_quiet,
    example=example,
    load=load,
    parameters={"paper": 30_370_060},
    minutes={"small": 4.0},
)
