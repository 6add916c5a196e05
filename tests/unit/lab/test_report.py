import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from openvocab.lab import report


def test_the_page_is_self_contained_and_well_formed(tmp_path):
    pictures = np.zeros((2, 3, 4, 4), np.uint8)
    body = report.curve([(0, 3.0), (10, 1.0)], "step", "loss", [(0, 2.0), (10, 2.0)]) + report.tiles(
        pictures, ["one", "two"]
    )
    report.write(tmp_path / "r.html", "A <title>", "lead", [report.Section("Part", "1 < 2", body)])
    page = (tmp_path / "r.html").read_text()
    assert "A &lt;title&gt;" in page
    assert "1 &lt; 2" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    open_tags = []

    class Balanced(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "img", "br"):
                open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

    Balanced().feed(page)
    assert open_tags == []


def test_pictures_survive_the_trip():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 7), dtype=np.uint8)
    kind, content = report.png(pixels).split(",")
    assert kind == "data:image/png;base64"
    read = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
    assert np.array_equal(read.transpose(2, 0, 1), pixels)


def test_the_curve_spans_its_axes():
    svg = report.curve([(0, 5.0), (50, 2.5), (100, 0.0)], "step", "loss")
    points = [tuple(map(float, p.split(","))) for p in re.search(r'points="([^"]+)"', svg)[1].split()]
    assert points == [(48.0, 16.0), (252.0, 104.0), (456.0, 192.0)]


def test_tables_align_numbers_and_escape_text():
    shown = report.table(("name", "value"), [("<b>", 0.123456)])
    assert "&lt;b&gt;" in shown
    assert '<td class="number">0.1235</td>' in shown


def test_heat_marks_the_largest_entry_brightest():
    matrix = np.eye(3)
    figure = report.heat(matrix, "eye")
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", figure)[1]))))
    assert pixels[0, 0].sum() > pixels[0, 1].sum()
    assert "(0.00 to 1.00)" in figure
