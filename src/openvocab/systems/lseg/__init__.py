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

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor

from openvocab.blocks.vit import ViTConfig
from openvocab.clip.architectures import architecture
from openvocab.clip.dense import TINY_CLIP, Segmentation, measure_segmentation
from openvocab.clip.engine import evaluating
from openvocab.clip.learning import annotated_batches
from openvocab.clip.model import CLIP
from openvocab.clip.protocols import cut, measure_fold, segment_at_scales
from openvocab.clip.vocabulary import vocabulary
from openvocab.clip.weights import read_tensors
from openvocab.data.annotated import NOTHING, Annotated, AnnotatedConfig, Annotation, open_annotated, open_source
from openvocab.metrics.segment import IGNORED
from openvocab.shapes import Batch, Images
from openvocab.system import Recipe, System
from openvocab.systems.lseg.model import OTHERS, LSeg, LSegConfig, Maps, enlarged
from openvocab.systems.lseg.official import PIXELS, VIT_L, encoder_from_timm, from_official, start_encoder
from openvocab.train.config import FitConfig, GroupConfig, OptimConfig
from openvocab.train.fit import Stage
from openvocab.train.step import Losses

_TINY_VIT = ViTConfig(image_size=32, patch_size=8, dim=32, layers=2, heads=2, mlp_dim=64, resampling="bilinear")
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
        image=VIT_L,
        preprocess=PIXELS,
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
    """The training run of a size; `paper` is the official one of ADE20K, for a batch of 16."""
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
        fit=FitConfig(steps=20 if tiny else 200, checkpoint_every_steps=100),
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
    samples = Samples(model, pictures.labels, data)
    batches = annotated_batches(pictures, samples, data.pictures, seed=recipe.fit.seed, folder=folder)
    return model, (recipe.stage(name="lseg", data=batches, loss=loss, embed=embed),)


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


def load(path: Path | str, clip: CLIP | None = None) -> LSeg:
    """openvocab's folder, or an official checkpoint: a file, which holds its own CLIP."""
    return from_official(path) if Path(path).is_file() else LSeg.load(path)


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
    open=open_source,
    example=example,
    load=load,
    init=("clip", "dense"),
    minutes={"small": 2.0},
)
