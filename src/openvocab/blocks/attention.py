"""Attention: one fused self-attention for every tower, and the cross-attention that the pooling heads use."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from openvocab.shapes import Sequence

Weights = Float[Tensor, "batch head query token"]
"""Attention weights: every query's distribution over the tokens it may look at."""
Bias = Float[Tensor, "... #query token"]
"""Added to the attention scores before the softmax; broadcasts over batch and head, -inf forbids."""
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention itself, in place of a bias: the heads' queries, keys and values to their results."""


class MultiHeadAttention(nn.Module):
    """Self-attention, softmax(q k^T / sqrt(head_dim) + bias) v, with queries, keys and values from one product."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        if dim % heads:
            raise ValueError(f"attention: {heads} heads do not divide dim {dim}")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(
        self, x: Sequence, *, bias: Bias | Attend | None = None, causal: bool = False, weights: bool = False
    ) -> tuple[Sequence, Weights | None]:
        batch, token, dim = x.shape
        # Split along an inner axis: the gradients are then stacked in the layout that the product wants.
        q, k, v = self.qkv(x).view(batch, token, 3, self.heads, dim // self.heads).unbind(2)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        if callable(bias):
            values, attention = bias(q, k, v), None
        else:
            values, attention = attend(q, k, v, bias=bias, causal=causal, weights=weights)
        return self.out(values.transpose(1, 2).reshape(batch, token, dim)), attention

    def at(self, x: Sequence, position: Int[Tensor, " batch"], *, causal: bool = False) -> Float[Tensor, "batch 1 dim"]:
        """What `forward` gives for one token of each row, without the work for the others."""
        batch, token, dim = x.shape
        weight, bias = self.qkv.weight, self.qkv.bias
        q = F.linear(x[torch.arange(batch, device=x.device), position].unsqueeze(1), weight[:dim], bias[:dim])
        kv = F.linear(x, weight[dim:], bias[dim:]).view(batch, token, 2, self.heads, dim // self.heads)
        k, v = (part.transpose(1, 2) for part in kv.unbind(2))
        q = q.view(batch, 1, self.heads, dim // self.heads).transpose(1, 2)
        ahead = None
        if causal:
            ahead = torch.arange(token, device=x.device) <= position.view(batch, 1, 1, 1)
        values = F.scaled_dot_product_attention(q, k, v, attn_mask=ahead)
        return self.out(values.reshape(batch, 1, dim))


class CrossAttention(nn.Module):
    """Queries look at a sequence; the heads' results are joined and not projected."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        if dim % heads:
            raise ValueError(f"attention: {heads} heads do not divide dim {dim}")
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)

    def forward(
        self, queries: Float[Tensor, "batch query dim"], x: Sequence, *, weights: bool = False
    ) -> tuple[Float[Tensor, "batch query dim"], Weights | None]:
        batch, token, dim = x.shape
        q = self.q(queries).view(batch, -1, self.heads, dim // self.heads).transpose(1, 2)
        kv = self.kv(x).view(batch, token, 2, self.heads, dim // self.heads)
        k, v = (part.transpose(1, 2) for part in kv.unbind(2))
        values, attention = attend(q, k, v, weights=weights)
        return values.transpose(1, 2).reshape(batch, -1, dim), attention


def attend(
    q: Float[Tensor, "batch head query head_dim"],
    k: Float[Tensor, "batch head token head_dim"],
    v: Float[Tensor, "batch head token head_dim"],
    *,
    bias: Bias | None = None,
    causal: bool = False,
    weights: bool = False,
) -> tuple[Float[Tensor, "batch head query head_dim"], Weights | None]:
    """Scaled dot-product attention; asking for the weights takes the explicit, differentiable softmax."""
    if causal and (weights or bias is not None):
        ahead = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).triu(1)
        mask = q.new_zeros(ahead.shape).masked_fill(ahead, float("-inf"))
        bias = mask if bias is None else bias.to(q.dtype) + mask
        causal = False
    elif bias is not None:
        bias = bias.to(q.dtype)
    if not weights:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal), None
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    attention = (scores if bias is None else scores + bias).softmax(dim=-1)
    return attention @ v, attention
