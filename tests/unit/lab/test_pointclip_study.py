"""The studies of PointCLIP: choices are made on other clouds than figures, arms differ in what they are named after."""

from dataclasses import replace

import torch

from openvocab import config
from openvocab.blocks.projection import SIX, TEN
from openvocab.lab.claims import outcome
from openvocab.lab.studies import pointclip as study
from openvocab.systems import pointclip as system


def test_views_are_counted_as_the_paper_does():
    assert tuple(TEN[row] for row in study.VIEWS[6]) == SIX
    assert [len(rows) for rows in study.VIEWS.values()] == list(study.VIEWS)


def test_arms_differ_in_their_shots_alone():
    recipes = [study.FEW.but(f"data.shots={shots}").recipe(3) for shots in study.SHOTS]
    assert [recipe.data.shots for recipe in recipes] == list(study.SHOTS)
    same = [replace(recipe, data=replace(recipe.data, shots=0)) for recipe in recipes]
    assert all(config.to_dict(recipe) == config.to_dict(same[0]) for recipe in same)
    with_depth, without = (config.to_dict(arm.recipe(0)) for arm in (study.WITH_DEPTH, study.WITHOUT))
    assert with_depth.pop("data")["pairs"]["source"] == "shapes:30"
    assert without.pop("data")["pairs"]["source"] == "shapes"
    assert with_depth == without


def test_no_cloud_is_in_two_parts(monkeypatch):
    monkeypatch.setattr(system.PointCLIP, "look", lambda self, points: points[:, :1])
    model = system.build(replace(system.SIZES["tiny"], adapter=False, num_points=1024))
    monkeypatch.setattr(study, "SHOTS", (1, 2))
    parts = [study.seen(model, 0, part, "upright").points for part in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [24, 240, 360]
    for one in range(3):
        for other in range(one):
            assert torch.cdist(parts[one].flatten(1), parts[other].flatten(1)).min() > 0.01
    again = study._Again(study.seen(model, 0, "train", "upright"), 8, seed=3)
    first, second = list(again.stream(0, 2)), list(again.stream(1, 1))
    assert torch.equal(first[1]["points"], second[0]["points"])
    assert not torch.equal(first[0]["points"], first[1]["points"])


def test_the_curve_is_drawn_from_the_figures():
    (claim,) = (each for each in study.CLAIMS if each.name == "pointclip-few-shot")
    names = [f"{name}, {shots}" for name in ("adapter", "linear probe") for shots in study.SHOTS]
    figures = dict.fromkeys(["gain", "zero-shot", *names], 0.5)
    found = outcome(claim, {str(seed): {"figures": figures, "seconds": 1.0} for seed in range(3)})
    assert "linear probe" in claim.picture(found.figures)
    assert found.verdict == "holds"
