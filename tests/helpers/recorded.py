"""What scripts/record.py gave to the official code, so that tests can give the same to ours, and read what it said."""

import json
import math
import re
import zlib
from pathlib import Path
from typing import Any

import torch
from formula import sine
from torch import Tensor

FOLDER = Path(__file__).parent.parent / "recorded"
DIM, CONTEXT, WORDS = 128, 20, 600
"""Of the small CLIP: two heads of 64."""
CLIP4CLIP = ("meanP, 2d", "meanP, 3d", "seqLSTM, 2d", "seqTransf, 2d", "tightTransf, 2d")
ACTIONCLIP = ("meanP", "Conv_1D", "LSTM", "Transf", "Transf_cls")
DVAE = {"dim": 64, "groups": 4, "blocks": 1, "stem_dim": 16}
TAMING = {"ch": 32, "out_ch": 3, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": [8], "in_channels": 3}
TAMING |= {"resolution": 16, "z_channels": 32, "double_z": False}
CODES = 512
NORMS = r"\bnorm\w*\.weight$"
SHOWN = torch.tensor([[True] * 4, [True, True, False, False]])


def numbers(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text())


def weights(
    shapes: dict[str, tuple[int, ...]], gains: str = r"\b(ln_\w+|bn\d?|downsample\.1|4)\.weight$"
) -> dict[str, Tensor]:
    """A state dict in which a tensor's values follow from its official name; gains of norms are near 1."""
    state = {}
    for name, shape in shapes.items():
        mark = zlib.crc32(name.encode())
        values = sine(math.prod(shape), 0.11 * (mark % 7 + 1), mark % 97, 0.05).view(shape)
        state[name] = values + 1 if re.search(gains, name) and len(shape) == 1 else values
    return state


def judged(outputs: Tensor) -> Tensor:
    """What gradients are taken of: no entry counts as much as another."""
    return (outputs * sine(outputs.numel(), 0.7, 0.4).view(outputs.shape)).sum()


def summed(gradients: dict[str, Tensor]) -> dict[str, list[float]]:
    return {name: [float(f"{v:.6g}") for v in (g.sum().item(), g.abs().sum().item())] for name, g in gradients.items()}


def clip_shapes() -> dict[str, tuple[int, ...]]:
    """OpenAI's names in a CLIP of one layer each of ViT and text: patches of 8 pixels, pictures of 16."""
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (),
        "text_projection": (DIM, DIM),
        "positional_embedding": (CONTEXT, DIM),
        "token_embedding.weight": (WORDS, DIM),
        "visual.class_embedding": (DIM,),
        "visual.positional_embedding": (5, DIM),
        "visual.proj": (DIM, DIM),
        "visual.conv1.weight": (DIM, 3, 8, 8),
    }
    block = {"attn.in_proj_weight": (3 * DIM, DIM), "attn.in_proj_bias": (3 * DIM,), "attn.out_proj.weight": (DIM, DIM)}
    block |= {"attn.out_proj.bias": (DIM,), "mlp.c_fc.weight": (4 * DIM, DIM), "mlp.c_fc.bias": (4 * DIM,)}
    block |= {"mlp.c_proj.weight": (DIM, 4 * DIM), "mlp.c_proj.bias": (DIM,)}
    norms = ["ln_final", "visual.ln_pre", "visual.ln_post"]
    for tower in ("transformer", "visual.transformer"):
        shapes |= {f"{tower}.resblocks.0.{name}": shape for name, shape in block.items()}
        norms += [f"{tower}.resblocks.0.{norm}" for norm in ("ln_1", "ln_2")]
    return shapes | {f"{norm}.{part}": (DIM,) for norm in norms for part in ("weight", "bias")}


def clip4clip_inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Token ids of two texts, two clips of four frames, and which frames are there."""
    ids = torch.zeros(2, CONTEXT, dtype=torch.long)
    ids[0, :5], ids[1, :7] = torch.tensor([598, 3, 40, 5, 599]), torch.tensor([598, 9, 9, 77, 300, 2, 599])
    return ids, sine(2 * 4 * 3 * 256, 0.013).view(2, 4, 3, 16, 16), SHOWN


def features() -> Tensor:
    """Of two clips of four frames."""
    return sine(2 * 4 * DIM, 0.37).view(2, 4, DIM)


def views() -> Tensor:
    """Of four clouds in three views."""
    return sine(4 * 3 * 16, 0.37).view(4, 3, 16)


def graphs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Words and regions of two pictures, and which of them are padding."""
    text_pad = torch.tensor([[False] * 3, [False, False, True]])
    image_pad = torch.tensor([[False] * 4, [False, False, True, True]])
    return sine(48, 0.7).view(2, 3, 8), sine(64, 0.9, 0.3).view(2, 4, 8), text_pad, image_pad


DALLE_PATTERNS = ("full", "axial_row", "axial_col", "conv_like")
DALLE_WORDS, DALLE_CODES, DALLE_TEXT, DALLE_BEGIN = 20, 8, 5, 19
"""Ids of words, codes, the text with the start of picture as its last word, and that word."""


def dalle_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Of DALLE-pytorch, with what is not in the paper off: layer scales are 1, gated MLPs plain ones."""
    state = {name: 4 * value for name, value in weights(shapes).items()}
    for name, value in state.items():
        gated = value[: len(value) // 2] if ".net.0." in name else value[:0]
        if name.endswith((".scale", ".net.0.bias")):
            (value if name.endswith(".scale") else gated).fill_(1.0)
        elif name.endswith((".norm.weight", "to_logits.0.weight")):
            value.add_(1.0)
        else:
            gated.zero_()
    return state


def dalle_inputs() -> tuple[Tensor, Tensor]:
    """Texts that end with the start of a picture, one of them shorter, and codes of 4 x 4."""
    text = torch.tensor([[3, 7, 11, 2, DALLE_BEGIN], [5, 1, 0, 0, DALLE_BEGIN]])
    return text, (torch.arange(32).view(2, 16) * 5 + 3) % DALLE_CODES


def pixels() -> Tensor:
    """A picture of 8 x 16, of values from 0 to 1."""
    return (sine(3 * 8 * 16, 0.37) + 1).view(1, 3, 8, 16) / 2


def shares() -> Tensor:
    """Of codes at two places."""
    return (4 * sine(CODES * 2, 0.91)).view(1, CODES, 1, 2).softmax(1)


def latents() -> Tensor:
    """Of a picture of 8 x 16 under `TAMING`."""
    return sine(32 * 4 * 8, 0.53, s=0.06).view(1, 32, 4, 8)


CLIPASSO: dict[str, dict[str, Any]] = {
    "resnet": {"image_resolution": 64, "vision_layers": (1, 1, 1, 1), "vision_width": 16, "vision_patch_size": None},
    "vit": {"image_resolution": 224, "vision_layers": 3, "vision_width": 128, "vision_patch_size": 32},
}
PIXELS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def sketched() -> tuple[Tensor, Tensor]:
    """A sketch and a picture, from 0 to 1."""
    size = 3 * 64 * 64
    return 0.5 + sine(size, 0.31, 0, 0.5).view(1, 3, 64, 64), 0.5 + sine(size, 0.017, 1, 0.5).view(1, 3, 64, 64)


def looked() -> Tensor:
    """A picture of 224 pixels, normalised."""
    return sine(3 * 224 * 224, 0.0123).view(1, 3, 224, 224)


def gray() -> Tensor:
    """Of 48 by 40 pixels, in the range of normalised ones: slow waves with darker lines."""
    across = sine(40, 0.2, 0, 1.2)[None] + sine(48, 0.13, 1, 0.8)[:, None]
    return across - 1.5 * (torch.arange(40) % 11 == 5) * (torch.arange(48) > 10)[:, None]


STYLED, STYLED_MAP = 16, 2
"""Of rosinality's generator: the side of its pictures, layers of its mapping; the latents have 32 values."""


def styled_latents() -> tuple[Tensor, Tensor, Tensor]:
    """Of Z, of W+, and a mean of W."""
    return sine(32, 0.7, 0.2).view(1, 32), sine(6 * 32, 0.9).view(1, 6, 32), sine(32, 0.3, 1.0)


def modulated() -> tuple[Tensor, Tensor]:
    """Maps and latents of two pictures."""
    return sine(2 * 6 * 16, 0.37).view(2, 6, 4, 4), sine(2 * 8, 0.9).view(2, 8)


def styled_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Of size 1, those of the mapping of 100, as both are multiplied by the rate of the layer."""
    state = {name: 20 * value for name, value in weights(shapes).items()}
    return {
        name: 100 * value if re.match(r"style\.|mapping\.(fc|\d)", name) else value for name, value in state.items()
    }


def channel_pictures() -> Tensor:
    """CLIP's embeddings of 3 codes with each of 10 channels low and high."""
    return sine(10 * 3 * 2 * 6, 0.83, 0.1).view(10, 3, 2, 6)


def channel_sigmas() -> tuple[Tensor, Tensor]:
    """Of a generator of two convolutions of 4 and 6 channels with colours made after the first, and the text's step."""
    return 1 + 0.5 * sine(14, 0.77), torch.nn.functional.normalize(sine(6, 1.3, 0.4), dim=0)


BETA = 0.2
"""Least relevance of a channel that the step moves."""


def signs() -> Tensor:
    """Latents of 18 layers on which every norm agrees: values of size 1."""
    return sine(18 * 512, 0.61, 0.3).sign().view(1, 18, 512)
