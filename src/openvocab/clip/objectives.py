"""The contrastive objectives: symmetric InfoNCE and the pairwise sigmoid loss, exact at any batch size.

Both split into a sum over all pairs, which `clip.tiles` computes without holding the B x B matrix, and a sum over the
positive pairs, which needs only sums of rows per group of equal ids. Several positives therefore cost O(B) memory too.

Across ranks (`group`) each rank computes its own rows of both directions against everybody's gathered rows. The mean
over ranks of what it returns is the loss of the whole batch, and averaged gradients are the whole batch's gradient,
that of the temperature included (OpenAI CLIP, arXiv 2103.00020, section 2.5, shards the similarities in this way).
"""

from typing import TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor

from openvocab.clip.tiles import sum_log_sum_exp, sum_softplus
from openvocab.shapes import ImageEmbeds, Logits, Scalar, TextEmbeds
from openvocab.train.distributed import gather_rows, rank

ImageIds = Int[Tensor, " image"]
TextIds = Int[Tensor, " text"]
Groupings = tuple[tuple[int, Int[Tensor, " _"]], ...]
MaybeRows = TypeVar("MaybeRows", Tensor, Tensor | None)


def contrastive_loss(
    image_embeds: ImageEmbeds,
    text_embeds: TextEmbeds,
    logit_scale: Scalar,
    *,
    image_ids: ImageIds | None = None,
    text_ids: TextIds | None = None,
    group: dist.ProcessGroup | None = None,
    tile: int | None = None,
) -> Scalar:
    """Symmetric InfoNCE with any number of positives: the mean of both directions' cross-entropies.

    With z_ij = exp(logit_scale) image_i . text_j and P(i) the positives of i, one direction is
    mean_i ( log sum_j exp(z_ij) - 1/|P(i)| sum_{j in P(i)} z_ij ), the other the same over columns. The pair (i, j) is
    positive if i = j or any given ids of i and j are equal.

    Args:
        image_embeds: unit rows; row i belongs with row i of `text_embeds`.
        text_embeds: unit rows; rows beyond the number of images are hard negatives: captions that every image is
            compared with but that ask for no image themselves (with a true caption's id, they are positives).
        logit_scale: the logarithm of the scale.
        image_ids: equal ids are the same picture, on every rank alike.
        text_ids: equal ids are the same caption, on every rank alike; one for each row of `text_embeds`.
        group: the ranks that share the batch, each with as many rows as the others; None for this process alone.
        tile: side of the square tiles of similarities held at a time; None picks it.

    Raises:
        ValueError: sizes that do not fit each other, or a tile below one.

    Source: CLIP (arXiv 2103.00020) figure 3; several positives: SupCon (arXiv 2004.11362) equation 2; hard negative
    captions: NegCLIP (arXiv 2210.01936) section 4.
    """
    images, texts = _checked(image_embeds, text_embeds, image_ids, text_ids, tile)
    count, scale = len(images), logit_scale.to(images.dtype).exp()
    all_images, all_texts = _everybody(images, count, group), _everybody(texts, count, group)
    groupings = _groupings(_everybody(image_ids, count, group), _everybody(text_ids, count, group))
    queries = texts[:count]
    if group is None:
        total = sum_log_sum_exp(images, all_texts, scale, count, tile)
    else:
        total = sum_log_sum_exp(images, all_texts, scale, 0, tile) + sum_log_sum_exp(
            queries, all_images, scale, 0, tile
        )
    for rows, keys in ((images, all_texts), (queries, all_images)):
        positives, how_many = _positives(keys, groupings, count, group)
        total = total - scale * (rows * positives).sum(1).div(how_many).sum()
    return total / (2 * count)


def equal_label_loss(
    image_embeds: ImageEmbeds,
    text_embeds: TextEmbeds,
    logit_scale: Scalar,
    labels: ImageIds,
    *,
    group: dist.ProcessGroup | None = None,
) -> Scalar:
    """The mean of both directions' `divergence_from_equals`; it holds the B x B matrix.

    Args:
        labels: of row i of both, on every rank alike.

    Source: ActionCLIP (arXiv 2109.08472) equations 3 and 4.
    """
    images, texts = _checked(image_embeds, text_embeds, labels, labels, None)
    scale = logit_scale.to(images.dtype).exp()
    all_images, all_texts, all_labels = (_everybody(rows, len(images), group) for rows in (images, texts, labels))
    equal = labels[:, None] == all_labels
    ways = (scale * images @ all_texts.T, scale * texts @ all_images.T)
    return torch.stack([divergence_from_equals(logits, equal) for logits in ways]).mean()


def divergence_from_equals(logits: Logits, equal: Bool[Tensor, "image text"], sharpness: float = 10.0) -> Scalar:
    """The mean over rows of KL(softmax(sharpness equal) || softmax(logits)): equals share nearly all of the mass."""
    target = (sharpness * equal.to(logits.dtype)).softmax(dim=1)
    return torch.nn.functional.kl_div(logits.log_softmax(dim=1), target, reduction="batchmean")


def sigmoid_loss(
    image_embeds: ImageEmbeds,
    text_embeds: TextEmbeds,
    logit_scale: Scalar,
    logit_bias: Scalar,
    *,
    image_ids: ImageIds | None = None,
    text_ids: TextIds | None = None,
    group: dist.ProcessGroup | None = None,
    tile: int | None = None,
) -> Scalar:
    """Pairwise sigmoid loss: every pair is its own two-way question, summed over pairs and divided by B.

    -1/B sum_ij log sigmoid(l_ij z_ij) = 1/B ( sum_ij log(1 + exp(z_ij)) - sum over positive pairs of z_ij ), with
    z_ij = exp(logit_scale) image_i . text_j + logit_bias and l_ij = +1 for positives, -1 for all others. Arguments and
    errors are those of `contrastive_loss`; its hard negatives are further negatives of every image here too.

    Source: SigLIP (arXiv 2303.15343) section 3.2 and algorithm 1.
    """
    images, texts = _checked(image_embeds, text_embeds, image_ids, text_ids, tile)
    count, scale, bias = len(images), logit_scale.to(images.dtype).exp(), logit_bias.to(images.dtype)
    all_texts = _everybody(texts, count, group)
    groupings = _groupings(_everybody(image_ids, count, group), _everybody(text_ids, count, group))
    positives, how_many = _positives(all_texts, groupings, count, group)
    positive_logits = scale * (images * positives).sum() + bias * how_many.sum()
    return (sum_softplus(images, all_texts, scale, bias, tile) - positive_logits) / count


def _checked(
    image_embeds: Tensor, text_embeds: Tensor, image_ids: Tensor | None, text_ids: Tensor | None, tile: int | None
) -> tuple[Tensor, Tensor]:
    """The embeddings in at least float32: at a scale of 100 neighbouring bfloat16 logits are up to 0.5 apart."""
    if not 0 < len(image_embeds) <= len(text_embeds) or image_embeds.shape[1] != text_embeds.shape[1]:
        raise ValueError(
            f"image_embeds {tuple(image_embeds.shape)} and text_embeds {tuple(text_embeds.shape)} do not pair up: "
            "expected the same width and a text row for each image row"
        )
    for name, ids, rows in (("image_ids", image_ids, image_embeds), ("text_ids", text_ids, text_embeds)):
        if ids is not None and len(ids) != len(rows):
            raise ValueError(f"{name} has {len(ids)} entries for {len(rows)} rows of embeddings")
    if tile is not None and tile < 1:
        raise ValueError(f"tile is {tile}, expected at least 1")
    dtype = torch.promote_types(torch.promote_types(image_embeds.dtype, text_embeds.dtype), torch.float32)
    return image_embeds.to(dtype), text_embeds.to(dtype)


def _everybody(rows: MaybeRows, pairs: int, group: dist.ProcessGroup | None) -> MaybeRows:
    """All ranks' rows (embeddings, ids or nothing): first those of all pairs, then those of all hard negatives."""
    if rows is None or group is None:
        return rows
    gathered = gather_rows(rows[:pairs], group)
    if len(rows) > pairs:
        gathered = torch.cat([gathered, gather_rows(rows[pairs:], group)])
    return gathered  # type: ignore[return-value]


def _groupings(image_ids: Tensor | None, text_ids: Tensor | None) -> Groupings:
    """Signed labellings whose sum counts each positive once: same picture + same caption - same in both."""
    if image_ids is None or text_ids is None:
        return tuple((1, ids.unique(return_inverse=True)[1]) for ids in (image_ids, text_ids) if ids is not None)
    pictures, captions = image_ids.unique(return_inverse=True)[1], text_ids.unique(return_inverse=True)[1]
    both = (pictures * len(captions) + captions[: len(pictures)]).unique(return_inverse=True)[1]
    return (1, pictures), (1, captions), (-1, both)


def _positives(
    keys: Float[Tensor, "key embed"], groupings: Groupings, pairs: int, group: dist.ProcessGroup | None
) -> tuple[Float[Tensor, "pair embed"], Float[Tensor, " pair"]]:
    """For each of this rank's pairs, the sum of the keys (everybody's images or texts) that are its positives, and how
    many they are."""
    own = slice(rank(group) * pairs, (rank(group) + 1) * pairs)
    if not groupings:
        return keys[own], keys.new_ones(pairs)
    ones = keys.new_ones(len(keys), 1)
    return _sum_of_equals(keys, groupings, own), _sum_of_equals(ones, groupings, own).squeeze(1)


def _sum_of_equals(keys: Float[Tensor, "key value"], groupings: Groupings, own: slice) -> Float[Tensor, "pair value"]:
    total = keys.new_zeros(own.stop - own.start, keys.shape[1])
    for sign, labels in groupings:
        members = keys[: len(labels)]
        sums = keys.new_zeros(len(labels), keys.shape[1]).index_add(0, labels[: len(members)], members)
        total = total + sign * sums.index_select(0, labels[own])
    return total
