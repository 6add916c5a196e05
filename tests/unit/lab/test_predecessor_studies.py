"""The arithmetic of the studies of predecessors and of scaling; their trainings are the claims' own business."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import Conv2d

from openvocab.blocks.text import CBOWConfig
from openvocab.lab.studies import predecessors, scaling
from openvocab.systems import clip as system


def test_a_line_is_followed_to_the_level():
    points = [(x, 2 - 0.5 * x) for x in (1.0, 2.0, 3.0)]
    assert scaling.reaches(points, -1.0) == pytest.approx(6.0)
    assert scaling.reaches([(1.0, 0.0), (3.0, 0.5)], -1.0) == 3.0 + scaling.NEVER


def test_extrapolation_counts_from_the_largest_arm(monkeypatch):
    monkeypatch.setattr(scaling, "supervised_error", lambda seed: 0.01)
    figures = scaling._extrapolated({"a": (1.0, -0.5), "b": (2.0, -1.0)}, 0)
    assert figures["slope"] == pytest.approx(-0.5)
    assert figures["decades_to_supervised"] == pytest.approx(2.0)
    assert figures["error_b"] == pytest.approx(0.1)


def test_flops_of_a_tower_are_those_of_its_layers():
    """Two for each product: convolutions by their places, matrices once a picture."""
    plain = system.SIZES["tiny"]
    bag = replace(plain, text=CBOWConfig(vocabulary_size=320, context_length=40, dim=8))
    clip = system.build(bag)
    clip.tokenizer = lambda texts, length, truncate: torch.full((1, length), 5)
    places = {"stem": (16, 16, 16), "stages.0": (8, 8), "stages.1": (4, 4, 4)}
    by_hand = 2 * (plain.image.dim * 32 + 8 * 32)
    for stage, sides in places.items():
        convs = [m for name, m in clip.image.named_modules() if name.startswith(stage) and isinstance(m, Conv2d)]
        assert len(convs) == len(sides)
        by_hand += sum(2 * conv.weight.numel() * side**2 for conv, side in zip(convs, sides))
    assert scaling.flops(clip) == by_hand


def test_a_probe_of_chosen_strength_separates_what_can_be_separated():
    labels = torch.arange(200) % 3
    noise = torch.Generator().manual_seed(0)
    features = torch.eye(3)[labels] + 0.05 * torch.randn(200, 3, generator=noise)
    found = predecessors.chosen_probe(features, labels, 3)
    assert (found(features.double()).argmax(1) == labels).all()
    assert found.c in predecessors.STRENGTHS


def test_the_area_is_the_mean_over_findings():
    noise = np.random.default_rng(0)
    scores, present = noise.random((50, 6), np.float32), noise.random((50, 6)) < 0.4
    expected = np.mean([roc_auc_score(present[:, of], scores[:, of]) for of in range(6)])
    found = predecessors._area(torch.from_numpy(scores), torch.from_numpy(present).long())
    assert found == pytest.approx(expected, abs=1e-6)


def test_arms_differ_in_nothing_but_what_is_asked():
    for name, arm in predecessors.ARMS.items():
        recipe, clip = arm.recipe(0), predecessors.CLIP_ARM.recipe(0)
        assert recipe.fit == clip.fit, name
        assert recipe.data.batch_size == clip.data.batch_size
        assert recipe.data.num_scenes == clip.data.num_scenes
        assert recipe.model.image.channels == clip.model.image.channels
        assert recipe.model.image.image_size == 32
    for dim in scaling.VITS:
        arm = predecessors.Arm(settings=(*scaling.PLAIN_ADAM, f"model.image={scaling._vit(dim)}"))
        assert arm.recipe(0).model.image.dim == dim
    assert scaling.CLIP_ARM.but(scaling.STRONG).recipe(0).data.augment.hue_deg == 10
