"""LSeg: words for pixels, learned from masks (Li et al. 2022, arXiv 2201.03546).

Every pixel gets a vector in the space of CLIP's text tower, which stays as it is; the labels' vectors name it:

    f_ijk = I_ij . T_k / 0.07,   I_ij and T_k unit vectors,   loss = CE(f_ij, class of pixel ij)

I is a ViT read after chosen blocks, put together by DPT's neck (`blocks.dpt`). After the product come no, one, two or
four spatial blocks: one 3x3 convolution that all label maps share, so that labels may come in any number and order.
Reproduced: encoder from timm's, a CLIP's or random weights, both kinds of blocks, the nets for fixed labels and for
pairs ("others", name), the evaluation over scales and windows, HSNet's protocol, the official checkpoints.
Differs from the paper: the text tower is run once per label set; what no label names is asked for on purpose, see
`LSegConfig.others`; pictures keep their shape. Left out: the ResNet-101 encoder, torchvision's, whose one large stem
convolution and strided 3x3 convolutions CLIP's ResNet does not have.

    openvocab train lseg --out run                                          generated scenes
    openvocab train lseg --size paper --data ade --init hf:openai/clip-vit-base-patch32 \
        --set data.encoder=vit_large_patch16_384.safetensors --out run
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor, nn

from openvocab.blocks.dpt import DPT
from openvocab.blocks.vit import ViT, ViTConfig
from openvocab.clip.architectures import architecture
from openvocab.clip.dense import TINY_CLIP, Segmentation, dense_pixels, measure_segmentation, segmented
from openvocab.clip.engine import evaluating
from openvocab.clip.layouts import Rule, State, same, timm_vit, to_ours, to_theirs
from openvocab.clip.model import CLIP, CLIPConfig
from openvocab.clip.preprocess import PreprocessConfig
from openvocab.clip.protocols import cut, measure_fold, segment_at_scales
from openvocab.clip.saved import CLIPSystemModel
from openvocab.clip.tokenizer import CLIPTokenizer
from openvocab.clip.torchscript import read_stripped
from openvocab.clip.vocabulary import Vocabulary, check_model, vocabulary
from openvocab.clip.weights import build as build_clip
from openvocab.clip.weights import clean, fingerprint, infer_config, read_tensors, to_layout
from openvocab.data.annotated import NOTHING, Annotated, AnnotatedBatches, AnnotatedConfig, Annotation, open_annotated
from openvocab.data.decode import decode, to_rgb
from openvocab.metrics.segment import IGNORED
from openvocab.shapes import Batch, Images
from openvocab.system import Recipe, System
from openvocab.train import distributed
from openvocab.train.config import FitConfig, GroupConfig, OptimConfig
from openvocab.train.fit import Stage
from openvocab.train.step import Losses

SCALE = 1 / 0.07
"""Constant, as in the official code, where CLIP learns it."""
OTHERS = "others"

Maps = Float[Tensor, "image label rows cols"]
Texts = Float[Tensor, "image label embed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LSegConfig:
    """A CLIP for its text tower, an image encoder, and how pixels meet words.

    `read_after`: numbers of the blocks that the neck reads; `widths`: its channels for each; the first is read
    `finest` times as fine as the patches. `blocks` spatial blocks of the kind `block` share their weights.
    `others`: what a pixel is that no label names: nothing (every pixel has a label), the word "others" as in the
    zero-shot nets, or a vector of its own that is learned.
    `loss_on`: the maps' cells, a quarter of the work, or pixels, to which the maps are enlarged.
    `closed`: no words but a linear head over these labels, the control.
    """

    clip: CLIPConfig
    image: ViTConfig
    preprocess: PreprocessConfig | None = None
    read_after: tuple[int, ...]
    widths: tuple[int, ...]
    finest: int = 4
    channels: int = 256
    blocks: int = 0
    block: Literal["bottleneck", "depthwise"] = "bottleneck"
    activation: Literal["lrelu", "tanh", "relu"] = "lrelu"
    others: Literal["none", "word", "learned"] = "none"
    loss_on: Literal["pixels", "cells"] = "pixels"
    closed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.read_after) != len(self.widths) or self.read_after[-1] != self.image.layers - 1:
            raise ValueError(
                f"LSegConfig: read_after {self.read_after} ends with the last of {self.image.layers} blocks and has as "
                f"many numbers as widths {self.widths}"
            )
        if self.closed and (self.blocks or self.others == "word"):
            raise ValueError("LSegConfig: a closed head has no blocks and no words")


class LabelBlock(nn.Module):
    """act(conv(x)), or act(conv(x) + max over labels of x) for a bottleneck; the same for every label."""

    def __init__(self, kind: str, activation: str):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.kind = kind
        self.activation = {"lrelu": F.leaky_relu, "tanh": torch.tanh, "relu": F.relu}[activation]

    def forward(self, maps: Maps, last: bool) -> Maps:
        out = self.conv(maps.flatten(0, 1).unsqueeze(1)).view_as(maps)
        if self.kind == "bottleneck":
            out = out + maps.amax(1, keepdim=True)
        return out if last else self.activation(out)


class LSeg(CLIPSystemModel):
    """Pixels and labels in one space."""

    system, config_type = "lseg", LSegConfig

    def __init__(self, config: LSegConfig, clip: CLIP | None = None):
        super().__init__(config, clip)
        self.clip.requires_grad_(False)
        dim, embed = config.image.dim, len(config.closed) + 1 if config.closed else config.clip.embed_dim
        self.image = ViT(replace(config.image, projection="none"), dim)
        self.image.norm = nn.Identity()  # type: ignore[assignment]  # the neck reads blocks, before the last norm
        self.neck = DPT(dim, config.channels, config.widths, config.finest)
        self.head = nn.Conv2d(config.channels, embed, 1)
        self.block = LabelBlock(config.block, config.activation) if config.blocks else None
        self.register_buffer("others", None)
        if config.others == "learned" and not config.closed:
            self.others = nn.Parameter(torch.randn(embed))
        elif config.others != "none":
            self.others = F.one_hot(torch.tensor(0), embed).float()

    def dense(self, images: Images) -> Float[Tensor, "image embed rows cols"]:
        """A unit vector for every cell; sides are multiples of the patch."""
        found = self.image(images, layers=self.config.read_after)
        maps = self.head(self.neck(found.layers, found.grid)).float()
        return maps if self.config.closed else SCALE * F.normalize(maps, dim=1)

    def forward(self, images: Images, texts: Texts) -> Maps:
        """How well every cell fits each text of its picture, a row of `texts`."""
        return self.compare(self.dense(images), texts)

    def pixels(self, images: Images, texts: Texts) -> Float[Tensor, "image label height width"]:
        """`forward` at the pictures' own size."""
        return enlarged(self(images, texts), (images.shape[2], images.shape[3]))

    def compare(self, dense: Float[Tensor, "image embed rows cols"], texts: Texts) -> Maps:
        """`forward` above the pictures: a second label set costs no second pass."""
        maps = torch.einsum("iehw,ike->ikhw", dense, texts)
        for number in range(1, self.config.blocks + 1):
            maps = self.block(maps, last=number == self.config.blocks)  # type: ignore[misc]
        return maps

    def with_others(self, texts: Texts) -> Float[Tensor, "image more embed"]:
        """In front of each picture's texts what none of them names, in models that have it."""
        if self.others is None:
            return texts
        return torch.cat([F.normalize(self.others, dim=0).expand(len(texts), 1, -1), texts], dim=1)

    def texts(self, labels: Vocabulary | Any) -> tuple[tuple[str, ...], Float[Tensor, "label embed"]]:
        """Labels as they were given and their vectors: of the bare names, as published, kept for the next time."""
        if self.config.closed:
            names = labels.labels if isinstance(labels, Vocabulary) else tuple(labels)
            rows = torch.tensor([self.config.closed.index(name) for name in names])
            return names, F.one_hot(rows + 1, len(self.config.closed) + 1).float()
        words = labels if isinstance(labels, Vocabulary) else vocabulary(self.clip, labels, "{}")
        check_model(self.clip, words)
        return words.labels, words.embeds

    def name_others(self) -> None:
        """Reads the word that stands for what no label names, in models that have it as a word."""
        if self.config.others == "word":
            self.others = self.texts([OTHERS])[1][0].to(self.head.weight.device)

    def segment(
        self,
        picture: Any,
        labels: Vocabulary | Any,
        *,
        others: str | bool = True,
        none_below: float | None = None,
        short_side_px: int | None = None,
    ) -> Segmentation:
        """What each pixel shows, in these words; one pass of the picture whatever the number of labels.

        Args:
            others: pixels of what no label names show `NONE`: as the model learned it (if it did), or what fits this
                word best; False gives every pixel a label.
            none_below: pixels that no label fits with this probability belong to none.
            short_side_px: the resolution; the model's own by default.

        Raises:
            ValueError: no labels, or a vocabulary of another model.
        """
        image = picture if isinstance(picture, Image.Image) else decode(picture)
        names, embeds = self.texts(labels)
        pixels = dense_pixels(to_rgb(image), self.preprocessing, self.config.image.patch_size, short_side_px)
        device = self.head.weight.device
        with evaluating(self):
            texts = embeds[None].to(device)
            if isinstance(others, str):
                texts = torch.cat([self.texts([others])[1][None].to(device), texts], dim=1)
            elif others:
                texts = self.with_others(texts)
            maps = self(pixels.to(device), texts)[0].float().cpu()
        extra = len(maps) - len(names)
        found = segmented(maps, (OTHERS,) * extra + names, (image.height, image.width), none_below=none_below)
        return Segmentation(names, (found.classes - extra).clamp(min=-1), found.scores[extra:])

    @classmethod
    def load(cls, folder: Path | str, clip: CLIP | None = None) -> "LSeg":
        """openvocab's folder, or an official checkpoint: a file, which holds its own CLIP."""
        return from_official(folder) if Path(folder).is_file() else super().load(folder)


_TINY_VIT = ViTConfig(image_size=32, patch_size=8, dim=32, layers=2, heads=2, mlp_dim=64, resampling="bilinear")
_VIT_L = ViTConfig(
    image_size=384,
    patch_size=16,
    dim=1024,
    layers=24,
    heads=16,
    mlp_dim=4096,
    activation="gelu",
    norm_eps=1e-6,
    pre_norm=False,
    patch_bias=True,
    resampling="bilinear",
)
_PIXELS = PreprocessConfig(image_size=480, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bilinear")

SIZES = {
    "tiny": LSegConfig(
        clip=TINY_CLIP,
        image=_TINY_VIT,
        read_after=(0, 1),
        widths=(8, 16),
        finest=2,
        channels=8,
        blocks=2,
        others="learned",
    ),
    "small": LSegConfig(
        clip=TINY_CLIP,
        image=ViTConfig(image_size=64, patch_size=8, dim=96, layers=4, heads=4, mlp_dim=384, activation="gelu"),
        read_after=(1, 2, 3),
        widths=(64, 64, 64),
        finest=2,
        channels=64,
        others="learned",
        loss_on="cells",
    ),
    "paper": LSegConfig(
        clip=architecture("ViT-B-32-quickgelu"),
        image=_VIT_L,
        preprocess=_PIXELS,
        read_after=(5, 11, 17, 23),
        widths=(256, 512, 1024, 1024),
    ),
}
"""A run's CLIP is the one that it is given; `small` has its image encoder too."""


def build(config: LSegConfig | str, clip: CLIP | None = None) -> LSeg:
    """A freshly initialised model around `clip`; without one around one of random weights, which knows no words."""
    config = SIZES[config] if isinstance(config, str) else config
    return LSeg(config if clip is None else replace(config, clip=clip.full_config), clip)


def embed(model: LSeg, batch: Batch) -> dict[str, Tensor]:
    """The vectors of all cells."""
    return {"dense": model.dense(batch["images"])}


def loss(model: LSeg, batch: Batch, embeds: dict[str, Tensor]) -> Losses:
    """Cross entropy of the pixels that are not ignored; nothing is `others` to models that have it, else ignored."""
    maps, classes = model.compare(embeds["dense"], model.with_others(batch["texts"])), batch["classes"]
    if model.config.loss_on == "pixels":
        maps = enlarged(maps, (classes.shape[1], classes.shape[2]))
    rows, cols = (
        torch.linspace(0, have - 1, want).round().long() for have, want in zip(classes.shape[1:], maps.shape[2:])
    )
    classes = classes[:, rows][:, :, cols]
    if model.others is None:
        classes = (classes - 1).clamp(min=IGNORED)
    known = (classes != IGNORED).sum().clamp(min=1)
    return {"loss": F.cross_entropy(maps, classes, ignore_index=IGNORED, reduction="sum") / known}


def enlarged(maps: Maps, size: tuple[int, int]) -> Float[Tensor, "image label height width"]:
    """Maps at pixels: bilinear, corners on corners."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=True)


def example(model: LSeg, rows: int) -> Batch:
    """Noise in which half of the pixels show something."""
    size, embed_dim = model.config.image.image_size, model.head.out_channels
    texts = F.normalize(torch.randn(rows, 3, embed_dim), dim=-1)
    classes = torch.randint(-3, 4, (rows, size, size)).clamp(min=NOTHING)
    return {"images": torch.randn(rows, 3, size, size), "texts": texts, "classes": classes}


@dataclass(frozen=True, kw_only=True, slots=True)
class LSegData:
    """Pictures with masks, and what a step asks of them.

    `encoder`: what the image encoder begins with: the image tower of the `clip` that the run is given, `scratch`, or a
    file of timm's ViT weights.
    `asked`: so many labels are asked of each picture, one that it shows and others by chance; what is not asked for
    belongs to `others`. 0 asks all, 1 makes the pairs of the zero-shot nets.
    `scales`: the short side of a picture becomes this share of the model's size, then a square is cut, or padded with
    pixels that are ignored.
    """

    pictures: AnnotatedConfig = AnnotatedConfig()
    encoder: str = "clip"
    asked: int = 0
    scales: tuple[float, float] = (1.0, 1.0)


class Samples:
    """Makes samples of annotations: cut, flipped, and asked about."""

    def __init__(self, model: LSeg, labels: tuple[str, ...], data: LSegData):
        names = model.config.closed or labels
        self.texts = model.texts(names)[1]
        self.rows = torch.tensor([NOTHING, *(1 + names.index(label) for label in labels), IGNORED])
        self.pixels, self.data = model.preprocessing, data

    def __call__(self, found: Annotation, rng: np.random.Generator) -> dict[str, Tensor]:
        if found.classes is None:
            raise ValueError(f"{found.key}: has boxes only, lseg learns from masks")
        images, classes = cut(found.image, found.classes, rng, self.pixels, self.data.scales)
        texts, classes = self.texts, self.rows[classes]
        if self.data.asked:
            texts, classes = ask(texts, classes, rng, self.data.asked)
        return {"images": images, "classes": classes, "texts": texts}


def ask(
    texts: Float[Tensor, "label embed"], classes: Int64[Tensor, "height width"], rng: np.random.Generator, count: int
) -> tuple[Float[Tensor, "asked embed"], Int64[Tensor, "height width"]]:
    """Some of the labels, one of them shown if any is; the pixels of the others show nothing."""
    shown = [row for row in classes.unique().tolist() if row > NOTHING]
    order = rng.permutation(len(texts)) + 1
    first = int(rng.choice(shown)) if shown else int(order[0])
    chosen = torch.tensor([first, *order[order != first][: count - 1].tolist()])
    rows = torch.full((len(texts) + 2,), NOTHING)
    rows[chosen], rows[IGNORED] = torch.arange(len(chosen)) + 1, IGNORED
    return texts[chosen - 1], rows[classes]


def recipe(size: str, source: str = "scenes") -> Recipe[LSegConfig]:
    """The training run of a size; `paper` is that of ADE20K, for a batch of 16 (section 4.2 and the official code)."""
    pictures = AnnotatedConfig(source=source)
    if size == "paper":
        slow = OptimConfig(
            method="sgd", lr=0.004, betas=(0.9, 0.0), weight_decay=1e-4, warmup_steps=0, schedule="poly", clip_norm=None
        )
        encoder = GroupConfig(name="encoder", prefixes=("image.", "neck.reassemble."))
        return Recipe(
            model=SIZES[size],
            data=LSegData(pictures=replace(pictures, batch_size=16, workers=8), scales=(0.5, 2.0)),
            optim=slow,
            fit=FitConfig(steps=303_120),
            groups=(encoder, GroupConfig(optim=replace(slow, lr=0.04))),
        )
    tiny = size == "tiny"
    pictures = replace(pictures, num_scenes=200, batch_size=8) if tiny and source == "scenes" else pictures
    encoder = GroupConfig(name="encoder", prefixes=("image.",), optim=OptimConfig(lr=3e-4, weight_decay=0.05))
    return Recipe(
        model=SIZES[size],
        data=LSegData(pictures=pictures, encoder="scratch" if tiny else "clip"),
        optim=OptimConfig(lr=2e-3, weight_decay=0.05),
        fit=FitConfig(steps=20 if tiny else 600, checkpoint_every_steps=100),
        groups=(encoder, GroupConfig()),
    )


def prepare(
    recipe: Recipe[LSegConfig], init: CLIP | None = None, folder: Path | None = None
) -> tuple[LSeg, tuple[Stage]]:
    """Opens the data, builds the model around the CLIP `init`, begins its encoder as the data config says.

    Raises:
        ValueError: no CLIP, or an encoder that does not fit.
    """
    data, config = recipe.data, recipe.model
    if init is None or init.tokenizer is None:
        raise ValueError("lseg learns pixels for the words of a CLIP: give one with its tokenizer (--init MODEL)")
    pictures = open_annotated(data.pictures, recipe.fit.seed)
    torch.manual_seed(recipe.fit.seed)
    if data.encoder == "clip":
        if not isinstance(init.config.image, ViTConfig):
            raise ValueError(f"{init.name}: lseg reads blocks of a ViT; this CLIP has none, set data.encoder")
        config = replace(config, image=init.config.image, preprocess=init.preprocessing)
    model = build(config, init)
    if data.encoder == "clip":
        start_encoder(model, init.image.state_dict())
    elif data.encoder != "scratch":
        start_encoder(model, encoder_from_timm(read_tensors(data.encoder)))
    model.name_others()
    model.name = f"lseg-{Path(data.pictures.source).stem}"
    model.trained_on = {"clip": init.trained_on, "source": pictures.source, "labels": list(pictures.labels)}
    group = distributed.world()
    batches = AnnotatedBatches(
        pictures,
        Samples(model, pictures.labels, data),
        batch_size=data.pictures.batch_size,
        seed=recipe.fit.seed,
        workers=data.pictures.workers,
        rank=distributed.rank(group),
        world_size=distributed.world_size(group),
        quarantine=folder / "quarantine.jsonl" if folder else None,
    )
    stage = Stage(name="lseg", data=batches, loss=loss, embed=embed, optim=recipe.optim, config=recipe.fit)
    return model, (replace(stage, groups=recipe.groups),)


def start_encoder(model: LSeg, state: State) -> None:
    """Gives the image encoder the weights of another ViT; what the neck does not read (last norm, head) is left out.

    Raises:
        ValueError: they are not of this ViT.
    """
    mine = model.image.state_dict()
    for name, tensor in mine.items():
        if name not in state or state[name].shape != tensor.shape:
            found = list(state[name].shape) if name in state else "missing"
            raise ValueError(f"encoder weights: {name} is {found}, this model has {list(tensor.shape)}")
    model.image.load_state_dict({name: state[name] for name in mine})


def encoder_from_timm(state: State) -> State:
    """timm's ViT or DeiT weights (`vit_base_patch16_384`) under the names of `blocks.vit`."""
    state = {f"vit.{name}": tensor for name, tensor in state.items() if not _UNREAD.match(f"vit.{name}")}
    return {name.removeprefix("image."): tensor for name, tensor in to_ours(state, timm_vit("vit")).items()}


def evaluate(model: LSeg, data: Annotated, novel: tuple[str, ...] = ()) -> dict[str, float]:
    """Every label of the source a choice at every pixel: miou and its kin, those of `novel` labels apart."""
    labels: Any = data.labels if model.config.closed else vocabulary(model.clip, data.labels, "{}")
    return measure_segmentation(lambda image: model.segment(image, labels), data, novel)


def evaluate_at_scales(model: LSeg, data: Annotated) -> dict[str, float]:
    """The paper's protocol for fixed labels, see `clip.protocols.segment_at_scales`."""
    names, embeds = model.texts(data.labels)

    def score(images: Images) -> Maps:
        with evaluating(model):
            return model.pixels(images, model.with_others(embeds.expand(len(images), -1, -1)))

    return measure_segmentation(lambda image: segment_at_scales(image, names, score, model.preprocessing), data)


def evaluate_fold(model: LSeg, data: Annotated, fold: list[tuple[str, int]], size_px: int = 480) -> dict[str, float]:
    """The zero-shot protocol, see `clip.protocols.measure_fold`: each picture is asked for ("others", name)."""
    others = OTHERS if model.others is None else True

    def segment(image: Image.Image, label: str) -> Segmentation:
        return model.segment(image, [label], others=others, short_side_px=size_px)

    return measure_fold(segment, data, fold, size_px)


_UNREAD = re.compile(r".*(?:refinenet4\.resConfUnit1|(?:model|vit)\.(?:norm|head|fc_norm|pre_logits))\..*")
"""In official checkpoints and timm's, but of no effect: the coarsest fusion's unit for a finer layer, the ViT's end."""


def _unit(ours: str, theirs: str) -> list[Rule]:
    return [
        rule
        for i in (1, 2)
        for rule in (
            same(f"{ours}.conv{i}.weight", f"{theirs}.conv{i}.weight"),
            same(f"{ours}.norm{i}.{{s}}", f"{theirs}.bn{i}.{{s}}"),
        )
    ]


def _level(level: int) -> list[Rule]:
    read, fusion = f"pretrained.act_postprocess{level + 1}", f"scratch.refinenet{level + 1}"
    return [
        same(f"neck.reassemble.{level}.readout.{{p}}", f"{read}.0.project.0.{{p}}"),
        same(f"neck.reassemble.{level}.narrow.{{p}}", f"{read}.3.{{p}}"),
        same(f"neck.reassemble.{level}.resize.{{p}}", f"{read}.4.{{p}}"),
        same(f"neck.align.{level}.weight", f"scratch.layer{level + 1}_rn.weight"),
        same(f"neck.fusions.{level}.out.{{p}}", f"{fusion}.out_conv.{{p}}"),
        *_unit(f"neck.fusions.{level}.skip", f"{fusion}.resConfUnit1"),
        *_unit(f"neck.fusions.{level}.refine", f"{fusion}.resConfUnit2"),
    ]


PEER_KEYS = (
    *timm_vit("pretrained.model"),
    *(rule for level in range(4) for rule in _level(level)),
    same("head.{p}", "scratch.head1.{p}"),
    same("block.conv.{p}", "scratch.head_block.depthwise.depthwise.{p}"),
)
"""The official code's names, without `net.`; its CLIP lies beside them."""
_WORDS = "clip_pretrained."


def from_official(path: Path | str) -> LSeg:
    """An official checkpoint, which holds its CLIP, in eval mode; what `_UNREAD` names is dropped, all else must fit.

    Raises:
        ValueError: not of a ViT, or with spatial blocks of a kind that the file does not say.
    """
    found = read_stripped(path)
    state = clean(found, path)
    state = {name.removeprefix("net."): t for name, t in state.items() if name.startswith("net.")} or state
    if "pretrained.model.patch_embed.proj.weight" not in state:
        raise ValueError(f"{path}: not an official LSeg with a ViT: no pretrained.model.patch_embed.proj.weight in it")
    words = {name.removeprefix(_WORDS): tensor for name, tensor in state.items() if name.startswith(_WORDS)}
    clip = build_clip(infer_config(words), words, where=path)
    clip.name, clip.tokenizer = f"text of {Path(path).name}", CLIPTokenizer(clip.config.text.context_length)
    clip.fingerprint = fingerprint(clip)
    rest = {name: t.float() for name, t in state.items() if name not in words and not name.startswith(_WORDS)}
    ours = to_ours({name: tensor for name, tensor in rest.items() if not _UNREAD.fullmatch(name)}, PEER_KEYS)
    model = LSeg(official_config(ours, clip, found.get("hyper_parameters") or {}, path), clip)
    ours |= {name: tensor for name, tensor in model.state_dict().items() if name.startswith("clip.")}
    try:
        model.load_state_dict(ours)
    except RuntimeError as error:
        raise ValueError(f"{path}: not an official LSeg: {str(error).splitlines()[-1].strip()}") from None
    model.name = Path(path).stem
    model.fingerprint = model.identity()
    return model.eval()


def official_config(state: State, clip: CLIP, told: Mapping[str, Any], where: Path | str) -> LSegConfig:
    """The config of an official state dict, read off its shapes and the checkpoint's `hyper_parameters`."""
    dim, _, patch, _ = state["image.stem.weight"].shape
    layers = len({name.split(".")[2] for name in state if name.startswith("image.blocks.")})
    blocks: dict[str, Any] = {}
    if "block.conv.weight" in state:
        if told.get("arch_option") not in (1, 2):
            raise ValueError(f"{where}: has spatial blocks, and no hyper_parameters to say which (arch_option)")
        kind = "bottleneck" if told["arch_option"] == 1 else "depthwise"
        blocks = {"block": kind, "blocks": told["block_depth"], "activation": told["activation"]}
    side = patch * round((len(state["image.positions"]) - 1) ** 0.5)
    image = replace(_VIT_L, image_size=side, patch_size=patch, dim=dim, layers=layers)
    return LSegConfig(
        clip=clip.full_config,
        image=replace(image, heads=max(1, dim // 64), mlp_dim=4 * dim),
        preprocess=_PIXELS,
        read_after=tuple(layers * (level + 1) // 4 - 1 for level in range(4)),
        widths=tuple(len(state[f"neck.reassemble.{level}.narrow.bias"]) for level in range(4)),
        finest=patch // 4,
        channels=state["head.weight"].shape[1],
        **blocks,
    )


def to_official(model: LSeg) -> State:
    """The model's tensors under the official names, its CLIP among them; without what `_UNREAD` names."""
    mine = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(("clip.", "others"))}
    words = {f"{_WORDS}{name}": tensor for name, tensor in to_layout(model.clip, "openai").items()}
    return {f"net.{name}": tensor for name, tensor in (to_theirs(mine, PEER_KEYS) | words).items()}


SYSTEM = System(
    name="lseg",
    title="LSeg",
    paper="arXiv 2201.03546",
    sizes=SIZES,
    build=build,
    loss=loss,
    embed=embed,
    recipe=recipe,
    prepare=prepare,
    evaluate=evaluate,
    example=example,
    load=LSeg.load,
    init=("clip", "dense"),
)
