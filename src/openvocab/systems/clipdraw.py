"""CLIPDraw: words to strokes with any CLIP, without training (Frans et al. 2021, arXiv 2106.14843).

Points, widths, colours and opacities of Bezier paths are what is optimised; views v are random perspectives and crops:

    L = - sum_v cos(I(v(drawing)), t) + 0.3 sum_v sum_n cos(I(v(drawing)), t_n)

with the prompt's embedding t and those of negative prompts t_n. Several starts are one batch, the best is kept.
Differs from the released notebook: pixels are normalised as the CLIP wants them (its authors say they should be), a
view is sampled once, and coverage is exact instead of sampled; `paper` has the views and steps of the paper.

    openvocab draw "a red circle" --model demo --out drawing.svg
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from openvocab.blocks.cutouts import crops, perspective, warp
from openvocab.blocks.strokes import RGB
from openvocab.clip.created import Drawing
from openvocab.clip.dense import TINY_CLIP
from openvocab.clip.drawing import GREY, PLAIN, UNIT, Canvas, Strokes, best, frozen, normalised, optimise, prompts, seen
from openvocab.clip.drawing import spread as spread_points
from openvocab.clip.model import CLIP
from openvocab.shapes import Batch
from openvocab.system import System
from openvocab.train.config import GroupConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class CLIPDrawConfig:
    """How a drawing begins and how it is stepped; lengths and their rates are for a canvas of `UNIT` pixels.

    `views` is 0 for none: the drawing is looked at as it is. `long_side_px` is the canvas, the CLIP's size by default.
    """

    strokes: int = 256
    most_segments: int = 3
    reach_px: float = 0.1 * UNIT
    radius_px: float = 1.0
    radii_px: tuple[float, float] = (1.0, 50.0)
    points_rate: float = 1.0
    radius_rate: float = 0.1
    colour_rate: float = 0.01
    views: int = 8
    distortion: float = 0.5
    crop: tuple[float, float] = (0.7, 0.9)
    negative: float = 0.3
    steps: int = 250
    starts: int = 1
    long_side_px: int | None = None
    paper: RGB = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        for name, least in (("strokes", 0), ("views", 0), ("steps", 1), ("starts", 1), ("most_segments", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"CLIPDraw: {name} {getattr(self, name)} must be at least {least}")


SIZES = {
    "tiny": CLIPDrawConfig(strokes=4, views=2, steps=4),
    "small": CLIPDrawConfig(
        strokes=16,
        radius_px=7.0,
        reach_px=60.0,
        radii_px=(3.0, 14.0),
        points_rate=2.0,
        radius_rate=0.2,
        colour_rate=0.02,
        views=4,
        starts=2,
        paper=GREY,
    ),
    "paper": CLIPDrawConfig(),
}
"""`small` is for canvases and CLIPs of 32 to 64 pixels: fewer strokes, and wider, on grey."""


class CLIPDraw(nn.Module):
    """A CLIP that draws what it is told."""

    def __init__(self, config: CLIPDrawConfig, clip: CLIP):
        super().__init__()
        self.config, self.clip = config, clip

    def draw(
        self,
        prompt: str,
        negatives: Sequence[str] = (),
        *,
        seed: int = 0,
        preview: Callable[[Canvas], None] | None = None,
    ) -> Drawing:
        """A drawing of what the prompt says, and not of what the negative ones say.

        Args:
            preview: is shown all starts ten times on the way.

        Raises:
            ValueError: a prompt is empty or too long for the CLIP.
        """
        config = self.config
        weights = torch.tensor([1.0, *[-config.negative] * len(negatives)])
        batch = {"text": prompts(self.clip, [prompt, *negatives])}
        batch["weight"] = weights.to(batch["text"])
        strokes = self.begin(seed)
        if config.strokes:
            with frozen(self.clip):
                optimise(
                    strokes,
                    [self.loss],
                    batch,
                    [self.groups(strokes)],
                    steps=config.steps,
                    seed=seed,
                    constrain=self.constrain,
                    preview=preview,
                )
        with frozen(self.clip):
            return strokes.drawing(
                best(strokes, lambda canvas: self.value(seen(self.clip, canvas, config.paper), batch))
            )

    def begin(self, seed: int) -> Strokes:
        """Random paths of random colours."""
        config, rng = self.config, torch.Generator().manual_seed(seed)
        side, shape = config.long_side_px or self.clip.preprocessing.image_size, (config.starts, config.strokes)
        places = torch.rand(*shape, 2, generator=rng) * UNIT
        points = spread_points(places, 3 * config.most_segments + 1, config.reach_px, rng)
        segments = torch.randint(1, config.most_segments + 1, shape, generator=rng)
        radii = torch.full(shape, config.radius_px)
        colours = torch.rand(*shape, 4, generator=rng)
        scale = side / UNIT
        strokes = Strokes(points * scale, radii * scale, (side, side), colours, segments, paper=config.paper)
        return strokes.to(self.clip.device)

    def groups(self, strokes: Strokes) -> tuple[GroupConfig, ...]:
        """Points, widths and colours, each with a rate of its own; that of points falls on the way."""
        config, scale = self.config, max(strokes.size_px) / UNIT
        rates = {"points": config.points_rate * scale, "radii": config.radius_rate * scale}
        optims = {name: replace(PLAIN, lr=rate) for name, rate in (rates | {"colours": config.colour_rate}).items()}
        optims["points"] = replace(optims["points"], schedule="drops")
        return tuple(GroupConfig(name=name, prefixes=(name,), optim=optim) for name, optim in optims.items())

    @torch.no_grad()
    def constrain(self, strokes: Strokes) -> None:
        """Widths and colours within their bounds."""
        scale = max(strokes.size_px) / UNIT
        low, high = self.config.radii_px
        strokes.radii.clamp_(low * scale, high * scale)
        assert strokes.colours is not None
        strokes.colours.clamp_(0, 1)

    def loss(self, strokes: Strokes, batch: Batch) -> dict[str, Tensor]:
        """L, of all starts together: none knows of the others."""
        config, pictures = self.config, seen(self.clip, strokes(), self.config.paper)
        views = pictures
        if config.views:
            chosen = perspective(config.views, config.distortion) @ crops(config.views, config.crop)
            views = warp(pictures, chosen, pictures.shape[-1], config.paper)
        return {"loss": -self.value(views, batch).sum()}

    def value(self, pictures: Tensor, batch: Batch) -> Tensor:
        """What the CLIP thinks of pictures: their cosine with the prompt less what is held against them."""
        return self.clip.encode_image(normalised(self.clip, pictures)) @ batch["text"].T @ batch["weight"]


def build(config: CLIPDrawConfig | str, clip: CLIP | None = None) -> CLIPDraw:
    """Around `clip`; without one around a small CLIP of random weights, which knows nothing."""
    return CLIPDraw(SIZES[config] if isinstance(config, str) else config, clip or CLIP(TINY_CLIP))


SYSTEM = System(name="clipdraw", title="CLIPDraw", paper="arXiv 2106.14843", sizes=SIZES, build=build)
