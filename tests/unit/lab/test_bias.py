import json

import pytest
import torch
from PIL import Image
from scipy.stats import chi2_contingency
from tiny import tiny_clip

from openvocab.cli import run
from openvocab.data.pairs import open_pairs
from openvocab.lab import bias
from openvocab.lab.bias import Audit, measure_bias
from openvocab.metrics.compare import two_shares


def table(root, count=24):
    """Pictures of two kinds, two groups and two ages."""
    rows = ["path,kind,group,age"]
    for number in range(count):
        Image.new("RGB", (16, 16), (10 * number, 40, 255 - 10 * number)).save(root / f"{number}.png")
        rows.append(f"{number}.png,{'cat' if number % 3 else 'dog'},{'a' if number % 2 else 'b'},{number // 12}")
    (root / "table.csv").write_text("\n".join(rows))
    return root / "table.csv"


@pytest.fixture
def pairs(tmp_path):
    return open_pairs(table(tmp_path), label_key="kind", captioned=False)


def shaded(monkeypatch, given):
    """A model that gives these probabilities, whatever it is asked."""
    monkeypatch.setattr(bias, "classify_embeds", lambda *_: type("C", (), {"probabilities": given(_[2])}))


def test_rates_and_gaps_of_each_group_are_those_of_a_count(pairs, monkeypatch):
    harmful = torch.arange(24) % 4 == 0  # all of them in group b

    def given(words):
        out = torch.zeros(24, len(words.labels))
        out[:, words.labels.index("dog")] = 0.6
        out[harmful, words.labels.index("thief")] = 0.9
        out[:, words.labels.index("beast")] = 0.01
        if "child" in words.labels:
            out[:12, words.labels.index("child")] = 1.0
        return out

    shaded(monkeypatch, given)
    audit = Audit(groups="group", harmful=("thief", "beast"), adding=("child",))
    measured, gaps = measure_bias(tiny_clip(), pairs, audit, ("a {}",))
    found = measured.figures
    assert (found["thief, a"], found["thief, b"]) == (0.0, 0.5)
    assert (found["harmful, a"], found["harmful, b"]) == (0.0, 0.5)
    assert (found["harmful at 0.005, a"], found["harmful at 0.04, a"]) == (1.0, 0.0)
    assert found["harmful, with child, b"] == 0.25
    assert found["right, b"] == pytest.approx(2 / 12)  # dogs are every third; of group b half are called thieves
    gap = next(gap for gap in gaps if (gap["answer"], gap["group"]) == ("thief", "b"))
    assert (gap["gap"], gap["pictures"]) == (0.5, 12)
    assert gap["low"] > 0
    assert gap["p"] == pytest.approx(chi2_contingency([[6, 6], [0, 12]], correction=False).pvalue, abs=1e-9)


def test_numbers_are_groups_too_and_all_labels_are_looked_at_without_harmful_ones(pairs):
    measured, gaps = measure_bias(tiny_clip(), pairs, Audit(groups="age"), ("a {}",))
    assert {(gap["answer"], gap["group"]) for gap in gaps} == {(a, g) for a in ("cat", "dog", "right") for g in "01"}
    for group in "01":
        assert measured.figures[f"cat, {group}"] + measured.figures[f"dog, {group}"] == pytest.approx(1)


def test_newcombes_interval_has_its_published_value_and_covers():
    found = two_shares(56, 70, 48, 80)  # Newcombe 1998, table II, column (a), method 10
    assert (round(found.mean, 4), round(found.low, 4), round(found.high, 4)) == (0.2, 0.0524, 0.3339)
    assert two_shares(0, 10, 0, 10).p_value == 1.0
    assert two_shares(9, 10, 3, 30).p_value < 1e-5


def test_what_cannot_be_audited_is_said(pairs, tmp_path):
    with pytest.raises(ValueError, match="nearest is 'group'"):
        measure_bias(tiny_clip(), pairs, Audit(groups="grup"), ("a {}",))
    bare = open_pairs(tmp_path / "table.csv", captioned=False)
    with pytest.raises(ValueError, match="name the answers with --labels"):
        measure_bias(tiny_clip(), bare, Audit(groups="group"), ("a {}",))
    rows = (tmp_path / "table.csv").read_text().splitlines()
    (tmp_path / "one.csv").write_text("\n".join(rows[:2]))
    one = open_pairs(tmp_path / "one.csv", captioned=False)
    with pytest.raises(ValueError, match="one value only, 'b'"):
        measure_bias(tiny_clip(), one, Audit(groups="group", labels=("x", "y")), ("a {}",))


def test_the_command_prints_rates_gaps_and_writes_them(tmp_path, capsys):
    data = str(table(tmp_path))
    command = ["eval", "demo", "--data", data, "--task", "bias"]
    assert run([*command]) == 1
    assert "--task bias needs --groups COLUMN" in capsys.readouterr().err
    assert run([*command[:4], "--harmful", "thief"]) == 2
    assert run([*command[:4], "--groups", "group"]) == 1
    assert "no effect on zeroshot" in capsys.readouterr().err
    command += ["--groups", "group", "--labels", "red shape,blue shape", "--harmful", "white cross"]
    assert run([*command, "--out", str(tmp_path / "out")]) == 0
    assert "white cross, a less others" in capsys.readouterr().out
    assert "Gaps" in (tmp_path / "out" / "report.html").read_text()
    made = (tmp_path / "out" / "result.json").stat().st_mtime_ns
    assert run([*command, "--out", str(tmp_path / "out"), "--json"]) == 0
    again = capsys.readouterr()
    assert (tmp_path / "out" / "result.json").stat().st_mtime_ns == made
    assert json.loads(again.out)["audit"]["harmful"] == ["white cross"]
