"""A dialer and a listener of which one is of the version before tunnels to several hubs, by its frames."""

from __future__ import annotations

import json

import attrs
import pytest
import trio
from trio.testing import MockClock

from tests.tunnel.dialing.hubs_bench import Balancer, Hub, Relay, header, plain
from tunnel import Hello, Welcome, hear_hello, read_hello
from tunnel.dialing import dial
from tunnel.dialing.dialer import run_dialer
from tunnel.handshake import read_welcome
from tunnel.protocol import frames, greetings
from tunnel.protocol.greetings import Resume
from tunnel.websocket.upgrade import AT_HEADER, ELSEWHERE_HEADER, accept_websocket

# As the earlier version encodes the values below.
EARLIER_WELCOME = (
    b'{"version":1,"session":"s1","resume_ttl_s":60,"max_frame":131072,"initial_window":65536,'
    b'"max_streams":16384,"features":["resume"],"replica":"","boot_id":"b1","software":"hawse/0.1",'
    b'"server_time_ms":1800000000000,"resumed":false,"last_rx":0,"next_tx":0}'
)
EARLIER_HELLO = (
    b'{"versions":[1],"max_frame":131072,"initial_window":65536,"max_streams":16384,"features":["resume"],'
    b'"cluster":"c1","instance":"relay-0","boot_id":"b2","nonce":"0123456789abcdef0123456789abcdef",'
    b'"software":"hawse/0.1","statement":"cluster=east api=up",'
    b'"resume":{"session":"s1","last_rx":1,"first_tx":2,"next_tx":3,"attempt":4}}'
)
WELCOME = Welcome(
    session_id="s1",
    resume_ttl_s=60,
    features=("resume",),
    boot_id="b1",
    software="hawse/0.1",
    server_time_ms=1_800_000_000_000,
)
HELLO = Hello(
    cluster="c1",
    instance="relay-0",
    boot_id="b2",
    nonce="0123456789abcdef" * 2,
    software="hawse/0.1",
    features=("resume",),
    statement="cluster=east api=up",
    resume=Resume("s1", 1, 2, 3, 4),
)


def message(frame_type: int, payload: bytes) -> bytes:
    return frames.header(frame_type, 0, 0, len(payload)) + payload


def test_an_earlier_hub_asks_for_one_tunnel() -> None:
    assert read_welcome(message(frames.WELCOME, EARLIER_WELCOME)) == WELCOME
    assert WELCOME.tunnels == 1


def test_an_earlier_relay_finds_in_a_welcome_all_that_it_knows() -> None:
    """It ignores the keys that it does not know."""
    welcome = attrs.evolve(WELCOME, replica="0a1b2c3d", tunnels=2)
    told = json.loads(greetings.welcome(welcome)[frames.HEADER_BYTES :])
    assert told.pop("tunnels") == 2
    assert told == {**json.loads(EARLIER_WELCOME), "replica": "0a1b2c3d"}


def test_a_relay_says_to_a_hub_what_an_earlier_one_says() -> None:
    assert greetings.hello(HELLO) == message(frames.HELLO, EARLIER_HELLO)
    assert read_hello(message(frames.HELLO, EARLIER_HELLO)) == HELLO


@attrs.define(eq=False)
class EarlierHub(Hub):
    """A hub of the earlier version, as far as a greeting goes."""

    async def serve(self, stream: trio.abc.Stream, head: bytes, others: list[Hub]) -> None:
        self.heads.append(head)
        self.connections.append(stream)
        async with accept_websocket(stream, request_head=head) as transport:
            await hear_hello(transport)
            await transport.send(message(frames.WELCOME, EARLIER_WELCOME))
            await trio.sleep(5)
            await self.cut()
            await trio.sleep_forever()


async def test_a_relay_keeps_one_tunnel_to_an_earlier_hub_and_names_no_hub_to_it(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "wrap_client", plain)
    async with trio.open_nursery() as nursery:
        hub, relay = EarlierHub(""), Relay()
        balancer = Balancer(nursery, [hub], lambda _: 0)
        nursery.start_soon(run_dialer, balancer.config(), relay)
        await trio.sleep(4.9)
        assert len(hub.heads) == len(relay.up) == 1
        await trio.sleep(2)
        # Its second WELCOME is as the first, of another session.
        assert b"hawse-session: s1" in hub.heads[1].lower()
        for head in hub.heads:
            assert header(head, AT_HEADER) == header(head, ELSEWHERE_HEADER) == ""
        nursery.cancel_scope.cancel()
