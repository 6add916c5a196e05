"""unCLIP, or DALL-E 2: pictures from words by way of CLIP's picture embeddings (Ramesh et al. 2022, arXiv 2204.06125).

    P(x | y) = P(x | z_i, y) P(z_i | y),   loss = |f(noised z_i, t, y) - z_i|^2,  then |e(noised x, t, z_i, y) - e|^2

A prior makes z_i, the CLIP embedding of a picture, of a caption y; a decoder makes the picture of it. Reproduced: both
priors and the better of two samples; z_i twice in the decoder; guidance; upsamplers; variations, interpolations and
text diffs by DDIM inversion; Karlo's weights as diffusers keeps them. A run trains the prior, then the decoder, then
the upsamplers; the CLIP stays as it is, and its embeddings of the training pictures are computed once.
Differs from the paper: the decoder reads CLIP's text tower as Karlo's does, not a transformer of its own; the empty
text stands for no text; the prior takes DDPM steps, not Analytic-DPM's.

    openvocab train unclip --out run                      generated scenes
    openvocab generate "a large red circle" --model run   once it is trained
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from openvocab import storage
from openvocab.blocks.diffusion import DiffusionConfig
from openvocab.blocks.text import TextConfig
from openvocab.blocks.unet import UNetConfig
from openvocab.blocks.vit import ViTConfig
from openvocab.clip import learning
from openvocab.clip.dense import TINY_CLIP
from openvocab.clip.learning import DataConfig, shared_batches
from openvocab.clip.model import CLIP, CLIPConfig
from openvocab.clip.weights import fingerprint
from openvocab.data.batches import Fetched
from openvocab.data.loader import tokenize_all, trimmed
from openvocab.data.memory import InMemory
from openvocab.data.order import Rows
from openvocab.data.source import Pairs, PairsConfig
from openvocab.metrics.retrieve import score_ranks, summarize_ranks
from openvocab.progress import track
from openvocab.shapes import Batch, Embeds
from openvocab.system import Recipe, System
from openvocab.systems.unclip.model import DecoderConfig, UnCLIP, UnCLIPConfig, UpsamplerConfig
from openvocab.systems.unclip.prior import DiffusionPriorConfig
from openvocab.systems.unclip.published import load
from openvocab.train.config import FitConfig, GroupConfig, OptimConfig
from openvocab.train.fit import Stage
from openvocab.train.step import Losses
from openvocab.world.scene import quiet_world

_AT_ONCE = 256
_PAPER_UNET = UNetConfig(channels=512, context_dim=2048, out_channels=6)
_ALONE = UNetConfig(in_channels=6, attention=(), middle=False)
_SMALL_UNET = UNetConfig(
    channels=24, multipliers=(1, 2), depth=1, attention=(1,), head_dim=24, context_dim=64, groups=8, patch=2
)
_TINY_UNET = replace(_SMALL_UNET, channels=8, head_dim=8, context_dim=16, groups=4, patch=1)
_TINY_ALONE = replace(_TINY_UNET, in_channels=6, attention=(), middle=False, context_dim=None)
SIZES = {
    "tiny": UnCLIPConfig(
        clip=TINY_CLIP,
        prior=DiffusionPriorConfig(dim=32, layers=1, heads=2),
        decoder=DecoderConfig(size_px=16, unet=_TINY_UNET),
        upsamplers=(UpsamplerConfig(size_px=32, unet=_TINY_ALONE, degrade="bsr", crop=2, steps=5),),
    ),
    "small": UnCLIPConfig(
        clip=TINY_CLIP,
        prior=DiffusionPriorConfig(dim=128, layers=3, heads=4),
        decoder=DecoderConfig(size_px=32, unet=_SMALL_UNET, process=DiffusionConfig(predicts="x0")),
    ),
    "paper": UnCLIPConfig(
        clip=CLIPConfig(
            image=ViTConfig(image_size=256, patch_size=16, dim=1280, layers=32, heads=16, mlp_dim=5120),
            text=TextConfig(context_length=256, dim=1024, layers=24, heads=16, mlp_dim=4096),
            embed_dim=1024,
        ),
        prior=DiffusionPriorConfig(layers=24, scale="scalar"),
        decoder=DecoderConfig(size_px=64, unet=_PAPER_UNET, process=DiffusionConfig(learned_range=True)),
        upsamplers=(
            UpsamplerConfig(size_px=256, unet=_ALONE),
            UpsamplerConfig(
                size_px=1024,
                unet=replace(_ALONE, channels=192, multipliers=(1, 1, 2, 2, 4, 4), depth=2),
                process=DiffusionConfig(schedule="linear"),
                degrade="bsr",
                steps=15,
            ),
        ),
    ),
}
"""A run's CLIP is the one that it is given. What the paper's table does not say: heads of the CLIP, the width of the
upsamplers' time, whether they learn their range."""


def build(config: UnCLIPConfig | str, clip: CLIP | None = None) -> UnCLIP:
    """Around `clip`; without one around one of random weights."""
    return UnCLIP.around(SIZES[config] if isinstance(config, str) else config, clip)


def prior_loss(model: UnCLIP, batch: Batch) -> Losses:
    """How far the prior is from z_i; some captions are taken away."""
    caption, rows = model.read(batch["tokens"]), len(batch["embeds"])
    kept = torch.rand(rows, device=model.device) >= model.config.drop_text
    return {"loss": model.prior.loss(batch["embeds"], caption.where(kept, model.null(rows)))}


def decoder_loss(model: UnCLIP, batch: Batch) -> Losses:
    """How far the decoder is from the noise of the pictures."""
    pixels = F.interpolate(batch["images"], model.config.decoder.size_px, mode="area")
    caption, null = model.read(batch["tokens"]), model.null(len(pixels))
    return {"loss": model.decoder.loss(pixels, batch["embeds"], caption, null)}


def upsampler_loss(model: UnCLIP, batch: Batch, number: int) -> Losses:
    """How far an upsampler is from the noise of larger pictures."""
    sizes = [model.config.decoder.size_px, *(each.size_px for each in model.config.upsamplers)]
    pixels = F.interpolate(batch["images"], sizes[number + 1], mode="area")
    return {"loss": model.upsamplers[number].loss(pixels, sizes[number])}  # type: ignore[operator]


def loss(model: UnCLIP, batch: Batch) -> Losses:
    """The losses of all parts together, for the contract: a run trains one part after the other."""
    parts = {"prior": prior_loss, "decoder": decoder_loss}
    parts |= {f"upsampler_{n}": partial(upsampler_loss, number=n) for n in range(len(model.upsamplers))}
    found = {name: part(model, batch)["loss"] for name, part in parts.items()}
    return {"loss": torch.stack(list(found.values())).sum(), **found}


def example(model: UnCLIP, rows: int) -> Batch:
    """Noise in the shape of a batch."""
    config, text = model.config, model.config.clip.text
    size_px = max(each.size_px for each in (config.decoder, *config.upsamplers))
    tokens = torch.randint(1, text.vocabulary_size - 2, (rows, 12))
    tokens[:, -1] = text.vocabulary_size - 1
    embeds = F.normalize(torch.randn(rows, config.clip.embed_dim), dim=1)
    return {"images": torch.rand(rows, 3, size_px, size_px) * 2 - 1, "embeds": embeds, "tokens": tokens}


@dataclass(frozen=True, kw_only=True, slots=True)
class UnCLIPData:
    """Pairs; how long the prior and the upsamplers learn. What the decoder does is the run's `fit`."""

    pairs: DataConfig = DataConfig()
    prior_steps: int = 2000
    prior_batch_size: int = 64
    upsampler_steps: int = 0


def recipe(size: str, source: str = "scenes") -> Recipe[UnCLIPConfig]:
    """The training run of a size; steps and batches of `paper` are those of its diffusion prior and of its decoder."""
    pairs = DataConfig(pairs=PairsConfig(source=source), batch_size=32, world=quiet_world())
    data, fit = UnCLIPData(pairs=pairs), FitConfig(steps=3000, ema_decay=0.995, checkpoint_every_steps=100)
    optim = OptimConfig(lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01, schedule="linear")
    if size == "tiny":
        pairs = replace(pairs, num_scenes=64, batch_size=16)
        data = UnCLIPData(pairs=pairs, prior_steps=4, prior_batch_size=16, upsampler_steps=2)
        fit = replace(fit, steps=4)
    elif size == "paper":
        pairs = replace(pairs, batch_size=2048, in_memory=True)
        data = UnCLIPData(pairs=pairs, prior_steps=600_000, prior_batch_size=4096, upsampler_steps=1_000_000)
        optim = OptimConfig(lr=1.2e-4, betas=(0.9, 0.999), weight_decay=0.06, schedule="constant")
        fit = FitConfig(steps=800_000, ema_decay=0.9999, precision="bfloat16")
    decoder = GroupConfig(prefixes=("decoder.",), optim=None if size == "paper" else replace(optim, lr=2e-3))
    return Recipe(model=SIZES[size], data=data, optim=optim, fit=fit, groups=(decoder,))


def prepare(
    recipe: Recipe[UnCLIPConfig], init: UnCLIP | CLIP | None = None, folder: Path | None = None
) -> tuple[UnCLIP, tuple[Stage, ...]]:
    """Opens the pairs, embeds their pictures, builds the model around the CLIP `init`, or goes on from a model.

    Raises:
        ValueError: no CLIP with its tokenizer, or pairs that do not fit into memory.
    """
    clip = init.clip if isinstance(init, UnCLIP) else init
    if clip is None or clip.tokenizer is None:
        raise ValueError("unclip stands on a trained CLIP with its tokenizer: give --init MODEL")
    data, seed = recipe.data, recipe.fit.seed
    sizes = [each.size_px for each in (recipe.model.decoder, *recipe.model.upsamplers)]
    pairs = learning.open_data(data.pairs, max(sizes), seed)
    if not isinstance(pairs, InMemory):
        raise ValueError(f"{pairs.source}: unclip keeps its pairs in memory: data.pairs.in_memory=true")
    torch.manual_seed(seed)
    model = init if isinstance(init, UnCLIP) else build(recipe.model, clip)
    model.name, model.fingerprint = f"unclip-{Path(data.pairs.pairs.source).stem}", ""
    model.trained_on = {"clip": clip.trained_on, **learning.origin(data.pairs, pairs)}
    embeds = embedded(model, pairs)
    tokenize = partial(clip.tokenizer, context_length=clip.config.text.context_length)
    captions = tokenize_all(tokenize, list(pairs.texts))[0]
    if not isinstance(init, UnCLIP):
        first = captions[torch.from_numpy(pairs.text_rows[pairs.first[:-1]])]
        texts = torch.cat([model.read(rows).embed for rows in first.split(_AT_ONCE)])
        model.prior.fit(embeds, texts)
        model.decoder.scaler.fit(embeds, "each")
    samples, batches = partial(_Samples, pairs, embeds, captions), partial(shared_batches, data=pairs, seed=seed)
    prior = recipe.stage(
        name="prior",
        data=batches(samples(images=False), batch_size=data.prior_batch_size),
        loss=prior_loss,
        config=replace(recipe.fit, steps=data.prior_steps),
        groups=(GroupConfig(prefixes=("prior.",)),),
    )
    shown = batches(samples(images=True), batch_size=data.pairs.batch_size)
    decoder = recipe.stage(name="decoder", data=shown, loss=decoder_loss)
    larger = [
        recipe.stage(
            name=f"upsampler {number}",
            data=shown,
            loss=partial(upsampler_loss, number=number),
            config=replace(recipe.fit, steps=data.upsampler_steps),
            groups=(GroupConfig(prefixes=(f"upsamplers.{number}.unet.",)),),
        )
        for number in range(len(model.upsamplers))
    ]
    return model, tuple(stage for stage in (prior, decoder, *larger) if stage.config.steps)


def embedded(model: UnCLIP, pairs: InMemory) -> Embeds:
    """z_i of every picture, kept on disk for this CLIP and these pictures."""
    size_px, kind = model.clip.preprocessing.image_size, model.config.unit
    name = storage.fingerprint(fingerprint(model.clip), pairs.fingerprint, len(pairs), kind)
    path = storage.cache_folder("unclip") / f"{name}.pt"
    if not path.exists():
        made = []
        for start in track(range(0, len(pairs), _AT_ONCE), f"embedding {pairs.source}", unit="batch"):
            pixels = torch.from_numpy(pairs.pixels[start : start + _AT_ONCE][:, :3].copy())
            if pixels.shape[2] != size_px:
                pixels = F.interpolate(pixels, (size_px, size_px), mode="bilinear", antialias=True)
            made.append(model.look(pixels).cpu())
        with storage.atomic_path(path) as temporary:
            torch.save(torch.cat(made), temporary)
    return torch.load(path, weights_only=True)


@dataclass(frozen=True)
class _Samples:
    """Pictures with their embedding and one of their captions."""

    pairs: InMemory
    embeds: Embeds
    captions: Int[Tensor, "text token"]
    images: bool

    def __call__(self, rows: Rows, permutation: Any) -> Fetched:
        texts = torch.from_numpy(self.pairs.drawn(rows.indices, rows.keys))
        batch = {"embeds": self.embeds[torch.from_numpy(rows.indices)], "tokens": self.captions[texts]}
        if self.images:
            batch["images"] = torch.from_numpy(self.pairs.pixels[rows.indices][:, :3]).float() / 127.5 - 1
        return Fetched(trimmed(batch), {})


def evaluate(model: UnCLIP, pairs: Pairs) -> dict[str, float]:
    """How near the prior comes to z_i: the cosine, and how often that of its picture is nearest of all (r@1).

    `text_...` are of z_t in place of what the prior makes of it.
    """
    images = model.clip.embed_images([pairs.image(index) for index in range(len(pairs))])
    generator = torch.Generator().manual_seed(0)
    found, texts = [], []
    for start in track(range(0, len(pairs), _AT_ONCE), "imagining", unit="batch"):
        rows = range(start, min(start + _AT_ONCE, len(pairs)))
        caption = model.captions([pairs.captions(row)[0] for row in rows])
        texts.append(caption.embed.cpu())
        made = model.imagine(caption, candidates=2, guidance=1.0, steps=25, generator=generator)
        found.append(F.normalize(made, dim=1).cpu())
    figures = {}
    for name, rows in (("", torch.cat(found)), ("text_", F.normalize(torch.cat(texts), dim=1))):
        ranks = score_ranks([rows @ images.T], torch.arange(len(images)))
        figures[f"{name}cosine"] = (rows * images).sum(1).mean().item()
        figures |= {f"{name}{key}": value for key, value in summarize_ranks(*ranks).items() if key == "t2i_r@1"}
    return figures


SYSTEM = System(
    name="unclip",
    title="DALL-E 2 (unCLIP)",
    paper="arXiv 2204.06125",
    sizes=SIZES,
    build=build,
    loss=loss,
    recipe=recipe,
    prepare=prepare,
    evaluate=evaluate,
    open=lambda source: learning.open_test(PairsConfig(source=source)),
    example=example,
    load=load,
    init=("clip", "small", "scenes", *learning.SEEN, "fit.steps=3000"),
    minutes={"small": 17.0},
)
