"""CLIPasso: a picture to a few black strokes with any CLIP, without training (Vinker et al. 2022, arXiv 2202.05822).

Only the points of cubic strokes of one width move. The drawing S and the picture P are seen in the same views v, plain
and in random perspectives and crops:

    L = sum_l mean_v |F_l(v(S)) - F_l(v(P))|^2 + 0.1 mean_v (1 - cos(I(v(S)), I(v(P))))

with the image tower's features F_l after some of its layers (geometry) and its embedding I (meaning). Strokes begin
where a CLIP looks, times edges (`saliency`). Several starts are one batch, the best by L in the plain view is kept.
The released code takes the second and third stage of RN101; the paper's text counts the stem, so that they are 3 and 4.
Differs from the released code: its U^2-Net, which removes the background, is a mask that is given or what a CLIP looks
at; every run is as long as it was asked for; a view is sampled once, and coverage is exact.

    openvocab sketch cat.jpg --model hf:openai/clip-vit-base-patch32 --out cat.svg
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor, nn

from openvocab.blocks.cutouts import crops, perspective, warp, whole
from openvocab.blocks.strokes import RGB
from openvocab.blocks.vit import ViT
from openvocab.clip.created import Drawing
from openvocab.clip.dense import TINY_CLIP
from openvocab.clip.drawing import (
    GREY,
    PLAIN,
    UNIT,
    Canvas,
    Strokes,
    best,
    canvas_size,
    frozen,
    normalised,
    optimise,
    seen,
    spread,
)
from openvocab.clip.model import CLIP
from openvocab.data.decode import opened, to_rgb
from openvocab.progress import note
from openvocab.shapes import Batch
from openvocab.system import System
from openvocab.systems.clipasso.saliency import Saliency, attention_map, likelihood, otsu
from openvocab.train.config import GroupConfig

Mask = Bool[np.ndarray, "_ _"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CLIPassoConfig:
    """How a sketch begins and how it is stepped; lengths and their rates are for a canvas of `UNIT` pixels.

    `layers` are those of F, numbered from 0; None is the middle half of the tower's, for four stages the released two.
    `one_by_one`: each stroke has a part of the steps, with those before it in place.
    `remove_background`: where no mask is given, what the CLIP looks at least becomes paper.
    `ink` is None for the picture's own colour, of what is not like paper.
    """

    strokes: int = 16
    radius_px: float = 1.5
    reach_px: float = 0.05 * UNIT
    points_rate: float = 1.0
    layers: tuple[int, ...] | None = None
    geometric: float = 1.0
    semantic: float = 0.1
    views: int = 4
    distortion: float = 0.5
    crop: float = 0.8
    saliency: Saliency = "attention"
    edges: bool = True
    temperature: float = 0.3
    one_by_one: bool = False
    remove_background: bool = False
    steps: int = 2000
    starts: int = 3
    long_side_px: int | None = None
    ink: RGB | None = (0.0, 0.0, 0.0)
    paper: RGB = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        for name, least in (("strokes", 0), ("views", 0), ("steps", 1), ("starts", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"CLIPasso: {name} {getattr(self, name)} must be at least {least}")


SIZES = {
    "tiny": CLIPassoConfig(strokes=4, views=2, steps=4),
    "small": CLIPassoConfig(radius_px=5.0, reach_px=60.0, points_rate=4.0, steps=200, ink=None, paper=GREY),
    "paper": CLIPassoConfig(),
}
"""`small` is for canvases and CLIPs of 32 to 64 pixels: longer and wider strokes in the picture's colour, on grey."""


class CLIPasso(nn.Module):
    """A CLIP that sketches what it sees.

    Args:
        looking: another CLIP for where strokes begin; the released code takes a ViT beside a ResNet.
    """

    def __init__(self, config: CLIPassoConfig, clip: CLIP, looking: CLIP | None = None):
        super().__init__()
        self.config, self.clip, self.looking = config, clip, looking or clip
        tower = clip.image
        count = len(tower.blocks) if isinstance(tower, ViT) else len(tower.stages)  # type: ignore[arg-type]
        self.layers = config.layers or tuple(range(count // 4, max(count // 4 + 1, count - count // 4)))

    def sketch(
        self,
        picture: Any,
        *,
        mask: Mask | None = None,
        similarity: float | None = None,
        seed: int = 0,
        preview: Callable[[Canvas], None] | None = None,
    ) -> Drawing:
        """The picture in strokes, of the picture's shape.

        Args:
            mask: what to draw of the picture, at its size; the rest is paper.
            similarity: as few strokes, doubled from one up to the config's, as reach this cosine with the picture.
            preview: is shown all starts ten times on the way.

        Raises:
            ValueError: a mask of another size, or a picture that cannot be read.
        """
        target = self.target(picture, mask)
        counts = [self.config.strokes]
        if similarity is not None:
            counts = [2**power for power in range(self.config.strokes.bit_length()) if 2**power < counts[0]] + counts
        for count in counts:
            drawing = self._drawn(target, count, seed, preview)
            reached = self.similarity(drawing.pixels_01[None], target).item()
            if similarity is not None and reached >= similarity:
                break
        if similarity is not None:
            note(f"sketch: {count} strokes, cosine {reached:.3f} (asked for {similarity})")
        return drawing

    def target(self, picture: Any, mask: Mask | None = None) -> Canvas:
        """What is drawn after: the picture on its canvas, paper where it is masked."""
        red, green, blue = (round(255 * share) for share in self.config.paper)
        image = to_rgb(opened(picture), (red, green, blue))
        if mask is not None:
            if mask.shape != (image.height, image.width):
                raise ValueError(f"mask: {mask.shape[::-1]} pixels, the picture has {image.size} (width, height)")
            image = Image.composite(image, Image.new("RGB", image.size, (red, green, blue)), Image.fromarray(mask))
        height, width = canvas_size(self.clip, (image.height, image.width), self.config.long_side_px)
        resized = np.array(image.resize((width, height), Image.Resampling.BICUBIC))
        canvas = torch.from_numpy(resized).permute(2, 0, 1)[None].float().to(self.clip.device) / 255
        if mask is None and self.config.remove_background:
            with frozen(self.looking), torch.no_grad():
                looked = attention_map(self.looking, seen(self.looking, canvas, self.config.paper), "attention").cpu()
            kept = self._on_canvas((looked >= otsu(looked)).float(), (height, width)) > 0.5
            canvas = torch.where(kept.to(canvas.device), canvas, canvas.new_tensor(self.config.paper).view(3, 1, 1))
        return canvas

    def begin(self, target: Canvas, strokes: int, seed: int) -> Strokes:
        """Short strokes where the saliency is."""
        config, rng, size = self.config, torch.Generator().manual_seed(seed), (target.shape[2], target.shape[3])
        scale = max(size) / UNIT
        with frozen(self.looking), torch.no_grad():
            chance = likelihood(
                self.looking,
                seen(self.looking, target, config.paper),
                config.saliency,
                with_edges=config.edges and config.saliency != "none",
                temperature=config.temperature,
            )
        chance = self._on_canvas(chance, size).flatten().clamp_min(1e-12)
        red, green, blue = config.ink or self._ink(target)
        shape = (config.starts, strokes)
        places = torch.zeros(*shape, 2)
        if strokes:
            pixels = torch.multinomial(chance.expand(config.starts, -1), strokes, strokes > len(chance), generator=rng)
            places = torch.stack([pixels % size[1], pixels // size[1]], -1) + 0.5
        points = spread(places, 4, config.reach_px * scale, rng)
        radii = torch.full(shape, config.radius_px * scale)
        parts = max(1, strokes) if config.one_by_one else 1
        made = Strokes(points, radii, size, ink=(red, green, blue), paper=config.paper, parts=parts)
        return made.to(target.device)

    def loss(self, strokes: Strokes, batch: Batch, parts: int | None = None) -> dict[str, Tensor]:
        """L, of all starts together: none knows of the others; with those first parts alone if given."""
        config = self.config
        views = perspective(config.views, config.distortion) @ crops(
            config.views, (config.crop, config.crop), (1.0, 1.0)
        )
        geometric, semantic = self.distances(strokes(parts), batch["target"], torch.cat([whole(1), views]))
        both = config.geometric * geometric + config.semantic * semantic
        return {"loss": both.sum(), "geometric": geometric.detach().mean(), "semantic": semantic.detach().mean()}

    def distances(
        self, canvas: Canvas, target: Float[Tensor, "1 3 height width"], views: Float[Tensor, "view 3 3"]
    ) -> tuple[Float[Tensor, " drawing"], Float[Tensor, " drawing"]]:
        """Of geometry and of meaning, between every drawing and the picture in these views."""
        squares = seen(self.clip, torch.cat([canvas, target]), self.config.paper)
        pixels = normalised(self.clip, warp(squares, views, squares.shape[-1], self.config.paper))
        found = self.clip.image(pixels, layers=self.layers)
        geometric = canvas.new_zeros(len(canvas))
        for layer in found.layers:
            mine = layer.unflatten(0, (len(views), -1))
            geometric = geometric + (mine[:, :-1] - mine[:, -1:].detach()).square().flatten(2).mean((0, 2))
        embeds = F.normalize(self.clip.image.projection(found.pooled), dim=-1).unflatten(0, (len(views), -1))
        return geometric, (1 - (embeds[:, :-1] * embeds[:, -1:].detach()).sum(-1)).mean(0)

    @torch.no_grad()
    def similarity(self, canvas: Canvas, target: Canvas) -> Float[Tensor, " drawing"]:
        """Cosines of drawings with the picture, as the CLIP sees both."""
        with frozen(self.clip):
            return 1 - self.distances(canvas.to(target), target, whole(1))[1]

    def _drawn(self, target: Canvas, count: int, seed: int, preview: Callable[[Canvas], None] | None = None) -> Drawing:
        config, strokes = self.config, self.begin(target, count, seed)
        rate = replace(PLAIN, lr=config.points_rate * max(target.shape[2:]) / UNIT)
        numbers = range(len(strokes.points))
        # The prefix of stroke 1 is that of stroke 10 too, which stage 1 does not draw: it gets no gradient there.
        groups = [(GroupConfig(prefixes=(f"points.{number}",), optim=rate),) for number in numbers]
        losses = [partial(self.loss, parts=number + 1) for number in numbers]
        with frozen(self.clip):
            if count:
                asked = {"steps": max(config.steps, len(losses)), "seed": seed, "preview": preview}
                optimise(strokes, losses, {"target": target}, groups, **asked)
            plain = whole(1)

            def value(canvas: Canvas) -> Tensor:
                geometric, semantic = self.distances(canvas, target, plain)
                return -(config.geometric * geometric + config.semantic * semantic)

            return strokes.drawing(best(strokes, value))

    def _ink(self, target: Canvas) -> list[float]:
        colours = target[0].cpu().flatten(1)
        weights = (colours - torch.tensor(self.config.paper)[:, None]).abs().sum(0) + 1e-6
        return (colours @ weights / weights.sum()).tolist()

    def _on_canvas(self, square: Float[Tensor, "size size"], size: tuple[int, int]) -> Float[Tensor, "height width"]:
        """A map of the square that a CLIP sees, at the canvas's own size and without what was missing."""
        height, width = size
        side = max(size)
        large = F.interpolate(square[None, None], size=(side, side), mode="bilinear")[0, 0]
        return large[(side - height) // 2 :, (side - width) // 2 :][:height, :width]


def build(config: CLIPassoConfig | str, clip: CLIP | None = None, looking: CLIP | None = None) -> CLIPasso:
    """Around `clip`; without one around a small CLIP of random weights, which knows nothing."""
    return CLIPasso(SIZES[config] if isinstance(config, str) else config, clip or CLIP(TINY_CLIP), looking)


SYSTEM = System(name="clipasso", title="CLIPasso", paper="arXiv 2202.05822", sizes=SIZES, build=build)
