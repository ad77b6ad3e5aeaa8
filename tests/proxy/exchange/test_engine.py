"""The engine of an exchange, between two ports that keep its contract in every way that it leaves open."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.exchange.engine import OVER, SPLICE_DRAIN_S, Exchange
from proxy.message.failure import Failure, Processed, StreamCode
from proxy.message.head import ResponseHead
from tests.proxy.exchange.fake_ports import (
    CAPACITY,
    GONE,
    LOST,
    METHODS,
    REVOKED,
    Bug,
    FakePort,
    FakeUpstream,
)


@attrs.define(eq=False)
class Rig:
    """An exchange between two such ports, and what has come of it."""

    client: FakePort = attrs.Factory(FakePort)
    upstream: FakeUpstream = attrs.Factory(FakeUpstream)
    bodiless: bool = False
    upgrade: bool = False
    done_raises: bool = False
    done: list[Failure | None] = attrs.Factory(list)
    patience: list[float] = attrs.Factory(list)
    exchange: Exchange = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.client.said_end = self.bodiless
        self.exchange = Exchange(
            self.client,
            self.upstream,
            self._done,
            self.patience.append,
            bodiless=self.bodiless,
            upgrade=self.upgrade,
        )

    def _done(self, failure: Failure | None) -> None:
        self.done.append(failure)
        assert self.exchange.over
        self.client.released = self.upstream.released = True
        if self.done_raises:
            raise Bug("done")

    def start(self) -> Rig:
        self.exchange.start()
        return self


def do(rig: Rig, operation: Sequence[object] | str) -> None:
    client, upstream, exchange = rig.client, rig.upstream, rig.exchange
    match operation:
        case ("client", bytes(data), bool(end)):
            client.say(data, end)
        case ("upstream", bytes(data), bool(end)):
            if upstream.heads_said:
                upstream.say(data, end)
        case ("head", int(status), bytes(data), bool(end)):
            if not upstream.heads_said:
                if status < 200 and status != 101:
                    upstream.say(b"", False, status)
                else:
                    upstream.heads_said = True
                    upstream.say(data, end and status != 101, status)
        case "drain client":
            client.drain()
        case "drain upstream":
            upstream.drain()
        case "hold":
            exchange.hold()
        case "release":
            exchange.release()
        case "gone":
            client.break_off(GONE)
        case "lost":
            upstream.break_off(LOST)
        case "revoke":
            exchange.end(REVOKED)
        case "expire":
            if rig.patience:
                exchange.expire()
        case _:
            raise AssertionError(operation)


bodies = st.sampled_from([b"", b"a", b"bcd", b"e" * CAPACITY])
ends = st.sampled_from([False, False, False, False, True])
operations = st.lists(
    st.one_of(
        st.tuples(st.just("client"), bodies, ends),
        st.tuples(st.just("upstream"), bodies, ends),
        st.tuples(st.just("head"), st.sampled_from([100, 103, 101, 200, 200, 413]), bodies, ends),
        st.sampled_from(["drain client", "drain upstream", "hold", "release", "release"]),
        st.sampled_from(["drain client", "drain upstream"]),
    ),
    max_size=40,
)
endings = st.lists(st.sampled_from(["gone", "lost", "revoke", "expire"]), max_size=2)
breaks = st.sampled_from([10**9, 5, 40])
bugs = st.one_of(
    st.just(("", "", 0)),
    st.just(("", "", 0)),
    st.tuples(st.sampled_from(["client", "upstream"]), st.sampled_from(METHODS), st.integers(0, 3)),
    st.just(("done", "", 0)),
)


def check_that_nothing_is_lost_doubled_or_taken_for_whole(
    before: list[Sequence[object] | str],
    endings: list[str],
    after: list[Sequence[object] | str],
    client_drains: bool,
    upstream_drains: bool,
    client_half_closes: bool,
    upstream_half_closes: bool,
    client_breaks: int,
    upstream_breaks: int,
    bug: tuple[str, str, int],
    kind: str,
) -> None:
    client = FakePort(client_half_closes, client_drains, client_breaks)
    upstream = FakeUpstream(upstream_half_closes, upstream_drains, upstream_breaks)
    where, method, at = bug
    for name, port in (("client", client), ("upstream", upstream)):
        if where == name:
            port.raises_in, port.raises_at = method, at
    rig = Rig(client, upstream, kind == "bodiless", kind == "upgrade", where == "done")
    exchange = rig.exchange
    exchange.start()
    for operation in [*before, *endings, *after]:
        held, crossed = exchange.held, (len(client.out), len(upstream.out))
        do(rig, operation)
        if held and exchange.held:
            assert (len(client.out), len(upstream.out)) == crossed
        # No wake-up is lost: what is paused has a reason.
        for direction in (exchange.request, exchange.answer):
            if exchange.over or exchange.held or direction.half.at_rest or not direction.paused:
                continue
            sink = direction.sink
            assert isinstance(sink, FakePort)
            waits_for_101 = kind == "upgrade" and sink is upstream and not exchange.spliced
            assert sink.full or sink.broke or sink.raised or waits_for_101
        if exchange.over:
            break
    assert len(rig.done) == exchange.over
    assert not exchange.over or client.exchange is upstream.exchange is OVER
    assert client.touched_when_over == upstream.touched_when_over == 0
    # Nothing is changed or overtaken on its way.
    assert bytes(upstream.said).startswith(bytes(client.out))
    assert bytes(client.said).startswith(bytes(upstream.out))
    assert not upstream.out_end or client.said_end
    assert not client.out_end or upstream.said_end
    assert sum(status >= 200 or status == 101 for status in client.heads) <= 1
    if not exchange.over:
        return
    failure = rig.done[0]
    raised = client.raised or upstream.raised
    if failure is None:
        # A clean end is all of the answer, in the kernel, and no cut.
        assert bytes(client.out) == bytes(upstream.said)
        assert upstream.said_end
        assert client.flushed
        assert client.was_cut is None
        assert not client.queue
        if exchange.status != 101:
            assert client.said_end or client.stopped
            assert (upstream.was_cut is None) == (client.said_end and not client.stopped) or upstream.broke
        return
    if not raised or (where, method) != ("upstream", "cut"):
        assert upstream.was_cut is not None
    if exchange.status:
        assert failure.processed is Processed.YES
        assert client.was_cut is not None or client.raised
    else:
        # It is the owner's, with no more of its body than was passed on.
        assert client.was_cut is None
        assert client.paused or client.said_end or client.raised
        assert not [status for status in client.heads if status >= 200 or status == 101] or client.raised
    if failure.code is StreamCode.INTERNAL:
        assert raised


any_history = given(
    operations,
    endings,
    operations,
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    breaks,
    breaks,
    bugs,
    st.sampled_from(["body", "body", "bodiless", "upgrade"]),
)


def test_nothing_is_lost_doubled_or_taken_for_whole() -> None:
    settings(max_examples=400)(any_history(check_that_nothing_is_lost_doubled_or_taken_for_whole))()


@pytest.mark.long
def test_nothing_is_lost_doubled_or_taken_for_whole_in_20_000_histories() -> None:
    settings(max_examples=20_000)(any_history(check_that_nothing_is_lost_doubled_or_taken_for_whole))()


@pytest.mark.parametrize("where", ["client", "upstream"])
@pytest.mark.parametrize("method", METHODS)
def test_a_bug_in_a_port_ends_its_exchange_and_raises_nowhere(
    where: str, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig()
    port = rig.client if where == "client" else rig.upstream
    port.raises_in = method
    rig.start()
    do(rig, ("client", b"x" * CAPACITY, False))
    do(rig, ("head", 200, b"y" * CAPACITY, False))
    do(rig, ("upstream", b"y", False))
    do(rig, "drain client")
    do(rig, "hold")
    do(rig, "release")
    do(rig, ("upstream", b"y", True))
    do(rig, "drain client")
    do(rig, "revoke")
    assert len(rig.done) == 1
    if port.raised:
        assert "Bug" in caplog.text
    else:
        assert (where, method) in {("client", "cut"), ("upstream", "head"), ("upstream", "stop")}


def test_a_bug_in_the_owner_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(done_raises=True).start()
    do(rig, "revoke")
    assert rig.done == [REVOKED]
    assert "Bug" in caplog.text


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("head", 200, b"", False), ("head", 200, b"", False)),
        (("head", 200, b"", True), ("head", 200, b"", False)),
        (("head", 200, b"", False), ("head", 100, b"", False)),
        (None, ("data", b"x")),
    ],
)
def test_a_port_that_breaks_the_contract_is_a_fault(
    first: tuple[str, int, bytes, bool] | None, second: tuple[str, object]
) -> None:
    rig = Rig().start()
    # What the client has to send is of no matter here.
    if first is not None:
        rig.exchange.answer_head(ResponseHead.of(first[1]), first[2], first[3])
    if second[0] == "head":
        status = second[1]
        assert isinstance(status, int)
        rig.exchange.answer_head(ResponseHead.of(status))
    else:
        rig.exchange.data(rig.upstream, b"x")
    (failure,) = rig.done
    assert failure is not None
    assert failure.code is StreamCode.INTERNAL


def test_bytes_of_a_paused_port_are_a_fault() -> None:
    rig = Rig().start()
    rig.exchange.hold()
    rig.exchange.data(rig.client, b"x")
    (failure,) = rig.done
    assert failure is not None
    assert failure.code is StreamCode.INTERNAL
    assert not rig.upstream.out


def test_bytes_behind_an_end_are_a_fault() -> None:
    rig = Rig().start()
    do(rig, ("client", b"body", True))
    rig.exchange.data(rig.client, b"more")
    (failure,) = rig.done
    assert failure is not None
    assert failure.code is StreamCode.INTERNAL
    assert bytes(rig.upstream.out) == b"body"


def test_room_moves_nothing_while_an_exchange_is_held() -> None:
    rig = Rig().start()
    do(rig, ("client", b"e" * CAPACITY, False))
    do(rig, ("client", b"later", False))
    do(rig, "hold")
    do(rig, "drain upstream")
    assert bytes(rig.upstream.out) == b"e" * CAPACITY
    do(rig, "release")
    assert bytes(rig.upstream.out) == b"e" * CAPACITY + b"later"


@pytest.mark.parametrize("with_head", [True, False])
def test_a_client_that_breaks_as_its_upload_is_stopped_is_sent_no_more(with_head: bool) -> None:
    class BreaksWhenStopped(FakePort):
        def stop(self) -> None:
            super().stop()
            self.break_off(GONE)

    rig = Rig(BreaksWhenStopped()).start()
    do(rig, ("head", 413, b"no", with_head))
    do(rig, ("upstream", b"", True))
    assert len(rig.done) == 1
    assert rig.client.touched_when_over == 0
    assert bytes(rig.client.out) == (b"" if with_head else b"no")


def test_the_bytes_of_a_client_are_dropped_once_a_raw_upstream_has_left() -> None:
    rig = Rig().start()
    do(rig, ("head", 101, b"", False))
    do(rig, ("upstream", b"all", True))
    do(rig, "lost")
    do(rig, ("client", b"ping", False))
    assert not rig.upstream.out
    assert rig.done == []
    do(rig, "drain client")
    assert rig.done == [None]


def test_an_answer_that_is_whole_ends_the_upload() -> None:
    rig = Rig().start()
    do(rig, ("client", b"first", False))
    do(rig, ("head", 413, b"no", True))
    assert rig.client.stopped
    assert rig.upstream.was_cut is not None
    assert rig.done == []
    do(rig, "drain client")
    assert rig.done == [None]
    assert rig.client.was_cut is None


def test_it_is_done_when_the_kernel_has_the_last_byte_and_until_then_it_can_be_revoked() -> None:
    rig = Rig(bodiless=True).start()
    do(rig, ("head", 200, b"secret", True))
    assert rig.done == []
    do(rig, "revoke")
    (failure,) = rig.done
    assert failure is not None
    assert failure.processed is Processed.YES
    assert rig.client.dropped
    assert not rig.client.queue


def test_another_attempt_is_another_exchange_with_the_same_client() -> None:
    rig = Rig().start()
    do(rig, ("client", b"body", True))
    assert bytes(rig.upstream.out) == b"body"
    do(rig, "lost")
    assert rig.done == [LOST]
    client = rig.client
    assert client.was_cut is None
    assert not client.stopped
    # Its owner has kept the body.
    client.inbox = [(0, b"body", True)]
    client.released = False
    upstream = FakeUpstream()
    again = Rig(client, upstream)
    client.paused, client.said_end = True, False
    again.start()
    assert bytes(upstream.out) == b"body"
    do(again, ("head", 200, b"ok", True))
    do(again, "drain client")
    assert again.done == [None]
    assert bytes(client.out) == b"ok"


def test_after_a_101_the_directions_end_by_themselves_but_not_one_for_ever() -> None:
    rig = Rig().start()
    do(rig, ("head", 101, b"hello", False))
    do(rig, ("client", b"bye", True))
    assert rig.patience == [SPLICE_DRAIN_S]
    do(rig, "drain upstream")
    do(rig, ("upstream", b" and bye", True))
    assert rig.done == []
    do(rig, "drain client")
    assert rig.done == [None]
    assert bytes(rig.client.out) == b"hello and bye"


def test_of_an_upgrade_nothing_is_sent_before_its_101() -> None:
    rig = Rig(upgrade=True).start()
    do(rig, ("client", b"raw", False))
    do(rig, "hold")
    do(rig, "release")
    assert not rig.upstream.out
    do(rig, ("head", 101, b"", False))
    assert bytes(rig.upstream.out) == b"raw"


def test_the_raw_bytes_of_a_refused_upgrade_go_nowhere() -> None:
    rig = Rig(upgrade=True).start()
    do(rig, ("client", b"raw", False))
    do(rig, ("head", 403, b"no", True))
    do(rig, "drain client")
    assert rig.done == [None]
    assert not rig.upstream.out
    assert rig.upstream.was_cut is not None


def test_a_raw_stream_whose_client_has_ended_is_cut_when_the_time_is_over() -> None:
    rig = Rig().start()
    do(rig, ("head", 101, b"", False))
    do(rig, ("client", b"", True))
    do(rig, "drain upstream")
    do(rig, "expire")
    (failure,) = rig.done
    assert failure is not None
    assert failure.code is StreamCode.CANCEL
    assert rig.client.was_cut is not None


@pytest.mark.parametrize("client_half_closes", [True, False])
@pytest.mark.parametrize("upstream_half_closes", [True, False])
def test_how_long_the_client_may_go_on_is_a_matter_of_who_can_half_close(
    client_half_closes: bool, upstream_half_closes: bool
) -> None:
    rig = Rig(FakePort(client_half_closes), FakeUpstream(upstream_half_closes)).start()
    do(rig, ("head", 101, b"", False))
    do(rig, ("upstream", b"all", True))
    do(rig, "drain client")
    expected = {(False, False): [30.0], (False, True): [30.0], (True, False): [1.0], (True, True): []}
    assert rig.patience == expected[client_half_closes, upstream_half_closes]
    assert rig.done == []
    do(rig, "gone")
    assert rig.done == [None]


def test_sinks_that_drain_at_once_are_no_recursion() -> None:
    rig = Rig(FakePort(drains_at_once=True), FakeUpstream()).start()
    do(rig, "hold")
    do(rig, ("head", 200, b"", False))
    count = 20_000
    for _ in range(count):
        rig.upstream.say(b"x" * CAPACITY, False)
    do(rig, "release")
    assert len(rig.client.out) == count * CAPACITY


def test_what_is_over_ignores_its_ports() -> None:
    rig = Rig().start()
    do(rig, "revoke")
    exchange = rig.exchange
    exchange.answer_head(ResponseHead.of(200))
    exchange.data(rig.client, b"x")
    exchange.room(rig.client)
    exchange.flushed(rig.client)
    exchange.broken(rig.client, GONE)
    exchange.hold()
    exchange.release()
    exchange.expire()
    exchange.end(LOST)
    exchange.crash(Bug("late"))
    rig.client.exchange.crash(Bug("late"))
    assert rig.done == [REVOKED]
    assert rig.client.touched_when_over == rig.upstream.touched_when_over == 0
