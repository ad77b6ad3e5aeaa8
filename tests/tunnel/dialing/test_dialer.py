from __future__ import annotations

import gc
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Any

import pytest
import trio
import trustme
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.tunnel.certificates import (
    ODD,
    authority_name,
    ca_pem,
    client_only_context,
    contexts,
    odd_context,
)
from tests.tunnel.dialing.dialer_bench import (
    DATED_TOKENS,
    NOW,
    TOKEN,
    TOKEN_BY_OUR_CLOCK,
    Answer,
    Handler,
    Hub,
    Network,
    Unreachable,
    accept_until_closed,
    answer,
    config,
    hub_time_at,
    over_tls,
    read_head,
    refuses_with_hub_time,
    seconds_of,
    token_dated_by,
    tokens_in,
)
from tunnel import (
    CloseCode,
    Hello,
    Rejected,
    Role,
    Session,
    SessionClosed,
    Welcome,
    open_session,
)
from tunnel.dialing import dial, dialer
from tunnel.dialing.dial import DIAL_S, DialerConfig, open_tunnel
from tunnel.dialing.dialer import run_dialer
from tunnel.dialing.failure import DialFailed
from tunnel.net.connect import client_context
from tunnel.net.egress import ProxySettings
from tunnel.websocket.upgrade import accept_websocket


async def hang(stream: trio.abc.Stream) -> None:
    with suppress(trio.BrokenResourceError):
        while await stream.receive_some():
            pass


async def hang_over_tls(stream: trio.abc.Stream) -> None:
    await over_tls(stream, hang)


async def hang_after_101(stream: trio.abc.Stream) -> None:
    async def upgrade(tls: trio.abc.Stream) -> None:
        async with accept_websocket(tls, request_head=await read_head(tls)) as transport:
            await transport.receive()
            await trio.sleep_forever()

    with trio.move_on_after(20):
        await over_tls(stream, upgrade)


async def leave_in_handshake(stream: trio.abc.Stream) -> None:
    await stream.receive_some()


async def speak_http_without_tls(stream: trio.abc.Stream) -> None:
    await stream.receive_some()
    await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")


async def run_for(seconds: float, *handlers: Handler, **changes: object) -> Network:
    async with trio.open_nursery() as nursery:
        network = Network(nursery, *handlers)
        with trio.move_on_after(seconds):
            await run_dialer(config(network, **changes), accept_until_closed)
        nursery.cancel_scope.cancel()
    return network


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "tunnel.dialer"]


@pytest.fixture(autouse=True)
def _log_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


async def test_a_session_is_served_and_the_next_one_dialled(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub(lives_s=30)
    network = await run_for(100, hub)
    assert network.dialled_at == pytest.approx([0, 30, 60, 90], abs=0.1)
    assert network.targets[0] == ("hub.test", 443)
    assert [hello.cluster for hello in hub.hellos] == ["c1"] * 4
    assert lines(caplog)[0] == "the tunnel to hub.test:443 is up, session s1"
    assert lines(caplog)[1].startswith("the tunnel to hub.test:443 ended after 30 s: ")
    assert lines(caplog)[1].endswith("; the next attempt is in 0 s")


async def test_the_request_names_the_hub_and_carries_a_fresh_token(autojump_clock: MockClock) -> None:
    hub = Hub(lives_s=10)
    tokens = iter(f"token{n}" for n in range(100))
    await run_for(31, hub, authorization=lambda hub_time: next(tokens))
    assert len(hub.heads) == 4
    for n, head in enumerate(hub.heads):
        lowered = head.lower()
        assert lowered.startswith(b"get /base/v1/tunnel http/1.1\r\n")
        assert b"\r\nhost: hub.test\r\n" in lowered
        assert b"\r\nsec-websocket-protocol: hawse.v1\r\n" in lowered
        assert b"extensions" not in lowered
        assert b"\r\nauthorization: bearer token%d\r\n" % n in lowered


async def test_another_port_stands_in_the_host_header(autojump_clock: MockClock) -> None:
    hub = Hub(lives_s=10)
    network = await run_for(5, hub, hub_url="https://hub.test:8443")
    assert network.targets == [("hub.test", 8443)]
    assert b"\r\nhost: hub.test:8443\r\n" in hub.heads[0].lower()


async def test_the_waits_grow_and_a_good_session_resets_them(autojump_clock: MockClock) -> None:
    down = Unreachable(ConnectionRefusedError(111, "Connection refused"))
    network = await run_for(400, down, down, down, down, down, Hub(lives_s=10), down)
    assert network.waits[:5] == pytest.approx([5, 10, 20, 30, 30])
    assert network.waits[5] == pytest.approx(10, abs=0.1)
    # The budget of 20 has gained one when it is empty, and the first of them has followed the tunnel at once.
    assert network.waits[6:26] == pytest.approx([0.75] * 20)
    assert network.waits[26:29] == pytest.approx([5, 10, 20])


async def test_a_link_that_connects_and_dies_backs_off(autojump_clock: MockClock) -> None:
    """At first a hub may be restarting again and again."""
    network = await run_for(1000, Hub(lives_s=1))
    assert network.waits[:20] == pytest.approx([1] * 20, abs=0.1)
    # From then on one in 10 s, and one in 30 to 60 s.
    later = [at for at in network.dialled_at if at > 100]
    assert len(later) <= 900 / 10 + 900 / 30
    assert max(network.waits) == pytest.approx(31, abs=0.1)


GONE = Unreachable(ConnectionRefusedError(111, "Connection refused"))


async def test_a_hub_that_drains_is_dialled_as_soon_as_it_has_ended(autojump_clock: MockClock) -> None:
    """Its port is closed until then, and the redials are kept for the time after it."""
    async with trio.open_nursery() as nursery:
        network = Network(nursery, Hub(20, goes_after_s=60), *[GONE] * 10, Hub(1000), open_max=2)
        with trio.move_on_after(100):
            await run_dialer(config(network), accept_until_closed)
        nursery.cancel_scope.cancel()
    expected = [0, 20, 25, 35, 55, *(80 + 0.75 * number for number in range(8))]
    assert network.dialled_at[:12] == pytest.approx(expected[:12], abs=0.1)


async def test_a_refusal_beside_a_hub_that_drains_is_obeyed(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        refusal = answer(503, b"Retry-After: 30\r\n")
        network = Network(nursery, Hub(20, goes_after_s=5), refusal, Hub(1000), open_max=2)
        with trio.move_on_after(100):
            await run_dialer(config(network), accept_until_closed)
        nursery.cancel_scope.cancel()
    assert network.dialled_at == pytest.approx([0, 20, 50], abs=0.1)


async def test_each_dial_is_counted_by_its_result(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        refusal, no_http = answer(503, b"Retry-After: 30\r\n"), answer(404)
        network = Network(nursery, refusal, no_http, Hub(1000))
        results: list[str] = []
        with trio.move_on_after(200):
            await run_dialer(config(network), accept_until_closed, dialled=results.append)
        nursery.cancel_scope.cancel()
    assert results[0] == "refused"
    assert results[-1] == "up"
    assert len(results) == len(network.dialled_at) == 3


async def test_a_hub_that_dies_while_it_drains_is_dialled_at_once(autojump_clock: MockClock) -> None:
    """Its streams wait for a resumption, which no other hub can give them."""
    resuming = Hello(cluster="c1", features=("resume",))

    class Dying(Hub):
        async def __call__(self, stream: trio.abc.Stream) -> None:
            self.stream = stream
            await super().__call__(stream)

        def welcome(self, hello: Hello) -> Welcome:
            return Welcome(session_id="s1", features=("resume",), resume_ttl_s=60)

        async def upgrade(self, tls: trio.abc.Stream) -> None:
            with suppress(SessionClosed):
                async with accept_websocket(tls, request_head=await read_head(tls)) as transport:
                    async with open_session(transport, Role.LISTENER, answer_hello=self.welcome) as session:
                        session.open_stream(b"head", context=session.add_context(1, b"x"))
                        await trio.sleep(20)
                        session.go_away(drain_ms=60_000, reason="bye")
                        await trio.sleep(7)
                        await trio.aclose_forcefully(self.stream)
                        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        network = Network(nursery, Dying(0), GONE, GONE, Hub(1000), open_max=3)
        with trio.move_on_after(29):
            await run_dialer(config(network, hello=lambda: resuming), accept_until_closed)
        nursery.cancel_scope.cancel()
    # Once for the old session, and once for a new one.
    assert network.dialled_at[:5] == pytest.approx([0, 20, 25, 27, 27], abs=0.1)


@pytest.mark.parametrize(
    ("status", "headers", "wait_s"),
    [
        (401, b"", 5),
        (403, b"", 5),
        (503, b"Retry-After: 1\r\n", 5),
        (503, b"Retry-After: 20\r\n", 20),
        # A balancer that does not reach the hub.
        (502, b"", 0.75),
        (503, b"", 0.75),
    ],
)
async def test_a_refusal_ends_the_redials(
    status: int, headers: bytes, wait_s: float, autojump_clock: MockClock
) -> None:
    network = await run_for(60, Hub(20), GONE, answer(status, headers), GONE)
    assert network.waits[:3] == pytest.approx([20, 0.75, wait_s], abs=0.1)
    assert (network.waits[3] < 1) == (wait_s < 1)


@pytest.mark.parametrize(("code", "waits"), [(1000, 0), (4401, 5), (4403, 5), (4409, 5), (4413, 5)])
async def test_a_session_that_the_hub_ends_for_a_cause_is_not_followed_at_once(
    code: int, waits: float, autojump_clock: MockClock
) -> None:
    class Ending(Hub):
        async def upgrade(self, tls: trio.abc.Stream) -> None:
            async with accept_websocket(tls, request_head=await read_head(tls)) as transport:
                async with open_session(transport, Role.LISTENER, answer_hello=self.welcome) as session:
                    await trio.sleep(20)
                    session.end(code, "for a cause")

    network = await run_for(40, Ending(0), hang)
    assert network.waits[0] == pytest.approx(20 + waits, abs=0.1)


async def test_a_session_that_the_relay_ends_for_a_cause_is_a_refusal_as_well(
    autojump_clock: MockClock,
) -> None:
    """As for a clock that it does not believe: it says so, and leaves a moment later."""

    async def refuse(session: Session) -> None:
        session.go_away(code=CloseCode.AUTH, reason="a wrong clock")
        await trio.sleep(1)
        session.end(CloseCode.AUTH, "a wrong clock")

    async with trio.open_nursery() as nursery:
        network = Network(nursery, Hub(1000))
        with trio.move_on_after(120):
            await run_dialer(config(network), refuse)
        nursery.cancel_scope.cancel()
    assert network.waits[:4] == pytest.approx([6, 11, 21, 31], abs=0.1)


async def test_names_are_resolved_for_each_dial(autojump_clock: MockClock) -> None:
    network = await run_for(100, Unreachable(socket.gaierror(-3, "Temporary failure in name resolution")))
    assert network.targets == [("hub.test", 443)] * len(network.dialled_at)
    assert len(network.targets) > 3


@pytest.mark.parametrize(
    ("handler", "phase"),
    [
        (Unreachable(None), "connecting to hub.test:443"),
        (hang, "in the TLS handshake with hub.test:443"),
        (hang_over_tls, "waiting for its answer to the upgrade"),
        (hang_after_101, "waiting for its WELCOME"),
    ],
)
async def test_one_deadline_covers_each_phase(
    handler: Handler, phase: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    await run_for(12, handler)
    (line,) = lines(caplog)
    assert phase in line
    assert line.startswith("no tunnel to hub.test:443: ")


async def test_a_dial_that_hangs_is_over_after_10_s(autojump_clock: MockClock) -> None:
    network = await run_for(60, hang)
    assert network.waits[:2] == pytest.approx([15, 20], abs=1.5)


async def test_a_dial_that_succeeds_when_its_time_is_over_has_failed(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process was not run for a moment, between the WELCOME and its being taken in."""
    late = iter([True])

    @asynccontextmanager
    async def open_late(*args: Any, **settings: Any) -> AsyncIterator[Session]:
        async with open_session(*args, **settings) as session:
            if next(late, False):
                autojump_clock.jump(DIAL_S)
                # The deadline is noticed, and this task was about to run already.
                with trio.CancelScope(shield=True):
                    await trio.lowlevel.checkpoint()
            yield session

    monkeypatch.setattr(dial, "open_session", open_late)
    network = await run_for(25, Hub(100))
    assert network.waits == pytest.approx([15], abs=0.1)
    failed, up = lines(caplog)
    assert "it took longer than 10 s, the last of it waiting for its WELCOME; the next attempt is" in failed
    assert "is up, session s2" in up


@pytest.mark.parametrize(
    ("handler", "text"),
    [
        (
            Unreachable(ConnectionRefusedError(111, "Connection refused")),
            "cannot connect to hub.test:443: Connection refused",
        ),
        (
            Unreachable(socket.gaierror(-2, "Name or service not known")),
            "the name hub.test cannot be resolved: Name or service not known",
        ),
        (
            leave_in_handshake,
            "no TLS with hub.test:443: the peer closed the connection during the TLS handshake",
        ),
        (speak_http_without_tls, "no TLS with hub.test:443: TLS failed: "),
        (answer(200), "the answer to the upgrade is 200 instead of 101; there is no hub at this URL"),
        (
            answer(301, b"Location: https://user:secret@other.test/x?token=secret\r\n"),
            "301 instead of 101, it points to https://other.test; the hub's URL must name the hub itself",
        ),
        (answer(401), "401 instead of 101; the hub, or a proxy on the way, does not accept this relay"),
        # What the hub says of it has the next step.
        (
            answer(401, b'Warning: 299 - "apply what it prints"\r\n'),
            "401 instead of 101 (apply what it prints); the next attempt",
        ),
        (answer(403), "403 instead of 101; this relay is not allowed to connect"),
        (answer(404), "404 instead of 101; there is no hub at this URL"),
        (answer(426), "426 instead of 101; there is no hub at this URL"),
        (answer(407), "407 instead of 101; a proxy on the way demands a user and a password"),
        (answer(429), "429 instead of 101; the hub has no room now"),
        (answer(502), "502 instead of 101; a proxy in front of the hub does not reach it"),
        (answer(503), "503 instead of 101; the hub has no room now"),
        (Answer(b"SSH-2.0-OpenSSH_9.2\r\n"), "what answers speaks no HTTP"),
        (Answer(b""), "the connection ended before an answer to the upgrade"),
        (Hub(0, reject=Rejected(4403, "unknown cluster")), "the hub turns this relay away: unknown cluster"),
    ],
)
async def test_each_failure_is_one_clear_line(
    handler: Handler, text: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    await run_for(4, handler)
    (line,) = lines(caplog)
    assert line.startswith("no tunnel to hub.test:443: ")
    assert text in line
    assert line.endswith("; the next attempt is in 5 s")
    assert "\n" not in line
    assert TOKEN not in caplog.text
    assert "secret" not in caplog.text


async def test_a_wrong_ca_is_named(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    stranger = client_context(trustme.CA().cert_pem.bytes().decode())
    await run_for(4, Hub(10), tls=stranger)
    (line,) = lines(caplog)
    assert (
        "no TLS with hub.test:443: the peer's certificate is not accepted: unable to get local issuer" in line
    )
    assert f"; it is signed by {authority_name()}, and hub.ca does not hold that CA; the next attempt" in line


async def test_a_certificate_that_is_not_for_servers_is_not_blamed_on_a_missing_ca(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def hub(stream: trio.abc.Stream) -> None:
        await over_tls(stream, hang, client_only_context())

    await run_for(4, hub, tls=client_context(ca_pem()))
    [line] = lines(caplog)
    assert f"; it is signed by {authority_name()}; the next attempt" in line


@pytest.mark.parametrize("kind", ODD)
async def test_a_certificate_that_cannot_be_read_is_dialled_again_as_any_other(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    async def hub(stream: trio.abc.Stream) -> None:
        await over_tls(stream, hang, odd_context(kind))

    await run_for(4, hub)
    [line] = lines(caplog)
    assert "; the next attempt" in line


async def test_an_expired_certificate_is_reported_as_such_and_not_as_one_of_another_ca(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    authority = trustme.CA()
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("hub.test", not_after=datetime(2020, 1, 1, tzinfo=UTC)).configure_cert(old)

    async def hub(stream: trio.abc.Stream) -> None:
        await over_tls(stream, hang, old)

    await run_for(4, hub, tls=client_context(authority.cert_pem.bytes().decode()))
    (line,) = lines(caplog)
    assert "certificate has expired; the certificate must be renewed, unless this machine's clock" in line


async def test_a_wrong_host_name_is_named(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    await run_for(4, Hub(10), hub_url="https://other.test")
    (line,) = lines(caplog)
    assert "Hostname mismatch" in line
    assert "the URL must name the host as the certificate does" in line


@pytest.mark.parametrize(
    ("value", "wait_s"),
    [
        (b"40", 40),
        (b"1", 5),
        (b"999999999999", 300),
        (formatdate(NOW + 60, usegmt=True).encode(), 60),
        (formatdate(NOW - 60, usegmt=True).encode(), 5),
        (b"soon", 5),
        (b"Mon, 01 Jan 99999999999999999999 00:00:00 GMT", 5),
        (b"-5", 5),
        ("٣٠".encode(), 5),
    ],
)
async def test_retry_after_is_obeyed(value: bytes, wait_s: float, autojump_clock: MockClock) -> None:
    network = await run_for(310, answer(503, b"Retry-After: %s\r\n" % value))
    assert network.waits[0] == pytest.approx(wait_s, abs=0.1)


async def test_the_hubs_rejection_may_ask_for_patience(autojump_clock: MockClock) -> None:
    network = await run_for(60, Hub(0, reject=Rejected(4429, "slow down", 33_000)))
    assert network.waits[0] == pytest.approx(33, abs=0.1)


async def test_a_goodbye_may_ask_for_patience(autojump_clock: MockClock) -> None:
    async def serve_until_goodbye(session: Session) -> None:
        await trio.sleep(20)
        assert session.draining

    async with trio.open_nursery() as nursery:
        network = Network(nursery, Hub(10, retry_after_ms=45_000))
        with trio.move_on_after(100):
            await run_dialer(config(network), serve_until_goodbye)
        nursery.cancel_scope.cancel()
    assert network.waits[0] == pytest.approx(55, abs=1)


async def test_a_hub_that_goes_away_is_dialled_again_at_once_and_served_to_its_end(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    served: list[str] = []

    async def serve(session: Session) -> None:
        await session.wait_closed()
        served.append(f"{session.session_id} {trio.current_time() - started_at:.0f}")

    hub = Hub(20, goes_after_s=15)
    async with trio.open_nursery() as nursery:
        network = Network(nursery, hub, open_max=2)
        started_at = trio.current_time()
        with trio.move_on_after(101):
            await run_dialer(config(network), serve)
        nursery.cancel_scope.cancel()
    # Each lives for 20 s, and 15 s more beside the next one.
    assert network.dialled_at == pytest.approx([0, 20, 40, 60, 80, 100], abs=0.1)
    assert served == ["s1 35", "s2 55", "s3 75", "s4 95"]
    assert "goes away (bye): dialling again in 0.0 s, streams that go on there: 0" in lines(caplog)[1]


async def test_a_hub_that_goes_and_is_gone_is_dialled_again_at_once_as_well(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        network = Network(nursery, Hub(20, goes_after_s=1e-9), Hub(1000), open_max=2)
        with trio.move_on_after(50):
            await run_dialer(config(network), accept_until_closed)
        nursery.cancel_scope.cancel()
    assert network.dialled_at == pytest.approx([0, 20], abs=0.1)


async def test_one_that_goes_away_again_as_soon_as_it_is_there_backs_off(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        network = Network(nursery, Hub(3, goes_after_s=1), open_max=2)
        with trio.move_on_after(120):
            await run_dialer(config(network), accept_until_closed)
        nursery.cancel_scope.cancel()
    # At once at first: a hub may be restarted more than once. The budget of 20 gains one in 10 s.
    assert network.waits[:28] == pytest.approx([3] * 28, abs=0.1)
    assert network.waits[28:31] == pytest.approx([8, 3, 13], abs=0.1)


async def test_a_hub_that_never_ends_is_left_when_its_time_is_over(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        network = Network(nursery, Hub(20, goes_after_s=10_000), Hub(10_000), open_max=2)
        with trio.move_on_after(20 + 60 + dialer.LEAVING_SLACK_S + 1):
            await run_dialer(config(network), accept_until_closed)
        # The other one was closed by the cancellation.
        assert network.closed_at[0] == pytest.approx(20 + 60 + dialer.LEAVING_SLACK_S, abs=0.1)
        nursery.cancel_scope.cancel()


async def test_of_too_many_tunnels_that_are_left_the_oldest_is_closed(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialer, "LEAVING_MAX", 2)
    async with trio.open_nursery() as nursery:
        network = Network(nursery, Hub(20, goes_after_s=50), open_max=4)
        with trio.move_on_after(61):
            await run_dialer(config(network), accept_until_closed)
        nursery.cancel_scope.cancel()
    assert network.dialled_at == pytest.approx([0, 20, 40, 60], abs=0.1)
    assert network.closed_at[0] == pytest.approx(60, abs=0.1)


async def test_dialling_ends_alone_and_the_sessions_go_on(autojump_clock: MockClock) -> None:
    dialing = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        network = Network(nursery, Hub(30))

        async def stop() -> None:
            await trio.sleep(10)
            dialing.cancel()

        nursery.start_soon(stop)
        await run_dialer(config(network), accept_until_closed, dialing=dialing)
        assert trio.current_time() - network.began_at == pytest.approx(30, abs=0.1)
    assert network.dialled_at == [0]


@pytest.mark.parametrize(
    ("header", "logged"),
    [
        (b'Warning: 299 - "its \\"key\\" is of another cluster"\r\n', ' (its "key" is of another cluster);'),
        (b"Warning: 299 - its key\r\n", "401 instead of 101;"),
        (b'Warning: 299 - "\x1b[2Jx"\r\n', "401 instead of 101;"),
        (b'Warning: 299 - "' + b"x" * 500 + b'"\r\n', f" ({'x' * 200});"),
    ],
)
async def test_the_warning_header_of_a_refusal_is_logged(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, header: bytes, logged: str
) -> None:
    await run_for(4, answer(401, header))
    assert logged in caplog.messages[-1]
    assert "\x1b" not in caplog.text


@pytest.mark.parametrize("ahead_s", [310, -310])
async def test_a_wrong_clock_costs_one_further_attempt_by_the_hubs_time(
    ahead_s: float, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    refusal, hub = refuses_with_hub_time(ahead_s), Hub(20)
    async with trio.open_nursery() as nursery:
        network = Network(nursery, refusal, hub)
        with trio.move_on_after(10):
            await run_dialer(config(network, **DATED_TOKENS), accept_until_closed)
        nursery.cancel_scope.cancel()
    assert network.waits == pytest.approx([0], abs=0.1)
    assert tokens_in(refusal.heads) == [TOKEN_BY_OUR_CLOCK]
    assert tokens_in(hub.heads) == [token_dated_by(hub_time_at(ahead_s).decode())]
    side = "behind" if ahead_s > 0 else "ahead of"
    assert f"; our clock is 310 s {side} the hub's: set the one that is wrong; " in lines(caplog)[0]
    assert lines(caplog)[0].endswith("; the next attempt is in 0 s")


async def test_a_hub_that_refuses_every_token_is_dialled_twice_for_each_wait(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Each time by our clock first: the hub's time is not remembered."""
    refusal = refuses_with_hub_time(310)
    network = await run_for(36, refusal, **DATED_TOKENS)
    assert network.waits == pytest.approx([0, 5, 0, 10, 0, 20, 0], abs=0.1)
    assert tokens_in(refusal.heads) == [TOKEN_BY_OUR_CLOCK, token_dated_by(hub_time_at(310).decode())] * 4
    assert ["; our clock is " in line for line in lines(caplog)] == [True, False] * 4


async def test_a_clock_that_stays_wrong_gets_the_hubs_time_for_each_tunnel(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        lost = Unreachable(OSError("lost"))
        network = Network(
            nursery,
            refuses_with_hub_time(310),
            Hub(20),
            refuses_with_hub_time(310),
            lost,
            refuses_with_hub_time(310),
            Hub(20),
            lost,
        )
        with trio.move_on_after(70):
            await run_dialer(config(network, **DATED_TOKENS), accept_until_closed)
        nursery.cancel_scope.cancel()
    assert network.waits[:7] == pytest.approx([0, 20, 0, 0.75, 0, 20, 0.75], abs=0.2)


@pytest.mark.parametrize(
    "refusal",
    [
        answer(401, b"Date: %s\r\n" % formatdate(NOW + 310, usegmt=True).encode()),
        answer(401, b"Hawse-Hub-Time: 1800000000\r\n"),
        answer(403, b"Hawse-Hub-Time: %b\r\n" % hub_time_at(310)),
        answer(503, b"Hawse-Hub-Time: %b\r\n" % hub_time_at(310)),
        answer(401),
    ],
)
async def test_a_time_that_the_hub_did_not_sign_dates_no_token(
    refusal: Answer, autojump_clock: MockClock
) -> None:
    refusal.heads.clear()
    network = await run_for(6, refusal, **DATED_TOKENS)
    assert network.waits == pytest.approx([5], abs=0.1)
    assert tokens_in(refusal.heads) == [TOKEN_BY_OUR_CLOCK] * 2


@given(st.lists(st.sampled_from(["told", "dated", "unauthorized", "lost", "up"]), min_size=1, max_size=12))
def test_no_two_dials_in_a_row_are_dated_by_the_hub_and_no_time_is_used_twice(script: list[str]) -> None:
    """With any answers: a time dates the very next dial and no other, so waits bound the dials."""
    asked: list[str] = []

    def authorization(hub_time: str) -> str:
        asked.append(hub_time)
        return TOKEN

    async def scripted() -> tuple[list[float], int]:
        handlers: list[Handler] = []
        for number, word in enumerate(script):
            match word:
                case "told":
                    handlers.append(refuses_with_hub_time(1000 + number))
                case "dated":
                    date = formatdate(NOW + 1000, usegmt=True).encode()
                    handlers.append(answer(401, b"Date: %b\r\n" % date))
                case "unauthorized":
                    handlers.append(answer(401))
                case "lost":
                    handlers.append(Unreachable(OSError("lost")))
                case _:
                    handlers.append(Hub(20))
        network = await run_for(
            500, *handlers, authorization=authorization, seconds_of=seconds_of, chance=lambda: 0.9
        )
        return network.waits, len(network.dialled_at)

    waits, dials = trio.run(scripted, clock=MockClock(autojump_threshold=0))
    assert dials == len(asked)
    words = [script[min(number, len(script) - 1)] for number in range(dials)]
    numbers = [min(number, len(script) - 1) for number in range(dials)]
    expected = ""
    for position, (word, hub_time) in enumerate(zip(words, asked, strict=True)):
        assert hub_time == expected
        told_now = word == "told" and not hub_time
        expected = hub_time_at(1000 + numbers[position]).decode() if told_now else ""
        if position < len(waits):
            assert (waits[position] < 1) == bool(expected)


async def test_a_fault_of_the_server_task_ends_the_dialer_with_it(autojump_clock: MockClock) -> None:
    async def serve(session: Session) -> None:
        raise KeyError("a bug")

    async with trio.open_nursery() as nursery:
        network = Network(nursery, Hub(10))
        with pytest.raises(KeyError, match="a bug"):
            await run_dialer(config(network), serve)


async def test_serving_that_ends_by_itself_closes_the_session(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def serve(session: Session) -> None:
        await trio.sleep(12)

    async with trio.open_nursery() as nursery:
        network = Network(nursery, Hub(1000))
        with trio.move_on_after(12.5):
            await run_dialer(config(network, chance=lambda: 0.9), serve)
        assert network.open_now == 0
    assert "ended after 12 s: closed by us" in lines(caplog)[1]


async def test_cancelling_closes_the_session(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        network = Network(nursery, Hub(1000))
        with trio.move_on_after(15):
            await run_dialer(config(network), accept_until_closed)
        await trio.sleep(5)
        assert network.open_now == 0


@pytest.mark.parametrize(
    "url",
    [
        "http://hub.test",
        "hub.test",
        "https://",
        "https://user:secret@hub.test",
        "https://hub.test/?token=secret",
        "https://hub.test/#secret",
        "https://hub.test:secret/",
    ],
)
def test_a_url_that_is_not_plain_https_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="the hub's URL") as caught:
        DialerConfig(
            hub_url=url,
            tls=contexts()[0],
            authorization=lambda hub_time: TOKEN,
            hello=Hello,
            proxy=ProxySettings(),
        )
    assert "secret" not in str(caught.value)


async def test_a_token_that_no_header_may_hold_is_not_quoted(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        network = Network(nursery, Hub(10))
        with pytest.raises(ValueError, match="the token for the hub") as caught:
            async with open_tunnel(config(network, authorization=lambda hub_time: "sec\nret")):
                raise AssertionError("never open")
        assert "sec" not in str(caught.value)
        nursery.cancel_scope.cancel()


# Egress proxies.


class TestProxy:
    """A CONNECT proxy that leads to `hub` wherever one asks to go."""

    __test__ = False

    def __init__(self, hub: Handler, *, user: bytes | None = None, status: int = 200) -> None:
        self.hub = hub
        self.user = user
        self.status = status
        self.heads: list[bytes] = []

    async def __call__(self, stream: trio.abc.Stream) -> None:
        head = await read_head(stream)
        self.heads.append(head)
        if self.user is not None and b"Proxy-Authorization: Basic " + self.user not in head:
            await stream.send_all(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        elif self.status != 200:
            await stream.send_all(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % self.status)
        else:
            await stream.send_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await self.hub(stream)


def proxy_settings(url: str) -> ProxySettings:
    return ProxySettings.from_environment({"HTTPS_PROXY": url})


async def test_it_dials_through_a_proxy_with_a_password(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = TestProxy(Hub(10), user=b"YWxpY2U6c2VjcmV0")
    settings = proxy_settings("http://alice:secret@proxy.test:3128")
    network = await run_for(5, proxy, proxy=settings)
    assert network.targets == [("proxy.test", 3128)]
    assert proxy.heads[0].startswith(b"CONNECT hub.test:443 HTTP/1.1\r\n")
    assert TOKEN.encode() not in proxy.heads[0]
    assert lines(caplog)[0] == "the tunnel to hub.test:443 is up, session s1"
    assert "secret" not in caplog.text


async def test_it_dials_through_a_proxy_over_tls(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    inner = TestProxy(Hub(10))

    async def proxy(stream: trio.abc.Stream) -> None:
        await over_tls(stream, inner)

    await run_for(5, proxy, proxy=proxy_settings("https://localhost"))
    assert lines(caplog)[0] == "the tunnel to hub.test:443 is up, session s1"


@pytest.mark.parametrize(
    ("proxy", "url", "text"),
    [
        (TestProxy(hang, user=b"eA=="), "http://proxy.test:3128", "demands a user and a password (407)"),
        (
            TestProxy(hang, user=b"eA=="),
            "http://alice:secret@proxy.test:3128",
            "does not accept the user and password",
        ),
        (
            TestProxy(hang, status=403),
            "http://proxy.test:3128",
            "does not allow connections to hub.test:443 (403)",
        ),
        (TestProxy(hang, status=502), "http://proxy.test:3128", "cannot connect to hub.test:443 (502)"),
        (
            Unreachable(ConnectionRefusedError(111, "Connection refused")),
            "http://proxy.test:3128",
            "cannot connect to the proxy proxy.test:3128: Connection refused",
        ),
        (hang, "http://proxy.test:3128", "the last of it waiting for the proxy proxy.test:3128"),
        (
            hang,
            "https://proxy.test:3128",
            "the last of it in the TLS handshake with the proxy proxy.test:3128",
        ),
    ],
)
async def test_each_failure_of_the_proxy_is_one_clear_line(
    proxy: Handler, url: str, text: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    await run_for(12 if proxy is hang else 4, proxy, proxy=proxy_settings(url))
    (line,) = lines(caplog)
    assert text in line
    assert "secret" not in caplog.text


async def test_no_proxy_takes_the_direct_way(autojump_clock: MockClock) -> None:
    settings = ProxySettings.from_environment({"HTTPS_PROXY": "http://proxy.test:3128", "NO_PROXY": ".test"})
    network = await run_for(5, Hub(10), proxy=settings)
    assert network.targets == [("hub.test", 443)]


def test_the_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.test:3128")
    made = DialerConfig(
        hub_url="https://hub.test", tls=contexts()[0], authorization=lambda _: TOKEN, hello=Hello
    )
    assert made.proxy.proxy is not None
    assert made.proxy.proxy.name == "proxy.test:3128"
    assert TOKEN not in repr(made)


# Real sockets.


async def serve_tcp(nursery: trio.Nursery, handler: Handler) -> int:
    listeners = await nursery.start(trio.serve_tcp, handler, 0)
    port: int = listeners[0].socket.getsockname()[1]
    return port


def real_config(port: int, **changes: object) -> DialerConfig:
    values: dict[str, object] = {
        "hub_url": f"https://localhost:{port}",
        "tls": client_context(ca_pem()),
        "authorization": lambda hub_time: TOKEN,
        "hello": Hello,
        "proxy": ProxySettings(),
        **changes,
    }
    return DialerConfig(**values)  # type: ignore[arg-type]


async def test_it_dials_a_hub_on_a_real_socket() -> None:
    async with trio.open_nursery() as nursery:
        port = await serve_tcp(nursery, Hub(10))
        async with open_tunnel(real_config(port)) as session:
            assert session.session_id == "s1"
            assert session.peer_name.endswith(f":{port}")
        nursery.cancel_scope.cancel()


async def test_it_dials_a_hub_through_a_real_proxy() -> None:
    async with trio.open_nursery() as nursery:
        hub_port = await serve_tcp(nursery, Hub(10))

        async def splice(stream: trio.abc.Stream) -> None:
            async def copy(source: trio.abc.Stream, sink: trio.abc.Stream) -> None:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    while data := await source.receive_some():
                        await sink.send_all(data)
                await trio.aclose_forcefully(sink)

            async with (
                await trio.open_tcp_stream("127.0.0.1", hub_port) as onward,
                trio.open_nursery() as both,
            ):
                both.start_soon(copy, stream, onward)
                both.start_soon(copy, onward, stream)

        proxy = TestProxy(splice, user=b"YWxpY2U6c2VjcmV0")
        proxy_port = await serve_tcp(nursery, proxy)
        settings = proxy_settings(f"http://alice:secret@127.0.0.1:{proxy_port}")
        async with open_tunnel(real_config(443, hub_url="https://hub.test", proxy=settings)) as session:
            assert session.session_id == "s1"
        assert proxy.heads[0].startswith(b"CONNECT hub.test:443 HTTP/1.1\r\n")
        nursery.cancel_scope.cancel()


async def test_a_real_proxy_that_refuses_leaves_no_socket_behind() -> None:
    async with trio.open_nursery() as nursery:
        proxy_port = await serve_tcp(nursery, TestProxy(hang, status=403))
        settings = proxy_settings(f"http://127.0.0.1:{proxy_port}")
        with pytest.raises(DialFailed, match="does not allow connections"):
            async with open_tunnel(real_config(443, hub_url="https://hub.test", proxy=settings)):
                raise AssertionError("never open")
        # An unclosed socket warns when it is collected, and warnings are errors.
        gc.collect()
        nursery.cancel_scope.cancel()


async def test_a_refused_port_is_named() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(DialFailed, match=f"cannot connect to localhost:{port}: Connection refused"):
            async with open_tunnel(real_config(port)):
                raise AssertionError("never open")
