"""Drawings as models: strokes are the parameters that `train.fit` steps, what a CLIP thinks of them is the loss."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from openvocab.blocks.strokes import RGB, Colours, Points, Radii, Segments, render
from openvocab.blocks.svg import Paths, to_svg
from openvocab.clip.created import Drawing
from openvocab.clip.model import CLIP
from openvocab.clip.vocabulary import vocabulary
from openvocab.progress import warn
from openvocab.shapes import Batch, Images, TextEmbeds
from openvocab.train.config import FitConfig, GroupConfig, OptimConfig
from openvocab.train.fit import Stage, fit
from openvocab.train.step import Loss

Canvas = Float[Tensor, "drawing 3 height width"]
UNIT = 224
"""Lengths in configs are pixels of a canvas whose long side is this, as published; they grow and shrink with it."""
GREY = (0.43, 0.43, 0.43)
"""Paper for small CLIPs: the generated world has no white ground, on which they see the same in every picture."""
PLAIN = OptimConfig(
    lr=1.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, warmup_steps=0, schedule="constant", clip_norm=None
)
"""Adam."""


class Strokes(nn.Module):
    """Several starts of one drawing, drawn at once.

    Parameters are `points` (in `parts` of the strokes, each perhaps of a stage of its own), `radii` and `colours`.

    Args:
        colours: without them all strokes are of one `ink`, and their widths stay too.
        paper: what shows where no stroke is.
    """

    def __init__(
        self,
        points: Points,
        radii_px: Radii,
        size_px: tuple[int, int],
        colours: Colours | None = None,
        segments: Segments | None = None,
        *,
        ink: RGB = (0.0, 0.0, 0.0),
        paper: RGB = (1.0, 1.0, 1.0),
        parts: int = 1,
    ):
        super().__init__()
        self.size_px, self.ink, self.paper = size_px, ink, paper
        self.points = nn.ParameterList(part.clone() for part in points.tensor_split(parts, dim=1))
        self.radii = nn.Parameter(radii_px, requires_grad=colours is not None)
        self.colours = None if colours is None else nn.Parameter(colours)
        whole = torch.full(radii_px.shape, points.shape[2] // 3)
        self.segments: Tensor
        self.register_buffer("segments", whole if segments is None else segments)

    def forward(self, parts: int | None = None) -> Canvas:
        """What every start looks like; with the first of its parts alone if so many are given."""
        points = torch.cat(list(self.points)[:parts], 1)
        rows = slice(points.shape[1])
        radii, segments = self.radii[:, rows], self.segments[:, rows]
        if self.colours is not None:
            colours = self.colours[:, rows]
            return render(points, radii, self.size_px, colours, segments=segments, background=self.paper)
        ink = points.new_tensor(self.ink).view(3, 1, 1)
        contrast = (self.paper[0] - self.ink[0], self.paper[1] - self.ink[1], self.paper[2] - self.ink[2])
        return ink + render(points, radii, self.size_px, segments=segments, background=contrast)

    @torch.no_grad()
    def drawing(self, start: int) -> Drawing:
        """One of the starts, as what is to be kept."""
        points = torch.cat(list(self.points), 1)[start].cpu()
        ink = torch.tensor([*self.ink, 1.0]).expand(len(points), 4)
        colours = ink if self.colours is None else self.colours[start].cpu()
        paths = Paths(points, self.radii[start].cpu(), colours, self.segments[start].cpu(), self.size_px, self.paper)
        return Drawing(to_svg(paths), self()[start].cpu().clamp(0, 1))


class Repeated:
    """The data of a training that has one batch: what was asked for."""

    def __init__(self, batch: Batch):
        self.batch = batch

    def stream(self, start_step: int, steps: int) -> Iterator[Batch]:
        return repeat(self.batch, steps)

    def report(self) -> dict[str, Any]:
        return {}


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Gradients pass through the model and stop at none of its parameters; it is in eval mode, and then as before."""
    training = [module for module in model.modules() if module.training]
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True


def optimise(
    model: nn.Module,
    losses: Sequence[Loss],
    batch: Batch,
    groups: Sequence[tuple[GroupConfig, ...]],
    *,
    steps: int,
    seed: int,
    constrain: Callable[[Any], None] | None = None,
    preview: Callable[[Canvas], None] | None = None,
) -> None:
    """Moves what a picture is made of: one loss and its groups after another, in equal shares of the steps.

    Args:
        preview: is shown all starts ten times on the way.

    Raises:
        ValueError: no steps.
    """
    if steps < len(losses):
        raise ValueError(f"drawing: {steps} steps for {len(losses)} stages, each needs at least one")

    def show(model: nn.Module) -> dict[str, float]:
        assert preview
        preview(model())
        return {}

    stages = []
    for number, (loss, chosen) in enumerate(zip(losses, groups)):
        length = steps * (number + 1) // len(losses) - steps * number // len(losses)
        config = FitConfig(steps=length, seed=seed + number, evaluate_every_steps=max(1, steps // 10))
        stages.append(
            Stage(
                data=Repeated(batch),
                loss=loss,
                name="drawing",
                config=config,
                optim=PLAIN,
                groups=chosen,
                constrain=constrain,
                evaluate=show if preview else None,
            )
        )
    fit(model, *stages, device=next(iter(batch.values())).device)


def prompts(clip: CLIP, texts: Sequence[str]) -> TextEmbeds:
    """What pictures are compared with, a row a text; words that the model never read are said aloud.

    Raises:
        ValueError: an empty or repeated prompt, or one that is too long for the model.
    """
    for text in texts:
        if not text.strip():
            raise ValueError("prompt: it is empty; say what to draw")
    asked = vocabulary(clip, list(texts), "name", cache=False)
    for text, words in asked.unseen_words.items():
        warn(f"never seen in training: {', '.join(words)} ({text})")
    return asked.embeds.to(clip.device)


def seen(clip: CLIP, canvas: Canvas, paper: RGB = (1.0, 1.0, 1.0)) -> Float[Tensor, "drawing 3 size size"]:
    """Canvases as squares of the size that a CLIP reads, on paper."""
    height, width = canvas.shape[2:]
    side, size = max(height, width), clip.preprocessing.image_size
    left, top = (side - width) // 2, (side - height) // 2
    ground = canvas.new_tensor(paper).view(3, 1, 1)
    square = F.pad(canvas - ground, (left, side - width - left, top, side - height - top)) + ground
    if side == size:
        return square
    return F.interpolate(square, size=(size, size), mode="bilinear", antialias=True)


class _Clamp(torch.autograd.Function):
    """Values from 0 to 1; of gradients those that lead back inside."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[override]
        ctx.save_for_backward(x)
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return grad * (grad * (x - x.clamp(0, 1)) >= 0)


def clamp(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Values from 0 to 1, with a gradient wherever a step would lead back inside."""
    return _Clamp.apply(x)  # type: ignore[return-value]


def normalised(clip: CLIP, pixels_01: Images) -> Images:
    """As the model reads them."""
    mean, std = (pixels_01.new_tensor(part).view(3, 1, 1) for part in (clip.preprocessing.mean, clip.preprocessing.std))
    return (pixels_01 - mean) / std


@torch.no_grad()
def best(strokes: Strokes, value: Callable[[Canvas], Float[Tensor, " drawing"]]) -> int:
    """The start whose drawing is worth most."""
    return int(value(strokes()).argmax())


def spread(
    starts: Float[Tensor, "drawing stroke 2"],
    points: int,
    reach: float,
    generator: torch.Generator | None = None,
) -> Points:
    """Paths from where they begin, each next point within half of `reach` of the last, along either axis."""
    steps = (torch.rand(*starts.shape[:2], points - 1, 2, generator=generator) - 0.5) * reach
    return torch.cat([starts[:, :, None], starts[:, :, None] + steps.cumsum(2)], 2)


def canvas_size(clip: CLIP, shape: tuple[int, int], long_side_px: int | None) -> tuple[int, int]:
    """Height and width of a canvas of a picture's shape; the CLIP's own size where none is asked for."""
    long = long_side_px or clip.preprocessing.image_size
    height, width = (max(1, round(long * side / max(shape))) for side in shape)
    return height, width
