"""Limits unauthenticated connections: their number, their number per network, and their bytes.

A public listener holds TLS state and the first request's head before it can authenticate the sender. These
limits bound that memory. A connection stops counting once it has authenticated.
"""

from __future__ import annotations

import ipaddress
import resource
import time
from collections.abc import Callable

import attrs
import trio

from tunnel.net.tls import TLSStream

# CI runners behind one gateway have one address, and start a thousand kubectls at once. The share of one
# network, 3,072, can authenticate within the time for a handshake (10 s, 300 a second). Each connection takes
# 30 to 60 KB of memory.
PENDING_MAX = 4096
# One network leaves a quarter of the limit for all to the others.
OTHERS_DIVISOR = 4
# Half of the process's open files are left for authenticated connections.
FILES_DIVISOR = 2
# A head may have 1 MiB. More than 64 of the largest at once is an attack, not load.
PENDING_BYTES_MAX = 64 * 1024 * 1024
# An ordinary head is far below this, so a flood of large heads never costs an ordinary one its connection.
# Heads of this size, one per connection, come on top of the limit.
PENDING_BYTES_FREE = 16 * 1024
# Enough to send a short form and take a short answer. Without a deadline, some thousand idle connections
# would keep all others out.
PENDING_S = 30.0
# A client that has sent its TLS hello authenticates within this time, even among hundreds. In such a crowd
# the oldest connections are nearest to authenticating. If each newcomer evicted one of them, none would
# succeed.
UNHURRIED_S = 2.0


# The smallest IPv6 network that one subscriber is given.
_V6_PREFIX = 64
# A NAT64 translator maps all IPv4 addresses into this prefix (RFC 6052 section 2.1): it is not one
# subscriber.
_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")


class TooManyPendingError(Exception):
    """A connection is refused before it has sent anything."""


def _within_open_files(wanted: int) -> int:
    """Lower a limit of connections to the process's share of open files: each connection is one."""
    files_max, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if files_max == resource.RLIM_INFINITY else min(wanted, files_max // FILES_DIVISOR)


@attrs.define(eq=False)
class UnauthenticatedLimits:
    """Counts connections whose sender has not authenticated, and the bytes they have sent."""

    clock: Callable[[], float] = time.monotonic
    connections_max: int = attrs.field(default=PENDING_MAX, converter=_within_open_files)
    bytes_max: int = PENDING_BYTES_MAX
    bytes_held: int = 0
    pending: dict[PendingConnection, None] = attrs.Factory(dict)
    """All unauthenticated connections, the oldest first."""
    networks: dict[str, dict[PendingConnection, None]] = attrs.Factory(dict)
    silent: dict[PendingConnection, None] = attrs.Factory(dict)
    """Those without a whole TLS hello, which a client sends as soon as it is connected."""
    silent_networks: dict[str, dict[PendingConnection, None]] = attrs.Factory(dict)
    refused: int = 0
    """Connections since the start that were refused, for the metrics."""
    evicted: int = 0
    """Connections since the start that were evicted, for the metrics."""

    @property
    def connections(self) -> int:
        return len(self.pending)

    @property
    def per_network_max(self) -> int:
        """The most connections of one network."""
        return self.connections_max - self.connections_max // OTHERS_DIVISOR

    def enter(self, address: str, cut: Callable[[str], None]) -> PendingConnection:
        """Admit a connection; raises TooManyPendingError.

        Above a limit another connection is evicted: its `cut` is called with the reason. The candidate is the
        oldest one without a TLS hello. If all have sent theirs, it is the oldest one, once it is UNHURRIED_S
        old. So a flood of silent connections cannot keep out other clients of the same address, such as the
        agents behind one gateway.

        Above the limit for all networks, a network with more connections than the newcomer's loses one at
        once. So a flood from some addresses keeps out no client of another address. An exception: if the
        connections without a hello outnumber those of any network, and the oldest of them is UNHURRIED_S old,
        that one is evicted.

        If no network has more connections than the newcomer's, the newcomer evicts the oldest one without a
        hello of its own network. So two flooding addresses cannot cut another client before its hello
        arrives.
        """
        network = network_of(address)
        there = self.networks.get(network, {})
        if len(there) >= self.per_network_max:
            why = f"{len(there)} connections of {network} have not authenticated, the limit"
            self._oldest(self.silent_networks.get(network, {}), there, why).evict(why)
        elif self.connections >= self.connections_max:
            why = f"{self.connections} connections wait to authenticate, the limit"
            fullest = max(self.networks.values(), key=len)
            # A flood from many addresses may have fewer connections per address than one gateway has agents.
            crowd = self.silent if len(self.silent) > len(fullest) else {}
            if crowd and self.clock() - next(iter(crowd)).since >= UNHURRIED_S:
                next(iter(crowd)).evict(why)
            elif len(fullest) > len(there) + 1:
                silent = self.silent_networks.get(next(iter(fullest)).network)
                # Among those with a hello, the newest: the oldest is nearest to authenticating.
                ended = next(iter(silent)) if silent else next(reversed(fullest))
                ended.evict(f"{why}, {len(fullest)} of them of {ended.network}")
            else:
                silent = crowd or self.silent_networks.get(network, {})
                self._oldest(silent, self.pending, why).evict(why)
        pending = PendingConnection(self, network, cut, self.clock())
        self.pending[pending] = self.silent[pending] = None
        for at in (self.networks, self.silent_networks):
            at.setdefault(network, {})[pending] = None
        return pending

    def _oldest(
        self, silent: dict[PendingConnection, None], candidates: dict[PendingConnection, None], why: str
    ) -> PendingConnection:
        if silent:
            return next(iter(silent))
        oldest = next(iter(candidates))
        if self.clock() - oldest.since < UNHURRIED_S:
            self.refused += 1
            raise TooManyPendingError(why)
        return oldest


def network_of(address: str) -> str:
    """The network that an address counts for: itself for IPv4, one subscriber's prefix for IPv6."""
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
class PendingConnection:
    """One unauthenticated connection's share of the limits, until `release`."""

    limits: UnauthenticatedLimits
    network: str
    cut: Callable[[str], None]
    since: float
    bytes_held: int = 0
    counted: bool = True
    request_scope: trio.CancelScope | None = None
    """The scope around its request, which may wait where it would not notice the cut."""

    def hello_received(self) -> None:
        """Note that the whole TLS hello has been received."""
        if self in self.limits.silent:
            del self.limits.silent[self]
            _remove(self, self.limits.silent_networks)

    def release(self) -> None:
        """Stop counting this connection."""
        if self.counted:
            self.counted = False
            self.hello_received()
            del self.limits.pending[self]
            _remove(self, self.limits.networks)
            self.release_bytes()

    def evict(self, why: str) -> None:
        """Evict this connection in favour of another one."""
        self.limits.evicted += 1
        self.release()
        if self.request_scope is not None:
            self.request_scope.cancel()
        self.cut(why)

    def release_bytes(self) -> None:
        """Release the bytes received so far: the request is answered, and they are not held any more."""
        self.limits.bytes_held -= self.bytes_held
        self.bytes_held = 0

    def charge(self, size: int) -> None:
        """Charge received bytes; raises BrokenResourceError when all together exceed the limit."""
        self.bytes_held += size
        self.limits.bytes_held += size
        if self.limits.bytes_held > self.limits.bytes_max and self.bytes_held > PENDING_BYTES_FREE:
            raise trio.BrokenResourceError("too many bytes of connections that have not authenticated")


def _remove(pending: PendingConnection, networks: dict[str, dict[PendingConnection, None]]) -> None:
    there = networks[pending.network]
    del there[pending]
    if not there:
        del networks[pending.network]


class MeteredStream(trio.abc.Stream):
    """A TLS stream that counts received bytes until the peer has authenticated.

    It stays in the path afterwards: an extra call each way costs a request 0.16 µs.
    """

    __slots__ = ("_pending", "_stream")

    def __init__(self, stream: TLSStream, pending: PendingConnection) -> None:
        self._stream = stream
        self._pending = pending

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """See trio; raises BrokenResourceError when unauthenticated connections hold too many bytes."""
        data = await self._stream.receive_some(max_bytes)
        if self._pending.counted:
            self._pending.charge(len(data))
        return data

    @property
    def ended(self) -> bool:
        """See TLSStream."""
        return self._stream.ended

    @property
    def has_unread(self) -> bool:
        """See TLSStream."""
        return self._stream.has_unread

    def receive_nowait(self, at_once: int) -> bytes | None:
        """See TLSStream; raises BrokenResourceError as receive_some does."""
        data = self._stream.receive_nowait(at_once)
        if data and self._pending.counted:
            self._pending.charge(len(data))
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
