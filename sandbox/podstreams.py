"""A pod's streaming subresources: its log, exec, attach and port-forward."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Literal

import trio

from sandbox import streaming
from sandbox.objects import text
from sandbox.processes import Container, ContainerNotRunningError, Pod, PreviousLogMissingError, Registry
from sandbox.server import Request, Response, Send, Streamed, Upgrade, UpgradeRefused
from sandbox.status import bad_request
from sandbox.storage import Item

PLAIN_TEXT = "text/plain"


class PodStreams:
    """Finds the pod's processes and connects requests to them."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def _processes(self, pod: Item) -> Pod:
        found = self._registry.get(text(pod.value, "metadata", "uid"))
        if found is None:
            raise bad_request(f"pod {text(pod.value, 'metadata', 'name')} does not have a host assigned")
        return found

    def upgrade(
        self, request: Request, pod: Item, subresource: Literal["exec", "attach", "portforward"]
    ) -> Upgrade:
        """Return the answer to an exec, attach or port-forward request; raises StatusError."""
        processes = self._processes(pod)
        upgrade_request = streaming.UpgradeRequest(request.method, request.query, request.headers)

        async def serve(stream: trio.abc.Stream, leftover: bytes) -> None:
            try:
                await streaming.serve_upgrade(stream, leftover, upgrade_request, subresource, processes)
            except streaming.UpgradeRefused as refused:
                headers = [(name.decode(), value.decode()) for name, value in refused.headers]
                raise UpgradeRefused(
                    Response(refused.status, refused.body, refused.content_type, headers)
                ) from refused

        return Upgrade(serve)

    def log(self, request: Request, pod: Item) -> Streamed:
        """Return the answer to a request for a container's log; raises StatusError."""
        container = _container(self._processes(pod), request.option("container"))
        try:
            reader = container.logs(
                tail=_number(request, "tailLines"),
                since_ns=_since_ns(request),
                timestamps=request.flag("timestamps"),
                follow=request.flag("follow"),
                limit_bytes=_number(request, "limitBytes"),
                previous=request.flag("previous"),
            )
        except (ContainerNotRunningError, PreviousLogMissingError) as exc:
            raise bad_request(str(exc)) from exc

        async def produce(send: Send) -> None:
            with reader:
                async for data in reader:
                    await send(data)

        return Streamed(produce, PLAIN_TEXT)


def _container(pod: Pod, name: str) -> Container:
    if name:
        container = pod.container(name)
        if container is None:
            raise bad_request(f"container {name} is not valid for pod {pod.name}")
        return container
    if len(pod.containers) != 1:
        choices = " ".join(pod.containers)
        raise bad_request(
            f"a container name must be specified for pod {pod.name}, choose one of: [{choices}]"
        )
    return next(iter(pod.containers.values()))


def _number(request: Request, name: str) -> int | None:
    value = request.option(name)
    if not value:
        return None
    if not value.isdecimal():
        raise bad_request(f'strconv.ParseInt: parsing "{value}": invalid syntax')
    return int(value)


def _since_ns(request: Request) -> int | None:
    seconds = _number(request, "sinceSeconds")
    if seconds is not None:
        return time.time_ns() - seconds * 1_000_000_000
    moment = request.option("sinceTime")
    if not moment:
        return None
    try:
        return int(datetime.fromisoformat(moment.replace("Z", "+00:00")).timestamp() * 1_000_000_000)
    except ValueError:
        raise bad_request(f'parsing time "{moment}" as RFC3339') from None
