"""CLIP4Clip's model: frames through CLIP's image tower, a head over time, texts through CLIP's text tower."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from openvocab.blocks.temporal import Frames, SeqLSTM, SeqTransf, Shown, TightTransf, mean_pool
from openvocab.blocks.text import TextTransformer
from openvocab.clip.engine import embed_texts, evaluating
from openvocab.clip.frames import Features, FrameFeatures, Videos
from openvocab.clip.model import CLIP
from openvocab.clip.saved import CLIPSystemConfig
from openvocab.clip.videos import VideoModel
from openvocab.clip.vocabulary import Labels, Vocabulary, vocabulary
from openvocab.clip.zeroshot import Classification, classify_embeds
from openvocab.data.clips import ClipSource, Sampling

_TEXTS_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class CLIP4ClipConfig(CLIPSystemConfig):
    """A CLIP, how its frames are cut into patches, and what is made of them over time.

    `stem`: `2d` cuts each frame by itself, `3d` with the frames before and after it.
    `head`: the paper's parameter-free, sequential and tight types; `layers` and `heads` are of its transformers.
    `positions`: False leaves out what tells the places in time apart.
    """

    stem: Literal["2d", "3d"] = "2d"
    head: Literal["meanP", "seqLSTM", "seqTransf", "tightTransf"] = "seqTransf"
    layers: int = 4
    heads: int = 8
    positions: bool = True
    sampling: Sampling = Sampling()

    def __post_init__(self) -> None:
        if not self.positions and self.head != "seqTransf":
            raise ValueError(f"CLIP4Clip: positions=False is of seqTransf, the head is {self.head}")
        if self.stem == "3d" and getattr(self.clip.image, "stem", "") != "patches":
            raise ValueError("CLIP4Clip: stem 3d begins at a ViT's stem of one patch convolution; this CLIP has none")
        if self.sampling.most >= self.clip.text.context_length:
            most = self.clip.text.context_length - 1
            raise ValueError(f"CLIP4Clip: {self.sampling.most} frames, there are places in time for {most}")


@dataclass(frozen=True)
class Ranking:
    """Videos by how well a text fits them.

    Fields:
        order: rows of the videos, best first.
        scores: of each video as it was given: cosines, or what the tight head says.
    """

    order: Int[Tensor, " video"]
    scores: Float[Tensor, " video"]


class TubeStem(nn.Module):
    """Patches that reach a frame forth and back in time; at the start only their own frame counts."""

    def __init__(self, stem: nn.Conv2d):
        super().__init__()
        rows, cols = stem.kernel_size
        about = {"stride": (1, rows, cols), "padding": (1, 0, 0), "bias": stem.bias is not None}
        self.tubes = nn.Conv3d(3, stem.out_channels, (3, rows, cols), **about)
        with torch.no_grad():
            self.tubes.weight.zero_()[:, :, 1] = stem.weight
            if stem.bias is not None and self.tubes.bias is not None:
                self.tubes.bias.copy_(stem.bias)

    def forward(self, images: Videos) -> Float[Tensor, "image dim rows cols"]:
        return self.tubes(images.transpose(1, 2)).transpose(1, 2).flatten(0, 1)


class CLIP4Clip(VideoModel):
    """Compares clips with sentences."""

    system, config_type = "clip4clip", CLIP4ClipConfig

    def __init__(self, config: CLIP4ClipConfig, clip: CLIP | None = None):
        super().__init__(config, clip)
        dim, layers, heads = self.clip.config.embed_dim, config.layers, config.heads
        context = self.clip.config.text.context_length
        self.temporal: SeqLSTM | SeqTransf | TightTransf | None = None
        if config.head == "seqLSTM":
            self.temporal = SeqLSTM(dim)
        elif config.head == "seqTransf":
            self.temporal = SeqTransf(dim, layers, heads, context if config.positions else 0)
        elif config.head == "tightTransf":
            self.temporal = TightTransf(dim, layers, heads, context)
        self.tubes = None
        if config.stem == "3d":
            self.tubes = TubeStem(self.clip.image.stem)  # type: ignore[arg-type]
            self.clip.image.stem.requires_grad_(False)

    def start_from_text(self) -> None:
        """Begins the head's blocks and places with those of the text tower, as far as they are of its width."""
        head, text = self.temporal, self.clip.text
        if not isinstance(head, SeqTransf | TightTransf) or not isinstance(text, TextTransformer):
            return
        if text.config.dim != self.clip.config.embed_dim or text.config.mlp_dim != 4 * text.config.dim:
            return
        for mine, theirs in zip(head.blocks, text.blocks):
            mine.load_state_dict(theirs.state_dict())
        if head.positions is not None:
            head.positions.data.copy_(text.positions)

    @property
    def eyes(self) -> tuple[nn.Module, ...]:
        return (self.clip.image,) if self.tubes is None else (self.clip.image, self.tubes)

    def look(self, images: Videos, shown: Shown) -> Features:
        if self.tubes is None:
            seen = self.clip.image(images.flatten(0, 1), tokens=False)
        else:
            seen = self.clip.image.from_patches(self.tubes(images), tokens=False)  # type: ignore[operator]
        return seen.pooled.unflatten(0, images.shape[:2])

    def watch(self, features: Features, shown: Shown) -> Frames:
        """Frames in the shared space, and in time where the head is a sequential one."""
        frames = self.clip.image.projection(features)
        return self.temporal(frames, shown) if isinstance(self.temporal, SeqLSTM | SeqTransf) else frames

    def scores(self, texts: Float[Tensor, "text embed"], frames: Frames, shown: Shown) -> Float[Tensor, "text clip"]:
        """Of texts as the tower projects them with frames as `watch` gives them: cosines, or the tight head's own."""
        if isinstance(self.temporal, TightTransf):
            return self.temporal(texts, frames, shown)
        return F.normalize(texts, dim=-1) @ mean_pool(frames, shown).T

    def score_blocks(self, texts: Sequence[str], found: FrameFeatures) -> Iterator[Float[Tensor, "text clip"]]:
        """`scores` of these texts with these clips, some texts at a time."""
        embeds, shown = embed_texts(self.clip, texts, truncate=True, normalize=False), found.shown.to(self.device)
        with evaluating(self):
            frames = self.watch(found.features.to(self.device), shown)
            for part in embeds.to(self.device).split(_TEXTS_AT_ONCE):
                yield self.scores(part, frames, shown).float().cpu()

    def embed_videos(self, videos: ClipSource | Sequence[str | Path]) -> Float[Tensor, "clip embed"]:
        """Unit vectors to compare with those of texts; row i is video i.

        Raises:
            ValueError: videos that cannot be read, all of them named; or a tight head, which has no such vectors.
        """
        if isinstance(self.temporal, TightTransf):
            raise ValueError("a tight head looks at text and video together: use rank")
        found = self.whole(videos)
        with evaluating(self):
            shown = found.shown.to(self.device)
            return mean_pool(self.watch(found.features.to(self.device), shown), shown).float().cpu()

    def recognize(
        self, videos: str | Path | Sequence[str | Path], labels: Vocabulary | Labels, *, templates: Any = "generic"
    ) -> Classification:
        """Videos against labels; row i is video i. Raises as `embed_videos` where one cannot be read."""
        shown = self.embed_videos([videos] if isinstance(videos, str | Path) else videos)
        words = labels if isinstance(labels, Vocabulary) else vocabulary(self.clip, labels, templates)
        return classify_embeds(self.clip, shown, words)

    def rank(self, videos: ClipSource | Sequence[str | Path], text: str) -> Ranking:
        """Videos by how well a text fits them; raises as `embed_videos` where one cannot be read."""
        (scores,) = next(self.score_blocks([text], self.whole(videos)))
        return Ranking(scores.argsort(descending=True, stable=True), scores)
