"""Text towers: the transformer of CLIP and SigLIP, and a bag of words."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from openvocab.blocks.transformer import (
    Activation,
    LayerBias,
    Projection,
    Transformer,
    initialize_blocks,
    normal_,
    projection,
)
from openvocab.shapes import Sequence, Tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig:
    """A text transformer; the defaults are OpenAI's for ViT-B/32."""

    vocabulary_size: int = 49408
    context_length: int = 77
    dim: int = 512
    layers: int = 12
    heads: int = 8
    mlp_dim: int = 2048
    activation: Activation = "quick_gelu"
    norm_eps: float = 1e-5
    causal: bool = True
    pool: Literal["end", "last"] = "end"
    """The first position that holds `end_id`, or the last position."""
    end_id: int = 49407
    projection: Projection = "linear"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.pool == "end" and not 0 <= self.end_id < self.vocabulary_size:
            raise ValueError(f"TextConfig: end_id {self.end_id} is outside a vocabulary of {self.vocabulary_size}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CBOWConfig:
    """A bag of words: the mean of word vectors, projected."""

    vocabulary_size: int = 49408
    context_length: int = 77
    dim: int = 512
    skip_ids: tuple[int, ...] = (0, 49406, 49407)
    """Ids that are no words: padding, start, end."""
    neighbours: bool = False
    """Joins each word to the one before it, so that a colour belongs to its shape."""
    projection: Projection = "linear"


@dataclass(frozen=True)
class TextFeatures:
    """What a text tower reads; `tower.projection` maps `pooled` and `tokens` into the shared space.

    `pooled` and `tokens` come after the last norm; `layers` and `weights` hold what was asked for.
    """

    pooled: Float[Tensor, "text dim"]
    tokens: Float[Tensor, "text token dim"]
    layers: tuple[Float[Tensor, "text token dim"], ...] = ()
    weights: tuple[Float[Tensor, "text head token token"], ...] = ()


class TextTransformer(nn.Module):
    """Token embeddings, positions, blocks, the vector at the end of the text."""

    def __init__(self, config: TextConfig, embed_dim: int):
        super().__init__()
        self.config = config
        dim = config.dim
        self.embedding = nn.Embedding.from_pretrained(torch.empty(config.vocabulary_size, dim), freeze=False)
        self.positions = nn.Parameter(torch.empty(config.context_length, dim))
        self.blocks = Transformer(
            config.layers, dim, config.heads, config.mlp_dim, config.activation, config.norm_eps, config.dropout
        )
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.projection = projection(config.projection, dim, embed_dim)

        normal_(self.embedding.weight, std=0.02)
        normal_(self.positions, std=0.01)
        initialize_blocks(self.blocks, dim)

    def forward(
        self,
        ids: Tokens,
        *,
        layers: tuple[int, ...] = (),
        attention: bool = False,
        bias: LayerBias | None = None,
        tokens: bool = True,
    ) -> TextFeatures:
        """Rows of token ids, padded with anything after the end; see `Transformer.forward` for the other arguments.

        A causal tower takes any length up to its context, with the same result. A row without the end id raises on
        the CPU; on other devices, where looking would stall them, its pooled vector is NaN.

        Args:
            tokens: per-token features are wanted; without them the last block is computed for one token a row.
        """
        end, ended = self.ends(ids), None
        if self.config.pool == "end":
            ended = ids.gather(1, end.unsqueeze(1)) == self.config.end_id
            if ids.device.type == "cpu" and not ended.all():
                row = int(ended.squeeze(1).to(torch.uint8).argmin())
                raise ValueError(f"row {row} of the token ids lacks the end id {self.config.end_id}: use the tokenizer")
        embeds = self.embedding(ids)
        features = self.from_embeddings(embeds, end, layers=layers, attention=attention, bias=bias, tokens=tokens)
        if ended is not None and ids.device.type != "cpu":
            return replace(features, pooled=features.pooled.masked_fill(~ended, float("nan")))
        return features

    def ends(self, ids: Tokens) -> Int[Tensor, " text"]:
        """The position that each row is read at: its first end id, or the last one."""
        if self.config.pool == "last":
            return torch.full((ids.shape[0],), ids.shape[1] - 1, device=ids.device)
        return (ids == self.config.end_id).to(torch.uint8).argmax(dim=1)

    def from_embeddings(
        self,
        embeds: Sequence,
        end: Int[Tensor, " batch"],
        *,
        layers: tuple[int, ...] = (),
        attention: bool = False,
        bias: LayerBias | None = None,
        tokens: bool = True,
    ) -> TextFeatures:
        """The tower above its token embeddings (positions are added here); `end` is each row's pooled position."""
        text, token, _ = embeds.shape
        if token > len(self.positions):
            raise ValueError(f"{token} tokens are more than the model's context of {len(self.positions)}")
        if not self.config.causal and token != len(self.positions):
            raise ValueError(
                f"a bidirectional text tower sees its padding: pad to {len(self.positions)} tokens, not {token}"
            )
        only = None if tokens or layers or attention or bias is not None else end
        hidden = self.blocks(
            embeds + self.positions[:token],
            layers=layers,
            attention=attention,
            bias=bias,
            causal=self.config.causal,
            only=only,
        )
        x = self.norm(hidden.tokens)
        pooled = x[:, 0] if only is not None else x[torch.arange(text, device=x.device), end]
        return TextFeatures(pooled, x if tokens else x[:, :0], hidden.layers, hidden.weights)

    @property
    def checkpointing(self) -> bool:
        """Whether each block is recomputed in the backward pass to save memory."""
        return self.blocks.checkpointing

    @checkpointing.setter
    def checkpointing(self, enabled: bool) -> None:
        self.blocks.checkpointing = enabled


class CBOW(nn.Module):
    """The mean of the words' vectors (continuous bag of words, arXiv 1301.3781); order is lost on purpose.

    With `neighbours`, the mean over t of x_t + A x_{t-1} * B x_t, element by element: as a function of one word times a
    function of the other it holds for pairs of words that were never read together.
    """

    def __init__(self, config: CBOWConfig, embed_dim: int):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding.from_pretrained(torch.empty(config.vocabulary_size, config.dim), freeze=False)
        self.projection = projection(config.projection, config.dim, embed_dim)
        normal_(self.embedding.weight, std=0.02)
        if config.neighbours:
            self.before = nn.Linear(config.dim, config.dim, bias=False)
            self.here = nn.Linear(config.dim, config.dim)
            normal_(self.embedding.weight, std=0.5)  # products of two stay small beside sums, and are not lost

    def forward(self, ids: Tokens, *, tokens: bool = True) -> TextFeatures:
        """A row without words gives zeros."""
        features = self.from_embeddings(self.embedding(ids), self.words(ids))
        return features if tokens else replace(features, tokens=features.tokens[:, :0])

    def words(self, ids: Tokens) -> Bool[Tensor, "text token"]:
        """Which ids count."""
        words = torch.ones_like(ids, dtype=torch.bool)
        for skipped in self.config.skip_ids:
            words &= ids != skipped
        return words

    def from_embeddings(
        self, embeds: Float[Tensor, "text token dim"], words: Bool[Tensor, "text token"]
    ) -> TextFeatures:
        """The tower above its word vectors, of which `words` count."""
        embeds = embeds * words.unsqueeze(-1)
        if self.config.neighbours:
            previous = nn.functional.pad(embeds[:, :-1], (0, 0, 1, 0))
            embeds = embeds + self.before(previous) * self.here(embeds) * words.unsqueeze(-1)
        return TextFeatures(embeds.sum(dim=1) / words.sum(dim=1, keepdim=True).clamp(min=1), embeds)
