"""Predicting the words of a caption instead of contrasting it: the baselines that CLIP was measured against.

Section 2.3 and figure 2 of CLIP (arXiv 2103.00020) compare a captioner, the prediction of a bag of words, and contrast.
With `group`, the mean over ranks of each loss is the loss of the whole batch, as in `clip.objectives`.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from openvocab.clip.objectives import ImageIds, TextIds, contrastive_loss
from openvocab.shapes import ImageEmbeds, Scalar, TextEmbeds, Tokens
from openvocab.train.distributed import mean_over_ranks, world_size


def bag_of_words_loss(
    logits: Float[Tensor, "image vocab"],
    tokens: Int[Tensor, "image token"],
    *,
    ignore: Sequence[int],
    group: dist.ProcessGroup | None = None,
) -> Scalar:
    """Cross-entropy of a softmax over the vocabulary against the caption's word counts, divided by their sum.

    -1/N sum_n sum_k y_nk log softmax_k(logits_n), y_nk the share of word k among the words of caption n. It is averaged
    over the captions that have a word.

    Args:
        ignore: ids that are no words (padding, start, end).

    Source: the multi-class logistic loss of Joulin et al. (arXiv 1511.02251), as CLIP's section 2.3 recalls it.
    """
    words = torch.isin(tokens, torch.tensor(list(ignore), device=tokens.device, dtype=tokens.dtype), invert=True)
    word_log_probabilities = logits.float().log_softmax(1).gather(1, tokens) * words
    lengths = words.sum(1)
    return _mean(-(word_log_probabilities.sum(1) / lengths.clamp(min=1)).sum(), (lengths > 0).sum(), group)


def caption_loss(
    logits: Float[Tensor, "text token vocab"], tokens: Tokens, *, pad: int, group: dist.ProcessGroup | None = None
) -> Scalar:
    """Language modelling of captions: the mean cross-entropy of a token, padding left out.

    -mean over n, t of log P(y_nt | y_n,<t, image_n), where `logits[n, t]` were made from the tokens before t. A decoder
    that reads `tokens[:, :-1]` is therefore compared with `tokens[:, 1:]`.

    Source: CoCa (arXiv 2205.01917), captioning loss; VirTex (arXiv 2006.06666) trains an image tower by it.
    """
    total = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), tokens.flatten(), ignore_index=pad, reduction="sum"
    )
    return _mean(total, (tokens != pad).sum(), group)


def contrastive_captioning_loss(
    image_embeds: ImageEmbeds,
    text_embeds: TextEmbeds,
    logit_scale: Scalar,
    logits: Float[Tensor, "text token vocab"],
    tokens: Tokens,
    *,
    pad: int,
    contrastive_weight: float = 1.0,
    caption_weight: float = 2.0,
    image_ids: ImageIds | None = None,
    text_ids: TextIds | None = None,
    group: dist.ProcessGroup | None = None,
) -> dict[str, Scalar]:
    """Both at once: `loss` = contrastive_weight * `contrastive` + caption_weight * `caption`.

    Source: CoCa (arXiv 2205.01917), joint loss; the default weights are those of its pre-training.
    """
    contrastive = contrastive_loss(
        image_embeds, text_embeds, logit_scale, image_ids=image_ids, text_ids=text_ids, group=group
    )
    caption = caption_loss(logits, tokens, pad=pad, group=group)
    loss = contrastive_weight * contrastive + caption_weight * caption
    return {"loss": loss, "contrastive": contrastive, "caption": caption}


def _mean(total: Scalar, count: Int[Tensor, ""], group: dist.ProcessGroup | None) -> Scalar:
    """total / count, where ranks may hold different counts; zero if nobody has anything to count."""
    per_rank = mean_over_ranks(count.to(total.dtype), group)
    return total / per_rank.clamp(min=1 / world_size(group))
