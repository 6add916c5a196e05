"""The model: depth maps through the image tower, views joined by the adapter, weighed, and compared with words."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from openvocab.blocks.projection import Cameras, Points, project
from openvocab.clip.engine import evaluating
from openvocab.clip.model import CLIP
from openvocab.clip.saved import CLIPSystemConfig, CLIPSystemModel
from openvocab.clip.vocabulary import Labels, Vocabulary, vocabulary
from openvocab.clip.zeroshot import Classification, classify_embeds
from openvocab.data.points import as_cloud, read_points

Views = Float[Tensor, "cloud view embed"]
ViewLogits = Float[Tensor, "cloud view label"]
ZERO_SHOT = "point cloud depth map of a {}."
FEW_SHOT = "point cloud of a big {}."
_IMAGES_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class PointCLIPConfig(CLIPSystemConfig):
    """A CLIP, the cameras, and whether views speak to each other.

    `normalised`: maps go through CLIP's mean and deviation; the published ones go in as they are.
    `num_points`: of a cloud. `ratio`: how much of an adapted view is the adapter's; `dropout` is within it.
    """

    cameras: Cameras = Cameras()
    normalised: bool = False
    num_points: int = 1024
    adapter: bool = True
    ratio: float = 0.6
    dropout: float = 0.075


class InterViewAdapter(nn.Module):
    """Every view hears all: g = ReLU(BN(W_1 [f_1 .. f_V])), f_v' = r ReLU(W_3v ReLU(W_2 g)) + (1 - r) f_v."""

    def __init__(self, views: int, dim: int, ratio: float, dropout: float):
        super().__init__()
        self.ratio, self.dropout = ratio, nn.Dropout(dropout)
        self.shares = nn.Parameter(torch.full((views,), 0.5))
        self.norm = nn.BatchNorm1d(dim)
        self.gather, self.gathered = nn.Linear(views * dim, dim), nn.BatchNorm1d(dim)
        self.hidden, self.spread = nn.Linear(dim, dim), nn.Linear(dim, views * dim)

    def forward(self, views: Views) -> Views:
        scaled = self.norm((views * self.shares[:, None]).transpose(1, 2)).transpose(1, 2)
        together = self.gather(self.dropout(scaled).flatten(1))
        together = self.dropout(F.relu(self.gathered(together)))
        said = F.relu(self.spread(F.relu(self.hidden(together))))
        return self.ratio * said.view_as(views) + (1 - self.ratio) * views


class PointCLIP(CLIPSystemModel):
    """Names clouds of points.

    Attributes:
        weights: of the views, 1 on average.
    """

    system, config_type = "pointclip", PointCLIPConfig
    weights: Tensor

    def __init__(self, config: PointCLIPConfig, clip: CLIP | None = None):
        super().__init__(config, clip)
        self.clip.requires_grad_(False)
        views = len(config.cameras.views)
        self.adapter = None
        if config.adapter:
            self.adapter = InterViewAdapter(views, self.clip.config.embed_dim, config.ratio, config.dropout)
        self.register_buffer("weights", torch.ones(views))

    def pictures(self, points: Points) -> Float[Tensor, "cloud view 3 height width"]:
        """What the image tower reads."""
        maps = project(points, self.config.cameras)
        side = self.preprocessing.image_size
        maps = F.interpolate(maps, (side, side), mode="bilinear", align_corners=True)
        images = maps.unsqueeze(2).expand(-1, -1, 3, -1, -1)
        if not self.config.normalised:
            return images
        mean, std = (
            torch.tensor(c).to(images).view(3, 1, 1) for c in (self.preprocessing.mean, self.preprocessing.std)
        )
        return (images - mean) / std

    def look(self, points: Points) -> Views:
        """Every view in the shared space as the image tower projects it, some clouds at a time."""
        found = []
        with evaluating(self.clip):
            for part in points.split(max(1, _IMAGES_AT_ONCE // len(self.weights))):
                images = self.pictures(part.to(self.device))
                embeds = self.clip.encode_image(images.flatten(0, 1), normalize=False)
                found.append(embeds.float().unflatten(0, images.shape[:2]))
        return torch.cat(found)

    def forward(self, views: Views) -> Views:
        """Adapted views; those of a cloud are a unit vector together."""
        if self.adapter is None:
            return F.normalize(views, dim=-1) / views.shape[1] ** 0.5
        return F.normalize(self.adapter(views).flatten(1), dim=-1).view_as(views)

    def view_logits(self, views: Views, words: Float[Tensor, "label embed"]) -> ViewLogits:
        """What each view adds to a cloud's logits, before its weight; `views` are what `forward` gives."""
        return self.clip.scale() * views @ words.T / views.shape[1] ** 0.5

    def embed_points(self, points: Points) -> Float[Tensor, "cloud embed"]:
        """Weighted views as one vector each, whose product with a text's is the cosine of all views with it."""
        with evaluating(self):
            views = self(self.look(points))
            return torch.einsum("nvc,v->nc", views, self.weights).cpu() / views.shape[1] ** 0.5

    def recognize(self, points: Any, labels: Vocabulary | Labels, *, templates: Any = ZERO_SHOT) -> Classification:
        """Clouds (a file, an array of points, or several of them) against labels; row i is cloud i.

        Raises:
            FileNotFoundError, ValueError: as `data.points.read_points`, no labels, or a vocabulary of another model.
        """
        clouds = [points] if isinstance(points, str | Path) or getattr(points, "ndim", 0) == 2 else points
        size = self.config.num_points
        read = [
            read_points(each, size) if isinstance(each, str | Path) else as_cloud(each, f"cloud {number}", size)
            for number, each in enumerate(clouds)
        ]
        if not isinstance(labels, Vocabulary):
            labels = vocabulary(self.clip, labels, templates)
        return classify_embeds(self.clip, self.embed_points(torch.from_numpy(np.stack(read))), labels)
