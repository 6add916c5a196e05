"""Deep fusion: pictures and words look at each other through one matrix of scores (Li et al. 2022, arXiv 2112.03857).

    A = Q(v) K(l)^T / sqrt(head_dim),  v' = v + gamma_v out_v(softmax over words(A) V_l(l)),
                                       l' = l + gamma_l out_l(softmax over places(A^T) V_v(v))

v and l are normalised before, and the sums begin with the normalised ones, as in the official code. Each direction is
one fused attention that computes its own A, so that no matrix of places and words is kept. Left out: dropout.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from openvocab.blocks.attention import attend
from openvocab.blocks.bert import mask_bias
from openvocab.shapes import Mask

Places = Float[Tensor, "batch place dim"]
Words = Float[Tensor, "batch token word_dim"]


class BiAttentionBlock(nn.Module):
    """Gives places what words know, and words what places show; `scale` is gamma at the start."""

    def __init__(self, dim: int, word_dim: int, embed: int, heads: int, scale: float):
        super().__init__()
        self.heads = heads
        self.norm_image, self.norm_text = nn.LayerNorm(dim), nn.LayerNorm(word_dim)
        self.query, self.key = nn.Linear(dim, embed), nn.Linear(word_dim, embed)
        self.values_image, self.values_text = nn.Linear(dim, embed), nn.Linear(word_dim, embed)
        self.out_image, self.out_text = nn.Linear(embed, dim), nn.Linear(embed, word_dim)
        self.gamma_image = nn.Parameter(torch.full((dim,), scale))
        self.gamma_text = nn.Parameter(torch.full((word_dim,), scale))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, places: Places, words: Words, mask: Mask) -> tuple[Places, Words]:
        """Words outside `mask` are not looked at."""
        places, words = self.norm_image(places), self.norm_text(words)
        q, k = self._split(self.query(places)), self._split(self.key(words))
        seen, _ = attend(q, k, self._split(self.values_text(words)), bias=mask_bias(mask))
        shown, _ = attend(k, q, self._split(self.values_image(places)))
        joined = (found.transpose(1, 2).flatten(2) for found in (seen, shown))
        image, text = (out(found) for out, found in zip((self.out_image, self.out_text), joined))
        return places + self.gamma_image * image, words + self.gamma_text * text

    def _split(self, x: Float[Tensor, "batch row embed"]) -> Float[Tensor, "batch head row head_dim"]:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)
