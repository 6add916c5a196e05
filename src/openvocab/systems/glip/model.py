"""GLIP's model: two encoders, rounds in which they meet, how places meet words, the verbs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from openvocab.blocks.bert import Bert, BertConfig, bert_block, mask_bias
from openvocab.blocks.boxes import clip_boxes, nms
from openvocab.blocks.detector import anchors, decode
from openvocab.blocks.dyhead import DyConv
from openvocab.blocks.fusion import BiAttentionBlock
from openvocab.blocks.resnet import ResNet, ResNetConfig, without_pool
from openvocab.blocks.swin import Swin, SwinConfig
from openvocab.clip.dense import dense_pixels
from openvocab.clip.engine import evaluating
from openvocab.clip.preprocess import PreprocessConfig
from openvocab.clip.regions import Detection, Grounding
from openvocab.clip.saved import SystemModel
from openvocab.clip.tokenizer_files import PublishedTokenizer
from openvocab.clip.vocabulary import Labels, read_labels
from openvocab.data.decode import opened, to_rgb
from openvocab.data.nouns import noun_spans
from openvocab.shapes import Images, Mask, Tokens
from openvocab.systems.glip.prompts import (
    Aggregation,
    Encoded,
    Prompt,
    Span,
    aggregate,
    chunks,
    encode_prompts,
    names_prompt,
)

Maps = tuple[Float[Tensor, "image _ _ _"], ...]

BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
ANCHOR_CELLS = 8.0
_PRIOR = 0.01
_LARGEST_LOGIT = 50_000.0


@dataclass(frozen=True, kw_only=True, slots=True)
class GLIPConfig:
    """Two encoders and the rounds between them; the defaults are GLIP-T's.

    `image`: a ResNet is for pictures too few for a Swin.
    `longest_px`: the long side of a picture at most, whose short side is `preprocess.image_size`.
    `levels`: beyond the last of the encoder's maps each has every second cell of the one before.
    `fused`: rounds let words and places meet; without, words go as BERT read them (GLIP-T (A)).
    `official_offsets`, `deformable`: see `blocks.dyhead.DyConv`; the published weights need both.
    `residual`: what a round's dynamic head makes is added to what it was given, without which a model that begins from
    nothing loses the colours on the way; the published weights have none.
    `aggregate`: how a phrase's chance comes from those of its tokens.
    `names_at_once`: names of a prompt at most; None: as many as the context holds.
    `above`, `per_level`, `overlap`, `most`: a place is a candidate if a phrase has so high a chance, the best of each
    level stay, weaker boxes of the same phrase that overlap more are removed, and how many detections stay.
    """

    image: SwinConfig | ResNetConfig = SwinConfig()
    text: BertConfig = BertConfig()
    preprocess: PreprocessConfig = PreprocessConfig(
        image_size=800, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    longest_px: int = 1333
    dim: int = 256
    levels: int = 5
    rounds: int = 6
    fused: bool = True
    fusion_dim: int = 2048
    fusion_heads: int = 8
    official_offsets: bool = False
    deformable: bool = True
    residual: bool = False
    aggregate: Aggregation = "mean"
    names_at_once: int | None = None
    above: float = 0.05
    per_level: int = 1000
    overlap: float = 0.6
    most: int = 100

    @property
    def strides(self) -> tuple[int, ...]:
        return tuple(self.image.finest << level for level in range(self.levels))


@dataclass(frozen=True)
class GLIPOutput:
    """What is said of every place, level after level; `counts` places belong to each.

    Fields:
        scores: logits of every token of the prompt.
    """

    scores: Float[Tensor, "image anchor token"]
    deltas: Float[Tensor, "image anchor 4"]
    centerness: Float[Tensor, "image anchor"]
    anchors: Float[Tensor, "anchor 4"]
    counts: tuple[int, ...]


class Pyramid(nn.Module):
    """The encoder's maps, each with what the coarser ones know, and coarser ones still."""

    def __init__(self, config: GLIPConfig):
        super().__init__()
        widths, dim = config.image.widths, config.dim
        self.laterals = nn.ModuleList(nn.Conv2d(width, dim, 1) for width in widths)
        self.outs = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in widths)
        self.tops = nn.ModuleList(nn.Conv2d(dim, dim, 3, 2, 1) for _ in range(config.levels - len(widths)))

    def forward(self, stages: Maps) -> Maps:
        joined = self.laterals[-1](stages[-1])
        maps = [self.outs[-1](joined)]
        for lateral, out, stage in zip(self.laterals[-2::-1], self.outs[-2::-1], stages[-2::-1]):
            joined = lateral(stage) + F.interpolate(joined, size=stage.shape[2:], mode="nearest")
            maps.insert(0, out(joined))
        for number, top in enumerate(self.tops):
            maps.append(top(maps[-1].relu() if number else maps[-1]))
        return tuple(maps)


class Round(nn.Module):
    """Words and places meet; then words go through a layer of BERT, places through a dynamic head."""

    def __init__(self, config: GLIPConfig):
        super().__init__()
        self.fusion = self.language = None
        if config.fused:
            sizes = config.dim, config.text.dim, config.fusion_dim, config.fusion_heads
            self.fusion = BiAttentionBlock(*sizes, scale=1 / config.rounds)
            self.language = bert_block(config.text)
        self.vision, self.residual = DyConv(config.dim, config.official_offsets, config.deformable), config.residual

    def forward(self, maps: Maps, words: Tensor, mask: Mask) -> tuple[Maps, Tensor]:
        if self.fusion is not None and self.language is not None:
            places = torch.cat([each.flatten(2) for each in maps], 2).transpose(1, 2)
            places, words = self.fusion(places, words, mask)
            parts = places.transpose(1, 2).split([each.shape[2] * each.shape[3] for each in maps], 2)
            maps = tuple(part.unflatten(2, each.shape[2:]) for part, each in zip(parts, maps))
            words = self.language(words, bias=mask_bias(mask))
        seen = self.vision(maps)
        return tuple(a + b for a, b in zip(maps, seen)) if self.residual else seen, words


class GLIP(SystemModel):
    """Finds what a sentence speaks of."""

    system, config_type = "glip", GLIPConfig

    def __init__(self, config: GLIPConfig):
        super().__init__(config)
        dim, word_dim = config.dim, config.text.dim
        self.image = Swin(config.image) if isinstance(config.image, SwinConfig) else without_pool(config.image)
        self.text, self.pyramid = Bert(config.text), Pyramid(config)
        self.rounds = nn.ModuleList(Round(config) for _ in range(config.rounds))
        self.deltas, self.centerness = nn.Conv2d(dim, 4, 1), nn.Conv2d(dim, 1, 1)
        self.level_scales = nn.Parameter(torch.ones(config.levels))
        self.word = nn.Linear(word_dim, dim)
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.word_bias = nn.Parameter(torch.zeros(word_dim))
        self.bias = nn.Parameter(torch.full((1,), _PRIOR / (1 - _PRIOR)).log())
        for layer in (self.deltas, self.centerness):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, images: Images, ids: Tokens, mask: Mask) -> GLIPOutput:
        """Pictures, each with its prompt; their sides are whole multiples of the coarsest of the encoder's strides."""
        return self.meet(self.look(images), ids, mask)

    def look(self, images: Images) -> Maps:
        """The pyramid of what the image encoder sees."""
        return self.pyramid(self.image.maps(images) if isinstance(self.image, ResNet) else self.image(images))

    def meet(self, maps: Maps, ids: Tokens, mask: Mask) -> GLIPOutput:
        """What prompts find in pictures that the image encoder has read."""
        grids = [(each.shape[2], each.shape[3]) for each in maps]
        words = self.text(ids, mask) * mask[..., None]
        for each in self.rounds:
            maps, words = each(maps, words, mask)
        deltas = [self.deltas(each) * scale for each, scale in zip(maps, self.level_scales)]
        boxes = [
            anchors(grid, stride, ANCHOR_CELLS * stride, (1.0,)) for grid, stride in zip(grids, self.config.strides)
        ]
        return GLIPOutput(
            self.alignment(_places(maps), words),
            _places(deltas),
            _places([self.centerness(each) for each in maps])[..., 0],
            torch.cat(boxes).to(words),
            tuple(map(len, boxes)),
        )

    def alignment(
        self, places: Float[Tensor, "image anchor dim"], words: Float[Tensor, "image token word_dim"]
    ) -> Float[Tensor, "image anchor token"]:
        """S = O (W p / 2 + w)^T / exp(s) + p b + b_0, p the words as unit vectors."""
        p = F.normalize(words, dim=-1)
        scores = places @ self.word(p / 2).transpose(1, 2) / self.log_scale.exp() + (p @ self.word_bias)[:, None]
        return (scores + self.bias).clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT)

    def detect(
        self, picture: Any, labels: Labels, *, templates: Any = "generic", score_above: float = 0.0
    ) -> Detection:
        """Where the picture shows what; names that are too many for one prompt go into several.

        Raises:
            ValueError: no labels, an empty or repeated one, one too long or with synonyms; templates.
        """
        if templates != "generic":
            raise ValueError("glip reads all names in one prompt: templates have no effect")
        names = read_labels(labels)
        if several := next((each for each in names if len(each) > 1), None):
            raise ValueError(f"glip reads one name a label, not {len(several)}: {', '.join(several)}")
        flat = tuple(each[0] for each in names)
        tokenizer, config = self.reader(), self.config
        parts = chunks(tokenizer, flat, config.names_at_once)
        prompts = [names_prompt([flat[row] for row in rows]) for rows in parts]
        boxes, rows, scores = [], [], []
        for part, (found, chances) in zip(parts, self._look(picture, prompts, config.above)):
            kept = nms(found, chances, config.overlap) & (chances > score_above)
            places = kept.nonzero()
            boxes.append(found[places[:, 0]])
            rows.append(places[:, 1] + part.start)
            scores.append(chances[kept])
        best = torch.cat(scores).sort(descending=True, stable=True)
        order = best.indices[: config.most]
        return Detection(flat, torch.cat(boxes)[order], torch.cat(rows)[order], best.values[: config.most])

    def ground(
        self, picture: Any, sentence: str, spans: Sequence[Span] | None = None, *, boxes_each: int = 1
    ) -> Grounding:
        """Where the picture shows each phrase of a sentence, the phrases in their order, the best box first.

        Args:
            spans: the characters of the phrases; by default the sentence's nouns with their adjectives.

        Raises:
            ValueError: no phrase, one outside the sentence, or a sentence too long.
        """
        prompt = Prompt(sentence, tuple(noun_spans(sentence) if spans is None else spans))
        if not prompt.spans:
            raise ValueError(f"{sentence!r} names nothing that can be pointed at: give spans")
        ((boxes, chances),) = self._look(picture, [prompt], 0.0)
        kept = torch.where(nms(boxes, chances, self.config.overlap), chances, -1.0)
        scores, places = kept.T.topk(min(boxes_each, len(boxes)), dim=1)
        real = scores >= 0
        which = real.nonzero()[:, 0].tolist()
        return Grounding(sentence, tuple(prompt.spans[row] for row in which), boxes[places[real]], scores[real])

    def reader(self) -> PublishedTokenizer:
        """The tokenizer that prompts need."""
        if not isinstance(self.tokenizer, PublishedTokenizer):
            raise ValueError(f"{self.name} has no tokenizer of words and their parts: load it beside its vocab.txt")
        return self.tokenizer

    def _look(
        self, picture: Any, prompts: Sequence[Prompt], above: float
    ) -> list[tuple[Float[Tensor, "_ 4"], Float[Tensor, "_ _"]]]:
        """For each prompt the candidates' boxes, in pixels of the picture, and how sure each is of each phrase."""
        image = to_rgb(opened(picture))
        config, stride = self.config, self.config.strides[len(self.config.image.widths) - 1]
        short = min(config.preprocess.image_size, config.longest_px * min(image.size) / max(image.size))
        pixels = dense_pixels(image, self.preprocessing, stride, max(1, round(short)))
        encoded = encode_prompts(self.reader(), prompts)
        height, width = pixels.shape[2:]
        enlarge = torch.tensor([image.width / width, image.height / height] * 2)
        answers = []
        with evaluating(self):
            maps = self.look(pixels.to(self.device))
            for row in range(len(prompts)):
                length = int(encoded.mask[row].sum())
                ids, mask = (each[row : row + 1, :length].to(self.device) for each in (encoded.ids, encoded.mask))
                boxes, chances = self._candidates(self.meet(maps, ids, mask), encoded, row, above)
                answers.append((clip_boxes(boxes, (height, width)).cpu() * enlarge, chances.cpu()))
        return answers

    def _candidates(self, found: GLIPOutput, encoded: Encoded, row: int, above: float) -> tuple[Tensor, Tensor]:
        """Boxes of the places where a phrase is likely; sqrt(chance * centerness), 0 where it is not."""
        positive = encoded.positive[row][:, : found.scores.shape[2]].to(found.scores.device)
        chances = aggregate(found.scores[0].float().sigmoid(), positive, self.config.aggregate)
        kept = []
        for level in torch.where(chances > above, chances, 0.0).split(found.counts):
            flat = level.flatten()
            best = flat.topk(min(self.config.per_level, len(flat))).indices
            kept.append(torch.zeros_like(flat).scatter(0, best, flat[best]).view_as(level))
        scores = (torch.cat(kept) * found.centerness[0].float().sigmoid()[:, None]).sqrt()
        some = scores.amax(1) > 0
        return decode(found.deltas[0][some].float(), found.anchors[some].float(), BOX_WEIGHTS), scores[some]


def _places(maps: Sequence[Tensor]) -> Float[Tensor, "image anchor channel"]:
    return torch.cat([each.flatten(2).transpose(1, 2) for each in maps], 1)
