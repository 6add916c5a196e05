import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
import tiny
import torch
from tiny import tiny_clip, write_picture

from openvocab.clip import collection
from openvocab.clip.answers import classify_files
from openvocab.clip.trust import fit_calibration
from openvocab.clip.vocabulary import vocabulary
from openvocab.clip.zeroshot import classify

LABELS = ["cat, tabby", 'a "dog"', "horse"]


@pytest.fixture
def clip():
    return tiny_clip()


@pytest.fixture
def paths(tmp_path):
    return [write_picture(tmp_path / "pictures" / f"{number}.png", number) for number in range(5)]


@pytest.fixture
def folder(paths):
    return paths[0].parent


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_parquet(path):
    return pyarrow.parquet.read_table(path).to_pylist()


@pytest.mark.parametrize(("suffix", "read"), [(".csv", read_csv), (".jsonl", read_jsonl), (".parquet", read_parquet)])
def test_collections_become_tables(clip, paths, folder, tmp_path, suffix, read):
    (folder / "broken.png").touch()
    written = classify_files(clip, folder, LABELS, tmp_path / f"table{suffix}", k=2, part_size=2)
    assert (written.pictures, list(written.failures)) == (5, ["broken.png"])
    rows = read(written.path)
    expected = classify(clip, paths, LABELS)
    assert list(rows[0]) == ["key", "rank", "label", "score", "probability"]
    assert [row["key"] for row in rows] == [f"{number}.png" for number in range(5) for _ in range(2)]
    assert [int(row["rank"]) for row in rows] == [1, 2] * 5
    assert [row["label"] for row in rows] == [name for top in expected.top(2) for name, _ in top]
    probabilities = [value for top in expected.top(2) for _, value in top]
    assert [float(row["probability"]) for row in rows] == pytest.approx(probabilities, rel=1e-5)
    assert sorted(path.name for path in tmp_path.glob("table*")) == [f"table{suffix}"]


def test_shards_fill_one_folder_with_what_one_process_writes(clip, folder, tmp_path):
    whole = classify_files(clip, folder, LABELS, f"{tmp_path / 'whole.jsonl'}/", part_size=2)
    shards = [
        classify_files(clip, folder, LABELS, f"{tmp_path / 'shared.jsonl'}/", part_size=2, shard=(index, 2))
        for index in (1, 0)
    ]
    assert [shard.pictures for shard in shards] == [3, 2]
    parts = sorted(path.name for path in whole.path.glob("part-*"))
    assert parts == [f"part-{number:06d}.jsonl" for number in range(3)]
    for name in parts:
        assert (whole.path / name).read_bytes() == (shards[0].path / name).read_bytes()
    with pytest.raises(ValueError, match=r"shards write parts: name a folder, .*one\.csv/"):
        classify_files(clip, folder, LABELS, tmp_path / "one.csv", part_size=2, shard=(0, 2))


def test_a_folder_of_parquet_parts_is_one_table_to_others(clip, folder, tmp_path):
    (folder / "broken.png").touch()
    written = classify_files(clip, folder, LABELS, f"{tmp_path / 'parts.parquet'}/", part_size=2)
    assert len(read_parquet(written.path)) == 15


def test_a_finished_folder_is_read_and_not_made_again(clip, folder, tmp_path, monkeypatch):
    (folder / "broken.png").touch()
    first = classify_files(clip, folder, LABELS, f"{tmp_path / 'parts.csv'}/")
    monkeypatch.setattr(collection, "preprocess_bytes", None)
    assert classify_files(clip, folder, LABELS, tmp_path / "parts.csv") == first


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from tiny import tiny_clip
from openvocab.clip import answers
write = answers.write_columns
def write_and_die(path, columns):
    write(path, columns)
    if path.name == "part-000001.csv":
        os.kill(os.getpid(), signal.SIGKILL)
answers.write_columns = write_and_die
answers.classify_files(tiny_clip(), sys.argv[2], ["a", "b"], sys.argv[3], part_size=2)
"""


def test_a_killed_run_goes_on_without_loss_or_repetition(clip, folder, tmp_path, monkeypatch):
    out = tmp_path / "table.csv"
    command = [sys.executable, "-c", KILLED, Path(tiny.__file__).parent, folder, out]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    assert not out.exists()
    opened = []
    read = collection.preprocess_bytes
    monkeypatch.setattr(
        collection, "preprocess_bytes", lambda *a, name, **k: opened.append(name) or read(*a, name=name, **k)
    )
    classify_files(clip, folder, ["a", "b"], out, part_size=2)
    assert opened == ["4.png"]
    classify_files(clip, folder, ["a", "b"], tmp_path / "again.csv", part_size=2)
    assert out.read_bytes() == (tmp_path / "again.csv").read_bytes()


def test_other_labels_do_not_go_on_in_a_folder(clip, folder, tmp_path):
    out = f"{tmp_path / 'parts.csv'}{os.sep}"
    classify_files(clip, folder, [("cat", "tabby"), "dog"], out)
    for labels, change in ((["cat", "dog"], {}), ([("cat", "tabby"), "dog"], {"k": 1})):
        with pytest.raises(ValueError, match="holds other work"):
            classify_files(clip, folder, labels, out, **change)


def test_parents_have_rows_and_ranks_of_their_own(clip, folder, tmp_path):
    tree = tmp_path / "tree.jsonl"
    entries = [("dog", "animal"), ("cat", "animal"), ("car", "machine"), ("animal", None), ("machine", "")]
    tree.write_text("".join(json.dumps({"label": label, "parent": parent}) + "\n" for label, parent in entries))
    rows = read_csv(classify_files(clip, folder, str(tree), tmp_path / "table.csv", k=2).path)
    assert [(row["level"], row["rank"]) for row in rows[:4]] == [("0", "1"), ("0", "2"), ("1", "1"), ("1", "2")]
    assert {row["label"] for row in rows if row["level"] == "1"} == {"animal", "machine"}
    above = [float(row["probability"]) for row in rows if row["level"] == "1" and row["key"] == "0.png"]
    assert sum(above) == pytest.approx(1, abs=1e-5)


def test_a_calibration_reaches_the_table(clip, paths, folder, tmp_path):
    words = vocabulary(clip, LABELS)
    pictures = torch.nn.functional.normalize(torch.randn(60, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    cosines = pictures @ words.embeds.T
    calibration = fit_calibration(30 * cosines, cosines.argmax(1), cosines=cosines).belonging_to(words)
    found = classify(clip, paths, words, calibration=calibration)
    table = classify_files(clip, folder, words, tmp_path / "table.csv", calibration=calibration, k=1)
    given = torch.tensor([float(row["probability"]) for row in read_csv(table.path)])
    torch.testing.assert_close(given, found.probabilities.amax(1), rtol=0, atol=1e-5)


def test_bad_collections_and_names_are_refused_in_one_line(clip, tmp_path):
    with pytest.raises(ValueError, match=r"ends in \.csv, \.jsonl, \.parquet"):
        classify_files(clip, tmp_path, ["cat"], tmp_path / "table.xlsx")
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match="none of 1 pictures can be read"):
        classify_files(clip, tmp_path, ["cat"], tmp_path.parent / "table.csv")
