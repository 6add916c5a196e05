"""A real server, and clients that are slow on purpose."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from http.client import HTTPConnection

import pytest
from httpx2 import Client
from serving import running, url
from starlette.responses import StreamingResponse

from openvocab.serve import listen
from openvocab.serve.options import Options


def answer_of(line, limit_s=60.0):
    """All that a connection says until it ends; None where it does not."""
    line.settimeout(limit_s)
    said = b""
    with contextlib.suppress(ConnectionResetError):
        try:
            while piece := line.recv(65536):
                said += piece
        except TimeoutError:
            return None
    return said


@pytest.fixture
def slow(app):
    """What starts a server and four clients of it: one silent, one amid its head, one amid its body, one dribbling."""
    with contextlib.ExitStack() as stack:

        def started(client_limit_s):
            options = {"client_limit_s": client_limit_s}
            address = stack.enter_context(running(app(**options), **options))
            lines = [stack.enter_context(socket.create_connection(address)) for _ in range(4)]
            _, head, body, dribble = lines
            head.sendall(b"POST /api/embed HTTP/1.1\r\nHost: x")
            body.sendall(b"POST /api/embed HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            stop = threading.Event()

            def dribbles():
                with contextlib.suppress(OSError):
                    dribble.sendall(b"GET /health HTTP/1.1\r\nX: ")
                    while not stop.wait(0.02):
                        dribble.sendall(b"y")

            thread = threading.Thread(target=dribbles)
            thread.start()
            stack.callback(thread.join)
            stack.callback(stop.set)
            return stack.enter_context(Client(base_url=url(address), timeout=60.0)), lines

        yield started


def test_slow_clients_stall_nobody(slow):
    client, lines = slow(client_limit_s=600.0)
    for number in range(5):
        assert client.post("/api/embed", json={"texts": [f"a {number}"]}).status_code == 200
    assert [answer_of(line, limit_s=0.01) for line in lines] == [None] * 4  # they still hold what they took


def test_slow_clients_are_ended(slow):
    client, (silent, head, body, dribble) = slow(client_limit_s=0.3)
    assert answer_of(silent) == b""
    assert answer_of(head) == b""
    assert b"408" in answer_of(body).splitlines()[0]
    assert answer_of(dribble) is not None
    assert client.get("/health").status_code == 200


def test_a_client_that_takes_nothing_is_ended(app):
    made, ended = app(), threading.Event()

    async def pieces():
        try:
            while True:
                yield b"x" * 2**16
                await asyncio.sleep(0)
        finally:
            ended.set()

    @made.get("/api/endless")
    async def endless():
        return StreamingResponse(pieces())

    with running(made, client_limit_s=0.2) as address, socket.create_connection(address) as line:
        line.sendall(b"GET /api/endless HTTP/1.1\r\nHost: x\r\n\r\n")
        assert ended.wait(60.0)
        assert answer_of(line) is not None


def test_idle_connections_that_are_used_again_stay(app):
    with running(app(), client_limit_s=2.0) as address, contextlib.closing(HTTPConnection(*address)) as line:
        line.connect()
        line.auto_open = False
        for _ in range(5):
            line.request("GET", "/health")
            assert line.getresponse().read().startswith(b'{"status"')
            time.sleep(0.6)


def test_answers_do_not_wait_for_the_clients_word(app):
    """Which comes 40 ms late."""
    with running(app()) as address, Client(base_url=url(address)) as client:
        waits = []
        for _ in range(100):
            before = time.monotonic()
            client.post("/api/embed", json={"texts": ["a cat"]})
            waits.append(time.monotonic() - before)
    assert sorted(waits)[20] < 0.035


def test_too_large_a_body_is_refused_before_it_is_sent(app):
    with running(app(max_body_bytes=1000)) as address, socket.create_connection(address) as line:
        head = "POST /api/embed HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n"
        line.sendall(head.encode())
        said = answer_of(line)
        assert said.startswith(b"HTTP/1.1 413")
        assert json.loads(said.split(b"\r\n\r\n")[1]) == {"error": "more than 1000 bytes"}


def test_others_reach_a_server_only_with_a_key():
    with pytest.raises(ValueError, match="give --api-key"):
        listen.bind("0.0.0.0", 0, Options())
    listen.bind("0.0.0.0", 0, Options(api_key="secret")).close()
    with listen.bind("127.0.0.1", 0, Options()) as taken:
        with pytest.raises(OSError, match="cannot be listened on: Address already in use"):
            listen.bind("127.0.0.1", taken.getsockname()[1], Options())
