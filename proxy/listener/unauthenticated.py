"""How much those may take who have not said who they are: connections, connections a place, and bytes.

A public listener has to hold a stranger's TLS state and the head of its first request before it can know
anything about it. The caps bound that; whoever authenticates leaves the gate and counts no more here.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable

import attrs
import trio

from tunnel.net.tls import TLSStream

# A gateway in front of many agents is one address; 40 informers of one client are 40 connections.
STRANGERS_PER_PLACE_MAX = 512
STRANGERS_MAX = 4096
# A head may have 1 MiB; 64 of the largest at once are more than any honest crowd sends before it is known.
STRANGERS_BYTES_MAX = 64 * 1024 * 1024
# An ordinary head is far below this, so a crowd of large ones never costs an ordinary one its connection. As
# many such heads as there may be connections are held besides.
STRANGER_BYTES_FREE = 16 * 1024
# To send a short form and take a short answer. A place at the gate must not be held by doing neither, or some
# thousand connections would shut everybody out for as long as they like.
STRANGER_S = 30.0
# A client that has sent its hello has authenticated by then, even where some hundred come at once. In such a
# crowd the oldest are those nearest to it, and none would come through if each newcomer put an end to one.
UNHURRIED_S = 2.0


# What one subscriber of IPv6 is given, at the least.
_V6_PREFIX = 64
# Where a translator writes all addresses of IPv4 (RFC 6052 section 2.1), which are not one subscriber's.
_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")


class TooManyStrangersError(Exception):
    """A connection that is turned away before it has said anything."""


@attrs.define(eq=False)
class Gate:
    """Counts connections whose sender has not authenticated, and the bytes they have sent."""

    clock: Callable[[], float] = time.monotonic
    connections_max: int = STRANGERS_MAX
    bytes_max: int = STRANGERS_BYTES_MAX
    bytes_held: int = 0
    strangers: dict[Stranger, None] = attrs.Factory(dict)
    """All that are here, in the order in which they came."""
    places: dict[str, dict[Stranger, None]] = attrs.Factory(dict)
    silent: dict[Stranger, None] = attrs.Factory(dict)
    """Those without a whole TLS hello yet, which a client sends as soon as it is connected."""
    silent_places: dict[str, dict[Stranger, None]] = attrs.Factory(dict)

    @property
    def connections(self) -> int:
        return len(self.strangers)

    def enter(self, address: str, cut: Callable[[str], None]) -> Stranger:
        """Admit a connection; raises TooManyStrangersError.

        Where there are too many, one of them makes room and is `cut`, which is told why: the oldest without a
        TLS hello; where all have sent theirs the oldest, once it has been here for UNHURRIED_S. A flood that
        says nothing would else keep out those that come from the same address, as the agents behind one
        gateway do. Where there are too many in all, an address that has more of them than the newcomer's
        makes room at once, so that a flood from some addresses keeps nobody out who comes from another. But
        where those without a hello are more than any address has, and have been here for UNHURRIED_S, it is
        the oldest of them.
        """
        place = place_of(address)
        there = self.places.get(place, {})
        if len(there) >= STRANGERS_PER_PLACE_MAX:
            why = f"{len(there)} connections of {place} have not authenticated, the limit"
            self._oldest(self.silent_places.get(place, {}), there, why).make_room(why)
        elif self.connections >= self.connections_max:
            why = f"{self.connections} connections wait to authenticate, the limit"
            fullest = max(self.places.values(), key=len)
            # A flood from many addresses may have fewer of each than one gateway has agents.
            quiet = next(iter(self.silent)) if len(self.silent) > len(fullest) else None
            if quiet is not None and self.clock() - quiet.since >= UNHURRIED_S:
                quiet.make_room(why)
            elif len(fullest) > len(there) + 1:
                silent = self.silent_places.get(next(iter(fullest)).place)
                # With hellos not the oldest, which is nearest to saying who it is.
                ended = next(iter(silent)) if silent else next(reversed(fullest))
                ended.make_room(f"{why}, {len(fullest)} of them of {ended.place}")
            else:
                self._oldest(self.silent, self.strangers, why).make_room(why)
        stranger = Stranger(self, place, cut, self.clock())
        self.strangers[stranger] = self.silent[stranger] = None
        for at in (self.places, self.silent_places):
            at.setdefault(place, {})[stranger] = None
        return stranger

    def _oldest(self, silent: dict[Stranger, None], strangers: dict[Stranger, None], why: str) -> Stranger:
        if silent:
            return next(iter(silent))
        oldest = next(iter(strangers))
        if self.clock() - oldest.since < UNHURRIED_S:
            raise TooManyStrangersError(why)
        return oldest


def place_of(address: str) -> str:
    """Whom an address counts as: itself, or its network in IPv6, where one client has them all."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    if parsed in _TRANSLATED:
        return str(ipaddress.IPv4Address(parsed.packed[-4:]))
    return str(ipaddress.IPv6Network((int(parsed), _V6_PREFIX), strict=False))


@attrs.define(eq=False)
class Stranger:
    """One connection's share of the gate; `leave` gives it back, once."""

    gate: Gate
    place: str
    cut: Callable[[str], None]
    since: float
    bytes_held: int = 0
    inside: bool = True
    patience: trio.CancelScope | None = None
    """Around its request, which may wait for somebody else: to that a cut connection says nothing."""

    def greet(self) -> None:
        """The whole TLS hello has come."""
        if self in self.gate.silent:
            del self.gate.silent[self]
            _remove(self, self.gate.silent_places)

    def leave(self) -> None:
        """Count this connection no more."""
        if self.inside:
            self.inside = False
            self.greet()
            del self.gate.strangers[self]
            _remove(self, self.gate.places)
            self.settle()

    def make_room(self, why: str) -> None:
        """End this connection for the sake of another."""
        self.leave()
        if self.patience is not None:
            self.patience.cancel()
        self.cut(why)

    def settle(self) -> None:
        """Forget what was received so far: it was answered, and is held no more."""
        self.gate.bytes_held -= self.bytes_held
        self.bytes_held = 0

    def count(self, size: int) -> None:
        """Charge received bytes; raises BrokenResourceError when strangers hold too much in all."""
        self.bytes_held += size
        self.gate.bytes_held += size
        if self.gate.bytes_held > self.gate.bytes_max and self.bytes_held > STRANGER_BYTES_FREE:
            raise trio.BrokenResourceError("too many bytes of connections that have not authenticated")


def _remove(stranger: Stranger, places: dict[str, dict[Stranger, None]]) -> None:
    there = places[stranger.place]
    del there[stranger]
    if not there:
        del places[stranger.place]


class MeteredStream(trio.abc.Stream):
    """A peer's TLS stream that counts what it receives until its sender is known.

    It stays in the way then: one more call each way costs a request 0.16 µs.
    """

    __slots__ = ("_stranger", "_stream")

    def __init__(self, stream: TLSStream, stranger: Stranger) -> None:
        self._stream = stream
        self._stranger = stranger

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """See trio; raises BrokenResourceError when strangers hold too much."""
        data = await self._stream.receive_some(max_bytes)
        if self._stranger.inside:
            self._stranger.count(len(data))
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See trio."""
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """See trio."""
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """See trio."""
        await self._stream.aclose()
