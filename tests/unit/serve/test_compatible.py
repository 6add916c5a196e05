"""Clients that others wrote, unchanged, against a real server."""

import base64
import importlib.util
import json
import subprocess
import sys
import zipfile

import numpy as np
import openai
import pytest
from fastapi.testclient import TestClient
from serving import running, url


@pytest.fixture(scope="module")
def address(searching):
    with running(searching()) as address:
        yield url(address)


@pytest.fixture(scope="module")
def client(searching):
    with TestClient(searching(), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def clip_client(tmp_path_factory):
    """clip-retrieval's own client file: fetched without what it depends on, loaded by its path, not installed."""
    folder = tmp_path_factory.mktemp("clip_retrieval")
    fetch = ["pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    done = subprocess.run([sys.executable, "-m", *fetch, "clip-retrieval"], capture_output=True, text=True)
    assert not done.returncode, f"clip-retrieval could not be downloaded: {done.stderr}"
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        file = wheel.extract("clip_retrieval/clip_client.py", folder)
    spec = importlib.util.spec_from_file_location("clip_client", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_clip_retrievals_own_client_finds_what_search_finds(clip_client, address, client, photos):
    asking = clip_client.ClipClient(f"{address}/knn-service", "holidays", num_images=5)
    found = asking.query(text="a red square")
    wanted = client.post("/api/search", json={"terms": [{"text": "a red square"}], "k": 5}).json()["hits"]
    assert [row["id"] for row in found] == [hit["row"] for hit in wanted]
    assert [row["similarity"] for row in found] == pytest.approx([hit["score"] for hit in wanted], abs=1e-5)
    best = asking.query(image=str(photos / "walks" / "4.png"))[0]
    assert best["image_path"] == "walks/4.png"
    assert best["url"] == f"{address}/api/media/{best['id']}"
    vector = client.post("/api/embed", json={"texts": ["a red square"]}).json()["vectors"][0]
    assert asking.query(embedding_input=vector)[0]["id"] == found[0]["id"]


def test_clip_retrievals_own_client_is_told_what_is_wrong(clip_client, address):
    wrong = clip_client.ClipClient(f"{address}/knn-service", "laion5B").query(text="a")
    assert wrong == {"error": "no index 'laion5B'; this server has 'holidays'"}
    there = clip_client.ClipClient(f"{address}/knn-service", "holidays").query(image="http://127.0.0.1/x.png")
    assert "addresses are not fetched" in there["error"]


def test_more_of_clip_retrievals_back_end(client, index):
    assert client.get("/indices-list").json() == ["holidays"]
    asked = {"text": "a", "modality": "image", "num_images": 2, "num_result_ids": 4, "indice_name": None}
    found = client.post("/knn-service", content=json.dumps(asked)).json()
    assert [sorted(row) for row in found[:2]] == [["caption", "id", "image_path", "similarity", "url"]] * 2
    assert [sorted(row) for row in found[2:]] == [["id", "similarity"]] * 2
    known = client.post("/metadata", json={"ids": [found[0]["id"]], "indice_name": "holidays"}).json()
    assert known[0]["id"] == found[0]["id"]
    assert known[0]["metadata"]["image_path"] == found[0]["image_path"]
    assert "Among" in client.get("/metrics-summary").text
    assert client.post("/knn-service", json={"embedding_input": [1.0], "modality": "image"}).status_code == 422
    assert client.post("/knn-service", json={"modality": "image"}).status_code == 422
    assert client.post("/knn-service", json=asked | {"modality": "text"}).status_code == 422


@pytest.fixture(scope="module")
def embeddings(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as asking:
        yield asking.embeddings


def test_openais_client_gets_the_models_vectors(embeddings, clip):
    wanted = clip.embed_texts(["a cat", "a dog"]).numpy()
    found = embeddings.create(input=["a cat", "a dog"], model="tiny")  # in base64, as the client asks unless told
    assert np.allclose([row.embedding for row in found.data], wanted, atol=1e-5)
    assert [row.index for row in found.data] == [0, 1]
    one = embeddings.create(input="a cat", model="tiny", encoding_format="float", dimensions=8)
    assert np.allclose(one.data[0].embedding, wanted[0], atol=1e-5)


def test_openais_client_sends_pictures_as_typed_objects(embeddings, clip, picture, image):
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}}
    found = embeddings.create(input=[part, "a cat"], model="tiny")
    assert np.allclose(found.data[0].embedding, clip.embed_images([picture])[0].numpy(), atol=1e-2)
    assert np.allclose(found.data[1].embedding, clip.embed_texts(["a cat"])[0].numpy(), atol=1e-5)


def test_a_string_is_a_text_whatever_it_looks_like(embeddings, clip, image):
    for text in ("http://127.0.0.1/x.png", "file:///etc/passwd", "data:image/png;base64,AAAA"):
        found = embeddings.create(input=text, model="tiny")
        assert np.allclose(found.data[0].embedding, clip.embed_texts([text])[0].numpy(), atol=1e-5)


def test_openais_client_is_told_what_is_wrong(embeddings):
    with pytest.raises(openai.NotFoundError, match="this server has 'tiny'"):
        embeddings.create(input="a", model="text-embedding-3-small")
    for wrong, said in (
        ({"dimensions": 4}, "vectors have 8, uncut"),
        ({"input": [1, 2, 3]}, "valid string"),
        ({"input": "word " * 100}, "the limit is 77"),
    ):
        with pytest.raises(openai.UnprocessableEntityError, match=said):
            embeddings.create(**{"input": "a", "model": "tiny", **wrong})


def test_openais_client_shows_its_key(searching):
    with running(searching(api_key="secret"), api_key="secret") as address:
        for key, right in (("secret", True), ("other", False)):
            with openai.OpenAI(base_url=f"{url(address)}/v1", api_key=key, max_retries=0) as asking:
                if right:
                    assert len(asking.embeddings.create(input="a", model="tiny").data) == 1
                else:
                    with pytest.raises(openai.AuthenticationError, match="an API key is needed"):
                        asking.embeddings.create(input="a", model="tiny")


def test_models_are_listed(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none") as asking:
        assert [model.id for model in asking.models.list()] == ["tiny"]


def test_base64_is_little_endian_float32(client, clip):
    asked = {"input": "a cat", "model": "tiny", "encoding_format": "base64"}
    content = client.post("/v1/embeddings", json=asked).json()["data"][0]["embedding"]
    assert np.allclose(np.frombuffer(base64.b64decode(content), "<f4"), clip.embed_texts(["a cat"])[0], atol=1e-5)
