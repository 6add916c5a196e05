"""Names as one sentence, and which tokens of a sentence each of its phrases is."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from openvocab.clip.tokenizer_files import PublishedTokenizer
from openvocab.shapes import Mask, Tokens

Span = tuple[int, int]
Aggregation = Literal["mean", "max", "power"]
SEPARATOR = ". "


@dataclass(frozen=True)
class Prompt:
    """A sentence and the characters of its phrases, each from its first to after its last."""

    text: str
    spans: tuple[Span, ...]

    def __post_init__(self) -> None:
        for start, end in self.spans:
            if not 0 <= start < end <= len(self.text):
                raise ValueError(f"span {start} to {end} is not inside a sentence of {len(self.text)} characters")


@dataclass(frozen=True)
class Encoded:
    """Prompts as rows of tokens; `mask` marks those that are no padding."""

    ids: Tokens
    mask: Mask
    positive: tuple[Bool[Tensor, "_ token"], ...]
    """For each prompt, the tokens of its phrases."""


def names_prompt(names: Sequence[str]) -> Prompt:
    """ "person. traffic light. cat": without what stands in parentheses, underscores as spaces."""
    spans, text = [], ""
    for name in names:
        text += SEPARATOR if spans else ""
        start, text = len(text), text + plain(name)
        spans.append((start, len(text)))
    return Prompt(text, tuple(spans))


def plain(name: str) -> str:
    """A name as a prompt spells it; one that is all parentheses as it stands."""
    return " ".join(re.sub(r"\(.*\)", "", name).replace("_", " ").split()) or name


def encode_prompts(tokenizer: PublishedTokenizer, prompts: Sequence[Prompt]) -> Encoded:
    """Tokens of prompts, and of their phrases every token that shares a character with one.

    Raises:
        ValueError: a prompt longer than the tokenizer's context, or a phrase without a token.
    """
    rows = []
    for prompt in prompts:
        ids, offsets = tokenizer.located(prompt.text)
        limit = (tokenizer.context_length or len(ids) + 2) - 2
        if len(ids) > limit:
            raise ValueError(f"{prompt.text[:40]!r}... has {len(ids)} tokens, the model reads {limit}: shorten it")
        at = torch.tensor(offsets).view(-1, 2)
        spans = torch.tensor(prompt.spans).view(-1, 1, 2)
        positive = (at[None, :, 0] < spans[..., 1]) & (at[None, :, 1] > spans[..., 0])
        if not positive.any(1).all():
            start, end = prompt.spans[int(positive.any(1).int().argmin())]
            raise ValueError(f"{prompt.text[start:end]!r} has no token that the model knows")
        rows.append((ids, positive))
    length = max(len(ids) for ids, _ in rows) + 2
    ids = torch.full((len(rows), length), tokenizer.pad_id)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    marked = []
    for row, (tokens, positive) in enumerate(rows):
        whole = [tokenizer.start_id, *tokens, tokenizer.end_id]
        ids[row, : len(whole)] = torch.tensor(whole)
        mask[row, : len(whole)] = True
        marked.append(torch.nn.functional.pad(positive, (1, length - 1 - positive.shape[1])))
    return Encoded(ids, mask, tuple(marked))


def chunks(tokenizer: PublishedTokenizer, names: Sequence[str], at_most: int | None = None) -> list[range]:
    """Rows of names that go into one prompt: as many as the context holds, and no more than `at_most`.

    Raises:
        ValueError: one name alone is longer than the context.
    """
    limit = (tokenizer.context_length or 1_000_000) - 2
    between = len(tokenizer.encode(SEPARATOR))
    found: list[range] = []
    start, used = 0, 0
    for row, name in enumerate(names):
        length = len(tokenizer.encode(plain(name)))
        if length > limit:
            raise ValueError(f"label {name[:40]!r} has {length} tokens, the model reads {limit}: shorten it")
        if row > start and (used + between + length > limit or row - start == at_most):
            found.append(range(start, row))
            start, used = row, 0
        used += length + (between if row > start else 0)
    return [*found, range(start, len(names))]


def aggregate(
    chances: Float[Tensor, "anchor token"], positive: Bool[Tensor, "phrase token"], how: Aggregation
) -> Float[Tensor, "anchor phrase"]:
    """The chance of a phrase from those of its tokens: their mean, their highest, or their geometric mean."""
    if how == "max":
        columns = [chances[:, tokens].amax(1) for tokens in positive]
        return torch.stack(columns, 1)
    share = positive.to(chances) / positive.sum(1, keepdim=True)
    if how == "mean":
        return chances @ share.T
    return (chances.clamp_min(1e-12).log() @ share.T).exp()
