"""Vectors to codes of a codebook and back, with a gradient: nearest codes (VQ-VAE, arXiv 1711.00937), Gumbel-softmax.

    k = argmin_j |z - e_j|,   q = z + sg(e_k - z),   loss = |sg z - e_k|^2 + beta |z - sg e_k|^2

The codebook e learns from the first term of the loss, or as a moving average of the vectors that choose each code.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from openvocab.shapes import Scalar

Vectors = Float[Tensor, "image dim rows cols"]
Codes = Int[Tensor, "image rows cols"]


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizerConfig:
    """A codebook and how it learns.

    Fields:
        method: codes move by `gradient`, by moving average (`ema`), or are drawn by a relaxed softmax (`gumbel`).
        commitment: beta. `legacy` puts it on the other term, as taming-transformers does by mistake; of `gradient`.
        decay: of the moving averages, for `ema` and `restart_below`.
        restart_below: a code chosen less often than this per step on average is put on a vector of the batch; 0: never.
        cosine: vectors and codes are compared, and decoded, at length one.
        straight_through: False gives the encoder no gradient of the decoder, a control.
        kl_weight, temperature: of `gumbel`.
    """

    num_codes: int
    dim: int
    method: Literal["gradient", "ema", "gumbel"] = "gradient"
    commitment: float = 0.25
    legacy: bool = False
    decay: float = 0.99
    restart_below: float = 0.0
    cosine: bool = False
    straight_through: bool = True
    kl_weight: float = 5e-4
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.legacy and self.method != "gradient":
            raise ValueError(f"QuantizerConfig: legacy is of method gradient, the method is {self.method}")
        if self.method == "gumbel" and (self.restart_below or self.cosine):
            raise ValueError("QuantizerConfig: restart_below and cosine are of nearest codes, the method is gumbel")


@dataclass(frozen=True)
class Quantized:
    """What becomes of vectors: those of their codes, which codes, and what learning adds to the loss."""

    vectors: Vectors
    codes: Codes
    loss: Scalar


class VectorQuantizer(nn.Module):
    """Nearest codes. `usage` and `sums` are moving averages: how often a code is chosen, and the vectors it stands for.

    They are kept where codes are restarted or moved by them; these happen in training, in the forward pass.
    """

    usage: Tensor
    sums: Tensor

    def __init__(self, config: QuantizerConfig):
        super().__init__()
        self.config = config
        count, dim = config.num_codes, config.dim
        self.embedding = nn.Embedding(count, dim)
        nn.init.uniform_(self.embedding.weight, -1 / count, 1 / count)
        if config.method == "ema":
            self.embedding.weight.requires_grad_(False)
            self.register_buffer("sums", self.embedding.weight.detach().clone())
        if config.method == "ema" or config.restart_below:
            self.register_buffer("usage", torch.ones(count))

    @property
    def codebook(self) -> Float[Tensor, "code dim"]:
        """The vector of each code as it is decoded."""
        weight = self.embedding.weight
        return F.normalize(weight, dim=1) if self.config.cosine else weight

    def forward(self, z: Vectors) -> Quantized:
        config = self.config
        z = F.normalize(z, dim=1) if config.cosine else z
        codes = self.codes(z)
        if self.training and config.restart_below:
            self._restart(z)
            codes = self.codes(z)
        vectors = self.vectors(codes)
        first, second = F.mse_loss(vectors, z.detach()), F.mse_loss(z, vectors.detach())
        if config.method == "ema":
            loss = config.commitment * second
        else:
            loss = config.commitment * first + second if config.legacy else first + config.commitment * second
        if self.training and hasattr(self, "usage"):
            self._follow(z, codes)
        return Quantized(z + (vectors - z).detach() if config.straight_through else vectors, codes, loss)

    @torch.no_grad()
    def codes(self, z: Vectors) -> Codes:
        """The nearest code of each vector."""
        flat = (F.normalize(z, dim=1) if self.config.cosine else z).permute(0, 2, 3, 1).flatten(0, 2)
        book = self.codebook
        nearest = torch.addmm(book.square().sum(1), flat, book.T, alpha=-2).argmin(1)
        return nearest.view(z.shape[0], *z.shape[2:])

    def vectors(self, codes: Codes) -> Vectors:
        return F.embedding(codes, self.codebook).permute(0, 3, 1, 2)

    @torch.no_grad()
    def _follow(self, z: Vectors, codes: Codes) -> None:
        """N <- decay N + (1 - decay) n, the same of sums; e = sums / N, N smoothed (VQ-VAE, appendix A.1)."""
        chosen, rest = codes.flatten(), 1 - self.config.decay
        counts = torch.bincount(chosen, minlength=self.config.num_codes)
        self.usage.lerp_(counts.to(self.usage), rest)
        if self.config.method == "ema":
            flat = z.detach().permute(0, 2, 3, 1).flatten(0, 2)
            self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, chosen, flat), rest)
            total, eps = self.usage.sum(), 1e-5
            smooth = (self.usage + eps) / (total + self.config.num_codes * eps) * total
            self.embedding.weight.copy_(self.sums / smooth[:, None])

    @torch.no_grad()
    def _restart(self, z: Vectors) -> None:
        dead = self.usage < self.config.restart_below
        if dead.any():
            flat = z.detach().permute(0, 2, 3, 1).flatten(0, 2)
            fresh = flat[torch.randint(len(flat), (int(dead.sum()),), device=flat.device)]
            self.embedding.weight[dead], self.usage[dead] = fresh, 1.0
            if self.config.method == "ema":
                self.sums[dead] = fresh


class GumbelQuantizer(nn.Module):
    """Codes drawn by a relaxed softmax over logits (taming's GumbelQuantize); in eval mode the likeliest."""

    def __init__(self, config: QuantizerConfig):
        super().__init__()
        self.config = config
        self.logits = nn.Conv2d(config.dim, config.num_codes, 1)
        self.embedding = nn.Embedding(config.num_codes, config.dim)

    @property
    def codebook(self) -> Float[Tensor, "code dim"]:
        return self.embedding.weight

    def forward(self, z: Vectors) -> Quantized:
        logits = self.logits(z)
        if self.training:
            chosen = F.gumbel_softmax(logits, self.config.temperature, hard=self.config.straight_through, dim=1)
        else:
            chosen = one_hot(logits.argmax(1), self.config.num_codes).to(logits)
        vectors = torch.einsum("bnhw,nd->bdhw", chosen, self.embedding.weight)
        return Quantized(vectors, chosen.argmax(1), self.config.kl_weight * uniform_kl(logits).mean())

    def codes(self, z: Vectors) -> Codes:
        return self.logits(z).argmax(1)

    def vectors(self, codes: Codes) -> Vectors:
        return F.embedding(codes, self.embedding.weight).permute(0, 3, 1, 2)


def uniform_kl(logits: Float[Tensor, "image code rows cols"]) -> Float[Tensor, "image rows cols"]:
    """KL(q || uniform) = sum_k q_k ln(K q_k) at each place, q the softmax of its logits."""
    log_q = logits.log_softmax(1)
    return (log_q.exp() * log_q).sum(1) + math.log(logits.shape[1])


def one_hot(codes: Codes, num_codes: int) -> Float[Tensor, "image code rows cols"]:
    return F.one_hot(codes, num_codes).permute(0, 3, 1, 2).float()


def spread(codes: Codes, num_codes: int) -> dict[str, Scalar]:
    """Perplexity exp(-sum_k p_k ln p_k) of the codes of a batch, and the share of the codebook that it uses."""
    shares = torch.bincount(codes.flatten(), minlength=num_codes).float() / codes.numel()
    return {"perplexity": torch.special.entr(shares).sum().exp(), "usage": (shares > 0).float().mean()}
