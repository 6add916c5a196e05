"""Frame search: a sentence to the seconds of videos that show it, with any CLIP and no training.

After clifs (Johan Modin, github.com/johanmodin/clifs), which has no paper. Of a frame f and its tiles i, and a text t,

    s(f) = max_i cos(I(f_i), T(t)),   a moment of a video = the frames around its best one with
    s(f) >= s_best - (s_best - m) / 2,   m = the mean of s over all videos that are asked

Differs from clifs: frames are taken by their own times, not by counting (which finds one frame at 29.97 a second);
alike frames are one run; a moment has a beginning and an end; no score is a threshold, which only one model would have.
`openvocab index` keeps all of this on disk for any number of videos; here it is in memory.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from openvocab.clip.dense import TINY_CLIP, noise_pictures
from openvocab.clip.encoder import as_encoder
from openvocab.clip.model import CLIP
from openvocab.clip.moments import ALIKE, Box, merge, tile_boxes, video_rows
from openvocab.data.clips import Clip, ClipFiles, read_clip_list
from openvocab.data.video import open_video
from openvocab.shapes import Batch, Embeds, Images
from openvocab.system import System

_HEIGHT = 0.5
"""Share of the best score's height over the mean at which a moment ends."""
_NEAR_S = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameSearchConfig:
    """How a video is looked at.

    Fields:
        fps: frames in a second of the video's own clock.
        levels: of tiles, for what is small or at the edge; 1 looks at whole frames alone.
        alike: frames with a cosine above this are one.
    """

    fps: float = 1.0
    levels: int = 1
    alike: float = ALIKE


@dataclass(frozen=True)
class Watched:
    """What a video shows: vectors of runs of alike frames."""

    path: str
    embeds: Embeds
    start_s: Float[Tensor, " run"]
    end_s: Float[Tensor, " run"]
    tile: Int64[Tensor, " run"]
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Moment:
    """A part of a video that shows what was asked for.

    Fields:
        score: the best cosine in it.
        box_xyxy_px: where in the frame that was.
    """

    path: str
    start_s: float
    end_s: float
    score: float
    box_xyxy_px: Box


class FrameSearch(nn.Module):
    """A CLIP that says when a video shows something."""

    def __init__(self, config: FrameSearchConfig, clip: CLIP):
        super().__init__()
        self.config, self.clip = config, clip

    def forward(self, images: Images) -> Embeds:
        return self.clip.encode_image(images)

    def watch(self, path: str | Path) -> Watched:
        """Looks at a video once; every frame is decoded at most once, whatever the length two batches are in memory.

        Raises:
            ValueError: it cannot be decoded.
        """
        config, video = self.config, open_video(path)
        runs = list(video_rows(video, as_encoder(self.clip), config.fps, levels=config.levels, alike=config.alike))
        return Watched(
            str(path),
            torch.stack([run.vector for run in runs]),
            torch.tensor([run.start_s for run in runs]),
            torch.tensor([run.end_s for run in runs]),
            torch.tensor([run.tile for run in runs]),
            tuple(tile_boxes(video.width_px, video.height_px, config.levels)),
        )

    def find(self, videos: Sequence[Watched], text: str, k: int = 9) -> list[Moment]:
        """The moments that fit a text best, the best first.

        Raises:
            ValueError: no videos, or a text that is too long.
        """
        if not videos:
            raise ValueError("no videos to search: watch(path) some first")
        (query,) = as_encoder(self.clip).texts([text])
        scores = [video.embeds @ query for video in videos]
        mean = torch.cat(scores).mean()
        found = [moment for video, its in zip(videos, scores) for moment in self._moments(video, its, mean.item())]
        return sorted(found, key=lambda moment: -moment.score)[:k]

    def _moments(self, video: Watched, scores: Float[Tensor, " run"], mean: float) -> list[Moment]:
        best = scores.max().item()
        high = (scores >= best - _HEIGHT * max(0.0, best - mean)).nonzero().flatten()
        hits = [(video.start_s[row].item(), video.end_s[row].item(), scores[row].item()) for row in high.tolist()]
        moments = []
        for start_s, end_s in merge(hits, 1 / self.config.fps):
            inside = high[(video.start_s[high] >= start_s) & (video.end_s[high] <= end_s)]
            top = inside[scores[inside].argmax()]
            box = video.boxes[int(video.tile[top])]
            moments.append(Moment(video.path, start_s, end_s, scores[top].item(), box))
        return moments


SIZES = {"tiny": FrameSearchConfig(), "paper": FrameSearchConfig(levels=3)}


def build(config: FrameSearchConfig | str, clip: CLIP | None = None) -> FrameSearch:
    """Around `clip`; without one around a small CLIP of random weights, which knows nothing."""
    return FrameSearch(SIZES[config] if isinstance(config, str) else config, clip or CLIP(TINY_CLIP))


def embed(model: FrameSearch, batch: Batch) -> dict[str, Tensor]:
    """The frames' unit vectors."""
    return {"image": model(batch["images"])}


def evaluate(model: FrameSearch, data: ClipFiles) -> dict[str, float]:
    """Every caption asks for its clip, in its own video and in all of them; any clip of that caption will do.

    `r@1_iou_0.5`: the best moment and the clip share half of the time that they fill together. `begins`: it begins
    within half a second of the clip; `all_begins` when all videos are asked.
    """
    videos = {clip.path: model.watch(clip.path) for clip in data.clips}
    meant: dict[str, list[Clip]] = {}
    for clip in data.clips:
        for text in clip.captions:
            meant.setdefault(text, []).append(clip)
    counts = Counter[str]()
    for text, clips in meant.items():
        (everywhere,) = model.find(list(videos.values()), text, k=1)
        for clip in clips:
            (here,) = model.find([videos[clip.path]], text, k=1)
            counts["texts"] += 1
            counts["r@1_iou_0.5"] += any(_iou(here, each) >= 0.5 for each in clips)
            counts["begins"] += any(_begins(here, each) for each in clips)
            counts["all_begins"] += any(_begins(everywhere, each) for each in clips)
    shares = {name: counts[name] / counts["texts"] for name in ("r@1_iou_0.5", "begins", "all_begins")}
    return shares | {"texts": float(counts["texts"]), "videos": float(len(videos))}


def _iou(moment: Moment, clip: Clip) -> float:
    assert clip.start_s is not None
    assert clip.end_s is not None
    shared = min(moment.end_s, clip.end_s) - max(moment.start_s, clip.start_s)
    together = max(moment.end_s, clip.end_s) - min(moment.start_s, clip.start_s)
    return shared / together if moment.path == str(clip.path) else 0.0


def _begins(moment: Moment, clip: Clip) -> bool:
    return moment.path == str(clip.path) and abs(moment.start_s - (clip.start_s or 0.0)) <= _NEAR_S


def open_moments(source: str) -> ClipFiles:
    """A clip list whose rows say from when to when, and what is seen.

    Raises:
        FileNotFoundError: no such list.
        ValueError: not a clip list, or a row without a beginning, an end or a caption.
    """
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"{source}: no such clip list; expected a table with path, start_s, end_s and caption")
    clips = read_clip_list(path, path.parent)
    for key, clip in clips.items():
        if clip.start_s is None or clip.end_s is None or not clip.captions:
            raise ValueError(f"{source}: {key} lacks start_s, end_s or a caption")
    return ClipFiles(path.name, clips)


SYSTEM = System(
    name="frame_search",
    title="Frame search (clifs)",
    paper="github.com/johanmodin/clifs",
    sizes=SIZES,
    build=build,
    embed=embed,
    evaluate=evaluate,
    open=open_moments,
    example=noise_pictures,
)
