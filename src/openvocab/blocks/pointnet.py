"""PointNet without its alignment nets (arXiv 1612.00593): the maximum over points of what an MLP says of each."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from openvocab.blocks.projection import Points


class PointNet(nn.Module):
    """Logits of clouds; the order of points, and a point said twice, change nothing in evaluation."""

    def __init__(self, num_labels: int, widths: tuple[int, ...] = (64, 128, 256), dropout: float = 0.3):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in zip((3, *widths), widths))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width in widths)
        self.hidden, self.norm = nn.Linear(widths[-1], widths[-2]), nn.BatchNorm1d(widths[-2])
        self.dropout, self.head = nn.Dropout(dropout), nn.Linear(widths[-2], num_labels)

    def forward(self, points: Points) -> Float[Tensor, "cloud label"]:
        x = points.flatten(0, 1)
        for layer, norm in zip(self.layers, self.norms):
            x = F.relu(norm(layer(x)))
        whole = x.unflatten(0, points.shape[:2]).amax(1)
        return self.head(self.dropout(F.relu(self.norm(self.hidden(whole)))))
