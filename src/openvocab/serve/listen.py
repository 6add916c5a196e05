"""uvicorn, with the two time limits that it lacks: on the head of a request, and on what a client does not take."""

import asyncio
import contextlib
import ctypes
import socket
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from openvocab.serve.options import Options

_MMAP_THRESHOLD, _LARGE_BYTES = -3, 8 * 2**20  # M_MMAP_THRESHOLD of malloc.h
_TRIM_THRESHOLD, _KEPT_BYTES = -1, 32 * 2**20  # M_TRIM_THRESHOLD
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def bind(host: str, port: int, options: Options) -> socket.socket:
    """The socket to listen on; port 0 takes a free one.

    Raises:
        ValueError: an address that others can reach, without a key.
        OSError: the address is taken, or not this machine's.
    """
    if host not in LOOPBACK and not options.api_key:
        raise ValueError(
            f"--host {host}: others can reach this address; give --api-key KEY or OPENVOCAB_API_KEY, which they show"
        )
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise OSError(f"{host}:{port} cannot be listened on: {error.strerror or error}") from None


def server(app: Any, options: Options) -> uvicorn.Server:
    """What serves an app by `run(sockets=[bind(...)])`."""
    config = uvicorn.Config(
        app,
        http=_patient_for(options.client_limit_s),
        ws="none",
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_level="warning",
        limit_concurrency=options.max_connections,
        timeout_graceful_shutdown=5,
    )
    _return_large_blocks()
    return uvicorn.Server(config)


def _return_large_blocks() -> None:
    """Makes glibc give back at once what a large picture took; it would keep as much for every thread that read one.

    And keep what smaller ones took, which are asked for again and again, and each time cleared by the system.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        for name, value in ((_MMAP_THRESHOLD, _LARGE_BYTES), (_TRIM_THRESHOLD, _KEPT_BYTES)):
            ctypes.CDLL(None).mallopt(name, value)


def _patient_for(limit_s: float) -> type[H11Protocol]:
    class Protocol(H11Protocol):
        """Ends connections whose next step takes longer than the limit."""

        _head: asyncio.TimerHandle | None = None
        _taking: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            # Head and body of an answer are two writes: the second would wait 40 ms for the client's word on the first.
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._head = self.loop.call_later(limit_s, transport.abort)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is not h11.IDLE:
                self._head = _stopped(self._head)
            elif self._head is None and not self.transport.is_closing():
                self._head = self.loop.call_later(limit_s, self.transport.abort)

        def connection_lost(self, exc: Exception | None) -> None:
            self._head, self._taking = _stopped(self._head), _stopped(self._taking)
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._taking = self.loop.call_later(limit_s, self.transport.abort)

        def resume_writing(self) -> None:
            self._taking = _stopped(self._taking)
            super().resume_writing()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            self.loop.call_later(limit_s, self.transport.abort)  # what was never taken would keep it open

    return Protocol


def _stopped(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
