"""Pictures from public http(s) addresses, and no others: nobody reaches through the server what only it can reach."""

import http.client
import ipaddress
import socket
import ssl
import time
from urllib.parse import urljoin, urlsplit

_REDIRECTS = 3
_PIECE = 65_536


def fetch(url: str, *, max_bytes: int, time_limit_s: float) -> bytes:
    """What an address holds. Its name is resolved once and what it means is checked, at every redirect anew.

    Raises:
        ValueError: another scheme, an address that is not public, too much, too slow, or no answer; one line.
    """
    asked, deadline = url, time.monotonic() + time_limit_s
    try:
        for _ in range(1 + _REDIRECTS):
            found = _get(url, deadline, max_bytes)
            if isinstance(found, bytes):
                return found
            url = found
        raise ValueError(f"more than {_REDIRECTS} redirects")
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise ValueError(" ".join(f"{asked[:200]} cannot be fetched: {reason}".split())) from None


def public_address(host: str, port: int) -> str:
    """The numeric address to connect to; resolving again could give another.

    Raises:
        ValueError: some address of this name is on this machine, in its network, or reserved.
        OSError: no such name.
    """
    found = [entry[4][0] for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for text in found:
        address = ipaddress.ip_address(str(text).partition("%")[0])
        address = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None) or address
        if not address.is_global or address.is_multicast:
            raise ValueError(f"{host} is not a public address")
    return str(found[0])


def _get(url: str, deadline: float, max_bytes: int) -> bytes | str:
    """The content, or where to look instead."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise ValueError("only plain http(s) addresses are")
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    address = public_address(parts.hostname, port)
    connection = http.client.HTTPConnection(parts.hostname, port, timeout=_left_s(deadline))
    connection.sock = line = socket.create_connection((address, port), _left_s(deadline))
    try:
        if secure:
            context = ssl.create_default_context()
            connection.sock = line = context.wrap_socket(line, server_hostname=parts.hostname)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", target, headers={"User-Agent": "openvocab", "Accept": "image/*"})
        answer = connection.getresponse()
        if answer.status in (301, 302, 303, 307, 308) and (location := answer.getheader("Location")):
            return urljoin(url, location)
        if answer.status != 200:
            raise ValueError(f"it answered {answer.status}")
        content = bytearray()
        while not answer.isclosed():
            line.settimeout(_left_s(deadline))
            content += answer.read1(_PIECE)
            if len(content) > max_bytes:
                raise ValueError(f"more than {max_bytes} bytes")
        return bytes(content)
    finally:
        connection.close()
        line.close()


def _left_s(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("too slow")
    return left
