"""The hub as a whole: what it opens, in which order, who owns it, and how it stops.

From the outside in: the data folder's lock, the sign of life, the audit recorder, the directory, the handlers
of connections, the accepting of connections. So accepting stops first and what is under way may finish; then
the sessions; the recorder is the last to close, since each of the others has something to say at its end.
"""

from __future__ import annotations

import logging
import signal
import time
from contextlib import AsyncExitStack
from functools import partial
from importlib.metadata import version

import trio

from audit.ids import new_eid
from audit.mask import Masks
from audit.record import Kind
from audit.recorder import open_recorder
from audit.store import AuditStore
from proxy.filelimit import raise_file_limit
from proxy.hub.access import AccessTokens
from proxy.hub.actions import Administration
from proxy.hub.adminfront import AdminFront, LiveRelays, ensure_local_token, note_relays_seen, write_endpoint
from proxy.hub.api import admin_app
from proxy.hub.boots import Boots, close_after_the_dead
from proxy.hub.callmetrics import CallMetrics
from proxy.hub.calls import Calls
from proxy.hub.certificate import Certificate
from proxy.hub.config import HubConfig
from proxy.hub.datadir import DataDir
from proxy.hub.direct import DirectRelays
from proxy.hub.directory import USE_WRITTEN_EVERY_S, open_directory
from proxy.hub.enrol import EnrolmentEndpoint
from proxy.hub.front import Front
from proxy.hub.keyring import KeyRing
from proxy.hub.metrics import hub_metrics
from proxy.hub.registry import Registry
from proxy.hub.relays import RelayEndpoint
from proxy.hub.sessions import LiveSessions
from proxy.hub.token import TokenEndpoint
from proxy.hub.trail import Trail
from proxy.listen import open_listeners
from proxy.startup import settle
from tunnel import CloseCode, Memory

# How long what is under way may go on after SIGTERM, before its connections are cut.
STOP_GRACE_S = 10.0
# All tunnels together: windows, ledgers and heads (PROTOCOL.md, "Memory").
TUNNEL_MEMORY_BYTES_MAX = 512 * 1024 * 1024

_log = logging.getLogger("hawse.hub")


async def run_hub(config: HubConfig) -> None:
    """Run the hub until SIGTERM or SIGINT.

    Raises, some from within exception groups, DataDirError, FileError, StoreUnavailableError and
    AuditUnavailable, and OSError when it cannot listen.
    """
    raise_file_limit()
    data = DataDir.open(config.data_dir)
    boot = new_eid()
    software = f"hawse/{version('hawse')}"
    trail = Trail(config.org)
    async with AsyncExitStack() as stack:
        stack.enter_context(data.locked())
        boots = Boots(data.boots_dir)
        stack.enter_context(boots.announced(boot))
        pepper = data.pepper()
        registry = Registry()
        ring = KeyRing(data, issuer=config.public_url, clock=time.time, on_rotation=registry.announce_keys)
        certificate = Certificate.open(config, data, time.time)
        masks = Masks(config.audit.mask)
        store = await trio.to_thread.run_sync(AuditStore, data.audit_file, masks)
        stack.callback(store.close)
        recorder = await stack.enter_async_context(
            open_recorder(store, org=config.org, boot=boot, lives=boots.lives)
        )
        directory = await stack.enter_async_context(
            open_directory(data.store_file, org=config.org, clock=time.time)
        )
        recorder.complete(trail.hub(Kind.HUB_STARTED, software))
        await ensure_local_token(data, directory, pepper)
        tell_endpoint = partial(write_endpoint, config, data, certificate.chain)
        tell_endpoint()
        async with trio.open_nursery() as upkeep:
            upkeep.start_soon(ring.run)
            upkeep.start_soon(certificate.keep_current, tell_endpoint)
            upkeep.start_soon(directory.run_use_writer)
            upkeep.start_soon(close_after_the_dead, boots, boot, data.audit_file, masks, time.time)
            upkeep.start_soon(directory.run_look)
            upkeep.start_soon(note_relays_seen, registry, directory, USE_WRITTEN_EVERY_S)
            direct = DirectRelays(
                keys=lambda: ring.current, issuer=config.public_url, new_id=new_eid, nursery=upkeep
            )
            metrics = hub_metrics(directory, LiveRelays(registry, time.time))
            calls = Calls(
                config=config,
                directory=directory,
                tokens=AccessTokens(lambda: ring.current.public, issuer=config.public_url, org=config.org),
                registry=registry,
                direct=direct,
                recorder=recorder,
                trail=trail,
                observe=CallMetrics(metrics).observe,
            )
            directory.on_change(calls.live.reconsider)
            upkeep.start_soon(calls.live.run)
            upkeep.start_soon(calls.limits.run, calls.live)
            relays = RelayEndpoint(
                config=config,
                directory=directory,
                registry=registry,
                keys=lambda: ring.current,
                recorder=recorder,
                trail=trail,
                memory=Memory(TUNNEL_MEMORY_BYTES_MAX),
                boot=boot,
                software=software,
                new_id=new_eid,
            )
            directory.on_change(relays.end_revoked)
            tokens = TokenEndpoint(
                directory=directory,
                keys=lambda: ring.current,
                pepper=pepper,
                issuer=config.public_url,
                record=recorder.complete,
                clock=time.time,
            )
            front = Front(
                certificate=certificate,
                calls=calls,
                relays=relays,
                tokens=tokens,
                enrolment=EnrolmentEndpoint(directory, pepper, config.public_url, recorder, time.time),
                recorder=recorder,
                trail=trail,
                clock=time.time,
            )
            upkeep.start_soon(front.run)
            administration = Administration(
                directory=directory,
                ring=ring,
                pepper=pepper,
                public_url=config.public_url,
                hub_ca_pem=certificate.ca_pem,
                version=version("hawse"),
                operations=LiveRelays(registry, time.time),
                live_sessions=LiveSessions(calls.live),
                relays_per_cluster=config.limits.relays_per_cluster,
            )
            app = admin_app(administration, recorder, metrics, time.time)
            await _serve(config, front, AdminFront(app, certificate), registry)
            upkeep.cancel_scope.cancel()
    _log.info("the hub has stopped")


async def _serve(config: HubConfig, front: Front, admin: AdminFront, registry: Registry) -> None:
    """Accept and handle connections until a signal, and then a little longer."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as handlers:
            async with trio.open_nursery() as accepting:
                listeners = await open_listeners(config.listen)
                accept = partial(trio.serve_listeners, handler_nursery=handlers)
                accepting.start_soon(accept, front.handle_client, listeners)
                accepting.start_soon(accept, admin.handle_client, await open_listeners(config.admin.listen))
                settle()
                front.ready = True
                _log.info("the hub is ready at %s (listens on %s)", config.public_url, config.listen)
                async for _ in signals:
                    break
                accepting.cancel_scope.cancel()
            front.ready = False
            _log.info("stopping: %.0f s for what is under way", STOP_GRACE_S)
            for relay in registry.relays():
                relay.session.go_away(
                    code=CloseCode.DRAINING,
                    drain_ms=int(STOP_GRACE_S * 1000),
                    reason="the hub stops",
                )
            with trio.move_on_after(STOP_GRACE_S):
                await front.calls.wait_idle()
            handlers.cancel_scope.cancel()
