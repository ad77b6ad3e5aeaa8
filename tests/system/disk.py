"""A hub whose data folder is a file system of its own, small enough to be filled."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

import attrs
import pytest

from tests.fakes.apiserver import Exchange
from tests.system.chain import Chain, open_chain
from tests.system.raw import V5, WEBSOCKET_ACCEPT, RawClient, Talk
from tests.system.world import DEADLINE_S, POLL_S, World

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="a tmpfs needs root: run `make test` as root to have these as well"
)

SIZE_MIB: Final = 24
SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n"
    + f"Sec-WebSocket-Accept: {WEBSOCKET_ACCEPT}\r\n\r\n".encode()
)


def hold(exchange: Exchange) -> None:
    """An exec that lasts."""
    exchange.send(SWITCHED)
    exchange.wait_gone(90.0)


@attrs.frozen
class TokenClient(RawClient):
    """Acts by a token that it has already."""

    access_token: str = ""

    def token(self) -> str:
        return self.access_token


@attrs.define(eq=False)
class SmallDisk:
    """The chain of hub, relays and API server, and the disk of its hub."""

    chain: Chain

    @property
    def world(self) -> World:
        return self.chain.world

    @property
    def data(self) -> Path:
        return self.world.folder / "hub"

    @property
    def trail(self) -> Path:
        return self.data / "audit.db"

    @contextmanager
    def open_exec(self, client: RawClient) -> Iterator[Talk]:
        path, _ = self.chain.exec_path(hold)
        with client.talk(client.upgrade(path, V5)) as talk:
            assert talk.answer(body=False).status == 101
            yield talk

    def fill(self, *, left_bytes: int = 0) -> None:
        """Fill the disk, but for what is to be left."""
        for name in ("audit.db", "hub.db"):
            # Of the room that a WAL has already, none is left.
            self.until(lambda name=name: self._checkpoint(name), f"{name} is checkpointed")
        with (self.data / "ballast").open("ab", buffering=0) as file, suppress(OSError):
            while True:
                free = os.statvfs(self.data).f_bavail * 4096 - left_bytes
                if left_bytes and free < 4096:
                    break
                file.write(bytes(min(65536, free // 4096 * 4096) or 4096))

    def free(self) -> None:
        (self.data / "ballast").unlink()

    @contextmanager
    def full(self) -> Iterator[None]:
        """The disk is full for the block."""
        self.fill()
        try:
            yield
        finally:
            self.free()

    def _checkpoint(self, name: str) -> bool:
        with closing(sqlite3.connect(self.data / name, timeout=5)) as connection:
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            return not busy

    def metrics(self) -> dict[str, float]:
        client = self.world.administration
        request = urllib.request.Request(
            f"{client.url}/metrics", headers={"authorization": f"Bearer {client.token}"}
        )
        with urllib.request.urlopen(request, timeout=10, context=client.context) as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    def store(self, query: str, *values: object) -> list[tuple[object, ...]]:
        with closing(sqlite3.connect(f"file:{self.data / 'hub.db'}?mode=ro", uri=True)) as connection:
            return connection.execute(query, values).fetchall()

    def until(self, done: object, what: str, deadline_s: float = DEADLINE_S) -> None:
        deadline = time.monotonic() + deadline_s
        while not done():  # type: ignore[operator]
            assert time.monotonic() < deadline, f"not within {deadline_s:.0f} s: {what}"
            time.sleep(POLL_S)


@contextmanager
def open_small_disk(folder: Path, settings: str = "") -> Iterator[SmallDisk]:
    """Mount the disk and bring the chain up on it; `settings` are added to the hub's configuration."""
    data = folder / "hub"
    data.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m,mode=700", "hawse-test", str(data)]
    subprocess.run(mount, check=True)
    try:
        with open_chain(folder, settings) as chain:
            yield SmallDisk(chain)
    finally:
        subprocess.run(["umount", "--lazy", str(data)], check=True)
