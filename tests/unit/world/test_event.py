import numpy as np

from openvocab.world.event import VERBS, draw_events, event_texts, swap_roles
from openvocab.world.render import render, truth
from openvocab.world.scene import CLASSES


def test_agents_and_patients_are_two_different_things_in_all_combinations():
    classes = draw_events(6000).scenes.class_id
    assert (classes[:, 0] != classes[:, 1]).all()
    assert len({tuple(pair) for pair in classes[:, :2]}) == 18 * 17


def test_side_verb_and_roles_are_independent():
    events = draw_events(6000)
    left = events.scenes.cx[:, 0] < 0.5
    assert abs(left.mean() - 0.5) < 0.03
    for verb in range(len(VERBS)):
        assert abs((events.verb == verb).mean() - 1 / 3) < 0.03
        assert abs(left[events.verb == verb].mean() - 0.5) < 0.04


def test_the_mark_touches_the_agent_and_not_the_patient():
    scenes = draw_events(300).scenes
    boxes = truth(scenes, 64).boxes_xyxy_px
    gap = [np.maximum(boxes[:, 2, 0] - boxes[:, k, 2], boxes[:, k, 0] - boxes[:, 2, 2]) for k in (0, 1)]
    assert gap[0].max() <= 4
    assert (gap[1] - gap[0]).min() >= 2


def test_chasers_carry_the_mark_behind_and_the_others_in_front():
    events = draw_events(300)
    x = events.scenes.cx
    in_front = (x[:, 2] - x[:, 0]) * (x[:, 1] - x[:, 0]) > 0
    assert (in_front == (events.verb != VERBS.index("chases"))).all()


def test_every_verb_has_a_mark_of_its_own_colour():
    events = draw_events(60)
    pictures, masks = render(events.scenes, 64), truth(events.scenes, 64).masks[:, 2]
    tones = np.stack([pictures[i].transpose(1, 2, 0)[masks[i]].max(0) for i in range(60)])
    means = np.stack([tones[events.verb == verb].mean(0) for verb in range(3)])
    assert np.abs(means - np.array([[247, 247, 247], [250, 127, 13], [13, 13, 13]])).max() < 60


def test_sentences_say_who_does_what_to_whom():
    events = draw_events(20)
    for text, classes, verb in zip(event_texts(events), events.scenes.class_id, events.verb):
        assert text == f"a {CLASSES[classes[0]]} {VERBS[verb]} a {CLASSES[classes[1]]}"


def test_swapped_roles_exchange_the_two_and_swapping_twice_changes_nothing():
    events = draw_events(50)
    swapped = swap_roles(events)
    for text, other in zip(event_texts(events), event_texts(swapped)):
        verb = next(verb for verb in VERBS if verb in text)
        agent, patient = text.split(f" {verb} ")
        assert other == f"{patient} {verb} {agent}"
    assert (swapped.scenes.cx == events.scenes.cx).all()
    assert np.array_equal(render(swap_roles(swapped).scenes), render(events.scenes))
    assert not np.array_equal(render(swapped.scenes), render(events.scenes))
