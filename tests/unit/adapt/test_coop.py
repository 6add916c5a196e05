import pytest
import torch
import torch.nn.functional as F
from tiny_models import tiny_clip

from openvocab.adapt.coop import coop, prompt
from openvocab.adapt.heads import Shots, gated

LABELS = ["dog", "yellow cat", "aeroplane"]


@pytest.mark.parametrize("kind", ["vit", "words"])
@pytest.mark.parametrize("template", ["a photo of a {}.", "this is {}, a kind of thing"])
def test_the_templates_own_embeddings_give_the_templates_text_features(kind, template):
    clip = tiny_clip(kind)
    found = prompt(clip, LABELS, template)
    expected = clip.embed_texts([template.replace("{}", label) for label in LABELS])
    torch.testing.assert_close(found(found.context), expected, atol=1e-6, rtol=0)
    moved = found(found.context + torch.linspace(-1, 1, found.context.shape[1]))
    assert (moved - expected).abs().max() > 1e-3


def shots_of(clip, rng, rows=8):
    """Pictures whose embeddings are what the labels' texts would be in another wording."""
    truth = clip.embed_texts([f"some very different words about {label}" for label in LABELS])
    labels = torch.arange(3).repeat(2 * rows)
    features = F.normalize(truth[labels] + 0.02 * torch.randn(len(labels), truth.shape[1], generator=rng), dim=1)
    half = len(labels) // 2
    text = prompt(clip, LABELS)(prompt(clip, LABELS).context).detach()
    return Shots(features[:half], labels[:half], features[half:], labels[half:], text, 30.0)


def test_it_learns_the_words_that_the_pictures_need_and_leaves_the_model_alone(rng):
    clip = tiny_clip("vit")
    shots, before = shots_of(clip, rng), {name: value.clone() for name, value in clip.state_dict().items()}
    heads = coop(shots, prompt(clip, LABELS), steps=10, lr=0.05)
    error = [F.cross_entropy(head(shots.features), shots.labels) for head in (shots.zero_shot, *heads)]
    assert error[-1] < error[0]
    assert all(torch.equal(value, before[name]) for name, value in clip.state_dict().items())
    assert all(parameter.grad is None for parameter in clip.parameters())
    gated(lambda split: coop(split, prompt(clip, LABELS), steps=2), shots)


def test_a_template_without_words_before_the_label_is_refused():
    with pytest.raises(ValueError, match="the words before"):
        prompt(tiny_clip(), LABELS, "{} in a photo")
