"""The ports of the relay's exchanges, in random histories, one after the other on one relay."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest
import trio
import trio.testing

from proxy.exchange.tunnel_port import TunnelPort
from proxy.exchange.upstream_port import UpstreamPort
from proxy.message.failure import Failure, Processed, StreamCode
from proxy.message.head import RequestHead
from proxy.relay.tunnel_call import TunnelCall
from tests.proxy.relay.apiserver import Connection
from tests.proxy.relay.rig import Rig, rig
from tests.proxy.relay.ways import inner, token
from tunnel import Stream, StreamReset
from tunnel.stream import StreamReset as Reset

UPGRADE = ((b"connection", b"Upgrade"), (b"upgrade", b"websocket"))
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
REVOKED = Failure(StreamCode.REVOKED, Processed.MAYBE, "revoked")
PIECES = (0, 1, 100, 5_000, 40_000, 200_000)

Framing = Literal["none", "length", "chunks", "raw"]
Ending = Literal["whole", "cut", "early"]


class Bug(Exception):
    """What a port of ours raises."""


@attrs.frozen
class History:
    """What both sides of one request do."""

    number: int
    request: Framing
    body: Sequence[bytes]
    answer: Framing
    pieces: Sequence[bytes]
    ends: Ending
    """How the answer does: whole, cut off, or before the request's body was read."""
    client: Literal["stays", "leaves", "is revoked", "is held"]
    bug: tuple[type, str, int] | None

    @property
    def head(self) -> RequestHead:
        length = sum(map(len, self.body))
        framing = {
            "none": (),
            "length": ((b"content-length", b"%d" % length),),
            "chunks": ((b"transfer-encoding", b"chunked"),),
            "raw": UPGRADE,
        }[self.request]
        method = b"GET" if self.request in ("none", "raw") else b"PUT"
        target = b"/api/v1/namespaces/a/pods/p%s?history=%d" % (
            b"/exec" if self.request == "raw" else b"",
            self.number,
        )
        return inner(target, *framing, method=method)


def draw(seed: int, bugs: bool) -> History:
    dice = random.Random(seed)

    def pieces() -> list[bytes]:
        return [dice.randbytes(dice.choice(PIECES)) for _ in range(dice.randrange(4))]

    request: Framing = dice.choice(["none", "none", "length", "chunks", "raw"])
    body = pieces() if request != "none" else []
    answer: Framing = "raw" if request == "raw" else dice.choice(["none", "length", "chunks"])
    if request == "length" and not any(body):
        request, body = "none", []
    bug = None
    if bugs:
        port = dice.choice([TunnelPort, UpstreamPort])
        bug = port, dice.choice(["head", "write", "pause", "resume", "stop", "cut"]), dice.randrange(3)
    return History(
        seed,
        request,
        body,
        answer,
        pieces() if answer != "none" else [],
        dice.choice(["whole", "whole", "cut", "early"]),
        dice.choice(["stays", "stays", "leaves", "is revoked", "is held"]),
        bug,
    )


@attrs.define
class Server:
    """Does what the history of a request says, and keeps what it has received of the body."""

    histories: dict[int, History] = attrs.Factory(dict)
    bodies: dict[int, bytes] = attrs.Factory(dict)

    async def __call__(self, connection: Connection) -> None:
        while head := await connection.request():
            if b"?history=" not in head:
                await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                continue
            history = self.histories[int(head.partition(b"?history=")[2].partition(b" ")[0])]
            if not await self._answer(connection, history):
                return

    async def _answer(self, connection: Connection, history: History) -> bool:
        length = sum(map(len, history.body))
        if history.request == "raw":
            await connection.send(SWITCHED)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, connection, history, length)
                await self._send(connection, history)
                nursery.cancel_scope.cancel()
            if history.ends != "cut":
                # It says close_notify.
                await connection.stream.aclose()
            return False
        if history.ends != "early" and not await self._read(connection, history, length):
            return False
        if history.answer == "length":
            size = sum(map(len, history.pieces))
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        elif history.answer == "chunks":
            await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        else:
            await connection.send(b"HTTP/1.1 204 No Content\r\n\r\n")
        return await self._send(connection, history)

    async def _send(self, connection: Connection, history: History) -> bool:
        pieces = history.pieces
        if history.ends == "cut":
            pieces = pieces[:-1]
        for piece in pieces:
            if piece and history.answer == "chunks":
                piece = b"%x\r\n%s\r\n" % (len(piece), piece)
            try:
                await connection.send(piece)
            except trio.BrokenResourceError:
                return False
            for _ in range(len(piece) % 3):
                await trio.testing.wait_all_tasks_blocked()
        if history.ends == "cut":
            return False
        if history.answer == "chunks":
            await connection.send(b"0\r\n\r\n")
        return history.ends == "whole"

    async def _read(self, connection: Connection, history: History, length: int) -> bool:
        chunked = history.request == "chunks"
        start = connection._parsed
        while True:
            received = bytes(connection.received[start:])
            body, end = _unchunked(received) if chunked else (received[:length], len(received) >= length)
            self.bodies[history.number] = body
            if end:
                connection._parsed = start + (_last(received) + 5 if chunked else length)
                return True
            if not await connection.more():
                return False


def _unchunked(data: bytes) -> tuple[bytes, bool]:
    body, at = b"", 0
    while (line := data.find(b"\r\n", at)) > 0:
        size = int(data[at:line], 16)
        if not size:
            return body, data[line : line + 4] == b"\r\n\r\n"
        body += data[line + 2 : line + 2 + size]
        at = line + 2 + size + 2
    return body, False


def _last(data: bytes) -> int:
    """Where the last chunk begins."""
    at = 0
    while size := int(data[at : data.index(b"\r\n", at)], 16):
        at = data.index(b"\r\n", at) + 2 + size + 2
    return at


@attrs.define
class Seen:
    """What the hub sees of an answer."""

    head: bytes = b""
    body: bytes = b""
    clean: bool = False
    failure: Reset | None = None


async def receive(stream: Stream, seen: Seen) -> None:
    try:
        seen.head = await stream.receive_head()
        while data := await stream.receive_some():
            seen.body += data
        seen.clean = True
    except StreamReset as reset:
        seen.failure = reset


async def send(stream: Stream, history: History) -> None:
    try:
        for piece in history.body:
            await stream.send_all(piece)
        if history.request != "none":
            await stream.send_eof()
    except (StreamReset, trio.ClosedResourceError):
        pass


async def run(relay: Rig, server: Server, history: History) -> Seen:
    server.histories[history.number] = history
    session = relay.way.session
    context = session.add_context(1, token().in_tunnel.encode())
    stream = session.open_stream(history.head.encode(), context=context, eof=history.request == "none")
    seen = Seen()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, stream, history)
            nursery.start_soon(receive, stream, seen)
            if history.client != "stays":
                for _ in range(history.number % 4):
                    await trio.testing.wait_all_tasks_blocked()
            calls = [call for call in relay.upstream.underway if isinstance(call, TunnelCall)]
            match history.client:
                case "leaves":
                    stream.reset(StreamCode.CANCEL)
                case "is revoked":
                    for call in calls:
                        call.revoke(REVOKED)
                case "is held":
                    for call in calls:
                        call._exchange.hold()
                    await trio.testing.wait_all_tasks_blocked()
                    for call in calls:
                        call._exchange.release()
        stream.close_nowait()
        session.retire_context(context)
        await relay.at_rest()
    return seen


def check(history: History, seen: Seen, body: bytes) -> None:
    sent, answered = b"".join(history.body), b"".join(history.pieces)
    assert sent.startswith(body)
    assert answered.startswith(seen.body)
    if seen.clean:
        assert seen.body == answered
        if history.ends == "cut":
            assert history.answer == "none" or (history.answer == "length" and not any(history.pieces[-1:]))
        if history.ends == "whole" and history.answer != "raw":
            assert body == sent
        return
    assert seen.failure is not None
    if history.bug is None:
        assert seen.failure.code is not StreamCode.INTERNAL
        if history.client in ("stays", "is held") and history.request != "raw":
            assert history.ends != "whole"


def bugs_in_ports(monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[type, str, int] | None], None]:
    """Have the ports raise where the bug that is set says so, until it has shown."""
    bug: tuple[type, str, int] | None = None
    calls = 0

    def set_bug(new: tuple[type, str, int] | None) -> None:
        nonlocal bug, calls
        bug, calls = new, 0

    for port in (TunnelPort, UpstreamPort):
        for method in ("head", "write", "pause", "resume", "stop", "cut"):
            original = getattr(port, method)

            def raising(self: object, *arguments: Any, _of: Any = (port, method, original)) -> Any:
                nonlocal calls
                if bug is not None and bug[:2] == _of[:2]:
                    calls += 1
                    if calls == bug[2] + 1:
                        raise Bug(_of[1])
                return _of[2](self, *arguments)

            monkeypatch.setattr(port, method, raising)
    return set_bug


async def histories(folder: Path, monkeypatch: pytest.MonkeyPatch, seeds: range, *, bugs: bool) -> None:
    server = Server()
    set_bug = bugs_in_ports(monkeypatch)
    async with rig(server, folder) as relay:
        await relay.warm()
        for seed in seeds:
            history = draw(seed, bugs)
            try:
                set_bug(history.bug)
                seen = await run(relay, server, history)
                set_bug(None)
                check(history, seen, server.bodies.get(seed, b""))
                # The session and its other streams go on.
                assert (await relay.ask()).body == b"ok"
            except BaseException as error:
                error.add_note(f"history {seed}: {attrs.evolve(history, body=[], pieces=[])}")
                raise


@pytest.mark.parametrize("bugs", [False, True])
async def test_no_history_of_an_exchange_loses_doubles_or_ends_what_it_should_not(
    bugs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await histories(tmp_path, monkeypatch, range(150), bugs=bugs)


@pytest.mark.long
@pytest.mark.parametrize("bugs", [False, True])
async def test_no_history_of_thousands_does_either(
    bugs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await histories(tmp_path, monkeypatch, range(1_000, 6_000), bugs=bugs)
