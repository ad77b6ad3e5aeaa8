"""One world, and one chain, for all the system tests of a process: bringing them up costs seconds."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator

import pytest

from tests.system.chain import Chain, open_chain
from tests.system.world import World, running_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory.mktemp("world")) as running:
        yield running
        # After all requests of the test, the relay's own identity has never acted.
        own = [line for line in running.cluster_audit() if line.get("unimpersonated")]
        assert not own, f"the relay's own account acted: {own[0]}"


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    with open_chain(tmp_path_factory.mktemp("chain")) as running:
        yield running
        running.check()


@pytest.fixture(scope="session")
def echo_port() -> Iterator[int]:
    """A loopback port that sends back what it is sent, and ends when its client does."""

    class Echo(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while data := self.request.recv(65536):
                self.request.sendall(data)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        port: int = server.server_address[1]
        yield port
        server.shutdown()
        thread.join()
