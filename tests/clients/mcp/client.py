"""A client of MCP: JSON-RPC in lines on the standard input and output of a server."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs

PROTOCOL = "2025-06-18"
DEADLINE_S = 60.0


@attrs.frozen
class Answer:
    """The result of a tool, as a model reads it."""

    text: str
    failed: bool


@attrs.define(eq=False)
class MCPClient:
    """A server, and what it has written."""

    process: subprocess.Popen[bytes]
    log: Path
    _number: int = 0
    _read: bytes = b""

    def begin(self, tool: str, **arguments: object) -> int:
        """Call a tool; returns the number of the call."""
        return self._send("tools/call", {"name": tool, "arguments": arguments})

    def end(self, number: int) -> Answer:
        """Wait for the result of a call."""
        message = self._answer(number)
        if "error" in message:
            error = message["error"]
            assert isinstance(error, dict)
            return Answer(str(error["message"]), failed=True)
        result = message["result"]
        assert isinstance(result, dict)
        text = "\n".join(str(part.get("text", "")) for part in result["content"])
        return Answer(text, bool(result.get("isError")))

    def call(self, tool: str, **arguments: object) -> Answer:
        """Call a tool and wait for its result."""
        return self.end(self.begin(tool, **arguments))

    def tools(self) -> list[str]:
        """Return the names of the server's tools."""
        result = self._answer(self._send("tools/list", {}))["result"]
        assert isinstance(result, dict)
        return [tool["name"] for tool in result["tools"]]

    def initialize(self) -> None:
        """Begin the session."""
        client = {
            "protocolVersion": PROTOCOL,
            "capabilities": {},
            "clientInfo": {"name": "t", "version": "1"},
        }
        assert "result" in self._answer(self._send("initialize", client))
        self._write({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def _send(self, method: str, params: Mapping[str, object]) -> int:
        self._number += 1
        self._write({"jsonrpc": "2.0", "id": self._number, "method": method, "params": params})
        return self._number

    def _write(self, message: Mapping[str, object]) -> None:
        stdin = self.process.stdin
        assert stdin is not None
        stdin.write(json.dumps(message).encode() + b"\n")
        stdin.flush()

    def _answer(self, number: int) -> dict[str, object]:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            line = self._line(deadline)
            message = json.loads(line)
            # Others are notifications, such as of a changed list of tools.
            if isinstance(message, dict) and message.get("id") == number and "method" not in message:
                return message

    def _line(self, deadline: float) -> bytes:
        stdout = self.process.stdout
        assert stdout is not None
        while b"\n" not in self._read:
            left_s = deadline - time.monotonic()
            ready = left_s > 0 and select.select([stdout], [], [], left_s)[0]
            data = os.read(stdout.fileno(), 65536) if ready else b""
            assert data, f"the server does not answer: {self.log.read_text()[-2000:]}"
            self._read += data
        line, _, self._read = self._read.partition(b"\n")
        return line


@contextmanager
def running(argv: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[MCPClient]:
    """Start a server and begin a session; its standard error goes to `log`."""
    with log.open("wb") as errors:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **environment},
        )
    try:
        client = MCPClient(process, log)
        client.initialize()
        yield client
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.terminate()
        process.wait(timeout=20)
        assert process.stdout is not None
        process.stdout.close()
