"""CLIPSeg: a prompt in words or in pictures to a mask (Lüddecke and Ecker 2022, arXiv 2112.10003).

A small decoder reads what a frozen CLIP saw after some of its blocks, the deepest first, told by the prompt c what to
look for:

    a_1 = W_mul c * R_1 x_9 + W_add c,   a_i = block_i-1(a_i-1) + R_i x,   logits = ConvTranspose(block_3(a_3))

with c the embedding of a text, of a picture, or w text + (1 - w) picture, none of them normalised. Reproduced: both
decoder heads, PhraseCut+'s three changes (pictures as prompts, blends of both, phrases that are not there), the binary
cross-entropy, the decoder alone trained. Differs from the paper: pictures keep their shape; all prompts on a picture
share one pass of it; a phrase drawn as absent is checked to be absent; the cosine ends at 0.

    openvocab train clipseg --out run                                          generated scenes
    openvocab train clipseg --size paper --init hf:openai/clip-vit-base-patch16 --data instances.json --out run
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from openvocab.blocks.text import TextConfig
from openvocab.clip.architectures import architecture
from openvocab.clip.dense import TINY_CLIP, Segmentation, judged, measure_segmentation
from openvocab.clip.engine import evaluating
from openvocab.clip.learning import annotated_batches
from openvocab.clip.model import CLIP
from openvocab.clip.preprocess import PreprocessConfig, preprocess
from openvocab.clip.templates import fill
from openvocab.data.annotated import Annotated, AnnotatedConfig, Annotation, open_annotated, open_source
from openvocab.data.decode import to_rgb
from openvocab.data.phrases import Mask, Phrase, Phrases, foreground_square, highlighted
from openvocab.progress import track
from openvocab.shapes import Batch, Images
from openvocab.system import Recipe, System
from openvocab.systems.clipseg.model import CLIPSeg, CLIPSegConfig, Conditions, Prompt
from openvocab.systems.clipseg.published import load, to_hf
from openvocab.train.config import FitConfig, GroupConfig, OptimConfig
from openvocab.train.fit import Stage
from openvocab.train.step import Losses

TEMPLATES = (
    "a photo of a {}.", "a photograph of a {}.", "an image of a {}.", "{}.", "a cropped photo of a {}.",
    "a good photo of a {}.", "a photo of one {}.", "a bad photo of a {}.", "a photo of the {}.",
)  # fmt: skip
"""One of these is drawn for every phrase (the authors' "shuffle+")."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PhrasesConfig:
    """Annotated pictures as prompts with masks: PhraseCut+ (section 4).

    `prompts`: phrases of each picture, which share its pass through the tower; the authors draw one.
    `negatives`: share of phrases that are absent and whose mask is empty.
    `pictures`: share of phrases that another picture of the same prompts too, where there is one, with
    `most_text` as the largest weight of the words; the others are prompted by words alone.
    """

    annotated: AnnotatedConfig = AnnotatedConfig(batch_size=32)
    prompts: int = 1
    negatives: float = 0.2
    pictures: float = 0.5
    most_text: float = 0.5


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
    "small": CLIPSegConfig(
        clip=replace(TINY_CLIP, image=replace(TINY_CLIP.image, image_size=64, layers=4)),
        preprocess=_SCENES,
        extract_layers=(1, 2, 3),
        dim=32,
        heads=2,
        mlp_dim=128,
        head="complex",
        dropout=0.0,
    ),
    "paper": CLIPSegConfig(clip=architecture("ViT-B-16-quickgelu")),
    "refined": CLIPSegConfig(clip=architecture("ViT-B-16-quickgelu"), head="complex"),
}
"""The `clip` of a size gives way to the one that training begins from. `refined` is a later head of the authors."""


def build(config: CLIPSegConfig | str, clip: CLIP | None = None) -> CLIPSeg:
    """A decoder of random weights on `clip`; without one on a CLIP of random weights, which knows nothing."""
    config = SIZES[config] if isinstance(config, str) else config
    return CLIPSeg(replace(config, clip=clip.full_config) if clip else config, clip)


def embed(model: CLIPSeg, batch: Batch) -> dict[str, Tensor]:
    """Logits of each picture's own prompts, words or a share of a picture: (picture, prompt, height, width)."""
    conditions = model.read(batch["tokens"].flatten(0, -2))
    if "prompt_images" in batch:
        weights = batch["text_weights"].flatten()[:, None]
        shown = (weights < 1).squeeze(1).nonzero().squeeze(1)
        pictures = batch["prompt_images"].flatten(0, -4)[shown]
        blends = torch.lerp(model.look(pictures), conditions[shown], weights[shown])
        conditions = conditions.index_copy(0, shown, blends)
    return {"logits": model(batch["images"], conditions).unflatten(0, (len(batch["images"]), -1))}


def loss(model: CLIPSeg, batch: Batch, embeds: dict[str, Tensor]) -> Losses:
    """Binary cross-entropy of every pixel (section 4)."""
    logits = embeds["logits"].float()
    return {"loss": F.binary_cross_entropy_with_logits(logits, batch["masks"].to(logits).view_as(logits))}


def example(model: CLIPSeg, rows: int) -> Batch:
    """Noise, and two prompts of noise on each, in words and pictures."""
    image, text = model.config.clip.image, model.config.clip.text
    assert isinstance(text, TextConfig)
    tokens = torch.randint(1, text.vocabulary_size - 2, (rows, 2, text.context_length))
    tokens[..., -1] = text.end_id
    pixels = (3, image.image_size, image.image_size)
    return {
        "images": torch.randn(rows, *pixels),
        "masks": torch.rand(rows, 2, *pixels[1:]).round(),
        "tokens": tokens,
        "prompt_images": torch.randn(rows, 2, *pixels),
        "text_weights": torch.rand(rows, 2),
    }


class _Samples:
    """A picture with its prompts and the mask that each means."""

    def __init__(self, model: CLIPSeg, phrases: Phrases, config: PhrasesConfig):
        assert model.tokenizer is not None
        self.tokenizer, self.context_length = model.tokenizer, model.config.clip.text.context_length
        self.pixels, self.phrases, self.config = model.preprocessing, phrases, config

    def __call__(self, found: Annotation, rng: np.random.Generator) -> Batch:
        drawn = [self._draw(found, rng) for _ in range(self.config.prompts)]
        square = foreground_square(drawn[0][1], rng)
        picture, size_px = to_rgb(found.image).crop(square), self.pixels.image_size
        masks = [Image.fromarray(mask).crop(square).resize((size_px, size_px)) for _, mask in drawn]
        texts = [fill(TEMPLATES[rng.integers(len(TEMPLATES))], phrase.text) for phrase, _ in drawn]
        made = {
            "images": preprocess(picture, self.pixels),
            "masks": torch.from_numpy(np.stack([np.array(mask) for mask in masks])),
            "tokens": self.tokenizer(texts, self.context_length, truncate=True),
        }
        if not self.config.pictures:
            return made
        supports = [self._support(phrase, found, rng) for phrase, _ in drawn]
        weights = [rng.random() * self.config.most_text if support else 1.0 for support in supports]
        nothing = torch.zeros_like(made["images"])
        shown = [preprocess(highlighted(*s, size_px), self.pixels) if s else nothing for s in supports]
        return made | {"prompt_images": torch.stack(shown), "text_weights": torch.tensor(weights)}

    def _draw(self, found: Annotation, rng: np.random.Generator) -> tuple[Phrase, Mask]:
        absent = rng.random() < self.config.negatives
        return self.phrases.absent(found, rng) if absent else self.phrases.draw(found, rng)

    def _support(self, phrase: Phrase, found: Annotation, rng: np.random.Generator) -> tuple[Image.Image, Mask] | None:
        wanted = rng.random() < self.config.pictures
        return self.phrases.support(phrase, found.key, rng) if wanted else None


def recipe(size: str, source: str = "scenes") -> Recipe[CLIPSegConfig]:
    """The training run of a size, on generated scenes or on the masks of `source`."""
    small = size in ("tiny", "small")
    steps = {"tiny": 30, "small": 2400, "paper": 20_000, "refined": 50_000}[size]
    pictures = AnnotatedConfig(source=source, batch_size=32 if small else 64, workers=0 if small else 8)
    optim = OptimConfig(lr=1e-3, betas=(0.9, 0.999), weight_decay=0.01, warmup_steps=0)
    # The activations of a small CLIP are of a size of ten: what reads them takes shorter steps.
    reduces = GroupConfig(
        name="reduces", prefixes=("decoder.reduces.",), optim=replace(optim, lr=4e-4, warmup_steps=None)
    )
    return Recipe(
        model=SIZES[size],
        data=PhrasesConfig(annotated=pictures),
        optim=replace(optim, lr=5e-3, warmup_steps=None) if small else optim,
        fit=FitConfig(steps=steps, precision="float32" if small else "bfloat16"),
        groups=(reduces, GroupConfig()) if small else (GroupConfig(),),
    )


def prepare(
    recipe: Recipe[CLIPSegConfig], init: CLIP | None = None, folder: Path | None = None
) -> tuple[CLIPSeg, tuple[Stage]]:
    """Opens the data and puts a decoder on `init`.

    Raises:
        ValueError: no CLIP to stand on, or masks that are not there.
    """
    if not isinstance(init, CLIP):
        raise ValueError("CLIPSeg stands on a frozen CLIP: name one with --init")
    data, seed = open_annotated(recipe.data.annotated, recipe.fit.seed), recipe.fit.seed
    torch.manual_seed(seed)
    model = build(recipe.model, init)
    model.name = f"clipseg-{Path(recipe.data.annotated.source).stem}"
    model.trained_on = {"clip": init.trained_on, "source": data.source, "pictures": len(data), "labels": data.labels}
    phrases = Phrases(data, supports=recipe.data.pictures > 0)
    samples = _Samples(model, phrases, recipe.data)
    batches = annotated_batches(data, samples, recipe.data.annotated, seed=seed, folder=folder)
    _settle(model, batches.batch(0)["images"])
    return model, (recipe.stage(name="clipseg", data=batches, loss=loss, embed=embed),)


@torch.no_grad()
def _settle(model: CLIPSeg, images: Images) -> None:
    """What the decoder makes of each layer begins at one scale, or the prompt is lost beside large activations."""
    for reduce, tokens in zip(model.decoder.reduces, reversed(model.see(images).layers)):
        reduce.weight /= tokens.std()  # type: ignore[operator]


def evaluate(model: CLIPSeg, data: Annotated, novel: tuple[str, ...] = ()) -> dict[str, float]:
    """Every pixel one of the labels or none: miou and its kin; and every prompt by itself, at a probability of a half.

    `fg_iou` is of the prompts that a picture shows, pixels of all pictures together, `fg_iou_novel` of those of `novel`
    alone and `fg_iou_pictures` where another picture prompts; `fg_iou_shuffled` is of the prompts of other pictures.
    `silent` is the share of pictures of which an absent prompt marks less than a fiftieth.
    """
    conditions = model.conditions([Prompt(label) for label in data.labels])

    def segment(image: Image.Image) -> Segmentation:
        return judged(model.maps(image, conditions), data.labels, (image.height, image.width), none_below=0.5)

    with evaluating(model):
        return measure_segmentation(segment, data, novel) | _prompted(model, data, conditions, novel)


def _prompted(model: CLIPSeg, data: Annotated, conditions: Conditions, novel: tuple[str, ...]) -> dict[str, float]:
    phrases, size_px = Phrases(data), model.preprocessing.image_size
    shared = {name: np.zeros(2) for name in ("fg_iou", "fg_iou_novel", "fg_iou_pictures", "fg_iou_shuffled")}
    silent: list[bool] = []
    for index in track(range(len(data)), f"prompting {data.source}", unit="picture"):
        found, rng = data.read(index), np.random.default_rng(index)
        maps, shown = _marked(model, found, conditions), np.unique(found.label_ids)
        others = np.setdiff1d(np.arange(len(data.labels)), shown)
        for row in shown.tolist():
            truth = phrases.mask(phrases.phrases[row], found)
            shared["fg_iou_novel" if data.labels[row] in novel else "fg_iou"] += _overlap(maps[row], truth)
            if len(others):
                shared["fg_iou_shuffled"] += _overlap(maps[rng.choice(others)], truth)
            support = phrases.support(phrases.phrases[row], found.key, rng)
            if support:
                pixels = preprocess(highlighted(*support, size_px), model.preprocessing)
                prompted = _marked(model, found, model.look(pixels[None].to(conditions.device)))
                shared["fg_iou_pictures"] += _overlap(prompted[0], truth)
        if len(others):
            silent.append(bool(maps[rng.choice(others)].mean() < 1 / 50))
    figures = {name: float(both / either) for name, (both, either) in shared.items() if either}
    return figures | ({"silent": sum(silent) / len(silent)} if silent else {})


def _marked(model: CLIPSeg, found: Annotation, conditions: Conditions) -> Bool[np.ndarray, "prompt height width"]:
    """Where each prompt is at least as likely as not."""
    size = (found.image.height, found.image.width)
    parts = (F.interpolate(part[None], size, mode="bilinear")[0] >= 0 for part in model.maps(found.image, conditions))
    return torch.cat(list(parts)).numpy()


def _overlap(marked: Mask, truth: Mask) -> Float[np.ndarray, "2"]:
    return np.array([(marked & truth).sum(), (marked | truth).sum()], float)


SYSTEM = System(
    name="clipseg",
    title="CLIPSeg",
    paper="arXiv 2112.10003",
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
    to_hf=to_hf,
    parameters={"paper": 150_693_890, "refined": 150_747_746},
)
