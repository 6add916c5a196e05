"""A build that is killed anywhere and started again ends as one that was not, bit for bit."""

import os
import shutil
import signal
import time
from pathlib import Path

import forked
import numpy as np
import pytest
from searching import Colours, plain
from tiny import tiny_clip, write_picture
from videos import write_video

from openvocab.clip.encoder import encoder
from openvocab.search import contents
from openvocab.search.build import build
from openvocab.search.index import Index

DATA = Path(os.environ.get("OPENVOCAB_TEST_DATA", Path(__file__).parents[4] / "shared" / "data"))


def digest(out):
    index = Index.open(out)
    return index.digest()


def interrupted(whole, out, source, make, times, rng, **options):
    """Kills that many builds of `out`, each at a random moment, and lets the last one finish; `whole` has none."""
    start = time.monotonic()
    build(whole, source, make(), **options)
    whole_s = time.monotonic() - start
    kills = 0
    while kills < times:
        child = forked.start(lambda: build(out, source, make(), **options))
        time.sleep(rng.uniform(0, whole_s / 4))
        os.kill(child, signal.SIGKILL)
        kills += forked.finish(child) == -signal.SIGKILL
    return build(out, source, make(), **options)


class Slow(Colours):
    def images(self, pixels):
        time.sleep(0.02)
        return super().images(pixels)


def test_killed_builds_end_as_one_that_was_not(tmp_path, fresh, monkeypatch):
    whole, out = fresh(), fresh()
    monkeypatch.setattr(contents, "_PART", 2)
    for number in range(15):
        write_picture(tmp_path / "src" / f"{number % 4}" / f"{number}.png", number % 12)
    write_video(tmp_path / "src" / "a.mp4", 40, rate=10, show=lambda number: plain("red", 48, 64))
    rng = np.random.default_rng(0)
    built = interrupted(whole, out, tmp_path / "src", Slow, 8, rng, batch_size=2, fps=4.0)
    assert built.unchanged + built.added == 16
    assert digest(out) == digest(whole)


def test_what_a_killed_build_left_is_forgotten(tmp_path, monkeypatch):
    """Vectors without the tables that name them: the moment between the two."""
    for number in range(6):
        write_picture(tmp_path / "src" / f"{number}.png", number)
    monkeypatch.setattr(contents, "_PART", 2)
    from openvocab.search.folder import FolderStore

    whole, put = FolderStore.put, []

    def dies(store, vectors):
        slots = whole(store, vectors)
        put.append(len(slots))
        if len(put) == 2:
            raise KeyboardInterrupt
        return slots

    monkeypatch.setattr(FolderStore, "put", dies)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "index", tmp_path / "src", Colours(), batch_size=2)
    assert Index.open(tmp_path / "index").facts()["rows"] == 2
    (tmp_path / "index" / "vectors" / "000009.f16").write_bytes(b"left behind")
    again = build(tmp_path / "index", tmp_path / "src", Colours(), batch_size=2)
    assert again.embedded_rows == 4
    assert [path.name for path in (tmp_path / "index" / "vectors").iterdir()] == ["000000.f16"]
    build(tmp_path / "whole", tmp_path / "src", Colours(), batch_size=2)
    assert digest(tmp_path / "index") == digest(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "photos").is_dir(), reason="needs real pictures")
def test_photographs_and_videos_killed_twenty_times(tmp_path):
    source = tmp_path / "src"
    shutil.copytree(DATA / "photos", source / "photos")
    shutil.copytree(DATA / "video", source / "video")
    for number in range(4):
        write_video(source / f"{number}.mp4", 100 + number)
    make = lambda: encoder(tiny_clip())  # noqa: E731
    out = tmp_path / "index"
    interrupted(tmp_path / "whole", out, source, make, 20, np.random.default_rng(1))
    assert digest(out) == digest(tmp_path / "whole")
    photo = next(path for path in source.rglob("*.mkv"))
    photo.rename(source / "moved.mkv")
    (source / "0.mp4").unlink()
    write_video(source / "1.mp4", 77)
    built = build(out, source, make())
    assert (built.added, built.changed, built.moved, built.removed) == (0, 1, 1, 1)
    index = Index.open(out)
    assert built.embedded_rows == len(index.find("1.mp4"))
    build(tmp_path / "fresh", source, make())
    assert Index.open(tmp_path / "fresh").facts()["rows"] == index.facts()["rows"]
