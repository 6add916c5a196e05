"""The checkpoints of ActionCLIP's authors (two state dicts in one file): their names, there and back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openvocab.clip.layouts import Rule, State, lead, lstm, openai_blocks, same, to_ours, to_theirs, torch_blocks
from openvocab.clip.model import CLIP
from openvocab.clip.published import clip_within
from openvocab.clip.torchscript import read_pickle
from openvocab.clip.weights import clean, to_layout
from openvocab.data.clips import Sampling
from openvocab.systems.actionclip.model import ActionCLIP, ActionCLIPConfig

PEER_KEYS: dict[str, tuple[Rule, ...]] = {
    "meanP": (),
    "Conv1D": (same("temporal.filters.weight", "shift.weight"),),
    "LSTM": lstm("temporal.lstm", "lstm_visual"),
    "Transf": (
        same("temporal.positions", "frame_position_embeddings.weight"),
        *openai_blocks("temporal.blocks", "transformer.resblocks"),
    ),
    "Transf_cls": (
        lead("temporal.token", "transformer.cls_token", axes=2),
        lead("temporal.positions", "transformer.pos_embed", axes=1),
        *torch_blocks("temporal.blocks", "transformer.transformer_enc.layers"),
        same("temporal.norm.{p}", "transformer.transformer_enc.norm.{p}"),
    ),
}
"""The official names by head, of `fusion_model_state_dict`; the CLIP is `model_state_dict`."""
_HEADS = {
    "shift.": "Conv1D",
    "lstm_visual.": "LSTM",
    "transformer.resblocks.": "Transf",
    "transformer.transformer_enc.": "Transf_cls",
}
_PLACES = "frame_position_embeddings.weight"
"""Of no effect beside another head than Transf."""
_TIME, _SHIFTED = "visual.time_embedding", ".net."


def from_official(path: Path | str) -> ActionCLIP:
    """An official checkpoint, in eval mode; the kind of its prompt and head is read off its names.

    Conv1D keeps the authors' order of numbers, by which its weights were learnt.

    Raises:
        ValueError: not of ActionCLIP, or with tensors that do not fit.
    """
    found = read_pickle(Path(path))
    if not isinstance(found, Mapping) or not {"model_state_dict", "fusion_model_state_dict"} <= set(found):
        raise ValueError(f"{path}: not an official ActionCLIP: no model_state_dict and fusion_model_state_dict in it")
    words = {name.replace(_SHIFTED, "."): value.float() for name, value in _state(found["model_state_dict"]).items()}
    shifted = any(_SHIFTED in name for name in found["model_state_dict"])
    fusion = {name: value.float() for name, value in _state(found["fusion_model_state_dict"]).items()}
    time = words.pop(_TIME, None)
    head = next((head for start, head in _HEADS.items() if any(name.startswith(start) for name in fusion)), "meanP")
    if head != "Transf":
        fusion.pop(_PLACES, None)
    ours = to_ours(fusion, PEER_KEYS[head]) | ({} if time is None else {"time": time})
    clip = clip_within(words, path, Path(path).stem)
    prompt = "joint" if time is not None else "shift" if shifted else "none"
    model = ActionCLIP(official_config(ours, clip, head, prompt), clip)
    return model.published(model.with_clip(ours), path)


def official_config(state: State, clip: CLIP, head: Any, prompt: Any) -> ActionCLIPConfig:
    """The config of an official state dict; 8 frames are its usual number, blocks have heads of 64."""
    layers = len({name.split(".")[2] for name in state if name.startswith("temporal.blocks.")})
    frames = len(state["time"]) if prompt == "joint" else 8
    if head == "Transf_cls":
        frames = len(state["temporal.positions"]) - 1
    return ActionCLIPConfig(
        clip=clip.full_config,
        prompt=prompt,
        head=head,
        layers=layers or 6,
        heads=8 if head == "Transf_cls" else max(1, clip.config.text.dim // 64),
        official_layout=head == "Conv1D",
        sampling=Sampling(fps=30.0, most=frames, pick="segments"),
    )


def to_official(model: ActionCLIP) -> dict[str, State]:
    """The model's tensors under the official names, in the two dicts of a checkpoint."""
    mine = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("temporal.")}
    fusion = {f"module.{name}": tensor for name, tensor in to_theirs(mine, PEER_KEYS[model.config.head]).items()}
    words = to_layout(model.clip, "openai")
    if model.config.prompt == "shift":
        words = {_shifted(name): tensor for name, tensor in words.items()}
    if model.time is not None:
        words[_TIME] = model.time.detach()
    return {"model_state_dict": words, "fusion_model_state_dict": fusion}


def _shifted(name: str) -> str:
    before, blocks, behind = name.partition("visual.transformer.resblocks.")
    number, dot, part = behind.partition(".")
    return f"{before}{blocks}{number}{_SHIFTED}{part}" if blocks and dot else name


def _state(found: Any) -> State:
    return clean(found) if found else {}
