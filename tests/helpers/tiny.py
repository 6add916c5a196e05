"""The smallest CLIP, and pictures for it."""

import numpy as np
import torch
from PIL import Image

from openvocab.blocks.text import TextConfig
from openvocab.blocks.vit import ViTConfig
from openvocab.clip.model import CLIP, CLIPConfig
from openvocab.clip.tokenizer import CLIPTokenizer


def tiny_clip(seed=0, logit_bias_init=None, **text):
    torch.manual_seed(seed)
    image = ViTConfig(image_size=16, patch_size=8, dim=16, layers=1, heads=2, mlp_dim=32, patch_dropout=0.5)
    text = TextConfig(**{"dim": 16, "layers": 2, "heads": 2, "mlp_dim": 32} | text)
    clip = CLIP(CLIPConfig(image=image, text=text, embed_dim=8, logit_bias_init=logit_bias_init)).eval()
    clip.tokenizer, clip.fingerprint, clip.name = CLIPTokenizer(), f"tiny{seed}", "tiny"
    return clip


def write_picture(path, seed, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 30, 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path
