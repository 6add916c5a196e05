"""The pre-norm transformer that image and text towers share: activation, MLP, block, stack, initialisation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from openvocab.blocks.attention import Attend, Bias, MultiHeadAttention, Weights
from openvocab.shapes import Sequence

Activation = Literal["quick_gelu", "gelu", "gelu_tanh", "relu"]
LayerBias = Bias | Mapping[int, Bias | Attend]
"""An attention bias for every layer, or one per layer by its number; there attention itself may stand in its place."""


class _QuickGELU(torch.autograd.Function):
    """x sigmoid(1.702 x) = silu(1.702 x) / 1.702, so that forward and backward are each one fused kernel and a scaling.

    Only x is kept for the backward pass.
    """

    @staticmethod
    def forward(ctx, x):  # type: ignore[override]
        ctx.save_for_backward(x)
        return F.silu(1.702 * x, inplace=True).mul_(1 / 1.702)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad, 1.702 * x)


def quick_gelu(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """x sigmoid(1.702 x), the sigmoid approximation of GELU (arXiv 1606.08415, section 2)."""
    return _QuickGELU.apply(x)  # type: ignore[return-value]


def gelu_tanh(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The tanh approximation of GELU (arXiv 1606.08415, section 2)."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "quick_gelu": quick_gelu,
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "relu": F.relu,
}


class MLP(nn.Module):
    """down(activation(up(x))); `out_dim` is `dim` unless given."""

    def __init__(self, dim: int, hidden_dim: int, activation: Activation, out_dim: int | None = None):
        super().__init__()
        self.up = nn.Linear(dim, hidden_dim)
        self.activation = ACTIVATIONS[activation]
        self.down = nn.Linear(hidden_dim, out_dim or dim)

    def forward(self, x: Sequence) -> Float[Tensor, "batch token out"]:
        return self.down(self.activation(self.up(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    LayerNorm keeps its statistics in float32 whatever the precision of x.
    """

    def __init__(
        self, dim: int, heads: int, mlp_dim: int, activation: Activation, norm_eps: float, dropout: float = 0.0
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attention = MultiHeadAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = MLP(dim, mlp_dim, activation)
        self.dropout = dropout

    def forward(
        self,
        x: Sequence,
        *,
        bias: Bias | Attend | None = None,
        causal: bool = False,
        weights: bool = False,
        only: Int[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, "batch _ dim"], Weights | None]:
        """With `only`, what comes of that one token of each row, without the work for the others."""
        if only is None:
            attended, attention = self.attention(self.norm1(x), bias=bias, causal=causal, weights=weights)
        else:
            attended, attention = self.attention.at(self.norm1(x), only, causal=causal), None
            x = x[torch.arange(x.shape[0], device=x.device), only].unsqueeze(1)
        x = x + F.dropout(attended, self.dropout, self.training)
        return x + F.dropout(self.mlp(self.norm2(x)), self.dropout, self.training), attention


class PostNormBlock(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x)): the order of the first transformer (arXiv 1706.03762) and BERT."""

    def __init__(
        self, dim: int, heads: int, mlp_dim: int, activation: Activation, norm_eps: float, dropout: float = 0.0
    ):
        super().__init__()
        self.attention = MultiHeadAttention(dim, heads)
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = MLP(dim, mlp_dim, activation)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.dropout = dropout

    def forward(self, x: Sequence, *, bias: Bias | None = None) -> Sequence:
        attended, _ = self.attention(x, bias=bias)
        x = self.norm1(x + F.dropout(attended, self.dropout, self.training))
        return self.norm2(x + F.dropout(self.mlp(x), self.dropout, self.training))


@dataclass(frozen=True)
class Hidden:
    """What a stack of blocks returns: the last tokens, the tokens after chosen layers, the attention of every layer."""

    tokens: Float[Tensor, "batch token dim"]
    layers: tuple[Float[Tensor, "batch token dim"], ...] = ()
    weights: tuple[Float[Tensor, "batch head token token"], ...] = ()


class Transformer(nn.ModuleList):
    """Blocks one after the other. `checkpointing` recomputes each block in the backward pass to save memory."""

    def __init__(
        self,
        layers: int,
        dim: int,
        heads: int,
        mlp_dim: int,
        activation: Activation,
        norm_eps: float,
        dropout: float = 0.0,
    ):
        super().__init__(Block(dim, heads, mlp_dim, activation, norm_eps, dropout) for _ in range(layers))
        self.checkpointing = False

    def forward(
        self,
        x: Sequence,
        *,
        layers: tuple[int, ...] = (),
        attention: bool = False,
        bias: LayerBias | None = None,
        causal: bool = False,
        only: Int[Tensor, " batch"] | None = None,
        before: Callable[[Sequence], Sequence] | None = None,
    ) -> Hidden:
        """Runs every block.

        Args:
            layers: numbers of the blocks (from 0) whose output tokens are wanted too, returned in this order; -1 are
                the tokens that enter the first one.
            attention: return every block's attention weights, differentiable.
            bias: added to the attention scores of every layer, or of those it names by number.
            only: the one position of each row that is wanted. The last block then computes nothing else, and `tokens`
                holds one token a row.
            before: what becomes of the tokens on their way into each block; of these the block makes its residual too.

        Raises:
            ValueError: a layer that does not exist, or `only` together with layers, attention or a bias.
        """
        if only is not None and (layers or attention or bias is not None):
            raise ValueError("only=... computes one token: it goes with no layers, attention or bias")
        check_layers(tuple(number for number in layers if number != -1), len(self))
        if isinstance(bias, Mapping):
            check_layers(tuple(bias), len(self))
        kept: dict[int, Tensor] = {-1: x}
        weights = []
        for number, block in enumerate(self):
            x = x if before is None else before(x)
            here = bias.get(number) if isinstance(bias, Mapping) else bias
            asked: dict[str, Any] = {"bias": here, "causal": causal, "weights": attention}
            if only is not None and number == len(self) - 1:
                asked["only"] = only
            if self.checkpointing and torch.is_grad_enabled():
                x, seen = checkpoint(block, x, **asked, use_reentrant=False)  # type: ignore[misc]
            else:
                x, seen = block(x, **asked)
            if number in layers:
                kept[number] = x
            if seen is not None:
                weights.append(seen)
        return Hidden(x, tuple(kept[number] for number in layers), tuple(weights))


def check_layers(layers: tuple[int, ...], count: int) -> None:
    """Raises ValueError for a layer number that a stack of `count` layers does not have."""
    for number in layers:
        if not 0 <= number < count:
            raise ValueError(f"layer {number} does not exist: layers are numbered 0 to {count - 1}")


def normal_(tensor: Tensor, std: float) -> None:
    """Fills with N(0, std^2), except on the meta device, where torch would load its compiler to do nothing."""
    if not tensor.is_meta:
        nn.init.normal_(tensor, std=std)


def initialize_blocks(blocks: Transformer, dim: int) -> None:
    """The published initialisation of text towers, used for image towers too: none was published for those.

    qkv: dim^-1/2; everything written to the residual stream: (2 layers dim)^-1/2; mlp.up: (2 dim)^-1/2;
    attention biases 0; the rest is PyTorch's default.
    """
    attention, residual, up = dim**-0.5, (2 * max(1, len(blocks)) * dim) ** -0.5, (2 * dim) ** -0.5
    for block in blocks:
        normal_(block.attention.qkv.weight, std=attention)  # type: ignore[union-attr]
        nn.init.zeros_(block.attention.qkv.bias)  # type: ignore[union-attr]
        normal_(block.attention.out.weight, std=residual)  # type: ignore[union-attr]
        nn.init.zeros_(block.attention.out.bias)  # type: ignore[union-attr]
        normal_(block.mlp.up.weight, std=up)  # type: ignore[union-attr]
        normal_(block.mlp.down.weight, std=residual)  # type: ignore[union-attr]


def initialize_linears(module: nn.Module) -> None:
    """The initialisation of BERT: weights N(0, 0.02^2), biases 0, in every linear layer of the module."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)


Projection = Literal["linear", "affine", "none", "mlp"]
"""From a tower to the shared space: a matrix, a matrix with a bias, nothing (dim is embed_dim), or ConVIRT's network
with one hidden layer of the tower's width (arXiv 2010.00747)."""


def projection(kind: Projection, dim: int, embed_dim: int) -> nn.Module:
    """The layer that maps pooled or token features of a tower into the shared space; its weights have std dim^-1/2."""
    if kind == "none":
        if dim != embed_dim:
            raise ValueError(f"projection 'none' needs dim {dim} to equal embed_dim {embed_dim}")
        return nn.Identity()
    if kind == "mlp":
        return nn.Sequential(projection("affine", dim, dim), nn.ReLU(), projection("affine", dim, embed_dim))
    layer = nn.Linear(dim, embed_dim, bias=kind == "affine")
    normal_(layer.weight, std=dim**-0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
