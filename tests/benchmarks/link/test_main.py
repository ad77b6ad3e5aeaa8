"""The link as a process, with nothing added that would take time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).parents[3]


@pytest.fixture
def far() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        yield listener


@pytest.fixture
def link(far: socket.socket) -> Iterator[tuple[int, int]]:
    """The port to dial, and the pid."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "benchmarks.link", "--to", str(far.getsockname()[1])),
            *("--rtt-ms", "2", "--mbit", "1000"),
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=TOP,
    )
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline().split()[1]), process.pid
    finally:
        process.kill()
        process.communicate()


def dial(port: int) -> socket.socket:
    near = socket.create_connection(("127.0.0.1", port), 10)
    near.settimeout(10)
    return near


def read_all(end: socket.socket) -> bytes:
    parts = []
    while part := end.recv(65536):
        parts.append(part)
    return b"".join(parts)


def test_bytes_and_ends_go_both_ways(far: socket.socket, link: tuple[int, int]) -> None:
    with dial(link[0]) as near, far.accept()[0] as other:
        other.settimeout(10)
        body = os.urandom(300_000)
        near.sendall(body)
        near.shutdown(socket.SHUT_WR)
        assert read_all(other) == body
        other.sendall(b"answer")
        other.shutdown(socket.SHUT_WR)
        assert read_all(near) == b"answer"


def test_a_connection_that_is_over_leaves_nothing_open(far: socket.socket, link: tuple[int, int]) -> None:
    port, pid = link
    files = Path(f"/proc/{pid}/fd")
    before = len(list(files.iterdir()))
    for _ in range(3):
        with dial(port) as near, far.accept()[0] as other:
            near.sendall(b"x")
            assert other.recv(1) == b"x"
    # One more, through to its end, is behind the others' ends.
    with dial(port) as near, far.accept()[0] as other:
        near.shutdown(socket.SHUT_WR)
        assert other.recv(1) == b""
        other.shutdown(socket.SHUT_WR)
        assert near.recv(1) == b""
    with dial(port) as near, far.accept()[0] as other:
        near.sendall(b"x")
        assert other.recv(1) == b"x"
        assert len(list(files.iterdir())) == before + 2


def test_a_receiver_that_vanishes_ends_the_sender(far: socket.socket, link: tuple[int, int]) -> None:
    with dial(link[0]) as near:
        other, _ = far.accept()
        other.close()
        with pytest.raises(OSError):
            near.sendall(bytes(64_000_000))
