"""From weight files to models and back: reading, recognising, converting, fingerprinting."""

import hashlib
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from openvocab import storage
from openvocab.blocks.resnet import ResNetConfig
from openvocab.blocks.text import TextConfig
from openvocab.blocks.vit import ViTConfig
from openvocab.clip import architectures
from openvocab.clip.hf_config import to_hf_config
from openvocab.clip.layouts import LAYOUTS, State, detect, to_ours, to_theirs
from openvocab.clip.model import CLIP, CLIPConfig
from openvocab.clip.open_clip_config import to_open_clip_config
from openvocab.clip.tokenizer import Tokenizer
from openvocab.clip.torchscript import is_torchscript, read_pickle, read_torchscript
from openvocab.config import to_dict

_JIT_BUFFERS = ("input_resolution", "context_length", "vocab_size")
_DROPPED = re.compile(r"(.*\.)?(position_ids|attn_mask)")
_STATE_NAMES = ("state_dict", "model", "module")


def read_tensors(path: Path | str) -> State:
    """The tensors of a weight file, told apart by content: safetensors, TorchScript archive, pickle; nothing is run.

    Training checkpoints are unwrapped (`state_dict`), the prefix `module.` goes, so do buffers that no model needs.

    Raises:
        ValueError: damaged, refused, or without tensors.
    """
    return read_weights(path)[0]


def read_weights(path: Path | str) -> tuple[State, bool]:
    """`read_tensors`, and whether they are OpenAI's: its files alone carry three buffers of sizes."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    if path.name.endswith(".index.json"):
        parts = sorted(set(storage.read_json(path)["weight_map"].values()))
        return {name: tensor for part in parts for name, tensor in read_tensors(path.parent / part).items()}, False
    if _is_safetensors(path):
        try:
            state = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: damaged safetensors file ({error})") from None
    else:
        state = read_torchscript(path) if is_torchscript(path) else read_pickle(path)
    openai = isinstance(state, Mapping) and set(_JIT_BUFFERS) <= set(state)
    return clean(state, path), openai


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def clean(state: object, where: Path | str = "these weights") -> State:
    """A plain dict of the model's own tensors."""
    for name in _STATE_NAMES:
        if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
            state = state[name]
    if not isinstance(state, Mapping) or not any(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"{where}: holds no tensors by name")
    tensors = {name: tensor.detach() for name, tensor in state.items() if isinstance(tensor, Tensor)}
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return {
        name: tensor for name, tensor in tensors.items() if name not in _JIT_BUFFERS and not _DROPPED.fullmatch(name)
    }


def build(config: CLIPConfig, state: State, where: Path | str = "these weights") -> CLIP:
    """A float32 CPU model in eval mode with the tensors of any known layout.

    Raises:
        ValueError: the tensors are not those of this config; the first that differs is named.
    """
    if not any(name.startswith("image.stem.") for name in state):
        try:
            state = to_ours(state, LAYOUTS[detect(state)])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    with torch.device("meta"):
        clip = CLIP(config)
    state = _fill(clip, state)
    expected = clip.state_dict()
    for name in expected:
        if name not in state:
            raise ValueError(f"{where}: {name} is missing for this architecture")
        if state[name].shape != expected[name].shape:
            found, wanted = list(state[name].shape), list(expected[name].shape)
            raise ValueError(f"{where}: {name} is {found}, this architecture has {wanted}")
    extra = [name for name in state if name not in expected]
    if extra:
        raise ValueError(f"{where}: {extra[0]} is a part that this architecture does not have")
    state = {name: _laid_out(tensor, expected[name].stride()) for name, tensor in state.items()}
    clip.load_state_dict(state, assign=True)
    return clip.requires_grad_(True).eval()


def _laid_out(tensor: Tensor, strides: tuple[int, ...]) -> Tensor:
    """The tensor in the memory layout of its model: other layouts run other kernels, which round differently."""
    if tensor.stride() == strides:
        return tensor
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)


def _fill(clip: CLIP, state: State) -> State:
    """float32 throughout; scalars without an axis; what older files lack and what has one possible value."""
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    for name in ("logit_scale", "logit_bias"):
        if name in state and state[name].numel() == 1:
            state[name] = state[name].reshape(())
    if clip.logit_bias is not None:
        state.setdefault("logit_bias", torch.zeros(()))
    for name in clip.state_dict():
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, torch.zeros((), dtype=torch.int64))
    return state


def identified(clip: CLIP, name: str, tokenizer: Tokenizer | None, trained_on: dict[str, Any] | None = None) -> CLIP:
    """The model with what it carries besides its weights, and the fingerprint that belongs to all of it."""
    clip.name, clip.tokenizer, clip.trained_on = name, tokenizer, trained_on
    clip.fingerprint = fingerprint(clip)
    return clip


def infer_config(state: State) -> CLIPConfig:
    """The config that OpenAI's own loader reads off the shapes: heads of 64, QuickGELU, fourfold MLPs.

    Raises:
        ValueError: not in OpenAI's layout.
    """
    if detect(state) not in ("openai_vit", "openai_resnet"):
        raise ValueError("not in OpenAI's layout: the architecture cannot be read off the shapes")
    stem = state["visual.conv1.weight"]
    text_dim = state["ln_final.weight"].shape[0]
    text = TextConfig(
        vocabulary_size=state["token_embedding.weight"].shape[0],
        context_length=state["positional_embedding"].shape[0],
        dim=text_dim,
        layers=_count(state, r"transformer\.resblocks\.(\d+)\..*"),
        heads=max(1, text_dim // 64),
        mlp_dim=4 * text_dim,
        end_id=state["token_embedding.weight"].shape[0] - 1,
    )
    if "visual.proj" in state:
        dim, patch_size = stem.shape[0], stem.shape[-1]
        image = ViTConfig(
            image_size=patch_size * round((state["visual.positional_embedding"].shape[0] - 1) ** 0.5),
            patch_size=patch_size,
            dim=dim,
            layers=_count(state, r"visual\.transformer\.resblocks\.(\d+)\..*"),
            heads=max(1, dim // 64),
            mlp_dim=4 * dim,
        )
    else:
        channels = state["visual.layer1.0.conv1.weight"].shape[0]
        image = ResNetConfig(
            image_size=32 * round((state["visual.attnpool.positional_embedding"].shape[0] - 1) ** 0.5),
            layers=tuple(_count(state, rf"visual\.layer{stage}\.(\d+)\..*") for stage in (1, 2, 3, 4)),
            channels=channels,
            heads=channels // 2,
        )
    bias = 0.0 if "logit_bias" in state else None
    return CLIPConfig(image=image, text=text, embed_dim=state["text_projection"].shape[1], logit_bias_init=bias)


def fitting_architectures(state: State) -> list[str]:
    """Names of the published architectures whose tensors have exactly these shapes."""
    meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
    shapes = _shapes(to_ours(meta, LAYOUTS[detect(meta)]))
    fitting = []
    for name in architectures.names():
        config = architectures.architecture(name)
        rows: dict[str, tuple[int, ...]] = {"text.embedding.weight": (config.text.vocabulary_size, config.text.dim)}
        if isinstance(config.image, ViTConfig):
            rows["image.stem.weight"] = (config.image.dim, 3, config.image.patch_size, config.image.patch_size)
        if any(shapes.get(key) != shape for key, shape in rows.items()):
            continue  # cheaper than building it
        with torch.device("meta"):
            if _shapes(CLIP(config).state_dict()) == shapes:
                fitting.append(name)
    return fitting


def _shapes(state: State) -> dict[str, torch.Size]:
    """Of all but single numbers, which older files lack or store with an axis."""
    return {name: tensor.shape for name, tensor in state.items() if tensor.numel() > 1}


def to_layout(clip: CLIP, layout: str) -> State:
    """The model's tensors under published names: `openai`, `open_clip` or `hf`; bit-exact.

    Raises:
        ValueError: that layout cannot express the model; the message says which part.
    """
    rules = LAYOUTS[target_layout(clip.config, layout)]
    ours = {name: tensor.detach() for name, tensor in clip.state_dict().items()}
    state = to_theirs(ours, rules)
    if layout == "openai":
        _refuse_unless_inferred(clip.config, infer_config(state))
    return {name: tensor.contiguous() for name, tensor in state.items()}


def target_layout(config: CLIPConfig, layout: str) -> str:
    """The name in `LAYOUTS` that a model of this config takes on in `openai`, `open_clip` or `hf`."""
    if layout == "hf":
        return f"hf_{to_hf_config(config)['model_type']}"
    if layout not in ("openai", "open_clip"):
        raise ValueError(f"unknown layout {layout!r}; known are openvocab, openai, open_clip, hf")
    if layout == "openai":
        pooled = isinstance(config.image, ViTConfig) and config.image.pool == "attention"
        if pooled or config.text.projection != "linear" or config.logit_bias_init is not None:
            raise ValueError("the openai layout holds only a CLIP: no logit bias, no projection bias, no SigLIP tower")
    custom = to_open_clip_config(config)["model_cfg"].get("custom_text", False)
    tower = "resnet" if isinstance(config.image, ResNetConfig) else "vit"
    if not custom:
        return f"openai_{tower}"
    timm = isinstance(config.image, ViTConfig) and config.image.pool == "attention"
    return f"open_clip_{'timm' if timm else tower}" + ("_affine" if config.text.projection == "affine" else "")


def fingerprint(clip: CLIP) -> str:
    """The model's identity: weights (as float32), activations, preprocessing, tokenizer."""
    activations = [getattr(tower, "activation", "relu") for tower in (clip.config.image, clip.config.text)]
    tokenizer = None if clip.tokenizer is None else clip.tokenizer.fingerprint
    return storage.fingerprint(digests(clip), activations, to_dict(clip.preprocessing), tokenizer)


def digests(model: nn.Module) -> list[list[Any]]:
    """Name, shape and hash of every tensor of a model."""
    state = sorted(model.state_dict().items())
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter
        return list(pool.map(lambda item: [item[0], list(item[1].shape), _digest(item[1])], state))


def _digest(tensor: Tensor) -> str:
    tensor = tensor.detach().cpu()
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    return hashlib.sha256(tensor.contiguous().view(-1).view(torch.uint8).numpy().data).hexdigest()


def _refuse_unless_inferred(config: CLIPConfig, inferred: CLIPConfig) -> None:
    """OpenAI's loader has only shapes to go by: what they do not say must be what it assumes."""
    for tower in ("image", "text"):
        ours, theirs = to_dict(getattr(config, tower)), to_dict(getattr(inferred, tower))
        for name in ours.keys() - {"dropout", "patch_dropout", "resampling"}:
            if ours[name] != theirs[name]:
                what = f"{tower}.{name}={ours[name]!r}"
                raise ValueError(f"the openai layout cannot say {what}: its loader takes {theirs[name]!r}")


def _count(state: State, pattern: str) -> int:
    return len({found[1] for name in state if (found := re.fullmatch(pattern, name))})
