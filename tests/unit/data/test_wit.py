import base64

import pytest
from made import encode, noise

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
    with pytest.raises(ValueError, match=r"holds none of the table's 2 pictures.*nothing is fetched here"):
        open_pairs(path)
    with pytest.raises(ValueError, match="none of 4 rows is in language fr"):
        open_pairs(path, language="fr")
    with pytest.raises(ValueError, match="no caption column 'caption'; it has language"):
        open_pairs(path, caption_key="caption")
