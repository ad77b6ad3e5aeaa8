"""`/v1/tunnel`: opens the session of an authenticated relay, and registers it until the session ends."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import NoReturn, TypeVar

import attrs
import trio

from audit.record import Kind
from audit.recording.recorder import Recorder
from auth.hubclock import issue_time
from auth.principal import Principal
from auth.tokens import HelloClaims, issue_relay
from proxy.exchange.groups import RELAY_GROUP
from proxy.exchange.server import ServerConnection
from proxy.hub.authorize.events import Trail
from proxy.hub.home.config import HubConfig
from proxy.hub.relays.contexts import TokenContexts
from proxy.hub.relays.dial_auth import RelayDial
from proxy.hub.relays.pins import Pins, read_statement, wrong_cluster
from proxy.hub.relays.registry import LiveRelay, Registry, TooManyInstancesError
from proxy.hub.relays.relay_limit import LocalRelayLimit, RelayLimit, RelayRefusedError
from proxy.hub.relays.shared_limit import SharedRelayLimit, SlotUnavailableError
from proxy.hub.relays.token_clock import TokenClock
from proxy.hub.store.directory import Directory
from proxy.hub.store.engines.errors import StoreUnavailableError
from proxy.hub.store.entities import Cluster
from proxy.hub.store.secrets.signing_keys import SigningKeys
from proxy.hub.store.store import Store
from tunnel import (
    RESUME,
    RESUME_TTL_S,
    CloseCode,
    Context,
    Hello,
    Memory,
    Rejected,
    RemoteProtocolError,
    Role,
    Session,
    SessionClosed,
    Settings,
    Transport,
    TransportClosed,
    Welcome,
    hear_hello,
    open_session,
    read_hello,
)
from tunnel.net.readiness import Readiness
from tunnel.net.waker import Waker
from tunnel.websocket.upgrade import AT_HEADER, WebSocketRefused, accept_websocket

# A relay opens no streams and sends few contexts, so the hub keeps no memory for them. WELCOME cannot
# announce a limit of zero streams. A few contexts are allowed for the sake of later relay versions.
_OF_RELAYS = Settings(max_streams=1, accept_queue_max=0, contexts_max=16)

# Reasons for a WebSocket Close: 123 bytes at most, since a longer one is cut.
CLUSTER_REMOVED = "its cluster was removed: stop this relay, or apply what `hawse admin cluster add` prints"
KEY_REPLACED = "its key was replaced: apply the manifests that `hawse admin cluster key` has printed"
_NO_WAY_BACK = "the tunnel was lost, and a hub that is stopping resumes no session"

_Value = TypeVar("_Value")

# During a handover, this many relays are sent GOAWAY at once, then so many per second: below the rate that
# the next hub accepts.
GOAWAYS_AT_ONCE = 100
GOAWAYS_PER_S = 150

_log = logging.getLogger("hawse.hub.relays")


@attrs.define(eq=False)
class RelayEndpoint:
    """Serves the relays' WebSockets."""

    config: HubConfig
    directory: Directory
    registry: Registry
    keys: Callable[[], SigningKeys]
    recorder: Recorder
    trail: Trail
    memory: Memory
    boot: str
    software: str
    new_id: Callable[[], str]
    shared_limit: SharedRelayLimit | None = None
    """The limit of relays over all hubs; None for a hub that is alone."""
    hub: str = ""
    """This hub's id among those of its directory; "" for a hub that is alone."""
    relay_limit: RelayLimit = attrs.field(init=False)
    _farewell: Callable[[Session, int], None] | None = None
    """Sends GOAWAY to a session once the hub leaves; the number is of sessions that got theirs before."""
    _replaced: bool = False
    _resumes: bool = True
    """Whether dials lead here, so that a session may wait for its relay."""
    clock: TokenClock = attrs.Factory(TokenClock)
    """The clock that dates relay tokens."""
    _pins: Pins = attrs.field(init=False)
    _restated: dict[LiveRelay, None] = attrs.Factory(dict)
    """Relays that stated another cluster after they connected; `run` checks them."""
    _runner: Waker = attrs.Factory(lambda: Waker("one task pins what relays state"))

    @relay_limit.default
    def _relay_limit_of_config(self) -> RelayLimit:
        limit = self.config.limits.relays_per_cluster
        return self.shared_limit or LocalRelayLimit(self.registry, limit, self._note)

    @_pins.default
    def _pins_of_directory(self) -> Pins:
        return Pins(self.directory, self.recorder, self.trail)

    async def run(self) -> NoReturn:
        """Check the statements that relays send after they have connected, until cancelled."""
        while True:
            while self._restated:
                relay = next(iter(self._restated))
                del self._restated[relay]
                try:
                    await self._pins.check(relay, relay.statement)
                except RelayRefusedError as error:
                    self._refuse(relay, error)
            await self._runner.park()

    def end_revoked(self) -> None:
        """End the sessions of removed clusters, replaced keys, and relays in a wrong Kubernetes cluster."""
        snapshot = self.directory.current
        for relay in self.registry.relays():
            if relay.cluster_id not in snapshot.clusters_by_id:
                relay.end_with(CLUSTER_REMOVED, CloseCode.FORBIDDEN)
            elif snapshot.find_relay_key(relay.kid) is None:
                relay.end_with(KEY_REPLACED, CloseCode.AUTH)
            elif not relay.session.closed and (
                refusal := wrong_cluster(snapshot.clusters_by_id[relay.cluster_id], relay.statement)
            ):
                self._refuse(relay, refusal)

    def leave(self, grace_s: float, *, replaced: bool = False, resumes: bool = False) -> None:
        """Send GOAWAY to every relay, now and as others connect.

        The relays dial again at once. If another hub takes over (`replaced`), it records their connections,
        and this hub records none. Large fleets dial below the rate that the next hub accepts. Unless dials
        still lead here (`resumes`), a session that loses its connection ends: it cannot be resumed.
        """
        self._replaced = replaced
        self._resumes = resumes

        def say(session: Session, before: int) -> None:
            late = max(0, before - GOAWAYS_AT_ONCE) if replaced or resumes else 0
            session.go_away(
                code=CloseCode.DRAINING,
                drain_ms=int(grace_s * 1000),
                retry_after_ms=late * 1000 // GOAWAYS_PER_S,
                reason="another hub takes over" if replaced else "the hub stops",
            )
            if not resumes:
                session.forgo_resumption(_NO_WAY_BACK)

        self._farewell = say
        for before, relay in enumerate(self.registry.relays()):
            say(relay.session, before)

    async def serve(
        self, connection: ServerConnection, stream: trio.abc.Stream, dial: RelayDial, readiness: Readiness
    ) -> None:
        """Open a session on the connection, on `stream`, and register it until it ends.

        Settles the dial's arrival when the session has begun. `readiness` notices the agents' requests that
        are served without a task. When cancelled, the session sends GOAWAY and its streams are reset.
        """
        raw_head = connection.raw_head
        _, leftover = connection.detach()
        try:
            async with accept_websocket(
                stream,
                request_head=raw_head,
                leftover=leftover,
                headers=signature_of(dial.answers_for or self.hub),
            ) as transport:
                greeting = await hear_hello(transport)
                if not await self._resume(transport, greeting, dial):
                    await self._begin(transport, greeting, dial, readiness)
        except (WebSocketRefused, Rejected, SessionClosed, RemoteProtocolError, TransportClosed) as error:
            cluster = dial.cluster.name
            _log.warning(
                "a relay of cluster %s, from %s, got no session: %s",
                cluster, dial.address, error, extra={"cluster": cluster},
            )  # fmt: skip

    async def _resume(self, transport: Transport, greeting: bytes, dial: RelayDial) -> bool:
        """Resume the session that the relay names over this transport, if it belongs to the relay and can
        resume.

        Returns once the transport is lost, or the session has ended.
        """
        hello = read_hello(greeting)
        if hello.resume is None:
            return False
        relay = self.registry.find(dial.cluster.id, dial.claims.instance, hello.resume.session_id)
        if relay is None or relay.kid != dial.claims.kid:
            return False
        if relay.session.is_outdated(hello.resume):
            return False
        if not relay.session.may_resume(hello.resume):
            relay.session.abandon(
                "the relay's state does not match this hub's" if self._resumes else _NO_WAY_BACK
            )
            return False
        _log.info(
            "relay %s of cluster %s has resumed its session, from %s",
            relay.instance, dial.cluster.name, dial.address, extra={"cluster": dial.cluster.name},
        )  # fmt: skip
        relay.address = dial.address
        dial.arrival.settle()
        await relay.session.resume(transport, greeting)
        return True

    async def _begin(
        self, transport: Transport, greeting: bytes, dial: RelayDial, readiness: Readiness
    ) -> None:
        """Open a session, and register it until it ends, across its transports."""
        async with open_session(
            transport,
            Role.LISTENER,
            greeting=greeting,
            answer_hello=partial(self._welcome, dial),
            settings=attrs.evolve(_OF_RELAYS, ping_s=self.config.tunnel.ping_s),
            memory=self.memory,
        ) as session:
            dial.arrival.settle()
            session.flush_after(readiness)
            await self._keep(session, dial.claims, dial.cluster, dial.address)

    def _welcome(self, dial: RelayDial, hello: Hello) -> Welcome:
        if hello.instance != dial.claims.instance or hello.cluster != dial.claims.cluster_id:
            raise Rejected(
                CloseCode.FORBIDDEN,
                f"the hello names another relay than the token for cluster {dial.cluster.name}",
            )
        if hello.resume is not None:
            # Do not open a fresh session: it would supersede another session that the relay may have here.
            raise Rejected(
                CloseCode.RESUME_UNKNOWN,
                "this hub does not have that session, or no longer has it"
                if self._resumes
                else "this hub is stopping, and resumes no session",
            )
        if why := self.directory.refusal():
            # The snapshot has become too old during the dial.
            raise Rejected(CloseCode.DRAINING, why)
        if dial.only_resumes:
            raise Rejected(CloseCode.RESUME_UNKNOWN, "this dial resumes a session, and begins none")
        if not dial.recorded:
            raise Rejected(CloseCode.SLOW_DOWN, "the use of the relay's token is not recorded: try again")
        resume = self.config.tunnel.resume
        return Welcome(
            features=(RESUME,) if resume else (),
            resume_ttl_s=int(RESUME_TTL_S) if resume else 0,
            session_id=self.new_id(),
            replica=self.hub,
            tunnels=self.config.tunnels_per_relay,
            boot_id=self.boot,
            software=self.software,
            server_time_ms=int(time.time() * 1000),
        )

    async def _keep(self, session: Session, claims: HelloClaims, cluster: Cluster, address: str) -> None:
        """Keep the session's relay in the registry until the session ends."""
        hello = session.peer
        assert isinstance(hello, Hello)
        relay = self._live_relay(session, hello, claims, cluster, address)
        # A relay that does not know the hub's time yet refuses all tokens.
        relay.announce_keys()
        try:
            relay.statement = read_statement(hello.statement)
            session.on_context(partial(self._update_statement, relay))
            # Before the relay can displace another one.
            await self._pins.check(relay, relay.statement)
            async with self.relay_limit.admitted(relay):
                with self.registry.registered(relay) as superseded:
                    if superseded is not None:
                        superseded.end_with("superseded by a newer connection of the same relay")
                    await self._stay(relay)
        except (TooManyInstancesError, RelayRefusedError) as error:
            self._refuse(relay, error)
        except SlotUnavailableError as error:
            relay.end_with(str(error), CloseCode.SLOW_DOWN)
        finally:
            self._restated.pop(relay, None)

    def _live_relay(
        self, session: Session, hello: Hello, claims: HelloClaims, cluster: Cluster, address: str
    ) -> LiveRelay:
        """Make the relay of a session, with what mints the tokens for it."""

        def mint(principal: Principal) -> str:
            return issue_relay(
                self.keys().active,
                issuer=self.config.public_url,
                cluster_id=cluster.id,
                principal=principal,
                session=session.session_id,
                jti=self.new_id(),
                now=self.clock(),
                nonce=hello.nonce,
            )

        def tell_time() -> str:
            return issue_time(
                self.keys().active,
                issuer=self.config.public_url,
                cluster_id=cluster.id,
                nonce=hello.nonce,
                hub=self.boot,
                now=self.clock(),
            )

        return LiveRelay(
            cluster.id,
            cluster.name,
            claims.instance,
            hello.boot_id,
            hello.software,
            address,
            time.time(),
            session,
            # A relay from before nonces would read the time as a key statement, and reject it.
            TokenContexts(session, mint, lambda: self.keys().succession, tell_time if hello.nonce else None),
            claims.kid,
        )

    async def _stay(self, relay: LiveRelay) -> None:
        """Record a registered relay's connection, and its end once the session has ended."""
        # A revocation during the dial could not end this session.
        self.end_revoked()
        if self._farewell is not None:
            self._farewell(relay.session, 0)
        event = partial(self._pins.event, relay)
        _log.info(
            "relay %s of cluster %s is here, from %s",
            relay.instance, relay.cluster_name, relay.address, extra={"cluster": relay.cluster_name},
        )  # fmt: skip
        self.recorder.complete(event(Kind.RELAY_CONNECTED))
        # Keys may have changed while the other relays were probed.
        relay.announce_keys()
        # The reason if this task is cancelled, or fails.
        reason = "ended by the hub"
        try:
            if news := await self.relay_limit.connected(relay):
                _log.info(
                    "relay %s of cluster %s: %s",
                    relay.instance, relay.cluster_name, news, extra={"cluster": relay.cluster_name},
                )  # fmt: skip
                self.recorder.complete(event(Kind.RELAY_NEW, note=news))
            reason = await relay.session.wait_closed()
        finally:
            _log.info(
                "relay %s of cluster %s has disconnected: %s",
                relay.instance, relay.cluster_name, reason, extra={"cluster": relay.cluster_name},
            )  # fmt: skip
            self.recorder.complete(event(Kind.RELAY_DISCONNECTED, note=reason))

    def _update_statement(self, relay: LiveRelay, context: Context) -> None:
        """Take a relay's new statement."""
        if context.group != RELAY_GROUP:
            return
        before = relay.statement.cluster_uid
        try:
            relay.statement = read_statement(context.payload.decode("ascii", "replace"))
        except RelayRefusedError as error:
            self._refuse(relay, error)
            return
        if relay.statement.cluster_uid != before:
            self._restated[relay] = None
            self._runner.unpark()

    def _refuse(self, relay: LiveRelay, error: Exception) -> None:
        """End the session of a refused relay, and record the refusal."""
        self._pins.refused(relay, error)
        relay.end_with(str(error), CloseCode.FORBIDDEN)

    async def _note(self, write: Callable[[Store], _Value]) -> _Value | None:
        """Record that a relay connected or disconnected; a failed write does not end the tunnel."""
        if self._replaced:
            return None
        try:
            return await self.directory.read(write)
        except StoreUnavailableError as error:
            _log.warning("cannot record that a relay connected or disconnected: %s", error)
            return None


def signature_of(hub: str) -> tuple[tuple[bytes, bytes], ...]:
    """Return the header that names a hub; none for a hub that is alone ("")."""
    return ((AT_HEADER, hub.encode("ascii")),) if hub else ()
