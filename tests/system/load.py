"""Many calls at once, through clients that share no code with the project: http.client and websockets."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlencode

import websockets.sync.client as websocket_client

from tests.system.raw import DEADLINE_S, RawClient
from tests.system.world import NAMESPACE, POD

T = TypeVar("T")


def parallel(count: int, call: Callable[[int], T]) -> list[T]:
    """Run `call(0)` … `call(count - 1)` all at once, a thread each, and return their results."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(call, range(count)))


def get(client: RawClient, token: str, path: str) -> tuple[int, bytes]:
    """One GET on a connection of its own."""
    connection = http.client.HTTPSConnection(
        "127.0.0.1", client.port, timeout=DEADLINE_S, context=client.context()
    )
    try:
        connection.request(
            "GET", f"/clusters/{client.way}{path}", headers={"Authorization": f"Bearer {token}"}
        )
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@contextmanager
def streaming(client: RawClient, token: str, path: str) -> Iterator[http.client.HTTPResponse]:
    """A GET whose answer is read as it comes."""
    connection = http.client.HTTPSConnection(
        "127.0.0.1", client.port, timeout=DEADLINE_S, context=client.context()
    )
    try:
        connection.request(
            "GET", f"/clusters/{client.way}{path}", headers={"Authorization": f"Bearer {token}"}
        )
        yield connection.getresponse()
    finally:
        connection.close()


def execute(client: RawClient, token: str, *command: str) -> tuple[bytes, dict[str, object]]:
    """Run a command in the pod over a v5 WebSocket; its stdout and its Status."""
    query = urlencode([*(("command", part) for part in command), ("stdout", "1"), ("stderr", "1")])
    path = f"/clusters/{client.way}/api/v1/namespaces/{NAMESPACE}/pods/{POD}/exec?{query}"
    out = b""
    status: dict[str, object] = {}
    with websocket_client.connect(
        f"wss://127.0.0.1:{client.port}{path}",
        ssl=client.context(),
        subprotocols=["v5.channel.k8s.io"],  # type: ignore[list-item]
        additional_headers={"Authorization": f"Bearer {token}"},
        open_timeout=DEADLINE_S,
        proxy=None,
    ) as connection:
        for message in connection:
            assert isinstance(message, bytes)
            if message[:1] == b"\x01":
                out += message[1:]
            elif message[:1] == b"\x03":
                status = json.loads(message[1:])
    return out, status


def resident_kib(pid: int) -> int:
    """The resident memory of a process now."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError(f"no VmRSS of process {pid}")


def timed(call: Callable[[], object]) -> float:
    """How many seconds a call took."""
    began = time.monotonic()
    call()
    return time.monotonic() - began
