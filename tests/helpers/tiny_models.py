"""Models small enough for every test that needs a whole CLIP."""

import torch

from openvocab.blocks.resnet import ResNetConfig
from openvocab.blocks.text import CBOWConfig, TextConfig
from openvocab.blocks.vit import ViTConfig
from openvocab.clip.model import CLIP, CLIPConfig
from openvocab.clip.tokenizer import CLIPTokenizer

TEXT = TextConfig(dim=64, layers=1, heads=1, mlp_dim=256)
VIT = ViTConfig(image_size=32, patch_size=16, dim=64, layers=1, heads=1, mlp_dim=256)
RESNET = ResNetConfig(image_size=32, layers=(1, 1, 1, 1), channels=4, heads=2)

CONFIGS = {
    "vit": CLIPConfig(image=VIT, text=TEXT, embed_dim=16),
    "resnet": CLIPConfig(image=RESNET, text=TEXT, embed_dim=16),
    "words": CLIPConfig(image=VIT, text=CBOWConfig(dim=8), embed_dim=16),
    "biased": CLIPConfig(image=VIT, text=TEXT, embed_dim=16, logit_bias_init=-10.0),
}


def tiny_clip(kind: str = "vit", seed: int = 0) -> CLIP:
    torch.manual_seed(seed)
    clip = CLIP(CONFIGS[kind]).eval()
    clip.tokenizer, clip.name = CLIPTokenizer(), f"tiny {kind}"
    with torch.no_grad():
        for parameter in clip.parameters():
            if parameter.ndim:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    return clip
