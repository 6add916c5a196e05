import dataclasses

import pytest
import torch
import torch.nn.functional as F

from openvocab.adapt import heads
from openvocab.adapt.classifier import Adapter, Cache
from openvocab.clip.measure import Labelled
from openvocab.lab.few_shot import few_shot_table, split


def world(rng, labels=8, dim=32, rows=60, gap=0.6, noise=2.2):
    """Pictures around class directions, texts near them: the two modalities lie apart, as CLIP's do."""
    centres = F.normalize(torch.randn(labels, dim, generator=rng), dim=1)
    text = F.normalize(centres + gap * torch.randn(labels, dim, generator=rng) / dim**0.5, dim=1)
    offset = torch.randn(dim, generator=rng) / dim**0.5

    def draw(count):
        y = torch.arange(labels).repeat(count)
        return Labelled(
            F.normalize(centres[y] + offset + noise * torch.randn(len(y), dim, generator=rng) / dim**0.5, dim=1), y
        )

    return draw(rows), draw(rows), text


@pytest.fixture
def shots(rng):
    train, _, text = world(rng)
    return split(train, text, 30.0, 4, 0)


@pytest.mark.parametrize("name", heads.METHODS)
def test_every_method_gives_a_score_for_each_label(shots, name):
    scores = heads.METHODS[name](shots)(shots.validation_features)
    assert scores.shape == (len(shots.validation_labels), len(shots.text))
    assert torch.isfinite(scores).all()


@pytest.mark.parametrize("name", [name for name in heads.METHODS if name != "probe"])
def test_where_zero_shot_is_right_it_stays(shots, name):
    # Every picture is the text of its label.
    own, others = shots.text[shots.labels], shots.text[shots.validation_labels]
    certain = dataclasses.replace(shots, features=own, validation_features=others)
    assert torch.equal(heads.METHODS[name](certain)(shots.features), shots.zero_shot(shots.features))


@pytest.mark.parametrize("name", ["Gaussian", "Tip-Adapter"])
def test_labels_that_are_noise_seldom_leave_zero_shot(shots, rng, name):
    left = 0
    for _ in range(20):
        own, others = (torch.randperm(len(y), generator=rng) for y in (shots.labels, shots.validation_labels))
        noise = dataclasses.replace(shots, labels=shots.labels[own], validation_labels=shots.validation_labels[others])
        left += heads.sure(heads.FITS[name], noise) is not None
    assert left <= 3  # one is expected


def test_in_rotations_every_row_validates_once_and_trains_in_all_others(rng):
    train, _, text = world(rng)
    for count, splits in ((1, 2), (2, 2), (4, 2), (8, 3), (16, 5)):
        shots = split(train, text, 30.0, count, 0)
        rotations = list(shots.rotations())
        assert len(rotations) == splits
        validated = torch.cat([each.validation_features for each in rotations])
        everything = torch.cat([shots.features, shots.validation_features])
        assert sorted(validated.tolist()) == sorted(everything.tolist())
        for each in rotations:
            assert torch.bincount(each.labels).tolist() == [count] * len(text)
            together = torch.cat([each.features, each.validation_features])
            assert sorted(together.tolist()) == sorted(everything.tolist())


def test_alpha_or_share_0_is_zero_shot_exactly(shots):
    plain = shots.zero_shot(shots.features)
    cache = Cache(shots.text, shots.scale, shots.features, shots.labels, 0.0, 5.5)
    dim = shots.text.shape[1]
    adapter = Adapter(shots.text, shots.scale, torch.ones(4, dim), torch.ones(dim, 4), 0.0)
    assert torch.equal(cache(shots.features), shots.scale * shots.features @ shots.text.T)
    torch.testing.assert_close(adapter(shots.features), plain, atol=1e-5, rtol=0)


def test_a_sharp_heavy_cache_answers_with_the_label_of_the_picture_itself(shots):
    wrong = (shots.labels + 1) % len(shots.text)
    cache = Cache(shots.text, shots.scale, shots.features, wrong, 2.5 * shots.scale, 1e4)
    assert torch.equal(cache(shots.features).argmax(1), wrong)


def test_splits_are_the_same_for_a_seed_and_larger_ones_contain_smaller(rng):
    train, _, text = world(rng)
    few, again, more = split(train, text, 1.0, 2, 3), split(train, text, 1.0, 2, 3), split(train, text, 1.0, 8, 3)
    assert torch.equal(few.features, again.features)
    assert not torch.equal(few.features, split(train, text, 1.0, 2, 4).features)
    assert {tuple(row) for row in few.features.tolist()} <= {tuple(row) for row in more.features.tolist()}
    assert not {tuple(row) for row in more.features.tolist()} & {tuple(r) for r in more.validation_features.tolist()}
    assert (len(few.validation_labels), len(more.validation_labels)) == (2 * 8, 4 * 8)
    with pytest.raises(ValueError, match="has 60 training rows, 64 shots need 68"):
        split(train, text, 1.0, 64, 0)


def test_few_shot_falls_below_zero_shot_in_the_plain_probe_and_in_no_other(rng):
    train, test, text = world(rng)
    table = {(cell.method, cell.shots): cell for cell in few_shot_table(train, test, text, 30.0, shots=(1, 8), seeds=2)}
    zero_shot = table["zero-shot", 1].mean
    assert table["probe", 1].mean < zero_shot - 0.1
    assert table["probe", 1].against_zero_shot.high < 0
    for (method, _), cell in table.items():
        if method != "probe":
            assert cell.against_zero_shot.high >= 0, method
            assert cell.mean >= zero_shot - 0.02, method
    assert max(cell.mean for (_, shots), cell in table.items() if shots == 8) > zero_shot
