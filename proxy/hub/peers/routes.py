"""Routes: which relays a hub has, as it announces them to each other hub over their link.

Each side opens one stream of the kind `routes` and sends lines of JSON on it: `here` for a session that it
has, also when something of it has changed, and `gone` for one that has ended. All that it has come first,
then what changes. A hub announces its own sessions only, never those of other hubs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from types import NoneType
from typing import Final, NoReturn, Protocol, TypeVar

import attrs
import trio

from proxy.hub.peers.link import ROUTES, LinkDown, PeerLink, read_object
from proxy.hub.peers.streams import PeerStream
from tunnel import Stream, StreamReset
from tunnel.net.waker import Waker

# How often streams' counts are announced, and other changes without a call of `changed`. A round in which
# nothing has changed takes 3 ms of CPU with 1,000 sessions and two links.
TELL_EVERY_S: Final = 1.0
# Between two rounds. At a hub's start a thousand relays come within seconds, and each round looks at all.
ROUND_S: Final = 0.05
# Lines are sent in pieces of about this size.
PIECE_BYTES: Final = 16 * 1024
# Of a line, which has some 400 bytes: an address and a version come from the relay.
LINE_BYTES_MAX: Final = 16 * 1024
# Routes of one hub: ten times the tunnels that one hub is measured with.
ROUTES_MAX: Final = 50_000

_Value = TypeVar("_Value")


@attrs.frozen
class Route:
    """A relay's session at another hub."""

    session: str
    """Its id, which is the same at all hubs; an audit event names it."""
    cluster: str
    """The cluster's id."""
    instance: str
    boot: str
    """The relay's boot, not the hub's."""
    version: str
    kid: str
    """The id of the relay key that it authenticated with."""
    address: str
    connected_at: float
    """Epoch seconds."""
    streams: int
    """Streams open on the session, at most a second old."""
    leaving: bool
    """It drains, or its hub leaves: the last choice for a new call."""
    away: bool
    """It is silent, or has lost its connection."""
    api_server: bool | None = None
    """Whether its API server answered its last probe; None if the relay does not say."""


class RouteHandle(Protocol):
    """What stands here for a route of another hub: hop's PeerRelay in the Registry."""

    def update(self, route: Route) -> None:
        """Take what has changed of the route; its session is the same."""

    def away(self) -> None:
        """The link has lost its connection, and is dialled again."""

    def back(self) -> None:
        """The link has another connection."""

    def end(self) -> None:
        """The session has ended, or its hub cannot be reached: remove the relay from the Registry."""


RouteFactory = Callable[[PeerLink, Route], RouteHandle]
"""Registers a relay for a new route. The link is the one to open its streams on."""

LocalRoutes = Callable[[], Iterable[Route]]
"""Returns the sessions that this hub has."""


class BadRoutesError(ValueError):
    """The other hub sent lines that are none."""


# --- this hub's routes ---


@attrs.define(eq=False)
class Announcer:
    """Announces this hub's sessions to each linked hub."""

    local: LocalRoutes
    _leaving: bool = False
    """This hub leaves, and so do all its routes."""
    _tellings: dict[PeerLink, _Telling] = attrs.Factory(dict)
    _changed: bool = False
    _waker: Waker = attrs.Factory(lambda: Waker("one task announces routes"))

    def attach(self, link: PeerLink) -> None:
        """Begin to announce to a linked hub."""
        self._tellings[link] = _Telling(link, self.changed)
        self.changed()

    def detach(self, link: PeerLink) -> None:
        """Announce nothing more over this link."""
        if (telling := self._tellings.pop(link, None)) is not None:
            telling.end()

    def changed(self) -> None:
        """Announce soon what has changed."""
        self._changed = True
        self._waker.unpark()

    def leave(self) -> None:
        """Announce that this hub leaves."""
        self._leaving = True
        # In this pass: the relays learn of it next, and their calls come back through the others.
        self._tell_all()

    async def run(self) -> NoReturn:
        """Announce, until cancelled."""
        while True:
            self._changed = False
            self._tell_all()
            await trio.sleep(ROUND_S)
            if not self._changed:
                with trio.move_on_after(TELL_EVERY_S - ROUND_S):
                    await self._waker.park()

    def _tell_all(self) -> None:
        if not self._tellings:
            return
        now = {route.session: route for route in self.local()}
        if self._leaving:
            now = {session: attrs.evolve(route, leaving=True) for session, route in now.items()}
        for telling in self._tellings.values():
            telling.tell(now)


@attrs.define(eq=False)
class _Telling:
    """The routes that were announced to one linked hub."""

    link: PeerLink
    has_room: Callable[[], None]
    _stream: Stream | None = None
    _clogged: bool = False
    """The other hub reads slowly: changes wait, and are announced by the state at that time."""
    _said: dict[str, Route] = attrs.Factory(dict)

    def tell(self, now: dict[str, Route]) -> None:
        """Announce what has changed, as far as there is room."""
        stream = self._stream
        if stream is not None and stream.broken:
            # Evicted for lack of memory. The other hub has dropped the routes, and gets all of them again.
            stream.close_nowait()
            stream = self._stream = None
        try:
            if stream is None:
                stream = self._stream = self.link.open(ROUTES)
                self._clogged = False
                self._said.clear()
            if not self._clogged:
                self._send(stream, self._lines(now))
        except (LinkDown, StreamReset):
            # The next round finds the stream broken, or the link gone.
            return

    def end(self) -> None:
        """Leave the stream."""
        if self._stream is not None:
            self._stream.close_nowait()

    def _send(self, stream: Stream, lines: Iterator[bytes]) -> None:
        piece = bytearray()
        for line in lines:
            piece += line
            if len(piece) >= PIECE_BYTES:
                if not self._write(stream, piece):
                    return
                piece = bytearray()
        if piece:
            self._write(stream, piece)

    def _write(self, stream: Stream, piece: bytearray) -> bool:
        room = stream.write(bytes(piece))
        if not room:
            self._clogged = True
            stream.when_room(self._has_room)
        return room

    def _has_room(self) -> None:
        self._clogged = False
        self.has_room()

    def _lines(self, now: dict[str, Route]) -> Iterator[bytes]:
        """Yield the lines that are due. A line counts as sent once the next one is requested."""
        said = self._said
        for session in [each for each in said if each not in now]:
            del said[session]
            yield _line({"is": "gone", "session": session})
        for session, route in now.items():
            if said.get(session) != route:
                said[session] = route
                yield _line({"is": "here", **attrs.asdict(route)})


def _line(fields: dict[str, object]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode("ascii") + b"\n"


# --- the other hubs' routes ---


@attrs.define(eq=False)
class RouteTable:
    """The other hubs' routes, by the link that they came over."""

    make: RouteFactory
    _links: dict[PeerLink, dict[str, RouteHandle]] = attrs.Factory(dict)
    """By session; the links in the order in which they began."""

    def attach(self, link: PeerLink) -> None:
        """A link has begun."""
        self._links[link] = {}

    def lose(self, link: PeerLink) -> None:
        """The link has ended: so have its routes."""
        self.forget(link)
        self._links.pop(link, None)

    def away(self, link: PeerLink) -> None:
        """The link has lost its connection."""
        for handle in self._links.get(link, {}).values():
            handle.away()

    def back(self, link: PeerLink) -> None:
        """The link has another connection."""
        for handle in self._links.get(link, {}).values():
            handle.back()

    def forget(self, link: PeerLink) -> None:
        """Drop all routes of a link, whose hub announces them again from the first."""
        handles = self._links.get(link, {})
        while handles:
            handles.popitem()[1].end()

    async def receive(self, link: PeerLink, stream: Stream) -> None:
        """Take the lines of a stream until it ends; raises BadRoutesError."""
        rest = b""
        async with PeerStream(stream) as received:
            try:
                while data := await received.receive_some():
                    *lines, rest = (rest + data).split(b"\n")
                    if len(rest) > LINE_BYTES_MAX:
                        raise BadRoutesError(f"a line of more than {LINE_BYTES_MAX} bytes")
                    for line in lines:
                        self._take(link, line)
            except StreamReset:
                pass
            finally:
                self.forget(link)

    def _take(self, link: PeerLink, line: bytes) -> None:
        try:
            fields = read_object(line)
        except ValueError as error:
            raise BadRoutesError(str(error)) from error
        # Words of a later version are ignored, as its unknown keys are.
        match fields.get("is"):
            case "here":
                self._here(link, _route_in(fields))
            case "gone":
                self._gone(link, _field(fields, "session", str))

    def _here(self, link: PeerLink, route: Route) -> None:
        handles = self._links.get(link)
        if handles is None:
            # The link has ended in this pass.
            return
        if len(handles) >= ROUTES_MAX and route.session not in handles:
            raise BadRoutesError(f"more than {ROUTES_MAX} routes")
        if (handle := handles.get(route.session)) is not None:
            handle.update(route)
        elif not self._is_on_newer(link, route.session):
            self._take_from_older(link, route.session)
            handles[route.session] = self.make(link, route)

    def _gone(self, link: PeerLink, session: str) -> None:
        handle = self._links.get(link, {}).pop(session, None)
        if handle is not None:
            handle.end()

    def _is_on_newer(self, link: PeerLink, session: str) -> bool:
        links = [each for each in self._links if each.member.boot == link.member.boot]
        return any(session in self._links[each] for each in links[links.index(link) + 1 :])

    def _take_from_older(self, link: PeerLink, session: str) -> None:
        """End the route on the link that this one replaces."""
        for each, handles in self._links.items():
            if each is not link and each.member.boot == link.member.boot and session in handles:
                handles.pop(session).end()


def _route_in(fields: dict[str, object]) -> Route:
    return Route(
        _field(fields, "session", str),
        _field(fields, "cluster", str),
        _field(fields, "instance", str),
        _field(fields, "boot", str),
        _field(fields, "version", str),
        _field(fields, "kid", str),
        _field(fields, "address", str),
        _time(_field(fields, "connected_at", (int, float))),
        _field(fields, "streams", int),
        _field(fields, "leaving", bool),
        _field(fields, "away", bool),
        _field(fields, "api_server", (bool, NoneType)),
    )


def _time(stated: float) -> float:
    try:
        return float(stated)
    except OverflowError as error:
        raise BadRoutesError("a time that is none") from error


def _field(fields: dict[str, object], name: str, kind: type[_Value] | tuple[type[_Value], ...]) -> _Value:
    value = fields.get(name)
    if not isinstance(value, kind):
        raise BadRoutesError(f'a route without a fitting "{name}"')
    return value
