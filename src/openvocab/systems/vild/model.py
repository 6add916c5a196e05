"""ViLD's model: the detector, how regions meet words, the verbs."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor, nn

from openvocab.blocks.boxes import Boxes, clip_boxes
from openvocab.blocks.detector import (
    DetectorConfig,
    Maps,
    ProposalHead,
    Proposals,
    Pyramid,
    RegionHead,
    decode,
    region_features,
)
from openvocab.blocks.resnet import ResNetConfig
from openvocab.clip.dense import dense_pixels
from openvocab.clip.engine import evaluating
from openvocab.clip.model import CLIP, CLIPConfig
from openvocab.clip.preprocess import PreprocessConfig
from openvocab.clip.regions import Detection, detections, named
from openvocab.clip.saved import CLIPSystemModel
from openvocab.clip.templates import fill
from openvocab.clip.templates import templates as read_templates
from openvocab.clip.vocabulary import Labels, Vocabulary, check_model, read_labels, vocabulary
from openvocab.data.decode import opened, to_rgb

Method = Literal["text", "image", "vild", "ensemble", "closed"]
Vectors = Float[Tensor, "box embed"]
Chances = Float[Tensor, "box label"]

BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ViLDConfig:
    """A CLIP, a detector without classes, and how its regions meet words.

    `method`: `text` and `image` have one of the losses, `vild` both on one head, `ensemble` each on a head of its own;
    `closed` has no words but a linear classifier, the control. `labels` are the base labels, known after training.
    `samples` regions of a picture, `objects` of them at most on objects, of which they cover `overlap`.
    `zero_logits`: so many names that training does not know stay in its softmax, with the logit 0.
    `suppress`, `most`: the overlap that removes a weaker box of the same label, and how many detections stay.
    """

    clip: CLIPConfig
    detector: DetectorConfig
    preprocess: PreprocessConfig | None = None
    method: Method = "vild"
    labels: tuple[str, ...] = ("a base label", "another")
    region_size: int = 7
    head_convs: int = 4
    head_dim: int = 1024
    samples: int = 512
    objects: float = 0.25
    overlap: float = 0.5
    scale: float = 100.0
    distill: float = 0.5
    zero_logits: int = 0
    suppress: float = 0.5
    most: int = 300

    @property
    def image(self) -> ResNetConfig:
        return self.detector.trunk


@dataclass(frozen=True)
class Seen:
    """What the heads say of regions; None where the method has no such head.

    Fields:
        text: unit vectors to compare with words; the logits of a closed head.
        image: unit vectors that follow CLIP's.
    """

    deltas: Float[Tensor, "box 4"]
    text: Float[Tensor, "box _"] | None
    image: Vectors | None


class ViLD(CLIPSystemModel):
    """Finds what words name."""

    system, config_type = "vild", ViLDConfig
    texts: Tensor

    def __init__(self, config: ViLDConfig, clip: CLIP | None = None):
        super().__init__(config, clip)
        self.clip.requires_grad_(False)
        detector, embed = config.detector, self.clip.config.embed_dim
        self.pyramid, self.proposals = Pyramid(detector), ProposalHead(detector)

        def head() -> RegionHead:
            return RegionHead(detector.dim, config.region_size, config.head_convs, config.head_dim)

        self.head, self.deltas = head(), nn.Linear(config.head_dim, 4)
        closed, double = config.method == "closed", config.method == "ensemble"
        self.project = nn.Linear(config.head_dim, 1 + len(config.labels) if closed else embed)
        self.background = None if config.method in ("closed", "image") else nn.Parameter(torch.randn(embed) * 0.01)
        self.image_head = head() if double else None
        self.image_project = nn.Linear(config.head_dim, embed) if double else None
        self.register_buffer("texts", F.normalize(torch.randn(len(config.labels), embed), dim=1))

    def see(self, maps: Maps, boxes: Boxes, image: Tensor) -> Seen:
        """The heads' answers for boxes of these pictures."""
        regions = region_features(maps, self.config.detector.strides, boxes, image, self.config.region_size)
        hidden = self.head(regions)
        text = self.project(hidden) if self.config.method == "closed" else F.normalize(self.project(hidden), dim=1)
        if self.image_head is not None and self.image_project is not None:
            return Seen(self.deltas(hidden), text, F.normalize(self.image_project(self.image_head(regions)), dim=1))
        apart = {"text": (text, None), "closed": (text, None), "image": (None, text), "vild": (text, text)}
        return Seen(self.deltas(hidden), *apart[self.config.method])

    def text_logits(self, vectors: Vectors, texts: Float[Tensor, "label embed"]) -> Float[Tensor, "box answer"]:
        """s [cos(e, e_bg), cos(e, t_1), ..]; column 0 is the background."""
        assert self.background is not None
        return self.config.scale * vectors @ torch.cat([F.normalize(self.background, dim=0)[None], texts]).T

    def words(self, labels: Labels | Vocabulary, templates: Any = "generic") -> Vocabulary:
        """Labels as vectors of the text tower; `a` before a vowel is `an`.

        Raises:
            ValueError: no labels, an empty or repeated one, one too long; or a vocabulary of another model.
        """
        if isinstance(labels, Vocabulary):
            check_model(self.clip, labels)
            return labels
        names, patterns = read_labels(labels), read_templates(templates)
        prompts = [[_prompt(pattern, name) for name in each for pattern in patterns] for each in names]
        return replace(vocabulary(self.clip, prompts, "{}"), labels=tuple(each[0] for each in names))

    def propose(self, picture: Any) -> Proposals:
        """Regions of a picture that may hold an object, in its own pixels."""
        image = opened(picture)
        with evaluating(self):
            _, found, shrink = self._look(image)
        return Proposals(found.boxes * shrink, found.objectness)

    def detect(
        self, picture: Any, labels: Labels | Vocabulary, *, templates: Any = "generic", score_above: float = 0.0
    ) -> Detection:
        """Where the picture shows what, in these words; one pass of the picture whatever the number of labels.

        Raises:
            ValueError: see `words`.
        """
        words, config = self.words(labels, templates), self.config
        image = opened(picture)
        with evaluating(self):
            maps, found, shrink = self._look(image)
            seen = self.see(maps, found.boxes, found.boxes.new_zeros(len(found.boxes), dtype=torch.int64))
            size = (maps[0].shape[2] * config.detector.strides[0], maps[0].shape[3] * config.detector.strides[0])
            boxes = clip_boxes(decode(seen.deltas, found.boxes, BOX_WEIGHTS), size)
            chances = self._chances(seen, words)
            if config.method == "image":  # it has no word for what is no object
                chances = chances * found.objectness[:, None]
        chances, boxes = chances.float().cpu(), (boxes * shrink).float().cpu()
        about = {"suppress": config.suppress, "most": config.most, "above": score_above}
        return detections(boxes, chances, words.labels, **about)

    def name_regions(
        self, picture: Any, boxes: Boxes, labels: Labels | Vocabulary, *, templates: Any = "generic"
    ) -> Detection:
        """Regions that anyone found (xyxy in pixels), each with the label that fits it best."""
        words = self.words(labels, templates)
        image = opened(picture)
        with evaluating(self):
            maps, _, shrink = self._look(image)
            seen = self.see(
                maps, boxes.to(shrink) / shrink, torch.zeros(len(boxes), dtype=torch.int64).to(shrink.device)
            )
            chances = self._chances(seen, words, given=True)
        chances = chances / chances.sum(1, keepdim=True).clamp_min(1e-12)
        return named(boxes, chances.float().cpu(), words.labels)

    def _look(self, picture: Image.Image) -> tuple[Maps, Proposals, Tensor]:
        """Maps and proposals of a picture, and the lengths of its own pixels in those that were seen."""
        side = self.preprocessing.image_size
        short = max(1, round(side * min(picture.size) / max(picture.size)))
        pixels = dense_pixels(to_rgb(picture), self.preprocessing, self.config.detector.trunk.stride, short)
        maps = self.pyramid(pixels.to(self.device))
        height, width = pixels.shape[2:]
        found = self.proposals.propose(self.proposals(maps), (height, width))[0]
        shrink = found.boxes.new_tensor([picture.width / width, picture.height / height] * 2)
        return maps, found, shrink

    def _chances(self, seen: Seen, words: Vocabulary, given: bool = False) -> Chances:
        """The probability of every label for every region, by the method's formula.

        Args:
            given: the regions are known to show something, so that the background is no answer.
        """
        config, texts, first = self.config, words.embeds.to(self.texts), int(given)
        base = {plain(label): row for row, label in enumerate(config.labels)}
        rows = torch.tensor([base.get(plain(label), -1) for label in words.labels], device=texts.device)
        if config.method == "closed":
            assert seen.text is not None
            known = seen.text[:, first:].softmax(1)[:, 1 - first :]
            return F.pad(known, (0, 1))[:, rows]  # the last column, of labels unknown, is 0
        text = None
        if seen.text is not None:
            text = self.text_logits(seen.text, texts)[:, first:].softmax(1)[:, 1 - first :]
        if config.method in ("text", "vild"):
            assert text is not None
            return text
        assert seen.image is not None
        image = (config.scale * seen.image @ texts.T).softmax(1)
        return image if text is None else ensemble(text, image, rows >= 0)


def ensemble(text: Chances, image: Chances, base: Bool[Tensor, " label"]) -> Chances:
    """The weighted geometric mean of two heads: what was trained on text counts more for labels it was trained on."""
    share = torch.where(base, 2 / 3, 1 / 3)
    return text**share * image ** (1 - share)


def plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").replace("/", " or ").rstrip(".").split())


def _prompt(template: str, name: str) -> str:
    name = plain(name) or name
    return fill(template.replace("a {}", "an {}") if name[0] in "aeiou" else template, name)
