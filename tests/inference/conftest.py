"""A server, for the tests of its client."""

from collections.abc import Iterator

import pytest
from servers import Server


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()
