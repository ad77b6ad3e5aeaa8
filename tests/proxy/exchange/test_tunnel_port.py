"""The port of a tunnel's stream, where the exchange and the loop have it deliver at the same time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio.testing

from proxy.exchange import tunnel_port
from proxy.exchange.engine import Exchange
from proxy.exchange.next_pass import NextPass
from proxy.exchange.tunnel_port import TunnelPort
from proxy.message.failure import GONE, Failure
from tests.proxy.exchange.fake_ports import FakeUpstream
from tests.tunnel.pairs import open_pair


async def test_an_end_is_delivered_once_though_another_call_is_scheduled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tunnel_port, "SHARE_BYTES", 4)
    async with open_pair() as pair:
        opened, accepted = await pair.streams()
        await opened.send_all(b"12345678")
        await trio.testing.wait_all_tasks_blocked()
        scheduled: list[Callable[[], None]] = []
        passes = NextPass()
        monkeypatch.setattr(passes, "soon", lambda _, call: scheduled.append(call))
        port = TunnelPort(accepted.raw, passes, lambda head: b"", None)
        done: list[Failure | None] = []
        exchange = Exchange(port, FakeUpstream(), done.append)
        exchange.start()
        # The share of this pass is used up, so the rest is scheduled.
        [deliver] = scheduled
        await opened.send_eof()
        await trio.testing.wait_all_tasks_blocked()
        # Before that runs, the exchange resumes the port, which finds the end.
        port.pause()
        port.resume()
        assert exchange.request.half.at_rest
        deliver()
        assert done == []
        exchange.end(GONE)
        await opened.aclose()
