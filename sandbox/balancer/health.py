"""Asks each hub whether it wants new connections."""

from __future__ import annotations

import math
import ssl
from pathlib import Path

import trio

from sandbox.balancer.backends import Backend, Backends

HOST = "127.0.0.1"
# A hub that takes longer is out of service. A stopped process still accepts, and answers nothing.
CHECK_WITHIN_S = 2.0
# The status line has 15 bytes or more; the rest of the answer is not read.
STATUS_BYTES = 12
REQUEST = b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"


async def check_forever(backends: Backends, ca: Path, every_s: float) -> None:
    """Keep each backend's `ready` current until cancelled."""
    context = ssl.create_default_context(cafile=str(ca))
    async with trio.open_nursery() as nursery:
        for backend in backends.all:
            nursery.start_soon(_check_forever, backends, backend, context, every_s)


async def _check_forever(
    backends: Backends, backend: Backend, context: ssl.SSLContext, every_s: float
) -> None:
    while True:
        answer = await ask(backend.checked_port or backend.port, context)
        ready = answer == "200"
        if ready != backend.ready:
            backend.ready = ready
            print(f"{HOST}:{backend.port} is {'in' if ready else 'out of'} service: {answer}", flush=True)
            if all(each.ready for each in backends.all):
                print("ready", flush=True)
        await trio.sleep(every_s)


async def ask(port: int, context: ssl.SSLContext) -> str:
    """The status of /readyz, or why there is none."""
    with trio.move_on_after(CHECK_WITHIN_S):
        try:
            plain = await trio.open_tcp_stream(HOST, port, happy_eyeballs_delay=math.inf)
            async with plain:
                stream = trio.SSLStream(plain, context, server_hostname=HOST, https_compatible=True)
                await stream.send_all(REQUEST)
                head = b""
                while len(head) < STATUS_BYTES and (data := await stream.receive_some()):
                    head += bytes(data)
                return head[9:STATUS_BYTES].decode("latin-1") or "no answer"
        except (OSError, trio.BrokenResourceError) as error:
            return repr(error.__cause__ or error)
    return f"no answer within {CHECK_WITHIN_S:.0f} s"
