import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from openvocab.serve import fetch as module
from openvocab.serve.fetch import fetch, public_address


class Site(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/picture":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"content")
        elif self.path == "/large":
            self.send_response(200)
            self.end_headers()
            for _ in range(100):
                self.wfile.write(b"x" * 1000)
        else:
            self.send_response(302 if self.path != "/none" else 404)
            self.send_header("Location", {"/moved": "/picture"}.get(self.path, "http://[::1]:9/secret"))
            self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def site(monkeypatch):
    """A server that is taken for a public one; everything else is looked at as ever."""
    server = HTTPServer(("127.0.0.1", 0), Site)
    server.handle_error = lambda *_: None  # who asks leaves when it is too much
    threading.Thread(target=server.serve_forever, daemon=True).start()
    real = public_address
    monkeypatch.setattr(module, "public_address", lambda host, port: host if host == "127.0.0.1" else real(host, port))
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_picture_is_fetched_through_a_redirect(site):
    assert fetch(f"{site}/moved", max_bytes=100, time_limit_s=60.0) == b"content"


@pytest.mark.parametrize(
    ("path", "said"),
    [("/elsewhere", "::1 is not a public address"), ("/none", "it answered 404"), ("/large", "more than 5000 bytes")],
)
def test_what_is_not_fetched(site, path, said):
    with pytest.raises(ValueError, match=said):
        fetch(site + path, max_bytes=5000, time_limit_s=60.0)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "10.1.2.3", "192.168.1.1", "169.254.169.254", "0.0.0.0", "::1", "::ffff:127.0.0.1",
     "2002:7f00:1::", "fe80::1", "fd00::1", "224.0.0.1", "100.64.0.1"],
)  # fmt: skip
def test_addresses_of_this_machine_and_its_network_are_refused(host):
    with pytest.raises(ValueError, match="is not a public address"):
        public_address(host, 80)


@pytest.mark.parametrize(
    "url", ["ftp://example.com/x", "file:///etc/passwd", "http://", "http://user:word@example.com/", "gopher://x"]
)
def test_other_addresses_are_refused(url):
    with pytest.raises(ValueError, match="only plain http"):
        fetch(url, max_bytes=100, time_limit_s=1.0)


@pytest.mark.parametrize("url", ["http://exa mple.com/\r\nx", "http://x:99999/", "http://[::1", "http://a..b/"])
def test_broken_addresses_are_one_line(url):
    with pytest.raises(ValueError) as refused:
        fetch(url, max_bytes=100, time_limit_s=1.0)
    assert len(str(refused.value).splitlines()) == 1
