"""unCLIP's model: a CLIP, a prior from captions to its picture embeddings, a decoder from those to pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from openvocab.blocks.decoder import spoken
from openvocab.blocks.diffusion import DDIM, DDPM, Diffusion, DiffusionConfig, Noisy, denoise, guided
from openvocab.blocks.text import TextConfig
from openvocab.blocks.unet import Context, Maps, Said, Time, UNet, UNetConfig
from openvocab.clip.created import Pictures
from openvocab.clip.engine import Picture, evaluating, read_pixels
from openvocab.clip.model import CLIP
from openvocab.clip.preprocess import PreprocessConfig, normalize
from openvocab.clip.saved import CLIPSystemConfig, CLIPSystemModel
from openvocab.clip.vocabulary import known_words, unseen_words
from openvocab.progress import warn
from openvocab.shapes import Embeds, Scalar, Tokens
from openvocab.systems.unclip.prior import (
    ARPrior,
    ARPriorConfig,
    Caption,
    DiffusionPrior,
    DiffusionPriorConfig,
    EmbeddingScaler,
    Prior,
)

Pixels = Float[Tensor, "row 3 height width"]
"""Between -1 and 1."""
_BLUR_SIGMA = 0.6


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig:
    """`image_tokens` are made of z_i; so often a training step has no z_i, so often no caption."""

    size_px: int
    unet: UNetConfig
    process: DiffusionConfig = DiffusionConfig()
    image_tokens: int = 4
    drop_image: float = 0.1
    drop_text: float = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class UpsamplerConfig:
    """To pictures of `size_px` from those of the model before it.

    `degrade`: what training does to the small picture, a Gaussian blur or, as BSR, blur, noise and resampling at
    random. `crop`: training sees a square of so small a part of the side. `last`: a U-Net of its own takes the last
    step (Karlo).
    """

    size_px: int
    unet: UNetConfig
    process: DiffusionConfig = DiffusionConfig()
    degrade: Literal["blur", "bsr"] = "blur"
    crop: int = 4
    steps: int = 27
    last: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class UnCLIPConfig(CLIPSystemConfig):
    """`unit`: embeddings of pictures and texts are unit vectors; False is as the towers give them (Karlo).

    `drop_text`: so often the prior learns without a caption.
    """

    prior: DiffusionPriorConfig | ARPriorConfig
    decoder: DecoderConfig
    upsamplers: tuple[UpsamplerConfig, ...] = ()
    unit: bool = True
    drop_text: float = 0.1

    def __post_init__(self) -> None:
        if not isinstance(self.clip.text, TextConfig):
            raise ValueError("unclip reads captions token by token: a CLIP whose text tower is a bag of words has none")


class Decoder(nn.Module):
    """z_i twice: added to the embedded time, and as tokens before those of the caption."""

    def __init__(self, config: DecoderConfig, embed_dim: int, text_dim: int):
        super().__init__()
        unet = config.unet
        assert unet.context_dim is not None
        self.config, self.process = config, Diffusion(config.process)
        self.scaler = EmbeddingScaler(embed_dim)
        self.nothing = nn.Parameter(torch.zeros(embed_dim))
        self.text_time = nn.Linear(embed_dim, unet.time_dim)
        self.image_time = nn.Linear(embed_dim, unet.time_dim)
        self.image_tokens = nn.Linear(embed_dim, config.image_tokens * unet.context_dim)
        self.text = nn.Linear(text_dim, unet.context_dim)
        self.norm = nn.LayerNorm(unet.context_dim)
        self.unet = UNet(unet)

    def condition(self, image: Embeds, given: Bool[Tensor, " row"], caption: Caption) -> tuple[Time, Context, Said]:
        """What is added to the time, and the context; rows whose embedding is not given have the learned one."""
        scaled = torch.where(given[:, None], self.scaler(image), self.nothing)
        count = self.config.image_tokens
        tokens = self.image_tokens(scaled).unflatten(1, (-1, count)).transpose(1, 2)
        context = torch.cat([tokens, self.norm(self.text(caption.tokens))], dim=1)
        added = self.image_time(scaled) + self.text_time(caption.embed)
        return added, context, F.pad(caption.said, (count, 0), value=True)

    def forward(self, x: Pixels, t: Int[Tensor, " row"], image: Embeds, given: Tensor, caption: Caption) -> Maps:
        added, context, said = self.condition(image, given, caption)
        return self.unet(x, t, added=added, context=context, said=said)

    def loss(self, pixels: Pixels, image: Embeds, caption: Caption, null: Caption) -> Scalar:
        config, row = self.config, (len(image),)
        given = torch.rand(row, device=image.device) >= config.drop_image
        heard = caption.where(torch.rand(row, device=image.device) >= config.drop_text, null)
        return self.process.loss(lambda x, t: self(x, t, image, given, heard), pixels)


class Upsampler(nn.Module):
    """Reads the noisy picture beside the small one, enlarged; knows nothing else."""

    def __init__(self, config: UpsamplerConfig):
        super().__init__()
        self.config, self.process = config, Diffusion(config.process)
        self.unet = UNet(config.unet)
        self.last = UNet(config.unet) if config.last else None

    def loss(self, pixels: Pixels, size_px: int) -> Scalar:
        """Of large pictures whose small ones have sides of `size_px`."""
        small = degraded(F.interpolate(pixels, size_px, mode="area"), self.config.degrade)
        side, factor = size_px // self.config.crop, pixels.shape[2] // size_px
        top, left = (int(torch.randint(size_px - side + 1, ())) for _ in range(2))
        small = self._enlarged(small, pixels.shape[2])
        cut = (slice(None), slice(None), *(slice(factor * at, factor * (at + side)) for at in (top, left)))
        return self.process.loss(lambda x, t: self.unet(torch.cat([x, small[cut]], dim=1), t), pixels[cut])

    def sample(self, small: Pixels, generator: torch.Generator) -> Maps:
        size_px = self.config.size_px
        large = self._enlarged(small, size_px)
        noise = torch.randn(len(small), 3, size_px, size_px, generator=generator).to(small)

        def network(x: Pixels, t: Int[Tensor, " row"]) -> Maps:
            unet = self.last if self.last is not None and int(t[0]) == int(sampler.timesteps.min()) else self.unet
            return unet(torch.cat([x, large], dim=1), t)

        sampler = DDIM(self.process) if self.last is None else DDPM(self.process)
        return denoise(network, noise, sampler, self.config.steps, generator)

    def _enlarged(self, small: Pixels, size_px: int) -> Maps:
        return F.interpolate(small, size_px, mode="bicubic", antialias=True)


def degraded(small: Pixels, how: Literal["blur", "bsr"]) -> Pixels:
    """The small pictures that training shows, so that those of a decoder are no surprise.

    Differs from BSR (arXiv 2103.14006): one random order of blur, noise and resampling for a batch, no JPEG.
    """
    if how == "blur":
        return _blurred(small, _BLUR_SIGMA)
    size_px = small.shape[2]
    for step in torch.randperm(3).tolist():
        amount = float(torch.rand(()))
        if step == 0:
            small = _blurred(small, 0.2 + amount)
        elif step == 1:
            small = small + 0.1 * amount * torch.randn_like(small)
        else:
            inner = F.interpolate(small, round(size_px * (0.5 + amount)), mode="bilinear", antialias=True)
            small = F.interpolate(inner, size_px, mode="bilinear", antialias=True)
    return small.clamp(-1, 1)


def _blurred(pixels: Pixels, sigma: float) -> Pixels:
    line = torch.exp(-(torch.arange(-1.0, 2.0) ** 2) / (2 * sigma**2)).to(pixels)
    kernel = (line[:, None] * line / line.sum() ** 2).expand(3, 1, 3, 3)
    return F.conv2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)


def slerp(a: Noisy, b: Noisy, share: float) -> Noisy:
    """From row to row along the circle that joins their directions; lengths go evenly from one to the other."""
    u, v = a.flatten(1), b.flatten(1)
    long = torch.stack([u.norm(dim=1), v.norm(dim=1)])
    cosine = (F.normalize(u, dim=1) * F.normalize(v, dim=1)).sum(1, keepdim=True).clamp(-1 + 1e-7, 1 - 1e-7)
    angle = cosine.acos()
    mixed = ((1 - share) * angle).sin() * F.normalize(u, dim=1) + (share * angle).sin() * F.normalize(v, dim=1)
    length = ((1 - share) * long[0] + share * long[1])[:, None]
    return (mixed / angle.sin() * length).view(a.shape)


class UnCLIP(CLIPSystemModel):
    """Makes pictures from words, and others from pictures; its CLIP stays as it is."""

    system, config_type = "unclip", UnCLIPConfig

    def __init__(self, config: UnCLIPConfig, clip: CLIP | None = None):
        super().__init__(config, clip)
        embed, text = config.clip.embed_dim, config.clip.text
        assert isinstance(text, TextConfig)
        prior = DiffusionPrior if isinstance(config.prior, DiffusionPriorConfig) else ARPrior
        self.clip.requires_grad_(False)
        self.prior: Prior = prior(config.prior, embed, text.dim, text.context_length)  # type: ignore[arg-type]
        self.decoder = Decoder(config.decoder, embed, text.dim)
        self.upsamplers = nn.ModuleList(Upsampler(each) for each in config.upsamplers)

    def look(self, pixels: UInt8[Tensor, "row 3 image_size image_size"]) -> Embeds:
        """z_i of pictures in the CLIP's own size."""
        with evaluating(self.clip):
            images = normalize(pixels.to(self.device), self.clip.preprocessing, torch.float32)
            return self.clip.encode_image(images, normalize=self.config.unit)

    def read(self, tokens: Tokens) -> Caption:
        """z_t and the encodings of captions; the CLIP stays in the mode that it is in, and gets no gradient."""
        with torch.no_grad():
            features = self.clip.text(tokens)
            embed = self.clip.text.projection(features.pooled)
        said = spoken(tokens, self.config.clip.text.end_id)  # type: ignore[union-attr]
        return Caption(F.normalize(embed, dim=1) if self.config.unit else embed, features.tokens, said)

    def null(self, rows: int) -> Caption:
        """The empty text (start and end), which stands for no text, as often as there are rows."""
        end_id = self.config.clip.text.end_id  # type: ignore[union-attr]
        return self.read(torch.tensor([[end_id - 1, end_id]], device=self.device)).repeated(rows)

    def captions(self, prompts: Sequence[str]) -> Caption:
        """Prompts, checked.

        Raises:
            ValueError: no prompt, an empty or a too long one.
        """
        if not prompts or not all(prompt.strip() for prompt in prompts):
            raise ValueError("empty prompt: say what the picture shows")
        if unseen := unseen_words(known_words(self.trained_on), prompts):
            warn(f"{self.name} never read in training: {', '.join(unseen)}")
        tokens = self.clip.tokenize(list(prompts)).to(self.device)
        with evaluating(self):
            return self.read(tokens)

    def imagine(
        self, caption: Caption, *, candidates: int, guidance: float, steps: int, generator: torch.Generator
    ) -> Embeds:
        """For each caption the z_i, of so many of the prior's, that is nearest to z_t."""
        rows = len(caption.embed)
        many = caption.repeated(candidates)
        with evaluating(self):
            found = self.prior.sample(
                many, self.null(rows * candidates), guidance=guidance, steps=steps, generator=generator
            )
        if self.config.unit:
            found = F.normalize(found, dim=1)
        best = (found * many.embed).sum(1).view(rows, candidates).argmax(1)
        return found.view(rows, candidates, -1)[torch.arange(rows, device=best.device), best]

    def paint(
        self,
        image: Embeds,
        caption: Caption | None,
        noise: Pixels,
        *,
        given: bool = True,
        guidance: float = 1.0,
        rescale: float = 0.0,
        steps: int,
        sampler: Any = None,
        generator: torch.Generator | None = None,
    ) -> Pixels:
        """Pictures of the decoder's size, from noise.

        Args:
            caption: None is no text.
            given: False leaves z_i out.
            sampler: of `blocks.diffusion.denoise`; by default `DDPM` where the range is learned, else `DDIM`.
        """
        decoder, rows = self.decoder, len(image)
        process = decoder.process
        has, hasnt = (torch.full((rows,), each, device=image.device) for each in (given, False))
        channels = 3 if process.config.learned_range else None
        with evaluating(self):
            null = self.null(rows)
            text = null if caption is None else caption

            def network(x: Pixels, t: Int[Tensor, " row"]) -> Maps:
                out = decoder(x, t, image, has, text)
                if guidance == 1:
                    return out
                return guided(out, decoder(x, t, image, hasnt, null), guidance, rescale, channels)

            usual = DDPM(process) if process.config.learned_range else DDIM(process)
            return denoise(network, noise, sampler or usual, steps, generator)

    def unpaint(self, image: Embeds, pixels: Pixels, *, steps: int) -> Pixels:
        """The noise that `paint` makes these pictures of with the same z_i and no text (DDIM, backwards)."""
        given = torch.ones(len(image), dtype=torch.bool, device=image.device)
        with evaluating(self):
            null = self.null(len(image))
            backwards = DDIM(self.decoder.process, backwards=True)
            return denoise(lambda x, t: self.decoder(x, t, image, given, null), pixels, backwards, steps)

    def generate(
        self,
        prompts: Sequence[str] | str,
        num: int = 1,
        seed: int = 0,
        *,
        candidates: int = 2,
        prior_guidance: float = 2.0,
        guidance: float = 2.0,
        rescale: float = 0.0,
        prior_steps: int = 25,
        steps: int = 50,
        sampler: Any = None,
    ) -> Pictures:
        """`num` pictures of each prompt, one prompt after the other.

        Raises:
            ValueError: an empty or too long prompt, or a number that makes no sense.
        """
        if num < 1 or candidates < 1:
            raise ValueError(f"{num} pictures of {candidates} candidates each: both must be at least 1")
        generator = torch.Generator().manual_seed(seed)
        caption = self.captions([prompts] if isinstance(prompts, str) else prompts).repeated(num)
        image = self.imagine(
            caption, candidates=candidates, guidance=prior_guidance, steps=prior_steps, generator=generator
        )
        how = {"guidance": guidance, "rescale": rescale, "steps": steps, "sampler": sampler, "generator": generator}
        return self._finished(self.paint(image, caption, self.noise(len(image), generator), **how), generator)

    def variations(
        self, picture: Picture, num: int = 4, seed: int = 0, *, eta: float = 1.0, guidance: float = 2.0, steps: int = 50
    ) -> Pictures:
        """Other pictures with the same z_i: at eta = 0 the picture itself, with more the less of it."""
        image, noise = self.invert(picture, steps=steps)
        many = image.expand(num, -1), noise.expand(num, -1, -1, -1)
        return self._again(*many, steps, seed, eta=eta, guidance=guidance if eta else 1.0)

    def interpolate(self, a: Picture, b: Picture, num: int = 5, *, steps: int = 50) -> Pictures:
        """`num` pictures from one to the other: z_i and the noise go along circles."""
        (image_a, noise_a), (image_b, noise_b) = self.invert(a, steps=steps), self.invert(b, steps=steps)
        shares = [step / max(1, num - 1) for step in range(num)]
        ways = (image_a, image_b), (noise_a, noise_b)
        image, noise = (torch.cat([slerp(*way, share) for share in shares]) for way in ways)
        return self._again(image, noise, steps)

    def text_diff(self, picture: Picture, before: str, after: str, theta: float = 0.35, *, steps: int = 50) -> Pictures:
        """The picture with its z_i turned, by the share `theta`, to what `after` says and `before` does not."""
        image, noise = self.invert(picture, steps=steps)
        return self._again(self.turned(image, before, after, theta), noise, steps)

    def turned(self, image: Embeds, before: str, after: str, theta: float) -> Embeds:
        """slerp(z_i, (z_t - z_t0) / |z_t - z_t0|, theta), as long as z_i."""
        texts = self.captions([after, before]).embed
        direction = F.normalize(texts[:1] - texts[1:], dim=1) * image.norm(dim=1, keepdim=True)
        return slerp(image, direction, theta)

    def invert(self, picture: Picture, *, steps: int = 50) -> tuple[Embeds, Pixels]:
        """z_i of a picture and the noise that the decoder makes it of."""
        seen = torch.cat(list(read_pixels(picture, self.clip.preprocessing)))
        plain = PreprocessConfig(image_size=self.config.decoder.size_px)
        pixels = torch.cat(list(read_pixels(picture, plain))).to(self.device).float() / 127.5 - 1
        image = self.look(seen)
        return image, self.unpaint(image, pixels, steps=steps)

    def noise(self, rows: int, generator: torch.Generator) -> Pixels:
        size_px = self.config.decoder.size_px
        return torch.randn(rows, 3, size_px, size_px, generator=generator).to(self.device)

    def _again(
        self, image: Embeds, noise: Pixels, steps: int, seed: int = 0, *, eta: float = 0.0, guidance: float = 1.0
    ) -> Pictures:
        """Pictures of these embeddings, of no words, from noise that inversion gave."""
        sampler, generator = DDIM(self.decoder.process, eta), torch.Generator().manual_seed(seed)
        found = self.paint(image, None, noise, guidance=guidance, steps=steps, sampler=sampler, generator=generator)
        return self._finished(found, generator)

    def _finished(self, pixels: Pixels, generator: torch.Generator) -> Pictures:
        with evaluating(self):
            for upsampler in self.upsamplers:
                pixels = upsampler.sample(pixels.clamp(-1, 1), generator)  # type: ignore[operator]
        return Pictures(((pixels + 1) / 2).clamp(0, 1).cpu())
