import contextlib
import io
import os
import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from searching import RGB, Colours, plain
from tiny import write_picture
from videos import write_video

from openvocab.search.build import build
from openvocab.search.index import Index
from openvocab.search.records import Where


@pytest.fixture
def folder(tmp_path):
    for number in range(7):
        write_picture(tmp_path / "src" / f"{number // 3}" / f"{number}.png", number)
    return tmp_path / "src"


@pytest.fixture
def out(fresh):
    return fresh()


def counts(built):
    return built.added, built.changed, built.moved, built.removed, built.unchanged, built.embedded_rows


def paths(out, **options):
    index = Index.open(out)
    found = index.nearest(torch.eye(12)[:1], 50, **options).rows[0]
    return sorted(entry.path for entry in index.entries(found[found >= 0].tolist()))


def test_each_change_costs_what_it_should(folder, out):
    encoder = Colours()
    assert counts(build(out, folder, encoder, batch_size=4)) == (7, 0, 0, 0, 0, 7)
    assert encoder.calls == [4, 3]
    assert counts(build(out, folder, encoder)) == (0, 0, 0, 0, 7, 0)
    write_picture(folder / "0" / "0.png", 100)
    (folder / "0" / "1.png").rename(folder / "moved.png")
    (folder / "0" / "2.png").unlink()
    shutil.copy(folder / "1" / "3.png", folder / "copy.png")
    write_picture(folder / "new.png", 101)
    assert counts(build(out, folder, encoder)) == (2, 1, 1, 1, 4, 2)
    assert sum(encoder.calls) == 9
    index = Index.open(out)
    assert index.facts()["files"] == 8
    assert index.facts()["rows"] == 7
    (row,) = index.find("copy.png")
    (entry,) = index.entries([row])
    assert (entry.path, entry.copies) == ("1/3.png", (f"{folder}/copy.png",))
    assert (entry.width_px, entry.height_px, entry.kind) == (30, 24, "picture")
    assert index.find("0/1.png") == []


def test_vectors_are_the_encoders(folder, out, fresh):
    encoder = Colours()
    build(out, folder, encoder)
    index = Index.open(out)
    (row,) = index.find("1/4.png")
    other = fresh()
    again = build(other, folder / "1" / "4.png", encoder)
    assert counts(again) == (1, 0, 0, 0, 0, 1)
    one = Index.open(other)
    assert torch.equal(one.vectors([1]), index.vectors([row]))
    best = index.nearest(index.vectors([row]), 2)
    assert best.rows[0, 0] == row
    assert best.scores[0, 0] == pytest.approx(1, abs=1e-3)


def test_touched_file_is_hashed_and_not_embedded(folder, out):
    encoder = Colours()
    build(out, folder, encoder)
    os.utime(folder / "0" / "0.png", ns=(0, 1_000_000_000))
    assert counts(build(out, folder, encoder)) == (0, 0, 0, 0, 7, 0)
    assert Index.open(out).entries(Index.open(out).find("0/0.png"))[0].taken_at == "1970-01-01T00:00:01"


def test_unchanged_files_are_not_read(folder, out):
    build(out, folder, Colours())
    path = folder / "0" / "0.png"
    stat = path.stat()
    path.write_bytes(bytes(stat.st_size))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert counts(build(out, folder, Colours())) == (0, 0, 0, 0, 7, 0)


def test_broken_picture_is_listed_and_not_tried_again(folder, out, monkeypatch):
    (folder / "broken.png").write_bytes(b"nothing")
    first = build(out, folder, Colours())
    assert list(first.failures) == [f"{folder}/broken.png"]
    assert "not a picture" in first.failures[f"{folder}/broken.png"]
    assert counts(first) == (8, 0, 0, 0, 0, 7)
    monkeypatch.setattr("openvocab.search.contents._read", lambda *_: pytest.fail("read"))
    again = build(out, folder, Colours())
    assert again.failures == first.failures
    monkeypatch.undo()
    write_picture(folder / "broken.png", 8)
    assert counts(build(out, folder, Colours())) == (0, 1, 0, 0, 7, 1)
    assert build(out, folder, Colours()).failures == {}


def test_a_broken_picture_is_called_by_each_of_its_names(folder, out):
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(b"nothing")
    (folder / "a.mp4").write_bytes(b"nothing either")
    build(out, folder, Colours())
    (folder / "a.png").rename(folder / "c.png")
    (folder / "a.mp4").rename(folder / "b.mp4")
    for path, reason in build(out, folder, Colours()).failures.items():
        assert reason.startswith(f"{os.path.basename(path)}: not a ")
        assert reason.count(": ") == 1


def test_vectors_that_are_not_finite_are_failures(folder, out):
    class Broken(Colours):
        def images(self, pixels):
            return super().images(pixels).index_fill(0, torch.tensor([2]), torch.nan)

    built = build(out, folder, Broken())
    assert list(built.failures) == [f"{folder}/0/2.png"]
    assert built.failures[f"{folder}/0/2.png"] == "0/2.png: its embedding is not finite"
    assert len(paths(out)) == 6


def test_tar_members_are_places(folder, out, tmp_path):
    with tarfile.open(folder / "a.tar", "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.add(path, path.relative_to(folder).as_posix())
        archive.addfile(tarfile.TarInfo("note.txt"), io.BytesIO())
    encoder = Colours()
    assert counts(build(out, folder, encoder)) == (14, 0, 0, 0, 0, 7)
    shutil.rmtree(folder / "0")
    assert counts(build(out, str(folder / "{a,a}.tar"), encoder)) == (0, 0, 0, 0, 7, 0)
    assert counts(build(out, folder, encoder)) == (0, 0, 0, 3, 11, 0)
    index = Index.open(out)
    (entry,) = index.entries(index.find("a.tar/0/0.png"))
    assert entry.path == "a.tar/0/0.png"
    assert np.asarray(Image.open(io.BytesIO(index.read(entry)))).shape == (24, 30, 3)
    assert index.file(entry) == folder / "a.tar"
    (folder / "a.tar").unlink()
    with pytest.raises(FileNotFoundError, match="gone since"):
        index.read(entry)


def test_several_roots_live_in_one_index(folder, out, tmp_path):
    other = write_picture(tmp_path / "other" / "x.png", 50).parent
    encoder = Colours()
    build(out, folder, encoder)
    assert counts(build(out, other, encoder)) == (1, 0, 0, 0, 0, 1)
    assert counts(build(out, [folder, other], encoder)) == (0, 0, 0, 0, 8, 0)
    assert Index.open(out).facts()["roots"] == [str(folder), str(other)]
    (folder / "2" / "6.png").unlink()
    assert counts(build(out, other, encoder)) == (0, 0, 0, 0, 1, 0)


def test_a_source_that_is_gone_removes_nothing(folder, out):
    build(out, folder, Colours())
    folder.rename(folder.with_name("away"))
    with pytest.raises(FileNotFoundError, match="no such folder"):
        build(out, folder, Colours())
    assert len(paths(out)) == 7


def test_what_is_below_a_folder_that_cannot_be_listed_stays(folder, out, monkeypatch):
    build(out, folder, Colours())
    (folder / "1" / "3.png").unlink()
    (folder / "2" / "6.png").unlink()
    whole = os.scandir

    def refused(path):
        if str(path).endswith("1/"):
            raise PermissionError(13, "Permission denied")
        return whole(path)

    monkeypatch.setattr(os, "scandir", refused)
    built = build(out, folder, Colours())
    assert (built.removed, built.unchanged) == (1, 3)
    assert built.failures == {f"{folder}/1/": "1/: cannot be listed (Permission denied)"}
    assert "1/3.png" in paths(out)


def test_a_link_that_cannot_be_followed_hides_nothing_else(folder, out):
    build(out, folder, Colours())
    shutil.copy(folder / "0" / "0.png", folder / "1.png")
    (folder / "1.png").rename(folder / "1" / "after.png")
    for name in ("0/0.png", "1/itself.png"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(folder / name)
    os.mkfifo(folder / "pipe.png")
    built = build(out, folder, Colours())
    assert counts(built) == (1, 0, 0, 0, 6, 0)
    reason = "cannot be read (Too many levels of symbolic links)"
    assert built.failures == {f"{folder}/{name}": f"{name}: {reason}" for name in ("0/0.png", "1/itself.png")}
    assert Index.open(out).find("0/0.png")  # as long as nobody knows what became of it


def test_vectors_that_are_forgotten_make_room(folder, tmp_path):
    out = tmp_path / "index"
    for number in range(20):
        write_picture(folder / "many" / f"{number}.png", 100 + number)
    build(out, folder, Colours())
    reader = Index.open(out)
    query = reader.vectors(reader.find("2/6.png"))
    for number in range(0, 20, 2):
        (folder / "many" / f"{number}.png").unlink()
    assert counts(build(out, folder, Colours())) == (0, 0, 0, 10, 17, 0)
    (row,) = reader.find("2/6.png")
    assert reader.nearest(query, 1).rows.tolist() == [[row]]
    assert torch.equal(reader.vectors([row]), query)
    write_picture(folder / "new.png", 200)
    build(out, folder, Colours(), batch_size=1)
    (file,) = (out / "vectors").iterdir()
    assert (file.name, file.stat().st_size) == ("000001.f16", 18 * 12 * 2)
    build(tmp_path / "fresh", folder, Colours(), batch_size=1)
    assert Index.open(out).facts()["rows"] == 18
    for path in ("new.png", "many/19.png", "0/0.png"):
        (row,), (other,) = Index.open(out).find(path), Index.open(tmp_path / "fresh").find(path)
        found, expected = Index.open(out).vectors([row]), Index.open(tmp_path / "fresh").vectors([other])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_a_folder_that_nobody_may_write_to_is_read(folder, tmp_path, monkeypatch):
    build(tmp_path / "index", folder, Colours())
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert len(paths(tmp_path / "index")) == 7
    assert {path.name for path in (tmp_path / "index").iterdir()} == {"index.sqlite", "vectors", "writer.lock"}


def test_the_digest_does_not_say_which_source_came_first(folder, fresh):
    one, other, less = fresh(), fresh(), fresh()
    for out, sources in ((one, "012"), (other, "201"), (less, "01")):
        for source in sources:
            build(out, folder / source, Colours())
    assert Index.open(one).digest() == Index.open(other).digest() != Index.open(less).digest()


def test_who_may_not_write_reads_what_a_writer_commits(folder, tmp_path, monkeypatch):
    build(tmp_path / "index", folder, Colours())
    with contextlib.closing(Index.open(tmp_path / "index")):  # so that what is committed stays beside the tables
        write_picture(folder / "new.png", 200)
        build(tmp_path / "index", folder, Colours())
        monkeypatch.setattr(os, "access", lambda *_: False)
        assert len(paths(tmp_path / "index")) == 8
        shutil.copytree(tmp_path / "index", tmp_path / "copy", ignore=shutil.ignore_patterns("*-shm"))
    with pytest.raises(OSError, match="a build was cut off, and nothing can be written"):
        Index.open(tmp_path / "copy")


def test_exif_says_when_and_which_way_up(folder, out):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769)[0x9003] = "2021:03:04 05:06:07"
    write_picture(folder / "turned.jpg", 9, exif=exif)
    build(out, folder, Colours())
    index = Index.open(out)
    (entry,) = index.entries(index.find("turned.jpg"))
    assert (entry.width_px, entry.height_px, entry.taken_at) == (24, 30, "2021-03-04T05:06:07")
    assert paths(out, where=Where(since="2021-03-04", until="2021-03-05")) == ["turned.jpg"]
    assert "turned.jpg" not in paths(out, where=Where(since="2021-03-05"))


def test_filters(folder, out):
    build(out, folder, Colours())
    assert paths(out, where=Where(folder="1")) == ["1/3.png", "1/4.png", "1/5.png"]
    assert paths(out, where=Where(folder="")) == paths(out)
    assert paths(out, where=Where(path="2/6.png")) == ["2/6.png"]
    assert paths(out, where=Where(kind="video")) == []
    index, above = Index.open(out), str(folder.parent)
    assert [index.count(Where(folder=folder)) for folder in ("1", "./1//", "1/2", "", above)] == [3, 3, 0, 7, 7]
    assert [index.count(Where(folder=f"{folder}{below}")) for below in ("", "/", "/1", "/1/")] == [7, 7, 3, 3]
    with pytest.raises(ValueError, match="folder '/elsewhere': lies in none of the indexed ones"):
        index.count(Where(folder="/elsewhere"))


def test_a_filter_that_was_asked_before_sees_what_a_later_build_brings(folder, out):
    build(out, folder, Colours())
    index, where = Index.open(out), Where(folder="1")
    for there in ({"1/3.png", "1/4.png", "1/5.png"}, {"1/4.png", "1/5.png", "1/9.png"}):
        for _ in range(2):
            rows = index.nearest(torch.eye(12)[:1], 50, where).rows[0]
            assert {entry.path for entry in index.entries(rows[rows >= 0].tolist())} == there
        write_picture(folder / "1" / "9.png", 9)
        (folder / "1" / "3.png").unlink(missing_ok=True)
        build(out, folder, Colours())


def test_other_models_and_settings_are_refused(folder, out):
    build(out, folder, Colours())
    other = Colours()
    other.fingerprint = "other"
    with pytest.raises(ValueError, match=r"made by colours \(c0105\) in torch float32, not by colours \(other\)"):
        build(out, folder, other)
    with pytest.raises(ValueError, match=r"made with fps 1.0, not 2.0"):
        build(out, folder, Colours(), fps=2.0)
    index = Index.open(out)
    index.check("c0105", "torch float32")
    with pytest.raises(
        ValueError, match=r"made by colours .c0105. in torch float32, the queries by c0105 in torch bfloat16"
    ):
        index.check("c0105", "torch bfloat16")
    with pytest.raises(ValueError, match="queries have 3 numbers, the index 12"):
        index.nearest(torch.zeros(1, 3), 1)


def test_no_index_is_one_line(fresh):
    with pytest.raises(ValueError, match="holds no index"):
        Index.open(fresh())


def test_damage_is_one_line_that_names_the_file(folder, tmp_path):
    out = tmp_path / "index"
    build(out, folder, Colours())
    (vectors,) = out.glob("vectors/*")
    os.truncate(vectors, 24)
    with pytest.raises(ValueError, match=r"000000.f16: lacks some of the 7 vectors"):
        Index.open(out).nearest(torch.eye(12)[:1], 1)
    vectors.unlink()
    with pytest.raises(ValueError, match=r"000000.f16: lacks some of the 7 vectors"):
        Index.open(out).nearest(torch.eye(12)[:1], 1)
    tables = out / "index.sqlite"
    size_bytes = tables.stat().st_size
    with tables.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size_bytes - 4096))
    with pytest.raises(OSError, match=r"index.sqlite: cannot be used as an index \("):
        Index.open(out).find("0/0.png")
    tables.write_bytes(b"no tables, but words" * 100)
    for act in (lambda: Index.open(out), lambda: build(out, folder, Colours())):
        with pytest.raises(OSError, match=r"index.sqlite: cannot be used as an index \("):
            act()


def test_a_lock_that_cannot_be_had_for_another_reason_names_it(folder, tmp_path):
    build(tmp_path / "index", folder, Colours())
    (tmp_path / "index" / "writer.lock").write_bytes(b"no lock, but words" * 100)
    with pytest.raises(ValueError, match=r"index: file is not a database$"):
        build(tmp_path / "index", folder, Colours())


def test_a_folder_takes_one_builder_at_a_time(folder, tmp_path):
    class Impatient(Colours):
        def images(self, pixels):
            with pytest.raises(ValueError, match="another process builds this index"):
                build(tmp_path / "index", folder, Colours())
            return super().images(pixels)

    build(tmp_path / "index", folder, Impatient())
    assert len(paths(tmp_path / "index")) == 7


def test_shards_together_are_the_whole(folder, out):
    parts = [build(out, folder, Colours(), shard=(index, 3)) for index in range(3)]
    assert sum(part.added for part in parts) == 7
    assert len(paths(out)) == 7
    with pytest.raises(ValueError, match="expected i/n"):
        build(out, folder, Colours(), shard=(3, 3))


def test_tiles_have_vectors_of_their_own(folder, out):
    wide = np.full((40, 120, 3), RGB["grey"], np.uint8)
    wide[:, :40] = RGB["red"]
    Image.fromarray(wide).save(folder / "wide.png")
    encoder = Colours()
    built = build(out, folder, encoder, levels=2, batch_size=4)
    assert built.embedded_rows > 8
    assert max(encoder.calls) <= 4
    index = Index.open(out)
    best = index.nearest(encoder.texts(["red"]), 1)
    (entry,) = index.entries(best.rows[0].tolist())
    assert entry.path == "wide.png"
    assert entry.tile > 0
    assert best.scores[0, 0] > 0.99
    assert [entry.tile for entry in index.entries(index.find("wide.png"))] == list(range(len(index.find("wide.png"))))


def test_videos_are_rows_of_time(folder, out):
    red = lambda number: plain("red" if 30 <= number < 60 else "blue", 48, 64)  # noqa: E731
    write_video(folder / "a.mp4", 90, rate=10, show=red)
    (folder / "broken.mp4").write_bytes(b"nothing")
    encoder = Colours()
    built = build(out, folder, encoder, fps=2.0)
    assert counts(built) == (9, 0, 0, 0, 0, 10)
    assert list(built.failures) == [f"{folder}/broken.mp4"]
    index = Index.open(out)
    entries = index.entries(index.find("a.mp4"))
    assert [(entry.kind, entry.start_s, entry.end_s) for entry in entries] == [
        ("video", 0.0, 3.0),
        ("video", 3.0, 6.0),
        ("video", 6.0, 9.0),
    ]
    assert entries[0].duration_s == pytest.approx(9)
    assert (entries[0].width_px, entries[0].height_px) == (64, 48)
    best = index.nearest(encoder.texts(["red"]), 1, Where(kind="video"))
    assert index.entries(best.rows[0].tolist())[0].start_s == 3.0
    (folder / "a.mp4").rename(folder / "b.mp4")
    assert counts(build(out, folder, encoder, fps=2.0)) == (0, 0, 1, 0, 8, 0)
