"""The relay as a whole: its parts, the order in which they open, their owners, and how the relay stops.

From the outside in: the listener for probes, the pool of connections to the API server, then the link to the
hub. The link is a tunnel that this relay dials, or a listener that the hub dials. The listener for probes is
open from the first moment to the last: by it Kubernetes distinguishes a start and a stop from a failure.
Outside a cluster it may have to wait for the port until a previous relay has stopped.

On SIGTERM the relay becomes unready. The hub is asked to open no more requests here, and uses another
replica. Open requests may continue for the configured grace period. They are cut after it, or at a second
SIGTERM.

What only some relays need is imported where it is used: guardrails, and the listener of direct mode.
"""

from __future__ import annotations

import logging
import secrets
import signal
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import attrs
import trio

from auth.hubclock import HubClocks
from auth.hubtime import seconds_of
from auth.key_rotation import TrustedKeys
from auth.tokens import issue_hello
from proxy.exchange.inflight_memory import HeldUp
from proxy.kubernetes.statement import Statement
from proxy.listener.accept import AddressInUseError, open_listeners, serve_connections
from proxy.process.config import Address
from proxy.process.files import warn_of_expiry, watch_certificate
from proxy.process.lifecycle.drain import PLAIN_S
from proxy.process.lifecycle.filelimit import raise_file_limit
from proxy.process.lifecycle.signals import stop_signals
from proxy.process.lifecycle.startup import settle_later
from proxy.process.memory.malloc_trim import trim_when_idle
from proxy.process.metrics.expiry import watch_expiry
from proxy.process.plural import counted
from proxy.process.version import VERSION
from proxy.relay.config import DirectListener, RelayConfig, TunnelDial
from proxy.relay.exchange import Upstream
from proxy.relay.health import HealthServer
from proxy.relay.metrics import Counts, Figures
from proxy.relay.pool import open_pool
from proxy.relay.probe import Probe
from proxy.relay.service_account import from_kubeconfig, in_cluster
from proxy.relay.tunnelled import ClockFault, Stated, serve_session
from proxy.relay.verify import Verifier
from tunnel import NONCE_BYTES, RESUME, CloseCode, Hello, Memory, Session, Settings
from tunnel.dialing.dial import DialerConfig
from tunnel.dialing.dialer import run_dialer
from tunnel.net.connect import client_context
from tunnel.net.tcp import TCPStream

if TYPE_CHECKING:
    from proxy.relay.direct import DirectServer

log = logging.getLogger("hawse.relay")

# A stopping relay keeps its health port until its last stream has ended, up to `stop.grace_s`.
# A relay that is started meanwhile with the same configuration retries the port this often.
HEALTH_LOOK_S = 1.0


class RelayError(Exception):
    """The relay cannot start with its configuration."""


@attrs.define
class State:
    """The state of the link to the hub and of the API server, for the probes and the shutdown."""

    probe: Probe
    counts: Counts = attrs.Factory(Counts)
    sessions: list[Session] = attrs.Factory(list)
    """The current sessions, each with another hub, and the draining ones after a GOAWAY."""
    trusted: dict[Session, ClockFault] = attrs.Factory(dict)
    """The sessions in which the hub's time is known. No request is served in the others."""
    dialing: trio.CancelScope = attrs.Factory(trio.CancelScope)
    """Cancel it, and no further session is dialled."""
    accepting: trio.CancelScope | None = None
    """Direct mode: cancel it, and the listener accepts no more connections."""
    server: DirectServer | None = None
    stopping: bool = False

    @property
    def tunnels(self) -> dict[str, int]:
        """The number of tunnels by state."""
        numbers = {"up": 0, "away": 0, "leaving": 0}
        for session in self.sessions:
            if not session.closed:
                numbers["leaving" if session.draining else "away" if session.detached else "up"] += 1
        return numbers

    @property
    def unready(self) -> str:
        """Why a new request could not reach this relay and the API server; empty if it could.

        A single failed probe counts: the kubelet itself needs two failures (proxy.kubernetes.manifests).
        """
        if self.stopping:
            return "the relay is stopping"
        if self.accepting is None and (fault := self._tunnel_fault()):
            return fault
        return "" if self.probe.answers else "the API server does not answer"

    def _tunnel_fault(self) -> str:
        up = [
            clock_fault
            for session, clock_fault in self.trusted.items()
            if not (session.closed or session.detached)
        ]
        # Each session has its own hub, and so its own clock.
        faults = {clock_fault() for clock_fault in up} or {"no hub"}
        return "" if "" in faults else min(faults)


async def run_relay(config: RelayConfig) -> int:
    """Run the relay until SIGTERM or SIGINT; returns the exit status.

    Raises RelayError, ClusterAccessError or FileError for an unusable configuration, and OSError when it
    cannot listen. Some come within exception groups.
    """
    raise_file_limit()
    access = from_kubeconfig(config.kubeconfig) if config.kubeconfig is not None else in_cluster()
    state = State(Probe(access))
    # For the windows, heads and ledgers of all streams (PROTOCOL.md, "Memory"), and for the memory of calls.
    memory = Memory(config.memory_bytes)
    with stop_signals() as signals:
        async with trio.open_nursery() as outermost:
            outermost.start_soon(trim_when_idle)
            outermost.start_soon(settle_later)
            if config.health_listen is not None:
                health = HealthServer(lambda: state.unready, _metrics(config, state, memory))
                await _listen_for_probes(config.health_listen, health, outermost)
            async with open_pool(access) as pool:
                upstream = Upstream(pool, config.guardrails, state.counts)
                log.info("the API server is %s", access.authority.decode("ascii"))
                outermost.start_soon(state.probe.run)
                async with _open_way(config, upstream, state, memory):
                    async for number in signals:
                        log.info("%s: stopping", signal.Signals(number).name)
                        break
                    await _drain(state, upstream, config.stop_grace_s, signals)
            outermost.cancel_scope.cancel()
    log.info("the relay has stopped")
    return signals.exit_status


def _metrics(config: RelayConfig, state: State, memory: Memory) -> Callable[[], str]:
    """Return what renders the metrics; raises FileError."""
    way = config.way
    expires_at = watch_expiry(way.certificate) if isinstance(way, DirectListener) else None

    def render() -> str:
        figures = Figures(
            memory,
            state.counts,
            state.probe.answers,
            state.probe.took_s,
            tunnels=state.tunnels if isinstance(way, TunnelDial) else {},
            guardrails=None if config.guardrails is None else config.guardrails.hash,
            expires_at=expires_at,
        )
        return str(figures)

    return render


@asynccontextmanager
async def _open_way(
    config: RelayConfig, upstream: Upstream, state: State, memory: Memory
) -> AsyncIterator[None]:
    """Keep the link to the hub open for the block. Requests still open at its end are cut."""
    underway = upstream.underway
    async with trio.open_nursery() as nursery:
        nursery.start_soon(HeldUp(memory, underway, underway.end_for_memory).run)
        if config.guardrails is not None:
            from proxy.relay.guarding import run_guardrails

            nursery.start_soon(run_guardrails, config.guardrails, upstream)
        match config.way:
            case TunnelDial():
                dialer = _dialer_config(config, config.way, memory, state.probe)
                nursery.start_soon(_run_tunnel, dialer, config, upstream, state)
            case DirectListener():
                await _open_listener(nursery, config, config.way, upstream, state, memory)
        yield
        nursery.cancel_scope.cancel()


def _dialer_config(config: RelayConfig, way: TunnelDial, memory: Memory, probe: Probe) -> DialerConfig:
    """Build the dialer's configuration; raises RelayError."""
    boot_id = uuid.uuid4().hex
    software = f"hawse/{VERSION}"

    def authorization(hub_time: str) -> str:
        return issue_hello(
            way.key,
            cluster_id=config.cluster_id,
            hub_url=config.hub_url,
            instance=config.instance,
            jti=uuid.uuid4().hex,
            now=seconds_of(hub_time) or time.time(),
            hub_time=hub_time,
        )

    def hello() -> Hello:
        return Hello(
            cluster=config.cluster_id,
            instance=config.instance,
            boot_id=boot_id,
            nonce=secrets.token_hex(NONCE_BYTES),
            software=software,
            features=(RESUME,) if config.resume else (),
            statement=str(probe.statement),
        )

    try:
        tls = client_context(way.hub_ca_pem)
    except ValueError as error:
        raise RelayError(f"hub.ca: {error}") from error
    try:
        return DialerConfig(
            hub_url=config.hub_url,
            tls=tls,
            authorization=authorization,
            hello=hello,
            settings=Settings(ping_s=config.ping_s),
            memory=memory,
            seconds_of=seconds_of,
        )
    except ValueError as error:
        raise RelayError(str(error)) from error


async def _run_tunnel(dialer: DialerConfig, config: RelayConfig, upstream: Upstream, state: State) -> None:
    """Dial the hub and serve the tunnel's requests, until cancelled."""
    hub_keys = TrustedKeys(config.hub_keys, config.hub_url)
    hubs = HubClocks(hub_keys, config.hub_url, config.cluster_id, config.clock_bound_s)
    stated: dict[Session, Stated] = {}

    def tell(statement: Statement) -> None:
        for each in list(stated.values()):
            each.tell(statement)

    async def serve(session: Session) -> None:
        state.sessions.append(session)
        stated[session] = Stated(session)
        # The statement may have changed since the hello was written.
        stated[session].tell(state.probe.statement)
        try:
            await serve_session(
                session, upstream, hubs=hubs, trusted=partial(state.trusted.__setitem__, session)
            )
        finally:
            del stated[session]
            state.sessions.remove(session)
            state.trusted.pop(session, None)

    # With the UID in HELLO, the hub refuses a wrong cluster before it sends anything.
    await state.probe.probed.wait()
    state.probe.on_change = tell

    def dialled(result: str) -> None:
        state.counts.dials[result] += 1

    await run_dialer(dialer, serve, dialing=state.dialing, dialled=dialled)


async def _open_listener(
    nursery: trio.Nursery,
    config: RelayConfig,
    way: DirectListener,
    upstream: Upstream,
    state: State,
    memory: Memory,
) -> None:
    """Listen for the hub.

    Direct mode uses this machine's own clock, since it has no signed time from the hub.
    """
    from proxy.relay.direct import DirectServer

    certificate = watch_certificate(way.certificate, way.key, stated="direct.certificate")
    hub_keys = TrustedKeys(config.hub_keys, config.hub_url)
    verifier = Verifier(hub_keys, config.hub_url, config.cluster_id, time.time)
    state.server = server = DirectServer(
        upstream,
        verifier,
        certificate,
        memory,
        statement=lambda: state.probe.statement,
        balancers=way.balancers,
    )
    nursery.start_soon(server.run)
    nursery.start_soon(warn_of_expiry, way.certificate)
    # Before the first probe the statement names no cluster, and the hub would send requests.
    state.accepting = await _listen(
        way.listen, "direct.listen", server.handle_connection, nursery, after=state.probe.probed
    )
    log.info("listening for the hub on %s", way.listen)


async def _listen(
    address: Address,
    stated: str,
    handler: Callable[[TCPStream], Awaitable[None]],
    handlers: trio.Nursery,
    *,
    after: trio.Event | None = None,
) -> trio.CancelScope:
    """Listen, and accept connections from now on, or `after` that event. Tasks of `handlers` handle them.

    Returns the scope whose cancellation ends the accepting. Raises OSError when it cannot listen.
    """
    listeners = await open_listeners(address, stated)
    accepting = trio.CancelScope()

    async def accept() -> None:
        with accepting:
            try:
                if after is not None:
                    await after.wait()
                await serve_connections(handler, listeners, handlers)
            finally:
                # `serve_connections` closes them, unless the task is cancelled before it runs.
                for listener in listeners:
                    await trio.aclose_forcefully(listener)  # noqa: ASYNC102

    handlers.start_soon(accept)
    return accepting


async def _listen_for_probes(address: Address, health: HealthServer, handlers: trio.Nursery) -> None:
    """Listen for probes from now on, or as soon as another process has released the port.

    Raises OSError when it cannot listen for another reason.
    """

    async def listen() -> None:
        await _listen(address, "health.listen", health.handle_connection, handlers)

    async def listen_when_free() -> None:
        said = ""
        while True:
            await trio.sleep(HEALTH_LOOK_S)
            try:
                await listen()
            except AddressInUseError:
                continue
            except OSError as error:
                # The relay already serves requests, and does not stop because of its probes.
                if str(error) != said:
                    said = str(error)
                    log.warning("%s", said)
            else:
                log.info("listening for probes on %s", address)
                return

    try:
        await listen()
    except AddressInUseError as error:
        log.warning("%s. Until then the relay answers no probes, and tries again each second", error)
        handlers.start_soon(listen_when_free)


async def _drain(state: State, upstream: Upstream, grace_s: float, signals: AsyncIterator[int]) -> None:
    """Refuse new requests. Open ones may continue for the grace period, or until another signal."""
    state.stopping = True
    state.dialing.cancel()
    if state.accepting is not None:
        state.accepting.cancel()
    if state.server is not None:
        state.server.deadlines.ending = True
    for session in state.sessions:
        session.go_away(code=CloseCode.DRAINING, drain_ms=int(grace_s * 1000), reason="the relay is stopping")
    underway = upstream.underway
    if underway.count:
        log.info(
            "draining %s, for up to %.0f s (%.0f s for those that are no streams); another signal cuts all",
            counted(underway.count, "request"), grace_s, min(PLAIN_S, grace_s),
        )  # fmt: skip
    async with trio.open_nursery() as nursery:

        async def hurry() -> None:
            async for number in signals:
                cut = counted(underway.count, "request")
                log.warning("%s again: cutting %s", signal.Signals(number).name, cut)
                nursery.cancel_scope.cancel()

        nursery.start_soon(hurry)
        with trio.move_on_after(grace_s):
            if await underway.wait_drained(grace_s):
                # The last bytes of answers may still wait for the hub to take them.
                for session in list(state.sessions):
                    await session.wait_quiet()
        nursery.cancel_scope.cancel()
