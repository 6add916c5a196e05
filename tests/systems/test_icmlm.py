"""The hidden word, the frozen text model, the two heads."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from openvocab.clip.ngrams import FIRST_WORD, MASK
from openvocab.data.scenes import open_scenes
from openvocab.lab.training import train_system
from openvocab.loading import load
from openvocab.systems import icmlm as system
from openvocab.systems.icmlm import ICMLM

CONFIG = system.SIZES["tiny"]


def model(**changes) -> ICMLM:
    torch.manual_seed(0)
    return ICMLM(replace(CONFIG, **changes)).eval()


@pytest.mark.parametrize("head", ["attention", "transformer"])
def test_the_answer_does_not_know_the_hidden_word(head):
    ours = model(head=head)
    pictures, at = torch.randn(2, 3, 32, 32), torch.tensor([1, 1])
    texts = ours.words(["a red circle", "a square circle"], CONFIG.text.context_length)
    first, other = ours(pictures, texts[:1].repeat(2, 1), at), ours(pictures, texts[1:].repeat(2, 1), at)
    torch.testing.assert_close(first, other, rtol=0, atol=0)
    changed = ours(pictures, texts[:1].repeat(2, 1), torch.tensor([2, 2]))
    assert not torch.equal(first, changed)
    assert not torch.allclose(first[0], first[1])  # the pictures differ


def test_attention_reads_the_concept_from_cells_alone():
    ours = model()
    cells = torch.ones(1, 1, ours.config.image.dim).expand(1, 4, -1)  # one cell, seen four times
    texts = ours.words(["a red circle"], CONFIG.text.context_length)
    places = [ours.fill(cells, texts, torch.tensor([at]))[0] for at in (0, 2)]
    torch.testing.assert_close(places[0], places[1])  # what is asked cannot matter where all cells are alike


def test_loss_of_a_caption_without_concepts_is_of_tags_alone():
    ours = model()
    pictures = torch.randn(2, 3, 32, 32)
    tokens = ours.words(["a a a", "a"], CONFIG.text.context_length)
    losses = system.loss(ours, {"tokens": tokens}, system.embed(ours, {"images": pictures}))
    assert losses["filled"] == 0
    assert losses["loss"] == losses["tagged"]


def test_tags_are_the_concepts_of_the_caption():
    ours = model()
    cells = torch.randn(1, 4, ours.config.image.dim)
    tokens = ours.words(["a red square"], CONFIG.text.context_length)
    found = system.loss(ours, {"tokens": tokens}, {"cells": cells, "pooled": cells.mean(1)})["tagged"]
    scores = ours.image.projection(cells.mean(1))
    wanted = torch.tensor([[1.0, 0.0, 1.0]])  # red, circle, square
    expected = -(wanted * scores.sigmoid().log() + (1 - wanted) * (-scores).sigmoid().log()).sum()
    torch.testing.assert_close(found, expected)


def test_the_language_stage_hides_words_and_nothing_else():
    ours, seen = model(hidden_share=0.5), []
    ours.text.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    tokens = ours.words(["a red circle", "a square"], CONFIG.text.context_length)
    system.language_loss(ours, {"tokens": tokens})
    hidden = seen[0] == MASK
    assert hidden.any()
    assert (tokens[hidden] >= FIRST_WORD).all()
    assert torch.equal(seen[0][~hidden], tokens[~hidden])


def test_the_text_model_learns_first_and_is_then_frozen(tmp_path):
    settings = ["fit.steps=3", "model.words=[]", "model.concepts=[]", "model.text.vocabulary_size=64"]
    kept = []
    real = system.loss

    def spied(ours, batch, embeds):
        kept.append(ours.text.embedding.weight.detach().clone())
        return real(ours, batch, embeds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(system, "loss", spied)
        train_system("icmlm", tmp_path / "run", size="tiny", settings=settings)
    ours = load(tmp_path / "run" / "model")
    assert len(kept) == 3
    assert torch.equal(kept[0], ours.text.embedding.weight)
    torch.manual_seed(0)
    assert not torch.equal(system.build(ours.config).text.embedding.weight, kept[0])
    assert "circle" in ours.config.concepts
    assert "a" not in ours.config.concepts
    figures = system.evaluate(ours, open_scenes(40, seed=1))
    assert 0 <= figures["top1"] <= 1


def test_a_sentence_is_completed():
    ours = model()
    answer = ours.complete(Image.new("RGB", (32, 32)), "a red ___", k=2)
    assert len(answer) == 2
    assert answer[0][1] >= answer[1][1]
    with pytest.raises(ValueError, match="expected one ___"):
        ours.complete(Image.new("RGB", (32, 32)), "a red circle")


def test_a_model_without_concepts_says_what_makes_them():
    with pytest.raises(ValueError, match="openvocab train icmlm"):
        system.build("small")
