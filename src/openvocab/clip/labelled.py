"""Labels made of captions: the things that a caption names, each a further text of its picture.

The multi-label contrastive loss is GroupViT's (arXiv 2202.11094, section 3.2).
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor

from openvocab.clip.templates import fill
from openvocab.clip.templates import templates as read_templates
from openvocab.clip.tokenizer import Tokenizer
from openvocab.data.loader import Loader
from openvocab.data.nouns import noun_phrases, nouns
from openvocab.data.order import keys_of, uniforms
from openvocab.data.source import text_id
from openvocab.shapes import Batch, Scalar
from openvocab.train.distributed import gather_rows

_LABELS = 4  # of `keys_of`: unlike the purposes of `data.order`


class Labelled:
    """The batches of a loader with `label_tokens` and `label_ids`, a row of `num_labels` for each picture.

    Labels are drawn from the caption's nouns without repetition, each in a random template, and begun again where there
    are too few; a caption that names nothing is its own label. All is a function of seed, step and picture.
    Differs from the paper: there the caption takes every missing place, and makes the batch as long as its captions.

    Args:
        phrases: take nouns with their adjectives.
        templates: see `clip.templates`.
    """

    def __init__(
        self,
        loader: Loader,
        tokenizer: Tokenizer,
        *,
        num_labels: int,
        phrases: bool,
        templates: str,
        context_length: int,
        seed: int,
    ):
        self.loader, self.tokenizer, self.context_length = loader, tokenizer, context_length
        self.num_labels, self.seed = num_labels, seed
        self.templates = read_templates(templates)
        self._find = lru_cache(maxsize=65_536)(noun_phrases if phrases else nouns)

    def stream(self, start_step: int, steps: int) -> Iterator[Batch]:
        for step, batch in enumerate(self.loader.stream(start_step, steps), start_step):
            yield batch | self.labels(batch, step)

    def report(self) -> dict[str, Any]:
        return self.loader.report()

    def labels(self, batch: Batch, step: int) -> Batch:
        """The labels of a step's captions, tokenized as far as the longest one."""
        captions = [self.tokenizer.decode(row) for row in batch["tokens"].tolist()]
        keys = keys_of(self.seed, step, _LABELS, batch["image_ids"].numpy())
        found = [list(self._find(caption)) for caption in captions]
        draws = uniforms(keys, max(map(len, found), default=0) + self.num_labels)
        prompts, ids = [], []
        for caption, names, row in zip(captions, found, draws):
            chosen = [names[place] for place in row[: len(names)].argsort()] or [caption]
            for place in range(self.num_labels):
                label = chosen[place % len(chosen)]
                template = self.templates[int(row[-1 - place] * len(self.templates))] if names else "{}"
                prompts.append(fill(template, label))
                ids.append(text_id(label))
        tokens = self.tokenizer(prompts, self.context_length, truncate=True)
        length = int(self.tokenizer.count_tokens(prompts).max().clamp(max=self.context_length))
        shape = (len(captions), self.num_labels)
        tokens = tokens[:, :length].reshape(*shape, length)
        return {"label_tokens": tokens, "label_ids": torch.tensor(ids).view(shape)}


def multi_label_loss(
    image_embeds: Float[Tensor, "image segment embed"],
    label_embeds: Float[Tensor, "image label embed"],
    logit_scale: Scalar,
    *,
    image_ids: Int[Tensor, " image"],
    label_ids: Int[Tensor, "image label"],
    group: dist.ProcessGroup | None = None,
) -> Scalar:
    """Symmetric InfoNCE between pictures and their M labels, all right answers of a row or column of one weight.

    z_il = exp(logit_scale) max_s image_is . label_l. Of one vector a picture it is the paper's. Of a vector a segment,
    a wrong label must be unlike all segments, and one that fits nothing costs nothing (multiple instance learning).
    Differs from the paper: a label that two pictures share is right for both.
    """
    owners = image_ids[:, None].expand_as(label_ids)
    scaled, texts = image_embeds.float() * logit_scale.exp(), label_embeds.float()
    pictures, labels, of, ids, all_ids = (
        gather_rows(each.contiguous(), group) for each in (scaled, texts, owners, label_ids, image_ids)
    )
    right = (image_ids[:, None] == of.flatten()) | (label_ids[:, :, None] == ids.flatten()).any(1)
    asked = (owners.reshape(-1, 1) == all_ids) | (label_ids.reshape(-1, 1, 1) == ids).any(2)
    rows = (scaled @ labels.flatten(0, 1).T).amax(1)
    columns = (pictures @ texts.flatten(0, 1).T).amax(1).T
    return (_cross_entropy(rows, right) + _cross_entropy(columns, asked)) / 2


def _cross_entropy(logits: Float[Tensor, "row column"], right: Bool[Tensor, "row column"]) -> Scalar:
    """Against targets spread evenly over all that is right."""
    return -(logits.log_softmax(1) * right).sum(1).div(right.sum(1)).mean()
