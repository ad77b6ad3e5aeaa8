"""Limits unauthenticated connections: their number, their number per network, and their bytes.

A public listener holds TLS state and the first request's head before it can authenticate the sender. These
limits bound that memory. A connection stops counting once it has authenticated.
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
# A head may have 1 MiB. More than 64 of the largest at once is an attack, not load.
STRANGERS_BYTES_MAX = 64 * 1024 * 1024
# An ordinary head is far below this, so a flood of large heads never costs an ordinary one its connection.
# Heads of this size, one per connection, come on top of the limit.
STRANGER_BYTES_FREE = 16 * 1024
# Enough to send a short form and take a short answer. Without a deadline, some thousand idle connections
# would keep all others out.
STRANGER_S = 30.0
# A client that has sent its TLS hello authenticates within this time, even among hundreds. In such a crowd
# the oldest connections are nearest to authenticating. If each newcomer evicted one of them, none would
# succeed.
UNHURRIED_S = 2.0


# The smallest IPv6 network that one subscriber is given.
_V6_PREFIX = 64
# A NAT64 translator maps all IPv4 addresses into this prefix (RFC 6052 section 2.1): it is not one
# subscriber.
_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")


class TooManyStrangersError(Exception):
    """A connection is refused before it has sent anything."""


@attrs.define(eq=False)
class Gate:
    """Counts connections whose sender has not authenticated, and the bytes they have sent."""

    clock: Callable[[], float] = time.monotonic
    connections_max: int = STRANGERS_MAX
    bytes_max: int = STRANGERS_BYTES_MAX
    bytes_held: int = 0
    strangers: dict[Stranger, None] = attrs.Factory(dict)
    """All unauthenticated connections, the oldest first."""
    places: dict[str, dict[Stranger, None]] = attrs.Factory(dict)
    silent: dict[Stranger, None] = attrs.Factory(dict)
    """Those without a whole TLS hello, which a client sends as soon as it is connected."""
    silent_places: dict[str, dict[Stranger, None]] = attrs.Factory(dict)

    @property
    def connections(self) -> int:
        return len(self.strangers)

    def enter(self, address: str, cut: Callable[[str], None]) -> Stranger:
        """Admit a connection; raises TooManyStrangersError.

        Above a limit another connection is evicted: its `cut` is called with the reason. The candidate is the
        oldest one without a TLS hello. If all have sent theirs, it is the oldest one, once it is UNHURRIED_S
        old. So a flood of silent connections cannot keep out other clients of the same address, such as the
        agents behind one gateway.

        Above the limit for all networks, a network with more connections than the newcomer's loses one at
        once. So a flood from some addresses keeps out no client of another address. An exception: if the
        connections without a hello outnumber those of any network, and the oldest of them is UNHURRIED_S old,
        that one is evicted.
        """
        place = network_of(address)
        there = self.places.get(place, {})
        if len(there) >= STRANGERS_PER_PLACE_MAX:
            why = f"{len(there)} connections of {place} have not authenticated, the limit"
            self._oldest(self.silent_places.get(place, {}), there, why).make_room(why)
        elif self.connections >= self.connections_max:
            why = f"{self.connections} connections wait to authenticate, the limit"
            fullest = max(self.places.values(), key=len)
            # A flood from many addresses may have fewer connections per address than one gateway has agents.
            quiet = next(iter(self.silent)) if len(self.silent) > len(fullest) else None
            if quiet is not None and self.clock() - quiet.since >= UNHURRIED_S:
                quiet.make_room(why)
            elif len(fullest) > len(there) + 1:
                silent = self.silent_places.get(next(iter(fullest)).place)
                # Among those with a hello, the newest: the oldest is nearest to authenticating.
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


def network_of(address: str) -> str:
    """The network that an address counts for: the IPv4 address itself, or the IPv6 prefix of one
    subscriber.
    """
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
    """One unauthenticated connection's share of the limits; `leave` releases it, once."""

    gate: Gate
    place: str
    cut: Callable[[str], None]
    since: float
    bytes_held: int = 0
    inside: bool = True
    patience: trio.CancelScope | None = None
    """The scope around its request. The request may wait for something else, where it would not notice the
    cut.
    """

    def greet(self) -> None:
        """Note that the whole TLS hello has been received."""
        if self in self.gate.silent:
            del self.gate.silent[self]
            _remove(self, self.gate.silent_places)

    def leave(self) -> None:
        """Stop counting this connection."""
        if self.inside:
            self.inside = False
            self.greet()
            del self.gate.strangers[self]
            _remove(self, self.gate.places)
            self.settle()

    def make_room(self, why: str) -> None:
        """Evict this connection in favour of another one."""
        self.leave()
        if self.patience is not None:
            self.patience.cancel()
        self.cut(why)

    def settle(self) -> None:
        """Release the bytes received so far: the request is answered, and they are not held any more."""
        self.gate.bytes_held -= self.bytes_held
        self.bytes_held = 0

    def count(self, size: int) -> None:
        """Charge received bytes; raises BrokenResourceError when unauthenticated connections hold too many in
        all.
        """
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
    """A TLS stream that counts received bytes until the peer has authenticated.

    It stays in the path afterwards: an extra call each way costs a request 0.16 µs.
    """

    __slots__ = ("_stranger", "_stream")

    def __init__(self, stream: TLSStream, stranger: Stranger) -> None:
        self._stream = stream
        self._stranger = stranger

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """See trio; raises BrokenResourceError when unauthenticated connections hold too many bytes."""
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
