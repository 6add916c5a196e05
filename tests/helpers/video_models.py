"""Models of videos, and what their authors' constructors register."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from openvocab.blocks.text import TextConfig
from openvocab.blocks.vit import ViTConfig
from openvocab.clip.caption_bpe import train_tokenizer
from openvocab.clip.dense import TINY_CLIP
from openvocab.clip.model import CLIP, CLIPConfig
from openvocab.clip.weights import fingerprint

OFFICIAL = CLIPConfig(
    image=ViTConfig(image_size=32, patch_size=16, dim=64, layers=2, heads=1, mlp_dim=256),
    text=TextConfig(vocabulary_size=512, end_id=511, dim=64, layers=1, heads=1, mlp_dim=256),
    embed_dim=64,
)
Shapes = dict[str, tuple[int, ...]]


def words_clip(texts: Sequence[str], config: CLIPConfig = TINY_CLIP) -> CLIP:
    """Random weights that read the words of these texts."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(texts, 320, context_length=40)
    text = replace(config.text, vocabulary_size=tokenizer.vocabulary_size, end_id=tokenizer.end_id)
    clip = CLIP(replace(config, text=text)).eval()
    clip.tokenizer, clip.name = tokenizer, "words"
    clip.fingerprint = fingerprint(clip)
    return clip


def official_blocks(prefix: str, layers: int) -> Shapes:
    """A stack of OpenAI's blocks at width 64."""
    names: Shapes = {}
    for number in range(layers):
        block = f"{prefix}resblocks.{number}."
        names |= {f"{block}attn.in_proj_weight": (192, 64), f"{block}attn.in_proj_bias": (192,)}
        names |= {f"{block}attn.out_proj.weight": (64, 64), f"{block}attn.out_proj.bias": (64,)}
        names |= {f"{block}mlp.c_fc.weight": (256, 64), f"{block}mlp.c_fc.bias": (256,)}
        names |= {f"{block}mlp.c_proj.weight": (64, 256), f"{block}mlp.c_proj.bias": (64,)}
        names |= {f"{block}ln_{i}.{part}": (64,) for i in (1, 2) for part in ("weight", "bias")}
    return names


def official_lstm() -> Shapes:
    """The LSTM of both, with the places that it does not read."""
    names: Shapes = {f"lstm_visual.weight_{way}_l0": (256, 64) for way in ("ih", "hh")}
    names |= {f"lstm_visual.bias_{way}_l0": (256,) for way in ("ih", "hh")}
    return names | {"frame_position_embeddings.weight": (77, 64)}
