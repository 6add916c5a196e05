"""DepthCLIP: distances from any CLIP, without training (Zhang et al. 2022, arXiv 2207.01077).

Each place i of a picture is compared with sentences about distances; what they say is weighed by how well they fit:

    w_i = softmax_k(s cos(f_i, t_k) / tau),   d_i = sum_k w_ik b_k,   t_k = text("This object is {word_k}")

s is CLIP's scale, b the distance that a word stands for. The map is averaged with that of the mirrored picture and
enlarged. Words, bins b and tau are the paper's unless they are fitted (`learn_bins`): b non-negative and in order.
Differs from the paper: f_i lies in the space of t (`clip.values`), at any size, of ResNets and ViTs. The authors
compare t with every second channel of what is not in that space yet; `readout="channels"` does as their code.

    openvocab depth PICTURE --model hf:openai/clip-vit-base-patch32 --out DIR
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from openvocab.clip.architectures import architecture
from openvocab.clip.dense import TINY_CLIP, dense_pixels, noise_pictures
from openvocab.clip.engine import evaluating
from openvocab.clip.model import CLIP
from openvocab.clip.preprocess import PreprocessConfig
from openvocab.clip.saved import CLIPSystemConfig, CLIPSystemModel
from openvocab.clip.values import Dense, dense_values
from openvocab.clip.vocabulary import vocabulary
from openvocab.data.decode import opened, to_rgb
from openvocab.data.depths import Depths, open_depths
from openvocab.metrics.depth import EVERYWHERE, DepthM, Protocol, blind, depth_errors
from openvocab.progress import track
from openvocab.shapes import Batch, Images
from openvocab.system import System
from openvocab.world.room import WORDS_M

TEMPERATURES = tuple(10 ** (step / 10) for step in range(-30, 21))
"""Among which `learn_bins` chooses."""

Responses = Float[Tensor, "view word rows cols"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthCLIPConfig(CLIPSystemConfig):
    """What distances are called, from near to far, and what the words stand for.

    `preprocess` is what pictures are read at, the CLIP's own by default. `readout`: `joint` places, or `channels` of
    what is not yet in the space of texts.
    """

    words: tuple[str, ...] = tuple(WORDS_M)
    bins_m: tuple[float, ...] = (1.0, 1.5, 2.0, 2.25, 2.5, 2.75, 3.0)
    template: str = "This object is {}"
    temperature: float = 0.1
    readout: Literal["joint", "channels"] = "joint"

    def __post_init__(self) -> None:
        if len(self.words) != len(self.bins_m):
            raise ValueError(f"DepthCLIP: {len(self.words)} words and {len(self.bins_m)} bins_m; expected one each")
        if list(self.bins_m) != sorted(self.bins_m) or min(self.bins_m) < 0:
            raise ValueError(f"DepthCLIP: bins_m {self.bins_m} must not be negative and must not fall, near to far")
        if not self.temperature > 0:
            raise ValueError(f"DepthCLIP: temperature {self.temperature} must be more than 0")


SIZES = {
    "tiny": DepthCLIPConfig(clip=TINY_CLIP),
    "paper": DepthCLIPConfig(
        clip=architecture("RN50-quickgelu"),
        preprocess=PreprocessConfig(image_size=416, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        readout="channels",
    ),
}
"""`paper` is the authors' code."""


@dataclass(frozen=True)
class Depth:
    """How far away each pixel of a picture is, at the picture's own size."""

    depth_m: DepthM


class DepthCLIP(CLIPSystemModel):
    """A CLIP that says how far away each place is."""

    system, config_type = "depthclip", DepthCLIPConfig

    def forward(self, images: Images) -> tuple[Dense, tuple[int, int]]:
        """What each place is compared with words by, row by row, and the grid; sides are multiples of the stride."""
        if self.config.readout == "joint":
            embeds, _, grid = dense_values(self.clip, images)
            return embeds, grid
        found = self.clip.image(images)
        return F.interpolate(F.normalize(found.tokens, dim=-1), self.clip.config.embed_dim), found.grid

    def depth(self, picture: Any) -> Depth:
        """How far away every pixel is; ValueError where the picture cannot be read."""
        image = opened(picture)
        shares = word_shares(self.responses(image), self.config.temperature, (image.height, image.width))
        return Depth(torch.tensordot(torch.tensor(self.config.bins_m), shares, 1))

    def responses(self, image: Image.Image) -> Responses:
        """s cos of each word at each place, of the picture and of its mirror image turned back."""
        words = vocabulary(self.clip, self.config.words, self.config.template)
        pixels = dense_pixels(to_rgb(image), self.preprocessing, self.clip.config.image.stride)
        with evaluating(self):
            embeds, grid = self(torch.cat([pixels, pixels.flip(3)]).to(self.device))
        fits = self.clip.scale().detach() * embeds @ words.embeds.to(embeds).T
        maps = fits.float().cpu().transpose(1, 2).unflatten(2, grid)
        return torch.stack([maps[0], maps[1].flip(2)])


def word_shares(responses: Responses, temperature: float, size: tuple[int, int]) -> Float[Tensor, "word height width"]:
    """w of every pixel of a picture of `size` (height, width): the mean of both views, enlarged."""
    shares = (responses / temperature).softmax(1).mean(0, keepdim=True)
    return F.interpolate(shares, size, mode="bilinear", align_corners=False)[0]


def learn_bins(model: DepthCLIP, data: Depths, pictures: int = 8) -> DepthCLIP:
    """The model with those bins and that temperature which fit the first pictures of a source best.

    min over b, tau of sum_pixels ((w b - g) / g)^2,  0 <= b_1 <= b_2 <= ...: for each tau least squares, b as sums of
    non-negative steps.
    """
    steps = torch.ones(len(model.config.words), len(model.config.words), dtype=torch.float64).tril()
    squares = torch.zeros(len(TEMPERATURES), *steps.shape, dtype=torch.float64)
    products = torch.zeros(len(TEMPERATURES), len(steps), dtype=torch.float64)
    for index in track(range(min(pictures, len(data))), f"learning bins from {data.source}", unit="picture"):
        found = data.read(index)
        truth, responses = torch.from_numpy(found.depth_m), model.responses(found.image)
        known, size = truth > 0, (found.image.height, found.image.width)
        for row, temperature in enumerate(TEMPERATURES):
            shares = word_shares(responses, temperature, size)[:, known].double() / truth[known]
            squares[row] += shares @ shares.T
            products[row] += shares.sum(1)
    bins = [steps @ nonnegative(steps.T @ a @ steps, steps.T @ b) for a, b in zip(squares, products)]
    misfits = torch.stack([b @ a @ b - 2 * b @ c for a, b, c in zip(squares, bins, products)])
    best = int(misfits.argmin())
    config = replace(model.config, bins_m=tuple(bins[best].tolist()), temperature=TEMPERATURES[best])
    return build(config, model.clip)


def nonnegative(square: Float[Tensor, "step step"], product: Float[Tensor, " step"]) -> Float[Tensor, " step"]:
    """min over x >= 0 of x A x / 2 - b x: the best of all minima in which some steps are zero."""
    kept = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=product.dtype)] * len(product))
    systems = kept[:, :, None] * square * kept[:, None] + torch.diag_embed(1 - kept + 1e-9 * square.trace())
    found = torch.linalg.solve(systems, kept * product)
    value = (0.5 * found * (found @ square) - found * product).sum(1)
    return found[value.masked_fill((found < 0).any(1), torch.inf).argmin()]


def build(config: DepthCLIPConfig | str, clip: CLIP | None = None) -> DepthCLIP:
    """Around `clip`; without one around one of random weights, which knows nothing."""
    config = SIZES[config] if isinstance(config, str) else config
    if clip is not None:
        config = replace(config, clip=clip.full_config, preprocess=config.preprocess or clip.preprocessing)
    model = DepthCLIP(config, clip)
    model.name = clip.name if clip else model.name
    return model


def embed(model: DepthCLIP, batch: Batch) -> dict[str, Tensor]:
    """What all places are compared with words by."""
    return {"dense": model(batch["images"])[0]}


def errors(model: DepthCLIP, data: Depths, protocol: Protocol = EVERYWHERE) -> dict[str, Float[Tensor, " image"]]:
    """The errors of every picture: `abs_rel` and its kin, and as `row mean: abs_rel` those of what sees no picture.

    What sees none knows the distances of this very data (`metrics.depth.blind`), which favours it.
    """
    guessing = blind([torch.from_numpy(data.read(index).depth_m) for index in range(len(data))], protocol)
    rows: dict[str, list[float]] = {}
    for index in track(range(len(data)), f"measuring distances of {data.source}", unit="picture"):
        found = data.read(index)
        truth = torch.from_numpy(found.depth_m)
        guesses = guessing.guesses(found.image.height, found.image.width, index)
        for who, map_m in {"": model.depth(found.image).depth_m, **guesses}.items():
            for name, value in depth_errors(map_m, truth, protocol).items():
                rows.setdefault(f"{who}: {name}" if who else name, []).append(value)
    return {name: torch.tensor(values) for name, values in rows.items()}


def evaluate(model: DepthCLIP, data: Depths, protocol: Protocol = EVERYWHERE) -> dict[str, float]:
    """Means of `errors` over pictures."""
    return {name: values.mean().item() for name, values in errors(model, data, protocol).items()}


SYSTEM = System(
    name="depthclip",
    title="DepthCLIP",
    paper="arXiv 2207.01077",
    sizes=SIZES,
    build=build,
    embed=embed,
    evaluate=evaluate,
    open=open_depths,
    example=noise_pictures,
    load=DepthCLIP.load,
    parameters={"paper": 102_007_137},
)
