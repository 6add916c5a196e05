import base64
import io

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from tiny import tiny_clip

from openvocab.clip.encoder import encoder
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
