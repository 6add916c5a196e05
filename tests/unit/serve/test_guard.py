import asyncio
import json

import pytest
from fastapi.testclient import TestClient

from openvocab.serve.guard import COOKIE, Guard
from openvocab.serve.metrics import Metrics
from openvocab.serve.options import Options

TEXTS = {"texts": ["a"]}


@pytest.mark.parametrize(
    "headers",
    [{"authorization": "Bearer secret"}, {"x-api-key": "secret"}, {"cookie": f"a=b; {COOKIE}=secret"}],
)
def test_a_key_is_shown_in_three_ways(app, headers):
    with TestClient(app(api_key="secret")) as client:
        assert client.post("/api/embed", json=TEXTS, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer secre"}, {"authorization": "Basic secret"}, {"x-api-key": "sécret"}]
)
def test_without_the_key_only_the_empty_page_and_health_are_answered(app, headers):
    headers = {name: value.encode() for name, value in headers.items()}
    with TestClient(app(api_key="secret")) as client:
        for path in ("/api/about", "/metrics", "/openapi.json", "/api/none"):
            refused = client.get(path, headers=headers)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
        assert client.get("/", headers=headers).status_code == 200
        assert client.get("/health", headers=headers).status_code in (200, 503)


def test_other_names_and_other_pages_are_refused(app):
    with TestClient(app(hosts=("localhost",))) as client:
        assert client.get("/api/about", headers={"host": "localhost:80"}).status_code == 200
        assert client.get("/api/about", headers={"host": "evil.example"}).status_code == 403
        for origin in ("http://evil.example", "null", "http://[", ""):
            found = client.get("/api/about", headers={"host": "localhost:80", "origin": origin})
            assert found.status_code == 403, origin
        own = {"host": "localhost:80", "origin": "http://localhost:80"}
        assert client.get("/api/about", headers=own).status_code == 200


@pytest.mark.parametrize("key", ["a b", "a;b", 'a"b', "a,b", "a\\b", "é", "a\n"])
def test_a_key_that_no_cookie_holds_is_refused(key):
    with pytest.raises(ValueError, match="an API key is of letters"):
        Options(api_key=key)


def test_requests_are_json(client):
    for kind in ("text/plain", "multipart/form-data", "application/x-www-form-urlencoded"):
        refused = client.post("/api/embed", content=json.dumps(TEXTS), headers={"content-type": kind})
        assert refused.status_code == 415
        assert "application/json" in refused.json()["error"]
    said_nothing = client.post("/api/embed", content=json.dumps(TEXTS))
    assert said_nothing.status_code == 200


def test_bodies_that_are_too_large_are_refused_with_and_without_their_length(app):
    with TestClient(app(max_body_bytes=1000)) as client:
        body = json.dumps({"texts": ["a" * 2000]}).encode()
        assert client.post("/api/embed", content=body).status_code == 413
        pieces = (body[start : start + 100] for start in range(0, len(body), 100))
        refused = client.post("/api/embed", content=pieces, headers={"transfer-encoding": "chunked"})
        assert refused.status_code == 413
        assert refused.json() == {"error": "more than 1000 bytes"}


def asked(guard, messages, headers=()):
    """The status of a request whose body comes as these (seconds of delay, bytes, more to come)."""
    sent, coming = [], iter(messages)

    async def receive():
        try:
            delay_s, body, more = next(coming)
        except StopIteration:
            return {"type": "http.disconnect"}
        await asyncio.sleep(delay_s)
        return {"type": "http.request", "body": body, "more_body": more}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": "/", "headers": list(headers)}
    return guard(scope, receive, send), sent


async def echo(scope, receive, send):
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def test_a_body_that_dribbles_is_timed_out_and_one_that_breaks_off_is_counted():
    metrics = Metrics()
    hasty, guard = Guard(echo, Options(client_limit_s=0.05), metrics), Guard(echo, Options(), metrics)
    slow, sent = asked(hasty, [(0.02, b"x", True)] * 10)
    asyncio.run(slow)
    assert sent[0]["status"] == 408
    assert hasty.held_bytes == 0
    broken, sent = asked(guard, [(0, b"x", True)])
    asyncio.run(broken)
    assert sent == []
    whole, sent = asked(guard, [(0, b"x", True), (0, b"y", False)])
    asyncio.run(whole)
    assert sent[1]["body"] == b"xy"
    assert guard.held_bytes == 0
    for status in ("408", "499", "200"):
        assert metrics.value("openvocab_requests_total", route="none", status=status) == 1


def test_bodies_of_all_callers_together_are_bounded():
    guard = Guard(echo, Options(max_bodies_bytes=100), Metrics())

    async def main():
        first, sent_first = asked(guard, [(0, b"x" * 80, True), (0.05, b"x" * 10, False)])
        second, sent_second = asked(guard, [(0.01, b"x" * 80, False)])
        await asyncio.gather(first, second)
        return sent_first[0]["status"], sent_second[0]["status"]

    assert asyncio.run(main()) == (200, 429)
    assert guard.held_bytes == 0
