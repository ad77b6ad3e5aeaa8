"""The balancer as a process, in front of servers that say whether they are ready."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import attrs
import pytest
import trustme

from sandbox.balancer.control import BalancerControl
from sandbox.balancer.starting import start_balancer
from sandbox.connections import client_ports
from sandbox.demo.processes import Daemons, free_port
from tests.system.waiting import wait_until

CHECK_S = 0.05


@attrs.define(eq=False)
class Hub:
    """A server that answers with its own port, and to /readyz with a status that a test sets."""

    server: ThreadingHTTPServer
    status: int = 200

    @property
    def port(self) -> int:
        return int(self.server.server_address[1])


@contextlib.contextmanager
def running_hub(context: ssl.SSLContext) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = str(hub.port).encode()
            self.send_response(hub.status if self.path == "/readyz" else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    hub = Hub(server)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@attrs.frozen
class Site:
    hubs: list[Hub]
    port: int
    control: BalancerControl
    context: ssl.SSLContext

    def connect(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=5, context=self.context)

    def write_ca(self, folder: Path) -> Path:
        """Write the hubs' CA into a folder."""
        [ca] = self.context.get_ca_certs(binary_form=True)
        file = folder / "ca.pem"
        file.write_text(ssl.DER_cert_to_PEM_cert(ca))
        return file

    def ask(self) -> int:
        """The port of the hub that a new connection comes to."""
        with contextlib.closing(self.connect()) as connection:
            return self.ask_by(connection)

    def ask_by(self, connection: http.client.HTTPSConnection) -> int:
        connection.request("GET", "/")
        return int(connection.getresponse().read())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("balanced")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    client = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    with contextlib.ExitStack() as stack:
        hubs = [stack.enter_context(running_hub(server)) for _ in range(3)]
        daemons = stack.enter_context(Daemons(folder))
        port = free_port()
        control, balancer = start_balancer(
            daemons, port, [hub.port for hub in hubs], folder / "ca.pem", check_s=CHECK_S
        )
        balancer.wait_for("ready")
        yield Site(hubs, port, control, client)
        balancer.check()


def test_new_connections_go_to_each_hub(site: Site) -> None:
    assert {site.ask() for _ in range(3)} == {hub.port for hub in site.hubs}


def test_a_hub_that_is_not_ready_keeps_its_connections_and_gets_no_new_one(site: Site) -> None:
    leaving = site.hubs[0]
    with contextlib.ExitStack() as stack:
        kept = [stack.enter_context(contextlib.closing(site.connect())) for _ in site.hubs]
        [open_one] = [connection for connection in kept if site.ask_by(connection) == leaving.port]
        leaving.status = 503
        wait_until(lambda: leaving.port not in site.control.in_service())
        assert {site.ask() for _ in range(4)} == {hub.port for hub in site.hubs[1:]}
        assert site.ask_by(open_one) == leaving.port
    leaving.status = 200
    wait_until(lambda: leaving.port in site.control.in_service())
    assert leaving.port in {site.ask() for _ in range(3)}


def test_a_cut_resets_the_connection_of_one_client(site: Site) -> None:
    with (
        socket.create_connection(("127.0.0.1", site.port), 5) as one,
        contextlib.closing(site.connect()) as other,
    ):
        site.ask_by(other)
        assert isinstance(other.sock, socket.socket)
        first, second = (each.getsockname()[1] for each in (one, other.sock))
        # The kernel gives the later connection a lower port at times.
        assert sorted(client_ports(os.getpid(), site.port)) == sorted([first, second])
        assert site.control.cut(first)
        with pytest.raises(ConnectionResetError):
            one.recv(1)
        site.ask_by(other)
        assert client_ports(os.getpid(), site.port) == [second]
        assert not site.control.cut(first)


def test_a_hub_that_does_not_accept_costs_no_connection(tmp_path: Path, site: Site) -> None:
    ports = [hub.port for hub in site.hubs]
    with Daemons(tmp_path) as daemons:
        gone, front = free_port(), free_port()
        ca = site.write_ca(tmp_path)
        control, _ = start_balancer(daemons, front, [gone, *ports], ca, check_s=CHECK_S)
        wait_until(lambda: control.in_service() == ports)
        behind = attrs.evolve(site, port=front)
        assert {behind.ask() for _ in range(3)} == set(ports)


def test_a_backend_is_in_service_by_the_answer_of_another_port(site: Site, tmp_path: Path) -> None:
    """A hub's console has no /readyz: it is in service while the hub is."""
    with Daemons(tmp_path) as daemons, contextlib.ExitStack() as stack:
        consoles = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in site.hubs]
        ports = [console.getsockname()[1] for console in consoles]
        checked, ca = [hub.port for hub in site.hubs], site.write_ca(tmp_path)
        control, balancer = start_balancer(daemons, free_port(), ports, ca, check_s=CHECK_S, checked=checked)
        balancer.wait_for("ready")
        site.hubs[1].status = 503
        wait_until(lambda: control.in_service() == [ports[0], ports[2]])
        site.hubs[1].status = 200
        wait_until(lambda: control.in_service() == ports)
