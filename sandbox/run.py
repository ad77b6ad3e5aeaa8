"""One run of a container's command: its process, its log, and the clients attached to it or exec'ed beside
it.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal

import trio

from sandbox.container import ContainerSpec
from sandbox.logs import LineSplitter, Log
from sandbox.spawn import Process, kill_and_reap, spawn

# Chunks that an attached client may lag behind before the container's output waits for it.
ATTACHED_CHUNKS_MAX = 4
# Time limit for the remaining output after the process has ended and its leftover processes were killed.
DRAIN_S = 2.0


class Run:
    """A container's command from its start to its end."""

    def __init__(self, spec: ContainerSpec) -> None:
        self._spec = spec
        self.log = Log()
        self.ended = trio.Event()
        self.exit_code: int | None = None
        self._process: Process | None = None
        self._attached: set[Attachment] = set()
        self._stdin_lock = trio.Lock()
        # Running execs, and ended ones with processes in the background; all of them end with the container.
        self._execs: set[Process] = set()

    async def start(self, directory: Path, environment: Mapping[str, str]) -> None:
        """Start the command, if there is one; raises SpawnError."""
        if self._spec.command:
            self._process = await spawn(
                self._spec.command,
                directory=directory,
                environment=environment,
                stdin=self._spec.stdin,
                tty=self._spec.tty,
            )

    async def wait(self, grace_s: Callable[[], float]) -> int:
        """Move the output until the command ends, and return its exit code.

        If cancelled, it first stops the process: TERM, and KILL after the grace period, which is read at that
        moment.
        """
        process = self._process
        if process is None:
            await trio.sleep_forever()
        assert process is not None
        over = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._live, process, over)
            try:
                await over.wait()
            except trio.Cancelled:
                process.signal_group(signal.SIGTERM)
                with trio.move_on_after(grace_s(), shield=True):
                    await over.wait()
                process.signal_group(signal.SIGKILL)
                raise
        assert self.exit_code is not None
        return self.exit_code

    async def _live(self, process: Process, over: trio.Event) -> None:
        """Follow the process and its output to their end; `wait` translates a cancellation into signals."""
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, process.stdout, "stdout")
                nursery.start_soon(self._pump, process.stderr, "stderr")
                await process.wait()
                # Processes that the command left in the background would keep its output open.
                process.signal_group(signal.SIGKILL)
                nursery.cancel_scope.deadline = trio.current_time() + DRAIN_S
            self.exit_code = await kill_and_reap(process)
        over.set()

    def end(self) -> None:
        """Close the log, disconnect the attached clients and kill every exec."""
        self.ended.set()
        self.log.close()
        for attachment in list(self._attached):
            attachment.close()
        for process in self._execs:
            process.signal_group(signal.SIGKILL)
        self._execs.clear()

    async def _pump(self, source: trio.abc.ReceiveStream | None, name: Literal["stdout", "stderr"]) -> None:
        """Move one output into the log and to the attached clients."""
        if source is None:
            return
        lines = LineSplitter(self.log)
        try:
            while data := bytes(await source.receive_some()):
                lines.feed(data)
                await self.log.writable()
                for attachment in list(self._attached):
                    await attachment.deliver(name, data)
        finally:
            lines.finish()

    def attach(self, *, stdin: bool, stdout: bool, stderr: bool) -> Attachment:
        """Connect a client to the process from now on; use it in a `with` block."""
        attachment = Attachment(self, self._process, self._spec, stdin=stdin, stdout=stdout, stderr=stderr)
        self._attached.add(attachment)
        return attachment

    def detach(self, attachment: Attachment) -> None:
        """Forget a client."""
        self._attached.discard(attachment)

    def add_exec(self, process: Process) -> None:
        """Register an exec that ends with this run."""
        self._execs.add(process)
        if self.ended.is_set():
            process.signal_group(signal.SIGKILL)

    def remove_exec(self, process: Process) -> None:
        """Forget an exec that has no running process left."""
        self._execs.discard(process)

    async def write_stdin(self, process: Process, data: bytes) -> None:
        """Write to the command's standard input, one client at a time; a closed one discards the data."""
        async with self._stdin_lock:
            if process.stdin is not None:
                with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await process.stdin.send_all(data)

    async def close_stdin(self, process: Process) -> None:
        """End the command's standard input."""
        async with self._stdin_lock:
            if process.stdin is not None:
                await process.stdin.aclose()


class Attachment:
    """A client of a container's running process; it has the same streams as a Process."""

    def __init__(
        self,
        run: Run,
        process: Process | None,
        spec: ContainerSpec,
        *,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    ) -> None:
        self._run = run
        self._process = process
        self._sinks: dict[str, trio.MemorySendChannel[bytes]] = {}
        self.stdin: trio.abc.SendStream | None = None
        self.stdout: trio.abc.ReceiveStream | None = self._output("stdout") if stdout else None
        self.stderr: trio.abc.ReceiveStream | None = (
            self._output("stderr") if stderr and not spec.tty else None
        )
        if stdin and process is not None and process.stdin is not None:
            self.stdin = _SharedInput(run, process, close=spec.stdin_once)

    def _output(self, name: str) -> trio.abc.ReceiveStream:
        self._sinks[name], source = trio.open_memory_channel[bytes](ATTACHED_CHUNKS_MAX)
        return _ChannelStream(source)

    def __enter__(self) -> Attachment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        for stream in (self.stdout, self.stderr):
            if isinstance(stream, _ChannelStream):
                stream.close()

    async def deliver(self, name: Literal["stdout", "stderr"], data: bytes) -> None:
        """Deliver output; waits while the client lags behind, and discards it once the client is gone."""
        sink = self._sinks.get(name)
        if sink is not None:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await sink.send(data)

    async def wait(self) -> int:
        """Wait for the end of the process. An attach succeeds with any exit code."""
        await self._run.ended.wait()
        return 0

    def resize(self, width: int, height: int) -> None:
        """Set the size of the container's terminal, if it has one."""
        if self._process is not None and not self._run.ended.is_set():
            self._process.resize(width, height)

    def close(self) -> None:
        """End the output; data that was already delivered can still be read."""
        self._run.detach(self)
        for sink in self._sinks.values():
            sink.close()


class _ChannelStream(trio.abc.ReceiveStream):
    def __init__(self, source: trio.MemoryReceiveChannel[bytes]) -> None:
        self._source = source

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return the next chunk and ignore `max_bytes`: chunks are bounded where they are read."""
        try:
            return await self._source.receive()
        except trio.EndOfChannel:
            return b""

    def close(self) -> None:
        self._source.close()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()


class _SharedInput(trio.abc.SendStream):
    """The container's standard input; it outlives a client unless the container sets `stdinOnce`."""

    def __init__(self, run: Run, process: Process, *, close: bool) -> None:
        self._run = run
        self._process = process
        self._close = close

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._run.write_stdin(self._process, bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        if self._close:
            await self._run.close_stdin(self._process)
        else:
            await trio.lowlevel.checkpoint()
