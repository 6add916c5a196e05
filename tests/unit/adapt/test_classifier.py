import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_clip

from openvocab.adapt import classifier
from openvocab.adapt.classifier import Adapter, Cache, Linear
from openvocab.clip.zeroshot import classify_embeds

DIM, LABELS = 8, ("cat", "dog", "car")


def heads(rng):
    text = F.normalize(torch.randn(len(LABELS), DIM, generator=rng), dim=1)
    keys = F.normalize(torch.randn(5, DIM, generator=rng), dim=1)
    down, up = torch.randn(2, DIM, generator=rng), torch.randn(DIM, 2, generator=rng)
    return (
        Linear(torch.randn(len(LABELS), DIM, generator=rng), torch.randn(len(LABELS), generator=rng)),
        Cache(text, 20.0, keys, torch.tensor([0, 1, 2, 2, 1]), 1.5, 5.5),
        Adapter(text, 20.0, down, up, 0.3),
    )


@pytest.mark.parametrize("kind", range(3))
def test_what_is_saved_comes_back_bit_equal_and_classifies(rng, tmp_path, kind):
    clip = tiny_clip()
    made = classifier.make(clip, heads(rng)[kind], LABELS)
    made.save(tmp_path / "head")
    found = classifier.load(tmp_path / "head")
    pictures = F.normalize(torch.randn(6, DIM, generator=rng), dim=1)
    assert torch.equal(found.logits(pictures), made.logits(pictures))
    assert (found.labels, found.fingerprint) == (LABELS, clip.fingerprint)
    answer = classify_embeds(clip, pictures, found)
    torch.testing.assert_close(answer.probabilities, made.logits(pictures).softmax(1))
    torch.testing.assert_close(answer.scores * clip.scale().detach(), made.logits(pictures))
    with pytest.raises(ValueError, match="make the vocabulary with this model"):
        classify_embeds(tiny_clip(1), pictures, found)


def test_other_folders_are_refused(rng, tmp_path):
    with pytest.raises(FileNotFoundError, match="openvocab adapt"):
        classifier.load(tmp_path)
    classifier.make(tiny_clip(), heads(rng)[0], LABELS).save(tmp_path)
    record = (tmp_path / "head.json").read_text()
    (tmp_path / "head.json").write_text(record.replace("Linear", "Forest"))
    with pytest.raises(ValueError, match="'Forest', expected one of Linear, Cache, Adapter"):
        classifier.load(tmp_path)
