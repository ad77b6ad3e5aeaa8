"""Exec and attach over any transport: connects the client's streams to a process, and reports its Status.

The messages are those of the API server, the kubelet and containerd, as a client receives them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Protocol

import attrs
import trio

COPY_BYTES = 64 * 1024

Status = Mapping[str, object]


class Command(Protocol):
    """The process that a client's streams are connected to: an exec, or the container's own for attach."""

    @property
    def stdin(self) -> trio.abc.SendStream | None: ...
    @property
    def stdout(self) -> trio.abc.ReceiveStream | None: ...
    @property
    def stderr(self) -> trio.abc.ReceiveStream | None: ...
    async def wait(self) -> int: ...
    def resize(self, width: int, height: int) -> None: ...


@attrs.frozen
class ClientStreams:
    """The client's side; streams that it did not request are None."""

    stdin: trio.abc.ReceiveStream | None
    stdout: trio.abc.SendStream | None
    stderr: trio.abc.SendStream | None
    resize: trio.abc.ReceiveStream | None
    error: trio.abc.SendStream
    # Before v4 there is no Status: an error is sent as text, and success as nothing.
    structured: bool = True

    async def send_status(self, status: Status) -> None:
        """Report how it ended; raises BrokenResourceError."""
        if self.structured:
            await self.error.send_all(json.dumps(status, separators=(",", ":")).encode())
        elif status["status"] != "Success":
            await self.error.send_all(str(status["message"]).encode())


async def join(client: ClientStreams, command: Command) -> int:
    """Move bytes both ways until the command and its output have ended; return its exit code.

    As in a real runtime, the output ends only when all processes that inherited it have closed it. Raises
    BrokenResourceError if the client is lost.
    """
    async with trio.open_nursery() as inputs:
        if client.stdin is not None:
            inputs.start_soon(_feed, client.stdin, command.stdin)
        if client.resize is not None:
            inputs.start_soon(_resize, client.resize, command)
        async with trio.open_nursery() as outputs:
            outputs.start_soon(_drain, command.stdout, client.stdout)
            outputs.start_soon(_drain, command.stderr, client.stderr)
        code = await command.wait()
        inputs.cancel_scope.cancel()
    return code


async def _feed(source: trio.abc.ReceiveStream, sink: trio.abc.SendStream | None) -> None:
    """Move the client's input, and its end, into the command; it is no error if that stops reading."""
    try:
        while data := await source.receive_some(COPY_BYTES):
            if sink is not None:
                await sink.send_all(data)
        if sink is not None:
            await sink.aclose()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        # Unblock the connection's reader: this input is no longer read.
        await source.aclose()


async def _drain(source: trio.abc.ReceiveStream | None, sink: trio.abc.SendStream | None) -> None:
    """Move one output, and its end, to the client."""
    if sink is None:
        return
    if source is not None:
        while data := await source.receive_some(COPY_BYTES):
            await sink.send_all(data)
    await sink.aclose()


async def _resize(source: trio.abc.ReceiveStream, command: Command) -> None:
    """Apply the terminal sizes that the client sends: a sequence of JSON objects."""
    decoder = json.JSONDecoder()
    text = ""
    while data := await source.receive_some(COPY_BYTES):
        text += bytes(data).decode(errors="replace")
        while text := text.lstrip():
            try:
                size, end = decoder.raw_decode(text)
            except ValueError:
                if len(text) > 1000:
                    return  # a size has 30 bytes: this is not one, and the real server stops reading too
                break
            text = text[end:]
            if isinstance(size, dict):
                width, height = size.get("Width", 0), size.get("Height", 0)
                if isinstance(width, int) and isinstance(height, int):
                    command.resize(width, height)


def success() -> Status:
    """Return the Status of a command that exited with 0."""
    return {"metadata": {}, "status": "Success"}


def exited(code: int, command: Sequence[str], *, translated: bool) -> Status:
    """Return the Status of a command's exit code.

    `translated`: the API server speaks v5 with the client and SPDY with the kubelet, and uses its own words.
    """
    if code == 0:
        return success()
    if translated:
        inner = f"command terminated with exit code {code}"
    else:
        inner = f"error executing command [{' '.join(command)}], exit code {code}"
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"command terminated with non-zero exit code: {inner}",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }


def internal_error(text: str) -> Status:
    """Return the Status of a failure other than the command's own exit code."""
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"Internal error occurred: {text}",
        "reason": "InternalError",
        "details": {"causes": [{"message": text}]},
        "code": 500,
    }
