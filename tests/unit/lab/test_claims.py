import re
import xml.etree.ElementTree as ET

import pytest

from openvocab import storage
from openvocab.lab import ledger, report
from openvocab.lab.claims import Claim, Gate, Untested, outcome, run


def claim(**changes):
    asked = []

    def study(seed):
        asked.append(seed)
        return {"gain": 0.1 + 0.01 * seed, "other": float(seed)}

    settings = {
        "name": "words-help",
        "says": "Words | help",
        "source": "CLIP, section 1",
        "expects": "a gain",
        "gate": Gate(figure="gain", above=0.0),
        "world": "scenes",
        "study": study,
    }
    return Claim(**(settings | changes)), asked


def test_the_verdict_is_read_from_the_interval():
    gate = Gate(figure="gain", above=0.5)
    assert [gate.verdict(*ends) for ends in ((0.6, 0.7), (0.4, 0.6), (0.3, 0.5))] == ["holds", "undecided", "fails"]
    gate = Gate(figure="error", below=0.5)
    assert [gate.verdict(*ends) for ends in ((0.3, 0.4), (0.4, 0.6), (0.5, 0.7))] == ["holds", "undecided", "fails"]
    with pytest.raises(ValueError, match="one of above and below"):
        Gate(figure="gain")


def test_a_claim_is_measured_once_and_again_when_its_gate_moves(tmp_path):
    first, asked = claim()
    found = run(first, tmp_path)
    assert found.verdict == "holds"
    assert found.figures["gain"][0] == pytest.approx(0.11)
    run(first, tmp_path)
    assert asked == [0, 1, 2]
    moved, again = claim(gate=Gate(figure="gain", above=0.2))
    assert run(moved, tmp_path).verdict == "fails"
    assert again == [0, 1, 2]
    more, rest = claim(gate=Gate(figure="gain", above=0.2), seeds=5)
    run(more, tmp_path)
    assert rest == [3, 4]


def test_a_gate_on_a_figure_that_is_not_given_says_so(tmp_path):
    wrong, _ = claim(gate=Gate(figure="gains", above=0.0))
    with pytest.raises(ValueError, match="the gate asks for gains, found gain, other"):
        run(wrong, tmp_path)


def test_the_table_is_written_for_people_and_for_programs(tmp_path):
    drawn, _ = claim(picture=lambda figures: report.bars([("gain", *figures["gain"]), ("loss", -1, -2, 0)], "gains"))
    unmeasured, _ = claim(name="later")
    run(drawn, tmp_path)
    humans = Untested(name="humans", says="People are better", source="CLIP, 4", published="93.5 %", reason="no people")
    rows = ledger.write(tmp_path, [drawn, unmeasured], [humans])
    assert (rows["measured"], rows["of"]) == (1, 2)
    assert rows["claims"][0]["figures"]["gain"]["mean"] == pytest.approx(0.11)
    page = (tmp_path / "claims.html").read_text()
    for said in ("Words | help", "93.5 %", "holds", "openvocab claims words-help", "<svg"):
        assert said in page
    assert ET.parse(tmp_path / "words-help.svg").getroot().tag.endswith("svg")


def test_every_claim_of_the_house_has_a_name_of_its_own():
    claims, untested = ledger.collect()
    names = [row.name for row in (*claims, *untested)]
    assert len(names) == len(set(names))
    assert all(re.fullmatch("[a-z0-9-]+", name) for name in names)


def test_an_unknown_claim_is_named_with_its_nearest(tmp_path):
    with pytest.raises(ValueError, match="no claim 'nonsense'"):
        ledger.run_claims(["nonsense"], tmp_path)


def test_seeds_are_kept_on_disk(tmp_path):
    first, _ = claim()
    run(first, tmp_path)
    kept = storage.read_json(tmp_path / "words-help.json")["seeds"]
    assert outcome(first, kept).seeds == 3
    assert outcome(first, {"0": kept["0"]}).verdict == "unfinished"
    assert kept["2"]["figures"] == pytest.approx({"gain": 0.12, "other": 2.0})
