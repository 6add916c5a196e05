"""BERT: a transformer that reads a text from both sides (Devlin et al. 2019, arXiv 1810.04805), without its heads."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from openvocab.blocks.transformer import PostNormBlock, initialize_linears, normal_
from openvocab.shapes import Mask, Sequence, Tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class BertConfig:
    """The defaults are those of BERT-base, uncased."""

    vocabulary_size: int = 30522
    context_length: int = 512
    dim: int = 768
    layers: int = 12
    heads: int = 12
    mlp_dim: int = 3072
    norm_eps: float = 1e-12
    dropout: float = 0.1


class Bert(nn.Module):
    """Words, positions and the first of two kinds of sentence, then blocks."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.words = nn.Embedding.from_pretrained(torch.empty(config.vocabulary_size, config.dim), freeze=False)
        self.positions = nn.Parameter(torch.empty(config.context_length, config.dim))
        self.kinds = nn.Parameter(torch.empty(2, config.dim))
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.blocks = nn.ModuleList(bert_block(config) for _ in range(config.layers))
        for table in (self.words.weight, self.positions, self.kinds):
            normal_(table, std=0.02)

    def forward(self, ids: Tokens, mask: Mask) -> Sequence:
        """Features of every token; those outside `mask` are not looked at."""
        x = self.norm(self.words(ids) + self.positions[: ids.shape[1]] + self.kinds[0])
        x = F.dropout(x, self.config.dropout, self.training)
        bias = mask_bias(mask)
        for block in self.blocks:
            x = block(x, bias=bias)
        return x


def bert_block(config: BertConfig) -> PostNormBlock:
    """A layer of BERT, with its initialisation."""
    block = PostNormBlock(config.dim, config.heads, config.mlp_dim, "gelu", config.norm_eps, config.dropout)
    initialize_linears(block)
    return block


def mask_bias(mask: Mask) -> Float[Tensor, "batch 1 1 token"]:
    """What keeps attention off tokens outside the mask; every row has a token inside."""
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, float("-inf"))[:, None, None]
