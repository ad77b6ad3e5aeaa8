"""A relay by hand: it speaks the tunnel by a WebSocket library of others, as well or badly as it is asked.

What the hub holds up against a relay that lies, stalls or floods shows only on one that does. The frames are
written and read here from the protocol's text, and not by the code that is tested.
"""

from __future__ import annotations

import json
import queue
import secrets
import ssl
import struct
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import attrs
import websockets.exceptions
import websockets.sync.client
from websockets.typing import Subprotocol

from auth.keys import SigningKey
from auth.tokens import issue_hello

DATA, OPEN, HEAD, WINDOW, RESET, CONTEXT = range(6)
HELLO, WELCOME, ACK, PING, GOAWAY = range(0x10, 0x15)
FIN: Final = 0x01
IS_ANSWER: Final = 0x02
SEQUENCED_BELOW: Final = 0x10
INITIAL_CREDIT: Final = 64 * 1024
DEADLINE_S: Final = 20.0
_HEADER: Final = struct.Struct(">BBHII")

OK_HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n"


@attrs.frozen
class Frame:
    """One frame as it came."""

    kind: int
    flags: int
    stream: int
    payload: bytes
    at: float = 0.0


def frame(kind: int, stream: int, payload: bytes = b"", flags: int = 0) -> bytes:
    return _HEADER.pack(kind, flags, 0, stream, len(payload)) + payload


def head(stream: int, text: bytes = OK_HEAD, flags: int = 0) -> bytes:
    """The answer's head."""
    return frame(HEAD, stream, struct.pack(">I", len(text)) + text, flags)


def parse(message: bytes, at: float) -> Iterator[Frame]:
    rest = 0
    while rest < len(message):
        kind, flags, _, stream, size = _HEADER.unpack_from(message, rest)
        rest += _HEADER.size
        yield Frame(kind, flags, stream, message[rest : rest + size], at)
        rest += size


@attrs.define(eq=False)
class Enrolment:
    """The files that `hawse admin cluster add` wrote for a relay."""

    folder: Path
    key: SigningKey
    cluster_id: str
    hub_url: str

    @classmethod
    def read(cls, folder: Path) -> Enrolment:
        said = tomllib.loads((folder / "relay.toml").read_text())
        key = SigningKey.from_pem((folder / said["private_key"]).read_bytes())
        return cls(folder, key, said["cluster_id"], said["hub"]["url"])

    def token(self, instance: str, *, clock_s: float = 0.0) -> str:
        return issue_hello(
            self.key,
            cluster_id=self.cluster_id,
            hub_url=self.hub_url,
            instance=instance,
            jti=secrets.token_hex(16),
            now=time.time() + clock_s,
        )


@attrs.define(eq=False)
class WireRelay:
    """One session. What comes is read by a thread, which answers what a relay must, unless told not to."""

    websocket: websockets.sync.client.ClientConnection
    answers_pings: bool = True
    grants: bool = False
    """Return credit as soon as bytes come."""
    opened: queue.Queue[Frame] = attrs.Factory(queue.Queue)
    """The OPENs, in their order."""
    frames: list[Frame] = attrs.Factory(list)
    """All that came, but for DATA's payloads."""
    welcome: dict[str, object] = attrs.Factory(dict)
    received: dict[int, int] = attrs.Factory(dict)
    """Bytes of DATA by stream."""
    closed_with: int | None = None
    _count: int = 0
    _came: threading.Condition = attrs.Factory(threading.Condition)

    def send(self, *parts: bytes) -> None:
        """Send frames as one message; whether the hub is still there is told by what comes."""
        with suppress(websockets.exceptions.ConnectionClosed):
            self.websocket.send(b"".join(parts))

    def read(self) -> None:
        """The thread."""
        try:
            for message in self.websocket:
                assert isinstance(message, bytes)
                now = time.monotonic()
                for came in parse(message, now):
                    self._take(came)
                with self._came:
                    self._came.notify_all()
        except websockets.exceptions.ConnectionClosed:
            pass
        self.closed_with = self.websocket.close_code
        with self._came:
            self._came.notify_all()

    def _take(self, came: Frame) -> None:
        if came.kind < SEQUENCED_BELOW:
            self._count += 1
        match came.kind:
            case 0x11:
                self.welcome = json.loads(came.payload)
            case 0x13 if not came.flags & IS_ANSWER and self.answers_pings:
                opaque, _, clock = struct.unpack(">QQQ", came.payload)
                self.send(frame(PING, 0, struct.pack(">QQQ", opaque, self._count, clock), IS_ANSWER))
            case 0x01:
                self.opened.put(came)
            case 0x00:
                self.received[came.stream] = self.received.get(came.stream, 0) + len(came.payload)
                if self.grants:
                    self.send(frame(WINDOW, came.stream, struct.pack(">I", len(came.payload))))
        if came.kind == DATA:
            came = attrs.evolve(came, payload=b"")
        self.frames.append(came)
        if came.kind < SEQUENCED_BELOW:
            self.send(frame(ACK, 0, struct.pack(">Q", self._count)))

    def wait(self, condition: Callable[[], object], what: str, within_s: float = DEADLINE_S) -> None:
        """Wait for something that comes, or for the end."""
        with self._came:
            assert self._came.wait_for(condition, within_s), f"not within {within_s:.0f} s: {what}"

    def next_open(self) -> Frame:
        """The next stream that the hub opens."""
        return self.opened.get(timeout=DEADLINE_S)

    def credit(self, stream: int) -> int:
        """How many bytes of DATA the hub has allowed in all."""
        deltas = (each.payload for each in self.frames if each.kind == WINDOW and each.stream == stream)
        return INITIAL_CREDIT + sum(int.from_bytes(payload, "big") for payload in deltas)

    def resets(self, stream: int) -> list[tuple[int, int]]:
        """Code and processed of the RESETs of a stream."""
        return [
            struct.unpack(">HB", each.payload[:3])
            for each in self.frames
            if each.kind == RESET and each.stream == stream
        ]

    def ping(self, opaque: int, within_s: float = DEADLINE_S) -> float:
        """How long the hub takes to answer a PING."""
        began = time.monotonic()
        self.send(frame(PING, 0, struct.pack(">QQQ", opaque, self._count, 0)))

        def answered() -> list[float]:
            return [
                each.at
                for each in self.frames
                if each.kind == PING
                and each.flags & IS_ANSWER
                and struct.unpack(">Q", each.payload[:8]) == (opaque,)
            ]

        self.wait(answered, "the answer to a PING", within_s)
        return answered()[0] - began


@contextmanager
def wire_relay(
    enrolment: Enrolment,
    port: int,
    instance: str = "by-hand",
    *,
    answers_pings: bool = True,
    hello: dict[str, object] | None = None,
) -> Iterator[WireRelay]:
    """Dial the hub at a loopback port and greet it; the session is cut when the block is left."""
    context = ssl.create_default_context(cafile=str(enrolment.folder / "hub-ca.pem"))
    with websockets.sync.client.connect(
        f"wss://127.0.0.1:{port}/v1/tunnel",
        ssl=context,
        subprotocols=[Subprotocol("hawse.v1")],
        additional_headers={"Authorization": f"Bearer {enrolment.token(instance)}"},
        compression=None,
        max_size=2**20,
        ping_interval=None,
        proxy=None,
        close_timeout=1,
    ) as websocket:
        relay = WireRelay(websocket, answers_pings=answers_pings)
        thread = threading.Thread(target=relay.read, daemon=True)
        said = {
            "cluster": enrolment.cluster_id,
            "instance": instance,
            "boot_id": secrets.token_hex(8),
            **(hello or {}),
        }
        relay.send(frame(HELLO, 0, json.dumps(said).encode()))
        thread.start()
        try:
            relay.wait(lambda: relay.welcome or relay.closed_with is not None, "a WELCOME")
            yield relay
        finally:
            websocket.close()
            thread.join(DEADLINE_S)
