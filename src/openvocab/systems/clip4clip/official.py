"""The checkpoints of CLIP4Clip's authors (`pytorch_model.bin.N`, bare state dicts): their names, there and back."""

import re
from pathlib import Path
from typing import Any

from openvocab.clip.layouts import Rule, State, lstm, openai_blocks, same, to_ours, to_theirs
from openvocab.clip.model import CLIP
from openvocab.clip.published import clip_within
from openvocab.clip.weights import read_tensors, to_layout
from openvocab.systems.clip4clip.model import CLIP4Clip, CLIP4ClipConfig

PEER_KEYS: dict[str, tuple[Rule, ...]] = {
    "meanP": (),
    "seqLSTM": lstm("temporal.lstm", "lstm_visual"),
    "seqTransf": (
        same("temporal.positions", "frame_position_embeddings.weight"),
        *openai_blocks("temporal.blocks", "transformerClip.resblocks"),
    ),
    "tightTransf": (
        same("temporal.positions", "cross.embeddings.position_embeddings.weight"),
        *openai_blocks("temporal.blocks", "cross.transformer.resblocks"),
        same("temporal.norm.{p}", "cross.pooler.ln_pool.{p}"),
        same("temporal.dense.{p}", "cross.pooler.dense.{p}"),
        same("temporal.score.{p}", "similarity_dense.{p}"),
    ),
}
"""The official names by head; its CLIP lies beside them under `clip.`."""
_TUBES = same("tubes.tubes.weight", "visual.conv2.weight")
_HEADS = {"transformerClip.": "seqTransf", "lstm_visual.": "seqLSTM", "cross.": "tightTransf"}
_UNREAD = re.compile(r"frame_position_embeddings\.weight|(?:cross|similarity_dense)\..*")
"""Of no effect beside another head: seqLSTM's places, and a tight head in a checkpoint of a loose one."""


def from_official(path: Path | str) -> CLIP4Clip:
    """An official checkpoint, which holds its CLIP, in eval mode; what `_UNREAD` names is dropped, all else must fit.

    Raises:
        ValueError: not of CLIP4Clip, or with tensors that do not fit.
    """
    state = {name: tensor.float() for name, tensor in read_tensors(path).items()}
    words = {name.removeprefix("clip."): tensor for name, tensor in state.items() if name.startswith("clip.")}
    if "visual.conv1.weight" not in words:
        raise ValueError(f"{path}: not an official CLIP4Clip: no clip.visual.conv1.weight in it")
    head = next((head for start, head in _HEADS.items() if any(name.startswith(start) for name in state)), "meanP")
    rest = {name: words.pop(name) for name in _TUBES.theirs if name in words}
    rest |= {name: tensor for name, tensor in state.items() if not name.startswith("clip.")}
    if head != "tightTransf":
        read = {name for rule in PEER_KEYS[head] for name in rule.theirs}
        rest = {name: tensor for name, tensor in rest.items() if name in read or not _UNREAD.fullmatch(name)}
    ours = to_ours(rest, (_TUBES, *PEER_KEYS[head]))
    clip = clip_within(words, path, Path(path).stem)
    model = CLIP4Clip(official_config(ours, clip, head), clip)
    return model.published(model.with_clip(ours), path)


def official_config(state: State, clip: CLIP, head: Any) -> CLIP4ClipConfig:
    """The config of an official state dict; blocks have heads of 64, and 12 frames are its usual number."""
    layers = len({name.split(".")[2] for name in state if name.startswith("temporal.blocks.")})
    return CLIP4ClipConfig(
        clip=clip.full_config,
        stem="3d" if "tubes.tubes.weight" in state else "2d",
        head=head,
        layers=layers or 4,
        heads=max(1, clip.config.text.dim // 64),
    )


def to_official(model: CLIP4Clip) -> State:
    """The model's tensors under the official names, its CLIP among them."""
    mine = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("clip.")}
    theirs = to_theirs(mine, (_TUBES, *PEER_KEYS[model.config.head]))
    words = to_layout(model.clip, "openai") | {name: theirs.pop(name) for name in _TUBES.theirs if name in theirs}
    return theirs | {f"clip.{name}": tensor for name, tensor in words.items()}
