"""P(z_i | y): from a caption to the CLIP embedding of a picture that shows it (arXiv 2204.06125, section 2.2).

Diffusion: a causal transformer reads [text encodings | z_t | time | noised z_i | query] and says z_i at the query.
Autoregressive: z_i in its principal axes, each number in one of some buckets, said one after the other after
[text encodings | z_t | z_i . z_t]. Both read the embeddings through an `EmbeddingScaler` that is saved with them.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from openvocab.blocks.attention import Bias
from openvocab.blocks.diffusion import DDPM, Diffusion, DiffusionConfig, denoise, guided
from openvocab.blocks.transformer import Transformer, initialize_blocks, normal_
from openvocab.blocks.unet import TimeEmbedding
from openvocab.shapes import Embeds, Ids, Mask, Scalar

Encodings = Float[Tensor, "row token text_dim"]
_NORM_EPS = 1e-5
_MARGIN = 1e-4


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionPriorConfig:
    """`scale`: embeddings are divided by one number for all dimensions, or each by its own spread."""

    dim: int = 2048
    layers: int = 20
    heads: int = 32
    scale: Literal["scalar", "each"] = "each"
    process: DiffusionConfig = DiffusionConfig(predicts="x0", clip=5.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ARPriorConfig:
    """`axes` principal axes with so many `buckets` each; the dot product with the text has as many."""

    dim: int = 1664
    layers: int = 24
    heads: int = 26
    axes: int = 319
    buckets: int = 1024
    scale: Literal["scalar", "each"] = "scalar"


@dataclass(frozen=True)
class Caption:
    """What a prior and a decoder know of captions: z_t, the text tower's tokens, and which of those there are."""

    embed: Float[Tensor, "row embed"]
    tokens: Encodings
    said: Mask

    def where(self, kept: Tensor, other: "Caption") -> "Caption":
        """The rows that are kept, and rows of the one caption `other` in place of the others."""
        token = max(self.tokens.shape[1], other.tokens.shape[1])
        mine, theirs = self.padded(token), other.padded(token)
        embed = torch.where(kept[:, None], mine.embed, theirs.embed)
        tokens = torch.where(kept[:, None, None], mine.tokens, theirs.tokens)
        return Caption(embed, tokens, torch.where(kept[:, None], mine.said, theirs.said))

    def repeated(self, times: int) -> "Caption":
        return Caption(*(each.repeat_interleave(times, 0) for each in (self.embed, self.tokens, self.said)))

    def padded(self, token: int) -> "Caption":
        more = token - self.tokens.shape[1]
        return Caption(self.embed, F.pad(self.tokens, (0, 0, 0, more)), F.pad(self.said, (0, more)))


class EmbeddingScaler(nn.Module):
    """(z - mean) / spread: what the noise of a diffusion process, or a layer, is made for. As it is, it does nothing.

    The paper multiplies by a number; Karlo and diffusers keep a mean and a spread for each dimension.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, embed_dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(embed_dim))
        self.register_buffer("spread", torch.ones(embed_dim))

    def fit(self, embeds: Embeds, scale: Literal["scalar", "each"]) -> None:
        """Reads mean and spread off; `scalar` leaves the mean and gives all dimensions one spread, around zero."""
        if scale == "scalar":
            self.mean.zero_()
            self.spread.fill_(embeds.square().mean().sqrt())
        else:
            self.mean.copy_(embeds.mean(0))
            self.spread.copy_(embeds.std(0).clamp_min(_MARGIN))

    def forward(self, embeds: Embeds) -> Embeds:
        return (embeds - self.mean) / self.spread

    def back(self, scaled: Embeds) -> Embeds:
        return scaled * self.spread + self.mean


class _Prior(nn.Module):
    """What both priors share: a causal transformer that begins with a caption."""

    def __init__(self, config: DiffusionPriorConfig | ARPriorConfig, embed_dim: int, text_dim: int, token: int):
        super().__init__()
        dim = config.dim
        self.scaler = EmbeddingScaler(embed_dim)
        self.text = nn.Linear(text_dim, dim)
        self.text_embed = nn.Linear(embed_dim, dim)
        self.positions = nn.Parameter(torch.empty(token, dim))
        self.blocks = Transformer(config.layers, dim, config.heads, 4 * dim, "gelu", _NORM_EPS)
        self.norm = nn.LayerNorm(dim, eps=_NORM_EPS)
        normal_(self.positions, std=0.02)
        initialize_blocks(self.blocks, dim)

    def fit(self, images: Embeds, texts: Embeds) -> None:
        """Reads what is fixed off the embeddings of pictures and of their captions."""
        self.scaler.fit(images, self.config.scale)  # type: ignore[union-attr]

    def read(self, caption: Caption, more: Float[Tensor, "row more dim"]) -> Float[Tensor, "row token dim"]:
        """Tokens of the caption, z_t, then `more`, which has the last places however long the caption is."""
        text, given = self.text(caption.tokens), self.text_embed(caption.embed).unsqueeze(1)
        start = len(self.positions) - self.more - 1  # type: ignore[operator]
        count = 1 + more.shape[1]
        places = torch.cat([self.positions[: text.shape[1]], self.positions[start : start + count]])
        x = torch.cat([text, given, more], dim=1) + places
        seen = F.pad(caption.said, (0, count), value=True)[:, None, None]
        bias: Bias = torch.zeros(seen.shape, dtype=x.dtype, device=x.device).masked_fill(~seen, float("-inf"))
        return self.norm(self.blocks(x, bias=bias, causal=True).tokens)


class DiffusionPrior(_Prior):
    """diffusers' `PriorTransformer` (see `published.PRIOR_KEYS`)."""

    more = 3

    def __init__(self, config: DiffusionPriorConfig, embed_dim: int, text_dim: int, context_length: int):
        super().__init__(config, embed_dim, text_dim, context_length + self.more + 1)
        self.config, self.process = config, Diffusion(config.process)
        self.time = TimeEmbedding(config.dim, config.dim)
        self.image_embed = nn.Linear(embed_dim, config.dim)
        self.query = nn.Parameter(torch.empty(config.dim))
        self.out = nn.Linear(config.dim, embed_dim)
        normal_(self.query, std=0.02)

    def forward(self, noised: Embeds, t: Int[Tensor, " row"], caption: Caption) -> Embeds:
        """The scaled z_i that the noised one hides."""
        query = self.query.expand(len(noised), -1)
        more = torch.stack([self.time(t), self.image_embed(noised), query], dim=1)
        return self.out(self.read(caption, more)[:, -1])

    def loss(self, images: Embeds, caption: Caption) -> Scalar:
        return self.process.loss(lambda x, t: self(x, t, caption), self.scaler(images))

    def sample(
        self, caption: Caption, null: Caption, *, guidance: float, steps: int, generator: torch.Generator
    ) -> Embeds:
        """One z_i for each caption; `null` is the caption that guidance leads away from."""
        noise = torch.randn(caption.embed.shape, generator=generator).to(caption.embed)
        without = caption.where(torch.zeros(len(noise), dtype=torch.bool, device=noise.device), null)

        def network(x: Embeds, t: Int[Tensor, " row"]) -> Embeds:
            said = self(x, t, caption)
            return said if guidance == 1 else guided(said, self(x, t, without), guidance)

        return self.scaler.back(denoise(network, noise, DDPM(self.process), steps, generator))


class ARPrior(_Prior):
    """Principal axes in the order of their variance, quantised.

    Differs from the paper: buckets are evenly spread between the extremes of an axis, and hold equally many of the dot
    products, so that the better half of those is the upper half of their buckets.
    """

    centre: Tensor
    axes: Tensor
    low: Tensor
    high: Tensor
    dots: Tensor

    def __init__(self, config: ARPriorConfig, embed_dim: int, text_dim: int, context_length: int):
        if config.axes > embed_dim:
            raise ValueError(f"unclip: {config.axes} axes of embeddings that have {embed_dim} dimensions")
        self.more = 1 + config.axes
        super().__init__(config, embed_dim, text_dim, context_length + self.more + 1)
        self.config = config
        self.buckets = nn.Embedding(config.buckets, config.dim)
        self.dot_buckets = nn.Embedding(config.buckets, config.dim)
        self.out = nn.Linear(config.dim, config.buckets)
        for name, shape in (("centre", embed_dim), ("low", config.axes), ("dots", config.buckets - 1)):
            self.register_buffer(name, torch.zeros(shape))
        self.register_buffer("axes", torch.eye(embed_dim)[: config.axes])
        self.register_buffer("high", torch.ones(config.axes))
        normal_(self.buckets.weight, std=0.02)
        normal_(self.dot_buckets.weight, std=0.02)

    def fit(self, images: Embeds, texts: Embeds) -> None:
        super().fit(images, texts)
        scaled = self.scaler(images)
        self.centre.copy_(scaled.mean(0))
        _, _, axes = torch.linalg.svd(scaled - self.centre, full_matrices=False)
        self.axes.copy_(axes[: len(self.axes)])
        places = (scaled - self.centre) @ self.axes.T
        self.low.copy_(places.amin(0))
        self.high.copy_(places.amax(0))
        shares = torch.arange(1, self.config.buckets) / self.config.buckets
        self.dots.copy_(torch.quantile((images * texts).sum(1), shares.to(images)))

    def quantise(self, images: Embeds) -> Int[Tensor, "row axis"]:
        places = (self.scaler(images) - self.centre) @ self.axes.T
        share = (places - self.low) / (self.high - self.low).clamp_min(_MARGIN)
        return (share * self.config.buckets).long().clamp(0, self.config.buckets - 1)

    def restored(self, buckets: Int[Tensor, "row axis"]) -> Embeds:
        """The embeddings at the middle of their buckets."""
        places = self.low + (buckets + 0.5) / self.config.buckets * (self.high - self.low)
        return self.scaler.back(places @ self.axes + self.centre)

    def forward(
        self, caption: Caption, dots: Ids, buckets: Int[Tensor, "row axis"]
    ) -> Float[Tensor, "row next bucket"]:
        """Logits of the first axis and of every axis after one that is given."""
        more = torch.cat([self.dot_buckets(dots)[:, None], self.buckets(buckets)], dim=1)
        return self.out(self.read(caption, more)[:, -more.shape[1] :])

    def loss(self, images: Embeds, caption: Caption) -> Scalar:
        buckets = self.quantise(images)
        dots = torch.bucketize((images * caption.embed).sum(1), self.dots)
        logits = self(caption, dots, buckets[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), buckets.flatten())

    @torch.no_grad()
    def sample(
        self, caption: Caption, null: Caption, *, guidance: float, steps: int, generator: torch.Generator
    ) -> Embeds:
        """One z_i for each caption, of a dot product from the better half; it takes as many steps as there are axes."""
        rows, device = len(caption.embed), caption.embed.device
        half = self.config.buckets // 2
        dots = torch.randint(half, self.config.buckets, (rows,), generator=generator).to(device)
        without = caption.where(torch.zeros(rows, dtype=torch.bool, device=device), null)
        buckets = torch.empty(rows, 0, dtype=torch.int64, device=device)
        for _ in range(self.config.axes):
            logits = self(caption, dots, buckets)[:, -1]
            if guidance != 1:
                logits = guided(logits, self(without, dots, buckets)[:, -1], guidance)
            drawn = torch.multinomial(logits.softmax(1).cpu(), 1, generator=generator)
            buckets = torch.cat([buckets, drawn.to(device)], dim=1)
        return self.restored(buckets)


Prior = DiffusionPrior | ARPrior
