"""Drawing the next token from logits: temperature, the k most probable, the most probable that make up a share p."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

Logits = Float[Tensor, "row vocab"]


def draw(
    logits: Logits,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, " row"]:
    """One token of each row; a temperature of 0 takes the most probable.

    Raises:
        ValueError: a negative temperature, `top_k` below 1, or `top_p` outside (0, 1].
    """
    if temperature < 0:
        raise ValueError(f"temperature is {temperature:g}, which must not be negative")
    if temperature == 0:
        return logits.argmax(1)
    kept = keep(logits.float() / temperature, top_k, top_p)
    return kept.softmax(1).multinomial(1, generator=generator)[:, 0]


def keep(logits: Logits, top_k: int | None = None, top_p: float | None = None) -> Logits:
    """Logits with those at -inf that are not among the `top_k` most probable, or outside the nucleus of `top_p`.

    The nucleus (arXiv 1904.09751) is the smallest set of most probable tokens with at least that share.
    """
    if top_k is not None:
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}, expected at least 1")
        least = logits.topk(min(top_k, logits.shape[1]), dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if top_p is not None:
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p is {top_p:g}, expected a share above 0 and at most 1")
        ordered, order = logits.sort(dim=1, descending=True)
        shares = ordered.softmax(1)
        before = shares.cumsum(1) - shares
        outside = torch.zeros_like(before, dtype=torch.bool).scatter(1, order, before >= top_p)
        logits = logits.masked_fill(outside, float("-inf"))
    return logits


def guide(given: Logits, null: Logits, scale: float) -> Logits:
    """Classifier-free guidance (arXiv 2207.12598): what the condition changes, `scale` times."""
    return null + scale * (given - null)
