"""What a server allows, how much at once, and how long."""

import re
from dataclasses import dataclass

ENVIRONMENT = {
    "GOMP_SPINCOUNT": "10000",
    "LRU_CACHE_CAPACITY": "128",
}
"""What torch's libraries read when they are loaded. Threads that wait for one another would hold for milliseconds a
core that other callers need; and a kernel of half a megabyte would be kept for each of 1,024 numbers of rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """The defaults are for one machine and people who were invited; `openvocab serve --set name=value` changes one."""

    api_key: str = ""
    """What callers must show; empty: nothing, which `listen` allows on this machine's own address only."""
    hosts: tuple[str, ...] = ()
    """Names under which it answers; none: any. A page elsewhere that points its own name here is refused by these."""
    allow_urls: bool = False
    """Fetch pictures from public http(s) addresses that callers name."""
    batch: int = 16
    """Rows of one forward at most; on processors more gain nothing, and others wait longer."""
    wait_ms: float = 2.0
    """How long an idle model waits for more rows to come."""
    queue: int = 512
    """Rows that may wait for a model; who comes then is told to come later."""
    system_queue: int = 8
    """Questions that may wait for systems, which answer one at a time."""
    kept: int = 4096
    """The latest texts and the latest pictures, whose rows are kept."""
    time_limit_s: float = 30.0
    system_time_limit_s: float = 300.0
    """Of systems, which may draw."""
    client_limit_s: float = 20.0
    """For a client to send a request, and to take each piece of the answer."""
    max_body_bytes: int = 32 * 2**20
    max_bodies_bytes: int = 512 * 2**20
    """Of all requests that are being read and answered."""
    max_pixels: int = 50_000_000
    max_connections: int = 1000

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[!#-+\--:<-\[\]-~]*", self.api_key):  # what a cookie may hold
            raise ValueError("an API key is of letters, digits and signs; no blanks, quotes, commas, semicolons")
