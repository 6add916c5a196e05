"""Radiographs show what their truth says, and reports say what is true."""

import dataclasses

import numpy as np
import pytest

from openvocab.data.pairs import open_pairs
from openvocab.data.radiographs import open_radiographs
from openvocab.world.radiograph import FINDINGS, SHARE, draw_radiographs, render_radiographs, reports

KEYWORDS = {name: name for name in FINDINGS} | {"cardiomegaly": "heart", "fracture": "rib", "pacemaker": "pacemaker"}


def with_findings(films, present):
    return dataclasses.replace(films, present=present)


def test_any_range_is_drawn_alone():
    whole, part = draw_radiographs(20, seed=2), draw_radiographs(5, seed=2, start=10)
    assert np.array_equal(whole.present[10:15], part.present)
    assert np.array_equal(render_radiographs(whole, 32)[10:15], render_radiographs(part, 32))
    assert reports(whole)[10:15] == reports(part)
    assert not np.array_equal(whole.present, draw_radiographs(20, seed=3).present)


def test_findings_are_as_frequent_as_said_and_independent():
    present = draw_radiographs(20_000).present
    assert np.abs(present.mean(0) - SHARE).max() < 0.01
    assert np.abs(np.corrcoef(present.T.astype(float)) - np.eye(len(FINDINGS))).max() < 0.03


@pytest.mark.parametrize("finding", range(len(FINDINGS)), ids=FINDINGS)
def test_a_finding_changes_the_picture_on_its_side_alone(finding):
    films = draw_radiographs(12)
    none = np.zeros_like(films.present)
    one = none.copy()
    one[:, finding] = True
    before, after = (render_radiographs(with_findings(films, p), 48).astype(int)[:, 0] for p in (none, one))
    changed = np.abs(after - before) > 20
    assert changed.any(axis=(1, 2)).all()
    if FINDINGS[finding] == "cardiomegaly":
        return
    right_half = changed[:, :, 27:].sum(axis=(1, 2)) > changed[:, :, :21].sum(axis=(1, 2))
    assert np.array_equal(right_half, films.left[:, finding])  # the patient's left is the picture's right


def test_pictures_are_grey():
    pictures = render_radiographs(draw_radiographs(4), 40)
    assert pictures.shape == (4, 3, 40, 40)
    assert (pictures == pictures[:, :1]).all()


def test_reports_have_one_to_four_true_sentences():
    films = draw_radiographs(600, seed=1)
    lengths = set()
    for row, text in enumerate(reports(films)):
        said = text.removesuffix(".").split(". ")
        lengths.add(len(said))
        assert len(said) >= min(4, films.present[row].sum())
        for finding, name in enumerate(FINDINGS):
            about = [s for s in said if KEYWORDS[name] in s or name in s or (name == "pacemaker" and "device" in s)]
            denied = [s for s in about if s.startswith(("no ", "there is no")) or "normal" in s or "not " in s]
            denied += [s for s in about if "clear" in s or "intact" in s]
            assert len(about) <= 1
            if films.present[row, finding]:
                assert not denied
                side, size = ("left", "right")[not films.left[row, finding]], ("small", "large")
                if about and name != "cardiomegaly":
                    assert side in about[0]
                if about and name in ("nodule", "effusion", "pneumothorax"):
                    assert size[int(films.large[row, finding])] in about[0]
            else:
                assert about == denied
    assert lengths == {1, 2, 3, 4}


def test_they_are_a_source_of_pairs():
    pairs = open_radiographs(6, seed=4, size_px=32)
    assert pairs.captions(2) == (reports(draw_radiographs(6, seed=4))[2],)
    assert pairs.fingerprint != open_radiographs(6, seed=5, size_px=32).fingerprint
    with pytest.raises(ValueError, match="caption_key has no effect on generated radiographs"):
        open_pairs("radiographs", caption_key="x")
