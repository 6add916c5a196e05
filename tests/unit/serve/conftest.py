import base64
import io
import tarfile

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from tiny import tiny_clip, write_picture
from videos import write_video

from openvocab.clip.encoder import encoder
from openvocab.search.build import build
from openvocab.search.index import Index
from openvocab.serve.app import create, systems_of
from openvocab.serve.options import Options


@pytest.fixture(scope="session")
def clip():
    return tiny_clip()


@pytest.fixture(scope="session")
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 30, 3), np.uint8))


@pytest.fixture(scope="session")
def image(picture):
    """The picture as a caller sends it."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture(scope="session")
def app(clip):
    """With some options, and without an index."""

    def made(**options):
        return create(encoder(clip, precision="float32"), systems=systems_of(clip, []), options=Options(**options))

    return made


@pytest.fixture(scope="module")
def client(app):
    with TestClient(app(), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder with pictures, a tar file and a video."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(6):
        write_picture(folder / "walks" / f"{number}.png", number)
    with tarfile.open(folder / "more.tar", "w") as tar:
        tar.add(write_picture(folder.parent / "aside" / "7.png", 7), "seven.png")
    write_video(folder / "ducks.mp4", 60, rate=20)
    return folder


@pytest.fixture(scope="session")
def index(photos, clip, tmp_path_factory):
    out = tmp_path_factory.mktemp("index") / "holidays"
    build(out, photos, encoder(clip, precision="float32"))
    opened = Index.open(out)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def searching(clip, index):
    """With an index, and some options."""

    def made(**options):
        return create(encoder(clip, precision="float32"), index, {}, Options(**options), "holidays")

    return made
