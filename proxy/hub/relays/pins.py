"""Which Kubernetes cluster a cluster is: pinned as its first relay states it, and held to from then on.

It catches mix-ups: manifests that were applied in the wrong cluster, a URL that leads to another one. It
proves nothing against a thief of the relay's key, who can state any value.
"""

from __future__ import annotations

import logging
from typing import Protocol

import attrs

from audit.record import Event, Kind
from audit.recorder import Recorder
from proxy.hub.authorize.events import Trail
from proxy.hub.relays.relay_limit import RelayRefusedError
from proxy.hub.store.directory import Directory
from proxy.hub.store.entities import Cluster
from proxy.hub.store.errors import StoreUnavailableError
from proxy.kubernetes.statement import Statement

_log = logging.getLogger("hawse.hub.relays")


class Source(Protocol):
    """The relay that states something."""

    @property
    def cluster_id(self) -> str: ...
    @property
    def cluster_name(self) -> str: ...
    @property
    def instance(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def address(self) -> str: ...


@attrs.frozen
class Pins:
    """The pins of one hub's clusters."""

    directory: Directory
    recorder: Recorder
    trail: Trail

    async def check(self, source: Source, statement: Statement) -> None:
        """Pin the cluster to the one that is stated, or raise RelayRefusedError if it is pinned to another.

        A relay that states none passes: it is of an older version, or lacks the right to read it.
        """
        uid, ids = statement.cluster_uid, {"cluster": source.cluster_name}
        cluster = self.directory.current.clusters_by_id.get(source.cluster_id)
        # The sessions of a cluster that was just removed are ended elsewhere.
        if not uid or cluster is None:
            return
        if cluster.cluster_uid is None:
            try:
                pinned = await self.directory.change(lambda store: store.pin_cluster(source.cluster_id, uid))
            except StoreUnavailableError as error:
                # The next relay that connects pins it.
                _log.warning("cannot pin cluster %s: %s", source.cluster_name, error, extra=ids)
                return
            if pinned == uid:
                _log.info(
                    "cluster %s is pinned to the Kubernetes cluster %s", source.cluster_name, uid, extra=ids
                )
                self.recorder.complete(self.event(source, Kind.RELAY_PINNED, f"kube-system uid={uid}"))
            cluster = attrs.evolve(cluster, cluster_uid=pinned or None)
        if refusal := wrong_cluster(cluster, statement):
            raise refusal

    def refused(self, source: Source, error: Exception) -> None:
        """Say in the log and in the trail that a relay is refused."""
        _log.warning(
            "turned away relay %s, from %s: %s",
            source.instance, source.address, error, extra={"cluster": source.cluster_name},
        )  # fmt: skip
        self.recorder.complete(self.event(source, Kind.RELAY_REFUSED, str(error)))

    def event(self, source: Source, kind: Kind, note: str = "") -> Event:
        """What happened to a relay."""
        return self.trail.relay(
            kind,
            cluster_id=source.cluster_id,
            cluster_name=source.cluster_name,
            instance=source.instance,
            version=source.version,
            address=source.address,
            note=note,
        )


def wrong_cluster(cluster: Cluster, statement: Statement) -> RelayRefusedError | None:
    """Why a relay that states this is refused: another Kubernetes cluster than its cluster is pinned to."""
    pinned, uid = cluster.cluster_uid, statement.cluster_uid
    if not uid or pinned in (None, uid):
        return None
    # The next step first: a farewell has 200 bytes.
    return RelayRefusedError(
        f"wrong cluster: if that is meant, `hawse admin cluster repin {cluster.name}`; "
        f"{cluster.name} is pinned to kube-system uid {pinned}, and this relay is in {uid}"
    )


def read_statement(text: str) -> Statement:
    """Read what a relay states; raises RelayRefusedError."""
    try:
        return Statement.read(text)
    except ValueError as error:
        raise RelayRefusedError(str(error)) from error
