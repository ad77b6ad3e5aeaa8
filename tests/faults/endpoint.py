"""An attacker who holds the hub's TLS endpoint, by its certificate or as the proxy that ends TLS, and no key.

    relay ──▶ Endpoint ──▶ hub        it passes everything on, reads all of it, and may change the clocks
    relay ──▶ Endpoint                it is the hub: it answers HELLO, and replays what it has read

The frames are written and read from the protocol's text, as in `wire`.
"""

from __future__ import annotations

import json
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import attrs
import websockets.exceptions
import websockets.sync.client
import websockets.sync.server
from websockets.typing import Subprotocol

from tests.faults.wire import (
    CONTEXT,
    DEADLINE_S,
    FIN,
    GOAWAY,
    HEAD,
    HELLO,
    OPEN,
    PING,
    RESET,
    WELCOME,
    Frame,
    frame,
    parse,
)

SUBPROTOCOL: Final = Subprotocol("hawse.v1")
MESSAGE_BYTES_MAX: Final = 2**20
# The endpoint is the hub, and asks for this.
REQUEST: Final = b"GET /api/v1/pods HTTP/1.1\r\naudit-id: eid-1\r\nx-forwarded-for: 203.0.113.7\r\n\r\n"
FIRST_STREAM: Final = 2
# Of what it puts between the hub's own frames.
INJECTED: Final = 1000

# What of the hub's frames goes on to the relay; None: nothing.
Rewrite = Callable[[Frame], Frame | None]


@attrs.frozen
class Said:
    """A CONTEXT of the hub's: group 0 is the hub's own word, others are agents' tokens."""

    group: int
    payload: bytes


@attrs.frozen
class Outcome:
    """What the relay has made of a request."""

    head: bytes = b""
    """Of its answer; b"" where the request was refused."""
    refusal: str = ""
    """The reason of its RESET, or of the session's end."""


@attrs.define(eq=False)
class Endpoint:
    """Takes relays' connections."""

    port: int
    hellos: list[dict[str, object]] = attrs.Factory(list)
    """Of relays, in their order."""
    said: list[Said] = attrs.Factory(list)
    """By the hub."""
    outcomes: list[Outcome] = attrs.Factory(list)
    """Of the requests that it made itself."""
    injected: bytes = b""
    """Frames that go to the relay behind the next message of the hub's."""
    serve: Callable[[websockets.sync.server.ServerConnection], None] = attrs.field(default=lambda _: None)
    """What becomes of a connection."""
    _lock: threading.Lock = attrs.Factory(threading.Lock)

    @property
    def tokens(self) -> list[Said]:
        return [said for said in self.said if said.group]

    @property
    def statements(self) -> list[Said]:
        return [said for said in self.said if not said.group]

    def outcome(self) -> Outcome | None:
        """Of the last request, None before there is one."""
        return self.outcomes[-1] if self.outcomes else None

    # --- in the middle ---

    def inject(self, token: bytes) -> None:
        """Ask for something under a token of this choice, in the session that the hub and the relay have."""
        ask = struct.pack(">II", INJECTED, len(REQUEST)) + REQUEST
        told = frame(CONTEXT, 0, struct.pack(">II", INJECTED, INJECTED) + token)
        self.injected = told + frame(OPEN, INJECTED, ask, FIN)

    def pass_on(self, hub_port: int, hub_ca: Path, rewrite: Rewrite = lambda came: came) -> None:
        """Bring relays to the hub, and read what is said."""
        context = ssl.create_default_context(cafile=str(hub_ca))

        def serve(relay: websockets.sync.server.ServerConnection) -> None:
            assert relay.request is not None
            names = ("Authorization", "Hawse-Session")
            headers = {name: relay.request.headers[name] for name in names if name in relay.request.headers}
            with (
                suppress(websockets.exceptions.WebSocketException, OSError),
                websockets.sync.client.connect(
                    f"wss://127.0.0.1:{hub_port}/v1/tunnel",
                    ssl=context,
                    subprotocols=[SUBPROTOCOL],
                    additional_headers=headers,
                    compression=None,
                    max_size=MESSAGE_BYTES_MAX,
                    ping_interval=None,
                    proxy=None,
                    close_timeout=1,
                ) as hub,
            ):
                down = threading.Thread(target=self._down, args=(hub, relay, rewrite), daemon=True)
                down.start()
                for message in relay:
                    assert isinstance(message, bytes)
                    self._note_hello(message)
                    hub.send(self._without_injected(message))

        self.serve = serve

    def _down(
        self,
        hub: websockets.sync.client.ClientConnection,
        relay: websockets.sync.server.ServerConnection,
        rewrite: Rewrite,
    ) -> None:
        with suppress(websockets.exceptions.ConnectionClosed):
            for message in hub:
                assert isinstance(message, bytes)
                parts = b""
                for came in parse(message, 0.0):
                    if came.kind == CONTEXT and len(came.payload) > 8:
                        self.said.append(Said(struct.unpack_from(">I", came.payload, 4)[0], came.payload[8:]))
                    sent = rewrite(came)
                    if sent is not None:
                        parts += frame(sent.kind, sent.stream, sent.payload, sent.flags)
                injected, self.injected = self.injected, b""
                if parts or injected:
                    relay.send(parts + injected)
        relay.close()

    def _without_injected(self, message: bytes) -> bytes:
        parts = b""
        for came in parse(message, 0.0):
            if came.stream == INJECTED:
                self._note_outcome(came)
            else:
                parts += frame(came.kind, came.stream, came.payload, came.flags)
        return parts

    def _note_outcome(self, came: Frame) -> None:
        if came.kind == HEAD:
            self.outcomes.append(Outcome(head=came.payload[4:]))
        elif came.kind == RESET:
            self.outcomes.append(Outcome(refusal=came.payload[3:].decode()))

    def _note_hello(self, message: bytes) -> None:
        first = next(parse(message, 0.0))
        if first.kind == HELLO:
            self.hellos.append(json.loads(first.payload))

    # --- in the hub's place ---

    def be_the_hub(
        self,
        contexts: Callable[[Mapping[str, object]], list[Said]],
        *,
        clock_s: Callable[[], float],
    ) -> None:
        """Say these contexts to a relay with this HELLO, and ask for something under the last of them.

        `clock_s` is what WELCOME and PING tell.
        """

        def serve(relay: websockets.sync.server.ServerConnection) -> None:
            message = relay.recv(DEADLINE_S)
            assert isinstance(message, bytes)
            self._note_hello(message)
            clock_ms = round(clock_s() * 1000)
            welcome = {"session": "taken", "server_time_ms": clock_ms, "boot_id": "taken"}
            parts = frame(WELCOME, 0, json.dumps(welcome).encode())
            said = contexts(self.hellos[-1])
            for index, each in enumerate(said, 1):
                parts += frame(CONTEXT, 0, struct.pack(">II", index, each.group) + each.payload)
            ask = struct.pack(">II", len(said), len(REQUEST)) + REQUEST
            relay.send(parts + frame(OPEN, FIRST_STREAM, ask, FIN))
            self.outcomes.append(_outcome(relay, clock_ms))

        self.serve = serve


def _outcome(relay: websockets.sync.server.ServerConnection, clock_ms: int) -> Outcome:
    try:
        while True:
            message = relay.recv(DEADLINE_S)
            assert isinstance(message, bytes)
            for came in parse(message, 0.0):
                match came.kind:
                    case 0x13 if not came.flags:
                        opaque, _, _ = struct.unpack(">QQQ", came.payload)
                        relay.send(frame(PING, 0, struct.pack(">QQQ", opaque, 0, clock_ms), 0x02))
                    case 0x02 if came.stream == FIRST_STREAM:
                        return Outcome(head=came.payload[4:])
                    case 0x04 if came.stream == FIRST_STREAM:
                        return Outcome(refusal=came.payload[3:].decode())
                    case 0x14:
                        return Outcome(refusal=came.payload[14:].decode())
    except websockets.exceptions.ConnectionClosed as closed:
        return Outcome(refusal=str(closed))


assert (HEAD, RESET, GOAWAY) == (0x02, 0x04, 0x14)


@contextmanager
def taken_endpoint(certificate: Path) -> Iterator[Endpoint]:
    """Listen with the hub's certificate (a PEM file of chain and key) on a loopback port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    endpoint = Endpoint(0)
    with websockets.sync.server.serve(
        lambda connection: endpoint.serve(connection),
        "127.0.0.1",
        0,
        ssl=context,
        subprotocols=[SUBPROTOCOL],
        compression=None,
        max_size=MESSAGE_BYTES_MAX,
        ping_interval=None,
        close_timeout=1,
    ) as server:
        endpoint.port = server.socket.getsockname()[1]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield endpoint
        finally:
            server.shutdown()
            thread.join(DEADLINE_S)
