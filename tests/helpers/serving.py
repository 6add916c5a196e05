"""A real uvicorn in a thread."""

import contextlib
import threading

from openvocab.serve import listen
from openvocab.serve.options import Options


@contextlib.contextmanager
def running(app, **options):
    """Yields where it listens."""
    options = Options(**options)
    listener = listen.bind("127.0.0.1", 0, options)
    server = listen.server(app, options)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield listener.getsockname()
    finally:
        server.should_exit = True
        thread.join()


def url(address):
    return f"http://{address[0]}:{address[1]}"
