"""The public listener over TLS in memory, with all that stands behind it; nobody here is known to it."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NoReturn

import attrs
import pytest
import trio
import trio.testing
from prometheus_client import CollectorRegistry
from trio.testing import MockClock

from audit.reader import AuditReader
from audit.recording.opening import open_recorder
from audit.store import AuditStore
from auth.hubtime import hub_time
from auth.jws import TokenError
from auth.keys import SigningKey
from auth.principal import Principal
from auth.tokens import issue_access, issue_hello
from proxy.exchange.parked_connection import Begun
from proxy.exchange.server import ServerConnection
from proxy.hub.admin.metrics.hub import ReplayCollector
from proxy.hub.authorize.access import AccessTokens
from proxy.hub.authorize.events import Trail
from proxy.hub.calls.begin import begin
from proxy.hub.calls.calls import Calls
from proxy.hub.front import HANDSHAKE_S, Front
from proxy.hub.home.certificate import Certificate
from proxy.hub.home.config import HubConfig
from proxy.hub.home.datadir import DataDir
from proxy.hub.identity.enrol import EnrolmentEndpoint
from proxy.hub.identity.oauth import FORM_BYTES_MAX
from proxy.hub.identity.token import TokenEndpoint
from proxy.hub.own_paths import plain
from proxy.hub.relays.accept_limit import CLUSTER_BURST
from proxy.hub.relays.dial_auth import DialAuth
from proxy.hub.relays.direct import DirectRelays
from proxy.hub.relays.endpoint import RelayEndpoint
from proxy.hub.relays.pins import Pins
from proxy.hub.relays.registry import Registry
from proxy.hub.store.directory import open_directory
from proxy.hub.store.secrets.signing_keys import SigningKeys
from proxy.listener.unauthenticated import PENDING_S
from proxy.message.head import RequestHead
from tests.fakes.replays import open_replays, unreachable
from tests.tunnel.stream_pairs import tcp_pair
from tunnel import Hello, Memory, Role, open_session
from tunnel.net.connect import TLSStream, client_context, wrap_client
from tunnel.websocket.upgrade import AT_HEADER, dial_websocket

NOW = 1_800_000_000.0
HOST = "hub.example"
ISSUER = f"https://{HOST}"


@attrs.define(eq=False)
class Bench:
    front: Front
    key: SigningKey
    nursery: trio.Nursery

    async def connect(
        self, client: trio.abc.Stream | None = None, server: trio.abc.Stream | None = None
    ) -> TLSStream:
        if client is None or server is None:
            client, server = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self.front.handle_client, server)
        context = client_context(self.front.certificate.ca_pem)
        return await wrap_client(client, context, server_hostname=HOST)


@attrs.define
class Crowd:
    """A loop that is so busy that a task which received something waits for its pass (Fairness)."""

    passing: int
    waits: trio.Event = attrs.Factory(trio.Event)
    over: trio.Event = attrs.Factory(trio.Event)

    def admits(self) -> bool:
        self.passing -= 1
        return self.passing >= 0

    async def wait(self, _: object) -> None:
        self.waits.set()
        await self.over.wait()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    config = HubConfig(org="acme", public_url=ISSUER)
    key = SigningKey.generate()
    keys = SigningKeys(key, (key,))
    store, trail, registry = AuditStore(tmp_path / "audit.db"), Trail("acme"), Registry()
    async with (
        open_recorder(store, org="acme") as recorder,
        open_directory(tmp_path / "hub.db", org="acme", clock=lambda: NOW) as directory,
        open_replays(tmp_path / "seen.db") as replays,
        trio.open_nursery() as nursery,
    ):
        calls = Calls(
            config=config,
            directory=directory,
            tokens=AccessTokens(lambda: keys.public, issuer=ISSUER, org="acme"),
            registry=registry,
            direct=DirectRelays(
                keys=lambda: keys,
                issuer=ISSUER,
                new_id=lambda: "id",
                nursery=nursery,
                enrolled=lambda: directory.current.clusters_by_id.keys(),
                pins=Pins(directory, recorder, trail),
            ),
            recorder=recorder,
            trail=trail,
            observe=lambda event: None,
        )
        relays = RelayEndpoint(
            config=config,
            directory=directory,
            registry=registry,
            keys=lambda: keys,
            recorder=recorder,
            trail=trail,
            memory=Memory(2**20),
            boot="boot",
            software="hawse/test",
            new_id=lambda: "id",
        )
        tokens = TokenEndpoint(
            directory=directory,
            keys=lambda: keys,
            pepper=b"p" * 32,
            issuer=ISSUER,
            record=recorder.complete,
            clock=lambda: NOW,
            replays=replays,
            limits=config.limits,
            recording=lambda: True,
            state_of=lambda cluster: "not tried",
        )
        front = Front(
            certificate=Certificate.open(config, DataDir.open(tmp_path / "data"), time.time),
            calls=calls,
            relays=relays,
            dial_auth=DialAuth(directory, registry, ISSUER, b"p" * 32, replays),
            tokens=tokens,
            enrolment=EnrolmentEndpoint(directory, b"p" * 32, ISSUER, recorder, lambda: NOW),
            recorder=recorder,
            trail=trail,
            clock=lambda: NOW,
        )
        nursery.start_soon(front.run)
        yield Bench(front, key, nursery)
        nursery.cancel_scope.cancel()
    store.close()


async def head_of(client: TLSStream) -> bytes:
    received = b""
    while b"\r\n\r\n" not in received:
        data = await client.receive_some()
        assert data, "the connection ended"
        received += data
    return received.partition(b"\r\n\r\n")[0]


async def test_a_form_that_never_ends_holds_its_place_no_longer_than_patience(
    bench: Bench, autojump_clock: MockClock
) -> None:
    client = await bench.connect()
    began = trio.current_time()
    await client.send_all(
        b"POST /oauth/token HTTP/1.1\r\nHost: hub.example\r\nContent-Length: 10\r\n"
        b"Content-Type: application/x-www-form-urlencoded\r\n\r\nab"
    )
    with pytest.raises(trio.BrokenResourceError):
        await client.receive_some()
    assert trio.current_time() - began == pytest.approx(PENDING_S)
    await trio.testing.wait_all_tasks_blocked()
    assert bench.front.unauthenticated.connections == 0
    assert bench.front.deadlines.watched == 0


@pytest.mark.parametrize(("over", "status"), [(0, 400), (1, 413)])
async def test_a_stranger_is_read_as_far_as_a_form_may_go(bench: Bench, over: int, status: int) -> None:
    client = await bench.connect()
    size = FORM_BYTES_MAX + over
    await client.send_all(
        b"POST /oauth/token HTTP/1.1\r\nHost: hub.example\r\nContent-Length: %d\r\n"
        b"Content-Type: application/x-www-form-urlencoded\r\n\r\n" % size + b"x" * size
    )
    assert (await head_of(client)).startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize("path", ["/oauth/token", "/v1/enrol"])
async def test_a_form_in_broken_chunks_is_told_of_and_in_the_trail(
    bench: Bench, tmp_path: Path, path: str
) -> None:
    client = await bench.connect()
    await client.send_all(
        b"POST %s HTTP/1.1\r\nHost: hub.example\r\nTransfer-Encoding: chunked\r\n\r\nno length\r\n"
        % path.encode()
    )
    head = await head_of(client)
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"\r\nConnection: close" in head
    [event] = await trail(bench, tmp_path)
    assert (event["kind"], event["note"]) == ("request.malformed", "the request's body is malformed")
    assert event["req"]["raw_target"] == path


async def test_a_stranger_that_makes_room_waits_for_nobody_else(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = trio.Event()

    async def issuer_is_away(*_: object) -> NoReturn:
        try:
            await trio.sleep_forever()
        finally:
            left.set()

    monkeypatch.setattr(bench.front.tokens, "answer", issuer_is_away)
    monkeypatch.setattr("proxy.listener.unauthenticated.UnauthenticatedLimits.per_network_max", 1)
    monkeypatch.setattr("proxy.listener.unauthenticated.UNHURRIED_S", 0.0)
    waiting = await bench.connect()
    await waiting.send_all(b"POST /oauth/token HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\na")
    await trio.testing.wait_all_tasks_blocked()
    newcomer = await bench.connect()
    with trio.fail_after(5):
        await left.wait()
    await newcomer.send_all(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
    assert (await head_of(newcomer)).startswith(b"HTTP/1.1 200 ")


async def trail(bench: Bench, folder: Path) -> list[dict[str, Any]]:
    await bench.front.recorder.flush()
    reader = AuditReader(folder / "audit.db")
    try:
        return [json.loads(stored.body) for stored in reader.query()]
    finally:
        reader.close()


async def test_what_is_no_request_is_told_of_and_in_the_trail(bench: Bench, tmp_path: Path) -> None:
    client = await bench.connect()
    await client.send_all(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
    assert (await head_of(client)).startswith(b"HTTP/1.1 400 ")
    [event] = await trail(bench, tmp_path)
    assert (event["kind"], event["actor"]["type"]) == ("request.malformed", "anonymous")
    # And that was its last.
    await client.send_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
    with pytest.raises(AssertionError, match="the connection ended"):
        await head_of(client)


async def test_a_relay_that_nobody_knows_is_told_so_and_in_the_trail(bench: Bench, tmp_path: Path) -> None:
    client = await bench.connect()
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nAuthorization: Bearer a.b.c\r\n"
    await client.send_all(b"GET /v1/tunnel HTTP/1.1\r\nHost: hub.example\r\n%s\r\n" % upgrade)
    assert (await head_of(client)).startswith(b"HTTP/1.1 401 ")
    [event] = await trail(bench, tmp_path)
    assert (event["kind"], event["req"]["raw_target"]) == ("auth.failed", "/v1/tunnel")
    assert "a.b.c" not in str(event)


async def test_a_relay_whose_token_cannot_be_recorded_is_told_to_come_again(
    bench: Bench, tmp_path: Path, autojump_clock: MockClock
) -> None:
    cluster = await bench.front.calls.directory.change(
        lambda store: store.add_cluster("prod", teams=[], relay_key=bench.key.public)
    )
    hello = issue_hello(bench.key, cluster_id=cluster, hub_url=ISSUER, instance="r", jti="j", now=NOW)
    metrics = CollectorRegistry()
    async with open_replays(unreachable(tmp_path)) as away:
        metrics.register(ReplayCollector(away, bench.front.enrolment))
        bench.front.dial_auth._replays.store = away
        client = await bench.connect()
        upgrade = (
            b"Connection: Upgrade\r\nUpgrade: websocket\r\nAuthorization: Bearer %s\r\n" % hello.encode()
        )
        await client.send_all(b"GET /v1/tunnel HTTP/1.1\r\nHost: hub.example\r\n%s\r\n" % upgrade)
        head = await head_of(client)
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 2" in head.lower()
        assert metrics.get_sample_value("hawse_seen_unwritten_total") == 1
        bench.front.enrolment.unwritten = 2
        assert metrics.get_sample_value("hawse_seen_unwritten_total") == 3


async def test_a_client_that_leaves_within_its_form_is_watched_no_more(bench: Bench) -> None:
    client = await bench.connect()
    await client.send_all(
        b"POST /oauth/token HTTP/1.1\r\nHost: hub.example\r\nContent-Length: 10\r\n"
        b"Content-Type: application/x-www-form-urlencoded\r\n\r\nab"
    )
    await trio.testing.wait_all_tasks_blocked()
    assert bench.front.deadlines.watched == 1
    await trio.aclose_forcefully(client)
    await trio.testing.wait_all_tasks_blocked()
    assert bench.front.unauthenticated.connections == 0
    assert bench.front.deadlines.watched == 0


@pytest.mark.parametrize(
    "target",
    ["/.well-known/jwks.json", "/clusters/prod/api", "/v1/tunnel", "what is no request", "our fault"],
)
async def test_a_stranger_who_does_not_take_the_answer_is_cut(
    bench: Bench, autojump_clock: MockClock, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if target == "our fault":
        monkeypatch.setattr("proxy.hub.calls.calls.parse_request", None)
        target = "/clusters/prod/api"
    # What one end sends stays there until the other one has received it.
    client = await bench.connect(*trio.testing.lockstep_stream_pair())
    await client.send_all(f"GET {target} HTTP/1.1\r\nHost: hub.example\r\n\r\n".encode())
    await trio.sleep(PENDING_S - 1)
    assert bench.front.unauthenticated.connections == 1
    await trio.sleep(2)
    assert bench.front.unauthenticated.connections == 0


async def test_a_stranger_who_does_not_finish_the_handshake_is_cut(
    bench: Bench, autojump_clock: MockClock
) -> None:
    client, server = trio.testing.memory_stream_pair()
    bench.nursery.start_soon(bench.front.handle_client, server)
    await client.send_all(b"\x16\x03\x01")
    await trio.sleep(HANDSHAKE_S - 1)
    assert bench.front.unauthenticated.connections == 1
    with trio.fail_after(2):
        # Its own end, and no alert.
        assert await client.receive_some() == b""
    await trio.testing.wait_all_tasks_blocked()
    assert bench.front.unauthenticated.connections == 0


async def test_a_handshake_whose_last_flight_waits_for_its_pass_too_long_is_no_fault_of_ours(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, mock_clock: MockClock
) -> None:
    crowd = Crowd(passing=2)
    near, far = await tcp_pair()
    async with trio.open_nursery() as nursery:
        with monkeypatch.context() as patched:
            # The hello and the client's own step pass. The hub's second step waits.
            patched.setattr("tunnel.net.tls.fairness", lambda: crowd)
            nursery.start_soon(bench.connect, near, far)
            await crowd.waits.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert bench.front.unauthenticated.connections == 1
        mock_clock.jump(HANDSHAKE_S)
        await trio.testing.wait_all_tasks_blocked()
        crowd.over.set()
        await trio.testing.wait_all_tasks_blocked()
    assert bench.front.unauthenticated.connections == 0
    assert "fault of ours" not in caplog.text
    await near.aclose()


async def test_a_fault_of_ours_is_answered_and_ends_the_connection(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("proxy.hub.calls.calls.parse_request", fail)
    client = await bench.connect()
    await client.send_all(
        b"POST /clusters/prod/api HTTP/1.1\r\nHost: hub.example\r\nContent-Length: 10\r\n\r\nthe b"
    )
    head = await head_of(client)
    assert head.startswith(b"HTTP/1.1 500 ")
    assert b"\r\nConnection: close" in head
    # Who still sends gets to read the answer; a reset would have taken it away.
    await client.send_all(b"ody..")
    while await client.receive_some():
        pass
    await trio.testing.wait_all_tasks_blocked()
    assert "a bug" in caplog.text
    assert bench.front.unauthenticated.connections == 0


async def agents_request(bench: Bench) -> tuple[Principal, bytes]:
    """A request of an agent that the hub knows, for a cluster that it does not know."""
    directory = bench.front.calls.directory
    await directory.change(lambda store: store.add_team("sre"))
    await directory.change(
        lambda store: store.add_agent("ann", owner="Ann", teams=["sre"], key_hash="h", key_hint="hws_1")
    )
    ann = directory.current.agents_by_name["ann"].principal
    assert ann is not None
    [credential] = directory.current.credentials
    token = issue_access(
        bench.key, issuer=ISSUER, principal=ann, cluster="prod", sid=credential, jti="jti", now=time.time()
    )
    lines = b"GET /clusters/prod/api HTTP/1.1\r\nHost: hub.example\r\nAuthorization: Bearer %s\r\n\r\n"
    return ann, lines % token.encode()


@pytest.mark.parametrize("over_a_socket", [False, True])
async def test_an_agents_connection_is_no_strangers_and_is_forgotten_when_it_ends(
    bench: Bench, over_a_socket: bool
) -> None:
    ann, request = await agents_request(bench)
    client = await bench.connect(*(await tcp_pair() if over_a_socket else ()))
    for _ in range(2):
        await client.send_all(request)
        assert (await head_of(client)).startswith(b"HTTP/1.1 403 ")
    assert bench.front.unauthenticated.connections == 0
    assert bench.front.unauthenticated.bytes_held == 0
    [connection] = bench.front.connections._agents
    # Its turns are its own from now on, and not those of its address.
    assert connection.peer == ann.agent_id
    await client.aclose()
    await trio.testing.wait_all_tasks_blocked(0.001)
    assert len(bench.front.connections) == 0
    assert bench.front.deadlines.watched == 0


@attrs.define(eq=False)
class Answered:
    """A request that was begun, and gets its answer in the task (Begun)."""

    connection: ServerConnection
    peer: str = "agent"

    def start(self) -> None:
        assert self.connection.parked is not None
        self.connection.parked.hand_over()

    async def carry_on(self) -> None:
        await self.connection.answer(*plain(200, b"begun\n"))

    def give_up(self) -> None: ...


async def test_the_first_request_of_an_agent_is_begun_without_its_task(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, request = await agents_request(bench)
    began: list[tuple[int, str]] = []

    def begin(
        calls: Calls,
        address: str,
        connection: ServerConnection,
        head: RequestHead,
        authenticated: Callable[[Principal], None] | None = None,
    ) -> Answered:
        assert connection.parked is not None
        assert connection.parked.parked
        began.append((bench.front.unauthenticated.bytes_held, address))
        if authenticated is not None:
            authenticated(ann)
            assert connection.peer == ann.agent_id
            assert connection.parked.port.peer == ann.agent_id
        return Answered(connection)

    monkeypatch.setattr("proxy.hub.front.begin", begin)
    client = await bench.connect(*await tcp_pair())
    for _ in range(2):
        await client.send_all(request)
        assert (await head_of(client)).startswith(b"HTTP/1.1 200 ")
    # What a stranger has sent is charged to the strangers, and what an agent sends is not.
    assert [held for held, _ in began] == [len(request), 0]
    assert len(bench.front.connections) == 1
    await trio.aclose_forcefully(client)
    await trio.testing.wait_all_tasks_blocked(0.001)
    assert len(bench.front.connections) == 0


async def test_a_strangers_requests_over_a_socket_are_left_to_its_task(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = 0

    def count(*arguments: Any) -> Begun | None:
        nonlocal begun
        begun += 1
        return begin(*arguments)

    monkeypatch.setattr("proxy.hub.front.begin", count)
    client = await bench.connect(*await tcp_pair())
    for _ in range(3):
        await client.send_all(
            b"GET /clusters/prod/api HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer a.b.c\r\n\r\n"
        )
        assert (await head_of(client)).startswith(b"HTTP/1.1 401 ")
    assert bench.front.unauthenticated.connections == 1
    assert bench.front.unauthenticated.bytes_held == 0
    # Verifying a token is dear, so a stranger has it done twice for its first request only.
    assert begun == 1
    [event, *more] = await trail(bench, tmp_path)
    assert (event["kind"], len(more)) == ("auth.failed", 2)
    # In pieces it has a deadline for the rest.
    await client.send_all(b"GET /healthz HTTP/1.1\r\n")
    await trio.testing.wait_all_tasks_blocked(0.001)
    assert bench.front.unauthenticated.bytes_held == 23
    await client.send_all(b"Host: a\r\n\r\n")
    assert (await head_of(client)).startswith(b"HTTP/1.1 200 ")
    await trio.aclose_forcefully(client)


async def test_a_bug_in_the_beginning_of_a_first_request_is_answered_and_ends_the_connection(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("proxy.hub.calls.begin.parse_request", fail)
    client = await bench.connect(*await tcp_pair())
    await client.send_all(b"GET /clusters/prod/api HTTP/1.1\r\nHost: hub.example\r\n\r\n")
    assert (await head_of(client)).startswith(b"HTTP/1.1 500 ")
    while await client.receive_some():
        pass
    await client.aclose()
    assert "a bug" in caplog.text
    assert bench.front.unauthenticated.connections == 0


async def test_a_client_that_leaves_out_the_cluster_is_told_where_clusters_are(bench: Bench) -> None:
    client = await bench.connect()
    for path in (b"/api/v1/pods", b"/api", b"/apis/apps/v1", b"/version"):
        await client.send_all(b"GET %b HTTP/1.1\r\nHost: hub.example\r\n\r\n" % path)
        head = await head_of(client)
        assert head.startswith(b"HTTP/1.1 404 ")
        # What stands in the way, and that the operator can mend it: this hub gives clusters no hosts.
        assert b"this client has left out the path of its server's URL, /clusters/NAME" in head
        assert b"the operator of this hub sets cluster_hosts" in head
    await client.send_all(b"GET /apiary HTTP/1.1\r\nHost: hub.example\r\n\r\n")
    assert b"a cluster's begin with /clusters/NAME" in await head_of(client)


async def test_a_relay_with_a_wrong_clock_is_told_the_time(bench: Bench) -> None:
    client = await bench.connect()
    await client.send_all(
        b"GET /v1/tunnel HTTP/1.1\r\nHost: hub.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Authorization: Bearer nonsense\r\n\r\n"
    )
    head = await head_of(client)
    assert head.startswith(b"HTTP/1.1 401 ")
    assert b"\r\ndate: Fri, 15 Jan 2027 08:00:00 GMT" in head


UPGRADE = (
    b"GET /v1/tunnel HTTP/1.1\r\nHost: hub.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Authorization: Bearer nonsense\r\n"
)


async def test_relays_above_the_limit_are_told_when_to_come_before_anything_is_verified(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    limit = bench.front.dial_auth.limit
    while limit.admit(trio.current_time(), resumes=False) == 0:
        pass
    verified: list[bytes] = []
    monkeypatch.setattr(DialAuth, "authenticate", lambda _, head, now, arrival: verified.append(head.target))
    client = await bench.connect()
    await client.send_all(UPGRADE + b"\r\n")
    head = await head_of(client)
    assert head.startswith(b"HTTP/1.1 503 ")
    assert head.endswith(b"\r\nretry-after: 1")
    assert verified == []


@pytest.mark.parametrize(
    ("hub", "listed", "status"),
    [
        ("0a1b2c3d", b"0a1b2c3d", 503),
        ("0a1b2c3d", b"ffffffff, 0a1b2c3d", 503),
        ("0a1b2c3d", b"ffffffff,0a1b2c3", 401),
        ("0a1b2c3d", b"", 401),
        # On SQLite a hub has no id.
        ("", b",", 401),
    ],
)
async def test_a_relay_that_has_a_tunnel_here_is_refused_before_anything_is_verified(
    bench: Bench, hub: str, listed: bytes, status: int
) -> None:
    limit = bench.front.dial_auth.limit
    # Nor does it wait behind others: it is answered at once when too many dial.
    while status == 503 and limit.admit(trio.current_time(), resumes=False) == 0:
        pass
    bench.front.relays.hub = hub
    client = await bench.connect()
    await client.send_all(UPGRADE + b"Hawse-Elsewhere: %s\r\n\r\n" % listed)
    head = await head_of(client)
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert (b"\r\nhawse-at: 0a1b2c3d" in head) is (status == 503)
    assert (b"\r\nretry-after: 1\r\n" in head) is (status == 503)
    assert limit.arrivals == 0


async def test_a_refused_dial_whose_client_reads_nothing_does_not_count(
    bench: Bench, autojump_clock: MockClock
) -> None:
    limit = bench.front.dial_auth.limit
    left = limit._accepts.left(trio.current_time())
    client, server = trio.testing.memory_stream_pair()
    stuck = await bench.connect(client, server)
    answers = trio.Event()

    async def wait() -> None:
        answers.set()
        await trio.sleep_forever()

    server.send_stream.send_all_hook = wait
    await stuck.send_all(UPGRADE + b"\r\n")
    await answers.wait()
    assert limit.arrivals == 0
    assert limit._accepts.left(trio.current_time()) >= left


async def test_a_cluster_that_dials_without_end_takes_nobodys_place(
    bench: Bench, autojump_clock: MockClock
) -> None:
    key = SigningKey.generate()
    relays = bench.front.relays
    await relays.directory.change(lambda store: store.add_cluster("evil", teams=[], relay_key=key.public))
    cluster = relays.directory.current.clusters_by_name["evil"]
    limit = bench.front.dial_auth.limit
    for _ in range(CLUSTER_BURST):
        arrival = limit.arrive()
        limit.admit_cluster(arrival, cluster.id, "evil", trio.current_time())
        arrival.settle()
    token = issue_hello(
        key, cluster_id=cluster.id, hub_url=ISSUER, instance="r", jti="j", now=bench.front.clock()
    )
    left = limit._accepts.left(trio.current_time())
    client = await bench.connect()
    await client.send_all(UPGRADE.replace(b"nonsense", token.encode()) + b"\r\n")
    head = await head_of(client)
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nretry-after: 2" in head
    assert limit._accepts.left(trio.current_time()) >= left


async def test_a_relay_is_no_stranger_and_stays_for_longer_than_one_may(
    bench: Bench, mock_clock: MockClock
) -> None:
    key = SigningKey.generate()
    relays = bench.front.relays
    await relays.directory.change(lambda store: store.add_cluster("prod", teams=[], relay_key=key.public))
    [cluster_id] = relays.directory.current.clusters_by_id
    token = issue_hello(key, cluster_id=cluster_id, hub_url=ISSUER, instance="r", jti="j", now=NOW)
    client = await bench.connect()
    headers = [(b"authorization", b"Bearer " + token.encode())]
    hello = Hello(cluster=cluster_id, instance="r")
    relays.hub = "0a1b2c3d"
    async with (
        dial_websocket(client, host=HOST, target="/v1/tunnel", headers=headers) as transport,
        open_session(transport, Role.DIALER, hello=hello) as session,
    ):
        assert (AT_HEADER, b"0a1b2c3d") in transport.answer_headers
        assert bench.front.unauthenticated.connections == 0
        # Not before: a thread has written down what the relay has shown.
        mock_clock.autojump_threshold = 0
        with trio.move_on_after(2 * PENDING_S) as stayed:
            await session.wait_closed()
        assert stayed.cancelled_caught


async def test_a_relay_whose_clock_is_off_is_told_the_time_with_its_refusal_and_both_logs_say_so(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    key = SigningKey.generate()
    relays = bench.front.relays
    await relays.directory.change(lambda store: store.add_cluster("prod", teams=[], relay_key=key.public))
    [cluster_id] = relays.directory.current.clusters_by_id
    token = issue_hello(key, cluster_id=cluster_id, hub_url=ISSUER, instance="r", jti="j", now=NOW - 300)
    told = b"\r\nhawse-hub-time: " + hub_time(b"p" * 32, NOW).encode()
    for sent, tells in ((token.encode(), True), (b"nonsense", False)):
        client = await bench.connect()
        await client.send_all(UPGRADE.replace(b"nonsense", sent) + b"\r\n")
        head = await head_of(client)
        assert head.startswith(b"HTTP/1.1 401 ")
        assert (told in head) is tells
    [line] = [line for line in caplog.messages if "the clock of" in line]
    assert "a relay of cluster prod seems to be 300 s behind this hub's: set the one that is wrong" in line


async def test_a_relay_that_resumes_goes_first_and_a_stranger_takes_nobodys_place(bench: Bench) -> None:
    limit = bench.front.dial_auth.limit
    while limit.admit(trio.current_time(), resumes=False) == 0:
        pass
    for _ in range(3):
        client = await bench.connect()
        await client.send_all(UPGRADE + b"Hawse-Session: s1\r\n\r\n")
        assert (await head_of(client)).startswith(b"HTTP/1.1 401 ")


READYZ = b"GET /readyz HTTP/1.1\r\nHost: h\r\n\r\n"


async def test_a_hub_that_may_decide_nothing_is_not_ready_and_takes_no_tunnel(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    age = bench.front.calls.directory.age
    client = await bench.connect()
    for ready, withheld, status in ((False, "", 503), (True, "", 200), (True, "it is away", 503)):
        bench.front.ready = ready
        age.withhold(withheld)
        await client.send_all(READYZ)
        assert (await head_of(client)).startswith(b"HTTP/1.1 %d " % status)
        await client.send_all(READYZ.replace(b"readyz", b"healthz"))
        assert (await head_of(client)).startswith(b"HTTP/1.1 200 ")
    verified: list[bytes] = []

    async def verify(_: object, head: RequestHead, *__: object) -> NoReturn:
        verified.append(head.target)
        raise TokenError("of nobody here")

    monkeypatch.setattr(DialAuth, "authenticate", verify)
    client = await bench.connect()
    await client.send_all(UPGRADE + b"\r\n")
    head = await head_of(client)
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"it is away" in head
    assert b"\r\nretry-after: 1" in head
    assert verified == []
    # The calls of a session that resumes were admitted before.
    await client.send_all(UPGRADE + b"Hawse-Session: s1\r\n\r\n")
    assert (await head_of(client)).startswith(b"HTTP/1.1 401 ")
    assert verified == [b"/v1/tunnel"]


async def test_a_hub_that_leaves_takes_no_tunnel_and_still_resumes_sessions(bench: Bench) -> None:
    bench.front.dials.leaving = True
    client = await bench.connect()
    await client.send_all(UPGRADE + b"\r\n")
    head = await head_of(client)
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nretry-after: 1" in head
    assert b"this hub stops, and others serve" in head
    await client.send_all(UPGRADE + b"Hawse-Session: s1\r\n\r\n")
    assert (await head_of(client)).startswith(b"HTTP/1.1 401 ")
