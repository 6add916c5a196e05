"""VirTex: an image tower learnt by captioning (Desai and Johnson 2020, arXiv 2006.06666).

    L = CE(p(y_t | y_<t, cells)) + CE(p(y_t | y_>t, cells)),  cells = W tower(image)  (section 3)

Reproduced: the cells of an image tower, projected, under a post-norm decoder; two directions that share projection and
embeddings; the ablations with one direction, masked words, and a bag of words in place of the text. A text tower of its
own makes it contrast and caption at once (CoCa, arXiv 2205.01917).
Differs from the paper: CLIP's image towers, AdamW in place of SGD with Lookahead, no flipped pictures, words counted as
often as they are said in a bag of words; in CoCa the text tower is the lower half of the decoder.

    openvocab train virtex --out run               generated scenes
    openvocab train virtex --size joint --out run  contrast and captions
    openvocab caption picture.png --model run
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from openvocab.blocks.decoder import Decoder, DecoderConfig, backwards, beam_search, spoken
from openvocab.blocks.resnet import ResNet, ResNetConfig
from openvocab.blocks.text import CBOW, CBOWConfig, TextConfig, TextTransformer
from openvocab.blocks.transformer import normal_
from openvocab.blocks.vit import ViT, ViTConfig
from openvocab.clip import learning, measure
from openvocab.clip.engine import Picture, evaluating, read_pixels
from openvocab.clip.layouts import Rule, join, same
from openvocab.clip.learning import PIXELS, DataConfig
from openvocab.clip.model import CLIP, CLIPConfig
from openvocab.clip.objectives import contrastive_loss
from openvocab.clip.prediction import bag_of_words_loss, caption_loss
from openvocab.clip.preprocess import PreprocessConfig, normalize
from openvocab.clip.saved import SystemModel
from openvocab.data.source import Pairs, PairsConfig
from openvocab.shapes import Batch, Images, Tokens
from openvocab.system import Recipe, System
from openvocab.train import distributed
from openvocab.train.config import FitConfig, GroupConfig, OptimConfig
from openvocab.train.fit import Stage
from openvocab.train.step import Losses
from openvocab.world.caption import fill_prompt

Objective = Literal["bicaption", "caption", "masked", "words"]


@dataclass(frozen=True, kw_only=True, slots=True)
class VirTexConfig:
    """An image tower and what reads it.

    `objective`: the caption in both directions, in one; its masked words; its words in any order, from pooled features.
    `contrast`: a text tower whose vectors are contrasted with the picture's, besides; `text.dim` long both.
    """

    image: ViTConfig | ResNetConfig
    text: DecoderConfig
    objective: Objective = "bicaption"
    contrast: TextConfig | CBOWConfig | None = None
    preprocess: PreprocessConfig | None = None


_SMALL = VirTexConfig(
    image=learning.scene_tower("small"),
    text=DecoderConfig(vocabulary_size=512, context_length=40, dim=64, heads=4, mlp_dim=256, dropout=0.0),
    preprocess=PIXELS,
)
SIZES = {
    "tiny": replace(
        _SMALL,
        image=learning.scene_tower("tiny"),
        text=replace(_SMALL.text, vocabulary_size=320, dim=32, heads=2, mlp_dim=64),
    ),
    "small": _SMALL,
    "joint": replace(
        _SMALL,
        objective="caption",
        contrast=TextConfig(vocabulary_size=512, context_length=40, dim=64, layers=1, heads=4, mlp_dim=256, end_id=511),
    ),
    "paper": VirTexConfig(image=ResNetConfig(pool="mean", heads=0), text=DecoderConfig()),
}
CONTRAST_WEIGHT, CAPTION_WEIGHT = 1.0, 2.0
"""Of CoCa's pre-training."""
_NOT_COUNTED = -100
MASKED, MASKED_RANDOM = 0.15, 0.10
"""Share of words that are hidden, and share of those that show another word in place of the mask."""


@dataclass(frozen=True)
class Captions:
    """A sentence for each picture, and its log p given the picture."""

    texts: tuple[str, ...]
    log_probabilities: Float[Tensor, " image"]


class VirTex(SystemModel):
    """The tower, its text head, and where it contrasts a text tower with a temperature."""

    system, config_type = "virtex", VirTexConfig

    def __init__(self, config: VirTexConfig):
        super().__init__(config)
        image, text, contrast = config.image, config.text, config.contrast
        embed_dim = contrast.dim if contrast else image.dim
        self.image = ViT(image, embed_dim) if isinstance(image, ViTConfig) else ResNet(image, embed_dim)
        self.text = self.logit_scale = None
        if contrast is None:
            self.image.projection = nn.Identity()
        else:
            tower = TextTransformer if isinstance(contrast, TextConfig) else CBOW
            self.text = tower(contrast, contrast.dim)  # type: ignore[arg-type]
            self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        if config.objective == "words":
            self.words = nn.Linear(image.dim, text.vocabulary_size)
        else:
            self.visual = nn.Linear(image.dim, text.dim)
            self.decoder = Decoder(text, directions=2 if config.objective == "bicaption" else 1)
            normal_(self.visual.weight, std=0.02)
            nn.init.zeros_(self.visual.bias)

    def see(self, images: Images) -> Float[Tensor, "image ..."]:
        """What the text head makes of pictures: cells for the decoder, or for `words` the logits of the vocabulary."""
        features = self.image(images)
        return self.words(features.pooled) if self.config.objective == "words" else self.visual(features.tokens)

    def caption(self, pictures: Picture | Sequence[Picture], num_beams: int = 1) -> Captions:
        """The most probable sentence of each picture (paths or PIL), by beam search; one beam is greedy.

        Raises:
            ValueError: a model of another objective, or pictures that cannot be read.
        """
        if self.config.objective not in ("caption", "bicaption"):
            raise ValueError(f"{self.name} learnt {self.config.objective}, not captions: it cannot write a sentence")
        assert self.tokenizer is not None
        texts: list[str] = []
        log_p = [torch.empty(0)]
        for cells in self._seen(pictures):
            ids, found = beam_search(self.decoder, cells, num_beams)
            texts += [self.tokenizer.decode(row) for row in ids.tolist()]
            log_p.append(found.cpu())
        return Captions(tuple(texts), torch.cat(log_p))

    def score(self, pictures: Picture | Sequence[Picture], texts: Sequence[str]) -> Float[Tensor, "image text"]:
        """How well each text fits each picture: the mean log p of its tokens.

        Of each token after those before it; of each word by itself, for a bag of words or where words are masked, then
        all at once.
        """
        assert self.tokenizer is not None
        ids = self.tokenizer(list(texts), self.config.text.context_length).to(self.device)
        ids = ids[:, : int(spoken(ids, self.config.text.end_id).sum(1).max())]
        scores = [self._scores(part, ids) for seen in self._seen(pictures) for part in seen.split(8)]
        return torch.cat(scores) if scores else torch.empty(0, len(texts))

    def clip(self) -> CLIP:
        """The two towers and the temperature as a CLIP, which shares their weights.

        Raises:
            ValueError: a model without `contrast`.
        """
        config = self.config
        if config.contrast is None or self.text is None or self.logit_scale is None:
            raise ValueError(f"{self.name} contrasts nothing: it has no text tower")
        with torch.device("meta"):
            clip = CLIP(CLIPConfig(image=config.image, text=config.contrast, embed_dim=config.contrast.dim))
        clip.image, clip.text, clip.logit_scale = self.image, self.text, self.logit_scale
        clip.preprocessing, clip.tokenizer, clip.name = self.preprocessing, self.tokenizer, self.name
        clip.fingerprint, clip.trained_on = self.fingerprint, self.trained_on
        return clip.train(self.training)

    def _seen(self, pictures: Picture | Sequence[Picture]) -> Iterator[Float[Tensor, "image ..."]]:
        for pixels in read_pixels(pictures, self.preprocessing):
            with evaluating(self):
                seen = self.see(normalize(pixels.to(self.device), self.preprocessing, torch.float32))
            yield seen

    @torch.no_grad()
    def _scores(self, seen: Float[Tensor, "image ..."], ids: Tokens) -> Float[Tensor, "image text"]:
        config, images = self.config.text, len(seen)
        said = spoken(ids, config.end_id)
        word = said & (ids != config.start_id) & (ids != config.end_id)
        if self.config.objective == "words":
            log_p = seen.log_softmax(1)[:, ids] * word
            return (log_p.sum(2) / word.sum(1)).cpu()
        cells, rows, said = seen.repeat_interleave(len(ids), 0), ids.repeat(images, 1), said.repeat(images, 1)
        if self.config.objective == "masked":
            word = word.repeat(images, 1)
            logits = self.decoder(rows.masked_fill(word, config.start_id), cells, visible=said)
            log_p, counts = logits.log_softmax(2).gather(2, rows.unsqueeze(2)).squeeze(2) * word, word.sum(1)
        else:
            log_p, counts = self.decoder.log_probabilities(rows, cells), said.sum(1) - 1
        return (log_p.sum(1) / counts).view(images, -1).cpu()


def build(config: VirTexConfig | str, clip: CLIP | None = None) -> VirTex:
    """A freshly initialised model of a config or a size; with `clip` its image tower is where training begins."""
    config = SIZES[config] if isinstance(config, str) else config
    if clip is None:
        return VirTex(config)
    model = VirTex(replace(config, image=clip.config.image, preprocess=clip.preprocessing))
    tower = {name: value for name, value in clip.image.state_dict().items() if not name.startswith("projection.")}
    model.image.load_state_dict(tower, strict=False)
    return model


def embed(model: VirTex, batch: Batch) -> dict[str, Tensor]:
    """What the text head reads of each picture, and the unit rows of both towers where they are contrasted."""
    if model.text is None:
        return {"seen": model.see(batch["images"])}
    features = model.image(batch["images"])
    clip = model.clip()
    image = F.normalize(clip.image.projection(features.pooled), dim=-1)
    return {"seen": model.visual(features.tokens), "image": image, "text": clip.encode_text(batch["tokens"])}


def loss(model: VirTex, batch: Batch, embeds: dict[str, Tensor]) -> Losses:
    """The objective of the config; `caption`, `backward`, `masked`, `words` and `contrastive` are its parts."""
    config, ids, group = model.config.text, batch["tokens"], distributed.world()
    if model.config.objective == "words":
        ignore = (config.start_id, config.end_id)
        words = ids.masked_fill(~spoken(ids, config.end_id), config.end_id)
        return {"loss": bag_of_words_loss(embeds["seen"], words, ignore=ignore, group=group)}
    parts = _read(model, ids, embeds["seen"])
    if "image" not in embeds:
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}
    assert model.logit_scale is not None
    same_picture = {"image_ids": batch["image_ids"], "text_ids": batch["text_ids"], "group": group}
    contrast = contrastive_loss(embeds["image"], embeds["text"], model.logit_scale, **same_picture)
    total = CONTRAST_WEIGHT * contrast + CAPTION_WEIGHT * torch.stack(list(parts.values())).sum()
    return {"loss": total, "contrastive": contrast, **parts, "diag/scale": model.logit_scale.exp()}


def _read(model: VirTex, ids: Tokens, cells: Float[Tensor, "text patch dim"]) -> Losses:
    """The decoder's losses, by name; every one is a mean over tokens."""
    config, group = model.config.text, distributed.world()
    said = spoken(ids, config.end_id)
    if model.config.objective == "masked":
        shown, hidden = mask_words(ids, said, config)
        logits = model.decoder(shown, cells, visible=said)
        return {"masked": caption_loss(logits, ids.masked_fill(~hidden, _NOT_COUNTED), pad=_NOT_COUNTED, group=group)}
    orders = {"caption": ids, "backward": backwards(ids, said)}
    losses = {}
    for direction, (name, order) in enumerate(list(orders.items())[: len(model.decoder.stacks)]):
        targets = order.masked_fill(~said, _NOT_COUNTED)[:, 1:]
        logits = model.decoder(order[:, :-1], cells, direction=direction)
        losses[name] = caption_loss(logits, targets, pad=_NOT_COUNTED, group=group)
    return losses


def mask_words(
    ids: Tokens, said: Bool[Tensor, "text token"], config: DecoderConfig
) -> tuple[Tokens, Bool[Tensor, "text token"]]:
    """Captions with some words replaced, and which those are; the start token is the mask: no word is one."""
    words = said & (ids != config.start_id) & (ids != config.end_id)
    chance = torch.rand(ids.shape, device=ids.device).masked_fill(~words, 2.0)
    hidden = words & ((chance < MASKED) | (chance == chance.amin(1, keepdim=True)))  # at least one of each caption
    shown = ids.masked_fill(hidden, config.start_id)
    swapped = hidden & (torch.rand(ids.shape, device=ids.device) < MASKED_RANDOM)
    return torch.where(swapped, torch.randint_like(ids, config.vocabulary_size), shown), hidden


def example(model: VirTex, rows: int) -> Batch:
    """A batch of noise in the shape of a real one."""
    size, text = model.config.image.image_size, model.config.text
    tokens = torch.randint(3, text.vocabulary_size - 2, (rows, 12))
    tokens[:, 0], tokens[:, -1] = text.start_id, text.end_id
    ids = torch.arange(rows)
    return {"images": torch.randn(rows, 3, size, size), "tokens": tokens, "image_ids": ids, "text_ids": ids}


def constrain(model: VirTex) -> None:
    """Clamps the temperature, where there is one, after a step."""
    if model.logit_scale is not None:
        with torch.no_grad():
            model.logit_scale.clamp_(0.0, learning.LOG_SCALE_MAX)


def recipe(size: str, source: str = "scenes") -> Recipe[VirTexConfig]:
    """The training run of a size, on generated scenes or on the pairs of `source`."""
    pairs = PairsConfig(source=source)
    if size == "paper":
        return Recipe(
            model=SIZES[size],
            data=DataConfig(pairs=pairs, batch_size=256, workers=8, in_memory=False),
            optim=OptimConfig(lr=1e-3, weight_decay=1e-4, warmup_steps=10_000, clip_norm=10.0),
            fit=FitConfig(steps=500_000, precision="bfloat16"),
            groups=(GroupConfig(),),
        )
    run = learning.usual_run(size, source)
    return Recipe(model=SIZES[size], **run | {"optim": replace(run["optim"], weight_decay=0.1)})


def prepare(
    recipe: Recipe[VirTexConfig], init: VirTex | CLIP | None = None, folder: Path | None = None
) -> tuple[VirTex, tuple[Stage]]:
    """Opens the data, learns the tokenizer, builds the model, on a CLIP's image tower if given one, or goes on."""
    config, text, seed = recipe.model, recipe.model.text, recipe.fit.seed
    pairs = learning.open_data(recipe.data, config.image.image_size, seed)
    if isinstance(init, VirTex):
        model, tokenizer = init, init.tokenizer
        assert tokenizer is not None
        model.fingerprint = ""
    else:
        tokenizer = learning.learn_tokenizer(
            recipe.data, pairs, config.text.vocabulary_size, config.text.context_length
        )
        contrast = config.contrast and learning.fitted(config.contrast, tokenizer)
        torch.manual_seed(seed)
        model = build(replace(config, text=learning.fitted(text, tokenizer), contrast=contrast), init)
        model.tokenizer = tokenizer
    model.name = f"virtex-{Path(recipe.data.pairs.source).stem}"
    model.trained_on = learning.origin(recipe.data, pairs)
    length, pixels = model.config.text.context_length, model.preprocessing
    loader = learning.batches(recipe.data, pairs, pixels, tokenizer, context_length=length, seed=seed, folder=folder)
    stage = recipe.stage(
        name="virtex", data=loader, loss=loss, embed=embed, constrain=constrain, evaluate=_validation(recipe.data)
    )
    return model, (stage,)


def _validation(data: DataConfig) -> Callable[[VirTex], dict[str, float]] | None:
    if data.validation is None:
        return None
    pairs, templates = learning.open_test(data.validation), data.validation.templates
    return lambda model: evaluate(model, pairs, templates)


def evaluate(model: VirTex, pairs: Pairs, templates: Sequence[str] = ()) -> dict[str, float]:
    """Zero-shot figures on pairs with classes: the class whose prompt fits best wins (see `VirTex.score`).

    A bag of words is asked for the words of the name; a model with two towers answers by their cosines.
    """
    if model.text is not None:
        return measure.zero_shot(model.clip(), pairs, templates or "generic").figures
    template = "{}" if model.config.objective == "words" else (*templates, "a {}")[0]
    texts = [fill_prompt(template, name) for name in pairs.classnames]
    found = measure.encode_labelled(lambda pictures: model.score(pictures, texts), pairs)
    return measure.classified(found.features, found.labels, found.broken).figures


def _published_stack(stack: int, head: str) -> list[Rule]:
    ours, theirs = f"decoder.stacks.{stack}.{{n}}", f"{head}.transformer.layers.{{n}}"
    names = {"attention.out": "self_attn.out_proj", "cross_out": "multihead_attn.out_proj", "mlp.up": "linear1"}
    names |= {"mlp.down": "linear2", "norm1": "norm1", "norm2": "norm2", "norm3": "norm3"}
    rules = [same(f"{ours}.{our}.{{p}}", f"{theirs}.{their}.{{p}}") for our, their in names.items()]
    for part in ("weight", "bias"):
        cross = (f"{ours}.cross.q.{part}", f"{ours}.cross.kv.{part}")
        rules.append(same(f"{ours}.attention.qkv.{part}", f"{theirs}.self_attn.in_proj_{part}"))
        rules.append(join(cross, f"{theirs}.multihead_attn.in_proj_{part}", (1, 2)))
    return rules


PEER_KEYS = (
    same("visual.{p}", "textual.visual_projection.{p}"),
    same("decoder.embedding.weight", "textual.embedding.words.weight"),
    same("decoder.positions", "textual.embedding.positions.weight"),
    same("decoder.norm.{p}", "textual.embedding.layer_norm.{p}"),
    same("decoder.bias", "textual.output.bias"),
    *_published_stack(0, "textual"),
    *_published_stack(1, "backward_textual"),
)
"""The text head of kdexd/virtex, without its second names for what both directions share. Its image tower is
torchvision's ResNet-50, which is none of ours."""

SYSTEM = System(
    name="virtex",
    title="VirTex",
    paper="arXiv 2006.06666",
    sizes=SIZES,
    build=build,
    loss=loss,
    embed=embed,
    recipe=recipe,
    prepare=prepare,
    evaluate=evaluate,
    example=example,
    load=VirTex.load,
    minutes={"small": 4.0},
)
