"""The admin listener's connections, before anybody has shown a token."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio
import trustme
from trio.testing import wait_all_tasks_blocked

from proxy.hub.admin.front import AdminFront
from proxy.hub.home.certificate import Certificate
from proxy.hub.home.config import HubConfig, TLSConfig
from proxy.hub.home.datadir import DataDir
from tests.fakes.admin import TOKEN, Bench
from tunnel.net.connect import client_context, wrap_client
from tunnel.net.tls import TLSStream


@attrs.frozen
class Port:
    number: int
    ca_pem: str

    async def silent(self) -> trio.SocketStream:
        stream = await trio.open_tcp_stream("127.0.0.1", self.number)
        await wait_all_tasks_blocked()
        return stream

    async def shaken(self, tcp: trio.SocketStream) -> TLSStream:
        return await wrap_client(tcp, client_context(self.ca_pem), server_hostname="localhost")


@asynccontextmanager
async def serving(bench: Bench, folder: Path) -> AsyncIterator[Port]:
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost")
    files = TLSConfig(folder / "hub.pem", folder / "hub.key")
    assert files.certificate is not None
    assert files.key is not None
    files.key.write_bytes(leaf.private_key_pem.bytes())
    files.certificate.write_bytes(leaf.cert_chain_pems[0].bytes())
    config = HubConfig(tls=files, data_dir=folder)
    front = AdminFront(bench.app, Certificate.open(config, DataDir(folder), time.time))
    bench.directory.on_change(partial(front.demote_revoked, bench.directory))
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(trio.serve_listeners, front.handle_client, [listener])
        yield Port(listener.socket.getsockname()[1], authority.cert_pem.bytes().decode())
        nursery.cancel_scope.cancel()
    assert front.connection_limit.open == 0


async def send(stream: TLSStream, request: str, token: str = "", fields: str = "") -> None:
    shown = f"Authorization: Bearer {token}\r\n" if token else ""
    await stream.send_all(f"{request} HTTP/1.1\r\nHost: localhost\r\n{shown}{fields}\r\n".encode())


async def ask(stream: TLSStream, token: str = "", fields: str = "") -> bytes:
    await send(stream, "GET /v1/teams", token, fields)
    return (await stream.receive_some())[9:12]


async def test_connections_that_say_nothing_keep_no_operator_out(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.hub.admin.front.CONNECTIONS_MAX", 2)
    async with serving(bench, tmp_path) as port:
        silent = [await port.silent() for _ in range(2)]
        operator = await port.shaken(await port.silent())
        assert await ask(operator, TOKEN) == b"200"
        # The oldest has made room, and no other: that one is answered.
        assert await silent[0].receive_some() == b""
        second = await port.shaken(silent[1])
        assert await ask(second) == b"401"
        for stream in (silent[0], operator, second):
            await trio.aclose_forcefully(stream)


async def test_an_operator_makes_room_for_nobody(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.hub.admin.front.CONNECTIONS_MAX", 2)
    async with serving(bench, tmp_path) as port:
        operator, stranger = [await port.shaken(await port.silent()) for _ in range(2)]
        assert await ask(operator, TOKEN) == b"200"
        # Whoever was answered without a token is a stranger still.
        assert await ask(stranger) == b"401"
        newcomer = await port.silent()
        with pytest.raises(trio.BrokenResourceError):
            await stranger.receive_some()
        assert await ask(operator, TOKEN) == b"200"
        for stream in (newcomer, operator, stranger):
            await trio.aclose_forcefully(stream)


@pytest.mark.parametrize(
    ("holds_a_body_back", "asks_with", "answer"),
    [
        pytest.param(False, None, b"", id="idle"),
        pytest.param(True, None, b"", id="body held back"),
        pytest.param(False, "", b"401", id="refused"),
        # Of which no application hears.
        pytest.param(False, "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n", b"400", id="upgrade"),
    ],
)
async def test_whose_token_was_revoked_makes_room_as_any_stranger(
    bench: Bench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    holds_a_body_back: bool,
    asks_with: str | None,
    answer: bytes,
) -> None:
    monkeypatch.setattr("proxy.hub.admin.front.CONNECTIONS_MAX", 2)
    token = (await bench.ok("POST", "/v1/tokens", {"name": "ci", "role": "admin"}))["token"]
    async with serving(bench, tmp_path) as port:
        kept = [await port.shaken(await port.silent()) for _ in range(2)]
        for stream in kept:
            assert await ask(stream, token) == b"200"
            if holds_a_body_back:
                await send(stream, "POST /v1/teams", token, "Content-Length: 9\r\n")
        await wait_all_tasks_blocked()
        await bench.ok("DELETE", "/v1/tokens/ci")
        for stream in kept:
            if asks_with is not None:
                assert await ask(stream, token, asks_with) == answer
        operator = await port.shaken(await port.silent())
        assert await ask(operator, TOKEN) == b"200"
        for stream in (operator, *kept):
            await trio.aclose_forcefully(stream)


async def test_whose_token_has_expired_makes_room_as_any_stranger(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.hub.admin.front.CONNECTIONS_MAX", 2)
    body = {"name": "ci", "role": "viewer", "expires_s": 60}
    token = (await bench.ok("POST", "/v1/tokens", body))["token"]
    async with serving(bench, tmp_path) as port:
        kept = [await port.shaken(await port.silent()) for _ in range(2)]
        for stream in kept:
            assert await ask(stream, token) == b"200"
        bench.clock.now += 60
        assert await ask(kept[0], token) == b"401"
        operator = await port.shaken(await port.silent())
        assert await ask(operator, TOKEN) == b"200"
        for stream in (operator, *kept):
            await trio.aclose_forcefully(stream)


async def test_one_token_does_not_keep_the_others_out(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a stolen token of the least role could keep out the admin who would remove it."""
    monkeypatch.setattr("proxy.hub.admin.front.CONNECTIONS_MAX", 3)
    monkeypatch.setattr("proxy.hub.admin.front.CONNECTIONS_PER_TOKEN_MAX", 2)
    token = (await bench.ok("POST", "/v1/tokens", {"name": "ci", "role": "viewer"}))["token"]
    async with serving(bench, tmp_path) as port:
        kept = [await port.shaken(await port.silent()) for _ in range(3)]
        for stream in kept:
            assert await ask(stream, token) == b"200"
        operator = await port.shaken(await port.silent())
        assert await ask(operator, TOKEN) == b"200"
        # Those within its share go on, also when it asks again.
        assert [await ask(stream, token) for stream in kept[:2]] == [b"200", b"200"]
        for stream in (operator, *kept):
            await trio.aclose_forcefully(stream)
