"""What lies in a published folder beside its config: the weights under one of their names, the tokenizer; a CLIP
that lies within other weights."""

from pathlib import Path

from openvocab.blocks.text import CBOWConfig, TextConfig
from openvocab.clip.layouts import State
from openvocab.clip.model import CLIP
from openvocab.clip.tokenizer import CLIPTokenizer, Tokenizer
from openvocab.clip.tokenizer_files import load_tokenizer
from openvocab.clip.weights import build, identified, infer_config
from openvocab.progress import warn

CLIP_VOCABULARY_SIZE = 49408

_WEIGHT_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model.pth",
    "model.pth",
)


def weight_file(path: Path) -> Path:
    """The weights of a folder.

    Raises:
        FileNotFoundError: none of the names that weights are published under.
    """
    for name in _WEIGHT_FILES:
        if (path / name).exists():
            return path / name
    raise FileNotFoundError(f"{path}: has a config but no weights (model.safetensors, pytorch_model.bin, ...)")


def tokenizer_of(path: Path, text: TextConfig | CBOWConfig) -> Tokenizer:
    """A folder's tokenizer, checked against vocabulary and end id; CLIP's own where there are no files."""
    length, size = text.context_length, text.vocabulary_size
    try:
        tokenizer = load_tokenizer(path, length)
    except FileNotFoundError as missing:
        if size != CLIP_VOCABULARY_SIZE:
            raise FileNotFoundError(f"{missing}; a vocabulary of {size} needs its tokenizer's files") from None
        clip_defaults(path, text, "tokenizer.json")
        return CLIPTokenizer(length)
    if tokenizer.vocabulary_size > size:
        raise ValueError(f"{path}: the tokenizer has {tokenizer.vocabulary_size} tokens, the model {size}")
    if isinstance(text, TextConfig) and text.pool == "end" and tokenizer.end_id != text.end_id:
        raise ValueError(f"{path}: the tokenizer ends texts with id {tokenizer.end_id}, the model reads {text.end_id}")
    return tokenizer


def clip_within(state: State, where: Path | str, name: str) -> CLIP:
    """The CLIP of a checkpoint that holds one beside other weights, under OpenAI's names; it reads CLIP's words."""
    clip = build(infer_config(state), state, where=where)
    return identified(clip, name, CLIPTokenizer(clip.config.text.context_length))


def clip_defaults(path: Path, text: TextConfig | CBOWConfig, missing: str) -> None:
    """Says that CLIP's own file stands in for a missing one, or raises where the vocabulary is not CLIP's."""
    if text.vocabulary_size != CLIP_VOCABULARY_SIZE:
        raise FileNotFoundError(f"{path / missing} is missing")
    warn(f"{path}: no {missing}; its vocabulary is CLIP's, so CLIP's own is taken")
