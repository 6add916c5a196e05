"""The study of CLIP-Event: its arms differ in what they say they differ in."""

from openvocab.lab.studies.clip_event import ARMS, BLIND, CLAIMS


def test_arms_take_equal_steps_from_the_same_start():
    recipes = {name: arm.recipe(0) for name, arm in ARMS.items()}
    assert {arm.init for name, arm in ARMS.items() if name != "order-blind start"} == {BLIND}
    assert len({r.fit for name, r in recipes.items() if name != "order-blind start"}) == 1
    said = {name: (r.data.said.negatives, r.data.said.order, r.model.transport > 0) for name, r in recipes.items()}
    assert said == {
        "order-blind start": ((), "shuffled", False),
        "plain": ((), "told", False),
        "event negatives": (("event",), "told", False),
        "argument negatives": (("argument",), "told", False),
        "both": (("event", "argument"), "told", False),
        "both and transport": (("event", "argument"), "told", True),
    }


def test_every_gate_is_a_bound_on_one_figure():
    assert [str(claim.gate) for claim in CLAIMS] == [
        "margin > 0",
        "times chance > 2",
        "both, role_f1 > 0.5",
        "both and transport, own box > 0.9",
    ]
