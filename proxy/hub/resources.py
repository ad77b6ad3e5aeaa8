"""The resources that a hub holds open: the data folder with its secrets, the store, and the audit trail."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from functools import partial

import attrs
import trio

from audit.ids import new_eid
from audit.mask import Masks
from audit.recorder import Recorder, open_recorder
from audit.stores import OwnTrail
from proxy.hub.admin.revocations import Revocations
from proxy.hub.authorize.events import Trail
from proxy.hub.home.certificate import Certificate
from proxy.hub.home.config import HubConfig
from proxy.hub.home.databases import check_databases, check_directory, note_address
from proxy.hub.home.datadir import DataDir
from proxy.hub.home.hub_instances import HubInstances
from proxy.hub.home.keyring import KeyRing
from proxy.hub.home.reserve import open_reserve
from proxy.hub.home.trails import TrailPlace, open_trail
from proxy.hub.relays.registry import Registry
from proxy.hub.restart.instance_lock import InstanceLock, open_instance_lock
from proxy.hub.store.directory import Directory, open_directory
from proxy.hub.store.store import Store
from proxy.listener.unauthenticated import network_of


@attrs.frozen
class Home:
    """The data folder, held by this process, and the secrets in it."""

    data: DataDir
    boot: str
    instances: HubInstances
    instance: InstanceLock
    pepper: bytes = attrs.field(repr=False)
    ring: KeyRing
    certificate: Certificate
    revocations: Revocations


@asynccontextmanager
async def open_home(config: HubConfig, registry: Registry, *, replace: bool) -> AsyncIterator[Home]:
    """Hold the data folder for the block. With `replace` it is shared with the old hub at first."""
    data = DataDir.open(config.data_dir)
    boot = new_eid()
    instances = HubInstances(data.instances_dir)
    # Outermost: once this boot is no longer registered, this hub does not touch the folder.
    with instances.registered(boot):
        async with open_instance_lock(config, data, boot, replace=replace) as instance:
            check_databases(data, in_postgres=config.database.url is not None)
            pepper = data.pepper()
            ring = KeyRing(
                data, issuer=config.public_url, clock=time.time, on_rotation=registry.announce_keys
            )
            certificate = Certificate.open(config, data, time.time)
            with closing(open_reserve(data.reserve_file)) as reserve:
                yield Home(data, boot, instances, instance, pepper, ring, certificate, Revocations(reserve))


@attrs.frozen
class Records:
    """The hub's store and its audit trail."""

    directory: Directory
    masks: Masks
    place: TrailPlace
    store: OwnTrail
    """The trail's database."""
    recorder: Recorder
    trail: Trail


@asynccontextmanager
async def open_records(config: HubConfig, home: Home) -> AsyncIterator[Records]:
    """Open the store and the trail for the block."""
    masks = Masks(config.audit.mask)
    data, address = home.data, config.database.address
    shared = home.instance.predecessor is not None
    # Before the trail: the directory knows which trail belongs to this hub.
    async with open_directory(
        address or data.store_file,
        org=config.org,
        clock=time.time,
        shared=shared,
        stale_s=config.database.stale_s,
        stale_streams_s=config.database.stale_streams_s,
    ) as directory:
        if address is not None:
            check_directory(data, directory.current.trail)
            note_address(data, address)
        expected = directory.current.trail
        place = address or data.audit_file
        open_store = partial(open_trail, place, masks, expected=expected, wait_s=config.audit.wait_s)
        with closing(await trio.to_thread.run_sync(open_store)) as store:
            try:
                async with open_recorder(
                    store,
                    org=config.org,
                    boot=home.boot,
                    is_running=home.instances.is_running,
                    source_of=network_of,
                ) as recorder:
                    if expected is None:
                        await directory.change(partial(Store.accept_trail, trail=store.mark))
                    yield Records(directory, masks, place, store, recorder, Trail(config.org))
            finally:
                # After the recorder's last write, and before the directory's.
                directory.used.note_trail(store.mark)
