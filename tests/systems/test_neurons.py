"""Neurons: the parametrisation beside numpy, pictures that excite, words they point at, detectors of concepts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_models import tiny_clip

from openvocab.systems.neurons import SIZES, Canvas, build, selectivity

TINY = replace(SIZES["tiny"], steps=20, grey_weight=0.0)


def test_a_canvas_is_the_inverse_transform_of_a_spectrum():
    canvas = Canvas(TINY, 2, 16, torch.Generator().manual_seed(0))
    values = canvas.values.detach().double().numpy()
    y, x = np.fft.fftfreq(16)[:, None], np.fft.rfftfreq(16)
    spectrum = (values[..., 0] + 1j * values[..., 1]) / np.maximum(np.hypot(y, x), 1 / 16)
    planes = np.fft.irfft2(spectrum, s=(16, 16), norm="ortho") / 4
    mixed = np.einsum("oc,ichw->iohw", canvas.mix.numpy(), planes)
    torch.testing.assert_close(canvas().detach(), torch.from_numpy(1 / (1 + np.exp(-mixed))).float())
    plain = Canvas(replace(TINY, fourier=False, decorrelated=False), 2, 16, torch.Generator().manual_seed(0))
    torch.testing.assert_close(plain(), plain.values.sigmoid())


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_drawn_picture_excites_its_neuron(kind):
    clip = tiny_clip(kind).train()
    model = build(TINY, clip)
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    drawn = model.draw(3, seed=1)
    assert clip.training
    assert all(torch.equal(value, before[name]) for name, value in clip.state_dict().items())
    assert torch.equal(drawn.pixels_01, model.draw(3, seed=1).pixels_01)
    clip.eval()
    grey = Image.new("RGB", (32, 32), (128, 128, 128))
    answers = model.activations([*drawn.images(), grey])[:, 3]
    assert answers[0] > answers[1]
    other = model.draw(-F.one_hot(torch.tensor([3]), model.count).float(), seed=1)
    assert model.activations(other.images())[0, 3] < answers[0]


def test_words_are_what_the_projection_points_at():
    clip = tiny_clip()
    model, names = build(TINY, clip), ["a dog", "a cat", "a car"]
    found = model.words(2, names, most=2)
    added = clip.embed_texts(names).detach() @ clip.image.projection.weight[:, 2].detach()
    assert len(found) == 2
    assert found[0][1] > found[1][1]
    with torch.no_grad():
        image = torch.zeros(1, model.count)
        image[0, 2] = 1
        logits = clip.image.projection(image)[0] @ clip.vocabulary(names).embeds.T
    assert found[0][0] == names[int(logits.argmax())]
    assert found[0][1] == pytest.approx((logits - logits.mean()).max().item(), abs=1e-6)
    assert added.shape == (3,)


def test_selectivity_is_the_area_under_the_curve():
    activations = torch.tensor([[0.9, 0.1], [0.8, 0.1], [0.2, 0.1], [0.1, 0.1]])
    shown = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
    assert selectivity(activations, shown).tolist() == [[1.0, 0.75], [0.5, 0.5]]


def test_what_is_refused():
    model = build("tiny")
    with pytest.raises(ValueError, match=r"neuron 99 does not exist: .* has 0 to"):
        model.draw(99)
    with pytest.raises(ValueError, match="0 steps"):
        replace(TINY, steps=0)
