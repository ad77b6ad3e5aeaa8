"""The resources that a hub holds open: the data folder, its secrets, the store, trail, and used tokens."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from functools import partial

import attrs
import trio

from audit.ids import new_eid
from audit.mask import Masks
from audit.recording.opening import open_recorder
from audit.recording.recorder import Recorder
from audit.stores import OwnTrail
from proxy.hub.approvals.requests.service import Requests, open_requests
from proxy.hub.authorize.events import Trail
from proxy.hub.health.database_watch import DatabaseWatch
from proxy.hub.home.certificate import Certificate
from proxy.hub.home.config import HubConfig
from proxy.hub.home.databases import (
    check_databases,
    check_directory,
    note_address,
    note_applied,
    noted_applied,
)
from proxy.hub.home.datadir import DataDir
from proxy.hub.home.files.reserve import Reserve, open_reserve
from proxy.hub.home.files.seal_file import SealFile
from proxy.hub.home.hub_instances import HubInstances, close_unknown
from proxy.hub.home.keyring import FolderKeyring, KeyRing, KeySource
from proxy.hub.home.sealed_secrets import SealedKeyring, open_secrets
from proxy.hub.home.trails import TrailPlace, open_trail
from proxy.hub.identity.replay_sqlite import SqliteUses
from proxy.hub.identity.replay_store import ReplayStore, UseTable, open_replay_store
from proxy.hub.membership.member import Member
from proxy.hub.membership.members import Members
from proxy.hub.membership.spread import Spread
from proxy.hub.peers.identity import LinkIdentity
from proxy.hub.relays.registry import Registry
from proxy.hub.relays.shared_limit import SharedRelayLimit, open_shared_limit
from proxy.hub.restart.instance_lock import InstanceLock, open_instance_lock
from proxy.hub.store.directory import Directory, open_directory
from proxy.hub.store.local_user import local_token_name
from proxy.hub.store.store import Store
from proxy.hub.store.versions.lineage import Lineage
from proxy.listener.unauthenticated import network_of
from proxy.process.version import VERSION


@attrs.frozen
class Home:
    """The data folder, held by this process."""

    data: DataDir
    boot: str
    instances: HubInstances
    instance: InstanceLock
    certificate: Certificate
    reserve: Reserve
    """The revocations that the trail or the store could not take."""


@asynccontextmanager
async def open_home(config: HubConfig, *, replace: bool) -> AsyncIterator[Home]:
    """Hold the data folder for the block. With `replace` it is shared with the old hub at first."""
    data = DataDir.open(config.data_dir)
    boot = new_eid()
    instances = HubInstances(data.instances_dir)
    # Outermost: once this boot is no longer registered, this hub does not touch the folder.
    with instances.registered(boot):
        async with open_instance_lock(config, data, boot, replace=replace) as instance:
            check_databases(data, in_postgres=config.database.url is not None)
            certificate = Certificate.open(config, data, time.time)
            with closing(open_reserve(data.reserve_file)) as reserve:
                yield Home(data, boot, instances, instance, certificate, reserve)


@attrs.frozen
class Secrets:
    """The secrets that a hub cannot make again, from the data folder or from PostgreSQL."""

    pepper: bytes = attrs.field(repr=False)
    ring: KeyRing


@attrs.frozen
class Joined:
    """What a hub knows of the others."""

    members: Members | None
    identity: LinkIdentity | None
    """What this hub proves itself by to the others; None without `[peer]`."""
    is_running: Callable[[str], bool]
    """Whether the process of a boot may still write events; for any thread."""
    close_calls: Callable[[], int]
    """Closes the calls of ended hubs in the trail, and returns how many; for any thread.

    Raises AuditUnavailable.
    """


@attrs.frozen
class Records:
    """The hub's store with its secrets, and its audit trail."""

    directory: Directory
    secrets: Secrets
    place: TrailPlace
    store: OwnTrail
    """The trail's database."""
    joined: Joined
    recorder: Recorder
    trail: Trail
    watch: DatabaseWatch | None
    """None for a file of SQLite, which loses no changes while a hub runs."""
    spread: Spread

    @property
    def members(self) -> Members | None:
        """The hubs on the database; None for a file of SQLite, which has one."""
        return self.joined.members


@asynccontextmanager
async def open_records(config: HubConfig, home: Home, registry: Registry) -> AsyncIterator[Records]:
    """Open the secrets, the store and the trail for the block; the registry announces new signing keys.

    On PostgreSQL the hub has joined the others meanwhile.
    """
    masks = Masks(config.audit.mask)
    data, address = home.data, config.database.address
    ring = partial(KeyRing, issuer=config.public_url, clock=time.time, on_rotation=registry.announce_keys)
    # Before the store: once its file is there, the secrets in the folder must be too.
    in_folder = Secrets(data.pepper(), ring(FolderKeyring(data.keys))) if address is None else None
    shared = home.instance.predecessor is not None
    lineage = None
    if address is not None:
        lineage = Lineage(noted_applied(data), accepts=config.database.accept_rollback)
    # Before the trail: the directory knows which trail belongs to this hub.
    async with open_directory(
        address or data.store_file,
        org=config.org,
        clock=time.time,
        shared=shared,
        stale_s=config.database.stale_s,
        stale_streams_s=config.database.stale_streams_s,
        lineage=lineage,
    ) as directory:
        spread = Spread(directory)
        secrets = in_folder or await _open_sealed(config, data, directory, spread, ring)
        if address is not None:
            note_address(data, address)
        expected = directory.current.trail
        place = address or data.audit_file
        open_store = partial(open_trail, place, masks, expected=expected, wait_s=config.audit.wait_s)
        with closing(await trio.to_thread.run_sync(open_store)) as store:
            try:
                async with (
                    _join(config, home, directory, partial(open_trail, place, masks, make=False)) as joined,
                    # Left before the hub is gone, since its writer writes the last events.
                    open_recorder(
                        store,
                        org=config.org,
                        boot=home.boot,
                        is_running=joined.is_running,
                        source_of=network_of,
                    ) as recorder,
                ):
                    spread.members = joined.members
                    if expected is None:
                        await directory.change(partial(Store.accept_trail, trail=store.mark))
                    trail, watch = Trail(config.org), None
                    if lineage is not None:
                        remember = partial(note_applied, data)
                        watch = DatabaseWatch(directory, lineage, trail.hub, recorder.complete, remember)
                        watch.report()
                        directory.on_change(watch.report)
                    yield Records(directory, secrets, place, store, joined, recorder, trail, watch, spread)
            finally:
                # After the recorder's last write, and before the directory's.
                directory.used.note_trail(store.mark)


@asynccontextmanager
async def _join(
    config: HubConfig, home: Home, directory: Directory, open_store: Callable[[], OwnTrail]
) -> AsyncIterator[Joined]:
    """Join the other hubs on the database for the block; a hub on SQLite has none."""
    runs_here = home.instances.is_running
    address = config.database.address
    if address is None:
        yield Joined(None, None, runs_here, partial(close_unknown, open_store, home.boot, runs_here))
        return
    # Their driver is an extra, which a hub on SQLite need not have.
    from proxy.hub.membership.lease import Joining, open_members, place_of
    from proxy.hub.membership.running import RunningHubs
    from proxy.hub.store.engines.postgres import conninfo_of

    conninfo = partial(conninfo_of, address)
    hub = home.data.admin.hub_id()
    is_running = RunningHubs(conninfo, hub, runs_here).is_running
    close_calls = partial(close_unknown, open_store, home.boot, is_running)
    # Before its row, which states the certificate.
    identity = None if config.peer.listen is None else LinkIdentity.make(home.boot)
    me = Member(
        hub=hub,
        boot=home.boot,
        address="" if config.peer.address is None else str(config.peer.address),
        certificate="" if identity is None else identity.certificate,
        software=f"hawse/{VERSION}",
        applied=directory.applied.version.number,
        stale_s=config.database.stale_s,
        stale_streams_s=config.database.stale_streams_s,
    )
    joining = Joining(
        conninfo=conninfo,
        directory=directory,
        me=me,
        place=place_of(home.data.path),
        running=home.instances.running,
        close_calls=close_calls,
    )
    async with open_members(joining) as members:
        yield Joined(members, identity, is_running, close_calls)


async def _open_sealed(
    config: HubConfig,
    data: DataDir,
    directory: Directory,
    spread: Spread,
    ring_of: Callable[[KeySource], KeyRing],
) -> Secrets:
    """Open the secrets in PostgreSQL; raises DataDirError, StoreUnavailableError."""
    file = SealFile(config.seal_file)
    found = directory.current
    check_directory(data, new=found.trail is None and not found.signing_keys.keys)
    opened = await directory.change(partial(open_secrets, trail=found.trail, file=file))
    ring = ring_of(SealedKeyring(directory, file, spread.demand))
    directory.on_change(ring.follow)
    return Secrets(opened.pepper, ring)


def open_replays(config: HubConfig, home: Home) -> AbstractAsyncContextManager[ReplayStore]:
    """Open the used one-time tokens, where the store is."""
    address = config.database.address
    table: UseTable
    if address is None:
        table = SqliteUses(home.data.seen_file)
    else:
        # Their driver is an extra, which a hub on SQLite need not have.
        from proxy.hub.identity.replay_postgres import PostgresUses
        from proxy.hub.store.engines.postgres import conninfo_of

        table = PostgresUses(partial(conninfo_of, address))
    return open_replay_store(table)


@asynccontextmanager
async def open_limit(config: HubConfig, records: Records) -> AsyncIterator[SharedRelayLimit | None]:
    """Take part in the limit of relays over all hubs; None on SQLite, where the hub is alone."""
    address, members = config.database.address, records.members
    if address is None or members is None:
        yield None
        return
    limit = config.limits.relays_per_cluster
    opened = open_shared_limit(address, org=config.org, hub_boot=members.me.boot, relays_per_cluster=limit)
    async with opened as shared:
        yield shared


@asynccontextmanager
async def open_approvals(config: HubConfig, home: Home, records: Records) -> AsyncIterator[Requests]:
    """Open the requests for approval, and follow them; raises StoreUnavailableError."""
    async with open_requests(
        config.database.address or home.data.store_file,
        org=config.org,
        boot=home.boot,
        snapshot=lambda: records.directory.current,
        record=records.recorder.complete,
        runs_here=home.instances.is_running,
        webhooks=[each.name for each in config.webhook],
    ) as requests:
        yield requests


@attrs.frozen
class Resources:
    """Everything that the parts of the hub are built from."""

    config: HubConfig
    home: Home
    records: Records
    seen: ReplayStore
    shared_limit: SharedRelayLimit | None
    registry: Registry
    requests: Requests
    """The calls that need an approval."""
    upkeep: trio.Nursery
    """Runs the parts' background tasks until the hub has stopped."""

    @property
    def local_token(self) -> str:
        """The name of this machine's admin token."""
        return local_token_name(self.hub_id)

    @property
    def hub_id(self) -> str | None:
        """The id of this hub among those on its database; None on SQLite."""
        members = self.records.members
        return None if members is None else members.me.hub
