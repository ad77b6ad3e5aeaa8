"""Answers health probes: /healthz while the event loop runs, /readyz while requests can be served.

It also serves /metrics. Any pod may connect, so nothing here shows which agent does what.

Liveness does not depend on the hub or the API server: a restart would not help a relay that cannot reach
them.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from proxy.exchange.server import ServerConnection
from proxy.message.failure import InboundBroken
from proxy.message.head import ResponseHead
from proxy.message.strict import BadRequest
from proxy.relay.metrics import CONTENT_TYPE as METRICS_TYPE

# A probe takes milliseconds, and the kubelet uses one connection for each.
PROBE_DEADLINE_S = 10.0
CONNECTIONS_MAX = 64


class HealthServer:
    """Answers probes; `unready` returns why the relay is not ready or "", `metrics` the Prometheus text."""

    def __init__(self, unready: Callable[[], str], metrics: Callable[[], str]) -> None:
        self._unready = unready
        self._metrics = metrics
        # Open connections, oldest first.
        self._open: dict[trio.CancelScope, None] = {}

    async def handle_connection(self, tcp: trio.abc.Stream) -> None:
        """Answer one connection's probes, for a bounded time."""
        if len(self._open) >= CONNECTIONS_MAX:
            # Otherwise any pod could occupy all connections, and the kubelet, unable to probe, would restart
            # the relay.
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.cancel()
        scope = trio.CancelScope(deadline=trio.current_time() + PROBE_DEADLINE_S)
        self._open[scope] = None
        try:
            with scope:
                await self._serve(ServerConnection(tcp))
        except (trio.BrokenResourceError, trio.ClosedResourceError, InboundBroken):
            pass  # the client closed the connection
        finally:
            self._open.pop(scope, None)
            await trio.aclose_forcefully(tcp)

    async def _serve(self, connection: ServerConnection) -> None:
        while True:
            try:
                request = await connection.next_request()
            except BadRequest as error:
                await connection.answer(*_plain(error.status, f"{error.message}\n"))
                await connection.aclose()
                return
            if request is None:
                return
            match request.method, request.target.partition(b"?")[0]:
                case b"GET" | b"HEAD", b"/healthz":
                    answer = _plain(200, "ok\n")
                case b"GET" | b"HEAD", b"/readyz":
                    fault = self._unready()
                    answer = _plain(503, f"{fault}\n") if fault else _plain(200, "ok\n")
                case b"GET" | b"HEAD", b"/metrics":
                    answer = _plain(200, self._metrics(), METRICS_TYPE)
                case _:
                    answer = _plain(404, "there are /healthz, /readyz and /metrics\n")
            await connection.answer(*answer)


def _plain(status: int, text: str, content_type: bytes = b"text/plain") -> tuple[ResponseHead, bytes]:
    body = text.encode("ascii", "replace")
    headers = ((b"content-type", content_type), (b"content-length", b"%d" % len(body)))
    return ResponseHead.of(status, b"", headers), body
