"""What the routes of one server share: its encoder, its index, its systems, and who waits for them."""

import os
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image

from openvocab.clip.encoder import Encoder
from openvocab.clip.vocabulary import Vocabulary, vocabulary
from openvocab.search.index import Index
from openvocab.serve import pictures
from openvocab.serve.batching import Kept, Lane, pool
from openvocab.serve.embedder import Embedder
from openvocab.serve.guard import Refused
from openvocab.serve.messages import Model, Words
from openvocab.serve.metrics import Metrics
from openvocab.serve.options import Options

_VOCABULARIES = 64


@dataclass(frozen=True)
class Server:
    """All that a route needs.

    Fields:
        index_name: what clip-retrieval's clients call the index.
        systems: verb to the model that answers it.
        slow: where systems work, one question at a time.
        words: where labels become vocabularies.
        looks: where the index is searched and files are read.
    """

    encoder: Encoder
    index: Index | None
    index_name: str
    systems: dict[str, Any]
    options: Options
    metrics: Metrics
    embedder: Embedder
    slow: Lane
    words: Lane
    looks: Lane
    vocabularies: Kept[Vocabulary]

    @property
    def model(self) -> Model:
        known = self.encoder.clip.trained_on
        origin = None if known is None else {name: value for name, value in known.items() if name != "words"}
        return Model(name=self.encoder.name, fingerprint=self.encoder.fingerprint, trained_on=origin)

    @property
    def opened(self) -> Index:
        if self.index is None:
            raise Refused(404, "no index was opened; start the server with --index FOLDER")
        return self.index

    def system(self, verb: str) -> Any:
        if verb not in self.systems:
            raise Refused(404, f"nothing that was loaded can {verb}; start the server with --system MODEL")
        return self.systems[verb]

    async def picture(self, given: str) -> Image.Image:
        """A decoded picture, for a system."""
        return await self.looks(pictures.opened, await self.embedder.content(given), self.options)

    async def vocabulary(self, words: Words) -> Vocabulary:
        """Computed once for the same words, and never kept on disk, which callers could fill."""
        templates = words.templates if isinstance(words.templates, str) else tuple(words.templates)
        make = partial(vocabulary, self.encoder, words.labels, words.templates, cache=False)
        return await self.vocabularies((tuple(words.labels), templates), partial(self.words, make))


def serving(
    encoder: Encoder, index: Index | None, index_name: str, systems: dict[str, Any], options: Options
) -> Server:
    metrics, cores = Metrics(), torch.get_num_threads()
    embedder = Embedder(encoder, options, metrics)
    metrics.gauges["openvocab_queue_rows"] = lambda: embedder.waiting
    return Server(
        encoder,
        index,
        index_name,
        systems,
        options,
        metrics,
        embedder,
        slow=Lane("questions", options.system_queue, options.system_time_limit_s, pool("questions", 1, cores)),
        words=Lane("vocabularies", options.system_queue, options.time_limit_s, pool("vocabularies", 1, cores)),
        looks=Lane("looks", options.queue, options.time_limit_s, pool("looks", max(4, os.cpu_count() or 1))),
        vocabularies=Kept(_VOCABULARIES),
    )
