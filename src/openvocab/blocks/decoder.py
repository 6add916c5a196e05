"""A text decoder that looks at a picture's cells (arXiv 2006.06666, section 3; post-norm as in arXiv 1706.03762).

    x = norm1(x + self_attention(x));  x = norm2(x + cross_attention(x, cells));  x = norm3(x + mlp(x))
    log p(y | cells) = sum_t log p(y_t | y_<t, cells)

Input and output embeddings are one matrix. Several stacks of blocks may share everything else: one reads captions
forward, another backward. Differs from the paper: dropout falls on what a branch adds, not inside attention and MLP.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from openvocab.blocks.attention import CrossAttention, MultiHeadAttention
from openvocab.blocks.transformer import MLP, Activation, initialize_linears, normal_
from openvocab.shapes import Sequence, Tokens

Cells = Float[Tensor, "text patch dim"]
Spoken = Bool[Tensor, "text token"]
"""True up to and with the end of a text, False for what pads it."""
_EMBEDDING_EPS = 1e-8


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig:
    """A captioning decoder; the defaults are VirTex's base model."""

    vocabulary_size: int = 10_000
    context_length: int = 30
    dim: int = 1024
    layers: int = 1
    heads: int = 16
    mlp_dim: int = 4096
    activation: Activation = "gelu"
    norm_eps: float = 1e-5
    dropout: float = 0.1
    start_id: int = 1
    end_id: int = 2


class DecoderBlock(nn.Module):
    """Self-attention, attention to the cells, MLP; a norm after each."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        dim, eps = config.dim, config.norm_eps
        self.attention = MultiHeadAttention(dim, config.heads)
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.cross = CrossAttention(dim, config.heads)
        self.cross_out = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = MLP(dim, config.mlp_dim, config.activation)
        self.norm3 = nn.LayerNorm(dim, eps=eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Sequence, cells: Float[Tensor, "batch patch dim"], bias: Tensor | None) -> Sequence:
        attended, _ = self.attention(x, bias=bias, causal=bias is None)
        x = self.norm1(x + self.dropout(attended))
        seen, _ = self.cross(x, cells)
        x = self.norm2(x + self.dropout(self.cross_out(seen)))
        return self.norm3(x + self.dropout(self.mlp(x)))


class Decoder(nn.Module):
    """Words, positions, stacks of blocks, and the words again."""

    def __init__(self, config: DecoderConfig, directions: int = 1):
        super().__init__()
        self.config = config
        dim = config.dim
        self.embedding = nn.Embedding.from_pretrained(torch.empty(config.vocabulary_size, dim), freeze=False)
        self.positions = nn.Parameter(torch.empty(config.context_length, dim))
        self.norm = nn.LayerNorm(dim, eps=_EMBEDDING_EPS)
        self.dropout = nn.Dropout(config.dropout)
        self.stacks = nn.ModuleList(
            nn.ModuleList(DecoderBlock(config) for _ in range(config.layers)) for _ in range(directions)
        )
        self.bias = nn.Parameter(torch.zeros(config.vocabulary_size))
        normal_(self.embedding.weight, std=0.02)
        normal_(self.positions, std=0.02)
        initialize_linears(self.stacks)

    def forward(
        self, ids: Tokens, cells: Cells, *, direction: int = 0, visible: Spoken | None = None
    ) -> Float[Tensor, "text token vocab"]:
        """Logits at every position.

        Args:
            direction: which stack reads.
            visible: every position sees these tokens, before and after it; by default it sees itself and the past.

        Raises:
            ValueError: more tokens than the context holds.
        """
        if ids.shape[1] > len(self.positions):
            raise ValueError(f"{ids.shape[1]} tokens are more than the decoder's context of {len(self.positions)}")
        bias = None
        if visible is not None:
            text, token = ids.shape
            hidden = ~visible[:, None, None].expand(text, 1, token, token)
            bias = torch.zeros(hidden.shape, dtype=cells.dtype, device=ids.device).masked_fill(hidden, float("-inf"))
        x = self.dropout(self.norm(self.embedding(ids) + self.positions[: ids.shape[1]]))
        for block in self.stacks[direction]:  # type: ignore[union-attr]
            x = block(x, cells, bias)
        return F.linear(x, self.embedding.weight, self.bias)

    def log_probabilities(self, ids: Tokens, cells: Cells) -> Float[Tensor, "text next"]:
        """log p(y_t | y_<t, cells) of every token after the start; 0 for padding. A row's sum is its text's log p."""
        log_p = self(ids[:, :-1], cells).float().log_softmax(-1)
        return log_p.gather(2, ids[:, 1:, None]).squeeze(2) * spoken(ids, self.config.end_id)[:, 1:]


def spoken(ids: Tokens, end_id: int) -> Spoken:
    """Which positions belong to a text, its end included."""
    ended = ids == end_id
    return (ended.cumsum(1) - ended.int()) == 0


def backwards(ids: Tokens, spoken: Spoken) -> Tokens:
    """Every text from its end to its start; the padding stays behind it."""
    token = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    return ids.gather(1, torch.where(spoken, spoken.sum(1, keepdim=True) - 1 - token, token))


@torch.no_grad()
def beam_search(
    decoder: Decoder, cells: Float[Tensor, "image patch dim"], num_beams: int
) -> tuple[Int[Tensor, "image token"], Float[Tensor, " image"]]:
    """The most probable text found of each picture, start and end included, and its log p; one beam is greedy.

    A text that ended stays among the beams and is padded with ends. The best one is that of the largest log p, however
    long: nothing is made up for length.
    """
    config, images = decoder.config, len(cells)
    ids = torch.full((images, 1, 1), config.start_id, device=cells.device)
    log_p = torch.zeros(images, 1, device=cells.device)
    while ids.shape[2] < config.context_length and not bool((ids[:, :, -1] == config.end_id).all()):
        beams = ids.shape[1]
        logits = decoder(ids.flatten(0, 1), cells.repeat_interleave(beams, dim=0))[:, -1]
        coming = logits.float().log_softmax(-1).view(images, beams, -1)
        ended = ids[:, :, -1:] == config.end_id
        stays = torch.full_like(coming, float("-inf"))
        stays[..., config.end_id] = 0.0
        total = (log_p.unsqueeze(2) + torch.where(ended, stays, coming)).flatten(1)
        log_p, best = total.topk(min(num_beams, total.shape[1]), dim=1)
        parent = (best // coming.shape[2]).unsqueeze(2).expand(-1, -1, ids.shape[2])
        ids = torch.cat([ids.gather(1, parent), (best % coming.shape[2]).unsqueeze(2)], dim=2)
    return ids[:, 0], log_p[:, 0]
