"""CLIP (arXiv 2103.00020): an image tower, a text tower, one space, a temperature."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from openvocab.blocks.resnet import ResNet, ResNetConfig
from openvocab.blocks.text import CBOW, CBOWConfig, TextConfig, TextTransformer
from openvocab.blocks.vit import ViT, ViTConfig
from openvocab.clip.preprocess import PreprocessConfig, preprocess
from openvocab.clip.tokenizer import Tokenizer
from openvocab.shapes import ImageEmbeds, Images, Logits, Scalar, TextEmbeds, Tokens

if TYPE_CHECKING:
    from openvocab.clip.embedded import Embedded
    from openvocab.clip.vocabulary import Vocabulary
    from openvocab.clip.zeroshot import Classification


@dataclass(frozen=True, kw_only=True, slots=True)
class CLIPConfig:
    """Two towers and how they meet."""

    image: ViTConfig | ResNetConfig
    text: TextConfig | CBOWConfig
    embed_dim: int
    logit_scale_init: float = math.log(1 / 0.07)
    """The log of the temperature's inverse, before training."""
    logit_bias_init: float | None = None
    """A number gives the model a bias (SigLIP: -10), None gives it none."""
    preprocess: PreprocessConfig | None = None
    """None: CLIP's own constants, at the image tower's size."""


@dataclass(frozen=True)
class CLIPOutput:
    """Unit vectors of a batch; row i of each is pair i."""

    image_embeds: Float[Tensor, "image embed"]
    text_embeds: Float[Tensor, "text embed"]


class Model(nn.Module):
    """A network that reads pictures, and what it carries besides its weights; `ov.load` attaches it.

    Args:
        config: has an `image` tower, and `preprocess` or CLIP's constants.

    Attributes:
        tokenizer: turns texts into ids; None where a model has no text files.
        fingerprint: identity of weights, config, preprocessing and tokenizer; "" for a model still in training.
        trained_on: what is known of its training data, and for models trained here the words of their captions.
    """

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        self.preprocessing: PreprocessConfig = config.preprocess or PreprocessConfig(image_size=config.image.image_size)
        self.tokenizer: Tokenizer | None = None
        self.name = "untitled"
        self.fingerprint = ""
        self.trained_on: dict[str, Any] | None = None

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def preprocess(self, image: Image.Image) -> Float[Tensor, "3 height width"]:
        """A picture as the pixels that the image tower reads; EXIF rotation is ignored, as by every peer."""
        return preprocess(image, self.preprocessing)


class CLIP(Model):
    """The dual encoder."""

    config: CLIPConfig

    def __init__(self, config: CLIPConfig):
        super().__init__(config)
        image_tower = ViT if isinstance(config.image, ViTConfig) else ResNet
        text_tower = TextTransformer if isinstance(config.text, TextConfig) else CBOW
        self.image = image_tower(config.image, config.embed_dim)  # type: ignore[arg-type]
        self.text = text_tower(config.text, config.embed_dim)  # type: ignore[arg-type]
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init))
        self.logit_bias = None
        if config.logit_bias_init is not None:
            self.logit_bias = nn.Parameter(torch.tensor(config.logit_bias_init))

    def tokenize(self, texts: list[str], truncate: bool = False) -> Tokens:
        """Texts as ids for `encode_text`, in the model's own context length.

        Raises:
            ValueError: a text is too long and `truncate` is not set, or the model has no tokenizer.
        """
        if self.tokenizer is None:
            raise ValueError(f"model {self.name!r} has no tokenizer: set clip.tokenizer, or load it with its files")
        return self.tokenizer(texts, self.config.text.context_length, truncate)

    def encode_image(self, images: Images, normalize: bool = True) -> ImageEmbeds:
        """Preprocessed pixels to the shared space; unit vectors unless `normalize` is False."""
        embeds = self.image.projection(self.image(images.to(self.dtype), tokens=False).pooled)
        return F.normalize(embeds, dim=-1) if normalize else embeds

    def encode_text(self, tokens: Tokens, normalize: bool = True) -> TextEmbeds:
        """Token ids to the shared space; unit vectors unless `normalize` is False."""
        embeds = self.text.projection(self.text(tokens, tokens=False).pooled)
        return F.normalize(embeds, dim=-1) if normalize else embeds

    def scale(self) -> Scalar:
        """exp(logit_scale), never clamped here: published SigLIP models exceed 100."""
        return self.logit_scale.exp()

    def logits(self, image_embeds: ImageEmbeds, text_embeds: TextEmbeds) -> Logits:
        """scale * I T^T + bias; rows are pictures."""
        logits = self.scale() * image_embeds @ text_embeds.T
        return logits if self.logit_bias is None else logits + self.logit_bias

    def forward(self, images: Images, tokens: Tokens) -> CLIPOutput:
        return CLIPOutput(self.encode_image(images), self.encode_text(tokens))

    @property
    def dtype(self) -> torch.dtype:
        """The towers' precision."""
        return next(self.image.parameters()).dtype

    @property
    def full_config(self) -> CLIPConfig:
        """The config with the preprocessing that is in use written out."""
        return dataclasses.replace(self.config, preprocess=self.preprocessing)

    def embed_images(self, pictures: Any, **options: Any) -> ImageEmbeds:
        """Paths or PIL images as unit rows, row i is picture i; see `clip.engine.embed_images`."""
        from openvocab.clip.engine import embed_images

        return embed_images(self, pictures, **options)

    def embed_files(self, source: Any, **options: Any) -> "Embedded":
        """A collection as unit rows, broken files listed; see `clip.collection.embed_files`."""
        from openvocab.clip.collection import embed_files

        return embed_files(self, source, **options)

    def embed_texts(self, texts: list[str]) -> TextEmbeds:
        """Texts as unit rows, equal ones encoded once; see `clip.engine.embed_texts`."""
        from openvocab.clip.engine import embed_texts

        return embed_texts(self, texts)

    def vocabulary(self, labels: Any, templates: Any = "generic", **options: Any) -> "Vocabulary":
        """Labels as vectors, ensembled over templates, kept on disk; see `clip.vocabulary.vocabulary`."""
        from openvocab.clip.vocabulary import vocabulary

        return vocabulary(self, labels, templates, **options)

    def classify(self, pictures: Any, labels: Any, **options: Any) -> "Classification":
        """Pictures against a vocabulary or labels; see `clip.zeroshot.classify`."""
        from openvocab.clip.zeroshot import classify

        return classify(self, pictures, labels, **options)

    def save(self, folder: Path | str) -> None:
        """Writes an openvocab folder with golden embeddings, see `clip.folder.save`."""
        from openvocab.clip.folder import save

        save(self, folder)
