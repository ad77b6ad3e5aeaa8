"""Runs a simulation's worker process."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import trio

from proxy.hub.admin.simulation.job import Job, Line, Outcome, Progress

# A result has at most 1,000 changes and the difference of the policies: some 2 MB.
OUTPUT_BYTES_MAX = 16 * 1024 * 1024
# The command line's name for the worker (proxy.cli.main).
COMMAND = "simulation-worker"
# Of the worker's traceback, for the log.
ERRORS_BYTES_MAX = 16 * 1024

_log = logging.getLogger("hawse.hub.admin")


async def run_in_process(data_dir: Path, job: Job, tell: Callable[[Progress], None]) -> Outcome:
    """Run a simulation in a process of its own; cancelled, it kills the process."""
    errors = bytearray()
    try:
        async with _worker(data_dir) as process:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_feed, process, msgspec.json.encode(job))
                nursery.start_soon(_drain, process, errors)
                outcome = await _read(process, tell)
                if outcome is not None:
                    nursery.cancel_scope.cancel()
                elif process.returncode is None:
                    # Its end closes the pipes, and so ends both tasks.
                    process.kill()
    except OSError as error:
        return Outcome(message=f"the simulation's process cannot start: {error.strerror}")
    if outcome is None:
        _log.error("a simulation's process failed: %s", errors.decode("utf-8", "replace"))
        return Outcome(message="the simulation's process failed: see the hub's log")
    return outcome


@asynccontextmanager
async def _worker(data_dir: Path) -> AsyncIterator[trio.Process]:
    process = await trio.lowlevel.open_process(
        # -P: without it, -m imports from the current folder first, and others may write there.
        [sys.executable, "-P", "-m", "hawse", COMMAND, str(data_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A Ctrl-C in the hub's terminal is for the hub.
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with trio.CancelScope(shield=True):
            if process.returncode is None:
                process.kill()
            await process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                assert pipe is not None  # all three are pipes
                await pipe.aclose()


async def _feed(process: trio.Process, data: bytes) -> None:
    assert process.stdin is not None  # it is a pipe
    with suppress(trio.BrokenResourceError):
        await process.stdin.send_all(data)
    await process.stdin.aclose()


async def _drain(process: trio.Process, errors: bytearray) -> None:
    assert process.stderr is not None  # it is a pipe
    async for chunk in process.stderr:
        errors += chunk
        del errors[:-ERRORS_BYTES_MAX]


async def _read(process: trio.Process, tell: Callable[[Progress], None]) -> Outcome | None:
    """Read the worker's lines to the outcome; None if it ends before, or writes anything else."""
    assert process.stdout is not None  # it is a pipe
    decode = msgspec.json.Decoder(Line).decode
    buffered = b""
    async for chunk in process.stdout:
        *lines, buffered = (buffered + chunk).split(b"\n")
        for line in lines:
            try:
                found: Line = decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError):
                return None
            if isinstance(found, Outcome):
                return found
            tell(found)
        if len(buffered) > OUTPUT_BYTES_MAX:
            return None
    return None
