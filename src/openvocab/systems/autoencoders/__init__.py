"""VAE, dVAE and VQGAN: pictures to codes and back (arXiv 1312.6114, 2102.12092, 2012.09841).

Three networks of one shape, each in its file with its equation: `vae` (a vector under a Gaussian prior), `dvae`
(DALL-E's grid of codes, relaxed), `vqgan` (nearest codes, a discriminator, a perceptual distance); `second` is VQGAN's
transformer over codes, learnt on a trained dVAE or VQGAN.
Reproduced: architectures, losses and schedules; both published sets of weights open (`published`).
Differs from the papers: the perceptual distance is of a CLIP's features, given by --init, not of VGG's; the commitment
weight is on the encoder's term unless `quantizer.legacy` is set; learning rates fall to zero.

    openvocab train autoencoders --out run                  a VQGAN; --size vae-small, dvae-small for the others
    openvocab train autoencoders --size second-small --init run --out codes
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from openvocab.blocks.autoencoder import ConvConfig
from openvocab.blocks.quantize import QuantizerConfig, spread
from openvocab.clip import learning
from openvocab.clip.engine import evaluating
from openvocab.clip.learning import DataConfig
from openvocab.clip.model import CLIP
from openvocab.data.source import Pairs, PairsConfig
from openvocab.metrics.generate import psnr
from openvocab.shapes import Batch
from openvocab.system import Recipe, System
from openvocab.systems.autoencoders.dvae import DVAEConfig
from openvocab.systems.autoencoders.model import Autoencoder, AutoencoderConfig, last
from openvocab.systems.autoencoders.published import load, to_hf
from openvocab.systems.autoencoders.second import SecondConfig
from openvocab.systems.autoencoders.vae import VAEConfig
from openvocab.systems.autoencoders.vqgan import AdversaryConfig, VQGANConfig, clip_distance
from openvocab.train.config import FitConfig, GroupConfig, OptimConfig
from openvocab.train.fit import Stage
from openvocab.train.step import Losses
from openvocab.world.scene import quiet_world

_TOWER = ConvConfig(channels=64, multiples=(1,), blocks=0, attention=(), out_channels=32, groups=1, patch=4, bare=True)
_SMALL = VQGANConfig(
    tower=_TOWER,
    quantizer=QuantizerConfig(num_codes=1024, dim=32, method="ema", decay=0.97, restart_below=0.03),
    adversary=None,
)
_TINY = VQGANConfig(
    tower=ConvConfig(channels=8, multiples=(1, 2), blocks=1, attention=(1,), out_channels=8, groups=4),
    quantizer=QuantizerConfig(num_codes=16, dim=8),
    adversary=AdversaryConfig(channels=8, halvings=2, start=0),
)
_DVAE_TINY = DVAEConfig(num_codes=16, dim=8, groups=2, blocks=1, stem_dim=8, kl_steps=10, temperature_steps=20)
_SECOND = SecondConfig(rows=8, cols=8, dim=128, layers=4, heads=4, given="class", num_classes=64, keep=0.95)
SIZES = {
    "tiny": AutoencoderConfig(network=_TINY),
    "small": AutoencoderConfig(network=_SMALL),
    "paper": AutoencoderConfig(network=VQGANConfig(), image_size=256),
    "dvae-tiny": AutoencoderConfig(network=_DVAE_TINY),
    "dvae-small": AutoencoderConfig(
        network=DVAEConfig(
            num_codes=256,
            dim=128,
            groups=1,
            blocks=3,
            stem_dim=64,
            kl_weight=0.0,
            temperature_steps=3600,
            floor=-2.0,
            patch=4,
            contrast=6.0,
        )
    ),
    "dvae-paper": AutoencoderConfig(network=DVAEConfig(), image_size=256),
    "vae-tiny": AutoencoderConfig(network=VAEConfig(channels=(8, 8), latent_dim=4)),
    "vae-small": AutoencoderConfig(network=VAEConfig()),
    "second-tiny": AutoencoderConfig(
        network=_TINY, second=SecondConfig(rows=16, cols=16, dim=16, layers=1, heads=2, given="class", num_classes=64)
    ),
    "second-small": AutoencoderConfig(network=_SMALL, second=_SECOND),
    "second-paper": AutoencoderConfig(
        network=VQGANConfig(), image_size=256, second=SecondConfig(rows=16, cols=16, dim=1536, layers=48, given="class")
    ),
}
"""`tiny`, `small` and `paper` are VQGANs. A second stage takes the network of the model that it is trained on."""

_GENERATOR = tuple(f"network.{part}." for part in ("encoder", "to_codes", "quantize", "from_codes", "decoder"))
GROUPS = (
    GroupConfig(name="generator", prefixes=_GENERATOR),
    GroupConfig(name="discriminator", prefixes=("network.discriminator.",), loss="discriminator"),
)


def build(config: AutoencoderConfig | str, clip: CLIP | None = None) -> Autoencoder:
    """Of random weights; a VQGAN that is given a CLIP learns by its features too."""
    config = SIZES[config] if isinstance(config, str) else config
    model = Autoencoder(config)
    if clip is not None:
        if not isinstance(config.network, VQGANConfig):
            raise ValueError("autoencoders: only a VQGAN learns by a CLIP's features")
        model.network.distance = clip_distance(clip)  # type: ignore[assignment]
    return model


def loss(model: Autoencoder, batch: Batch) -> Losses:
    """That of the network; of the second stage where there is one, the network as it is."""
    pixels = last(batch["pixels"])
    if model.second is None:
        return model.network.losses(pixels, int(model.steps))  # type: ignore[arg-type]
    with torch.no_grad():
        codes, given = model.network.encode(pixels), None
        if model.second.config.given == "picture":
            given = model.network.encode(without_colour(pixels))
    if model.second.config.given == "class":
        given = batch["class_ids"]
    return {"loss": model.second.loss(codes, given)}


def without_colour(pixels: Tensor) -> Tensor:
    """What a second stage of `picture` learns to begin from."""
    return pixels.mean(1, keepdim=True).expand_as(pixels)


def example(model: Autoencoder, rows: int) -> Batch:
    """Pictures of noise."""
    size = model.config.image_size
    return {"pixels": torch.rand(rows, 3, size, size), "class_ids": torch.arange(rows)}


def constrain(model: Autoencoder) -> None:
    """Counts the step."""
    model.steps += 1  # type: ignore[operator]


def recipe(size: str, source: str = "scenes") -> Recipe[AutoencoderConfig]:
    """The training run of a size, on the quiet world or on the pictures of `source`."""
    config = SIZES[size]
    data = DataConfig(pairs=PairsConfig(source=source), batch_size=32, world=quiet_world())
    optim = OptimConfig(lr=2e-3, betas=(0.9, 0.99), weight_decay=0.0, clip_norm=1.0)
    fit, groups = FitConfig(steps=2400, checkpoint_every_steps=400), (GroupConfig(),)
    if isinstance(config.network, VQGANConfig):
        optim, fit, groups = replace(optim, lr=3e-3), replace(fit, steps=9000), GROUPS
        data = replace(data, batch_size=8)
    elif isinstance(config.network, DVAEConfig):
        optim, fit, data = replace(optim, lr=3e-3), replace(fit, steps=6000), replace(data, batch_size=8)
    if config.second is not None:
        groups = (GroupConfig(name="second", prefixes=("second.",)),)
        optim, fit = replace(optim, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01), replace(fit, steps=1500)
    if size.endswith("tiny"):
        data, fit = replace(data, num_scenes=200, batch_size=8), replace(fit, steps=10)
    elif size.endswith("paper"):
        data = replace(data, batch_size=32, workers=8, in_memory=False)
        data, optim, fit = _published_run(config, data, optim, fit)
    return Recipe(model=config, data=data, optim=optim, fit=fit, groups=groups)


def _published_run(
    config: AutoencoderConfig, data: DataConfig, optim: OptimConfig, fit: FitConfig
) -> tuple[DataConfig, OptimConfig, FitConfig]:
    if isinstance(config.network, DVAEConfig):
        optim = OptimConfig(lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-4, warmup_steps=0, clip_norm=None)
        return replace(data, batch_size=512), optim, replace(fit, steps=3_000_000, ema_decay=0.999)
    if config.second is not None:
        return (
            replace(data, batch_size=8),
            replace(optim, lr=4.5e-6 * 8, schedule="constant"),
            replace(fit, steps=500_000),
        )
    rate = 4.5e-6 * data.batch_size
    optim = replace(optim, lr=rate, betas=(0.5, 0.9), eps=1e-8, warmup_steps=0, schedule="constant", clip_norm=None)
    return data, optim, replace(fit, steps=1_000_000)


def prepare(
    recipe: Recipe[AutoencoderConfig], init: Autoencoder | CLIP | None = None, folder: Path | None = None
) -> tuple[Autoencoder, tuple[Stage]]:
    """Opens the pictures and builds the model: anew, on the weights of `init`, or learning by the CLIP `init`.

    Raises:
        ValueError: a second stage without a trained model, on a VAE, or told classes that the pictures do not have.
    """
    config, data, seed = recipe.model, recipe.data, recipe.fit.seed
    second = config.second
    if second is not None:
        if not (isinstance(init, Autoencoder) and init.is_grid):
            raise ValueError(
                "autoencoders: a second stage learns the codes of a trained dVAE or VQGAN: give --init MODEL"
            )
        side = init.config.image_size // init.network.stride
        config = replace(init.config, second=replace(second, rows=side, cols=side))
    pairs = learning.open_data(data, config.image_size, seed)
    if second is not None and second.given == "class" and len(pairs.classnames) > (few := second.num_classes):
        raise ValueError(f"{pairs.source}: {len(pairs.classnames)} classes, model.second.num_classes is {few}")
    torch.manual_seed(seed)
    model = build(config, init if isinstance(init, CLIP) else None)
    if isinstance(init, Autoencoder):
        _go_on_from(model, init)
        model.steps.zero_()  # type: ignore[operator]
    model.name = f"autoencoders-{Path(data.pairs.source).stem}"
    model.trained_on = {"source": pairs.source, "pictures": len(pairs)}
    batches = learning.picture_stream(data, pairs, model.preprocessing, seed, folder)
    stage = recipe.stage(name="autoencoders", data=batches, loss=loss, constrain=constrain)
    return model, (replace(stage, groups=learning.reached(model, recipe.groups)),)


def _go_on_from(model: Autoencoder, init: Autoencoder) -> None:
    """Takes over all weights; what `init` lacks may be a discriminator or a second stage."""
    try:
        missing, extra = model.load_state_dict(init.state_dict(), strict=False)
    except RuntimeError as error:
        missing, extra = [], [str(error).splitlines()[-1].strip()]
    wrong = [*extra, *(name for name in missing if not name.startswith(("second.", "network.discriminator.")))]
    if wrong:
        raise ValueError(f"--init is a model of another config ({wrong[0]}); expected model.network to be the same")


def evaluate(model: Autoencoder, data: Pairs) -> dict[str, float]:
    """Of reconstructions: `psnr` in decibels; of codes over all pictures: `perplexity`, and `usage` of the codebook.

    Of a VAE: `bits` per value, `active` latents. Of a second stage: `nll`, nats per code.
    """
    images = [data.image(index) for index in range(len(data))]
    pixels = torch.cat([model.preprocess(image)[None] for image in images])
    codes = model.encode(pixels)
    figures = {"psnr": psnr(model.decode(codes), pixels)}
    if model.is_grid:
        figures |= {name: float(value) for name, value in spread(codes, model.network.num_codes).items()}
    batch = {"pixels": pixels, "class_ids": torch.tensor([data.label(row) or 0 for row in range(len(data))])}
    with evaluating(model), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = loss(model, {name: value.to(model.device) for name, value in batch.items()})
    names = {"nll": "loss"} if model.second else {"bits": "bits", "active": "diag/active"}
    return figures | {ours: float(found[name]) for ours, name in names.items() if name in found}


SYSTEM = System(
    name="autoencoders",
    title="VAE, dVAE, VQGAN",
    paper="arXiv 1312.6114, 2102.12092, 2012.09841",
    sizes=SIZES,
    build=build,
    loss=loss,
    recipe=recipe,
    prepare=prepare,
    evaluate=evaluate,
    open=learning.open_quiet,
    example=example,
    load=load,
    to_hf=to_hf,
    parameters={"paper": 74_907_332, "dvae-paper": 97_616_006},
    minutes={"small": 9.0},
)
