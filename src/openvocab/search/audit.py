"""How much of what exact search finds the fast one finds, for questions in words and in pictures apart."""

from typing import Any

from openvocab.clip.senses import known_senses
from openvocab.search.approximate import agreement
from openvocab.search.index import Index
from openvocab.search.records import Encoder
from openvocab.shapes import Embeds, TextEmbeds


def audit(index: Index, text_queries: TextEmbeds, picture_queries: Embeds, k: int = 10) -> dict[str, Any]:
    """`recall@k` of texts and of pictures: the share of each one's exact `k` best that the fast search gives too."""
    recall = {}
    for kind, queries in (("text", text_queries), ("picture", picture_queries)):
        exact = index.nearest(queries, k, exact=True)
        recall[f"{kind}_recall@{k}"] = agreement(index.nearest(queries, k).rows, exact.rows)
    return {**recall, "texts": len(text_queries), "pictures": len(picture_queries)}


def questions(encoder: Encoder, part: int) -> TextEmbeds:
    """Sentences about things that one can photograph; the lists are tuned on part 0, part 1 is left to judge them."""
    things = sorted({sense for senses in known_senses().values() for sense in senses})
    return encoder.texts([f"a photo of {thing}" for thing in things[part::2]])
