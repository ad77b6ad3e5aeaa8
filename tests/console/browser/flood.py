"""Events at a rate: reads by an agent, each of which is one event of the trail.

Refusals would be cheaper, but a flood of them is merged into few events.
"""

from __future__ import annotations

import ssl
import time
from contextlib import ExitStack

import attrs

from tests.system.raw import RawClient

# As many agents' clients have: pipelined requests cost a hub several times as much.
CONNECTIONS = 20
# An access token lives for 60 s, which a busy machine may take for what an idle one does in 10 s.
LONGEST_S = 40.0
STATUS_LINE = b"HTTP/1.1 404 "
# The end of a Status in JSON.
END = b"}\n"


@attrs.frozen
class Flood:
    """How many calls were answered, and in which time."""

    calls: int
    took_s: float


def flood(client: RawClient, path: str, *headers: str, per_s: int, seconds: float) -> Flood:
    """Read an object that does not exist, at a rate, or as fast as it is answered, for LONGEST_S at most."""
    request, calls = client.head(path, *headers, connection="keep-alive"), 0
    with ExitStack() as stack:
        connections = [stack.enter_context(client.connect()) for _ in range(CONNECTIONS)]
        began = time.monotonic()
        while calls < per_s * seconds and time.monotonic() < began + LONGEST_S:
            time.sleep(max(0.0, began + calls / per_s - time.monotonic()))
            for connection in connections:
                connection.sendall(request)
            for connection in connections:
                _read_answer(connection)
            calls += CONNECTIONS
        return Flood(calls, time.monotonic() - began)


def _read_answer(connection: ssl.SSLSocket) -> None:
    received = b""
    while not received.endswith(END):
        chunk = connection.recv(65536)
        assert chunk, f"the hub closed: {received!r}"
        received += chunk
    assert received.startswith(STATUS_LINE), received
