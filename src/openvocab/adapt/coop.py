"""CoOp (Zhou et al. 2021, arXiv 2109.01134): the words around a label are learned, both towers stay frozen.

    t_k = T([v_1, ..., v_M, name_k]),  logits = s f t_k^T  (section 3.2, one context for all labels, label at the end)

The context v begins as the token embeddings of a template, of which it keeps the length. It is trained on embeddings
that are computed once, so there is no augmentation; steps, not epochs, are fixed. Differs from the paper: the learned
text may be mixed with the vocabulary's, text' = normalize((1 - a) T + a t), so that a = 0 is zero-shot.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from openvocab.adapt.classifier import Head, Linear
from openvocab.adapt.heads import SHARES, Shots, train
from openvocab.blocks.text import CBOW, TextTransformer
from openvocab.clip.model import CLIP
from openvocab.clip.templates import fill

STEPS, LR = 100, 2e-3
TEMPLATE = "a photo of a {}."


@dataclass(frozen=True)
class Prompt:
    """A template filled with each label, as token embeddings, of which `context` positions can be replaced."""

    clip: CLIP
    ids: Int[Tensor, "label token"]
    first: int
    count: int

    @property
    def context(self) -> Float[Tensor, "context dim"]:
        """The template's own embeddings."""
        return self.clip.text.embedding(self.ids[0, self.first : self.first + self.count]).detach()

    def __call__(self, context: Float[Tensor, "context dim"]) -> Float[Tensor, "label embed"]:
        """Unit text embeddings with this context, differentiable in it."""
        tower = self.clip.text
        embeds = tower.embedding(self.ids).detach()
        last = self.first + self.count
        shared = context.expand(len(self.ids), *context.shape)
        embeds = torch.cat([embeds[:, : self.first], shared, embeds[:, last:]], dim=1)
        if isinstance(tower, CBOW):
            features = tower.from_embeddings(embeds, tower.words(self.ids))
        else:
            features = tower.from_embeddings(embeds, tower.ends(self.ids), tokens=False)
        return F.normalize(tower.projection(features.pooled), dim=-1)


def prompt(clip: CLIP, labels: Sequence[str], template: str = TEMPLATE) -> Prompt:
    """The prompt of these labels.

    Raises:
        ValueError: the template has no word before the label, or its tokens there depend on the label.
    """
    ids = clip.tokenize([fill(template, label) for label in labels])
    tokenizer = clip.tokenizer
    assert tokenizer is not None
    first = 0 if tokenizer.start_id is None else 1
    count = len(tokenizer.encode(template.split("{}")[0].strip()))
    if not count or not bool((ids[:, first : first + count] == ids[:1, first : first + count]).all()):
        raise ValueError(f"template {template!r}: CoOp learns the words before {{}}, and they must be whole words")
    if isinstance(clip.text, TextTransformer) and clip.text.config.causal:
        ids = ids[:, : int(clip.text.ends(ids).max()) + 1]  # what follows cannot be seen
    return Prompt(clip, ids, first, count)


def coop(shots: Shots, prompt: Prompt, *, steps: int = STEPS, lr: float = LR, seed: int = 0) -> Sequence[Head]:
    """The context of least cross-entropy on the training rows, mixed by several shares into the vocabulary."""
    context = prompt.context.clone().requires_grad_()
    batches = -(-len(shots.labels) // 256)

    def logits(features: Tensor) -> Tensor:
        return shots.scale * features @ prompt(context).T

    train([context], logits, shots, epochs=-(-steps // batches), lr=lr, seed=seed)
    with torch.no_grad():
        learned = prompt(context)
        mixed = [F.normalize(torch.lerp(shots.text, learned, share), dim=-1) for share in (*SHARES, 1.0)]
    return [Linear(shots.scale * text, torch.zeros(len(text))) for text in mixed]
