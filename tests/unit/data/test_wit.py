import base64
import http.server
import threading
from typing import ClassVar

import pytest
from made import encode, noise

from openvocab.data.download import download
from openvocab.data.pairs import open_pairs
from openvocab.data.wit import COLUMNS


def write_wit(path, rows, extra=()):
    columns = (*COLUMNS, *extra)
    lines = ["\t".join(columns)] + ["\t".join(row.get(name, "") for name in columns) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


URL = "https://upload.wikimedia.org/wikipedia/commons/a/ab/Cat%20{}.png"


@pytest.fixture
def rows():
    row = {"language": "en", "mime_type": "image/png"}
    return [
        row | {"image_url": URL.format(0), "caption_reference_description": "a cat", "page_title": "Cat"},
        row | {"image_url": URL.format(1), "caption_reference_description": ""},
        row | {"image_url": URL.format(0), "caption_reference_description": "eine Katze", "language": "de"},
        row | {"image_url": URL.format(2), "caption_alt_text_description": "alt", "language": "de"},
    ]


def test_pictures_from_a_local_folder_by_the_end_of_the_url_or_its_path(tmp_path, rows):
    path = write_wit(tmp_path / "wit.tsv", rows)
    (tmp_path / "Cat 0.png").write_bytes(encode(noise(0)))
    mirrored = tmp_path / "wikipedia/commons/a/ab"
    mirrored.mkdir(parents=True)
    (mirrored / "Cat 2.png").write_bytes(encode(noise(2)))
    pairs = open_pairs(path)
    assert len(pairs) == 1
    assert pairs.captions(0) == ("a cat", "eine Katze")
    assert open_pairs(path, language="de").captions(0) == ("eine Katze",)
    alt = open_pairs(path, caption_key="caption_alt_text_description")
    assert alt[0].image.tobytes() == noise(2).tobytes()


def test_pictures_from_a_base64_column(tmp_path, rows):
    rows[0]["b64_bytes"] = base64.b64encode(encode(noise(7))).decode()
    rows[2]["b64_bytes"] = "not base64!"
    pairs = open_pairs(write_wit(tmp_path / "wit.tsv", rows, ("b64_bytes",)))
    assert len(pairs) == 1
    assert pairs[0].image.tobytes() == noise(7).tobytes()
    assert pairs.excluded == {"wit.tsv:4": "the row names no picture"}


def test_what_is_missing_is_one_line(tmp_path, rows):
    path = write_wit(tmp_path / "wit.tsv", rows)
    with pytest.raises(ValueError, match=r"holds none of the table's 2 pictures.*download=true fetches them"):
        open_pairs(path)
    with pytest.raises(ValueError, match="none of 4 rows is in language fr"):
        open_pairs(path, language="fr")
    with pytest.raises(ValueError, match="no caption column 'caption'; it has language"):
        open_pairs(path, caption_key="caption")


@pytest.fixture
def server():
    """A web server on this machine that serves `files`, is busy once for each path and notes what it was asked for."""

    class Handler(http.server.BaseHTTPRequestHandler):
        files: ClassVar[dict[str, bytes]] = {"/a/Cat%200.png": encode(noise(0)), "/a/large.png": bytes(2000)}
        asked: ClassVar[list[str]] = []

        def do_GET(self):
            self.asked.append(self.path)
            content = self.files.get(self.path)
            if self.asked.count(self.path) == 1 and content:
                self.send_response(429)
                self.send_header("Retry-After", "0")
                self.end_headers()
                return
            self.send_response(200 if content else 404)
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", Handler
        server.shutdown()


def test_pictures_are_downloaded_when_asked_and_only_once(tmp_path, rows, server, capsys):
    address, handler = server
    rows[0]["image_url"] = rows[2]["image_url"] = f"{address}/a/Cat%200.png"
    rows.append(rows[0] | {"image_url": f"{address}/gone.png", "caption_reference_description": "gone"})
    path = write_wit(tmp_path / "wit.tsv", rows[:3] + rows[4:])
    with pytest.raises(ValueError, match="download=true"):
        open_pairs(path)
    assert not handler.asked
    pairs = open_pairs(path, download=True)
    assert pairs[0].image.tobytes() == noise(0).tobytes()
    assert (tmp_path / "a" / "Cat 0.png").is_file()
    assert pairs.excluded == {"wit.tsv:5": "the row names no picture"}
    assert (
        f"1 of 2 pictures could not be downloaded; the first, {address}/gone.png: HTTP 404" in capsys.readouterr().err
    )
    open_pairs(path, download=True)
    assert handler.asked.count("/a/Cat%200.png") == 2


def test_downloads_that_fail_leave_no_file(tmp_path, server):
    address, _ = server
    places = {f"{address}/a/large.png": tmp_path / "x" / "large.png", "file:///etc/passwd": tmp_path / "passwd"}
    places["http://127.0.0.1:1/a.png"] = tmp_path / "a.png"
    failed = download(places, max_bytes=1000)
    assert failed[f"{address}/a/large.png"] == "more than 1000 bytes"
    assert failed["file:///etc/passwd"] == "not a web address"
    assert "refused" in failed["http://127.0.0.1:1/a.png"]
    assert not [found for found in tmp_path.rglob("*") if found.is_file()]
