"""The upgrades of a pod's subresources: exec, attach and port-forward, from the request to the last byte.

What the API server's front has to do before: authenticate, authorise, find the pod. What can be refused
with a plain answer is refused by `UpgradeRefused`, before any byte was written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Literal

import attrs
import trio

from sandbox.processes import Container, Pod

Subresource = Literal["exec", "attach", "portforward"]
_REASONS = {400: "BadRequest", 403: "Forbidden", 404: "NotFound", 500: "InternalError"}


@attrs.frozen
class UpgradeRequest:
    """A request for an upgrade: header names in lower case, order and repetition kept."""

    method: str
    query: Mapping[str, Sequence[str]]
    headers: Sequence[tuple[bytes, bytes]]

    def header_values(self, name: bytes) -> list[str]:
        """Return the values of every line of this header, split at commas."""
        lines = [value.decode("latin-1") for key, value in self.headers if key == name]
        return [part.strip() for line in lines for part in line.split(",") if part.strip()]

    def flag(self, name: str) -> bool:
        """Return a boolean of the query as the API server reads it."""
        values = self.query.get(name, ())
        return bool(values) and values[0].lower() not in ("false", "0", "")


class UpgradeRefused(Exception):
    """The answer to a request that is not upgraded; the connection is to be closed after it."""

    def __init__(
        self, status: int, body: bytes, content_type: str, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        super().__init__(f"{status}: {body.decode(errors='replace')}")
        self.status = status
        self.body = body
        self.content_type = content_type
        self.headers = tuple(headers)

    @classmethod
    def by_api_server(cls, status: int, message: str) -> UpgradeRefused:
        """Refuse as the API server does, with a Status."""
        body = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": _REASONS[status],
            "code": status,
        }
        return cls(status, json.dumps(body).encode(), "application/json")

    @classmethod
    def by_kubelet(
        cls, status: int, message: str, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> UpgradeRefused:
        """Refuse as a kubelet does, whose plain text the API server passes on."""
        return cls(status, f"{message}\n".encode(), "text/plain; charset=utf-8", headers)


async def serve_upgrade(
    stream: trio.abc.Stream, leftover: bytes, request: UpgradeRequest, subresource: Subresource, pod: Pod
) -> None:
    """Answer an authorised GET or POST of a pod's subresource and serve it to its end.

    Raises UpgradeRefused before anything was written. `leftover` is what came after the request's head.
    The stream stays the caller's, who closes it afterwards; broken connections are no error here.
    Cancelled, it kills the processes it started.
    """
    tokens = [token.lower() for token in request.header_values(b"connection")]
    if not any("upgrade" in token for token in tokens) or not request.header_values(b"upgrade"):
        raise UpgradeRefused.by_api_server(400, "Upgrade request required")
    if subresource == "portforward":
        raise UpgradeRefused.by_api_server(400, "no protocol of port-forward is known yet")
    choose_container(pod, request)
    raise UpgradeRefused.by_api_server(400, f"no protocol of {subresource} is known yet")


def choose_container(pod: Pod, request: UpgradeRequest) -> Container:
    """Return the container that the request names, or the only one there is."""
    names = list(request.query.get("container", ()))
    if names and names[0]:
        container = pod.container(names[0])
        if container is None:
            raise UpgradeRefused.by_api_server(400, f"container {names[0]} is not valid for pod {pod.name}")
        return container
    if len(pod.containers) != 1:
        choices = " ".join(pod.containers)
        raise UpgradeRefused.by_api_server(
            400, f"a container name must be specified for pod {pod.name}, choose one of: [{choices}]"
        )
    return next(iter(pod.containers.values()))
