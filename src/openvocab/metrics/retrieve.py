"""Retrieval between pictures and texts, several texts for a picture, without the whole similarity matrix.

A query counts as answered at k when any of its positives is among the k best candidates (the field's R@k). The rank of
a query is one plus the number of negatives that score at least as high as its best positive: a tie goes against us, so
that a collapsed model scores nothing, and the other positives of the query are not in its way.
"""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from openvocab.shapes import ImageEmbeds, TextEmbeds

RECALLS = (1, 5, 10)
_CHUNK_NUMBERS = 1 << 22


def retrieval(
    image_embeds: ImageEmbeds,
    text_embeds: TextEmbeds,
    text_image_index: Int[Tensor, " text"],
    ks: Sequence[int] = RECALLS,
) -> dict[str, float]:
    """Recalls and median ranks in both directions: `t2i_r@1 ... i2t_r@10 t2i_median_rank i2t_median_rank`.

    Args:
        text_image_index: which picture each text describes; a picture may have any number of texts. Pictures without
            one are candidates, not queries.

    Raises:
        ValueError: an index beyond the pictures, or no texts.
    """
    return summarize_ranks(*retrieval_ranks(image_embeds, text_embeds, text_image_index), ks)


def summarize_ranks(
    t2i: Int[Tensor, " text"],
    i2t: Int[Tensor, " query_image"],
    ks: Sequence[int] = RECALLS,
    ways: tuple[str, str] = ("t2i", "i2t"),
) -> dict[str, float]:
    """The figures of `retrieval` from the ranks of both directions."""
    out: dict[str, float] = {}
    for name, ranks in zip(ways, (t2i, i2t)):
        for k in ks:
            out[f"{name}_r@{k}"] = (ranks <= k).double().mean().item()
    for name, ranks in zip(ways, (t2i, i2t)):
        out[f"{name}_median_rank"] = ranks.double().quantile(0.5).item()
    return out


def retrieval_ranks(
    image_embeds: ImageEmbeds, text_embeds: TextEmbeds, text_image_index: Int[Tensor, " text"]
) -> tuple[Int[Tensor, " text"], Int[Tensor, " query_image"]]:
    """The rank of each text's picture among the pictures, and of each described picture's best text among the texts."""
    images, texts = len(image_embeds), len(text_embeds)
    if not texts or not images:
        raise ValueError(f"retrieval needs pictures and texts, found {images} and {texts}")
    if int(text_image_index.min()) < 0 or int(text_image_index.max()) >= images:
        raise ValueError(f"text_image_index points outside the {images} pictures")
    t2i = _ranks(text_embeds, image_embeds, text_image_index, torch.arange(images, device=image_embeds.device))
    described = text_image_index.unique()
    i2t = _ranks(image_embeds[described], text_embeds, described, text_image_index)
    return t2i, i2t


def score_ranks(
    blocks: Iterable[Float[Tensor, "_ clip"]], text_clip_index: Int[Tensor, " text"]
) -> tuple[Int[Tensor, " text"], Int[Tensor, " query_clip"]]:
    """Ranks where each text is scored with each clip, some texts at a time; several texts for a clip (MSVD's protocol).

    A text is asked for its clip among the clips. A clip is asked for its own among the described clips, each of which
    scores what its best text does. Ties count against us, see above.
    """
    t2v, start, best = [], 0, torch.empty(0)
    for scores in blocks:
        own = text_clip_index[start : start + len(scores)]
        if not start:
            best = scores.new_full((scores.shape[1], scores.shape[1]), float("-inf"))
        t2v.append((~(scores < scores.gather(1, own[:, None]))).sum(1).clamp(min=1))
        best.scatter_reduce_(0, own[:, None].expand_as(scores), scores, "amax")
        start += len(scores)
    described = text_clip_index.unique()
    best = best[described][:, described]
    return torch.cat(t2v), (~(best < best.diagonal())).sum(0).clamp(min=1)


def _ranks(
    queries: Float[Tensor, "query embed"],
    candidates: Float[Tensor, "candidate embed"],
    query_images: Int[Tensor, " query"],
    candidate_images: Int[Tensor, " candidate"],
) -> Int[Tensor, " query"]:
    ranks = []
    rows = max(1, _CHUNK_NUMBERS // len(candidates))
    for start in range(0, len(queries), rows):
        scores = queries[start : start + rows].float() @ candidates.float().T
        positive = query_images[start : start + rows].unsqueeze(1) == candidate_images
        best = scores.masked_fill(~positive, float("-inf")).amax(dim=1, keepdim=True)
        # Not `scores >= best`: a score that is not a number has to count against us too.
        ranks.append(1 + (~(scores < best) & ~positive).sum(dim=1))
    return torch.cat(ranks)
