"""An API server that lies, stalls and breaks, behind the whole chain in both modes."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise

import pytest

from tests.fakes.apiserver import TOKEN, Exchange, Gone, refusal
from tests.system.chain import Chain
from tests.system.raw import V5, WEBSOCKET_ACCEPT, WEBSOCKET_KEY, Answer, End, RawClient, Talk
from tests.system.waiting import wait_until
from tests.system.world import GROUP, USER, WAYS

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(120)]

# What "at once" means in the conformance list, with room for a machine that is busy with other tests.
SOON_S = 1.0
BUSY_S = 2.0
SWITCH = (
    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    f"Sec-WebSocket-Accept: {WEBSOCKET_ACCEPT}\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n"
).encode()
WATCH = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(params=WAYS)
def client(request: pytest.FixtureRequest, chain: Chain) -> RawClient:
    return chain.client(request.param)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def frame(channel: int, data: bytes) -> bytes:
    """A server's binary WebSocket message of one channel."""
    assert len(data) < 125
    return b"\x82" + bytes([len(data) + 1, channel]) + data


def close_frame(code: int) -> bytes:
    return b"\x88\x02" + code.to_bytes(2, "big")


# -- what reaches the API server: C02, C03, C10, C12 ------------------------------------------------------

HOSTILE = [
    "User-Agent: kubectl/v1.37 probe",
    "Accept: application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
    "Kubectl-Command: kubectl get",
    "X-Stream-Protocol-Version: v5.channel.k8s.io",
    "X-Stream-Protocol-Version: v4.channel.k8s.io",
    "Connection: X-Hop, Impersonate-User, Impersonate-Group, Authorization, Audit-ID, Host",
    "Keep-Alive: timeout=5",
    "Proxy-Authorization: Basic secret-proxy",
    "Proxy-Connection: keep-alive",
    "TE: trailers",
    "X-Hop: 1",
    "X-A: 1",
    "Cookie: session=secret-cookie",
    "X-Remote-User: system:admin",
    "X-Remote-Group: system:masters",
    "X-Remote-Extra-Scopes: secret-scope",
    "X-Forwarded-For: 203.0.113.9",
    "X-Forwarded-Access-Token: secret-forwarded",
    "X-Forwarded-Host: evil.example",
    "X-Real-Ip: 203.0.113.9",
    "Forwarded: for=203.0.113.9",
    "Audit-ID: 11111111-2222-7333-8444-555555555555",
    "Origin: https://evil.example",
    "Hawse-Relay-Failure: 7;0;mine",
    "X-Custom: not on the list",
]


def test_the_api_server_gets_exactly_the_head_that_we_write(chain: Chain, client: RawClient) -> None:
    path, mark = chain.path(lambda exchange: exchange.answer(200, b"{}", "Audit-Id: theirs"))

    answer = client.get(path, *HOSTILE)

    assert answer.status == 200
    [exchange] = chain.server.seen(mark)
    fields = exchange.fields
    extras = [field for field in fields if field[0].startswith("impersonate-extra-")]
    assert sorted(name for name, _ in extras) == [
        "impersonate-extra-hawse.dev%2fagent-id",
        "impersonate-extra-hawse.dev%2fsession",
    ]
    [audit_id] = exchange.header("audit-id")
    assert [field for field in fields if field not in extras] == [
        ("host", f"127.0.0.1:{chain.server.port}"),
        ("authorization", f"Bearer {TOKEN}"),
        ("impersonate-user", USER),
        ("impersonate-group", GROUP),
        ("audit-id", audit_id),
        ("x-forwarded-for", "127.0.0.1"),
        ("user-agent", "kubectl/v1.37 probe"),
        ("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"),
        ("kubectl-command", "kubectl get"),
        ("x-stream-protocol-version", "v5.channel.k8s.io"),
        ("x-stream-protocol-version", "v4.channel.k8s.io"),
    ]
    trail = [event for event in chain.world.hub_audit("--since", "1m") if mark in json.dumps(event)]
    assert {event["eid"] for event in trail} == {audit_id}
    assert TOKEN not in answer.raw.decode("latin-1") + json.dumps(trail)


def test_trailers_end_at_the_hub(chain: Chain, client: RawClient) -> None:
    def read_and_answer(exchange: Exchange) -> None:
        assert take_chunked(exchange) == b"{}"
        exchange.answer()

    path, mark = chain.path(read_and_answer)
    head = client.head(path, "Transfer-Encoding: chunked", "Trailer: Impersonate-User", method="POST")
    body = b"2\r\n{}\r\n0\r\nImpersonate-User: system:admin\r\nX-Trailing: secret-trailer\r\n\r\n"

    assert client.send(head + body).startswith(b"HTTP/1.1 200")

    [exchange] = chain.server.seen(mark)
    assert b"secret-trailer" not in chain.server.received
    assert b"system:admin" not in bytes(exchange.connection.received)


def take_chunked(exchange: Exchange) -> bytes:
    body = b""
    while size := int(exchange.connection.take_until(b"\r\n"), 16):
        body += exchange.connection.take(size)
        exchange.connection.take(2)
    exchange.connection.take_until(b"\r\n")
    return body


# -- plain answers, the early 413 --------------------------------------------------------------------------


def test_answers_without_a_body_leave_the_connection_in_step(chain: Chain, client: RawClient) -> None:
    def hints(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
        exchange.answer(200, b"after 103")

    cases: list[tuple[str, Callable[[Exchange], None], int, bytes]] = [
        ("HEAD", lambda e: e.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n"), 200, b""),
        ("GET", lambda e: e.send(b"HTTP/1.1 204 No Content\r\n\r\n"), 204, b""),
        ("GET", lambda e: e.send(b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\n\r\n'), 304, b""),
        ("HEAD", lambda e: e.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"), 200, b""),
        ("DELETE", lambda e: e.answer(200, b"deleted"), 200, b"deleted"),
        ("GET", hints, 200, b"after 103"),
        ("GET", lambda e: e.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), 200, b""),
        ("GET", lambda e: e.answer(200, b"last"), 200, b"last"),
    ]
    with client.talk() as talk:
        for method, script, status, body in cases:
            path, _ = chain.path(script)
            talk.send(client.head(path, method=method, connection="keep-alive"))
            answer = talk.answer(body=method != "HEAD")
            assert (answer.status, answer.body) == (status, body), (method, status)
        assert talk.received == b""
        assert talk.end is None


def test_long_heads_are_delivered_and_longer_ones_refused(chain: Chain, client: RawClient) -> None:
    long, mark = chain.path(lambda exchange: exchange.answer(200, b"long"), "?command=" + "x" * 60_000)
    header = "Accept: " + "application/json," * 4_000 + "text/plain"

    assert client.get(long, header).body == b"long"

    [exchange] = chain.server.seen(mark)
    assert exchange.target == long
    assert exchange.header("accept") == [header.removeprefix("Accept: ")]

    before = len(chain.server.exchanges)
    too_long = client.get(f"/api/v1/{mark}", "Accept: " + "y" * (1 << 20))
    assert too_long.status == 431
    assert json.loads(too_long.body)["kind"] == "Status"
    assert len(chain.server.exchanges) == before


def test_an_expectation_is_met_at_once_and_the_body_arrives(chain: Chain, client: RawClient) -> None:
    body = os.urandom(5 * 1024 * 1024)
    path, mark = chain.path(
        lambda exchange: exchange.answer(200, b"%d" % (exchange.connection.take(len(body)) == body))
    )
    head = client.head(path, f"Content-Length: {len(body)}", "Expect: 100-continue", method="PUT")
    with client.talk() as talk:
        began = time.monotonic()
        talk.send(head)
        assert talk.answer(within_s=SOON_S + BUSY_S).status == 100
        assert time.monotonic() - began < SOON_S + BUSY_S
        talk.send(body)
        assert talk.answer().body == b"1"
    [exchange] = chain.server.seen(mark)
    assert exchange.header("expect") == []


@pytest.mark.parametrize("expecting", [False, True])
def test_an_answer_to_an_upload_that_is_not_read_gets_through(
    chain: Chain, client: RawClient, expecting: bool
) -> None:
    done = threading.Event()

    def too_large(exchange: Exchange) -> None:
        exchange.refuse(413, "limit is 3145728", "Connection: close")
        done.wait(20)  # and reads no more of it
        exchange.close()

    path, _ = chain.path(too_large)
    # Less than the hub reads on for a client that looks only when it has sent all.
    size = 8 * 1024 * 1024
    extra = ["Expect: 100-continue"] if expecting else []
    with client.talk(client.head(path, f"Content-Length: {size}", *extra, method="POST")) as talk:
        if not expecting:
            # A connection that was closed with unread bytes is reset, and the answer with it.
            talk.send(bytes(size))
        answer = talk.answer()
        while answer.status == 100:
            answer = talk.answer()
        done.set()
        assert answer.status == 413
        assert json.loads(answer.body)["message"] == "limit is 3145728"


def test_an_answer_that_comes_before_its_request_was_sent_is_no_fault(
    chain: Chain, client: RawClient
) -> None:
    """One in 60 met an upload that had not begun, and declared a body of nothing whole."""
    declared: list[bytes] = []

    def refuse(exchange: Exchange) -> None:
        exchange.answer(403, b"no")
        with suppress(Gone):
            declared.append(exchange.connection.take_until(b"\r\n0\r\n\r\n"))

    path, mark = chain.path(refuse)
    body = b"3\r\nabc\r\n0\r\n\r\n"
    requests = [
        client.head(path, framing, method="POST", connection="keep-alive") + body
        for framing in (f"Content-Length: {len(body)}", "Transfer-Encoding: chunked")
    ]
    talk = Talk(client.connect())
    for number in range(400):
        talk.send(requests[number % 2])
        answer = talk.answer()
        assert (answer.status, answer.body) == (403, b"no")
        if answer.headers.get("connection") == "close":
            talk.connection.close()
            talk = Talk(client.connect())
    talk.connection.close()
    assert not [each for each in declared if b"abc" not in each], "a body of nothing was declared whole"
    rows = [event for event in chain.world.hub_audit("--since", "2m") if mark in json.dumps(event)]
    assert len(rows) == 800
    assert [row["resp"] for row in rows if "reason" in row.get("resp", {})] == []
    chain.check()


def test_a_clients_own_timeout_passes_and_cancels_upstream(chain: Chain, client: RawClient) -> None:
    left: list[float] = []

    def stall(exchange: Exchange) -> None:
        assert exchange.wait_gone()
        left.append(time.monotonic())

    path, mark = chain.path(stall)
    result = chain.world.kubectl(client.way, "get", "--raw", path, "--request-timeout=2s")
    ended = time.monotonic()

    assert result.code != 0
    assert result.err.strip()
    wait_until(lambda: len(left) == len(chain.server.seen(mark)))
    assert "timeout=2s" in chain.server.seen(mark)[0].target
    assert max(left) - ended < SOON_S + BUSY_S


# -- redirects and reserved headers: C15 ---------------------------------------------------------------------


@pytest.mark.parametrize("upgrade", [False, True])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_passed_on_under_the_prefix(
    chain: Chain, client: RawClient, status: int, upgrade: bool
) -> None:
    prefix = f"/clusters/{client.way}"
    own = f"https://127.0.0.1:{chain.server.port}"
    hub = f"https://127.0.0.1:{client.world.hub_port}"
    for location, expected in {
        "/api/v1/x?y=1": f"{prefix}/api/v1/x?y=1",
        f"{own}/api/v1/x": f"{prefix}/api/v1/x",
        f"{hub}/clusters/other/api": f"{prefix}/clusters/other/api",
        "/../../oauth/token": f"{prefix}/oauth/token",
        "https://elsewhere.example/x": None,
    }.items():
        path, mark = chain.exec_path(
            lambda exchange, location=location: exchange.answer(  # type: ignore[misc]
                status, b"moved", f"Location: {location}", "Set-Cookie: a=b"
            )
        )
        head = client.upgrade(path, V5) if upgrade else client.head(path)
        with client.talk(head) as talk:
            answer = talk.answer()
        assert (answer.status, answer.headers.get("location"), answer.body) == (status, expected, b"moved")
        assert "set-cookie" not in answer.headers
        assert len(chain.server.seen(mark)) == 1, "the redirect was followed"


@pytest.mark.parametrize("way", WAYS)
def test_kubectl_takes_its_token_nowhere_else(chain: Chain, way: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.setblocking(False)
        location = f"https://127.0.0.1:{elsewhere.getsockname()[1]}/x"
        mark = chain.server.on(lambda exchange: exchange.answer(302, b"", f"Location: {location}"))
        target = f"/api/v1/namespaces/work/services/{mark}/proxy/"
        done = chain.world.kubectl(way, "get", "--raw", target)
        assert done.code == 1
        assert b"status code 302" in done.err
        with pytest.raises(BlockingIOError):
            elsewhere.accept()


@pytest.mark.parametrize(
    "mark_value", ["7;0;let the hub try again", "8;0;no", "nonsense", "1;2;" + "x" * 900]
)
@pytest.mark.parametrize("status", [200, 401, 503])
def test_upstream_cannot_speak_as_the_relay(
    chain: Chain, client: RawClient, status: int, mark_value: str
) -> None:
    # On a proxy's tail, where a backend writes the answer and even a 401 is its own.
    mark = chain.server.on(
        lambda exchange: exchange.answer(
            status,
            b"the backend's",
            f"Hawse-Relay-Failure: {mark_value}",
            "hawse-anything: x",
            "Connection: hawse-relay-failure",
        )
    )
    answer = client.get(f"/api/v1/namespaces/work/services/{mark}/proxy/")

    assert (answer.status, answer.body) == (status, b"the backend's")
    assert not [name for name in answer.headers if name.startswith("hawse-")]
    assert len(chain.server.seen(mark)) == 1, "the call was tried again at the upstream's word"


@pytest.mark.parametrize(
    "headers",
    [
        "Content-Length: 2\r\nTransfer-Encoding: chunked",
        "Content-Length: 2\r\nContent-Length: 2",
        "Content-Length: +2",
        "Transfer-Encoding: chunked, identity",
        "Content-Length: 2\nX-A: b",
        "Content-Length: 2\r\nX-A: b\r\n folded",
    ],
)
def test_an_answer_with_two_readings_is_not_passed_on(chain: Chain, client: RawClient, headers: str) -> None:
    smuggled = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled"
    path, mark = chain.path(
        lambda exchange: exchange.send(f"HTTP/1.1 200 OK\r\n{headers}\r\n\r\n{{}}{smuggled}".encode())
    )
    with client.talk(client.head(path, connection="keep-alive")) as talk:
        answer = talk.answer()
        assert answer.status == 502
        # The next request is answered by its own answer.
        following, _ = chain.path(lambda exchange: exchange.answer(200, b"its own"))
        talk.send(client.head(following))
        assert talk.answer().body == b"its own"
    assert len(chain.server.seen(mark)) == 1


# -- a broken upstream ---------------------------------------------------------------------------------------

BREAKS: dict[str, Callable[[Exchange], None]] = {
    "cut": Exchange.cut,
    "reset": Exchange.reset,
    "farewell without a final chunk": Exchange.close,
    "broken framing": lambda exchange: exchange.send(b"zz\r\n"),
}


@pytest.mark.parametrize(
    ("framing", "way_to_break"),
    # A length has no framing to break.
    [("chunked", how) for how in BREAKS] + [("length", how) for how in BREAKS if how != "broken framing"],
)
def test_an_answer_that_breaks_off_is_cut_at_once(
    chain: Chain, client: RawClient, framing: str, way_to_break: str
) -> None:
    broken_at: list[float] = []
    go = threading.Event()

    def break_off(exchange: Exchange) -> None:
        if framing == "chunked":
            exchange.send(WATCH + chunk(b"event 1\n"))
        else:
            exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nevent 1\n")
        go.wait(20)
        broken_at.append(time.monotonic())
        BREAKS[way_to_break](exchange)

    path, _ = chain.path(break_off)
    with client.talk(client.head(path, connection="keep-alive")) as talk:
        assert talk.answer(body=False).status == 200
        assert b"event 1" in talk.take(len(chunk(b"event 1\n")) if framing == "chunked" else 8)
        go.set()
        rest = talk.rest()
        assert time.monotonic() - broken_at[0] < SOON_S + BUSY_S
        assert rest == b""
        assert talk.end is End.CUT, "a cut looked like a clean end"


LAST = {
    "with the head": (b"HTTP/1.1 200 OK\r\n\r\nall of it", b""),
    "behind the head": (b"HTTP/1.1 200 OK\r\n\r\nall ", b"of it"),
    "behind a part": (b"HTTP/1.1 200 OK\r\n\r\n", b"all of it"),
}


@pytest.mark.parametrize("parts", LAST.values(), ids=LAST)
def test_an_answer_that_ends_with_its_connection_ends_at_once(
    chain: Chain, client: RawClient, parts: tuple[bytes, bytes]
) -> None:
    """Its close_notify comes with its last bytes, and the API server waits for ours before it closes TCP."""

    def end(exchange: Exchange) -> None:
        first, last = parts
        if last:
            exchange.send(first)
            time.sleep(0.2)
        # What is sent from here to the end of the goodbye is one segment.
        exchange.connection.stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        exchange.send(last or first)
        exchange.say_goodbye()

    for _ in range(2):
        path, _ = chain.path(end)
        with client.talk(client.head(path)) as talk:
            began = time.monotonic()
            assert talk.answer(body=False).status == 200
            body = talk.rest()
            assert time.monotonic() - began < SOON_S + BUSY_S
            assert body.endswith(b"0\r\n\r\n")
            assert sum(int(size, 16) for size in body.split(b"\r\n")[::2] if size) == len(b"all of it")


def test_an_answer_that_ends_within_a_chunk_is_cut_at_once(chain: Chain, client: RawClient) -> None:
    def end(exchange: Exchange) -> None:
        exchange.send(WATCH + chunk(b"event 1\n"))
        time.sleep(0.2)
        exchange.connection.stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        # The beginning of a chunk: framing, and nothing of a body.
        exchange.send(b"8\r\n")
        exchange.say_goodbye()

    path, _ = chain.path(end)
    with client.talk(client.head(path, connection="keep-alive")) as talk:
        began = time.monotonic()
        assert talk.answer(body=False).status == 200
        assert talk.rest() == chunk(b"event 1\n")
        assert time.monotonic() - began < SOON_S + BUSY_S
        assert talk.end is End.CUT


# -- a client that leaves ------------------------------------------------------------------------------------


@pytest.mark.parametrize("answered", [True, False])
def test_a_client_that_leaves_takes_its_request_with_it(
    chain: Chain, client: RawClient, answered: bool
) -> None:
    # A hundred by each way; a thousand are `make test-long`'s.
    leave(chain, client, 50, answered=answered)


@pytest.mark.long
def test_a_thousand_clients_that_leave(chain: Chain, client: RawClient) -> None:
    for _ in range(10):
        leave(chain, client, 100, answered=True)


def leave(chain: Chain, client: RawClient, count: int, *, answered: bool) -> None:
    gone: list[float] = []

    def endless(exchange: Exchange) -> None:
        if answered:
            exchange.send(WATCH + chunk(b"event 1\n"))
        assert exchange.wait_gone()
        gone.append(time.monotonic())

    path, mark = chain.path(endless)
    # What is kept open between the relay and the hub, and no request's own, is there before it is counted.
    client.get(chain.path(lambda exchange: exchange.answer())[0])
    before = descriptors(chain, client.way)
    head = client.head(path)
    opened = [client.connect() for _ in range(count)]
    try:
        for connection in opened:
            connection.sendall(head)
            if answered:
                assert Talk(connection).answer(body=False).status == 200
        wait_until(lambda: len(chain.server.seen(mark)) == count)
        time.sleep(0.6 if not answered else 0)  # past the quiet half second without a check
    finally:
        left_at = time.monotonic()
        for connection in opened:
            connection.close()
    wait_until(lambda: len(gone) == count)
    assert max(gone) - left_at < SOON_S + BUSY_S
    wait_until(lambda: descriptors(chain, client.way) <= before + 2)


def descriptors(chain: Chain, way: str) -> int:
    """How many files hub and relay have open."""
    hub = chain.world.hub
    assert hub is not None
    pids = (hub.process.pid, chain.world.relays[way].process.pid)
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)


# -- upgrades: C13 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 403, 404, 500, 503])
def test_a_refused_upgrade_is_passed_on_and_its_connection_closed(
    chain: Chain, client: RawClient, status: int
) -> None:
    closed: list[bool] = []
    body = refusal(status, f"no upgrade: {status}")

    def refuse(exchange: Exchange) -> None:
        exchange.answer(status, body, "Content-Type: application/json")
        # It leaves the connection open, as if raw bytes could follow.
        closed.append(exchange.wait_gone(SOON_S + BUSY_S))

    path, mark = chain.exec_path(refuse)
    # Behind the refused upgrade, on the same connection: once more as itself, then as a raw stream's bytes.
    smuggled = f"GET /api/v1/secrets/{mark} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    began = time.monotonic()
    with client.talk(client.upgrade(path, V5) + smuggled) as talk:
        answer = talk.answer()
        assert time.monotonic() - began < SOON_S + BUSY_S
        assert (answer.status, answer.body) == (status, body)
        assert answer.headers["content-length"] == str(len(body))
        talk.send(smuggled)
        talk.connection.settimeout(3)
        assert talk.answer().status == 404, (
            "what follows is a request to the hub, and the hub has no such path"
        )
    wait_until(lambda: bool(closed))
    assert closed == [True]
    [exchange] = chain.server.seen(mark)
    assert bytes(exchange.connection.received) == exchange.head, "something followed on the connection"


def test_a_401_of_the_relays_own_token_is_not_the_agents(chain: Chain, client: RawClient) -> None:
    path, _ = chain.exec_path(lambda exchange: exchange.refuse(401, "Unauthorized"))
    for head in (client.upgrade(path, V5), client.head(path)):
        with client.talk(head) as talk:
            answer = talk.answer()
        assert answer.status == 503
        assert "service-account token" in json.loads(answer.body)["message"]
        assert TOKEN not in answer.raw.decode("latin-1")


def test_a_101_with_everything_behind_it_arrives_whole(chain: Chain, client: RawClient) -> None:
    frames = frame(1, b"") + frame(1, b"out") + frame(3, b'{"status":"Success"}') + close_frame(1000)

    def at_once(exchange: Exchange) -> None:
        exchange.send(SWITCH + frames)
        exchange.close()

    path, _ = chain.exec_path(at_once)
    with client.talk(client.upgrade(path, V5)) as talk:
        answer = talk.answer()
        assert answer.status == 101
        assert answer.headers["sec-websocket-accept"] == WEBSOCKET_ACCEPT
        assert talk.rest() == frames
        assert talk.end is End.CLEAN


def test_the_end_of_an_upgraded_stream_arrives_at_once(chain: Chain, client: RawClient) -> None:
    ended: list[float] = []
    took: list[float] = []

    def end(exchange: Exchange) -> None:
        exchange.send(SWITCH)
        exchange.connection.take(4)
        ended.append(time.monotonic())
        exchange.send(frame(1, b"last"))
        exchange.close()

    for _ in range(5):
        path, _ = chain.exec_path(end)
        with client.talk(client.upgrade(path, V5)) as talk:
            assert talk.answer().status == 101
            talk.send(b"done")
            assert talk.rest() == frame(1, b"last")
            took.append(time.monotonic() - ended[-1])
            assert talk.end is End.CLEAN
    # The fastest run counts: a busy machine delays some runs, but a wait in the code delays all.
    assert min(took) < SOON_S / 4, took


def test_all_that_was_said_before_the_end_arrives_at_a_client_that_goes_on_writing(
    chain: Chain, client: RawClient
) -> None:
    # Read through a receive buffer of 16 KiB: a MiB takes 8 s. One MiB does not fill the kernels' buffers.
    said = os.urandom(2 * 1024 * 1024)

    def end(exchange: Exchange) -> None:
        exchange.send(SWITCH)
        exchange.connection.take(4)
        exchange.send(said)
        exchange.say_goodbye()

    path, _ = chain.exec_path(end)
    with client.talk(client.upgrade(path, V5)) as talk:
        talk.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        assert talk.answer().status == 101
        talk.send(b"done")
        received = talk.take(len(said) - 128 * 1024)
        # By now the hub has the end, and its kernel the rest, which unread pings would have it take back.
        for _ in range(8):
            talk.send(b"ping")
            time.sleep(0.4)
        assert received + talk.rest() == said
        assert talk.end is End.CLEAN


def test_bytes_before_the_101_wait_for_it(chain: Chain, client: RawClient) -> None:
    early = b"".join(b"early %d;" % number for number in range(1000))
    ahead: list[bytes] = []

    def slow(exchange: Exchange) -> None:
        with suppress(TimeoutError):
            assert not exchange.connection.more(0.7)
        ahead.append(exchange.connection.ahead)
        exchange.send(SWITCH)
        exchange.send(exchange.connection.take(len(early)))
        exchange.close()

    path, mark = chain.exec_path(slow)
    with client.talk(client.upgrade(path, V5) + early[:4000]) as talk:
        talk.send(early[4000:])
        assert talk.answer().status == 101
        assert talk.rest() == early
    assert ahead == [b""], "bytes reached the API server before it agreed"
    [exchange] = chain.server.seen(mark)
    assert exchange.connection.received.count(b"early 999;") == 1


@pytest.mark.parametrize(
    "lie",
    [
        f"Upgrade: websocket\r\nSec-WebSocket-Accept: {WEBSOCKET_ACCEPT}",
        "Upgrade: websocket\r\nSec-WebSocket-Accept: d3Jvbmc=\r\nSec-WebSocket-Protocol: v5.channel.k8s.io",
        "Upgrade: websocket\r\nSec-WebSocket-Protocol: v9.channel.k8s.io",
    ],
)
def test_a_101_that_is_wrong_is_the_clients_to_judge(chain: Chain, client: RawClient, lie: str) -> None:
    def switch(exchange: Exchange) -> None:
        exchange.send(f"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n{lie}\r\n\r\nraw".encode())
        exchange.close()

    path, _ = chain.exec_path(switch)
    with client.talk(client.upgrade(path, V5)) as talk:
        answer = talk.answer()
        assert answer.status == 101
        promised = {line.partition(": ")[0].lower(): line.partition(": ")[2] for line in lie.split("\r\n")}
        told = {name: value for name, value in answer.headers.items() if name.startswith("sec-websocket-")}
        assert told == {name: value for name, value in promised.items() if name != "upgrade"}
        assert talk.rest() == b"raw"


def test_a_101_that_nobody_asked_for_is_no_way_in(chain: Chain, client: RawClient) -> None:
    path, mark = chain.path(lambda exchange: exchange.send(SWITCH + b"raw"))
    with client.talk(client.head(path, connection="keep-alive")) as talk:
        assert talk.answer().status == 502
    assert len(chain.server.seen(mark)) == 1


OTHER_PROTOCOLS = ["h2c", "TLS/1.0", "foo/1", "websocket, h2c", "SPDY/3.1, SPDY/3", "websocket/13"]


@pytest.mark.parametrize("asked", [*OTHER_PROTOCOLS, "websocket\r\nUpgrade: SPDY/3.1"])
def test_an_upgrade_to_another_protocol_is_served_as_a_plain_request(
    chain: Chain, client: RawClient, asked: str
) -> None:
    body: list[bytes] = []

    def read(exchange: Exchange) -> None:
        body.append(exchange.connection.take(2))
        exchange.answer(200, b"plain")

    mark = chain.server.on(read)
    path = f"/api/v1/namespaces/work/services/{mark}/proxy/"
    headers = [f"Upgrade: {asked}", "HTTP2-Settings: AAMAAABkAAQAAP__", "Content-Length: 2"]
    head = client.head(path, *headers, method="POST", connection="Upgrade, HTTP2-Settings")
    with client.talk(head + b"{}") as talk:
        answer = talk.answer()
    assert (answer.status, answer.body, body) == (200, b"plain", [b"{}"])
    [exchange] = chain.server.seen(mark)
    assert [
        field for field in exchange.fields if field[0] in {"upgrade", "connection", "http2-settings"}
    ] == []
    rows = [event for event in chain.world.hub_audit("--since", "1m") if mark in json.dumps(event)]
    assert [row["stream"]["proto"] for row in rows] == ["http", "http"]


@pytest.mark.parametrize("asked", ["WebSocket", "spdy/3.1"])
def test_the_name_of_a_protocol_is_the_same_in_any_case(chain: Chain, client: RawClient, asked: str) -> None:
    def switch(exchange: Exchange) -> None:
        assert exchange.header("upgrade") == [asked]
        assert exchange.header("connection") == ["Upgrade"]
        exchange.send(
            f"HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: {asked.swapcase()}\r\n\r\nraw".encode()
        )
        exchange.close()

    path, _ = chain.exec_path(switch)
    with client.talk(client.head(path, f"Upgrade: {asked}", connection="upgrade")) as talk:
        answer = talk.answer()
        assert (answer.status, answer.headers["upgrade"]) == (101, asked.swapcase())
        assert talk.rest() == b"raw"


@pytest.mark.parametrize(
    "lie",
    {
        "no upgrade": "Connection: Upgrade",
        "another": "Connection: Upgrade\r\nUpgrade: SPDY/3.1",
        "several": "Connection: Upgrade\r\nUpgrade: websocket, h2c",
        "two": "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: websocket",
        "an empty one": "Connection: Upgrade\r\nUpgrade:",
        "no connection": "Upgrade: websocket",
        "another connection": "Connection: keep-alive\r\nUpgrade: websocket",
        "a length": "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 3",
        "no length": "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0",
        "chunks": "Connection: Upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked",
    }.values(),
)
def test_a_101_that_is_not_what_was_asked_for_is_no_way_in(chain: Chain, client: RawClient, lie: str) -> None:
    closed: list[bool] = []

    def switch(exchange: Exchange) -> None:
        exchange.send(f"HTTP/1.1 101 Switching Protocols\r\n{lie}\r\n\r\nraw".encode())
        closed.append(exchange.wait_gone(SOON_S + BUSY_S))

    path, mark = chain.exec_path(switch)
    with client.talk(client.upgrade(path, V5) + b"early") as talk:
        answer = talk.answer()
        assert (answer.status, json.loads(answer.body)["code"]) == (502, 502)
        assert "may still be processing" in json.loads(answer.body)["message"]
        assert not talk.received, "something was spliced"
    wait_until(lambda: bool(closed))
    assert closed == [True]
    [exchange] = chain.server.seen(mark)
    # The connection may have carried other requests before.
    assert bytes(exchange.connection.received).endswith(exchange.head), "something was spliced"
    rows = [event for event in chain.world.hub_audit("--since", "1m") if mark in json.dumps(event)]
    assert [row["phase"] for row in rows] == ["intent", "complete"]
    response = rows[1]["resp"]
    assert isinstance(response, dict)
    assert (response["status"], response["processed"]) == (502, "maybe")


# -- the same through kubectl --------------------------------------------------------------------------------


def pod_and(script: Callable[[Exchange], None]) -> Callable[[Exchange], None]:
    """What kubectl asks first, the pod, and then the upgrade's own script."""

    def answer(exchange: Exchange) -> None:
        if "/exec" in exchange.target:
            script(exchange)
            return
        pod = {
            "kind": "Pod",
            "apiVersion": "v1",
            "metadata": {"name": exchange.target.split("/")[-1], "namespace": "work"},
            "spec": {"containers": [{"name": "main"}]},
            "status": {"phase": "Running"},
        }
        exchange.answer(200, json.dumps(pod).encode(), "Content-Type: application/json")

    return answer


def websocket_accept(exchange: Exchange) -> str:
    [key] = exchange.header("sec-websocket-key")
    digest = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
    return base64.b64encode(digest).decode()


def switch(exchange: Exchange, *frames: bytes) -> None:
    head = SWITCH.decode().replace(WEBSOCKET_ACCEPT, websocket_accept(exchange))
    exchange.send(head.encode() + b"".join(frames))


def test_kubectl_prints_what_came_with_the_101(chain: Chain, client: RawClient) -> None:
    status = {
        "metadata": {},
        "status": "Failure",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": "3"}]},
    }

    def at_once(exchange: Exchange) -> None:
        coded = json.dumps(status, separators=(",", ":")).encode()
        # Longer than 125 bytes: the frame's length takes two more.
        data = b"\x82\x7e" + (len(coded) + 1).to_bytes(2, "big") + b"\x03" + coded
        switch(exchange, frame(1, b""), frame(1, b"printed\n"), data, close_frame(1000))
        exchange.close()

    pod = chain.server.on(pod_and(at_once))
    result = chain.world.kubectl(client.way, "exec", pod, "--", "id")
    assert (result.code, result.out) == (3, b"printed\n"), result.err


@pytest.mark.parametrize("status", [403, 503])
def test_kubectl_shows_why_an_upgrade_was_refused(chain: Chain, client: RawClient, status: int) -> None:
    at: list[float] = []

    def refuse(exchange: Exchange) -> None:
        at.append(time.monotonic())
        exchange.refuse(status, "not for the likes of you")

    pod = chain.server.on(pod_and(refuse))
    at.append(time.monotonic())
    result = chain.world.kubectl(client.way, "exec", pod, "--", "id")
    at.append(time.monotonic())
    assert result.code == 1
    assert b"not for the likes of you" in result.err
    # Each stall costs 4 s.
    assert all(later - earlier < 4 for earlier, later in pairwise(at))
    methods = [each.method for each in chain.server.seen(pod) if "/exec" in each.target]
    assert methods == ["GET", "POST"]


@pytest.mark.parametrize("lie", ["no subprotocol", "a wrong key"])
def test_kubectl_falls_back_to_spdy_after_a_wrong_101(chain: Chain, client: RawClient, lie: str) -> None:
    def lying(exchange: Exchange) -> None:
        if exchange.method == "POST":
            exchange.refuse(403, "this is the SPDY attempt")
            return
        head = SWITCH.decode().replace(WEBSOCKET_ACCEPT, websocket_accept(exchange))
        if lie == "no subprotocol":
            head = head.replace("Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n", "")
        else:
            head = head.replace(websocket_accept(exchange), WEBSOCKET_KEY)
        exchange.send(head.encode())
        exchange.wait_gone(5)

    pod = chain.server.on(pod_and(lying))
    result = chain.world.kubectl(client.way, "exec", pod, "--", "id")
    assert result.code == 1
    assert b"this is the SPDY attempt" in result.err
    attempts = [each for each in chain.server.seen(pod) if "/exec" in each.target]
    assert [each.method for each in attempts] == ["GET", "POST"]
    assert attempts[1].header("x-stream-protocol-version") == [
        f"v{number}.channel.k8s.io" if number > 1 else "channel.k8s.io" for number in (5, 4, 3, 2, 1)
    ]


# -- a relay that dies ---------------------------------------------------------------------------------------


def test_what_a_dying_relay_leaves_is_honest(chain: Chain, client: RawClient) -> None:
    way, world = client.way, chain.world

    def hold(exchange: Exchange) -> None:
        exchange.wait_gone()

    def watch(exchange: Exchange) -> None:
        exchange.send(WATCH + chunk(b"event 1\n"))
        exchange.wait_gone()

    def run(exchange: Exchange) -> None:
        switch(exchange, frame(1, b"working\n"))
        exchange.wait_gone()

    pod = chain.server.on(pod_and(run))
    raw_exec = f"/api/v1/namespaces/work/pods/{pod}/exec?command=id&stdout=1"
    watched, _ = chain.path(watch)
    written, write_mark = chain.path(hold)
    read, read_mark = chain.path(hold)
    chain.check()
    with (
        client.talk(client.head(watched, connection="keep-alive")) as watching,
        client.talk(client.upgrade(raw_exec, V5)) as executing,
        client.talk(client.head(written, "Content-Length: 2", method="POST") + b"{}") as writing,
        client.talk(client.head(read)) as reading,
        world.popen(way, "exec", pod, "--", "sleep", "60") as kubectl,
    ):
        assert watching.answer(body=False).status == 200
        assert watching.take(len(chunk(b"event 1\n")))
        assert executing.answer().status == 101
        assert executing.take(len(frame(1, b"working\n"))) == frame(1, b"working\n")
        assert kubectl.stdout is not None
        assert kubectl.stdout.readline() == b"working\n"
        wait_until(lambda: bool(chain.server.seen(write_mark) and chain.server.seen(read_mark)))
        killed_at = time.monotonic()
        world.relays[way].process.kill()
        try:
            if way == "tunnel":
                # To the hub it might be the network, so all of it waits for the relay's comeback. A new
                # process of its name is none.
                check_offline(chain, client, waits_s=2.0)
                world.start_relay(way)
                wait_until(lambda: client.get("/version").status == 200)
                killed_at = time.monotonic()
            assert watching.rest(SOON_S + BUSY_S) == b""
            assert executing.rest(SOON_S + BUSY_S) == b"", "something was said on a spliced stream"
            assert (watching.end, executing.end) == (End.CUT, End.CUT)
            lost = writing.answer(within_s=SOON_S + BUSY_S)
            retried = reading.answer(within_s=SOON_S + BUSY_S)
            assert time.monotonic() - killed_at < SOON_S + BUSY_S
            _, error = kubectl.communicate(timeout=10)
            assert kubectl.returncode != 0, error
            check_lost(lost, retried)
            assert len(chain.server.seen(write_mark)) == 1, "a write was sent again"
            if way == "direct":
                check_offline(chain, client)
        finally:
            if world.relays[way].process.poll() is not None:
                world.start_relay(way)
            wait_until(lambda: client.get("/version").status == 200)


def check_lost(lost: Answer, retried: Answer) -> None:
    """The error of a write that may have been executed suggests no retry; that of a read may."""
    assert (lost.status, json.loads(lost.body)["reason"]) == (504, "Timeout")
    assert "may still be processing" in json.loads(lost.body)["message"]
    assert retried.status == 503
    for answer in (lost, retried):
        assert "retry-after" not in answer.headers
        assert "warning" in answer.headers


def check_offline(chain: Chain, client: RawClient, waits_s: float = 0.0) -> None:
    """Case 94."""
    began = time.monotonic()
    answer = client.get("/api/v1/pods")
    assert time.monotonic() - began < waits_s + SOON_S + BUSY_S
    assert answer.status == 503
    assert "retry-after" not in answer.headers
    message = json.loads(answer.body)["message"]
    assert client.way in message
    for arguments in (["get", "pods"], ["exec", "some-pod", "--", "id"]):
        result = chain.world.kubectl(client.way, *arguments)
        assert result.code == 1
        assert message.encode() in result.err, arguments


def test_c40_a_backends_page_is_sandboxed_and_sets_no_cookie(chain: Chain, client: RawClient) -> None:
    page = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nSet-Cookie: a=b\r\nClear-Site-Data: *\r\n"
        b"NEL: {}\r\nReport-To: {}\r\nX-Accel-Redirect: /internal/file\r\nX-Sendfile: /etc/passwd\r\n"
        b"Content-Length: 31\r\n\r\n<script>alert('mine')</script>\n\n"
    )
    for kind in ("services", "pods"):
        mark = chain.server.on(lambda exchange: exchange.send(page))
        answer = client.get(f"/api/v1/namespaces/work/{kind}/{mark}/proxy/")
        assert answer.status == 200
        assert answer.headers["content-security-policy"] == "sandbox"
        assert {"set-cookie", "clear-site-data", "nel", "report-to"}.isdisjoint(answer.headers)
        # A web server in front of the hub would send a file of its own in place of the answer.
        assert {"x-accel-redirect", "x-sendfile"}.isdisjoint(answer.headers)
    # What the API server itself says is data, and stays as it is.
    path, _ = chain.path(lambda exchange: exchange.answer(200, b"{}"))
    assert "content-security-policy" not in client.get(path).headers
