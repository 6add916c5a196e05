import base64
import io
import shutil

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from tiny import tiny_clip, write_picture

from openvocab.clip.encoder import encoder
from openvocab.search.build import build
from openvocab.search.index import Index
from openvocab.search.queries import Term, search
from openvocab.serve.app import create


@pytest.fixture(scope="module")
def client(searching):
    with TestClient(searching(), raise_server_exceptions=False) as client:
        yield client


def found(client, *terms, **asked):
    answer = client.post("/api/search", json={"terms": list(terms), **asked})
    assert answer.status_code == 200, answer.text
    return answer.json()["hits"]


def test_search_finds_what_the_index_finds(client, index, clip):
    hits = found(client, {"text": "a red square"}, {"text": "blue", "weight": -0.5}, k=4, group=False)
    terms = [Term(text="a red square"), Term(text="blue", weight=-0.5)]
    wanted = search(index, encoder(clip, precision="float32"), terms, k=4, group=False)
    assert [hit["row"] for hit in hits] == [hit.entry.row for hit in wanted]
    assert [hit["score"] for hit in hits] == pytest.approx([hit.score for hit in wanted], abs=1e-5)
    assert [hit["probability"] for hit in hits] == pytest.approx([hit.probability for hit in wanted], abs=1e-4)


def test_a_picture_finds_itself_and_a_row_others(client, photos, index):
    content = (photos / "walks" / "3.png").read_bytes()
    (first, *_) = found(client, {"image": base64.b64encode(content).decode()}, group=False)
    assert first["path"] == "walks/3.png"
    assert first["score"] > 0.999
    assert (first["width_px"], first["height_px"]) == (30, 24)
    (row,) = index.find("walks/3.png")
    assert "walks/3.png" not in [hit["path"] for hit in found(client, {"row": row})]


def test_filters_and_moments(client):
    paths = {hit["path"] for hit in found(client, {"text": "x"}, folder="walks", group=False)}
    assert paths == {f"walks/{number}.png" for number in range(6)}
    (video,) = found(client, {"text": "x"}, kind="video")
    assert video["path"] == "ducks.mp4"
    assert video["moments"][0][0] < video["moments"][0][1] <= video["duration_s"] + 0.1
    assert found(client, {"text": "x"}, until="1990-01-01") == []


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"terms": []}, "at least 1 item"),
        ({"terms": [{}]}, "a text, an image or a row"),
        ({"terms": [{"text": "a", "row": 1}]}, "a text, an image or a row"),
        ({"terms": [{"text": "a", "weight": -1}]}, "a term that counts above 0"),
        ({"terms": [{"row": 999_999}]}, "row 999999 is not in the index"),
        ({"terms": [{"text": "a"}], "k": 0}, "k: Input should be greater"),
        ({"terms": [{"text": "a"}], "since": "yesterday"}, "since: String should match"),
    ],
)
def test_what_cannot_be_searched(client, asked, said):
    refused = client.post("/api/search", json=asked)
    assert refused.status_code == 422
    assert said in refused.json()["error"]


def test_thumbnails_are_made_in_few_sizes(client, photos, index):
    (row,) = index.find("walks/2.png")
    for size in (1, 100, 128):
        shown = client.get(f"/api/thumbnail/{row}?size={size}")
        assert shown.headers["content-type"] == "image/jpeg"
        assert shown.headers["x-content-type-options"] == "nosniff"
        assert Image.open(io.BytesIO(shown.content)).size == (30, 24)
    assert client.get(f"/api/thumbnail/{row}?size=5000").status_code == 422
    for row in (*index.find("ducks.mp4"), *index.find("more.tar/seven.png")):
        assert client.get(f"/api/thumbnail/{row}").status_code == 200


def test_media_come_whole_and_in_parts(client, photos, index):
    content, (row, *_) = (photos / "ducks.mp4").read_bytes(), index.find("ducks.mp4")
    whole = client.get(f"/api/media/{row}")
    assert whole.content == content
    assert whole.headers["content-type"] == "video/mp4"
    assert whole.headers["accept-ranges"] == "bytes"
    part = client.get(f"/api/media/{row}", headers={"range": "bytes=10-19"})
    assert part.status_code == 206
    assert part.content == content[10:20]
    assert part.headers["content-range"] == f"bytes 10-19/{len(content)}"
    assert client.get(f"/api/media/{row}", headers={"range": f"bytes={len(content)}-"}).status_code == 416
    assert int(client.head(f"/api/media/{row}").headers["content-length"]) == len(content)
    (row,) = index.find("more.tar/seven.png")
    member = client.get(f"/api/media/{row}")
    assert Image.open(io.BytesIO(member.content)).size == (30, 24)
    assert member.headers["content-type"] == "image/png"


@pytest.mark.parametrize("row", ["999999", "-1", "x", "1e3", "..%2f..%2fetc%2fpasswd", "99999999999999999999"])
def test_only_rows_of_the_index_are_shown(client, row):
    for path in ("media", "thumbnail"):
        refused = client.get(f"/api/{path}/{row}")
        assert refused.status_code in (404, 422)
        assert list(refused.json()) == ["error"]


def test_a_link_that_leads_out_of_the_folder_is_not_followed(tmp_path, clip):
    folder = tmp_path / "photos"
    for number in range(3):
        write_picture(folder / f"{number}.png", number)
    secret = write_picture(tmp_path / "secret.png", 9)
    made = encoder(clip, precision="float32")
    build(tmp_path / "index", folder, made)
    index = Index.open(tmp_path / "index")
    rows = [index.find(f"{number}.png")[0] for number in range(3)]
    (folder / "0.png").unlink()
    (folder / "0.png").symlink_to(secret)
    (folder / "1.png").unlink()
    shutil.copy(folder / "2.png", folder / "inside.png")
    (folder / "1.png").symlink_to(folder / "inside.png")
    (folder / "2.png").unlink()
    with TestClient(create(made, index)) as client:
        for kind in ("media", "thumbnail"):
            out = client.get(f"/api/{kind}/{rows[0]}")
            assert out.status_code == 404
            assert out.json() == {"error": "0.png is a link to elsewhere"}
            assert client.get(f"/api/{kind}/{rows[1]}").status_code == 200
            gone = client.get(f"/api/{kind}/{rows[2]}")
            assert gone.json() == {"error": "2.png: gone since it was indexed"}
    index.close()


def test_an_index_of_another_model_is_refused(index):
    with pytest.raises(ValueError, match="vectors of the two do not compare"):
        create(encoder(tiny_clip(seed=5), precision="float32"), index)


def test_about_tells_of_the_index_but_not_of_the_machine(client, photos):
    about = client.get("/api/about")
    assert about.json()["index"]["pictures"] == 7
    assert about.json()["index"]["videos"] == 1
    assert "search" in about.json()["verbs"]
    assert str(photos) not in about.text
    assert str(photos) not in str(found(client, {"text": "x"}))


def test_without_an_index_the_way_to_one_is_said(app):
    with TestClient(app()) as client:
        refused = client.post("/api/search", json={"terms": [{"text": "a"}]})
        assert refused.status_code == 404
        assert "--index" in refused.json()["error"]
        assert client.get("/api/thumbnail/1").status_code == 404
        assert client.get("/api/about").json()["index"] is None
