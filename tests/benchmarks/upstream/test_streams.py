"""The upstream for open streams, as a process."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import attrs
import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Request

from benchmarks.system import System
from benchmarks.talk import Talk
from benchmarks.upstream.apiserver import POD_PATH
from benchmarks.upstream.events import EVENT_BYTES, take_times
from benchmarks.upstream.streams import PROTOCOL, SUCCESS, open_streams
from benchmarks.watching import Watching
from benchmarks.workload import RunFailed
from benchmarks.workloads.watch import emit
from tests.benchmarks.upstream import tls


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tls.Endpoint]:
    with open_streams(tmp_path_factory.mktemp("streams")) as upstream:
        yield upstream.endpoint


@contextmanager
def watch(source: tls.Endpoint) -> Iterator[ssl.SSLSocket]:
    with tls.connected(source) as sock:
        sock.sendall(b"GET /api/v1/pods?watch=true HTTP/1.1\r\nHost: x\r\n\r\n")
        assert tls.read_head(sock).startswith(b"HTTP/1.1 200")
        yield sock


def take(sock: ssl.SSLSocket, count: int) -> tuple[list[int], bytes]:
    """When at least so many events were sent, and what came behind the last whole one."""
    partial, times = b"", list[int]()
    while len(times) < count:
        data = sock.recv(65536)
        assert data
        found, partial = take_times(partial + data)
        times += found
    return times, partial


def test_a_watch_is_silent_until_events_are_asked_for(source: tls.Endpoint) -> None:
    with watch(source) as sock:
        sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        sock.settimeout(10)
        emit(source, 1000)
        times, partial = take(sock, 3)
        emit(source, 0)
        assert times == sorted(times)
        assert len(partial) < EVENT_BYTES


def test_an_event_to_all_comes_to_each_watch_at_once(source: tls.Endpoint) -> None:
    with ExitStack() as stack:
        watches = [stack.enter_context(watch(source)) for _ in range(7)]
        emit(source, 10, to_all=True)
        sent = [take(sock, 2)[0] for sock in watches]
        emit(source, 0)
    # Each has the first before any has the second.
    assert max(times[0] for times in sent) < min(times[1] for times in sent)


def test_stdin_comes_back_on_stdout_and_nothing_else_does(source: tls.Endpoint) -> None:
    client = WSConnection(ConnectionType.CLIENT)
    target = "/api/v1/namespaces/work/pods/workbench/exec?command=cat&stdin=true&stdout=true"
    with tls.connected(source) as sock:
        sock.sendall(client.send(Request(host="x", target=target, subprotocols=[PROTOCOL])))
        client.receive_data(tls.read_head(sock))
        (accepted,) = client.events()
        assert isinstance(accepted, AcceptConnection)
        assert accepted.subprotocol == PROTOCOL
        # An empty stdin, and the terminal's size: neither is answered.
        for message in (b"\x00", b"\x04{}", b"\x00ls\r"):
            sock.sendall(client.send(BytesMessage(message)))
        client.receive_data(sock.recv(65536))
        assert [event.data for event in client.events() if isinstance(event, BytesMessage)] == [b"\x01ls\r"]


def test_a_command_that_is_true_ends_with_its_status_at_once(source: tls.Endpoint) -> None:
    client = WSConnection(ConnectionType.CLIENT)
    target = f"{POD_PATH}/exec?command=true&stdout=true"
    with tls.connected(source) as sock:
        sock.sendall(client.send(Request(host="x", target=target, subprotocols=[PROTOCOL])))
        happened = []
        while len(happened) < 3:
            client.receive_data(sock.recv(65536))
            happened += client.events()
    accepted, status, end = happened
    assert isinstance(accepted, AcceptConnection)
    assert isinstance(status, BytesMessage)
    assert bytes(status.data) == SUCCESS
    assert isinstance(end, CloseConnection)


def test_a_pod_is_answered_as_json(source: tls.Endpoint) -> None:
    with tls.connected(source) as sock:
        sock.sendall(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % POD_PATH.encode())
        head, _, body = sock.recv(65536).partition(b"\r\n\r\n")
    assert b"Content-Type: application/json" in head
    assert json.loads(body)["kind"] == "Pod"


def test_the_client_of_many_watches_opens_them_and_counts_what_comes(source: tls.Endpoint) -> None:
    with Watching(System("direct", source)) as watching:
        watching.open(3)
        watching.open(2)
        began, counted = time.monotonic(), 0
        emit(source, 500)
        # As often as it takes on a busy machine; no event is counted twice.
        while counted < 40:
            took_ns = watching.listen(0.2)
            assert took_ns == sorted(took_ns)
            assert min(took_ns, default=1) > 0
            counted += len(took_ns)
        emit(source, 0)
    assert counted <= 500 * (time.monotonic() - began)


def test_a_watch_that_is_refused_says_with_what(source: tls.Endpoint) -> None:
    elsewhere = tls.elsewhere(source)
    with (
        Watching(System("direct", elsewhere)) as watching,
        pytest.raises(RunFailed, match="ConnectionRefusedError"),
    ):
        watching.open(1)


def test_the_upstream_speaks_nothing_older_than_tls_1_3(source: tls.Endpoint) -> None:
    with tls.connected(source) as sock:
        assert sock.version() == "TLSv1.3"
    with pytest.raises(ssl.SSLError), tls.connected(source, ssl.TLSVersion.TLSv1_2):
        pytest.fail("it spoke TLS 1.2")


def test_the_typist_gets_each_of_its_keys_back(source: tls.Endpoint) -> None:
    job = {"endpoint": attrs.asdict(source), "path": "/api/v1/x/exec?command=sh", "count": 5, "pause_s": 0}
    with Talk("benchmarks.keystrokes") as typist:
        assert typist.ask(json.dumps(job, default=str)) == "ready"
        assert len(json.loads(typist.ask("go"))) == 5


def test_the_typist_says_what_its_upgrade_was_answered_by(source: tls.Endpoint) -> None:
    job = {"endpoint": attrs.asdict(source), "path": "/api/v1/pods", "count": 5, "pause_s": 0}
    with Talk("benchmarks.keystrokes") as typist:
        with pytest.raises(RunFailed, match="Failed: the upgrade was answered by 200"):
            typist.ask(json.dumps(job, default=str))


@pytest.mark.parametrize("beside", [True, False])
def test_commands_are_timed_beside_another_endpoint_or_alone(source: tls.Endpoint, beside: bool) -> None:
    endpoint = attrs.asdict(source)
    job = {
        "endpoint": endpoint,
        "path": f"{POD_PATH}/exec?command=true",
        "count": 2,
        "beside": endpoint if beside else None,
    }
    with Talk("benchmarks.commands") as client:
        assert client.ask(json.dumps(job, default=str)) == "ready"
        pairs = json.loads(client.ask("go"))
    assert len(pairs) == 2
    assert all((straight is not None) is beside and took > 0 for straight, took in pairs)


def test_a_command_that_does_not_end_is_no_figure(source: tls.Endpoint) -> None:
    job = {"endpoint": attrs.asdict(source), "path": "/api/v1/pods", "count": 1, "beside": None}
    with Talk("benchmarks.commands") as client:
        with pytest.raises(RunFailed, match="Failed: the upgrade was answered by 200"):
            client.ask(json.dumps(job, default=str))
