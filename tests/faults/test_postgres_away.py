"""A hub whose PostgreSQL is away, stopped or cut off, and what its agents see meanwhile."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.faults.figures import note
from tests.faults.hub_on_postgres import GRACE_S, HubOnPostgres, Streams, hub_on_postgres
from tests.faults.traffic import traffic
from tests.system.waiting import wait_until

pytestmark = [pytest.mark.long, pytest.mark.timeout(240)]

# The defaults of the configuration.
STALE_S, STALE_STREAMS_S, WAIT_S = 10.0, 60.0, 5.0
# From the last age that counts to the last call that reaches the API server.
BEGUN_WITHIN_S = 0.5
STREAMS = 20
BACK_WITHIN_S = 15.0
# With these, nothing but the age of the directory refuses a read or ends a stream.
DIRECTORY_ALONE = "[audit]\nreads_when_down = true\ndown_grace_s = 0\n"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubOnPostgres]:
    with hub_on_postgres(tmp_path_factory.mktemp("away")) as running:
        yield running


@contextmanager
def stopped(hub: HubOnPostgres) -> Iterator[None]:
    """The server does nothing for the block; its kernel acknowledges what comes."""
    hub.server.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        hub.server.signal(signal.SIGCONT)


@contextmanager
def cut_off(hub: HubOnPostgres) -> Iterator[None]:
    """Nothing passes between the hub and the server for the block, and no connection ends."""
    hub.link.stall()
    try:
        yield
    finally:
        hub.link.flow()


@contextmanager
def killed(hub: HubOnPostgres) -> Iterator[None]:
    """No server runs for the block: each connection is refused."""
    hub.server.kill()
    try:
        yield
    finally:
        hub.server.start()
        hub.server.wait()


@pytest.mark.parametrize("fault", [cut_off, stopped, killed])
def test_a_hub_without_its_database_refuses_calls_and_then_ends_streams(
    tmp_path: Path, fault: Callable[[HubOnPostgres], Iterator[None]]
) -> None:
    with ExitStack() as stack:
        hub = stack.enter_context(hub_on_postgres(tmp_path, settings=DIRECTORY_ALONE))
        calls = stack.enter_context(traffic(hub.client, reads_per_s=50, writes_per_s=10))
        streams = Streams()
        streams.open(hub, STREAMS // 2, stack)
        time.sleep(1)
        with fault(hub):
            away = time.monotonic()
            time.sleep(STALE_S + 5)
            assert not streams.ended
            last_begun = max(each.began for each in hub.moved().values()) - away
            last_end = streams.last_end(away + STALE_STREAMS_S) - away
            time.sleep(max(0.0, away + STALE_STREAMS_S + 5 - time.monotonic()))
            assert max(each.began for each in hub.moved().values()) - away == last_begun
        back_s = calls.until_good(time.monotonic(), BACK_WITHIN_S)
        calls.stop()
        # Reads go on for a good part of that time.
        assert 3 < last_begun < STALE_S + BEGUN_WITHIN_S
        assert last_end < STALE_STREAMS_S + GRACE_S
        hub.check_trail(calls)
    note(
        "no database: the last call begun, and the last stream's end",
        fault.__name__.replace("_", " "),
        call_s=round(last_begun, 2),
        streams=len(streams.ended),
        stream_s=round(last_end, 2),
        serves_again_s=round(back_s, 2),
    )


def test_a_stop_of_3_s_fails_no_read_and_no_write(hub: HubOnPostgres) -> None:
    with traffic(hub.client, reads_per_s=100, writes_per_s=100) as calls:
        time.sleep(1)
        with stopped(hub):
            time.sleep(3)
        time.sleep(2)
    assert not calls.failed()
    longest_read_s, longest_write_s = (calls.longest_s(method) for method in ("GET", "PUT"))
    assert longest_write_s > 2.5
    hub.check_trail(calls)
    note(
        "PostgreSQL stopped under reads and writes",
        "3 s",
        calls=len(calls.calls),
        failed=0,
        longest_read_s=round(longest_read_s, 2),
        longest_write_s=round(longest_write_s, 2),
    )


def test_a_stop_of_15_s_refuses_writes_after_their_wait_and_ends_no_stream(hub: HubOnPostgres) -> None:
    with ExitStack() as stack:
        calls = stack.enter_context(traffic(hub.client, reads_per_s=50, writes_per_s=50))
        streams = Streams()
        streams.open(hub, STREAMS // 2, stack)
        time.sleep(1)
        with stopped(hub):
            away = time.monotonic()
            time.sleep(15)
        back = time.monotonic()
        back_s = calls.until_good(back, BACK_WITHIN_S)
        assert not streams.ended
        calls.stop()
    failed = calls.failed()
    # All are answered, and none was under way for longer than the wait and the last attempt in it.
    assert {call.status for call in failed} == {503}
    assert calls.longest_s() < WAIT_S + 3
    # A read is refused only once the trail is away.
    assert min(call.ended for call in failed if call.method == "GET") - away > 3
    hub.check_trail(calls)
    note(
        "PostgreSQL stopped under reads and writes",
        "15 s",
        calls=len(calls.calls),
        refused=len(failed),
        longest_s=round(calls.longest_s(), 2),
        serves_again_s=round(back_s, 2),
    )


def test_each_connection_that_the_server_ends_fails_nothing(hub: HubOnPostgres) -> None:
    ended = 0
    with traffic(hub.client, reads_per_s=100, writes_per_s=100) as calls:
        for _ in range(5):
            for [pid] in hub.server.execute(CONNECTIONS):
                hub.server.execute(f"SELECT pg_terminate_backend({pid})")
                ended += 1
                # It needs the connections of the store.
                hub.world.admin("agent", "add", f"added-{ended}", "--team", "platform", "--owner", "tests")
                time.sleep(0.3)
        wait_until(lambda: len(hub.server.execute(CONNECTIONS)) >= 2)
    assert ended >= 10
    assert not calls.failed()
    hub.check_trail(calls)
    note(
        "each connection ended by the server in turn",
        f"{ended} ends",
        calls=len(calls.calls),
        failed=0,
        longest_s=round(calls.longest_s(), 2),
    )


CONNECTIONS = "SELECT pid FROM pg_stat_activity WHERE application_name = 'hawse-hub'"
