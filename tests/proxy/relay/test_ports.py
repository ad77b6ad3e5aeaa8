"""The ports of the relay's exchanges, in random histories, one after the other on one relay, by both modes.

What the loop calls when a socket is ready, or what a port has scheduled, is late at random.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest
import trio
import trio.testing

from proxy.exchange import client_port
from proxy.exchange.client_port import ClientPort
from proxy.exchange.next_pass import NextPass
from proxy.exchange.tunnel_port import TunnelPort
from proxy.exchange.upstream_port import UpstreamPort
from proxy.message.failure import Failure, OutboundBroken, Processed, StreamCode
from proxy.message.head import RequestHead, ResponseHead
from proxy.message.relay_marks import failure_of
from proxy.message.rewrite import direct_request_head
from tests.proxy.exchange.clients import HTTPClient, RawBytes
from tests.proxy.relay.apiserver import Connection, running
from tests.proxy.relay.ways import DirectWay, TunnelWay, Way, inner, open_way, token
from tests.tunnel.trio_stream import TrioStream
from tunnel import StreamReset
from tunnel.net.readiness import Readiness, Watch

UPGRADE = ((b"connection", b"Upgrade"), (b"upgrade", b"websocket"))
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
REVOKED = Failure(StreamCode.REVOKED, Processed.MAYBE, "revoked")
PIECES = (0, 1, 100, 5_000, 40_000, 200_000)
# In chunks of a byte each, this many bytes are too many for one pass of the relay's loop.
CRUMBS = range(1_000, 6_000)
METHODS = ("head", "write", "pause", "resume", "stop", "cut")
# A history by the hub's own connection has a TLS handshake or two.
LONG = {"tunnel": 5_000, "direct": 2_000}
CLIENTS: dict[str, type] = {"tunnel": TunnelPort, "direct": ClientPort}

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
    crumbs: bool
    """The body's smaller pieces come in chunks of a byte each."""

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


def draw(seed: int, mode: str, bugs: bool) -> History:
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
        port = dice.choice([CLIENTS[mode], UpstreamPort])
        bug = port, dice.choice(METHODS), dice.randrange(3)
    return History(
        seed,
        request,
        body,
        answer,
        pieces() if answer != "none" else [],
        dice.choice(["whole", "whole", "cut", "early"]),
        dice.choice(["stays", "stays", "leaves", "is revoked", "is held"]),
        bug,
        dice.random() < 0.3,
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

    status: int = 0
    body: bytes = b""
    clean: bool = False
    failure: StreamCode | None = None


class Hub(ABC):
    """The hub's end of one history."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.seen = Seen()

    @abstractmethod
    async def send(self) -> None:
        """Send the request's body, as far as the relay takes it."""

    @abstractmethod
    async def receive(self) -> None:
        """Receive the answer."""

    @abstractmethod
    async def leave(self) -> None:
        """Leave without waiting for the answer's end."""

    @abstractmethod
    async def close(self) -> None:
        """Release what the history has taken."""


class TunnelHub(Hub):
    """A stream of its own."""

    def __init__(self, history: History, way: TunnelWay) -> None:
        super().__init__(history)
        self._session = way.session
        self._context = way.session.add_context(1, token().in_tunnel.encode())
        head, eof = history.head.encode(), history.request == "none"
        self._stream: TrioStream = TrioStream(way.session.open_stream(head, context=self._context, eof=eof))

    async def send(self) -> None:
        try:
            for piece in self.history.body:
                await self._stream.send_all(piece)
            if self.history.request != "none":
                await self._stream.send_eof()
        except (StreamReset, trio.ClosedResourceError):
            pass

    async def receive(self) -> None:
        seen = self.seen
        try:
            seen.status = ResponseHead.decode(await self._stream.receive_head()).status
            while data := await self._stream.receive_some():
                seen.body += data
            seen.clean = True
        except StreamReset as reset:
            seen.failure = reset.code

    async def leave(self) -> None:
        self._stream.reset(StreamCode.CANCEL)

    async def close(self) -> None:
        self._stream.close_nowait()
        self._session.retire_context(self._context)


class DirectHub(Hub):
    """A connection, which the next history uses as well after a whole exchange."""

    kept: HTTPClient | None = None

    def __init__(self, history: History, connection: HTTPClient) -> None:
        super().__init__(history)
        self._connection = connection
        self._raw: RawBytes | None = None
        self._answered = trio.Event()

    @classmethod
    async def open(cls, history: History, way: DirectWay) -> DirectHub:
        connection, DirectHub.kept = DirectHub.kept, None
        if connection is None:
            connection = HTTPClient(await way.connect())
        # A body that is cut short is no request, so the head goes first.
        await connection.send_request(direct_request_head(history.head, b"relay", token()))
        return cls(history, connection)

    async def send(self) -> None:
        try:
            if self.history.request == "raw":
                await self._answered.wait()
                for piece in self.history.body:
                    if self._raw is not None:
                        await self._raw.send_all(piece)
            elif self.history.request != "none":
                await self._send_body()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def _send_body(self) -> None:
        history, http, stream = self.history, self._connection.http, self._connection.stream
        for piece in history.body:
            parts = [piece]
            if history.crumbs and history.request == "chunks" and len(piece) in CRUMBS:
                parts = [piece[at : at + 1] for at in range(len(piece))]
            await stream.send_all(b"".join([http.send_body(part) for part in parts if part]))
        if end := http.send_body(b"", end=True):
            await stream.send_all(end)

    async def receive(self) -> None:
        seen, connection = self.seen, self._connection
        try:
            head = await connection.receive_head()
            if (failure := failure_of(head)) is not None:
                seen.failure = failure.code
                return
            seen.status = head.status
            if seen.status == 101:
                self._raw = connection.upgraded()
                self._answered.set()
                while data := await self._raw.receive_some():
                    seen.body += data
                # It ends the other direction as well.
                await connection.aclose()
            else:
                while data := await connection.receive_body():
                    seen.body += data
            seen.clean = True
        except OutboundBroken as broken:
            seen.failure = broken.failure.code
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            seen.failure = StreamCode.UPSTREAM_RESET
        finally:
            self._answered.set()

    async def leave(self) -> None:
        await trio.aclose_forcefully(self._connection.stream)

    async def close(self) -> None:
        stays = self.history.client != "leaves"
        if stays and self.seen.clean and self._connection.end_exchange():
            DirectHub.kept = self._connection
        else:
            await self._connection.aclose()


async def run(way: Way, server: Server, history: History) -> Seen:
    server.histories[history.number] = history
    hub: Hub
    if isinstance(way, TunnelWay):
        hub = TunnelHub(history, way)
    else:
        assert isinstance(way, DirectWay)
        hub = await DirectHub.open(history, way)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hub.send)
            nursery.start_soon(hub.receive)
            if history.client != "stays":
                for _ in range(history.number % 4):
                    await trio.testing.wait_all_tasks_blocked()
            calls = list(way.underway)
            match history.client:
                case "leaves":
                    await hub.leave()
                case "is revoked":
                    for call in calls:
                        call.revoke(REVOKED)
                case "is held":
                    for call in calls:
                        call._exchange.hold()
                    await trio.testing.wait_all_tasks_blocked()
                    for call in calls:
                        call._exchange.release()
        await hub.close()
        await way.at_rest()
    return hub.seen


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
        assert seen.failure is not StreamCode.INTERNAL
        if history.client in ("stays", "is held") and history.request != "raw":
            assert history.ends != "whole"


def bugs_in_ports(monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[type, str, int] | None], None]:
    """Have the ports raise where the bug that is set says so, until it has shown."""
    bug: tuple[type, str, int] | None = None
    calls = 0

    def set_bug(new: tuple[type, str, int] | None) -> None:
        nonlocal bug, calls
        bug, calls = new, 0

    for port in (TunnelPort, ClientPort, UpstreamPort):
        for method in METHODS:
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


def run_late(monkeypatch: pytest.MonkeyPatch, dice: random.Random) -> None:
    """Have the loop make its calls some passes later, at random."""
    call_ready, next_pass = Readiness._call, NextPass.soon

    def call(due: list[Watch]) -> list[Watch]:
        late = [watch for watch in due if dice.random() < 0.2]
        return call_ready([watch for watch in due if watch not in late]) + late

    def soon(passes: NextPass, peer: Hashable, call: Callable[[], None]) -> None:
        next_pass(passes, peer, partial(soon, passes, peer, call) if dice.random() < 0.3 else call)

    monkeypatch.setattr(Readiness, "_call", staticmethod(call))
    monkeypatch.setattr(NextPass, "soon", soon)


async def histories(
    mode: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    seeds: range,
    *,
    bugs: bool,
) -> None:
    server = Server()
    set_bug = bugs_in_ports(monkeypatch)
    run_late(monkeypatch, random.Random(seeds.start))
    # The time for which a client that has ended may still read its answer.
    monkeypatch.setattr(client_port, "QUIET_S", 0.01)
    monkeypatch.setattr(DirectHub, "kept", None)
    async with running(server, folder) as api_server, open_way(mode, api_server.access, folder) as way:
        for seed in seeds:
            history = draw(seed, mode, bugs)
            try:
                set_bug(history.bug)
                seen = await run(way, server, history)
                set_bug(None)
                check(history, seen, server.bodies.get(seed, b""))
                assert bugs or not caplog.records
                # Other exchanges go on.
                assert (await way.ask(inner())).body == b"ok"
            except BaseException as error:
                error.add_note(f"history {seed}: {attrs.evolve(history, body=[], pieces=[])}")
                raise
        if DirectHub.kept is not None:
            await DirectHub.kept.aclose()


both_modes = pytest.mark.parametrize("mode", CLIENTS)


@both_modes
@pytest.mark.parametrize("bugs", [False, True])
async def test_no_history_of_an_exchange_loses_doubles_or_ends_what_it_should_not(
    mode: str,
    bugs: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await histories(mode, tmp_path, monkeypatch, caplog, range(150), bugs=bugs)


@pytest.mark.long
@both_modes
@pytest.mark.parametrize("bugs", [False, True])
async def test_no_history_of_thousands_does_either(
    mode: str,
    bugs: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await histories(mode, tmp_path, monkeypatch, caplog, range(1_000, 1_000 + LONG[mode]), bugs=bugs)
