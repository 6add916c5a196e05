"""CLIPSeg: a prompt in words or in pictures to a mask (Lüddecke and Ecker 2022, arXiv 2112.10003).

A small decoder reads what a frozen CLIP saw after some of its blocks, the deepest first, told by the prompt c what to
look for:

    a_1 = W_mul c * R_1 x_9 + W_add c,   a_i = block_i-1(a_i-1) + R_i x,   logits = ConvTranspose(block_3(a_3))

with c the embedding of a text, of a picture, or w text + (1 - w) picture, none of them normalised. Reproduced: both
decoder heads, PhraseCut+'s three changes (pictures as prompts, blends of both, phrases that are not there), the binary
cross-entropy, the decoder alone trained. Differs from the paper: pictures keep their shape; all prompts on a picture
share one pass of it; a phrase drawn as absent is checked to be absent; the cosine ends at 0.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from PIL import Image, ImageFilter
from safetensors.torch import save_file
from torch import Tensor, nn

from openvocab import storage
from openvocab.blocks.text import TextConfig
from openvocab.blocks.transformer import PostNormBlock, check_layers
from openvocab.blocks.vit import ViTConfig
from openvocab.clip import hf_config, preprocess
from openvocab.clip.architectures import architecture
from openvocab.clip.dense import TINY_CLIP, Maps, Segmentation, dense_pixels, judged
from openvocab.clip.engine import embed_texts, evaluating
from openvocab.clip.folder import RECORD
from openvocab.clip.layouts import LAYOUTS, Rule, State, hf_blocks, same, to_ours, to_theirs, under
from openvocab.clip.model import CLIP, CLIPConfig
from openvocab.clip.preprocess import PreprocessConfig
from openvocab.clip.published import tokenizer_of, weight_file
from openvocab.clip.saved import CLIPSystemModel
from openvocab.clip.templates import fill
from openvocab.clip.templates import templates as read_templates
from openvocab.clip.vocabulary import read_labels
from openvocab.clip.weights import read_tensors
from openvocab.data.decode import decode, to_rgb
from openvocab.shapes import Batch, Images, Tokens
from openvocab.system import System
from openvocab.train.step import Losses

Conditions = Float[Tensor, "prompt embed"]
"""What is looked for: rows of the shared space, as the towers give them."""

_TOKENS = 2**14
"""Of the decoder at once: many prompts on a large picture stay in bounded memory."""
_IMAGENET = PreprocessConfig(
    image_size=352,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    resize_mode="squash",
    interpolation="bilinear",
)


_PUBLISHED_LAYERS = (3, 6, 9)


@dataclass(frozen=True, kw_only=True, slots=True)
class CLIPSegConfig:
    """A decoder on `extract_layers` of a CLIP with a ViT; the defaults are the authors' of their weights rd64."""

    clip: CLIPConfig
    preprocess: PreprocessConfig = _IMAGENET
    extract_layers: tuple[int, ...] = _PUBLISHED_LAYERS
    """Blocks, from 0, in ascending order."""
    dim: int = 64
    heads: int = 4
    mlp_dim: int = 2048
    condition_layer: int = 0
    """The layer of the decoder, from 0, that the prompt enters before."""
    head: Literal["simple", "complex"] = "simple"
    """From places to pixels by one transposed convolution; or by a convolution and two ("refined" weights)."""
    dropout: float = 0.1

    def __post_init__(self) -> None:
        image = self.clip.image
        if not isinstance(image, ViTConfig) or not image.class_token:
            raise ValueError("CLIPSeg reads the tokens of a ViT with a class token; this CLIP has none")
        check_layers(self.extract_layers, image.layers)
        if not 0 <= self.condition_layer < len(self.extract_layers):
            raise ValueError(
                f"condition_layer {self.condition_layer}: the decoder has {len(self.extract_layers)} layers"
            )
        if self.head == "complex" and image.patch_size % 4:
            raise ValueError(f"head 'complex' needs patches of a multiple of 4 pixels, not {image.patch_size}")


@dataclass(frozen=True)
class Prompt:
    """What is looked for: words; or a picture that shows it, and where in it; or something of both.

    Fields:
        label: what the result calls it, and the words that are read.
        picture: shows it; path or PIL image.
        mask: where it is in the picture; the rest is blurred, darkened and cropped away (section 3.2).
        text_weight: w in w text + (1 - w) picture; of no meaning without a picture.
    """

    label: str
    picture: Any = None
    mask: Bool[np.ndarray, "height width"] | None = None
    text_weight: float = 0.0


@dataclass(frozen=True)
class Activations:
    """What the decoder reads of pictures: tokens after each of `extract_layers`, class token first."""

    layers: tuple[Float[Tensor, "image token dim"], ...]
    grid: tuple[int, int]


class Decoder(nn.Module):
    """Activations of the tower and a prompt to one logit a pixel."""

    def __init__(self, config: CLIPSegConfig):
        super().__init__()
        dim, image, embed_dim = config.dim, config.clip.image, config.clip.embed_dim
        assert isinstance(image, ViTConfig)
        self.condition_layer = config.condition_layer
        self.film_mul, self.film_add = nn.Linear(embed_dim, dim), nn.Linear(embed_dim, dim)
        self.reduces = nn.ModuleList(nn.Linear(image.dim, dim) for _ in config.extract_layers)
        self.blocks = nn.ModuleList(
            PostNormBlock(dim, config.heads, config.mlp_dim, "relu", image.norm_eps, config.dropout)
            for _ in config.extract_layers
        )
        self.head = _head(config.head, dim, image.patch_size)

    def forward(self, seen: Activations, conditions: Conditions) -> Float[Tensor, "prompt height width"]:
        """Prompt i on picture i, or all prompts on a single picture."""
        a: Any = 0
        for number, (tokens, reduce, block) in enumerate(zip(reversed(seen.layers), self.reduces, self.blocks)):
            a = reduce(tokens) + a
            if number == self.condition_layer:
                a = self.film_mul(conditions).unsqueeze(1) * a + self.film_add(conditions).unsqueeze(1)
            a = block(a)
        return self.head(a[:, 1:].transpose(1, 2).unflatten(2, seen.grid)).squeeze(1)


def _head(kind: str, dim: int, patch: int) -> nn.Module:
    if kind == "simple":
        return nn.ConvTranspose2d(dim, 1, patch, stride=patch)
    first, second = patch // 4, 4
    return nn.Sequential(
        nn.Conv2d(dim, dim, 3, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(dim, dim // 2, first, stride=first),
        nn.ReLU(),
        nn.ConvTranspose2d(dim // 2, 1, second, stride=second),
    )


class CLIPSeg(CLIPSystemModel):
    """A frozen CLIP and a decoder; a given CLIP keeps its weights, which the two then share."""

    system, config_type = "clipseg", CLIPSegConfig

    def __init__(self, config: CLIPSegConfig, clip: CLIP | None = None):
        image = replace(config.clip.image, resampling="bicubic", patch_dropout=0.0)
        config = replace(config, clip=replace(config.clip, image=image))
        own = CLIP(config.clip)
        if clip is not None:
            own.load_state_dict(clip.state_dict(), assign=True)
            own.tokenizer, own.name, own.trained_on = clip.tokenizer, clip.name, clip.trained_on
        super().__init__(config, own)
        self.clip.requires_grad_(False)
        self.decoder = Decoder(config)

    def train(self, mode: bool = True) -> "CLIPSeg":
        """The decoder's mode: CLIP is frozen."""
        super().train(mode)
        self.clip.eval()
        return self

    def forward(self, images: Images, conditions: Conditions) -> Float[Tensor, "prompt height width"]:
        """Logits of prompt i on picture i; the sides of pictures are multiples of the patch."""
        return self.decoder(self.see(images), conditions)

    @torch.no_grad()
    def see(self, images: Images) -> Activations:
        """The one pass of pictures that any number of prompts share."""
        found = self.clip.image(images, layers=self.config.extract_layers, tokens=False)
        return Activations(found.layers, found.grid)

    @torch.no_grad()
    def read(self, tokens: Tokens) -> Conditions:
        """Texts as conditions."""
        return self.clip.encode_text(tokens, normalize=False)

    @torch.no_grad()
    def look(self, images: Images) -> Conditions:
        """Pictures as conditions."""
        return self.clip.encode_image(images, normalize=False)

    def conditions(self, prompts: Sequence[Prompt], templates: Any = "generic") -> Conditions:
        """Prompts as conditions, texts as the mean over `templates`."""
        patterns = read_templates(templates)
        texts = [fill(pattern, prompt.label) for prompt in prompts for pattern in patterns]
        said = embed_texts(self.clip, texts, normalize=False).view(len(prompts), len(patterns), -1).mean(1)
        said = said.to(self.clip.logit_scale.device)
        for row, prompt in enumerate(prompts):
            if prompt.picture is not None:
                picture = to_rgb(_opened(prompt.picture))
                if prompt.mask is not None:
                    picture = highlighted(picture, prompt.mask, self.preprocessing.image_size)
                shown = self.look(self.preprocess(picture)[None].to(said.device))[0]
                said[row] = torch.lerp(shown, said[row], prompt.text_weight)
        return said

    def segment(
        self,
        picture: Any,
        labels: Any,
        *,
        templates: Any = "generic",
        none_below: float | None = None,
        short_side_px: int | None = None,
    ) -> Segmentation:
        """What each pixel shows, in these words or pictures, each judged by itself; one pass of the picture.

        Args:
            labels: texts, `Prompt`s, or a file of labels; of several names of a label the first is read.
            none_below: pixels that nothing fits with this probability belong to none; a half where it is not given.
            short_side_px: the resolution; the model's own by default.

        Raises:
            ValueError: no labels, an empty or repeated one, a text too long, or a mask not of its picture's size.
        """
        image, prompts = _opened(picture), _prompts(labels)
        limit = 0.5 if none_below is None else none_below
        names = tuple(prompt.label for prompt in prompts)
        with evaluating(self):
            maps = self._maps(image, self.conditions(prompts, templates), short_side_px)
            return judged(maps, names, (image.height, image.width), none_below=limit)

    def probabilities(
        self, picture: Any, labels: Any, *, templates: Any = "generic", short_side_px: int | None = None
    ) -> Float[Tensor, "label height width"]:
        """How well each prompt by itself fits each pixel; prompts may overlap. Arguments as in `segment`."""
        image, prompts = _opened(picture), _prompts(labels)
        size = (image.height, image.width)
        with evaluating(self):
            maps = self._maps(image, self.conditions(prompts, templates), short_side_px)
            parts = [F.interpolate(part[None], size=size, mode="bilinear")[0].sigmoid() for part in maps]
        return torch.cat(parts)

    def _maps(self, image: Image.Image, conditions: Conditions, short_side_px: int | None) -> Iterator[Maps]:
        """Logits at the tower's resolution, some prompts at a time."""
        stride = self.config.clip.image.patch_size
        seen = self.see(dense_pixels(to_rgb(image), self.preprocessing, stride, short_side_px).to(conditions.device))
        for part in conditions.split(max(1, _TOKENS // (seen.grid[0] * seen.grid[1]))):
            yield self.decoder(seen, part).float().cpu()


def _opened(picture: Any) -> Image.Image:
    return picture if isinstance(picture, Image.Image) else decode(picture)


def _prompts(labels: Any) -> list[Prompt]:
    if isinstance(labels, Sequence) and not isinstance(labels, str):
        given = [label if isinstance(label, Prompt) else None for label in labels]
        names = read_labels([prompt.label if prompt else label for prompt, label in zip(given, labels)])
        return [prompt or Prompt(name[0]) for prompt, name in zip(given, names)]
    return [Prompt(name[0]) for name in read_labels(labels)]


def highlighted(picture: Image.Image, mask: Bool[np.ndarray, "height width"], size_px: int) -> Image.Image:
    """A square of the part under `mask` with a tenth of context; what lies around is blurred and darkened.

    The best of the paper's ways to point at a part of a picture (its table 1, "crop, blur, darken"): a Gaussian of 3
    pixels at 352, a tenth of the brightness.

    Raises:
        ValueError: an empty mask, or one of another size than the picture.
    """
    if mask.shape != (picture.height, picture.width):
        found = f"{mask.shape[1]} x {mask.shape[0]}"
        raise ValueError(f"prompt: the mask is {found} pixels, its picture {picture.width} x {picture.height}")
    if not mask.any():
        raise ValueError("prompt: the mask shows nothing")
    ys, xs = mask.nonzero()
    left, top, right, bottom = int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
    half = 0.6 * max(right - left, bottom - top)
    x, y = (left + right) / 2, (top + bottom) / 2
    box = (int(x - half), int(y - half), int(np.ceil(x + half)), int(np.ceil(y + half)))
    size = (size_px, size_px)
    part = picture.crop(box).resize(size, Image.Resampling.BICUBIC)
    inside = Image.fromarray(mask).convert("L").crop(box).resize(size, Image.Resampling.BILINEAR)
    around = part.filter(ImageFilter.GaussianBlur(3 * size_px / 352)).point(lambda value: value * 0.1)
    return Image.composite(part, around, inside)


_SCENES = PreprocessConfig(image_size=64, mean=(0.45, 0.45, 0.45), std=(0.25, 0.25, 0.25), resize_mode="squash")
SIZES = {
    "tiny": CLIPSegConfig(
        clip=TINY_CLIP,
        preprocess=replace(_SCENES, image_size=32),
        extract_layers=(0, 1),
        dim=8,
        heads=2,
        mlp_dim=16,
        head="complex",
        dropout=0.0,
    ),
    "paper": CLIPSegConfig(clip=architecture("ViT-B-16-quickgelu")),
    "refined": CLIPSegConfig(clip=architecture("ViT-B-16-quickgelu"), head="complex"),
}


def build(config: CLIPSegConfig | str, clip: CLIP | None = None) -> CLIPSeg:
    """A decoder of random weights on `clip`; without one on a CLIP of random weights, which knows nothing."""
    config = SIZES[config] if isinstance(config, str) else config
    return CLIPSeg(replace(config, clip=clip.full_config) if clip else config, clip)


def embed(model: CLIPSeg, batch: Batch) -> dict[str, Tensor]:
    """The logits of each picture's own prompt: words, and a share of a picture where the batch has some."""
    conditions = model.read(batch["tokens"])
    if "prompt_images" in batch:
        conditions = torch.lerp(model.look(batch["prompt_images"]), conditions, batch["text_weights"].unsqueeze(1))
    return {"logits": model(batch["images"], conditions)}


def loss(model: CLIPSeg, batch: Batch, embeds: dict[str, Tensor]) -> Losses:
    """Binary cross-entropy of every pixel (section 4)."""
    return {"loss": F.binary_cross_entropy_with_logits(embeds["logits"].float(), batch["masks"].float())}


def example(model: CLIPSeg, rows: int) -> Batch:
    """Noise, and prompts of noise in words and pictures."""
    image, text = model.config.clip.image, model.config.clip.text
    assert isinstance(text, TextConfig)
    tokens = torch.randint(1, text.vocabulary_size - 2, (rows, text.context_length))
    tokens[:, -1] = text.end_id
    images, shown = torch.randn(2, rows, 3, image.image_size, image.image_size)
    masks, weights = torch.rand(rows, image.image_size, image.image_size).round(), torch.rand(rows)
    return {"images": images, "masks": masks, "tokens": tokens, "prompt_images": shown, "text_weights": weights}


PEER_KEYS: dict[str, tuple[Rule, ...]] = {
    "hf": (
        *under("clip.", LAYOUTS["hf_clip"]),
        *(same(f"decoder.{name}.{{p}}", f"decoder.{name}.{{p}}") for name in ("film_mul", "film_add", "reduces.{n}")),
        same("decoder.head.{p}", "decoder.transposed_convolution.{p}"),
        same("decoder.head.{n}.{p}", "decoder.transposed_convolution.{n}.{p}"),
        *hf_blocks("decoder.blocks", "decoder.layers"),
    ),
    "official": (
        *(same(f"decoder.{name}.{{p}}", f"{name}.{{p}}") for name in ("film_mul", "film_add", "reduces.{n}")),
        same("decoder.head.{p}", "trans_conv.{p}"),
        same("decoder.head.{n}.{p}", "trans_conv.{n}.{p}"),
        same("decoder.blocks.{n}.attention.qkv.{p}", "blocks.{n}.self_attn.in_proj_{p}"),
        same("decoder.blocks.{n}.attention.out.{p}", "blocks.{n}.self_attn.out_proj.{p}"),
        same("decoder.blocks.{n}.mlp.up.{p}", "blocks.{n}.linear1.{p}"),
        same("decoder.blocks.{n}.mlp.down.{p}", "blocks.{n}.linear2.{p}"),
        *(same(f"decoder.blocks.{{n}}.norm{i}.{{p}}", f"blocks.{{n}}.norm{i}.{{p}}") for i in (1, 2)),
    ),
}
"""`hf` is transformers' CLIPSegForImageSegmentation, `official` the authors' files, which hold the decoder alone."""


def load(path: Path | str, clip: CLIP | None = None) -> CLIPSeg:
    """Opens a folder of openvocab's or of transformers', or the authors' weights beside the CLIP that they stand on.

    Args:
        clip: for the authors' files, which hold the decoder alone: their ViT-B/16.

    Raises:
        ValueError: not CLIPSeg's weights, or a file of the decoder alone without `clip`.
    """
    path = Path(path)
    if path.is_file():
        return _from_official(path, clip)
    if clip is not None:
        raise ValueError(f"{path}: holds its own CLIP; clip= is for the authors' files, which hold the decoder alone")
    return CLIPSeg.load(path) if (path / RECORD).is_file() else _from_hf(path)


def _from_official(path: Path, clip: CLIP | None) -> CLIPSeg:
    if clip is None:
        raise ValueError(f"{path}: holds CLIPSeg's decoder alone: give the CLIP it stands on (ViT-B/16) as clip=")
    state = {name: tensor for name, tensor in read_tensors(path).items() if not name.startswith("reduce.")}
    ours = _renamed(state, "official", path)
    layers = sum(name.startswith("decoder.reduces.") and name.endswith("weight") for name in ours)
    try:
        config = CLIPSegConfig(
            clip=clip.full_config,
            extract_layers=_PUBLISHED_LAYERS[:layers],
            dim=len(ours["decoder.film_mul.weight"]),
            mlp_dim=len(ours["decoder.blocks.0.mlp.up.weight"]),
            head="simple" if "decoder.head.weight" in ours else "complex",
        )
    except KeyError as missing:
        raise ValueError(f"{path}: not CLIPSeg's decoder: {missing.args[0]} is missing") from None
    model = build(config, clip)
    return _finished(model, model.state_dict() | ours, path)


def _from_hf(folder: Path) -> CLIPSeg:
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: not a model folder: no {RECORD} or config.json in it")
    steps = folder / "preprocessor_config.json"
    config = from_hf_config(storage.read_json(folder / "config.json"))
    if steps.is_file():
        config = replace(config, preprocess=preprocess.from_hf(storage.read_json(steps)))
    weights = weight_file(folder)
    state = {
        f"clip.{name.removeprefix('clipseg.')}" if name.startswith("clipseg.") else name: tensor
        for name, tensor in read_tensors(weights).items()
    }
    model = CLIPSeg(config)
    model.tokenizer = model.clip.tokenizer = tokenizer_of(folder, config.clip.text)
    return _finished(model, _renamed(state, "hf", weights), weights)


def _renamed(state: State, layout: str, where: Path) -> State:
    try:
        return to_ours({name: tensor.float() for name, tensor in state.items()}, PEER_KEYS[layout])
    except ValueError as error:
        raise ValueError(f"{where}: not CLIPSeg's weights: {error}") from None


def _finished(model: CLIPSeg, state: State, where: Path) -> CLIPSeg:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{where}: not the weights of its config: {str(error).splitlines()[-1].strip()}") from None
    model.name = where.stem if where.suffix == ".pth" else where.parent.name
    model.fingerprint = model.identity()
    return model.eval()


_HF_DECODER = {
    "reduce_dim": "dim",
    "decoder_num_attention_heads": "heads",
    "decoder_intermediate_size": "mlp_dim",
    "conditional_layer": "condition_layer",
}


def from_hf_config(values: dict[str, Any]) -> CLIPSegConfig:
    """A `config.json` of a CLIPSegForImageSegmentation; transformers ignores `decoder_hidden_act`, and so do we."""
    clip = hf_config.from_hf_config(values | {"model_type": "clip"})
    given = {ours: values[theirs] for theirs, ours in _HF_DECODER.items() if theirs in values}
    if "extract_layers" in values:
        given["extract_layers"] = tuple(values["extract_layers"])
    return CLIPSegConfig(
        clip=clip, head="complex" if values.get("use_complex_transposed_convolution") else "simple", **given
    )


def to_hf(model: CLIPSeg, folder: Path) -> None:
    """Writes the files of a folder that CLIPSegForImageSegmentation and CLIPSegProcessor open.

    Raises:
        ValueError: transformers has no such model: another tower, or the complex head on patches that are not 16 px.
    """
    config = model.config
    if config.head == "complex" and config.clip.image.patch_size != 16:
        raise ValueError(f"the hf layout has the complex head for patches of 16 px, not {config.clip.image.patch_size}")
    values = hf_config.to_hf_config(config.clip) | {
        "model_type": "clipseg",
        "architectures": ["CLIPSegForImageSegmentation"],
        "extract_layers": list(config.extract_layers),
        "use_complex_transposed_convolution": config.head == "complex",
        **{theirs: getattr(config, ours) for theirs, ours in _HF_DECODER.items()},
    }
    for tower in ("text", "vision"):
        values[f"{tower}_config"]["model_type"] = f"clipseg_{tower}_model"
    steps = preprocess.to_hf(config.preprocess) | {"image_processor_type": "ViTImageProcessor"}
    storage.write_json(folder / "config.json", values)
    storage.write_json(folder / "preprocessor_config.json", steps)
    if model.tokenizer is not None:
        model.tokenizer.save(folder)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(to_theirs(state, PEER_KEYS["hf"]), folder / "model.safetensors", metadata={"format": "pt"})


SYSTEM = System(
    name="clipseg",
    title="CLIPSeg",
    paper="arXiv 2112.10003",
    sizes=SIZES,
    build=build,
    loss=loss,
    embed=embed,
    example=example,
    load=load,
    to_hf=to_hf,
    parameters={"paper": 150_693_890, "refined": 150_747_746},
)
