"""The weighted loss, fixed temperature, sentences, and that its model is a CLIP."""

import pytest
import torch
import torch.nn.functional as F
from formula import sine

from openvocab.clip.model import CLIP
from openvocab.data.radiographs import open_radiographs
from openvocab.lab.training import train_system
from openvocab.loading import convert, load
from openvocab.systems import convirt as system


def test_the_loss_weighs_both_directions():
    torch.manual_seed(0)
    model = system.build("tiny")
    batch = system.example(model, 5)
    embeds = system.embed(model, batch)
    found = system.loss(model, batch, embeds)["loss"].item()
    logits = embeds["image"] @ embeds["text"].T / 0.1
    to_text = -(logits.diag() - logits.logsumexp(1)).mean().item()
    to_image = -(logits.diag() - logits.logsumexp(0)).mean().item()
    assert found == pytest.approx(0.75 * to_text + 0.25 * to_image, rel=1e-5)


def test_the_number_of_other_code():
    """What an open implementation says of rows by a formula."""
    image, text = (F.normalize(sine(32, a, b).view(4, 8), dim=1) for a, b in ((0.3, 0.0), (0.5, 1.0)))
    ids = {"text_ids": torch.arange(4), "image_ids": torch.arange(4)}
    found = system.loss(system.build("tiny"), ids, {"image": image, "text": text})["loss"].item()
    assert found == pytest.approx(7.388831, abs=1e-5)


def test_equal_sentences_are_right_answers():
    torch.manual_seed(0)
    model = system.build("tiny")
    batch = system.example(model, 4) | {"text_ids": torch.tensor([1, 2, 1, 3])}
    embeds = system.embed(model, batch)
    found = system.loss(model, batch, embeds)["to_text"].item()
    log_shares = (embeds["image"] @ embeds["text"].T / 0.1).log_softmax(1)
    right = [(0, 2), (1,), (0, 2), (3,)]
    expected = [-sum(log_shares[row, c].item() for c in of) / len(of) for row, of in enumerate(right)]
    assert found == pytest.approx(sum(expected) / 4, rel=1e-5)


def test_projections_have_one_hidden_layer_and_the_temperature_is_fixed():
    model = system.build("tiny")
    assert not model.logit_scale.requires_grad
    assert model.scale().item() == pytest.approx(10.0)
    for tower in (model.image, model.text):
        assert [type(layer).__name__ for layer in tower.projection] == ["Linear", "ReLU", "Linear"]


def test_reports_are_cut_into_sentences():
    assert system.sentences("No effusion. The heart is large! Why?") == ["No effusion.", "The heart is large!", "Why?"]
    assert system.sentences("normal") == ["normal"]
    pairs = open_radiographs(20, size_px=32)
    cut = system.by_sentence(pairs)
    assert [" ".join(cut.captions(i)) for i in range(20)] == [pairs.captions(i)[0] for i in range(20)]
    assert any(len(cut.captions(i)) > 1 for i in range(20))


def test_a_trained_model_is_a_clip_that_other_layouts_cannot_hold(tmp_path):
    settings = ["fit.steps=3", "data.num_scenes=64"]
    train_system("convirt", tmp_path / "run", size="tiny", data="radiographs", settings=settings)
    model = load(tmp_path / "run" / "model")
    assert isinstance(model, CLIP)
    assert model.scale().item() == pytest.approx(10.0)
    assert "t2i_r@1" in system.evaluate(model, open_radiographs(12, seed=3, size_px=32))
    for layout in ("openai", "open_clip", "hf"):
        with pytest.raises(ValueError, match=r"projection|layout"):
            convert(tmp_path / "run" / "model", tmp_path / layout, to=layout)
