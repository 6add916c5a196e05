"""Strokes beside a dense polyline, and what a step of CLIPDraw costs.

    python benchmarks/strokes.py

The polyline is the common way without diffvg: curves as 24 straight pieces, every pixel's distance to every piece in
the graph. `chosen` is the same at its best here: the nearest piece is found without a graph and only it is in one.
Errors are distances to the curve near strokes, against 4,000 points of it. `overhead` is the time that `train.fit`
adds to the bare step: the same loss, its gradient and torch's Adam.
"""

import time
from collections.abc import Callable

import harness
import torch
from torch import Tensor

from openvocab.blocks.strokes import _basis, _each, _edge, _near, render
from openvocab.clip.architectures import architecture
from openvocab.clip.drawing import frozen, optimise
from openvocab.clip.model import CLIP
from openvocab.systems import clipdraw

PIECES = 24


def paths(stroke: int, size: int, reach: float) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    start = torch.rand(1, stroke, 1, 2, generator=rng)
    steps = (torch.rand(1, stroke, 3, 2, generator=rng) - 0.5) * reach
    return torch.cat([start, start + steps.cumsum(2)], 2) * size


def curve(points: Tensor, count: int) -> Tensor:
    return torch.einsum("ks,ndkc->ndsc", _basis(torch.linspace(0, 1, count)), points)


def grid(size: int) -> Tensor:
    at = torch.arange(size) + 0.5
    return torch.stack(torch.meshgrid(at, at, indexing="xy"), -1).flatten(0, 1)


def to_pieces(points: Tensor, pixels: Tensor, chosen: bool) -> Tensor:
    """Distances of every pixel to every stroke's polyline."""
    ends = curve(points, PIECES + 1)[0]
    start, way = ends[:, :-1, None], ends.diff(dim=1)[:, :, None]

    def distances(start: Tensor, way: Tensor) -> Tensor:
        t = (((pixels - start) * way).sum(-1) / way.square().sum(-1).clamp_min(1e-12)).clamp(0, 1)
        return (start + t[..., None] * way - pixels).square().sum(-1).clamp_min(1e-12).sqrt()

    if not chosen:
        return distances(start, way).amin(1)
    with torch.no_grad():
        row = distances(start, way).argmin(1)
    stroke = torch.arange(len(ends))[:, None]
    return distances(start[stroke, row, 0], way[stroke, row, 0])


def polyline(points: Tensor, radius: float, size: int, chosen: bool) -> Tensor:
    distance = to_pieces(points, grid(size), chosen)
    return (1 - _edge(distance + radius) + _edge(distance - radius)).prod(0).view(size, size)


def errors(points: Tensor, size: int) -> dict[str, float]:
    """Mean and greatest error of distances of up to 4 pixels."""
    truth = torch.cdist(grid(size)[None], curve(points, 4001)[0]).amin(2)
    near = truth < 4
    dense = (to_pieces(points, grid(size), True) - truth).abs()[near]
    found = _near(
        points.unfold(2, 4, 3).transpose(3, 4),
        torch.full((1, len(truth)), 3.0),
        torch.ones(1, len(truth)),
        (size, size),
        1.0,
    )
    place = (_basis(found.t)[:, None] * _each(points[0], found.segment)).sum(0)
    at = (found.pixel[1].long() * size + found.pixel[0].long()).clamp_max(size * size - 1)
    inside = (found.pixel < size).all(0)
    exact = truth[found.segment, at]
    ours = ((place - found.pixel).square().sum(0).sqrt() - exact).abs()[inside & (exact < 4)]
    rows = {"polyline": dense, "ours": ours}
    return {
        f"{name}, {kind} px": f(row).item()
        for name, row in rows.items()
        for kind, f in (("mean", Tensor.mean), ("greatest", Tensor.amax))
    }


def beside(stroke: int, size: int, reach: float, radius: float, count: int) -> dict[str, object]:
    points = paths(stroke, size, reach).requires_grad_()
    radii = torch.full((1, stroke), radius)

    def timed(make: Callable[[], Tensor]) -> Callable[[], None]:
        return lambda: torch.autograd.grad(make().square().sum(), points) and None

    works = {
        "ours": timed(lambda: render(points, radii, (size, size))),
        "polyline": timed(lambda: polyline(points, radius, size, False)),
        "chosen": timed(lambda: polyline(points, radius, size, True)),
    }
    seconds = harness.medians(harness.rounds(works, count, time.process_time))
    ratios = {f"times faster than {name}": seconds[name] / seconds["ours"] for name in ("polyline", "chosen")}
    return {"strokes": stroke, "size_px": size, "seconds": seconds, **ratios, **errors(points.detach(), size)}


def step(steps: int) -> dict[str, float]:
    """CLIPDraw of 256 strokes at 224 pixels with a ViT-B/32 of random weights: seconds of a step, and of its parts."""
    torch.manual_seed(0)
    clip = CLIP(architecture("ViT-B-32")).eval()
    model = clipdraw.build("paper", clip)
    strokes = model.begin(0)
    text = torch.nn.functional.normalize(torch.randn(1, clip.config.embed_dim), dim=1)
    batch = {"text": text, "weight": torch.ones(1)}
    with frozen(clip):
        rates = {"points": 1.0, "radii": 0.1, "colours": 0.01}
        kinds = {"points": [strokes.points[0]], "radii": [strokes.radii], "colours": [strokes.colours]}
        adam = torch.optim.Adam([{"params": kinds[name], "lr": rate} for name, rate in rates.items()])

        def bare() -> None:
            for _ in range(steps):
                adam.zero_grad()
                model.loss(strokes, batch)["loss"].backward()
                adam.step()
                model.constrain(strokes)

        def whole() -> None:
            asked = {"steps": steps, "seed": 0, "constrain": model.constrain}
            optimise(strokes, [model.loss], batch, [model.groups(strokes)], **asked)

        def drawn() -> None:
            strokes().sum().backward()

        times = harness.rounds({"bare": bare, "fit": whole}, 3, time.process_time)
        best = {name: min(values) / steps for name, values in times.items()}
        drawing = harness.medians(harness.rounds({"strokes": drawn}, 5, time.process_time))["strokes"]
    return {**best, "strokes alone": drawing, "overhead": best["fit"] / best["bare"] - 1}


def main() -> None:
    torch.set_num_threads(1)
    rows = [beside(16, 64, 0.5, 1.0, 9), beside(16, 112, 0.5, 1.0, 5), beside(64, 112, 0.2, 1.0, 3)]
    figures = {"against_polyline": rows, "clipdraw_step_s": step(4)}
    harness.record("strokes", figures)
    harness.show(figures)


if __name__ == "__main__":
    main()
