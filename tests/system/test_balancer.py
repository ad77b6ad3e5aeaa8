"""A hub, and a relay in direct mode, behind a TCP load balancer that speaks the PROXY protocol."""

from __future__ import annotations

import http.client
import json
import secrets
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from urllib.parse import urlencode

import attrs
import pytest

from auth.apikey import new_code
from auth.keys import SigningKey
from auth.tokens import issue_enrolment
from sandbox.demo.processes import Daemons
from tests.fakes.apiserver import ApiServer, running_apiserver
from tests.fakes.balancer import LOCAL, UNSPEC, header, of_client, tlv
from tests.system.raw import DEADLINE_S, RawClient, Talk
from tests.system.waiting import wait_until
from tests.system.world import World, connect, make_world, start_and_enrol

pytestmark = [pytest.mark.timeout(120)]

# Loopback addresses of the load balancers; agents that come without one have 127.0.0.1.
HUB_BALANCER, RELAY_BALANCER = "127.0.0.2", "127.0.0.3"


@attrs.define(eq=False)
class Site:
    world: World
    server: ApiServer

    def tcp(self, address: str, port: int = 0) -> socket.socket:
        port = port or self.world.hub_port
        return socket.create_connection(("127.0.0.1", port), DEADLINE_S, (address, 0))

    def through(self, said: bytes) -> ssl.SSLSocket:
        """A connection by the load balancer, past the handshake; raises OSError when it is turned away."""
        plain = self.tcp(HUB_BALANCER)
        try:
            plain.sendall(said)
            return shake_hands(plain, RawClient(self.world, "tunnel").context())
        except OSError:
            plain.close()
            raise

    def is_refused(self, said: bytes) -> bool:
        """Whether a connection by the load balancer ends without an answer to its TLS hello."""
        with self.tcp(HUB_BALANCER) as plain:
            try:
                plain.sendall(said + hello())
                return plain.recv(1) != b"\x16"
            except ConnectionError:
                return True

    def get(self, said: bytes, path: str) -> int:
        """Ask by the load balancer; the status."""
        with self.through(said) as connection:
            talk = Talk(connection)
            talk.send(RawClient(self.world, "tunnel").head(path))
            return talk.answer().status

    def forwarded_for(self, said: bytes) -> list[str]:
        """Whose call it is to the API server."""
        mark = self.server.on(lambda exchange: exchange.answer(200, b"{}"))
        assert self.get(said, f"/api/v1/namespaces/work/configmaps/{mark}") == 200
        [exchange] = self.server.seen(mark)
        return exchange.header("x-forwarded-for")


def hello() -> bytes:
    """What a TLS client sends first."""
    said = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), said, server_hostname="hub.example")
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return said.read()


def shake_hands(plain: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
    """Finish a handshake as 127.0.0.1's client; raises OSError, also where the other end has reset it."""
    connection = context.wrap_socket(plain, server_hostname="127.0.0.1", do_handshake_on_connect=False)
    try:
        connection.do_handshake()
    except OSError:
        connection.close()
        raise
    return connection


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("balanced")
    with running_apiserver() as server, Daemons(folder) as daemons:
        server.write_kubeconfig(folder / "relay.kubeconfig")
        settings = f'listen_proxy_from = ["192.0.2.0/24", "{HUB_BALANCER}"]'
        world = make_world(folder, daemons, folder / "relay.kubeconfig", settings)
        world.relay_environment = {"HAWSE_RELAY_DIRECT_LISTEN_PROXY_FROM": RELAY_BALANCER}
        start_and_enrol(world)
        connect(world)
        yield Site(world, server)


def recorded(site: Site, *args: str) -> set[str]:
    return {event.get("client", {}).get("ip", "") for event in site.world.hub_audit(*args)}


def test_the_trail_and_the_cluster_see_the_client_and_not_the_load_balancer(site: Site) -> None:
    assert site.forwarded_for(of_client("203.0.113.7")) == ["203.0.113.7"]
    assert site.forwarded_for(of_client("2001:db8::7", tlvs=tlv(2, b"hub.example"))) == ["2001:db8::7"]
    # Its own connections, by which it looks whether all is well.
    assert site.forwarded_for(header(LOCAL, UNSPEC, b"")) == [HUB_BALANCER]
    assert {"203.0.113.7", "2001:db8::7", HUB_BALANCER} <= recorded(site, "--agent", "probe")
    # Also of an unauthenticated client.
    with site.through(of_client("203.0.113.8")) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400")
    assert "203.0.113.8" in recorded(site, "--kind", "request.malformed")


def test_a_header_of_whoever_is_not_named_is_never_read(site: Site) -> None:
    with site.tcp("127.0.0.1") as stranger:
        stranger.sendall(of_client("203.0.113.66"))
        stranger.settimeout(DEADLINE_S)
        with suppress(ConnectionError):
            # OpenSSL's alert at the most: this is no TLS.
            assert not stranger.recv(100).startswith(b"HTTP")
    assert RawClient(site.world, "tunnel").get("/version").status != 401
    assert "203.0.113.66" not in recorded(site)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"PROXY TCP4 203.0.113.7 127.0.0.1 40000 443\r\n",
        header(0x31, 0x11, bytes(12)),
        header(0x21, 0x12, bytes(12)),
        of_client("203.0.113.7")[:20],
    ],
    ids=["tls", "v1", "v3", "udp", "cut"],
)
def test_from_a_load_balancer_the_header_is_required_before_tls(site: Site, said: bytes) -> None:
    assert site.is_refused(said)
    assert not site.is_refused(of_client("203.0.113.7"))


def test_a_load_balancer_that_says_nothing_is_shown_out_after_two_seconds(site: Site) -> None:
    with site.tcp(HUB_BALANCER) as silent:
        began = time.monotonic()
        silent.settimeout(DEADLINE_S)
        assert silent.recv(1) == b""
        assert 1.5 < time.monotonic() - began < 6


def test_a_client_that_fills_its_place_takes_nothing_from_others_behind_the_same_load_balancer(
    site: Site,
) -> None:
    with ExitStack() as stack:
        earlier = [stack.enter_context(site.through(of_client(f"203.0.113.{number}"))) for number in range(5)]
        # As many as one address may have: with these 517 in all, which one address may not.
        for _ in range(512):
            stack.enter_context(site.through(of_client("203.0.113.50")))
        for connection in earlier:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        for number in range(51, 61):
            assert site.forwarded_for(of_client(f"203.0.113.{number}")) == [f"203.0.113.{number}"]


def test_wrong_codes_are_throttled_by_the_clients_address(site: Site) -> None:
    key = SigningKey.generate()

    def enrol(address: str) -> int:
        hub = f"https://127.0.0.1:{site.world.hub_port}"
        proof = issue_enrolment(key, hub_url=hub, jti=secrets.token_hex(8), now=time.time())
        code = new_code(secrets.token_bytes(20))
        form = urlencode({"code": code, "jwk": json.dumps(key.public.to_jwk()), "proof": proof}).encode()
        with site.through(of_client(address)) as connection:
            talk = Talk(connection)
            talk.send(
                b"POST /v1/enrol HTTP/1.1\r\nHost: h\r\nContent-Type: application/x-www-form-urlencoded\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(form), form)
            )
            return talk.answer().status

    statuses = [enrol("203.0.113.80") for _ in range(12)]
    assert statuses == [401] * 10 + [429] * 2
    assert enrol("203.0.113.81") == 401


def test_the_admin_listener_and_health_know_no_such_header(site: Site) -> None:
    context = RawClient(site.world, "tunnel").context()
    with site.tcp(HUB_BALANCER, site.world.admin_port) as plain:
        with shake_hands(plain, context) as connection:
            connection.sendall(b"GET /v1/agents HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 401")
    port = site.world.health_ports["direct"]
    health = http.client.HTTPConnection("127.0.0.1", port, DEADLINE_S, (RELAY_BALANCER, 0))
    health.request("GET", "/healthz")
    assert health.getresponse().status == 200
    health.close()


def test_a_relay_in_direct_mode_sees_past_its_load_balancer(site: Site) -> None:
    # The hub itself comes without one here.
    assert RawClient(site.world, "direct").get("/version").status != 503
    context = ssl.create_default_context(cafile=str(site.world.folder / "direct-ca.pem"))
    with site.tcp(RELAY_BALANCER, site.world.direct_port) as plain:
        plain.sendall(of_client("203.0.113.90", 4711))
        with shake_hands(plain, context) as connection:
            connection.sendall(b"GET /api HTTP/1.1\r\nHost: h\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 401")
    log = site.world.folder / "relay-direct.log"
    wait_until(lambda: "refused a request of 203.0.113.90:4711" in log.read_text())
    with site.tcp(RELAY_BALANCER, site.world.direct_port) as plain, suppress(ConnectionError):
        plain.sendall(hello())
        assert plain.recv(1) == b""


def test_a_hub_that_takes_over_goes_on_so(site: Site) -> None:
    old = site.world.replace_hub()
    try:
        assert site.forwarded_for(of_client("203.0.113.7")) == ["203.0.113.7"]
        assert site.is_refused(b"")
    finally:
        old.process.terminate()
        old.process.wait(DEADLINE_S)
