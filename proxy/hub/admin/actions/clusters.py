"""Actions on clusters and their relays' keys and manifests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Literal

import attrs
import msgspec

from auth.keys import SigningKey
from proxy.hub.admin.verbs import shapes
from proxy.hub.admin.verbs.answers import Done, Payload, known, time_text
from proxy.hub.admin.verbs.certificates import check_certificates
from proxy.hub.admin.verbs.listing import Listing
from proxy.hub.admin.verbs.verb import verb
from proxy.hub.authorize.binding import Binding
from proxy.hub.home.keyring import KeyRing
from proxy.hub.relays.operations import Operations
from proxy.hub.store.directory import Changes
from proxy.hub.store.engines.errors import InvalidError
from proxy.hub.store.entities import Cluster, Mode, Snapshot
from proxy.hub.store.roles import Role
from proxy.kubernetes.cluster_role import NAMESPACE, SERVICE_ACCOUNT, ManifestError
from proxy.kubernetes.manifests import RelayManifest
from proxy.process.plural import counted


class ClusterListing(Listing, frozen=True):
    """`q` is in the name or a label."""

    team: str | None = None
    """Only clusters that were granted to it."""
    agent: str | None = None
    """Only clusters that it may reach."""
    policy: str | None = None
    """Only clusters that it selects."""


class ManifestOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the relay is deployed; not stored."""

    namespace: str = NAMESPACE
    service_account: str = SERVICE_ACCOUNT
    image: str | None = None
    replicas: int = 2
    service_type: Literal["LoadBalancer", "ClusterIP", "NodePort"] = "LoadBalancer"
    hub_ca_pem: str | None = None
    """The CA of the hub's certificate, if the hub does not know it (a certificate of a private CA)."""


class NewCluster(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    teams: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    mode: Literal["tunnel", "direct"] = "tunnel"
    relay_url: str | None = None
    relay_ca_pem: str | None = None
    relay_address_private: bool = False
    manifest: ManifestOptions = ManifestOptions()


class NewRelayKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keep_old: bool = False
    manifest: ManifestOptions = ManifestOptions()


@attrs.frozen
class ClusterActions:
    """The clusters, and the teams with access."""

    directory: Changes
    ring: KeyRing
    public_url: str
    hub_ca: Callable[[], str | None]
    operations: Operations
    relays_per_cluster: int

    @property
    def _now(self) -> Snapshot:
        return self.directory.current

    @verb(
        "GET", "/v1/clusters", "list", "clusters", Role.VIEWER, query=ClusterListing, answer=shapes.Clusters
    )
    async def list_all(self, listing: ClusterListing) -> Done:
        """List the clusters that match, with their connected relays and when one was last seen."""
        matching = self._matching(listing)
        rows = listing.page(matching)
        ids = None if listing.limit is None else [cluster.id for cluster in rows]
        seen = await self.directory.read(lambda store: store.relays_last_seen(ids))
        # Counted once: a count for each of thousands of clusters would block the loop for seconds.
        live, now = self._live(), {relay.cluster: relay.last_seen for relay in self.operations.relays()}
        return Done(
            {
                "clusters": [
                    {
                        **self._shown(cluster, live),
                        # A connected relay's row is written once in a while.
                        "last_seen_at": time_text(now.get(cluster.name, seen.get(cluster.id))),
                    }
                    for cluster in rows
                ],
                "total": len(matching),
            }
        )

    def _matching(self, listing: ClusterListing) -> list[Cluster]:
        """Return the clusters that match, by name."""
        now = self._now
        clusters = [cluster for _, cluster in sorted(now.clusters_by_name.items())]
        if listing.team is not None:
            team = known(now.teams_by_name, "team", listing.team)
            clusters = [cluster for cluster in clusters if team.id in cluster.team_ids]
        if listing.agent is not None:
            agent = known(now.agents_by_name, "agent", listing.agent)
            clusters = [cluster for cluster in clusters if now.may_reach(agent, cluster)]
        if listing.policy is not None:
            binding = Binding.named(listing.policy, now)
            clusters = [cluster for cluster in clusters if binding.selects(cluster)]
        return [
            cluster
            for cluster in clusters
            if listing.contains(cluster.name, *(f"{key}={value}" for key, value in cluster.labels.items()))
        ]

    @verb("GET", "/v1/clusters/{name}", "get", "clusters", Role.VIEWER, answer=shapes.ClusterDetail)
    def get(self, name: str) -> Done:
        """Show one cluster with the agents that may reach it."""
        cluster = known(self._now.clusters_by_name, "cluster", name)
        agents = [agent.name for agent in self._now.agents_of(cluster)]
        return Done({**self._shown(cluster), "agents": agents}, cluster=cluster)

    @verb("POST", "/v1/clusters", "create", "clusters", Role.ADMIN, body=NewCluster)
    async def add(self, new: NewCluster) -> Done:
        """Add a cluster, and return the data for its relay's manifests, with the private key only once."""
        mode = Mode(new.mode)
        relay_key = SigningKey.generate() if mode is Mode.TUNNEL else None
        check_certificates("relay_ca_pem", new.relay_ca_pem)
        check_certificates("hub_ca_pem", new.manifest.hub_ca_pem)
        # Before anything is stored: a later error would leave a cluster whose relay key is lost.
        self._manifest(new.name, "0", mode, relay_key, new.manifest)
        cluster_id = await self.directory.change(
            lambda store: store.add_cluster(
                new.name,
                relay_key=relay_key.public if relay_key is not None else None,
                teams=new.teams,
                labels=new.labels,
                mode=mode,
                relay_url=new.relay_url,
                relay_ca_pem=new.relay_ca_pem,
                relay_address_private=new.relay_address_private,
            )
        )
        cluster = self._now.clusters_by_id[cluster_id]
        return Done(
            {**self._shown(cluster), **self._relay_setup(cluster, relay_key, new.manifest)},
            created=True,
            note=f"id={cluster.id} mode={mode} teams={','.join(cluster.teams)}",
            cluster=cluster,
        )

    @verb("DELETE", "/v1/clusters/{name}", "delete", "clusters", Role.ADMIN, revokes=True)
    async def remove(self, name: str) -> Done:
        """Remove a cluster: its relays can no longer connect, its agents no longer reach it."""
        cluster = known(self._now.clusters_by_name, "cluster", name)
        await self.directory.change(lambda store: store.remove_cluster(name))
        return Done({"removed": name}, note=f"id={cluster.id}", cluster=cluster)

    @verb("PUT", "/v1/clusters/{name}/teams/{team}", "grant", "clusters/teams", Role.ADMIN)
    async def grant(self, name: str, team: str) -> Done:
        """Grant a team access to a cluster."""
        await self.directory.change(lambda store: store.grant(name, team))
        return self._granted(name, team)

    @verb("DELETE", "/v1/clusters/{name}/teams/{team}", "revoke", "clusters/teams", Role.ADMIN, revokes=True)
    async def revoke(self, name: str, team: str) -> Done:
        """Revoke a team's access to a cluster."""
        await self.directory.change(lambda store: store.revoke(name, team))
        return self._granted(name, team)

    def _granted(self, name: str, team: str) -> Done:
        cluster = self._now.clusters_by_name[name]
        return Done({**self._shown(cluster), "apply_rbac": [name]}, note=f"team={team}", cluster=cluster)

    @verb("POST", "/v1/clusters/{name}/keys", "create", "clusters/keys", Role.ADMIN, body=NewRelayKey)
    async def replace_relay_key(self, name: str, new: NewRelayKey) -> Done:
        """Give a cluster's relay a new key, and return the data for its manifests, only once."""
        cluster = known(self._now.clusters_by_name, "cluster", name)
        if cluster.mode is not Mode.TUNNEL:
            raise InvalidError(f"cluster {name} is in mode direct: its relay has no key")
        check_certificates("hub_ca_pem", new.manifest.hub_ca_pem)
        key = SigningKey.generate()
        setup = self._relay_setup(cluster, key, new.manifest)
        await self.directory.change(
            lambda store: store.replace_relay_key(name, key.public, keep_old=new.keep_old)
        )
        cluster = self._now.clusters_by_name[name]
        note = f"kid={key.kid} keep_old={new.keep_old}"
        return Done({**self._shown(cluster), **setup}, created=True, note=note, cluster=cluster)

    @verb("DELETE", "/v1/clusters/{name}/keys", "delete", "clusters/keys", Role.ADMIN)
    async def drop_old_relay_keys(self, name: str) -> Done:
        """End the overlap of a replaced relay key: from now on only the newest key is valid."""
        dropped = await self.directory.change(lambda store: store.drop_old_relay_keys(name))
        cluster = self._now.clusters_by_name[name]
        body = {**self._shown(cluster), "dropped": dropped}
        return Done(body, note=f"dropped={','.join(dropped)}", cluster=cluster)

    @verb("POST", "/v1/clusters/{name}/repin", "repin", "clusters", Role.ADMIN)
    async def repin(self, name: str) -> Done:
        """Remove the pin of a cluster; the next relay that connects sets it again."""
        uid = await self.directory.change(lambda store: store.unpin_cluster(name))
        cluster = self._now.clusters_by_name[name]
        return Done({**self._shown(cluster), "unpinned": uid}, note=f"unpinned={uid}", cluster=cluster)

    @verb("GET", "/v1/clusters/{name}/rbac", "get", "clusters/rbac", Role.VIEWER)
    def rbac(self, name: str) -> Done:
        """List the agents and groups that the relay must be able to impersonate now."""
        cluster = known(self._now.clusters_by_name, "cluster", name)
        return Done({"cluster": name, "impersonate": self._impersonate(cluster)}, cluster=cluster)

    def _relay_setup(self, cluster: Cluster, key: SigningKey | None, options: ManifestOptions) -> Payload:
        manifest = self._manifest(cluster.name, cluster.id, cluster.mode, key, options)
        return {
            "relay": {
                "mode": str(cluster.mode),
                "cluster_id": cluster.id,
                "hub_url": self.public_url,
                "hub_keys": manifest.hub_keys,
                "hub_ca_pem": manifest.hub_ca_pem,
                "private_key_pem": manifest.private_key_pem,
            },
            "impersonate": self._impersonate(cluster),
        }

    def _manifest(
        self, name: str, cluster_id: str, mode: Mode, key: SigningKey | None, options: ManifestOptions
    ) -> RelayManifest:
        if mode is Mode.TUNNEL and options.replicas > self.relays_per_cluster:
            taken = counted(self.relays_per_cluster, "relay")
            raise InvalidError(
                f"{options.replicas} replicas exceed the {taken} that this hub takes of a cluster: "
                "raise limits.relays_per_cluster first"
            )
        build = partial(
            RelayManifest,
            cluster_id=cluster_id,
            cluster_name=name,
            hub_url=self.public_url,
            hub_keys=self.ring.current.pins.to_jwks(),
            hub_ca_pem=options.hub_ca_pem or self.hub_ca(),
            mode=mode.value,
            private_key_pem=key.to_pem().decode("ascii") if key is not None else None,
            service_type=options.service_type,
            namespace=options.namespace,
            service_account=options.service_account,
            replicas=options.replicas,
        )
        try:
            return build() if options.image is None else build(image=options.image)
        except ManifestError as error:
            raise InvalidError(str(error)) from error

    def _impersonate(self, cluster: Cluster) -> Payload:
        agents = self._now.agents_of(cluster)
        # A request carries all groups of its agent, so each must be allowed, even if the cluster was granted
        # to only one of the agent's teams. A team without agents is listed in advance.
        groups = {
            group for agent in agents if agent.principal is not None for group in agent.principal.groups
        }
        groups |= {f"{self._now.org}/{team}" for team in cluster.teams}
        return {"agents": sorted(agent.name for agent in agents), "groups": sorted(groups)}

    def _live(self) -> Counter[str]:
        """Count the connected relays by cluster name."""
        return Counter(cluster for cluster, _ in self.operations.instances())

    def _shown(self, cluster: Cluster, live: Counter[str] | None = None) -> Payload:
        live = self._live() if live is None else live
        return {
            "name": cluster.name,
            "id": cluster.id,
            "mode": str(cluster.mode),
            "labels": dict(cluster.labels),
            "teams": list(cluster.teams),
            "relay_keys": [key.kid for key in cluster.relay_keys],
            "relay_url": cluster.relay_url,
            "relay_address_private": cluster.relay_address_private,
            "relays": live[cluster.name],
            "cluster_uid": cluster.cluster_uid,
            "created_at": time_text(cluster.created_at),
        }
