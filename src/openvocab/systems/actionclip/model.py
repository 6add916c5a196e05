"""ActionCLIP's model: frames through CLIP's image tower, told of time before, in or behind it; labels as texts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from openvocab import storage
from openvocab.blocks.temporal import HIDDEN, Conv1D, SeqLSTM, SeqTransf, Shown, TransfCls, frame_mean, shift_tokens
from openvocab.blocks.vit import ViT
from openvocab.clip.engine import evaluating
from openvocab.clip.frames import Features, FrameFeatures, Videos
from openvocab.clip.model import CLIP
from openvocab.clip.saved import CLIPSystemConfig
from openvocab.clip.templates import templates as read_templates
from openvocab.clip.trust import Calibration
from openvocab.clip.videos import VideoModel
from openvocab.clip.vocabulary import Labels, vocabulary
from openvocab.clip.zeroshot import Classification, classify_embeds
from openvocab.data.clips import ClipSource, Sampling, View, video_files
from openvocab.shapes import Embeds

Mean = Literal["probability", "embedding"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ActionCLIPConfig(CLIPSystemConfig):
    """A CLIP, and how its image tower is told of time.

    `prompt`: nothing before the head; `joint`, one sequence of all frames' patches; `shift`, patches that exchange
    channels with the frames before and after them in front of every block.
    `head`: what is made of the frames; `layers` and `heads` are of its transformers, `place_std` is of their places in
    time at first.
    `official_layout`: of Conv1D, see there.
    """

    prompt: Literal["none", "joint", "shift"] = "none"
    head: Literal["meanP", "Conv1D", "LSTM", "Transf", "Transf_cls"] = "Transf"
    layers: int = 6
    heads: int = 8
    place_std: float = 0.02
    official_layout: bool = False
    sampling: Sampling = Sampling(fps=30.0, most=8, pick="segments")

    def __post_init__(self) -> None:
        if self.prompt != "none" and getattr(self.clip.image, "pool", "") != "class":
            raise ValueError(f"ActionCLIP: prompt {self.prompt} is of a ViT that pools its class token")
        if self.prompt == "joint" and self.head != "meanP":
            raise ValueError(f"ActionCLIP: joint makes one vector of a clip, head {self.head} has no frames: use meanP")
        if self.official_layout and self.head != "Conv1D":
            raise ValueError(f"ActionCLIP: official_layout is of Conv1D, the head is {self.head}")
        if self.sampling.most > self.clip.text.context_length:
            places = self.clip.text.context_length
            raise ValueError(f"ActionCLIP: {self.sampling.most} frames, there are places in time for {places}")


class ActionCLIP(VideoModel):
    """Compares clips with what actions are called."""

    system, config_type = "actionclip", ActionCLIPConfig

    def __init__(self, config: ActionCLIPConfig, clip: CLIP | None = None):
        super().__init__(config, clip)
        dim, layers, heads = self.clip.config.embed_dim, config.layers, config.heads
        self.time = None
        if config.prompt == "joint":
            self.time = nn.Parameter(torch.zeros(config.sampling.most, self.clip.image.config.dim))  # type: ignore
        self.temporal: Conv1D | SeqLSTM | SeqTransf | TransfCls | None = None
        if config.head == "Conv1D":
            self.temporal = Conv1D(dim, config.official_layout)
        elif config.head == "LSTM":
            self.temporal = SeqLSTM(dim)
        elif config.head == "Transf":
            self.temporal = SeqTransf(dim, layers, heads, self.clip.config.text.context_length, config.place_std)
        elif config.head == "Transf_cls":
            self.temporal = TransfCls(dim, layers, heads, config.sampling.most, config.place_std)

    def look(self, images: Videos, shown: Shown) -> Features:
        """As `VideoModel.look`; with `joint` every frame is what all of them are together."""
        tower = self.clip.image
        if self.time is not None:
            return together(tower, images, shown, self.time).unsqueeze(1).expand(-1, images.shape[1], -1)  # type: ignore
        about = {"before": partial(shift_tokens, shown=shown)} if self.config.prompt == "shift" else {}
        return tower(images.flatten(0, 1), tokens=False, **about).pooled.unflatten(0, images.shape[:2])

    def sight(self) -> str:
        mark = super().sight()
        return mark if self.config.prompt == "none" else storage.fingerprint(mark, self.config.prompt, str(self.time))

    def watch(self, features: Features, shown: Shown) -> Float[Tensor, "clip embed"]:
        """One unit vector a clip; zeros for a clip without frames."""
        frames = self.clip.image.projection(features)
        if isinstance(self.temporal, TransfCls):
            return F.normalize(self.temporal(frames, shown), dim=-1)
        if self.temporal is not None:
            frames = self.temporal(frames, shown)
        return F.normalize(frame_mean(frames, shown), dim=-1)

    def embed_features(self, found: FrameFeatures) -> Embeds:
        """Unit vectors of clips that were looked at already."""
        with evaluating(self):
            return self.watch(found.features.to(self.device), found.shown.to(self.device)).float().cpu()

    def embed_videos(self, videos: ClipSource | Sequence[str | Path]) -> Embeds:
        """Unit vectors to compare with those of texts, and for few-shot classifiers; row i is video i.

        Raises:
            ValueError: videos that cannot be read, all of them named.
        """
        return self.embed_features(self.whole(videos))

    def recognize(
        self,
        videos: ClipSource | str | Path | Sequence[str | Path],
        labels: Labels,
        *,
        templates: str | Sequence[str] = "actionclip",
        mean: Mean = "probability",
        views: tuple[int, int] = (1, 1),
        calibration: Calibration | None = None,
        none_of_these: bool = False,
    ) -> Classification:
        """What is done in videos, whether or not training showed it.

        Args:
            labels: names of actions; see `clip.vocabulary`.
            mean: over templates, of their `probability` as published, or of their `embedding` as CLIP does it.
            views: moments x squares that a video is looked at; the mean of their probabilities counts.
            calibration: fitted to this model's answers with the same templates and labels, and their mean embedding.

        Raises:
            ValueError: videos that cannot be read, a calibration of others, or `none_of_these` without one.
        """
        if none_of_these and calibration is None:
            raise ValueError(f"none_of_these needs a fitted calibration, and model {self.name!r} was given none")
        if not isinstance(videos, ClipSource):
            videos = video_files([videos] if isinstance(videos, str | Path) else videos)
        seen = [self.embed_videos(view) for view in self.views(videos, views)]
        found = self.compare(seen, labels, templates=templates, mean=mean, calibration=calibration)
        if calibration is None or not none_of_these:
            return found
        return replace(found, none_of_these=calibration.none_of_these(found.scores))

    def compare(
        self,
        seen: Sequence[Embeds],
        labels: Labels,
        *,
        templates: str | Sequence[str] = "actionclip",
        mean: Mean = "probability",
        calibration: Calibration | None = None,
    ) -> Classification:
        """`recognize` for clips that are embedded already, in one or several views; the texts are embedded once."""
        patterns = read_templates(templates)
        banks = [patterns] if mean == "embedding" else [(pattern,) for pattern in patterns]
        words = [vocabulary(self.clip, labels, bank, cache=bool(self.fingerprint)) for bank in banks]
        found = [classify_embeds(self.clip, embeds, bank, calibration) for embeds in seen for bank in words]
        probabilities = torch.stack([each.probabilities for each in found]).mean(0)
        return replace(
            found[0],
            scores=torch.stack([each.scores for each in found]).mean(0),
            probabilities=probabilities,
            sets=None if calibration is None else probabilities >= calibration.threshold,
            model={"name": self.name, "fingerprint": self.fingerprint, "trained_on": self.trained_on},
        )

    def views(self, clips: ClipSource, views: tuple[int, int]) -> list[ClipSource]:
        """A source at several moments of its segments, and several squares along the longer side."""
        moments, squares = views
        if views == (1, 1):
            return [clips]
        if moments > 1 and self.config.sampling.pick != "segments":
            raise ValueError(f"views at {moments} moments are of segments, model.sampling.pick is not segments")
        places = [0.5] if squares == 1 else [square / (squares - 1) for square in range(squares)]
        return [View(clips, (moment + 0.5) / moments, place) for moment in range(moments) for place in places]


def together(
    tower: ViT, images: Videos, shown: Shown, time: Float[Tensor, "place dim"]
) -> Float[Tensor, "clip feature"]:
    """What a ViT pools of [c; patches of all frames], each with its places in the picture and in time."""
    patches = tower.stem(images.flatten(0, 1)).flatten(2).transpose(1, 2) + tower.positions[1:]
    placed = patches.unflatten(0, shown.shape) + time[: shown.shape[1], None]
    first = (tower.class_token + tower.positions[0]).expand(len(images), 1, -1)  # type: ignore[operator]
    x = tower.pre_norm(torch.cat([first, placed.flatten(1, 2)], dim=1))
    behind = F.pad(~shown.repeat_interleave(patches.shape[1], dim=1), (1, 0))
    return tower.norm(tower.blocks(x, bias=HIDDEN * behind[:, None, None].to(x)).tokens[:, 0])
