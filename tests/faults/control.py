"""The tests' hand on the fault proxy: links that are opened, slowed, stalled, cut, refused and counted, live.

with open_proxy(folder) as proxy:
    link = proxy.link(hub_port)
    ...                                 # whoever connects to link.port talks to hub_port
    link.shape(delay_s=0.05, mbit=10)   # each way: 50 ms, 10 Mbit/s
    link.cut(after=1000, way=Way.DOWN)  # a reset, exactly 1,000 bytes from now
    link.stall()                        # the network is away; nobody is told
    link.heal()
"""

from __future__ import annotations

import base64
import enum
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import attrs

from tests.faults.pipe import End

TOP: Final = Path(__file__).parents[2]
# What a slow road's sockets may hold: the kernel doubles it, and half of that is its bookkeeping.
SLOW_BUFFER_BYTES: Final = 16 * 1024


class Way(enum.Enum):
    """A direction: `up` is from whoever connects to the target."""

    UP = "up"
    DOWN = "down"
    BOTH = "both"


class Side(enum.Enum):
    """An end of a connection: near is whoever connected."""

    NEAR = "near"
    FAR = "far"
    BOTH = "both"


@attrs.frozen
class Counts:
    """What a link has seen."""

    opened: int
    live: int
    live_max: int
    cut: int
    """Connections that were cut on purpose."""
    up: int
    """Bytes that have reached the target."""
    down: int
    silence_max_s: float
    """The longest time between bytes, in any direction, on one connection."""
    connections: list[int]
    """The numbers of those that live, the oldest first."""
    heads: list[str]
    """What the present impostor was asked."""


@attrs.define(eq=False)
class FaultProxy:
    """The running process."""

    process: subprocess.Popen[str]
    _links: int = 0
    _lock: threading.Lock = attrs.Factory(threading.Lock)

    def link(self, target: int, *, slow: bool = False) -> Link:
        """Open a port in front of a loopback port.

        `slow`: with small socket buffers, as a link needs whose rate or delay matter, or it measures those.
        """
        name = f"link-{self._links}"
        self._links += 1
        answer = self.ask("open", link=name, to=target, buffer=SLOW_BUFFER_BYTES if slow else 0)
        return Link(self, name, int(str(answer["port"])))

    def ask(self, command: str, **arguments: object) -> dict[str, object]:
        """Have a command carried out; it is done when this returns."""
        with self._lock:
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            self.process.stdin.write(json.dumps({"do": command, **arguments}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        assert line, "the fault proxy has ended"
        answer = json.loads(line)
        assert "error" not in answer, f"{command}: {answer['error']}"
        ok: dict[str, object] = answer["ok"]
        return ok


@attrs.frozen(eq=False)
class Link:
    """One port of the proxy."""

    proxy: FaultProxy
    name: str
    port: int

    def shape(
        self,
        way: Way = Way.BOTH,
        *,
        delay_s: float = 0.0,
        mbit: float | None = None,
        piece_bytes: int = 0,
        buffer_s: float = 0.0,
    ) -> None:
        """From now on bytes come so much later, at most at this rate, in pieces of at most this size.

        What comes faster waits for so long as `buffer_s` says, and more of it at the sender.
        """
        rate = mbit * 1e6 / 8 if mbit is not None else 0
        self._ask(
            "shape",
            way=way.value,
            delay_s=delay_s,
            bytes_per_s=rate,
            piece_bytes=piece_bytes,
            buffer_s=buffer_s,
        )

    def stall(
        self, way: Way = Way.BOTH, *, present: bool = True, later: bool = True, only: int | None = None
    ) -> None:
        """TCP stays open and nothing moves: on connections that are there, and on those to come."""
        self._ask("stall", way=way.value, on=True, present=present, later=later, only=only)

    def flow(self, way: Way = Way.BOTH) -> None:
        """End every stall; what was sent meanwhile comes through."""
        self._ask("stall", way=way.value, on=False, present=True, later=True, only=None)

    def cut(
        self,
        how: End = End.RST,
        *,
        side: Side = Side.BOTH,
        after: int | None = None,
        way: Way = Way.DOWN,
        only: int | None = None,
    ) -> int:
        """Cut the connections that are there; returns how many.

        At one `side` alone: the other one hears nothing, ever, and nothing moves. `after` so many more bytes
        in one direction, to the byte, instead of now.
        """
        answer = self._ask("cut", how=how.value, side=side.value, after=after, way=way.value, only=only)
        return int(str(answer["connections"]))

    def cut_next(self, after: int, *, way: Way = Way.DOWN, how: End = End.RST, times: int = 1) -> None:
        """Cut each of the next connections at so many bytes from its beginning."""
        self._ask("cut-next", way=way.value, after=after, how=how.value, times=times)

    def refuse(self, for_s: float | None = None) -> None:
        """Have the kernel refuse whoever connects; those that are connected stay."""
        self._ask("refuse", for_s=for_s)

    def answer(
        self,
        data: bytes,
        *,
        certificate: Path | None = None,
        hold: bool = False,
        for_s: float | None = None,
    ) -> None:
        """Answer new connections instead of passing them on; see impostor.Impostor."""
        encoded = base64.b64encode(data).decode()
        path = str(certificate) if certificate is not None else None
        self._ask("answer", data=encoded, certificate=path, hold=hold, for_s=for_s)

    def lead_to(self, target: int) -> None:
        """Pass new connections on to another loopback port."""
        self._ask("lead", to=target)

    def accept(self) -> None:
        """Neither refuse nor answer any more."""
        self._ask("accept")

    def limit_age(self, after_s: float | None, how: End = End.RST) -> None:
        """Cut every connection at an age, as a load balancer does; None: no more."""
        self._ask("limit", of="age", after_s=after_s, how=how.value)

    def limit_idle(self, after_s: float | None, how: End | None = End.FIN) -> None:
        """Cut connections on which nothing moves; `how` None: forget them, and tell nobody."""
        self._ask("limit", of="idle", after_s=after_s, how=how.value if how is not None else None)

    def heal(self) -> None:
        """Be an ordinary network again. What is half open is cut."""
        self._ask("heal")

    def counts(self) -> Counts:
        return Counts(**self._ask("count"))  # type: ignore[arg-type]

    def _ask(self, command: str, **arguments: object) -> dict[str, object]:
        return self.proxy.ask(command, link=self.name, **arguments)


@contextmanager
def open_proxy(folder: Path) -> Iterator[FaultProxy]:
    """Run a fault proxy for the block; what it complains of is in `fault-proxy.log`."""
    with (folder / "fault-proxy.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.proxy"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=TOP,
            # A Ctrl-C is for the tests, which end it by closing its input.
            start_new_session=True,
        )
        try:
            yield FaultProxy(process)
        finally:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            process.stdout.close()
            process.wait(10)
    assert not (folder / "fault-proxy.log").read_text(), (folder / "fault-proxy.log").read_text()
