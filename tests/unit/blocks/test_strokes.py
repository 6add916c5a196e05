"""The rasteriser against finite differences, a dense search for the nearest point, and resvg; and its edge cases."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from openvocab.blocks.strokes import render
from openvocab.blocks.svg import Paths, from_svg, to_svg

DTYPE = torch.float64


def paths(rng, drawing=1, stroke=5, segment=2, size=(24, 20), reach=0.6):
    """Points, radii, colours and segments of random paths that begin on the canvas."""
    start = torch.rand(drawing, stroke, 1, 2, generator=rng, dtype=DTYPE)
    steps = (torch.rand(drawing, stroke, 3 * segment, 2, generator=rng, dtype=DTYPE) - 0.5) * reach
    points = torch.cat([start, start + steps.cumsum(2)], 2) * torch.tensor(size[::-1])
    radii = 0.3 + 2 * torch.rand(drawing, stroke, generator=rng, dtype=DTYPE)
    segments = torch.randint(1, segment + 1, (drawing, stroke), generator=rng)
    return points, radii, torch.rand(drawing, stroke, 4, generator=rng, dtype=DTYPE), segments


def by_search(points, radii, size, colours, segments, softness):
    """Every pixel's distance to 4,001 points of every curve, layers painted from the bottom."""
    y, x = torch.meshgrid(*(torch.arange(side, dtype=DTYPE) + 0.5 for side in size), indexing="ij")
    pixels, t = torch.stack([x, y], -1).flatten(0, 1), torch.linspace(0, 1, 4001, dtype=DTYPE)[:, None]
    canvas = torch.ones(len(pixels), 3, dtype=DTYPE)
    for path, radius, colour, count in zip(points, radii, colours, segments):
        parts = [path[3 * k : 3 * k + 4] for k in range(int(count))]
        curves = [
            (1 - t) ** 3 * a + 3 * t * (1 - t) ** 2 * b + 3 * t**2 * (1 - t) * c + t**3 * d for a, b, c, d in parts
        ]
        distance = torch.cdist(pixels, torch.cat(curves)).amin(1)
        high, low = (((distance + sign * radius) / softness).clamp(-1, 1) for sign in (1, -1))
        opacity = (((3 * high - high**3) - (3 * low - low**3)) / 4 * colour[3])[:, None]
        canvas = canvas * (1 - opacity) + opacity * colour[:3]
    return canvas.T.view(3, *size)


@pytest.mark.parametrize("softness", [0.6, 1.0, 2.0])
def test_equal_to_a_dense_search(softness, rng):
    points, radii, colours, segments = paths(rng, stroke=8, segment=3)
    found = render(points, radii, (24, 20), colours, segments=segments, softness_px=softness)[0]
    expected = by_search(points[0], radii[0], (24, 20), colours[0], segments[0], softness)
    assert (found - expected).abs().max() < 2e-3


@pytest.mark.parametrize("seed", range(5))
def test_gradient_against_finite_differences(seed):
    rng = torch.Generator().manual_seed(seed)
    points, radii, colours, segments = paths(rng)
    weights = torch.randn(1, 3, 24, 20, generator=rng, dtype=DTYPE)
    leaves = [value.requires_grad_() for value in (points, radii, colours)]

    def judged(*values):
        return (render(values[0], values[1], (24, 20), values[2], segments=segments) * weights).sum()

    gradients = torch.autograd.grad(judged(*leaves), leaves)
    for place, gradient in enumerate(gradients):
        way, small = torch.randn(gradient.shape, generator=rng, dtype=DTYPE), 1e-6
        ends = []
        for sign in (1, -1):
            moved = [value.detach() for value in leaves]
            moved[place] = moved[place] + sign * small * way
            ends.append(judged(*moved))
        slope = (ends[0] - ends[1]) / (2 * small)
        assert abs(slope - (gradient * way).sum()) < 1e-6 * gradient.norm()


def test_moves_with_its_points(rng):
    points, radii, colours, _ = paths(rng, size=(16, 16))
    still = render(points + 8, radii, (40, 40), colours)
    moved = render(points + torch.tensor([11.0, 15.0]), radii, (40, 40), colours)
    torch.testing.assert_close(moved[..., 7:, 3:], still[..., :-7, :-3])


def test_a_batch_is_a_loop(rng):
    points, radii, colours, segments = paths(rng, drawing=3)
    together = render(points, radii, (24, 20), colours, segments=segments)
    for row, alone in enumerate(together):
        parts = (value[row : row + 1] for value in (points, radii, colours, segments))
        where, radius, colour, count = parts
        torch.testing.assert_close(render(where, radius, (24, 20), colour, segments=count)[0], alone)


@pytest.mark.parametrize(
    "points",
    [
        [[6.0, 6.0]] * 4,
        [[2.0, 6.0], [4.0, 6.0], [7.0, 6.0], [10.0, 6.0]],
        [[2.0, 2.0], [10.0, 10.0], [2.0, 10.0], [10.0, 2.0]],
        [[2.0, 6.0], [10.0, 6.0], [2.0, 6.0], [10.0, 6.0]],
        [[-90.0, -90.0], [-70.0, -90.0], [-90.0, -80.0], [-50.0, -60.0]],
        [[-1e6, 6.0], [0.0, 6.0], [6.0, 6.0], [1e6, 6.0]],
    ],
    ids=["one point", "straight", "cusp", "back and forth", "outside", "far beyond"],
)
def test_degenerate_curves(points):
    where = torch.tensor([[points]], dtype=DTYPE, requires_grad=True)
    radii = torch.full((1, 1), 1.5, dtype=DTYPE)
    found = render(where, radii, (12, 12))
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(where.grad).all()
    if abs(where).max() < 1e3:
        black, one = torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=DTYPE), torch.ones(1, dtype=torch.int64)
        expected = by_search(where[0].detach(), radii[0], (12, 12), black, one, 1.0)
        assert (found[0] - expected).abs().max() < 5e-3


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_any_number_of_strokes(count, rng):
    points, radii, colours, _ = paths(rng, stroke=count, segment=1, size=(30, 30), reach=0.2)
    for paint in (None, colours):
        found = render(points.requires_grad_(), radii, (30, 30), paint)
        (gradient,) = torch.autograd.grad(found.sum(), points)
        assert found.shape == (1, 3, 30, 30)
        assert 0 <= found.min()
        assert found.max() <= 1
        assert torch.isfinite(gradient).all()
        assert (found == 1).all() == (count == 0)


def test_black_is_black_and_upper_strokes_hide_lower_ones(rng):
    points, radii, _, _ = paths(rng, stroke=4)
    black = torch.tensor([0, 0, 0, 1], dtype=DTYPE).expand(1, 4, 4)
    torch.testing.assert_close(render(points, radii, (24, 20), black), render(points, radii, (24, 20)))
    over = torch.stack([points[0, 0], points[0, 0]])[None]
    red_over_blue = torch.tensor([[[0, 0, 1, 1], [1, 0, 0, 1]]], dtype=DTYPE)
    found = render(over, radii[:, :1].repeat(1, 2), (24, 20), red_over_blue)
    covered = found[0, 1] < 1e-9
    assert covered.any()
    assert (found[0, 0][covered] == 1).all()
    assert (found[0, 2][covered] == 0).all()


@pytest.mark.parametrize("point", [1, 3, 5, 6])
def test_points_that_are_no_path(point):
    with pytest.raises(ValueError, match=rf"3 n \+ 1 points, not {point}"):
        render(torch.zeros(1, 1, point, 2), torch.ones(1, 1), (8, 8))


@pytest.mark.parametrize("size", [(64, 64), (50, 80)])
def test_coverage_against_resvg(size, rng):
    """Colours, overlaps and one to three segments, as an independent renderer shows the SVG."""
    import resvg_py

    points, radii, colours, segments = (value[0] for value in paths(rng, stroke=16, segment=3, size=size, reach=0.3))
    drawn = Paths(points.float(), radii.float(), colours.float(), segments, size)
    shown = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=to_svg(drawn)))))
    expected = np.array(shown.convert("RGB")).transpose(2, 0, 1) / 255
    found = render(points[None], radii[None], size, colours[None], segments=segments[None])[0].numpy()
    assert abs(found - expected).mean() < 0.01
    assert abs(found - expected).max() < 0.35


def test_svg_and_back(rng):
    points, radii, colours, segments = (value[0].float() for value in paths(rng, segment=3))
    drawn = Paths(points, radii, colours, segments.long(), (24, 20), (0.25, 1.0, 0.5))
    again = from_svg(to_svg(drawn))
    assert again.size_px == (24, 20)
    assert again.paper == (0.25, 1.0, 0.5)
    assert torch.equal(again.segments, drawn.segments)
    for row, count in enumerate(again.segments.tolist()):
        kept = slice(3 * count + 1)
        torch.testing.assert_close(again.points[row, kept], points[row, kept], atol=1e-4, rtol=0)
    torch.testing.assert_close(again.radii_px, radii, atol=1e-4, rtol=0)
    torch.testing.assert_close(again.colours, colours, atol=1e-4, rtol=0)
    assert from_svg(to_svg(Paths(points[:0], radii[:0], colours[:0], segments[:0].long(), (5, 6)))).points.shape[0] == 0


HEAD = '<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8">'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<svg", "not well-formed"),
        ("<html/>", "the outermost element is 'html'"),
        (f'{HEAD}<circle r="3"/></svg>', "element 'circle'"),
        (f'{HEAD}<rect fill="white"/></svg>', "fill 'white'"),
        (f'{HEAD}<path d="M 1 1 L 2 2" stroke="rgb(0%, 0%, 0%)"/></svg>', "path 'M 1 1 L 2 2'"),
        (f'{HEAD}<path d="m 1 1 c 2 2 3 3 4 4" stroke="rgb(0%, 0%, 0%)"/></svg>', "path 'm 1 1 c"),
        (f'{HEAD}<path d="M 1 1 C 2 2 3 3 4 4" stroke="black"/></svg>', r"stroke 'black'; expected rgb\(r%"),
        (HEAD.replace('"8"', '"wide"', 1) + "</svg>", "whole pixels"),
    ],
)
def test_other_svg_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=message):
        from_svg(text)
