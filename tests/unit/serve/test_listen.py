"""A real server, and clients that are slow on purpose."""

import contextlib
import json
import socket
import threading
import time

import pytest
from httpx2 import Client
from serving import running, url

from openvocab.serve import listen
from openvocab.serve.options import Options


def answer_of(line, limit_s=2.0):
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


def test_slow_clients_are_ended_and_stall_nobody(app):
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(running(app(client_limit_s=0.8), client_limit_s=0.8))
        client = stack.enter_context(Client(base_url=url(address)))
        silent, head, body, dribble = (stack.enter_context(socket.create_connection(address)) for _ in range(4))
        head.sendall(b"POST /api/embed HTTP/1.1\r\nHost: x")
        body.sendall(b"POST /api/embed HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        stop = threading.Event()

        def dribbles():
            with contextlib.suppress(OSError):
                for byte in b"GET /health HTTP/1.1\r\nX: " + b"y" * 1000:
                    dribble.send(bytes([byte]))
                    if stop.wait(0.05):
                        return

        thread = threading.Thread(target=dribbles)
        thread.start()
        stack.callback(thread.join)
        stack.callback(stop.set)
        start = time.monotonic()
        while time.monotonic() - start < 0.4:
            assert client.post("/api/embed", json={"texts": [f"a {start}"]}, timeout=0.4).status_code == 200
        assert answer_of(silent) == b""
        assert answer_of(head) == b""
        assert b"408" in answer_of(body).splitlines()[0]
        assert answer_of(dribble) is not None
        assert client.get("/health").status_code == 200


def test_a_client_that_takes_nothing_is_ended(app):
    made = app()

    @made.get("/api/endless")
    async def endless():
        from starlette.responses import StreamingResponse

        return StreamingResponse(b"x" * 2**16 for _ in range(4000))

    with running(made, client_limit_s=0.2) as address, socket.create_connection(address) as line:
        line.sendall(b"GET /api/endless HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.6)
        taken = answer_of(line)
        assert taken is not None
        assert len(taken) < 4000 * 2**16


def test_idle_connections_that_are_used_again_stay(app):
    with running(app(), client_limit_s=0.3) as address, Client(base_url=url(address)) as client:
        for _ in range(3):
            assert client.get("/health").status_code in (200, 503)
            time.sleep(0.2)


def test_answers_do_not_wait_for_the_clients_word(app):
    with running(app()) as address, Client(base_url=url(address)) as client:
        waits = []
        for _ in range(20):
            before = time.monotonic()
            client.post("/api/embed", json={"texts": ["a cat"]})
            waits.append(time.monotonic() - before)
    assert sorted(waits)[10] < 0.03


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
