"""Pictures in the order of a sentence: how DALL-E chooses among its samples (arXiv 2102.12092, section 2.6)."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from openvocab.clip.created import Pictures
from openvocab.clip.engine import Picture, embed_images, embed_texts
from openvocab.clip.model import CLIP


class Ranking(NamedTuple):
    """Rows of the pictures, the best first, and the cosine of each picture with the text, as they were given."""

    order: Int[Tensor, " image"]
    scores: Float[Tensor, " image"]


def rank(clip: CLIP, pictures: Pictures | Sequence[Picture], text: str) -> Ranking:
    """Which of these pictures a text fits best.

    Raises:
        ValueError: an empty text, no pictures, or pictures that cannot be read.
    """
    images = pictures.images() if isinstance(pictures, Pictures) else list(pictures)
    if not text.strip() or not images:
        raise ValueError(f"ranking {len(images)} pictures by {text!r}: expected some pictures and a sentence")
    scores = embed_images(clip, images) @ embed_texts(clip, [text])[0]
    return Ranking(scores.argsort(descending=True, stable=True), scores)
