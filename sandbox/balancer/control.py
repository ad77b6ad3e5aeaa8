"""The balancer's control port, and the client of it."""

from __future__ import annotations

import json
import socket
from typing import Any

import attrs
import trio

from sandbox.balancer.health import HOST
from sandbox.balancer.passing import Passing

COMMAND_BYTES_MAX = 100
ANSWER_WITHIN_S = 10.0


async def serve_control(
    passing: Passing, port: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Answer commands until cancelled."""

    async def answer(stream: trio.SocketStream) -> None:
        said = json.dumps(_obey(passing, (await stream.receive_some(COMMAND_BYTES_MAX)).decode()))
        await stream.send_all(said.encode() + b"\n")

    listeners = await trio.open_tcp_listeners(port, host=HOST)
    task_status.started()
    await trio.serve_listeners(answer, listeners)


def _obey(passing: Passing, command: str) -> dict[str, object]:
    match command.split():
        case ["cut", port]:
            return {"cut": passing.cut(int(port))}
        case ["state"]:
            return {"backends": [attrs.asdict(backend) for backend in passing.backends.all]}
    return {"error": f"unknown command {command!r}"}


@attrs.frozen
class BalancerControl:
    """A running balancer, for the process that has started it."""

    port: int

    def cut(self, client_port: int) -> bool:
        """Reset the connection of the client with this port; whether there is one."""
        return bool(self._ask(f"cut {client_port}")["cut"])

    def in_service(self) -> list[int]:
        """The ports of the backends that get new connections."""
        return [backend["port"] for backend in self.backends() if backend["ready"]]

    def backends(self) -> list[dict[str, Any]]:
        """Each backend: `port`, `ready`, and the number of its `connections`."""
        found: list[dict[str, Any]] = self._ask("state")["backends"]
        return found

    def _ask(self, command: str) -> dict[str, Any]:
        with socket.create_connection((HOST, self.port), ANSWER_WITHIN_S) as connection:
            connection.sendall(command.encode())
            with connection.makefile() as answers:
                said: dict[str, Any] = json.loads(answers.readline())
        return said
