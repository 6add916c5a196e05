import pytest
import torch
from tiny import tiny_clip, write_picture

from openvocab.clip import measure
from openvocab.data.pairs import open_pairs


def test_a_perfect_classifier_and_a_wrong_one():
    found = measure.classified(torch.eye(8), torch.arange(8), broken=2)
    assert found.figures == {"top1": 1, "top5": 1, "mean_per_class": 1, "map": 1, "pictures": 8, "broken": 2}
    wrong = measure.classified(torch.eye(8).roll(1, 0), torch.arange(8), broken=0)
    assert (wrong.figures["top1"], wrong.figures["mean_per_class"]) == (0, 0)
    assert torch.equal(wrong.rows["top1"], torch.zeros(8, dtype=torch.float64))
    assert set(measure.classified(torch.eye(3), torch.arange(3), broken=0).rows) == {"top1"}


def test_broken_pictures_are_left_out_and_counted_and_others_keep_their_captions(tmp_path):
    for number in range(5):
        write_picture(tmp_path / f"{number}.png", number)
        (tmp_path / f"{number}.txt").write_text(f"picture {number}\nnumber {number}")
    whole = measure.retrieve(tiny_clip(), open_pairs(tmp_path))
    assert (whole.figures["pictures"], whole.figures["texts"], whole.figures["broken"]) == (5, 10, 0)
    (tmp_path / "2.png").write_bytes(b"no picture")
    found = measure.retrieve(tiny_clip(), open_pairs(tmp_path))
    assert (found.figures["pictures"], found.figures["texts"], found.figures["broken"]) == (4, 8, 1)
    for name, rows in found.rows.items():
        assert found.figures[name] == pytest.approx(rows.mean().item())
        assert len(rows) == (8 if name.startswith("t2i") else 4)


def test_pairs_without_classes_say_which_task_they_are_for(tmp_path):
    write_picture(tmp_path / "a.png", 0)
    (tmp_path / "a.txt").write_text("a picture")
    with pytest.raises(ValueError, match="--task retrieval needs captions only"):
        measure.zero_shot(tiny_clip(), open_pairs(tmp_path), "generic")
