"""What is held out is held out, and every arm of a comparison learns from the same."""

from openvocab.lab.studies import actionclip as study
from openvocab.world.motion import ACTION_NAMES, JOURNEYS


def test_unseen_actions_are_made_of_words_that_are_seen():
    assert len(study.UNSEEN) == 12
    assert not set(study.UNSEEN) & set(study.SEEN)
    assert {word for name in study.UNSEEN for word in name.split()} <= {w for name in study.SEEN for w in name.split()}
    for name in study.UNSEEN:  # the way back is a choice too
        assert ACTION_NAMES[ACTION_NAMES.index(name) ^ 1] in study.UNSEEN
    for side in (0, 1):
        ends = {name.removeprefix("moves from ").split(" to ")[side] for name in study.SEEN}
        assert len(ends) == 9
    assert set(JOURNEYS) == set(study.SEEN) | set(study.UNSEEN)


def test_all_arms_learn_from_the_same():
    arms = [arm.recipe(3) for arm in (*study.HEADS.values(), study.ONE_POSITIVE)]
    assert len({str((recipe.data.clips, recipe.fit, recipe.optim)) for recipe in arms}) == 1
    assert [recipe.data.objective for recipe in arms] == ["kl"] * 5 + ["cross-entropy"]
