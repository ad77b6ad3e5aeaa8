"""The paths of the public listener that the hub answers itself: its health, keys, tokens and enrolment."""

from __future__ import annotations

import re
from collections.abc import Callable

import attrs

from audit.record import Kind
from audit.recording.recorder import Recorder
from proxy.exchange.server import ServerConnection
from proxy.hub.authorize.events import Trail
from proxy.hub.home.hosts import ClusterHosts
from proxy.hub.identity.enrol import EnrolmentEndpoint
from proxy.hub.identity.oauth import FORM_BYTES_MAX, Answer
from proxy.hub.identity.token import TokenEndpoint
from proxy.message.failure import InboundBroken, StreamCode
from proxy.message.head import RequestHead, ResponseHead
from proxy.message.status import status_response

# Paths of kube-apiserver that the hub does not serve.
_KUBERNETES_PATH = re.compile(rb"/(?:apis?|openapi|version)(?:/|\Z)")


@attrs.frozen
class OwnPaths:
    """Answers requests for the hub's own paths. The caller bounds the time of each."""

    tokens: TokenEndpoint
    enrolment: EnrolmentEndpoint
    recorder: Recorder
    trail: Trail
    hosts: ClusterHosts | None
    why_unready: Callable[[], str]
    """Returns why the hub does not serve requests; "" if it does. For /readyz."""

    async def answer(
        self, connection: ServerConnection, head: RequestHead, path: bytes, address: str
    ) -> None:
        """Answer a request for `path`, which is neither a cluster's nor that of the tunnels."""
        match (head.method, path):
            case (b"GET" | b"HEAD", b"/healthz"):
                await connection.answer(*plain(200, b"ok\n"))
            case (b"GET" | b"HEAD", b"/readyz"):
                why = self.why_unready()
                answer = plain(503, f"not ready: {why}\n".encode()) if why else plain(200, b"ok\n")
                await connection.answer(*answer)
            case (b"GET" | b"HEAD", b"/.well-known/jwks.json"):
                await self._respond(connection, self.tokens.jwks())
            case (b"POST", b"/oauth/token" | b"/v1/enrol"):
                try:
                    form = await _form_of(connection)
                except InboundBroken as broken:
                    if broken.failure.code is not StreamCode.PROTOCOL:
                        raise
                    # The client is still connected, so it gets an answer.
                    note = broken.failure.reason
                    self.recorder.complete(
                        self.trail.unauthenticated(Kind.MALFORMED, client_ip=address, note=note, head=head)
                    )
                    await connection.answer(*status_response(400, "", note))
                    return
                if form is None:
                    message = f"the form exceeds {FORM_BYTES_MAX} bytes"
                    await connection.answer(*status_response(413, "", message))
                elif path == b"/v1/enrol":
                    await self._respond(connection, await self.enrolment.answer(form, head.headers, address))
                else:
                    await self._respond(connection, await self.tokens.answer(form, head.headers, address))
            case (b"GET", b"/v1/clusters"):
                await self._respond(connection, self.tokens.clusters(head.headers, address))
            case _:
                message = "the hub serves no such path: a cluster's begin with /clusters/NAME"
                if _KUBERNETES_PATH.match(path) is not None:
                    message = self._prefix_dropped()
                await connection.answer(*status_response(404, "", message))

    def _prefix_dropped(self) -> str:
        """Return why a Kubernetes path arrived without its cluster's prefix, and the next step."""
        why = "this client has left out the path of its server's URL, /clusters/NAME, as `kubectl proxy` does"
        step = "write a kubeconfig with a host for each cluster (hawse kubeconfig --hosts)"
        if self.hosts is None:
            step = f"the operator of this hub sets cluster_hosts; then {step}"
        return f"{why}: {step}"

    async def _respond(self, connection: ServerConnection, answer: Answer) -> None:
        length = (b"content-length", b"%d" % len(answer.body))
        await connection.answer(ResponseHead.of(answer.status, b"", (*answer.headers, length)), answer.body)


def plain(status: int, body: bytes) -> tuple[ResponseHead, bytes]:
    """Build a short answer in plain text."""
    headers = ((b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body)))
    return ResponseHead.of(status, b"", headers), body


async def _form_of(connection: ServerConnection) -> bytes | None:
    """Read a whole body of at most FORM_BYTES_MAX bytes; None when it is larger."""
    parts = bytearray()
    while data := await connection.receive_body():
        parts += data
        if len(parts) > FORM_BYTES_MAX:
            return None
    return bytes(parts)
