import numpy as np
import pytest
import torch
from made import encode, noise, write_tar
from PIL import Image
from scipy.stats import binomtest
from tiny_models import tiny_clip

from openvocab.data.pairs import open_pairs
from openvocab.lab.evaluation import evaluate_source
from openvocab.lab.overlap import ALTERATIONS, overlap, splits, threshold
from openvocab.metrics.interval import binomial_tail, clopper_pearson
from openvocab.world.render import render
from openvocab.world.scene import CLASSES, class_scenes


@pytest.mark.parametrize(("hits", "count", "p"), [(0, 7, 0.3), (7, 7, 0.3), (5, 9, 0.5), (81, 99, 0.79), (3, 4, 0.0)])
def test_tail_and_interval_equal_scipy(hits, count, p):
    assert binomial_tail(hits, count, p) == pytest.approx(binomtest(hits, count, p, "greater").pvalue, rel=1e-9)
    exact = binomtest(hits, count).proportion_ci(0.995, "exact")
    assert clopper_pearson(hits, count, 0.995) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_splits_by_hand():
    right = torch.tensor([1, 1, 1, 0, 1, 0, 0, 0]).bool()
    overlaps = torch.tensor([1, 1, 0, 0, 0, 0, 0, 0]).bool()
    found = splits(right, overlaps)
    assert found["top1"] == 0.5
    assert found["top1_clean"] == pytest.approx(2 / 6)
    assert found["all_minus_clean"] == pytest.approx(0.5 - 2 / 6)
    assert found["top1_overlap"] == 1.0
    assert found["p_value"] == pytest.approx((2 / 6) ** 2)  # both of two right, were a third of them right
    assert found["top1_overlap_high"] == 1.0
    assert found["top1_overlap_low"] == pytest.approx(0.0025**0.5)
    assert splits(right, torch.zeros(8).bool())["p_value"] == 1.0
    with pytest.raises(ValueError, match="nothing is clean"):
        splits(right, torch.ones(8).bool())


def test_few_training_pictures_are_refused():
    with pytest.raises(ValueError, match="50 are needed"):
        threshold(np.eye(49, 192, dtype=np.float32))


def labelled(path, pictures):
    members = {}
    for number, picture in enumerate(pictures):
        members |= {f"{number:04}.png": encode(picture), f"{number:04}.cls": b"3"}
    (path.parent / "classnames.txt").write_text("\n".join(CLASSES) + "\n")
    return open_pairs(write_tar(path, members))


def test_a_planted_overlap_is_found(tmp_path):
    drawn = render(class_scenes(np.arange(400) % 64, seed=5), 32).transpose(0, 2, 3, 1)
    scenes = [Image.fromarray(np.ascontiguousarray(picture)) for picture in drawn]
    test, train = scenes[:100], scenes[100:]
    planted = list(range(0, 40, 2))
    train = [*train, *(ALTERATIONS["half" if n % 4 else "darker"](test[n]) for n in planted), noise(1)]
    measured, extra = overlap(
        tiny_clip(), labelled(tmp_path / "train.tar", train), labelled(tmp_path / "test.tar", test), ("{}",)
    )
    found = {(row["test"], row["train"]) for row in extra["overlaps"]}
    expected = {(f"{n:04}", f"{300 + place:04}") for place, n in enumerate(planted)}
    assert len(found & expected) >= 19
    assert len(found - expected) <= 1
    assert measured.figures["overlap"] == len(found) / 100
    assert 0.4 <= measured.figures["recall"] <= 1.0


def test_eval_compares_with_training_pictures_of_any_classes(tmp_path):
    (tmp_path / "a").mkdir()
    for number in range(60):
        (tmp_path / "a" / "thing").mkdir(exist_ok=True)
        noise(number).save(tmp_path / "a" / "thing" / f"{number}.png")
    tiny_clip().save(tmp_path / "model")
    labelled(tmp_path / "test.tar", [noise(number) for number in (100, 101, 7)])
    words = (str(tmp_path / "model"), str(tmp_path / "test.tar"), "overlap", "generic")
    found = evaluate_source(*words, train=str(tmp_path / "a"))
    assert found["overlaps"] == [{"test": "0002", "train": "thing/7.png", "cosine": 1.0}]
    assert found["metrics"]["overlap"] == pytest.approx(1 / 3)
    assert found["metrics"]["recall"] == 1.0
    with pytest.raises(ValueError, match="--train"):
        evaluate_source(*words)
