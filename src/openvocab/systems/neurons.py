"""Multimodal neurons: what a unit of the image tower answers to (Goh et al. 2021, distill.pub/2021/multimodal-neurons).

    x* = argmax_x  mean_v a_n(v(x)) - w |x - 1/2|^2,   x = sigmoid(C irfft(S / f)),   v random views

Neurons are the features that a tower pools, before the projection: the mean channels of a ResNet's last maps, the class
token of a ViT. Three ways of asking: a picture optimised for a neuron, as coefficients S of a spectrum,
in colours C that are decorrelated, seen in random views; the pictures of a collection that excite it most; the words
whose embeddings its column of the projection points at.
Reproduced: the parametrisation, the objective, neurons and directions. Differs: facets are not steered, and the neurons
of a published ResNet are those behind its attention pool, so that each has its column of the projection.

    openvocab explain PICTURES --neuron 12 --model demo --out why
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from openvocab.blocks.cutouts import affine, warp, whole
from openvocab.blocks.strokes import RGB
from openvocab.clip.created import Pictures
from openvocab.clip.dense import TINY_CLIP
from openvocab.clip.drawing import PLAIN, frozen, normalised, optimise
from openvocab.clip.engine import Picture, embed_images
from openvocab.clip.model import CLIP
from openvocab.clip.vocabulary import Labels, vocabulary
from openvocab.metrics.classify import roc_auc
from openvocab.shapes import Batch, Images
from openvocab.system import System
from openvocab.train.config import GroupConfig

Activations = Float[Tensor, "image neuron"]
_COLOURS = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))
"""Square root of the covariance of photographs' colours, a column each: light, blue to yellow, green to purple."""
_GREY: RGB = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True, slots=True)
class NeuronsConfig:
    """How a picture is found for a neuron.

    `start` is the deviation of the values that it begins with: a neuron that is silent at grey has no gradient there.
    `fourier`, `decorrelated`, `views` are its three aids, each of which can be left out: `views` 0 sees it as it is.
    `grey_weight` pulls towards grey what the neuron does not care for.
    """

    steps: int = 256
    rate: float = 0.05
    start: float = 0.01
    fourier: bool = True
    decorrelated: bool = True
    views: int = 4
    degrees: float = 10.0
    shift: float = 0.06
    scale: tuple[float, float] = (0.9, 1.1)
    grey_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.views < 0:
            raise ValueError(f"NeuronsConfig: {self.steps} steps and {self.views} views, at least 1 and 0")


SIZES = {
    "tiny": NeuronsConfig(steps=4, views=1),
    "small": NeuronsConfig(steps=128, rate=0.1, start=1.0, grey_weight=0.5),
    "paper": NeuronsConfig(steps=4096, rate=0.02, views=1, grey_weight=10.0),
}


class Canvas(nn.Module):
    """Pictures as what is optimised: a spectrum, low frequencies the strongest, or values of pixels."""

    def __init__(self, config: NeuronsConfig, count: int, size_px: int, generator: torch.Generator):
        super().__init__()
        self.size_px, self.fourier = size_px, config.fourier
        rows = torch.fft.fftfreq(size_px)[:, None]
        frequency = (rows.square() + torch.fft.rfftfreq(size_px).square()).sqrt().clamp_min(1 / size_px)
        shape = (count, 3, size_px, size_px // 2 + 1, 2) if config.fourier else (count, 3, size_px, size_px)
        self.values = nn.Parameter(config.start * torch.randn(shape, generator=generator))
        self.scale: Tensor
        self.mix: Tensor
        self.register_buffer("scale", 1 / frequency)
        mix = torch.tensor(_COLOURS)
        self.register_buffer("mix", mix / mix.norm(dim=0).max() if config.decorrelated else torch.eye(3))

    def forward(self) -> Float[Tensor, "image 3 size size"]:
        values = self.values
        if self.fourier:
            spectrum = torch.view_as_complex(values) * self.scale
            values = torch.fft.irfft2(spectrum, s=(self.size_px, self.size_px), norm="ortho") / 4
        return torch.einsum("oc,ichw->iohw", self.mix, values).sigmoid()


class Neurons(nn.Module):
    """A CLIP whose neurons are asked."""

    def __init__(self, config: NeuronsConfig, clip: CLIP):
        super().__init__()
        self.config, self.clip = config, clip

    @property
    def count(self) -> int:
        """Of neurons."""
        return self.clip.config.image.dim

    def forward(self, images: Images) -> Activations:
        """How strongly each neuron answers to each picture."""
        return self.clip.image(images, tokens=False).pooled

    def activations(self, pictures: Picture | Sequence[Picture]) -> Activations:
        """How strongly each neuron answers to pictures of one's own."""
        return embed_images(self.clip, pictures, projected=False)

    def draw(self, directions: Float[Tensor, "image neuron"] | int, *, seed: int = 0) -> Pictures:
        """A picture for each direction among neurons: for one neuron where a number is given.

        Raises:
            ValueError: there is no such neuron.
        """
        if isinstance(directions, int):
            self.check(directions)
            directions = F.one_hot(torch.tensor([directions]), self.count).float()
        canvas = Canvas(
            self.config, len(directions), self.clip.preprocessing.image_size, torch.Generator().manual_seed(seed)
        )
        batch = {"directions": F.normalize(directions, dim=1).to(self.clip.device)}
        group = GroupConfig(optim=replace(PLAIN, lr=self.config.rate))
        with frozen(self):
            optimise(canvas, [self.loss], batch, [(group,)], steps=self.config.steps, seed=seed)
            with torch.no_grad():
                return Pictures(canvas().cpu())

    def loss(self, canvas: Canvas, batch: Batch) -> dict[str, Tensor]:
        """The sum over pictures; none knows of the others."""
        config, pictures = self.config, canvas()
        views = affine(config.views, config.degrees, config.shift, config.scale) if config.views else whole(1)
        seen = warp(pictures, views, pictures.shape[-1], _GREY)
        answers = self(normalised(self.clip, seen)).unflatten(0, (len(views), len(pictures)))
        wanted = (answers * batch["directions"]).sum(2).mean(0)
        dull = (pictures - 0.5).square().mean((1, 2, 3))
        return {"loss": (config.grey_weight * dull - wanted).sum()}

    def words(self, neuron: int, labels: Labels, most: int = 5) -> list[tuple[str, float]]:
        """The labels that a neuron speaks for: what it adds to the logit of each, beside the mean of all; best first.

        Raises:
            ValueError: there is no such neuron; a tower whose projection is no matrix.
        """
        self.check(neuron)
        matrix = getattr(self.clip.image.projection, "weight", None)
        if matrix is None:
            raise ValueError(f"{self.clip.name}: its projection is no matrix, a neuron has no direction among words")
        named = vocabulary(self.clip, labels)
        fits = named.embeds @ matrix[:, neuron].detach().cpu()
        fits = fits - fits.mean()
        best = fits.topk(min(most, len(fits)))
        return [(named.labels[row], fit) for row, fit in zip(best.indices.tolist(), best.values.tolist())]

    def check(self, neuron: int) -> None:
        if not 0 <= neuron < self.count:
            raise ValueError(f"neuron {neuron} does not exist: {self.clip.name} has 0 to {self.count - 1}")


def selectivity(activations: Activations, shown: Bool[Tensor, "image concept"]) -> Float[Tensor, "neuron concept"]:
    """The area under the ROC curve of each neuron as a detector of each concept; 1/2 is chance."""
    areas = [[roc_auc(column, truth) for truth in shown.T] for column in activations.T]
    return torch.tensor(areas)


def build(config: NeuronsConfig | str, clip: CLIP | None = None) -> Neurons:
    """Of `clip`; without one of a small CLIP of random weights, whose neurons mean nothing."""
    return Neurons(SIZES[config] if isinstance(config, str) else config, clip or CLIP(TINY_CLIP))


SYSTEM = System(
    name="neurons", title="Multimodal neurons", paper="distill.pub 10.23915/distill.00030", sizes=SIZES, build=build
)
