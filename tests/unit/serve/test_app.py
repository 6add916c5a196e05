import asyncio
import base64
import copy
import io
import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from openvocab import loading
from openvocab.clip import relevance
from openvocab.clip.created import Drawing
from openvocab.clip.encoder import Encoder, encoder
from openvocab.clip.regions import Detection
from openvocab.serve.app import create, systems_of
from openvocab.serve.options import Options


def ask(client, path, **body):
    answer = client.post(f"/api/{path}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def wait_for(client):
    """Until it is ready."""
    for _ in range(10_000):
        if (health := client.get("/health")).status_code == 200:
            break
        time.sleep(0.01)
    return health.json()


def shown(data_url):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data_url.partition(",")[2]))))


def test_classify_says_what_the_model_says(client, clip, picture, image):
    found = ask(client, "classify", image=image, labels=["cat", "dog", "cow"], templates="imagenet7")
    wanted = clip.classify(picture, clip.vocabulary(["cat", "dog", "cow"], "imagenet7", cache=False))
    assert [row["label"] for row in found["labels"]] == [label for label, _ in wanted.top(3)[0]]
    scores = {row["label"]: row["score"] for row in found["labels"]}
    assert [scores[label] for label in wanted.labels] == pytest.approx(wanted.scores[0].tolist(), abs=1e-2)
    assert sum(row["probability"] for row in found["labels"]) == pytest.approx(1)
    assert found["kind"] == "softmax"
    assert found["model"] == {"name": "tiny", "fingerprint": "tiny0", "trained_on": None}


def test_embed_says_what_the_model_says(client, clip, picture, image):
    found = ask(client, "embed", texts=["a cat", "a dog", "a cat"])
    assert torch.tensor(found["vectors"]).allclose(clip.embed_texts(["a cat", "a dog", "a cat"]), atol=1e-5)
    assert found["fingerprint"] == clip.fingerprint
    found = ask(client, "embed", images=[image, f"data:image/png;base64,{image}"])
    assert torch.tensor(found["vectors"]).allclose(clip.embed_images([picture] * 2), atol=1e-2)


def test_explain_shows_where_and_which_words(client, clip, picture, image):
    found = ask(client, "explain", image=image, text="a red cat", others=["a dog"])
    wanted = relevance.explain(clip, picture, "a red cat", ["a dog"])
    assert found["score"] == pytest.approx(wanted.score, abs=1e-5)
    assert [row["word"] for row in found["words"]] == ["a", "red", "cat"]
    light = shown(found["map"])
    assert light.shape == (24, 30)
    assert light.argmax() == wanted.map.numpy().argmax()


def test_segment_colours_each_label(client, clip, picture, image):
    found = ask(client, "segment", image=image, labels=["cat", "dog"])
    wanted = loading.with_verb(clip, "segment").segment(picture, ["cat", "dog"])
    assert [row["area"] for row in found["labels"]] == pytest.approx(wanted.masks.double().mean((1, 2)).tolist())
    colours = shown(found["map"])
    for row, mask in zip(found["labels"], wanted.masks.numpy()):
        assert (colours[mask] == [*bytes.fromhex(row["colour"][1:]), 255]).all()


def test_pixels_that_fit_no_label_are_transparent(client, image):
    found = ask(client, "segment", image=image, labels=["cat", "dog"], none_below=1.0)
    assert (shown(found["map"]) == 0).all()


def test_depth_of_any_clip(client, image):
    found = ask(client, "depth", image=image)
    assert 0 < found["near_m"] <= found["median_m"] <= found["far_m"]
    assert shown(found["map"]).shape == (24, 30, 3)


@dataclass(frozen=True)
class Steps:
    steps: int = 250


class Artist:
    def __init__(self, config, clip):
        self.config, self.clip = config, clip

    def draw(self, prompt, negatives, *, seed):
        return Drawing(f"<svg>{prompt}{negatives}{seed}{self.config.steps}</svg>", torch.ones(3, 16, 16))


def test_drawings_come_as_strokes_and_as_pixels(clip):
    artist = Artist(Steps(), clip)
    with TestClient(create(encoder(clip, precision="float32"), systems={"draw": artist})) as client:
        found = ask(client, "draw", prompt="a cat", negatives=["a dog"], seed=3, steps=7)
    assert found["svg"] == "<svg>a cat['a dog']37</svg>"
    assert (shown(found["picture"]) == np.full((16, 16, 3), 255)).all()
    assert artist.config.steps == 250


def test_a_system_that_was_loaded_answers_its_verbs(clip):
    class Detector:
        def detect(self, picture, labels, *, templates, score_above):
            assert max(picture.size) == 1024
            box = torch.tensor([[0.0, 10.0, 1024.0, 512.0]])
            return Detection(tuple(labels), box, torch.tensor([1]), torch.tensor([0.5]))

    detector = Detector()
    served = systems_of(clip, [detector])
    assert served["detect"] is detector
    with pytest.raises(ValueError, match="a CLIP can do none of segment, detect"):
        systems_of(clip, [clip])
    shell = copy.copy(clip)
    shell._modules = clip._modules | {"image": torch.nn.Identity()}
    assert systems_of(shell, []) == {}  # an export has no tower that could be asked
    large = Image.new("RGB", (2048, 1024), "grey")
    file = io.BytesIO()
    large.save(file, "PNG")
    content = base64.b64encode(file.getvalue()).decode()
    with TestClient(create(encoder(clip, precision="float32"), systems=served)) as client:
        found = ask(client, "detect", image=content, labels=["cat", "dog"], score_above=0.0)
        assert (found["width_px"], found["height_px"]) == (2048, 1024)
        box = {"label": "dog", "score": 0.5, "box_xyxy_px": [0, 20, 2048, 1024], "span": None}
        assert found["boxes"] == [box]
        assert "detect" in client.get("/api/about").json()["verbs"]


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("classify", {"labels": []}, "labels: List should have at least 1 item"),
        ("classify", {"labels": ["a", "a"]}, "'a' is both label 1 and label 2"),
        ("classify", {"labels": ["a"], "templates": "/etc/passwd"}, "a template has {} for the label"),
        ("classify", {"labels": ["a"], "templates": ["/etc/passwd"]}, "a template has {} for the label"),
        ("classify", {"labels": ["a"], "templates": ["imagenet"]}, "a template has {} for the label"),
        ("classify", {"labels": [str(n) for n in range(1000)], "templates": "imagenet"}, "more than 4000 prompts"),
        ("classify", {"labels": ["a"], "image": "http://127.0.0.1:1/x.png"}, "addresses are not fetched"),
        ("classify", {"labels": ["1 " * 100]}, "the model reads 77"),
        ("embed", {}, "give texts or images, one of them"),
        ("embed", {"texts": ["word " * 100]}, "the limit is 77"),
        ("embed", {"texts": ["a"] * 257}, "at most 256 items"),
        ("embed", {"texts": ["a"], "more": 1}, "more: Extra inputs are not permitted"),
        ("embed", {"images": ["YQ=="]}, "image: not a JPEG, PNG"),
        ("explain", {"text": " "}, "the text is empty"),
        ("detect", {"labels": ["a"], "score_above": 2}, "score_above: Input should be less than or equal to 1"),
    ],
)
def test_what_cannot_be_answered_is_one_line(client, image, path, body, said):
    if path != "embed":
        body = {"image": image} | body
    refused = client.post(f"/api/{path}", json=body)
    assert refused.status_code == 422
    assert list(refused.json()) == ["error"]
    assert said in refused.json()["error"]
    assert len(refused.json()["error"].splitlines()) == 1


def test_what_is_not_there_is_a_404(client, image):
    assert "--system" in client.post("/api/detect", json={"image": image, "labels": ["a"]}).json()["error"]
    for path in ("/none", "/api/none", "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/page/index.html"):
        found = client.get(path)
        assert found.status_code == 404
        assert list(found.json()) == ["error"]
    assert client.get("/api/embed").status_code == 405


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[" * 100_000, b"null", b"[]", b'{"texts": [NaN]}', b'{"texts": ["\\ud800"]}', b"\xff\xfe",
        b'{"te\\ud800xts": 1}', b'{"texts": ' + b"1" * 5000 + b"}", b'{"texts": {"a": "b"}}',
    ],
)  # fmt: skip
def test_broken_json_is_the_callers_fault(client, content):
    refused = client.post("/api/embed", content=content, headers={"content-type": "application/json"})
    assert refused.status_code in (400, 422)
    assert list(refused.json()) == ["error"]


def test_about_health_and_metrics(client, image):
    assert wait_for(client) == {"status": "ready"}
    about = client.get("/api/about").json()
    assert about["model"]["fingerprint"] == "tiny0"
    assert about["embed_dim"] == 8
    assert about["numerics"] == "torch float32"
    assert about["verbs"] == ["classify", "embed", "explain", "segment", "depth", "draw"]
    ask(client, "embed", texts=["metrics"])
    ask(client, "embed", texts=["metrics"])
    text = client.get("/metrics").text
    assert 'openvocab_requests_total{route="/api/embed",status="200"}' in text
    assert 'openvocab_rows_total{tower="text",kept="yes"}' in text


def test_the_page_brings_everything_itself(client):
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert client.get("/page.js").status_code == 200
    assert client.get("/docs").status_code == 404


def test_many_callers_share_forwards_and_a_full_queue_says_when_to_come_again(clip):
    batches, go = [], threading.Event()
    calm = encoder(clip, precision="float32")

    def text(tokens):
        batches.append(len(tokens))
        go.wait()
        return calm.text(tokens)

    held = Encoder(clip, "torch", "float32", calm.image, text)
    go.set()
    with TestClient(create(held, options=Options(queue=40, batch=16))) as client:
        wait_for(client)
        go.clear()
        batches.clear()

        async def main():
            from httpx2 import ASGITransport, AsyncClient

            async with AsyncClient(transport=ASGITransport(client.app), base_url="http://x") as many:
                asked = (many.post("/api/embed", json={"texts": [f"a {n}"]}) for n in range(60))
                answers = asyncio.as_completed([asyncio.ensure_future(one) for one in asked])
                refused = [await next(answers) for _ in range(20)]
                go.set()
                return refused, [await answer for answer in answers]

        refused, answered = client.portal.call(main)
    assert {answer.status_code for answer in refused} == {429}
    assert {answer.status_code for answer in answered} == {200}
    assert int(refused[0].headers["retry-after"]) >= 1
    assert "too many texts" in refused[0].json()["error"]
    assert len(batches) <= 4
    assert sum(batches) == 40


def test_what_takes_too_long_is_a_504_and_what_nobody_foresaw_a_500(clip, image):
    calm = encoder(clip, precision="float32")
    awake, go = [], threading.Event()

    def image_tower(pixels):
        if awake:
            go.wait()
        return calm.image(pixels)

    def text_tower(tokens):
        if awake:
            raise RuntimeError("secret of the house")
        return calm.text(tokens)

    def asked(time_limit_s, **given):
        asleep = Encoder(clip, "torch", "float32", image_tower, text_tower)
        app = create(asleep, options=Options(time_limit_s=time_limit_s))
        with TestClient(app, raise_server_exceptions=False) as client:
            wait_for(client)
            awake.append(True)
            answer = client.post("/api/embed", json=given)
            awake.clear()
            go.set()
            return answer

    found = asked(60.0, texts=["a"])
    assert found.status_code == 500
    assert "secret" not in found.text
    go.clear()
    late = asked(0.1, images=[image])
    assert late.status_code == 504
    assert late.json() == {"error": "no answer within the time limit"}
