"""A server, for the tests of its client, and an empty cache of the Hub."""

from collections.abc import Iterator

import pytest
from hub_cache import cache  # noqa: F401
from servers import Server


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()
