"""VQGAN+CLIP: the parts of its loss by hand, what optimising does, and what it refuses."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_models import tiny_clip

from openvocab import systems
from openvocab.clip.drawing import clamp
from openvocab.systems.vqgan_clip import SIZES, Prompt, build, read_prompts, spherical

TINY = replace(SIZES["tiny"], steps=30, cutouts=0)


@pytest.fixture(scope="module")
def coder():
    torch.manual_seed(0)
    coder = systems.get("autoencoders").build("tiny").eval()
    coder.network.quantize.embedding.weight.data.normal_()
    return coder


def test_the_distance_is_half_the_squared_angle():
    a, b = F.normalize(torch.randn(2, 5, 8, dtype=torch.float64), dim=-1)
    angle = (a * b).sum(-1).acos()
    torch.testing.assert_close(spherical(a, b), angle.square() / 2)
    assert spherical(a, -a)[0].item() == pytest.approx(math.pi**2 / 2)
    assert spherical(a, a).max() == 0


def test_values_outside_may_come_back_and_not_go_on():
    x = torch.tensor([-1.0, -1.0, 0.5, 0.5, 2.0, 2.0], requires_grad=True)
    clamp(x).backward(torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0]))
    assert clamp(x).tolist() == [0, 0, 0.5, 0.5, 1, 1]
    # A step goes against the gradient: at -1 a positive one would lead further out, at 2 a negative one.
    assert x.grad.tolist() == [0, -1, 1, -1, 1, 0]


def test_prompts_as_the_authors_write_them():
    assert read_prompts("a castle:2|fog:-0.5:-0.8| a dog ") == (
        Prompt("a castle", 2.0), Prompt("fog", -0.5, -0.8), Prompt("a dog")
    )  # fmt: skip
    with pytest.raises(ValueError, match="'a dog:big': expected text, text:weight or text:weight:stop"):
        read_prompts("a castle|a dog:big")


def test_a_prompt_pulls_until_it_stops(coder):
    model = build(TINY, tiny_clip(), coder)
    latents = model.begin(2, seed=0)
    texts = model.clip.embed_texts(["a dog"]).expand(2, 1, -1).detach()
    far, near = torch.tensor([[[1.0, -math.inf]], [[1.0, -math.inf]]]), torch.tensor([[[1.0, 9.0]], [[1.0, 9.0]]])
    gradients = []
    for weights in (far, near, far * torch.tensor([2.0, 1.0])):
        loss = model.loss(latents, {"texts": texts, "weights": weights})["loss"]
        gradients.append((loss.detach(), torch.autograd.grad(loss, latents.vectors)[0]))
    assert gradients[0][1].abs().max() > 0
    assert gradients[1][1].abs().max() == 0
    assert gradients[0][0] == gradients[1][0]
    torch.testing.assert_close(gradients[2][1], 2 * gradients[0][1])


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_codes_move_towards_the_prompt_and_models_stay(coder, kind):
    clip = tiny_clip(kind)
    model = build(TINY, clip, coder)
    before = [{name: value.clone() for name, value in part.state_dict().items()} for part in (clip, coder)]
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    made = model.generate("a red circle", 3, seed=1)
    assert torch.equal(torch.rand(3), expected)
    again, other = model.generate("a red circle", 3, seed=1), model.generate("a red circle", 3, seed=2)
    assert torch.equal(made.pixels_01, again.pixels_01)
    assert not torch.equal(made.pixels_01, other.pixels_01)
    for part, kept in zip((clip, coder), before):
        assert all(torch.equal(value, kept[name]) for name, value in part.state_dict().items())
        assert all(p.requires_grad for n, p in part.named_parameters() if "embedding" not in n)
    texts = clip.embed_texts(["a red circle"]).detach()
    with torch.no_grad():
        start = model.begin(3, seed=1)()
    batch = {"texts": texts.expand(3, 1, -1), "weights": torch.tensor([[[1.0, -math.inf]]]).expand(3, -1, -1)}
    final = model.begin(3, seed=1)
    final.forward = lambda: made.pixels_01
    begun = model.begin(3, seed=1)
    begun.forward = lambda: start
    assert model.loss(final, batch)["loss"] < model.loss(begun, batch)["loss"]


def test_latents_stay_within_the_codebook(coder):
    model = build(TINY, tiny_clip(), coder)
    latents = model.begin(1, seed=0)
    latents.vectors.data.mul_(100)
    latents.constrain()
    book = coder.network.quantize.codebook
    assert torch.equal(latents.vectors.amax((0, 2, 3)) <= book.amax(0), torch.ones(len(book[0]), dtype=torch.bool))
    assert (latents.vectors.amin((0, 2, 3)) >= book.amin(0)).all()


def test_a_picture_can_be_begun_from_and_grids_are_free(coder):
    picture = Image.new("RGB", (64, 32), "red")
    model = build(replace(TINY, steps=1, rate=0.0), tiny_clip(), coder)
    begun = model.generate("a dog", picture=picture)
    torch.testing.assert_close(begun.pixels_01, coder.reconstruct(picture), atol=1e-5, rtol=1e-4)
    wide = build(replace(SIZES["tiny"], rows=4, cols=10), tiny_clip(), coder).generate("a dog")
    stride = coder.network.stride
    assert wide.pixels_01.shape == (1, 3, 4 * stride, 10 * stride)
    assert bool(wide.pixels_01.isfinite().all())


def test_what_is_refused(coder):
    model = build(TINY, tiny_clip(), coder)
    with pytest.raises(ValueError, match="prompt: it is empty"):
        model.generate("a dog| ")
    with pytest.raises(ValueError, match="at least 1 picture"):
        model.generate("a dog", 0)
    with pytest.raises(ValueError, match="with a trained VQGAN"):
        build("tiny", tiny_clip()).generate("a dog")
    with pytest.raises(ValueError, match="a DVAE has no vectors to move; give a VQGAN"):
        build("tiny", tiny_clip(), systems.get("autoencoders").build("dvae-tiny"))
    with pytest.raises(ValueError, match="0 steps"):
        replace(TINY, steps=0)
