"""What models of videos share: a CLIP whose image tower looks at frames, once or in every step."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from openvocab import storage
from openvocab.blocks.temporal import Shown
from openvocab.clip.engine import evaluating
from openvocab.clip.frames import Features, FrameFeatures, Look, Videos, frame_features, look_at, look_up
from openvocab.clip.saved import CLIPSystemModel
from openvocab.clip.weights import digests
from openvocab.config import to_dict
from openvocab.data.clips import ClipsConfig, ClipSource, open_clips, video_files
from openvocab.shapes import Batch
from openvocab.train import distributed


class VideoModel(CLIPSystemModel, ABC):
    """A model that looks at frames one by one or together, and then at what it saw; its config has a `sampling`."""

    @property
    def eyes(self) -> tuple[nn.Module, ...]:
        """What `look` looks with."""
        return (self.clip.image,)

    @abstractmethod
    def look(self, images: Videos, shown: Shown) -> Features:
        """What the image tower pools of each frame, before its projection."""

    def sight(self) -> str:
        """The identity of what `look` gives."""
        image, *others = self.eyes
        mark = storage.fingerprint(digests(image), to_dict(self.config.image))
        for other in others:
            mark = storage.fingerprint(mark, digests(other))
        return mark

    def features(self, clips: ClipSource, *, kept: bool = False) -> FrameFeatures:
        """What the image tower says of all clips of a source.

        Args:
            kept: in the cache folder too, for every model with this sight.
        """
        with evaluating(self):
            return frame_features(
                lambda images, shown: self.look(images.to(self.device), shown.to(self.device)),
                clips,
                self.config.sampling,
                self.preprocessing,
                self.sight() if kept else None,
            )

    def whole(self, videos: ClipSource | Sequence[str | Path]) -> FrameFeatures:
        """`features` of videos that are in hand.

        Raises:
            ValueError: some cannot be read; all of them are named.
        """
        clips = videos if isinstance(videos, ClipSource) else video_files(videos)
        found = self.features(clips)
        if found.failures:
            reasons = "; ".join(found.failures.values())
            raise ValueError(f"{len(found.failures)} of {len(clips)} videos cannot be read: {reasons}")
        return found


def begin_looking(model: VideoModel, clips: ClipSource, how: Literal["features", "frames"]) -> Look:
    """What training sees: `features` of eyes that stay as they are from here on, or frames, read in every step."""
    if how == "frames":
        return look_at(clips, model.config.sampling, model.preprocessing)
    for part in model.eyes:
        part.requires_grad_(False)
    model.to(distributed.device())
    group = distributed.world()
    first = distributed.rank(group) == 0
    if not first:
        distributed.barrier(group)  # until the features lie in the cache
    look = look_up(model.features(clips, kept=True), clips)
    if first:
        distributed.barrier(group)
    return look


def noise_clips(model: VideoModel, rows: int) -> Batch:
    """Clips of noise, of different lengths, each with a text."""
    most, side = model.config.sampling.most, model.config.image.image_size
    text = model.config.clip.text
    tokens = torch.randint(1, text.vocabulary_size - 2, (rows, text.context_length))
    tokens[:, -1] = text.vocabulary_size - 1
    shown = torch.arange(most) < 1 + torch.arange(rows)[:, None] % most
    images = torch.randn(rows, most, 3, side, side) * shown[:, :, None, None, None]
    return {"images": images, "shown": shown, "tokens": tokens}


def open_test(source: str) -> ClipSource:
    """What a model of videos is measured on: a clip list, or `scenes:COUNT:STREAM`."""
    return open_clips(ClipsConfig(source=source))
