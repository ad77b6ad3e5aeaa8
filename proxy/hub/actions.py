"""What an operator can do to a hub: each action in terms of the store, without any HTTP.

An action returns what its caller is shown. Secrets (an agent's API key, a relay's private key, an admin
token) are made here, returned once, and kept only as hash or public key.

Where an action changes whom a relay must be able to impersonate, its result names the clusters whose
ClusterRole is to be applied again (`apply_rbac`).
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Literal

import attrs
import msgspec
from cryptography import x509

from auth.apikey import CODE_BYTES, new_api_key, new_code
from auth.apikey import hash as hash_key
from auth.keys import SigningKey
from proxy.hub.answers import Done, Payload
from proxy.hub.answers import known as _known
from proxy.hub.answers import time_text as _time
from proxy.hub.config import RELAYS_PER_CLUSTER
from proxy.hub.directory import Directory
from proxy.hub.entities import (
    Agent,
    AgentKey,
    AgentState,
    ApiKey,
    Cluster,
    Code,
    FederationRule,
    Mode,
    Snapshot,
    Team,
)
from proxy.hub.errors import InvalidError, NotFoundError
from proxy.hub.federation import NewIssuer
from proxy.hub.keyring import KeyRing
from proxy.hub.operations import Operations, SessionInfo, Sessions
from proxy.hub.policyactions import PolicyActions
from proxy.hub.rules import PEM_LENGTH_MAX, shown
from proxy.hub.store import Store
from proxy.manifests import (
    NAMESPACE,
    SERVICE_ACCOUNT,
    ManifestError,
    RelayManifest,
    cluster_role,
    relay_manifests,
    to_yaml,
)

# As many characters of a key as identify it to its holder and help nobody else: 4 of prefix, 6 of 43.
HINT_CHARACTERS = 10
# An operator's words in the reason of a kill. A relay is told of it in at most 200 bytes.
REASON_LENGTH_MAX = 200


class NewTeam(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    clusters: tuple[str, ...] = ()
    """Granted to the team at once."""


class NewAgent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    owner: str
    teams: tuple[str, ...]
    credential: Literal["api-key", "code", "none"] = "api-key"
    """What it is given to begin with."""


class AgentTeams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    teams: tuple[str, ...]


class NewFederation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    issuer: str
    agent: str
    claims: dict[str, str]
    audience: str | None = None
    """What the issuer's tokens must be for; the hub's own URL when it is left out."""
    jwks_url: str | None = None
    jwks: str | None = None
    ca_pem: str | None = None
    address_private: bool = False
    mutable_claims: bool = False


class ManifestOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the relay is deployed; nothing of it is stored."""

    namespace: str = NAMESPACE
    service_account: str = SERVICE_ACCOUNT
    image: str | None = None
    replicas: int = 2
    service_type: Literal["LoadBalancer", "ClusterIP", "NodePort"] = "LoadBalancer"
    hub_ca_pem: str | None = None
    """The CA of the hub's certificate, where the hub does not know it (its own certificate, a private CA)."""


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


class Kill(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    reason: str
    id: str | None = None
    agent: str | None = None
    cluster: str | None = None


class NewToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str


@attrs.frozen
class Administration:
    """The actions of one hub. Each raises what the store raises, and InvalidError."""

    directory: Directory
    ring: KeyRing
    pepper: bytes = attrs.field(repr=False)
    public_url: str
    hub_ca_pem: str | None
    """The CA that clients need for the hub's certificate; None when it is one of the public ones."""
    version: str
    operations: Operations
    live_sessions: Sessions
    clock: Callable[[], float] = time.time
    relays_per_cluster: int = RELAYS_PER_CLUSTER
    policies: PolicyActions = attrs.field(init=False)

    @policies.default
    def _policy_actions(self) -> PolicyActions:
        return PolicyActions(self.directory, self.clock)

    @property
    def _now(self) -> Snapshot:
        return self.directory.current

    def hub(self) -> Done:
        """What this hub is, and what a relay or an agent must know to trust it."""
        return Done(
            {
                "org": self._now.org,
                "public_url": self.public_url,
                "version": self.version,
                "ca_pem": self.hub_ca_pem,
                "signing_key": self.ring.current.active.kid,
            }
        )

    # -- signing keys

    def signing_keys(self) -> Done:
        """List the hub's signing keys, with what a relay is given of them."""
        return Done(self._signing_keys())

    async def rotate_signing_key(self) -> Done:
        """Let a new key sign; the old one verifies until every token by it has ended."""
        before = self.ring.current.active.kid
        keys = await self.ring.rotate()
        note = f"kid={keys.active.kid} before={before}"
        return Done(self._signing_keys(), created=True, note=note)

    def _signing_keys(self) -> Payload:
        keys, retiring = self.ring.current, self.ring.retiring()
        listed = [
            {
                "kid": key.kid,
                "state": "signing" if key.kid == keys.active.kid else "retiring",
                "retires_at": _time(retiring.get(key.kid)),
            }
            for key in keys.public
        ]
        return {"keys": listed, "rotations": len(keys.succession), "pins": keys.pins.to_jwks()}

    # -- teams

    def teams(self) -> Done:
        """List the teams."""
        return Done({"teams": [self._team(team) for _, team in sorted(self._now.teams_by_name.items())]})

    def team(self, name: str) -> Done:
        """Show one team."""
        return Done(self._team(_known(self._now.teams_by_name, "team", name)))

    async def add_team(self, new: NewTeam) -> Done:
        """Add a team, and grant it clusters."""

        def add(store: Store) -> None:
            store.add_team(new.name, clusters=new.clusters)

        await self.directory.change(add)
        team = self._now.teams_by_name[new.name]
        body = {**self._team(team), "apply_rbac": sorted(set(new.clusters))}
        return Done(body, created=True, note=f"id={team.id} clusters={','.join(new.clusters)}")

    async def remove_team(self, name: str) -> Done:
        """Remove a team that no agent is in."""
        team = _known(self._now.teams_by_name, "team", name)
        granted = [cluster.name for cluster in self._clusters() if team.id in cluster.team_ids]
        await self.directory.change(lambda store: store.remove_team(name))
        return Done(
            {"removed": name, "group": f"{self._now.org}/{name}", "apply_rbac": granted}, note=f"id={team.id}"
        )

    def _team(self, team: Team) -> Payload:
        agents = [a.name for _, a in sorted(self._now.agents_by_name.items()) if team.id in a.team_ids]
        return {
            "name": team.name,
            "id": team.id,
            "group": f"{self._now.org}/{team.name}",
            "agents": agents,
            "clusters": [cluster.name for cluster in self._clusters() if team.id in cluster.team_ids],
            "created_at": _time(team.created_at),
        }

    # -- agents

    def agents(self, *, retired: bool) -> Done:
        """List the agents, the retired ones only when they are asked for."""
        listed = [
            a for _, a in sorted(self._now.agents_by_name.items()) if retired or a.state != AgentState.RETIRED
        ]
        return Done({"agents": [self._agent(agent) for agent in listed]})

    async def agent(self, name: str) -> Done:
        """Show one agent with its keys (what they are recognised by, that is) and its open codes."""
        agent = _known(self._now.agents_by_name, "agent", name)
        keys = await self.directory.read(lambda store: store.credentials(name))
        codes = [code for owner, code in self._now.codes_by_hash.values() if owner.id == agent.id]
        open_codes = sorted(code.expires_at for code in codes if code.expires_at > self.clock())
        return Done(
            {
                **self._agent(agent),
                "keys": [_key(key) for key in keys],
                "codes": [{"expires_at": _time(at)} for at in open_codes],
            }
        )

    async def add_agent(self, new: NewAgent) -> Done:
        """Add an agent with its first API key or code, which is shown this once."""
        secret: Payload = {}
        note = ""
        if new.credential == "api-key":
            key, key_hash, hint = self._new_key()
            _, key_id = await self.directory.change(
                lambda store: store.add_agent(
                    new.name, owner=new.owner, teams=new.teams, key_hash=key_hash, key_hint=hint
                )
            )
            secret, note = {"api_key": key, "api_key_id": key_id}, f" key={key_id}"
        elif new.credential == "code":
            text, digest = self._new_code()

            def add(store: Store) -> Code:
                store.add_agent(new.name, owner=new.owner, teams=new.teams)
                return store.add_code(new.name, digest)

            code = await self.directory.change(add)
            secret, note = _shown_code(text, code), f" code={code.id}"
        else:
            await self.directory.change(
                lambda store: store.add_agent(new.name, owner=new.owner, teams=new.teams)
            )
        agent = self._now.agents_by_name[new.name]
        return Done(
            {
                **self._agent(agent),
                **secret,
                "apply_rbac": [cluster.name for cluster in self._now.clusters_of(agent)],
            },
            created=True,
            note=f"id={agent.id} owner={agent.owner} teams={','.join(agent.teams)}{note}",
        )

    async def set_agent_teams(self, name: str, new: AgentTeams) -> Done:
        """Replace an agent's teams."""
        await self.directory.change(lambda store: store.set_agent_teams(name, new.teams))
        agent = self._now.agents_by_name[name]
        affected = [cluster.name for cluster in self._now.clusters_of(agent)]
        return Done(
            {**self._agent(agent), "apply_rbac": affected},
            note=f"id={agent.id} teams={','.join(agent.teams)}",
        )

    async def lock_agent(self, name: str) -> Done:
        """Refuse an agent until it is unlocked."""
        return await self._agent_state(Store.lock_agent, name)

    async def unlock_agent(self, name: str) -> Done:
        """Let an agent in again."""
        return await self._agent_state(Store.unlock_agent, name)

    async def remove_agent(self, name: str) -> Done:
        """Retire an agent: its keys end, its name is never given again."""
        agent = _known(self._now.agents_by_name, "agent", name)
        affected = [cluster.name for cluster in self._now.clusters_of(agent)]
        done = await self._agent_state(Store.retire_agent, name)
        return attrs.evolve(done, body={**done.body, "apply_rbac": affected})

    async def _agent_state(self, change: Callable[[Store, str], str], name: str) -> Done:
        agent_id = await self.directory.change(lambda store: change(store, name))
        agent = self._now.agents_by_id[agent_id]
        return Done(self._agent(agent), note=f"id={agent.id} state={agent.state}")

    async def add_key(self, agent: str) -> Done:
        """Give an agent another API key, which is shown this once."""
        key, key_hash, hint = self._new_key()
        key_id = await self.directory.change(
            lambda store: store.add_api_key(agent, key_hash=key_hash, key_hint=hint)
        )
        return Done({"agent": agent, "id": key_id, "api_key": key}, created=True, note=f"key={key_id}")

    async def revoke_key(self, agent: str, key_id: str) -> Done:
        """Revoke one key of an agent, of either kind."""
        await self.directory.change(lambda store: store.revoke_key(agent, key_id))
        return Done({"agent": agent, "revoked": key_id}, note=f"key={key_id}")

    async def add_code(self, agent: str) -> Done:
        """Make a code by which an agent registers a key of its own; it is shown this once."""
        text, digest = self._new_code()
        code = await self.directory.change(lambda store: store.add_code(agent, digest))
        return Done({"agent": agent, **_shown_code(text, code)}, created=True, note=f"code={code.id}")

    async def withdraw_codes(self, agent: str) -> Done:
        """End an agent's codes that were not used yet."""
        count = await self.directory.change(lambda store: store.withdraw_codes(agent))
        return Done({"agent": agent, "withdrawn": count}, note=f"count={count}")

    # -- federation

    def federation(self) -> Done:
        """List the rules by which other issuers' tokens are agents'."""
        rules = [pair for pairs in self._now.rules_by_issuer.values() for pair in pairs]
        rules.sort(key=lambda pair: (pair[0].name, pair[1].created_at))
        return Done({"rules": [_rule(agent, rule) for agent, rule in rules]})

    async def add_federation(self, new: NewFederation) -> Done:
        """Let an issuer's tokens with exactly these claims be an agent's."""
        _check_certificates(new.ca_pem)
        issuer = NewIssuer(new.issuer, new.jwks_url, new.jwks, new.ca_pem, new.address_private)
        audience = self.public_url if new.audience is None else new.audience
        rule_id = await self.directory.change(
            lambda store: store.add_federation(
                new.agent, issuer, audience=audience, claims=new.claims, mutable=new.mutable_claims
            )
        )
        [(agent, rule)] = [p for p in self._now.rules_by_issuer[new.issuer] if p[1].id == rule_id]
        note = f"id={rule_id} agent={agent.name} claims={','.join(sorted(new.claims))}"
        return Done(_rule(agent, rule), created=True, note=f"{note} mutable={new.mutable_claims}")

    async def remove_federation(self, rule_id: str) -> Done:
        """Remove a rule; tokens that were made by it are refused at once."""
        await self.directory.change(lambda store: store.remove_federation(rule_id))
        return Done({"removed": rule_id}, note=f"id={rule_id}")

    def _new_code(self) -> tuple[str, str]:
        code = new_code(secrets.token_bytes(CODE_BYTES))
        return code, hash_key(code, self.pepper)

    def _new_key(self) -> tuple[str, str, str]:
        key = new_api_key(secrets.token_bytes(32))
        return key, hash_key(key, self.pepper), key[:HINT_CHARACTERS]

    def _agent(self, agent: Agent) -> Payload:
        return {
            "name": agent.name,
            "id": agent.id,
            "owner": agent.owner,
            "state": str(agent.state),
            "teams": list(agent.teams),
            "clusters": [cluster.name for cluster in self._now.clusters_of(agent)],
            "created_at": _time(agent.created_at),
            "last_used_at": _time(agent.last_used_at),
        }

    # -- clusters

    def clusters(self) -> Done:
        """List the clusters with the number of relays that are here."""
        # Counted once: for each cluster anew it would hold up the loop for seconds where there are thousands.
        live = self._live()
        return Done({"clusters": [self._cluster(cluster, live) for cluster in self._clusters()]})

    def cluster(self, name: str) -> Done:
        """Show one cluster with the agents that may reach it."""
        cluster = _known(self._now.clusters_by_name, "cluster", name)
        agents = [agent.name for agent in self._now.agents_of(cluster)]
        return Done({**self._cluster(cluster), "agents": agents}, cluster=cluster)

    async def add_cluster(self, new: NewCluster) -> Done:
        """Add a cluster, and return its relay's manifests with the private key, this once."""
        mode = Mode(new.mode)
        relay_key = SigningKey.generate() if mode is Mode.TUNNEL else None
        for pem in (new.relay_ca_pem, new.manifest.hub_ca_pem):
            _check_certificates(pem)
        # Rendered before anything is stored: a fault found afterwards would leave a cluster without a key.
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
            {**self._cluster(cluster), **self._relay_setup(cluster, relay_key, new.manifest)},
            created=True,
            note=f"id={cluster.id} mode={mode} teams={','.join(cluster.teams)}",
            cluster=cluster,
        )

    async def remove_cluster(self, name: str) -> Done:
        """Remove a cluster: its relays can no longer connect, its agents no longer reach it."""
        cluster = _known(self._now.clusters_by_name, "cluster", name)
        await self.directory.change(lambda store: store.remove_cluster(name))
        return Done({"removed": name}, note=f"id={cluster.id}", cluster=cluster)

    async def grant(self, name: str, team: str) -> Done:
        """Let a team's agents reach a cluster."""
        await self.directory.change(lambda store: store.grant(name, team))
        return self._granted(name, team)

    async def revoke(self, name: str, team: str) -> Done:
        """Take a cluster from a team."""
        await self.directory.change(lambda store: store.revoke(name, team))
        return self._granted(name, team)

    def _granted(self, name: str, team: str) -> Done:
        cluster = self._now.clusters_by_name[name]
        return Done({**self._cluster(cluster), "apply_rbac": [name]}, note=f"team={team}", cluster=cluster)

    async def replace_relay_key(self, name: str, new: NewRelayKey) -> Done:
        """Give a cluster's relay a new key, and return its manifests with it, this once."""
        cluster = _known(self._now.clusters_by_name, "cluster", name)
        if cluster.mode is not Mode.TUNNEL:
            raise InvalidError(f"cluster {name} is in mode direct: its relay has no key of its own")
        _check_certificates(new.manifest.hub_ca_pem)
        key = SigningKey.generate()
        setup = self._relay_setup(cluster, key, new.manifest)
        await self.directory.change(
            lambda store: store.replace_relay_key(name, key.public, keep_old=new.keep_old)
        )
        cluster = self._now.clusters_by_name[name]
        note = f"kid={key.kid} keep_old={new.keep_old}"
        return Done({**self._cluster(cluster), **setup}, created=True, note=note, cluster=cluster)

    async def drop_old_relay_keys(self, name: str) -> Done:
        """End the overlap of a replaced relay key: the newest alone is good from now on."""
        dropped = await self.directory.change(lambda store: store.drop_old_relay_keys(name))
        cluster = self._now.clusters_by_name[name]
        body = {**self._cluster(cluster), "dropped": dropped}
        return Done(body, note=f"dropped={','.join(dropped)}", cluster=cluster)

    def rbac(self, name: str, options: ManifestOptions, *, wildcard: bool, constrained: bool) -> Done:
        """Render the ClusterRole that lets the relay impersonate whoever may reach the cluster now."""
        cluster = _known(self._now.clusters_by_name, "cluster", name)
        yaml = self._cluster_rbac(cluster, options, wildcard=wildcard, constrained=constrained)
        return Done({"cluster": name, "rbac": yaml}, cluster=cluster)

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
            "manifests": to_yaml(relay_manifests(manifest)),
            "rbac": self._cluster_rbac(cluster, options),
        }

    def _manifest(
        self, name: str, cluster_id: str, mode: Mode, key: SigningKey | None, options: ManifestOptions
    ) -> RelayManifest:
        if mode is Mode.TUNNEL and options.replicas > self.relays_per_cluster:
            raise InvalidError(
                f"{options.replicas} replicas exceed the {self.relays_per_cluster} relays that this hub "
                "takes of a cluster: raise limits.relays_per_cluster first"
            )
        build = partial(
            RelayManifest,
            cluster_id=cluster_id,
            cluster_name=name,
            hub_url=self.public_url,
            hub_keys=self.ring.current.pins.to_jwks(),
            hub_ca_pem=options.hub_ca_pem or self.hub_ca_pem,
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

    def _cluster_rbac(
        self,
        cluster: Cluster,
        options: ManifestOptions,
        *,
        wildcard: bool = False,
        constrained: bool = False,
    ) -> str:
        agents = self._now.agents_of(cluster)
        # An agent is sent with all of its groups, so each of them must be allowed, also where the cluster
        # was granted to another of its teams; a team that still has no agent is named ahead of its first.
        groups = {
            group for agent in agents if agent.principal is not None for group in agent.principal.groups
        }
        groups |= {f"{self._now.org}/{team}" for team in cluster.teams}
        try:
            return to_yaml(
                cluster_role(
                    [agent.name for agent in agents],
                    sorted(groups),
                    wildcard=wildcard,
                    constrained=constrained,
                    namespace=options.namespace,
                    service_account=options.service_account,
                )
            )
        except ManifestError as error:
            raise InvalidError(str(error)) from error

    def _clusters(self) -> list[Cluster]:
        return [cluster for _, cluster in sorted(self._now.clusters_by_name.items())]

    def _live(self) -> Counter[str]:
        """How many relays of each cluster are here, by its name."""
        return Counter(relay.cluster for relay in self.operations.relays())

    def _cluster(self, cluster: Cluster, live: Counter[str] | None = None) -> Payload:
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
            "created_at": _time(cluster.created_at),
        }

    # -- relays

    async def relays(self) -> Done:
        """List the relays: those that are here with their round trip, the others with their last sign."""
        live = {(relay.cluster, relay.instance): relay for relay in self.operations.relays()}
        listed: list[Payload] = [
            {
                "cluster": relay.cluster,
                "instance": relay.instance,
                "connected": True,
                "version": relay.version,
                "address": relay.address,
                "connected_at": _time(relay.connected_at),
                "last_seen_at": _time(relay.last_seen),
                "rtt_ms": relay.rtt_ms,
                "streams": relay.streams,
                "key": relay.kid,
            }
            for relay in live.values()
        ]
        listed += [
            {
                "cluster": relay.cluster,
                "instance": relay.instance,
                "connected": False,
                "version": relay.version,
                "address": relay.address,
                "connected_at": _time(relay.connected_at),
                "last_seen_at": _time(relay.last_seen_at),
                "rtt_ms": None,
                "streams": 0,
                "key": "",
            }
            for relay in await self.directory.read(Store.relay_instances)
            if (relay.cluster, relay.instance) not in live
        ]
        listed.sort(key=lambda relay: (str(relay["cluster"]), not relay["connected"], str(relay["instance"])))
        return Done({"relays": listed})

    # -- sessions

    def sessions(self, *, agent: str | None, cluster: str | None) -> Done:
        """List the calls that are under way."""
        self._check_names(agent, cluster)
        listed = self.live_sessions.sessions(agent=agent, cluster=cluster)
        return Done({"sessions": [_session(session) for session in listed]})

    async def kill_sessions(self, kill: Kill, *, operator: str) -> Done:
        """End a call, or all of an agent, of a cluster, or of an agent on a cluster."""
        if (kill.id is None) == (kill.agent is None and kill.cluster is None):
            raise InvalidError("name one session by its id, or an agent, a cluster or both")
        reason = kill.reason.strip()
        if not 1 <= len(reason) <= REASON_LENGTH_MAX or not reason.isprintable():
            raise InvalidError(f"the reason is 1 to {REASON_LENGTH_MAX} printable characters")
        self._check_names(kill.agent, kill.cluster)
        killed = await self.live_sessions.kill(
            session_id=kill.id,
            agent=kill.agent,
            cluster=kill.cluster,
            reason=f"killed by the operator {operator}: {reason}",
        )
        if kill.id is not None and not killed:
            raise NotFoundError(f"no session {shown(kill.id)} is under way: see hawse admin session list")
        named = {"id": kill.id, "agent": kill.agent, "cluster": kill.cluster}
        which = " ".join(f"{key}={value}" for key, value in named.items() if value is not None)
        return Done(
            {"killed": [_session(session) for session in killed]},
            note=f"{which} killed={len(killed)} reason={reason}",
        )

    def _check_names(self, agent: str | None, cluster: str | None) -> None:
        if agent is not None:
            _known(self._now.agents_by_name, "agent", agent)
        # A cluster that was just removed may still have calls that are ending.
        if cluster is not None and not self.live_sessions.sessions(cluster=cluster):
            _known(self._now.clusters_by_name, "cluster", cluster)

    # -- admin tokens

    def tokens(self) -> Done:
        """List the tokens of the admin API."""
        listed = sorted(self._now.admin_tokens_by_hash.values(), key=lambda token: token.name)
        return Done(
            {
                "tokens": [
                    {
                        "name": token.name,
                        "id": token.id,
                        "created_at": _time(token.created_at),
                        "last_used_at": _time(token.last_used_at),
                    }
                    for token in listed
                ]
            }
        )

    async def add_token(self, new: NewToken) -> Done:
        """Add a token of the admin API, which is shown this once."""
        token = new_api_key(secrets.token_bytes(32))
        digest = hash_key(token, self.pepper)
        token_id = await self.directory.change(lambda store: store.add_admin_token(new.name, digest))
        return Done({"name": new.name, "id": token_id, "token": token}, created=True, note=f"id={token_id}")

    async def remove_token(self, name: str) -> Done:
        """Revoke a token of the admin API."""
        token_id = await self.directory.change(lambda store: store.remove_admin_token(name))
        return Done({"removed": name}, note=f"id={token_id}")


def _session(session: SessionInfo) -> Payload:
    return {**attrs.asdict(session), "started_at": _time(session.started_at)}


def _key(key: ApiKey | AgentKey) -> Payload:
    hint = key.hint if isinstance(key, ApiKey) else key.public.kid[:HINT_CHARACTERS]
    return {
        "id": key.id,
        "type": "api-key" if isinstance(key, ApiKey) else "key",
        "hint": f"{hint}…",
        "created_at": _time(key.created_at),
        "last_used_at": _time(key.last_used_at),
        "revoked_at": _time(key.revoked_at),
    }


def _rule(agent: Agent, found: FederationRule) -> Payload:
    return {
        "id": found.id,
        "agent": agent.name,
        "issuer": found.issuer.url,
        "audience": found.rule.audience,
        "claims": dict(found.rule.claims),
        "keys": "given" if found.issuer.jwks is not None else found.issuer.jwks_url or "discovered",
        "address_private": found.issuer.address_private,
        "created_at": _time(found.created_at),
        "last_used_at": _time(found.last_used_at),
    }


def _shown_code(text: str, code: Code) -> Payload:
    return {"code": text, "code_id": code.id, "expires_at": _time(code.expires_at)}


def _check_certificates(pem: str | None) -> None:
    if pem is None:
        return
    try:
        if len(pem) > PEM_LENGTH_MAX or "PRIVATE" in pem:
            raise ValueError
        x509.load_pem_x509_certificates(pem.encode("ascii"))
    except ValueError:
        raise InvalidError("a CA must be certificates in PEM, and nothing else") from None
