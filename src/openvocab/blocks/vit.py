"""The vision transformer (arXiv 2010.11929) as CLIP and SigLIP use it, and what every image tower returns."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from openvocab.blocks.attention import CrossAttention, Weights
from openvocab.blocks.posemb import Resampling, resample_grid
from openvocab.blocks.transformer import (
    MLP,
    Activation,
    LayerBias,
    Projection,
    Transformer,
    initialize_blocks,
    normal_,
    projection,
)
from openvocab.shapes import Images, Sequence


@dataclass(frozen=True, kw_only=True, slots=True)
class ViTConfig:
    """A plain vision transformer; the defaults are OpenAI's ViT-B/32."""

    image_size: int = 224
    patch_size: int = 32
    dim: int = 768
    layers: int = 12
    heads: int = 12
    mlp_dim: int = 3072
    activation: Activation = "quick_gelu"
    norm_eps: float = 1e-5
    class_token: bool = True
    pool: Literal["class", "mean", "attention"] = "class"
    """The class token; the mean of the patches, then the last norm; or one learned query (SigLIP's MAP head)."""
    pre_norm: bool = True
    patch_bias: bool = False
    stem: Literal["patches", "convolutions"] = "patches"
    """One convolution that cuts patches, or a few small ones that see their edges too: what learns from little data
    (Xiao et al. 2021, arXiv 2106.14881)."""
    projection: Projection = "linear"
    patch_dropout: float = 0.0
    """Share of patches left out of each picture in training (FLIP, arXiv 2212.00794)."""
    dropout: float = 0.0
    resampling: Resampling = "antialiased"
    """Of the positions, at other grids than that of `image_size`."""

    def __post_init__(self) -> None:
        if self.pool == "class" and not self.class_token:
            raise ValueError("ViTConfig: pool 'class' needs class_token=True")
        if not 0 < self.patch_size <= self.image_size:
            raise ValueError(f"ViTConfig: patch_size {self.patch_size} does not fit image_size {self.image_size}")
        if self.stem == "convolutions" and self.patch_size & (self.patch_size - 1):
            raise ValueError(f"ViTConfig: convolutions halve pictures, patch_size {self.patch_size} is no power of 2")

    @property
    def grid(self) -> tuple[int, int]:
        """Whole patches along each side; pixels beyond the last one are not seen (SigLIP's 384 px in 14 px patches)."""
        return self.image_size // self.patch_size, self.image_size // self.patch_size

    @property
    def stride(self) -> int:
        """Pixels per patch, along each side."""
        return self.patch_size


@dataclass(frozen=True)
class ImageFeatures:
    """What an image tower sees; `tower.projection` maps `pooled` and `tokens` into the shared space.

    Fields:
        pooled: one vector per picture, after the last norm, before the projection.
        tokens: one vector per patch, row by row over `grid`, after the last norm, before the projection.
        layers: outputs of the layers asked for: tokens (class token first) of a ViT, maps of a ResNet.
        weights: attention of every layer (class token first), or of the pooling head of a ResNet.
    """

    pooled: Float[Tensor, "image dim"]
    tokens: Float[Tensor, "image patch dim"]
    grid: tuple[int, int]
    layers: tuple[Float[Tensor, "image ..."], ...] = ()
    weights: tuple[Float[Tensor, "image head _ _"], ...] = ()


class ProbePool(nn.Module):
    """SigLIP's pooling head: one learned query attends to the tokens, then a residual MLP (arXiv 2106.04560, MAP)."""

    def __init__(self, dim: int, heads: int, mlp_dim: int, activation: Activation, norm_eps: float):
        super().__init__()
        self.probe = nn.Parameter(torch.empty(dim))
        self.attention = CrossAttention(dim, heads)
        self.out = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = MLP(dim, mlp_dim, activation)
        normal_(self.probe, std=dim**-0.5)

    def forward(self, x: Sequence, *, weights: bool = False) -> tuple[Float[Tensor, "batch dim"], Weights | None]:
        values, attention = self.attention(self.probe.expand(x.shape[0], 1, -1), x, weights=weights)
        pooled = self.out(values)
        return (pooled + self.mlp(self.norm(pooled))).squeeze(1), attention


def convolutions(dim: int, patch_size: int) -> nn.Module:
    """Halvings by 3 x 3 convolutions, channels doubling up to the model's width, then one of 1 x 1."""
    halvings = patch_size.bit_length() - 1
    channels = [3, *(dim >> (halvings - 1 - step) for step in range(halvings))]
    steps = [
        (nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU())
        for before, after in pairwise(channels)
    ]
    return nn.Sequential(*(layer for step in steps for layer in step), nn.Conv2d(dim, dim, 1))


class ViT(nn.Module):
    """Patches, positions, blocks, pooling.

    Args:
        stem: replaces the patch convolution; maps images to `image dim rows cols`.
        blocks: replaces the transformer; the same call as `Transformer`.
    """

    def __init__(
        self, config: ViTConfig, embed_dim: int, *, stem: nn.Module | None = None, blocks: nn.Module | None = None
    ):
        super().__init__()
        self.config = config
        dim, patch = config.dim, config.patch_size
        if stem is None and config.stem == "convolutions":
            stem = convolutions(dim, patch)
        self.stem = stem or nn.Conv2d(3, dim, patch, stride=patch, bias=config.patch_bias)
        self.class_token = nn.Parameter(torch.empty(dim)) if config.class_token else None
        self.positions = nn.Parameter(torch.empty(config.grid[0] * config.grid[1] + config.class_token, dim))
        self.pre_norm = nn.LayerNorm(dim, eps=config.norm_eps) if config.pre_norm else nn.Identity()
        self.blocks = blocks or Transformer(
            config.layers, dim, config.heads, config.mlp_dim, config.activation, config.norm_eps, config.dropout
        )
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.pool = None
        if config.pool == "attention":
            self.pool = ProbePool(dim, config.heads, config.mlp_dim, config.activation, config.norm_eps)
        self.projection = projection(config.projection, dim, embed_dim)

        normal_(self.positions, std=dim**-0.5)
        if self.class_token is not None:
            normal_(self.class_token, std=dim**-0.5)
        if isinstance(self.blocks, Transformer):
            initialize_blocks(self.blocks, dim)

    def forward(
        self,
        images: Images,
        *,
        layers: tuple[int, ...] = (),
        attention: bool = False,
        bias: LayerBias | None = None,
        tokens: bool = True,
        before: Callable[[Sequence], Sequence] | None = None,
    ) -> ImageFeatures:
        """Pictures of any size, at least one patch; see `Transformer.forward` for the other arguments.

        Args:
            tokens: patch tokens are wanted; without them a tower that pools its class token saves most of a block.
        """
        patches = self.stem(images)
        return self.from_patches(patches, layers=layers, attention=attention, bias=bias, tokens=tokens, before=before)

    def from_patches(
        self,
        patches: Float[Tensor, "image dim rows cols"],
        *,
        layers: tuple[int, ...] = (),
        attention: bool = False,
        bias: LayerBias | None = None,
        tokens: bool = True,
        before: Callable[[Sequence], Sequence] | None = None,
    ) -> ImageFeatures:
        """The tower above its stem."""
        image, _, rows, cols = patches.shape
        positions = resample_grid(self.positions, self.config.grid, (rows, cols), self.config.resampling)
        x = patches.flatten(2).transpose(1, 2).contiguous()
        lead = int(self.class_token is not None)
        x = x + positions[lead:]
        if self.training and self.config.patch_dropout:
            x = _drop_patches(x, self.config.patch_dropout)
        if self.class_token is not None:
            x = torch.cat([(self.class_token + positions[0]).expand(image, 1, -1), x], dim=1)
        only = None
        if self.config.pool == "class" and not (tokens or layers or attention or bias is not None):
            only = torch.zeros(image, dtype=torch.int64, device=x.device)
        x = self.pre_norm(x)
        hidden = self.blocks(x, layers=layers, attention=attention, bias=bias, only=only, before=before)
        x, weights = hidden.tokens, hidden.weights

        if self.config.pool == "mean":  # the mean of the tokens before the norm, as published
            pooled = self.norm(x[:, lead:].mean(dim=1))
        x = self.norm(x)
        if self.config.pool == "class":
            pooled = x[:, 0]
        elif self.pool is not None:
            pooled, seen = self.pool(x, weights=attention)
            weights = weights if seen is None else (*weights, seen)
        return ImageFeatures(pooled, x[:, lead:] if tokens else x[:, :0], (rows, cols), hidden.layers, weights)

    @property
    def checkpointing(self) -> bool:
        """Whether each block is recomputed in the backward pass to save memory."""
        return self.blocks.checkpointing  # type: ignore[return-value]

    @checkpointing.setter
    def checkpointing(self, enabled: bool) -> None:
        self.blocks.checkpointing = enabled  # type: ignore[assignment]


def _drop_patches(x: Sequence, share: float) -> Float[Tensor, "batch kept dim"]:
    """Keeps a random subset of each picture's patches, at least one."""
    image, patch, dim = x.shape
    keep = max(1, int(patch * (1 - share)))
    chosen = torch.rand(image, patch, device=x.device).topk(keep, dim=1).indices
    return x.gather(1, chosen.unsqueeze(-1).expand(-1, -1, dim))
