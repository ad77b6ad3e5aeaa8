"""Streams begin and end, in every order and at any speed, and nothing of them stays behind."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest

from tests.faults.wire import DATA, FIN, Enrolment, frame, head, wire_relay
from tests.faults.world import BY_HAND, CLUSTER, FaultWorld
from tests.system.load import get, parallel
from tests.system.raw import RawClient
from tests.system.world import POD, POD_PATH

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(180)]

AT_ONCE_S = 3.0


@pytest.mark.parametrize("spdy", [False, True], ids=["ws", "spdy"])
def test_each_direction_of_an_exec_ends_by_itself(world: FaultWorld, spdy: bool) -> None:
    """The end of stdin lets a command finish; the end of stdout does not take stdin with it."""
    world.tunnel.shape(delay_s=0.05)
    assert world.run("exec", "-i", POD, "--", "cat", stdin=b"foo\n", spdy=spdy) == b"foo\n"

    script = "echo early; exec 1>&-; sleep 0.3; wc -c >&2"
    content = bytes(200_000)
    done = world.kubectl(CLUSTER, "exec", "-i", POD, "--", "sh", "-c", script, stdin=content, spdy=spdy)
    assert (done.code, done.out, done.err.strip()) == (0, b"early\n", b"200000")


def test_what_is_written_just_before_the_end_arrives(world: FaultWorld) -> None:
    """A command that writes and exits at once is over long before a slow link has carried its output."""
    world.tunnel.shape(delay_s=0.03, mbit=20)
    script = "head -c 300000 /dev/zero | tr '\\0' x; echo end"
    with ThreadPoolExecutor(3) as pool:
        outputs = list(pool.map(lambda _: world.run("exec", POD, "--", "sh", "-c", script), range(6)))
    assert [(len(out), out[-4:]) for out in outputs] == [(300_004, b"end\n")] * 6


@contextmanager
def speaks_first(content: bytes) -> Iterator[int]:
    """A port whose server sends something to whoever connects, and closes at once."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(content)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_a_server_that_speaks_first_and_leaves_is_heard(world: FaultWorld) -> None:
    """Its bytes and its end race the answer to the upgrade, and the client has not said a word."""
    content = os.urandom(50_000)
    with speaks_first(content) as port:
        forwarding = world.popen(CLUSTER, "port-forward", f"pod/{POD}", f":{port}", "--address=127.0.0.1")
        try:
            assert forwarding.stdout is not None
            local = int(forwarding.stdout.readline().split(b"127.0.0.1:")[1].split(b" ")[0])

            def ask(_: int) -> bytes:
                got = b""
                with socket.create_connection(("127.0.0.1", local), 20) as connection:
                    while data := connection.recv(65536):
                        got += data
                return hashlib.sha256(got).digest()

            assert set(parallel(10, ask)) == {hashlib.sha256(content).digest()}
        finally:
            forwarding.kill()
            forwarding.communicate()


def follow_and_leave(client: RawClient, token: str, number: int) -> None:
    """Ask for a log that does not end, and leave at some moment or other, without a word."""
    path = f"/clusters/{client.way}{POD_PATH}/log?follow=true"
    connection = client.connect()
    request = f"GET {path} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {token}\r\n\r\n"
    connection.sendall(request.encode())
    chance = random.Random(number)
    connection.settimeout(chance.uniform(0.001, 0.05))
    with suppress(TimeoutError, ssl.SSLError):
        connection.recv(chance.randrange(1, 200))
    if number % 2:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    connection.close()


def test_many_followers_that_leave_at_once_leave_nothing_behind(world: FaultWorld) -> None:
    """Each Ctrl-C on a `logs -f` is a stream that has to be closed at both ends."""
    client = world.client()
    token = client.token()
    for number in range(20):
        follow_and_leave(client, token, number)
    world.until(lambda: world.streams() == 0, "no stream is left")
    relay = world.relays["relay-0"]
    before = world.living(world.hub), world.living(relay)

    def leave_often(worker: int) -> None:
        for number in range(25):
            follow_and_leave(client, token, worker * 25 + number)

    parallel(8, leave_often)
    interrupted = [world.popen(CLUSTER, "logs", "--follow", POD) for _ in range(3)]
    for process in interrupted:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.communicate()

    world.until(lambda: world.streams() == 0, "no stream is left", 10)
    assert world.run("get", "pods").startswith(b"NAME")
    for daemon, then in zip((world.hub, relay), before, strict=True):
        # Connections are closed a moment later than streams, and a few are kept for the next request.
        world.until(
            lambda daemon=daemon, then=then: not world.living(daemon).grown(then, slack=12),  # type: ignore[misc]
            f"all of it is gone: {world.living(daemon).grown(then, slack=12)}",
            10,
            every_s=0.5,
        )


def test_a_relay_that_dies_with_requests_under_way_leaves_none_pending(world: FaultWorld) -> None:
    """Between a request and the first byte of its answer nobody but the hub knows of it."""
    client = world.client()
    token = client.token()
    world.api.stall()
    with ThreadPoolExecutor(5) as pool:
        pending = [pool.submit(get, client, token, POD_PATH) for _ in range(5)]
        world.until(lambda: world.streams() == 5, "five requests are under way")
        relay = world.relays["relay-0"].process
        relay.kill()
        relay.wait()
        # To the hub it might be the network, so they wait for its comeback: until there is another process of
        # its name, which knows nothing of them.
        world.until(lambda: world.connected() == [], "the relay is not listed")
        world.connect_relay()
        began = time.monotonic()
        answers = [each.result(20) for each in pending]
        assert time.monotonic() - began < 15
    assert {status for status, _ in answers} <= {502, 503, 504}
    world.until(lambda: world.streams() == 0, "none is pending")


def test_more_streams_than_a_relay_takes_are_refused_at_once(world: FaultWorld, by_hand: Enrolment) -> None:
    """A stream above the limit must not wait for one below it, which may be a watch."""
    client = world.client(BY_HAND)
    token = client.token()
    with (
        wire_relay(by_hand, world.tunnel.port, hello={"max_streams": 4}) as relay,
        ThreadPoolExecutor(4) as pool,
    ):
        waiting = [pool.submit(get, client, token, "/api/v1/nodes") for _ in range(4)]
        opened = [relay.next_open().stream for _ in range(4)]
        for _ in range(3):
            took_s, answer = timed_answer(client, token)
            assert answer[0] == 503, answer
            assert took_s < AT_ONCE_S
        assert relay.opened.empty()
        for stream in opened:
            relay.send(head(stream), frame(DATA, stream, b"{}", FIN))
        assert [each.result(20) for each in waiting] == [(200, b"{}")] * 4
        # There is room again.
        again = pool.submit(get, client, token, "/api/v1/nodes")
        stream = relay.next_open().stream
        relay.send(head(stream), frame(DATA, stream, b"{}", FIN))
        assert again.result(20) == (200, b"{}")


def timed_answer(client: RawClient, token: str) -> tuple[float, tuple[int, bytes]]:
    began = time.monotonic()
    answer = get(client, token, "/api/v1/nodes")
    return time.monotonic() - began, answer
