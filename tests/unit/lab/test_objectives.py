"""The comparison of objectives: how a factor is read off two curves, and that every study runs."""

import math

import pytest

from openvocab.lab import ledger
from openvocab.lab.studies import objectives as study
from openvocab.lab.study import Arm

TINY = ("fit.steps=2", "data.num_scenes=64", "data.batch_size=8")


def test_where_a_curve_reaches_an_accuracy():
    curve = {100: 0.0, 400: 0.2, 1600: 0.6}
    assert study.reached(curve, 0.2) == pytest.approx(400)
    assert study.reached(curve, 0.4) == pytest.approx(800)  # half way, on the axis of log pictures
    assert study.reached(curve, 0.7) == math.inf
    assert study.reached({100: 0.5, 200: 0.6}, 0.4) == pytest.approx(100)


def test_the_factor_is_of_pictures_at_the_highest_accuracy_of_both(monkeypatch):
    curves = {"slow": {100: 0.0, 400: 0.1, 1600: 0.4}, "fast": {100: 0.1, 400: 0.4, 1600: 0.9}}
    monkeypatch.setattr(study, "curve", lambda name, seed: curves[name])
    found = study.efficiency("slow", "fast", 0)
    assert found["accuracy"] == pytest.approx(0.4)
    assert found["factor"] == pytest.approx(4)
    assert found["slow @1600"] == 0.4
    assert found["factor_at_half"] == math.inf  # the slow one never gets there


def tiny(arm):
    return Arm(system=arm.system, size=arm.size, settings=(*arm.settings, *TINY))


def test_changed_models_and_questions_to_trained_ones_give_the_figures_of_their_gates(monkeypatch):
    monkeypatch.setattr(study, "ARMS", {name: tiny(study.ARMS[name]) for name in ("contrast", "bag contrast")})
    monkeypatch.setattr(study, "_BASE", (*study._BASE, *TINY))
    monkeypatch.setattr(study, "SHORT", 2)
    for claim in study.CLAIMS:
        if claim.name in ("unit-vectors", "learned-temperature", "prompt-ensemble", "bag-loses-order"):
            assert claim.gate.figure in claim.study(0), claim.name
    found = study.order(0)
    assert found["bag contrast"] == 0.5
    assert found["contrast"] != 0.5


def test_rows_are_collected_under_names_of_their_own():
    names = [claim.name for claim in ledger.collect()[0]]
    assert len(set(names)) == len(names)
    assert {claim.name for claim in study.CLAIMS} <= set(names)


def test_settings_of_the_arms_are_known_and_share_tower_and_data():
    recipes = {name: arm.recipe(0) for name, arm in study.ARMS.items()}
    assert len({recipe.model.image for recipe in recipes.values()}) == 1
    assert len({recipe.data for recipe in recipes.values()}) == 1
    assert {recipe.fit.steps for recipe in recipes.values()} == {study.STEPS}
    assert len({recipe.model.text.vocabulary_size for recipe in recipes.values()}) == 1
