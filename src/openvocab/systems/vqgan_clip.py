"""VQGAN+CLIP: the codes of a trained VQGAN moved until a CLIP sees the prompt (Crowson et al. 2022, arXiv 2204.08583).

    z* = argmin_z  sum_p |w_p| mean_v sign(w_p) d(I(v(D(q(z)))), t_p),   d(a, b) = 2 arcsin^2(|a - b| / 2)

z begins as random codes, or as those of a picture; q takes each of its vectors to the nearest code, with a gradient as
if it did not; v are cutouts of the picture, turned, tilted and with noise, so that no single view can be fooled.
Prompts are `text:weight:stop` with bars between them, as the authors write them: below `stop` a prompt pulls no more.
Differs from the released script: a view is sampled once, and colours are not jittered.

    openvocab generate "a red circle" --model VQGAN --guide CLIP --out pictures
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from openvocab.blocks.cutouts import affine, noise, perspective, squares, warp, whole
from openvocab.blocks.strokes import RGB
from openvocab.clip.created import Pictures
from openvocab.clip.dense import TINY_CLIP
from openvocab.clip.drawing import PLAIN, clamp, frozen, normalised, optimise, prompts
from openvocab.clip.engine import Picture
from openvocab.clip.model import CLIP
from openvocab.shapes import Batch
from openvocab.system import System
from openvocab.train.config import GroupConfig

_AT_ONCE = 32
_GREY: RGB = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True, slots=True)
class VQGANCLIPConfig:
    """How codes are moved.

    `cutouts`: of each picture at each step, squares of at least the share `smallest` of its side; 0 looks at it whole.
    `rows`, `cols`: of codes; None for those that the VQGAN learnt.
    """

    steps: int = 500
    rate: float = 0.1
    cutouts: int = 32
    smallest: float = 0.5
    degrees: float = 15.0
    shift: float = 0.1
    distortion: float = 0.3
    noise: float = 0.1
    rows: int | None = None
    cols: int | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or self.cutouts < 0:
            raise ValueError(f"VQGANCLIPConfig: {self.steps} steps and {self.cutouts} cutouts, at least 1 and 0")


SIZES = {
    "tiny": VQGANCLIPConfig(steps=4, cutouts=2),
    "small": VQGANCLIPConfig(steps=100, cutouts=8),
    "paper": VQGANCLIPConfig(),
}


@dataclass(frozen=True)
class Prompt:
    """What a picture should show (`weight` above 0) or should not, until its distance is `stop`."""

    text: str
    weight: float = 1.0
    stop: float = -torch.inf


def read_prompts(text: str) -> tuple[Prompt, ...]:
    """`a castle:2|fog:-0.5:-0.8`: weights and stops may be left out.

    Raises:
        ValueError: nothing is said, or a weight or stop is no number.
    """
    found = []
    for part in text.split("|"):
        words, *numbers = part.rsplit(":", 2) if part.count(":") > 1 else part.split(":")
        try:
            found.append(Prompt(words.strip(), *map(float, numbers)))
        except ValueError:
            raise ValueError(f"prompt {part.strip()!r}: expected text, text:weight or text:weight:stop") from None
    return tuple(found)


def spherical(a: Float[Tensor, "... embed"], b: Float[Tensor, "... embed"]) -> Float[Tensor, "..."]:
    """Half the squared angle between unit vectors."""
    return ((a - b).norm(dim=-1) / 2).clamp(max=1).arcsin().square() * 2


class Latents(nn.Module):
    """Pictures as vectors of a VQGAN's codes: what is optimised."""

    def __init__(self, coder: Any, vectors: Float[Tensor, "image dim rows cols"]):
        super().__init__()
        self.vectors = nn.Parameter(vectors.clone())
        self.network = [coder.network]  # in a list: not a part of what is optimised

    def forward(self) -> Float[Tensor, "image 3 height width"]:
        (network,) = self.network
        nearest = network.quantize.vectors(network.quantize.codes(self.vectors))
        return clamp(network.decode_vectors(self.vectors + (nearest - self.vectors).detach()))

    @torch.no_grad()
    def constrain(self) -> None:
        """Each channel within what the codebook has of it."""
        book = self.network[0].quantize.codebook
        low, high = (edge.view(1, -1, 1, 1) for edge in (book.amin(0), book.amax(0)))
        self.vectors.copy_(self.vectors.clamp(low, high))


class VQGANCLIP(nn.Module):
    """A CLIP that finds codes.

    Args:
        coder: a VQGAN of `autoencoders`; without one nothing can be made.

    Raises:
        ValueError: another autoencoder, which has no vectors that can be moved.
    """

    def __init__(self, config: VQGANCLIPConfig, clip: CLIP, coder: Any = None):
        super().__init__()
        if coder is not None and not hasattr(coder.network, "decode_vectors"):
            raise ValueError(f"{coder.name}: a {type(coder.network).__name__} has no vectors to move; give a VQGAN")
        self.config, self.clip, self.coder = config, clip, coder

    def generate(self, prompt: str, num: int = 1, *, seed: int = 0, picture: Picture | None = None) -> Pictures:
        """Pictures of what the prompts say.

        Args:
            prompt: see `read_prompts`.
            picture: what to begin from in place of random codes.

        Raises:
            ValueError: no picture is asked for; a prompt is empty, malformed or too long for the CLIP.
        """
        if num < 1:
            raise ValueError(f"num is {num}, expected at least 1 picture")
        asked = read_prompts(prompt)
        texts = prompts(self.clip, [each.text for each in asked])
        weights = torch.tensor([[each.weight, each.stop] for each in asked]).to(texts)
        made = []
        for first in range(0, num, _AT_ONCE):
            count = min(_AT_ONCE, num - first)
            every = {"texts": texts.expand(count, -1, -1), "weights": weights.expand(count, -1, -1)}
            made.append(self.optimised(every, seed + first, picture))
        return Pictures(torch.cat(made))

    def optimised(self, batch: Batch, seed: int, picture: Picture | None = None) -> Float[Tensor, "image 3 _ _"]:
        """One picture for each row of prompts (texts: image prompt embed; weights: image prompt 2)."""
        latents = self.begin(len(batch["texts"]), seed, picture)
        group = GroupConfig(optim=replace(PLAIN, lr=self.config.rate))
        with frozen(self):
            optimise(
                latents,
                [self.loss],
                batch,
                [(group,)],
                steps=self.config.steps,
                seed=seed,
                constrain=Latents.constrain,
            )
            with torch.no_grad():
                return latents().cpu()

    def begin(self, count: int, seed: int, picture: Picture | None = None) -> Latents:
        """Random codes, or those of a picture."""
        coder, config = self.coder, self.config
        if coder is None:
            raise ValueError("VQGAN+CLIP makes pictures with a trained VQGAN: build(config, clip, coder)")
        if picture is None:
            side = coder.config.image_size // coder.network.stride
            random = torch.Generator().manual_seed(seed)
            shape = (count, config.rows or side, config.cols or side)
            codes = torch.randint(coder.network.num_codes, shape, generator=random)
        else:
            codes = coder.encode(picture).expand(count, -1, -1)
        with torch.no_grad():
            return Latents(coder, coder.network.quantize.vectors(codes.to(coder.device)))

    def loss(self, latents: Latents, batch: Batch) -> dict[str, Tensor]:
        """The sum over pictures; none knows of the others."""
        config, pictures = self.config, latents()
        views = whole(1)
        if count := config.cutouts:
            turned = affine(count, config.degrees, config.shift) @ perspective(count, config.distortion)
            views = turned @ squares(count, config.smallest)
        seen = warp(pictures, views, self.clip.preprocessing.image_size, _GREY)
        seen = noise(seen, config.noise) if config.cutouts and config.noise else seen
        embeds = self.clip.encode_image(normalised(self.clip, seen)).unflatten(0, (len(views), len(pictures)))
        weight, stop = batch["weights"].unbind(-1)
        apart = spherical(embeds[:, :, None], batch["texts"]) * weight.sign()
        pulled = torch.maximum(apart, stop)  # where it stops it has no gradient, and keeps its value
        return {"loss": (weight.abs() * (apart.detach() + (pulled - pulled.detach()))).sum() / len(views)}


def build(config: VQGANCLIPConfig | str, clip: CLIP | None = None, coder: Any = None) -> VQGANCLIP:
    """Around `clip` and the VQGAN `coder`; without a CLIP around a small one of random weights, which knows nothing."""
    return VQGANCLIP(SIZES[config] if isinstance(config, str) else config, clip or CLIP(TINY_CLIP), coder)


SYSTEM = System(name="vqgan_clip", title="VQGAN+CLIP", paper="arXiv 2204.08583", sizes=SIZES, build=build)
