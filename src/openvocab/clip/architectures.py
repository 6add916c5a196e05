"""Published architectures by name: OpenAI's nine, open_clip's plain ViT family, SigLIP and SigLIP 2.

Names are open_clip's. `ViT-B-32` has exact GELU, `ViT-B-32-quickgelu` the sigmoid approximation that OpenAI's weights
were trained with; OpenAI's own spellings of the ViTs (`ViT-B/32`, `ViT-L/14@336px`) mean the latter.
"""

import dataclasses
import difflib
import functools
import math

from openvocab.blocks.resnet import ResNetConfig
from openvocab.blocks.text import TextConfig
from openvocab.blocks.transformer import Activation
from openvocab.blocks.vit import ViTConfig
from openvocab.clip.model import CLIPConfig
from openvocab.clip.preprocess import PreprocessConfig

SIGLIP_BIAS, SIGLIP_SCALE = -10.0, math.log(10)

OPENAI_FILES = {
    "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762": "RN50",
    "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599": "RN101",
    "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd": "RN50x4",
    "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa": "RN50x16",
    "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c": "RN50x64",
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af": "ViT-B/32",
    "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f": "ViT-B/16",
    "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836": "ViT-L/14",
    "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02": "ViT-L/14@336px",
}
"""SHA-256 of the files that OpenAI published, and what it calls them."""


def clip_text(dim: int, layers: int = 12, activation: Activation = "gelu") -> TextConfig:
    """CLIP's text tower at a width: heads of 64, fourfold MLP."""
    return TextConfig(dim=dim, layers=layers, heads=dim // 64, mlp_dim=4 * dim, activation=activation)


def clip_vit(
    embed_dim: int,
    image_size: int,
    patch_size: int,
    dim: int,
    layers: int,
    text: TextConfig,
    *,
    head_dim: int = 64,
    mlp_dim: int | None = None,
) -> CLIPConfig:
    """A plain ViT beside a text tower, both with the text's activation."""
    image = ViTConfig(
        image_size=image_size,
        patch_size=patch_size,
        dim=dim,
        layers=layers,
        heads=dim // head_dim,
        mlp_dim=mlp_dim or 4 * dim,
        activation=text.activation,
    )
    return CLIPConfig(image=image, text=text, embed_dim=embed_dim)


def clip_resnet(
    embed_dim: int, image_size: int, layers: tuple[int, ...], channels: int, text: TextConfig
) -> CLIPConfig:
    """A modified ResNet beside a text tower; its attention heads are 64 wide."""
    image = ResNetConfig(image_size=image_size, layers=layers, channels=channels, heads=channels // 2)
    return CLIPConfig(image=image, text=text, embed_dim=embed_dim)


def siglip(
    image_size: int,
    patch_size: int,
    dim: int,
    layers: int,
    heads: int,
    mlp_dim: int,
    text: TextConfig,
    activation: Activation = "gelu",
) -> CLIPConfig:
    """SigLIP (arXiv 2303.15343): no class token, a pooling head, no image projection, a bias on the logits."""
    image = ViTConfig(
        image_size=image_size,
        patch_size=patch_size,
        dim=dim,
        layers=layers,
        heads=heads,
        mlp_dim=mlp_dim,
        activation=activation,
        norm_eps=1e-6,
        class_token=False,
        pool="attention",
        pre_norm=False,
        patch_bias=True,
        projection="none",
    )
    half = (0.5, 0.5, 0.5)
    return CLIPConfig(
        image=image,
        text=text,
        embed_dim=dim,
        logit_scale_init=SIGLIP_SCALE,
        logit_bias_init=SIGLIP_BIAS,
        preprocess=PreprocessConfig(image_size=image_size, mean=half, std=half, resize_mode="squash"),
    )


def siglip_text(
    dim: int,
    layers: int,
    heads: int,
    mlp_dim: int,
    *,
    vocabulary_size: int = 32000,
    context_length: int = 64,
    activation: Activation = "gelu",
) -> TextConfig:
    """SigLIP's text tower: bidirectional, read at the last position, projected with a bias."""
    return TextConfig(
        vocabulary_size=vocabulary_size,
        context_length=context_length,
        dim=dim,
        layers=layers,
        heads=heads,
        mlp_dim=mlp_dim,
        activation=activation,
        norm_eps=1e-6,
        causal=False,
        pool="last",
        end_id=vocabulary_size - 1,
        projection="affine",
    )


@functools.cache
def _plain() -> dict[str, CLIPConfig]:
    """The models that exist with either activation, here with exact GELU."""
    t256, t384, t512, t640, t768, t1024 = (clip_text(dim) for dim in (256, 384, 512, 640, 768, 1024))
    t256 = dataclasses.replace(t256, layers=10)
    t1024x24, t1280x32, t1280x36 = clip_text(1024, 24), clip_text(1280, 32), clip_text(1280, 36)
    return {
        "RN50": clip_resnet(1024, 224, (3, 4, 6, 3), 64, t512),
        "RN101": clip_resnet(512, 224, (3, 4, 23, 3), 64, t512),
        "RN50x4": clip_resnet(640, 288, (4, 6, 10, 6), 80, t640),
        "RN50x16": clip_resnet(768, 384, (6, 8, 18, 8), 96, t768),
        "RN50x64": clip_resnet(1024, 448, (3, 15, 36, 10), 128, t1024),
        "ViT-S-32": clip_vit(384, 224, 32, 384, 12, t384),
        "ViT-S-16": clip_vit(384, 224, 16, 384, 12, t384),
        "ViT-S-32-alt": clip_vit(256, 224, 32, 384, 12, t256),
        "ViT-S-16-alt": clip_vit(256, 224, 16, 384, 12, t256),
        "ViT-M-32": clip_vit(512, 224, 32, 512, 12, t512),
        "ViT-M-16": clip_vit(512, 224, 16, 512, 12, t512),
        "ViT-M-32-alt": clip_vit(384, 224, 32, 512, 12, t384),
        "ViT-B-32": clip_vit(512, 224, 32, 768, 12, t512),
        "ViT-B-32-256": clip_vit(512, 256, 32, 768, 12, t512),
        "ViT-B-32-plus-256": clip_vit(640, 256, 32, 896, 12, t640),
        "ViT-B-16": clip_vit(512, 224, 16, 768, 12, t512),
        "ViT-B-16-plus": clip_vit(640, 224, 16, 896, 12, t640),
        "ViT-B-16-plus-240": clip_vit(640, 240, 16, 896, 12, t640),
        "ViT-L-16": clip_vit(768, 224, 16, 1024, 24, t768),
        "ViT-L-16-320": clip_vit(768, 320, 16, 1024, 24, t768),
        "ViT-L-14": clip_vit(768, 224, 14, 1024, 24, t768),
        "ViT-L-14-280": clip_vit(768, 280, 14, 1024, 24, t768),
        "ViT-L-14-336": clip_vit(768, 336, 14, 1024, 24, t768),
        "ViT-H-16": clip_vit(1024, 224, 16, 1280, 32, t1024x24, head_dim=80),
        "ViT-H-14": clip_vit(1024, 224, 14, 1280, 32, t1024x24, head_dim=80),
        "ViT-H-14-378": clip_vit(1024, 378, 14, 1280, 32, t1024x24, head_dim=80),
        "ViT-g-14": clip_vit(1024, 224, 14, 1408, 40, t1024x24, head_dim=88, mlp_dim=6144),
        "ViT-bigG-14": clip_vit(1280, 224, 14, 1664, 48, t1280x32, head_dim=104, mlp_dim=8192),
        "ViT-e-14": clip_vit(1280, 224, 14, 1792, 56, t1280x36, head_dim=112, mlp_dim=15360),
    }


@functools.cache
def _siglips() -> dict[str, CLIPConfig]:
    towers = {"B": (768, 12, 12, 3072), "L": (1024, 24, 16, 4096), "SO400M": (1152, 27, 16, 4304)}
    published = [
        ("SigLIP", "B", 16, (224, 256, 384, 512)),
        ("SigLIP", "L", 16, (256, 384)),
        ("SigLIP", "SO400M", 14, (224, 378, 384)),
        ("SigLIP2", "B", 32, (256,)),
        ("SigLIP2", "B", 16, (224, 256, 384, 512)),
        ("SigLIP2", "L", 16, (256, 384, 512)),
        ("SigLIP2", "SO400M", 14, (224, 378)),
        ("SigLIP2", "SO400M", 16, (256, 384, 512)),
    ]
    out = {}
    for family, size, patch, widths in published:
        for width in widths:
            if family == "SigLIP2":
                text = siglip_text(*towers[size], vocabulary_size=256000, activation="gelu_tanh")
            else:
                text = siglip_text(*towers[size], context_length=16 if (size, width) == ("SO400M", 224) else 64)
            name = f"ViT-{size}-{patch}-{family}" + ("" if width == 224 else f"-{width}")
            out[name] = siglip(width, patch, *towers[size], text)
    return out


def names() -> list[str]:
    """Every architecture by name."""
    plain = [name + suffix for name in _plain() for suffix in ("", "-quickgelu")]
    return sorted([*plain, *_siglips()])


def architecture(name: str) -> CLIPConfig:
    """The config of a published architecture.

    Raises:
        ValueError: unknown; the nearest name is given.
    """
    if "/" in name:
        name = name.replace("/", "-").replace("@", "-").removesuffix("px") + "-quickgelu"
    plain = _plain()
    base = name.removesuffix("-quickgelu")
    if base in plain:
        return plain[base] if name == base else with_activation(plain[base], "quick_gelu")
    siglips = _siglips()
    if name in siglips:
        return siglips[name]
    near = difflib.get_close_matches(name, names(), n=1)
    raise ValueError(f"unknown architecture {name!r}" + (f"; nearest is {near[0]!r}" if near else ""))


def name_of(config: CLIPConfig) -> str | None:
    """The published name of a config's network, whatever its preprocessing and initial temperature."""
    for name in names():
        known = architecture(name)
        if (known.image, known.text, known.embed_dim) == (config.image, config.text, config.embed_dim):
            return name
    return None


def with_activation(config: CLIPConfig, activation: Activation) -> CLIPConfig:
    """The same model with another activation in both transformers; a ResNet's ReLUs stay."""
    image, text = config.image, config.text
    if isinstance(image, ViTConfig):
        image = dataclasses.replace(image, activation=activation)
    if isinstance(text, TextConfig):
        text = dataclasses.replace(text, activation=activation)
    return dataclasses.replace(config, image=image, text=text)
