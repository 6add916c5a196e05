"""The adapters of PointCLIP's authors (Dassl's `adapter/model-best.pth.tar`): their names, there and back."""

from pathlib import Path

from openvocab.clip.layouts import State, same, to_ours, to_theirs
from openvocab.clip.model import CLIP
from openvocab.clip.weights import read_tensors
from openvocab.systems.pointclip.model import PointCLIP, PointCLIPConfig

PEER_KEYS = (
    same("adapter.shares", "fusion_ratio"),
    same("adapter.norm.{s}", "global_f.0.bn.{s}"),
    same("adapter.gather.{p}", "global_f.3.{p}"),
    same("adapter.gathered.{s}", "global_f.4.{s}"),
    same("adapter.hidden.{p}", "view_f.0.{p}"),
    same("adapter.spread.{p}", "view_f.2.{p}"),
)


def from_official(path: Path | str, clip: CLIP, config: PointCLIPConfig) -> PointCLIP:
    """An official adapter with the CLIP that it was trained on, in eval mode.

    Raises:
        ValueError: not an adapter, or of another CLIP's width or another number of views.
    """
    model = PointCLIP(config, clip)
    found = {name: tensor.float() for name, tensor in to_ours(read_tensors(path), PEER_KEYS).items()}
    return model.published(model.with_clip({"weights": model.weights, **found}), path)


def to_official(model: PointCLIP) -> State:
    """The adapter's tensors under the official names."""
    mine = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("adapter.")}
    return to_theirs(mine, PEER_KEYS)
