import itertools
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from forked import finish, start
from made import encode, noise, write_tar
from PIL import Image

from openvocab import storage
from openvocab.data.captions import Captions
from openvocab.data.corpus import CorpusConfig, Draw, Matches, build
from openvocab.data.pairs import open_pairs
from openvocab.data.queries import Query
from openvocab.data.source import PairsConfig, image_id

SMALL = CorpusConfig(cap=20, min_count=5, min_pmi=0.5, part=64)


def captions(num: int) -> list[str]:
    rng = np.random.default_rng(3)
    colours, shapes = ["red"] * 9 + ["blue", "green"], ["circle"] * 5 + ["ring"]
    return [f"a {rng.choice(colours)} {rng.choice(shapes)}" if n % 7 else "" for n in range(num)]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.jsonl"
    path.write_text("".join(json.dumps({"url": f"u{n}", "caption": c}) + "\n" for n, c in enumerate(captions(400))))
    return path


def source(path: Path) -> PairsConfig:
    return PairsConfig(source=str(path))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def counted(folder: Path) -> dict[str, tuple[int, int]]:
    lines = (folder / "queries.tsv").read_text().splitlines()[1:]
    return {text: (int(matched), int(kept)) for text, _, _, matched, kept in (line.split("\t") for line in lines)}


def test_a_table_of_captions_gives_the_rows_that_stay_and_exact_counts(table, tmp_path):
    report = build(source(table), tmp_path / "out", SMALL)
    said = [f" {text} " for text in captions(400)]
    stayed = [json.loads(line) for n in range(7) for line in (tmp_path / "out" / f"{n}.jsonl").read_text().splitlines()]
    numbers = [int(row["url"][1:]) for row in stayed]
    assert numbers == sorted(set(numbers))
    for text, (matched, kept) in counted(tmp_path / "out").items():
        assert matched == sum(f" {text} " in caption for caption in said)
        assert kept == sum(f" {text} " in said[number] for number in numbers)
    assert report["samples"] == 400 == report["kept"] + sum(report["dropped"].values())
    assert report["dropped"]["no caption"] == 58


def test_a_query_under_the_cap_stays_whole(table, tmp_path):
    build(source(table), tmp_path / "out", SMALL, ["blue ring"])
    found = counted(tmp_path / "out")
    rare = [pair for pair in found.values() if pair[0] <= SMALL.cap]
    assert rare
    assert all(matched == kept for matched, kept in rare)
    assert found["red"][1] < found["red"][0]


def test_samples_stay_with_the_stated_probability():
    counts = np.array([40, 100, 1000])
    found = [Query(text, "word") for text in ("x", "y", "z")]
    keys = np.array([image_id(str(n)) for n in range(20_000)], np.uint64)
    for held in ([1], [2], [1, 2], [0, 2]):
        matches = Matches(keys, np.arange(len(keys) + 1) * len(held), np.tile(held, len(keys)))
        stays = Draw(found, counts, CorpusConfig(cap=40))(matches)
        expected = 1 - np.prod(1 - np.minimum(1, 40 / counts[held]))
        assert stays.mean() == pytest.approx(expected, abs=4 * np.sqrt(0.25 / len(keys)))
        other = Draw(found, counts, CorpusConfig(cap=40, seed=1))(matches)
        assert expected == 1 or (stays != other).any()
    # A draw knows the sample and the query only, whatever else the sample holds and wherever it stands.
    alone = Draw(found, counts, CorpusConfig(cap=40))(Matches(keys[5:6], np.array([0, 1]), np.array([1])))
    many = Draw(found, counts, CorpusConfig(cap=40))(Matches(keys, np.arange(len(keys) + 1), np.ones(len(keys), int)))
    assert alone[0] == many[5]


def test_killed_and_resumed_is_byte_for_byte_the_same(table, tmp_path, monkeypatch):
    report = build(source(table), tmp_path / "whole", SMALL)
    whole, replace = files(tmp_path / "whole"), os.replace
    for after in range(1, 29, 3):

        def work(calls=itertools.count(1), after=after):
            def dying(old, new):
                if next(calls) == after:
                    os.kill(os.getpid(), signal.SIGKILL)
                replace(old, new)

            monkeypatch.setattr(os, "replace", dying)
            build(source(table), tmp_path / "out", SMALL)

        # Killed a little later each time, each run going on where the last one stopped.
        finish(start(work))
    assert build(source(table), tmp_path / "out", SMALL) == report
    assert files(tmp_path / "out") == whole


def test_finished_work_is_returned_and_other_work_refused(table, tmp_path, monkeypatch):
    report = build(source(table), tmp_path / "out", SMALL)
    with pytest.raises(ValueError, match=r"config\.cap was 20, now 30"):
        build(source(table), tmp_path / "out", CorpusConfig(cap=30, min_count=5, min_pmi=0.5, part=64))
    monkeypatch.setattr(Captions, "parts", lambda *_: pytest.fail("read again"))
    assert build(source(table), tmp_path / "out", SMALL) == report
    assert not (tmp_path / "out" / "work").exists()


def test_shards_come_out_without_duplicates_and_open_again(tmp_path):
    members: dict[str, bytes] = {}
    for number in range(30):
        content = b"broken" if number == 3 else encode(noise(number % 20, (64, 48)), "JPEG", quality=95)
        if number == 25:
            content = encode(noise(number % 20, (64, 48)).resize((32, 24), Image.Resampling.BOX), "PNG")
        members[f"{number:03}.{'png' if number == 25 else 'jpg'}"] = content
        members[f"{number:03}.txt"] = f"a thing {'again' if number == 20 else number % 20}\n".encode()
        members[f"{number:03}.cls"] = b"1"
    (tmp_path / "classnames.txt").write_text("one\ntwo\n")
    path = write_tar(tmp_path / "in.tar", members)
    report = build(source(path), tmp_path / "out", CorpusConfig(min_count=3, part=12))
    assert report["dropped"] == {"equal pair": 7, "near-duplicate picture": 2, "unreadable picture": 1}
    pairs = open_pairs(tmp_path / "out")
    assert len(pairs) == report["kept"] == 20
    assert pairs.classnames == ("one", "two")
    assert pairs[0].captions == ("a thing 0",)
    assert pairs[0].label == 1
    assert pairs.content(0) == members["000.jpg"]
    assert pairs.content(18) == members["019.jpg"]


def test_a_table_without_captions_says_what_it_has(tmp_path):
    (tmp_path / "table.csv").write_text("url,words\nu,v\n")
    with pytest.raises(ValueError, match="it has url, words"):
        build(source(tmp_path / "table.csv"), tmp_path / "out")


def test_claimed_folders_name_the_first_difference(tmp_path):
    storage.claim(tmp_path / "a.json", {"x": {"y": (1, 2)}})
    storage.claim(tmp_path / "a.json", {"x": {"y": (1, 2)}})
    with pytest.raises(ValueError, match=r"x\.y was \[1, 2\], now 3"):
        storage.claim(tmp_path / "a.json", {"x": {"y": 3}})
