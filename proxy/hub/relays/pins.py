"""Pins each cluster to the Kubernetes cluster that its first relay states, and checks later relays against
it.

This detects mix-ups: manifests applied in the wrong cluster, a URL that leads to another cluster. It is no
defence against a thief of the relay's key, who can state any value.
"""

from __future__ import annotations

import logging
from typing import Protocol

import attrs

from audit.record import Event, Kind
from audit.recording.recorder import Recorder
from proxy.hub.authorize.events import Trail
from proxy.hub.relays.relay_limit import RelayRefusedError
from proxy.hub.store.directory import Directory
from proxy.hub.store.engines.errors import StoreUnavailableError
from proxy.hub.store.entities import Cluster
from proxy.kubernetes.statement import Statement

_log = logging.getLogger("hawse.hub.relays")


class Source(Protocol):
    """A relay that sent a statement."""

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
        """Pin the cluster on the first statement, or raise RelayRefusedError if it is pinned to another one.

        A relay that states no cluster passes: it is of an older version, or lacks the right to read the UID.
        """
        uid, ids = statement.cluster_uid, {"cluster": source.cluster_name}
        cluster = self.directory.current.clusters_by_id.get(source.cluster_id)
        # The sessions of a removed cluster are ended elsewhere.
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
        """Log and record that a relay is refused."""
        _log.warning(
            "refused relay %s, from %s: %s",
            source.instance, source.address, error, extra={"cluster": source.cluster_name},
        )  # fmt: skip
        self.recorder.complete(self.event(source, Kind.RELAY_REFUSED, str(error)))

    def event(self, source: Source, kind: Kind, note: str = "") -> Event:
        """An event about a relay."""
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
    """The refusal of a relay in another Kubernetes cluster than the pinned one, else None."""
    pinned, uid = cluster.cluster_uid, statement.cluster_uid
    if not uid or pinned in (None, uid):
        return None
    # The next step comes first, since a Close reason is cut at 200 bytes.
    return RelayRefusedError(
        f"wrong cluster: if that is meant, `hawse admin cluster repin {cluster.name}`; "
        f"{cluster.name} is pinned to kube-system uid {pinned}, and this relay is in {uid}"
    )


def read_statement(text: str) -> Statement:
    """Read a relay's statement; raises RelayRefusedError."""
    try:
        return Statement.read(text)
    except ValueError as error:
        raise RelayRefusedError(str(error)) from error
