"""Hub and relays in front of an API server that does what a test scripts, with traps around the relays.

The relays' environment is as bad as a pod's can be: it names a proxy, a .netrc for the API server's address
and a CA file. None of them may affect where the service-account token goes. All processes log at their most
verbose. After every test, each event is one line and holds no secret.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs
import trustme

from tests.fakes.apiserver import TOKEN, ApiServer, Script, running_apiserver
from tests.system.raw import RawClient
from tests.system.world import GROUP, USER, World, running_chain

_LOG_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR) +[a-z0-9._-]+: .*")
# Any signed token of ours, regardless of its issuer and audience.
JWT = re.compile(r"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}")


@attrs.define(eq=False)
class Trap:
    """A port that no part of the system may contact."""

    port: int
    visitors: int = 0


@attrs.define(eq=False, repr=False)
class Chain:
    """What runs, and the ways to it."""

    world: World
    server: ApiServer
    trap: Trap
    foreign: trustme.CA
    """The CA that the relays' environment names, and that no relay pins."""

    def client(self, way: str) -> RawClient:
        return RawClient(self.world, way)

    def path(self, script: Script, rest: str = "") -> tuple[str, str]:
        """A path that is answered by a script, and its mark."""
        mark = self.server.on(script)
        return f"/api/v1/namespaces/work/configmaps/{mark}{rest}", mark

    def exec_path(self, script: Script) -> tuple[str, str]:
        """The same for an exec."""
        mark = self.server.on(script)
        return f"/api/v1/namespaces/work/pods/{mark}/exec?command=id&stdout=1", mark

    def logs(self) -> dict[str, str]:
        """Of hubs and relays."""
        paths = sorted(self.world.folder.glob("*.log"))
        return {path.name: path.read_text() for path in paths if path.name != "balancer.log"}

    def check(self) -> None:
        """Check what must hold after every test: each call had the agent's name, and the logs are clean."""
        assert self.server.faults == []
        # The relay's own two are each alone on a connection, which no agent's request has shared.
        own = [each for each in self.server.all_exchanges if each.head in self.server.own]
        assert own
        assert {each.connection.requests for each in own} == {1}
        for exchange in self.server.exchanges:
            assert exchange.header("impersonate-user") == [USER], exchange.head
            assert GROUP in exchange.header("impersonate-group"), exchange.head
            assert exchange.header("authorization") == [f"Bearer {TOKEN}"]
        self.check_logs()

    def check_logs(self) -> None:
        """Check that each event is one line, none is a fault of ours, and none holds a secret."""
        for name, text in self.logs().items():
            strange = [line for line in text.splitlines() if not _LOG_LINE.fullmatch(line)]
            assert not strange, f"{name}: {strange[:5]}"
            assert " by a fault of " not in text, name
            assert JWT.search(text) is None, name
            assert TOKEN not in text, name
            assert self.world.api_key not in text, name


@contextmanager
def open_chain(folder: Path, settings: str = "") -> Iterator[Chain]:
    """Bring all of it up in `folder`; `settings` are added to the hub's configuration."""
    foreign = trustme.CA()
    foreign.cert_pem.write_to_path(folder / "foreign-ca.pem")
    (folder / ".netrc").write_text("machine 127.0.0.1 login stranger password from-netrc\n")
    (folder / ".netrc").chmod(0o600)
    kubeconfig = folder / "relay.kubeconfig"
    with running_apiserver() as server, open_trap() as trap:
        server.write_kubeconfig(kubeconfig)
        proxy = f"http://127.0.0.1:{trap.port}"
        environment = {
            **dict.fromkeys(("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "ALL_PROXY"), proxy),
            "HOME": str(folder),
            "NETRC": str(folder / ".netrc"),
            "SSL_CERT_FILE": str(folder / "foreign-ca.pem"),
            "REQUESTS_CA_BUNDLE": str(folder / "foreign-ca.pem"),
        }
        with running_chain(
            folder, kubeconfig, flags=("--verbose",), relay_environment=environment, settings=settings
        ) as world:
            yield Chain(world, server, trap, foreign)


@contextmanager
def open_trap() -> Iterator[Trap]:
    """Listen on loopback and count who comes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        trap = Trap(listener.getsockname()[1])

        def accept() -> None:
            with suppress(OSError):
                while True:
                    visitor, _ = listener.accept()
                    trap.visitors += 1
                    visitor.close()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield trap
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
