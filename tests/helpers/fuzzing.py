"""Requests that nobody should send, made by hand and by chance; the same seed makes the same ones."""

import base64
import copy
import gzip
import io
import json
import random
import string
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from PIL import Image


@dataclass(frozen=True)
class Sent:
    method: str
    path: str
    content: bytes = b""
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "application/json"})


def hostile(seed: int, count: int, image: str, model: str) -> Iterator[Sent]:
    """Valid questions with a part or two replaced, raw bytes for bodies, odd paths, ranges and content types.

    Args:
        image: a small picture in base64, from which broken ones are made.
        model: the name that the server gives its model.
    """
    chance = random.Random(seed)
    asked = _questions(image, model)
    wrong = [*_VALUES, *_pictures(image)]
    for _ in range(count):
        kind = chance.random()
        path, body = chance.choice(list(asked.items()))
        if kind < 0.6:
            body = copy.deepcopy(body)
            for _ in range(chance.choice((1, 1, 2, 4))):
                body = _replaced(chance, body, wrong)
            yield Sent("POST", path, _dumped(body))
        elif kind < 0.75:
            yield Sent("POST", path, chance.choice(_bodies(chance, _dumped(body))))
        elif kind < 0.85:
            headers = {"content-type": chance.choice(_KINDS)}
            yield Sent("POST", path, _dumped(body), headers)
        elif kind < 0.97:
            headers = {"range": chance.choice(_RANGES)} if chance.random() < 0.4 else {}
            yield Sent(chance.choice(("GET", "GET", "GET", "HEAD")), chance.choice(_PATHS), b"", headers)
        else:
            yield Sent(chance.choice(("DELETE", "PUT", "PATCH", "OPTIONS", "TRACE", "BREW")), path)


def bomb(width: int, height: int) -> bytes:
    """A PNG whose head promises more than a server should decode, and whose pixels are really there."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    squeeze = zlib.compressobj(9)
    line = bytes(1 + 3 * width)
    pixels = b"".join(squeeze.compress(line) for _ in range(min(height, 100))) + squeeze.flush()
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _questions(image: str, model: str) -> dict:
    words = {"labels": ["cat", "dog"], "templates": "generic"}
    return {
        "/api/classify": {"image": image, **words},
        "/api/embed": {"texts": ["a cat", "a dog"]},
        "/api/explain": {"image": image, "text": "a cat", "others": ["a dog"]},
        "/api/segment": {"image": image, **words, "none_below": 0.1},
        "/api/depth": {"image": image},
        "/api/search": {"terms": [{"text": "a cat", "weight": 1.5}, {"image": image}], "k": 3, "folder": "walks"},
        "/knn-service": {"text": "a cat", "modality": "image", "num_images": 3, "indice_name": "holidays"},
        "/metadata": {"ids": [0, 1], "indice_name": "holidays"},
        "/v1/embeddings": {"input": ["a cat", {"type": "image_url", "image_url": {"url": image}}], "model": model},
    }


def _pictures(image: str) -> list[str]:
    content = base64.b64decode(image)
    jpeg = io.BytesIO()
    Image.open(io.BytesIO(content)).convert("RGB").save(jpeg, "JPEG")
    files = [
        content[: len(content) // 2],
        content[:40] + b"\0" * 40 + content[80:],
        jpeg.getvalue()[: len(jpeg.getvalue()) // 2],
        bomb(40_000, 40_000),
        bomb(5_000, 5_000),
        bomb(1, 100_000_000),
        bomb(0, 0),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"GIF89a" + b"\xff" * 100,
        b"II*\0" + b"\xff" * 100,
        gzip.compress(bytes(10**6)),
    ]
    return [base64.b64encode(each).decode() for each in files]


_VALUES = [
    None, True, -1, 0, 10**9, 10**400, 1e308, -1e308, float("nan"), float("inf"), 0.5, "", " ", "\0", "a\nb\r\n", "{}",
    "x" * 3_000, "word " * 500, "\ud800", "\U0001f986" * 300, "ẞ‮ﷺ" * 50, "../../etc/passwd", "/etc/passwd",
    "file:///etc/passwd", "http://169.254.169.254/latest/meta-data", "http://127.0.0.1:1/x.png", "data:,x",
    "data:image/png;base64,", "data:image/png;base64,AAAA", "%00%2e%2e%2f", "'; DROP TABLE rows; --", "1970-01-01",
    "9999-99-99T99", [], {}, [[]], [None], ["a"] * 300, ["a"] * 3_000, [["a"]], {"a": {"b": {}}}, {"text": "a"}, [1, 2],
]  # fmt: skip
_KINDS = (
    "text/plain", "multipart/form-data", "multipart/form-data; boundary=x", "application/xml", "application/json; x=\"",
    "APPLICATION/JSON", "application/x-www-form-urlencoded", "image/png", "", ";", "\xff",
    "application/json;charset=utf-7",
)  # fmt: skip
_PATHS = (
    "/", "/page.js", "/health", "/metrics", "/openapi.json", "/api/about", "/indices-list", "/v1/models", "/docs",
    "/api/media/1", "/api/media/-1", "/api/media/999999", "/api/media/../../etc/passwd", "/api/media/1e5", "/api/",
    "/api/media/%2e%2e%2fetc%2fpasswd", "/../../../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/\u202e", "//",
    "/api/thumbnail/1", "/api/thumbnail/1?size=0", "/api/thumbnail/1?size=99999", "/api/thumbnail/1?size=nan",
    "/api/thumbnail/1?size=64&size=128", "/api/media/1?x=" + "y" * 5_000, "/api//media/1", "/%00", "/%ff%fe",
    "/api/media/1%00.png", "/page.js/..", "/..%5c..%5cwindows", "/api/media/99999999999999999999999",
)  # fmt: skip
_RANGES = (
    "bytes=0-", "bytes=5-2", "bytes=-1", "bytes=999999999-", "bytes=0-0,1-1,2-2", "items=0-1", "bytes=a-b", "bytes=",
    "bytes=" + ",".join(f"{n}-{n}" for n in range(500)), "bytes=-0", "bytes=0-18446744073709551616", "=",
)  # fmt: skip


def _replaced(chance: random.Random, body: object, wrong: list) -> object:
    """The body with a part taken away, added, or replaced."""
    value = copy.deepcopy(chance.choice(wrong))
    if isinstance(body, dict) and body and chance.random() < 0.85:
        name, kind = chance.choice(list(body)), chance.random()
        if kind < 0.1:
            del body[name]
        elif kind < 0.2:
            body["".join(chance.choices(string.printable, k=9))] = value
        else:
            body[name] = _replaced(chance, body[name], wrong)
        return body
    if isinstance(body, list) and body and chance.random() < 0.6:
        place = chance.randrange(len(body))
        body[place] = _replaced(chance, body[place], wrong)
        return body
    return value


def _dumped(body: object) -> bytes:
    try:
        return json.dumps(body).encode()
    except ValueError:  # an int of too many digits
        return b'{"k": ' + b"9" * 5_000 + b"}"


def _bodies(chance: random.Random, valid: bytes) -> list[bytes]:
    return [
        b"",
        valid[: chance.randrange(len(valid))],
        valid + b"}",
        chance.randbytes(200),
        b"[" * 100_000,
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b'{"texts": ["a", NaN, Infinity, -Infinity]}',
        b'{"texts": ["\\ud800\\udc00\\ud800"]}',
        b"\xef\xbb\xbf" + valid,
        valid.decode().encode("utf-16"),
        gzip.compress(valid),
        b"{" + b'"a": 1, ' * 10_000 + b'"b": 2}',
        b'"' + b"x" * 10**6 + b'"',
        b"null",
        b"1",
    ]
