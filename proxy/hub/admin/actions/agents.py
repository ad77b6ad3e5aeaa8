"""Actions on agents and their credentials."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import attrs
import msgspec

from auth.apikey import CODE_BYTES, new_api_key, new_code
from auth.apikey import hash as hash_key
from proxy.hub.admin.verbs import shapes
from proxy.hub.admin.verbs.answers import Done, Payload, known, time_text
from proxy.hub.admin.verbs.listing import Listing
from proxy.hub.admin.verbs.verb import verb
from proxy.hub.authorize.binding import Binding, bound_where
from proxy.hub.store.directory import Changes
from proxy.hub.store.entities import Agent, AgentKey, AgentState, ApiKey, Code, Snapshot
from proxy.hub.store.roles import Role
from proxy.hub.store.store import Store
from tunnel.net.fairness import in_chunks

# Enough characters to recognise a key, too few to help an attacker: 4 of the prefix, 6 of 43.
HINT_CHARACTERS = 10


class AgentListing(Listing, frozen=True):
    """`q` is in the name or the owner."""

    team: str | None = None
    cluster: str | None = None
    """Only agents that may reach it."""
    policy: str | None = None
    """Only agents that it binds."""
    state: AgentState | None = None
    retired: bool = False
    """Whether agents that were removed are included."""


class NewAgent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    owner: str
    teams: tuple[str, ...]
    credential: Literal["api-key", "code", "none"] = "api-key"
    """The agent's first credential."""


class TeamChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()


@attrs.frozen
class AgentActions:
    """The agents."""

    directory: Changes
    pepper: bytes = attrs.field(repr=False)
    clock: Callable[[], float]
    limits: Callable[[str], Mapping[str, int]]
    """By key, those of the agent with this name."""

    @property
    def _now(self) -> Snapshot:
        return self.directory.current

    @verb("GET", "/v1/agents", "list", "agents", Role.VIEWER, query=AgentListing, answer=shapes.Agents)
    async def list_all(self, listing: AgentListing) -> Done:
        """List the agents that match, and count all of them by state."""
        matching = self._matching(listing)
        states = Counter(agent.state for agent in matching)
        if listing.state is not None:
            matching = [agent for agent in matching if agent.state is listing.state]
        rows = listing.page(matching)
        ids = None if listing.limit is None else [agent.id for agent in rows]
        used = await self.directory.read(lambda store: store.last_used(ids))
        # By team, once: a search of all clusters for each of 10,000 agents would take seconds.
        granted: dict[str, list[str]] = {}
        for name, cluster in self._now.clusters_by_name.items():
            for team_id in cluster.team_ids:
                granted.setdefault(team_id, []).append(name)
        return Done(
            {
                "agents": await in_chunks(partial(self._shown, used=used, granted=granted), rows),
                "total": len(matching),
                "states": {str(state): states[state] for state in AgentState},
            }
        )

    def _matching(self, listing: AgentListing) -> list[Agent]:
        """Return the agents that match all but the state, by name."""
        now = self._now
        agents = [agent for _, agent in sorted(now.agents_by_name.items())]
        if not listing.retired and listing.state is not AgentState.RETIRED:
            agents = [agent for agent in agents if agent.state is not AgentState.RETIRED]
        if listing.team is not None:
            team = known(now.teams_by_name, "team", listing.team)
            agents = [agent for agent in agents if team.id in agent.team_ids]
        if listing.cluster is not None:
            cluster = known(now.clusters_by_name, "cluster", listing.cluster)
            agents = [agent for agent in agents if now.may_reach(agent, cluster)]
        if listing.policy is not None:
            binding = Binding.named(listing.policy, now)
            agents = [agent for agent in agents if binding.binds(agent)]
        return [agent for agent in agents if listing.contains(agent.name, agent.owner)]

    @verb("GET", "/v1/agents/{name}", "get", "agents", Role.VIEWER, answer=shapes.AgentDetail)
    async def get(self, name: str) -> Done:
        """Show one agent with the hints of its keys, its unused codes, its policies and its limits."""
        agent = known(self._now.agents_by_name, "agent", name)
        keys, used = await self.directory.read(partial(_keys_and_use, name=name, agent_id=agent.id))
        codes = [code for owner, code in self._now.codes_by_hash.values() if owner.id == agent.id]
        open_codes = sorted(code.expires_at for code in codes if code.expires_at > self.clock())
        return Done(
            {
                **self._shown(agent, used),
                "keys": [_key(key, used.get(key.id)) for key in keys],
                "codes": [{"expires_at": time_text(at)} for at in open_codes],
                "policies": [
                    {"name": policy.name, "clusters": clusters}
                    for policy, clusters in bound_where(agent, self._now)
                ],
                "limits": dict(self.limits(name)),
            }
        )

    @verb("POST", "/v1/agents", "create", "agents", Role.ADMIN, body=NewAgent)
    async def add(self, new: NewAgent) -> Done:
        """Add an agent with its first API key or code, which is shown only once."""
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
                **self._shown(agent, {}),
                **secret,
                "apply_rbac": [cluster.name for cluster in self._now.clusters_of(agent)],
            },
            created=True,
            note=f"name={agent.name} id={agent.id} owner={agent.owner} teams={','.join(agent.teams)}{note}",
        )

    @verb(
        "PATCH",
        "/v1/agents/{name}/teams",
        "update",
        "agents/teams",
        Role.ADMIN,
        body=TeamChange,
        revokes=lambda self, name, change: not change.add,
    )
    async def change_teams(self, name: str, change: TeamChange) -> Done:
        """Add an agent to teams, and remove it from others."""
        used = await self._last_used(name)
        await self.directory.change(
            lambda store: store.change_agent_teams(name, add=change.add, remove=change.remove)
        )
        agent = self._now.agents_by_name[name]
        affected = [cluster.name for cluster in self._now.clusters_of(agent)]
        return Done(
            {**self._shown(agent, used), "apply_rbac": affected},
            note=f"id={agent.id} teams={','.join(agent.teams)}",
        )

    @verb("POST", "/v1/agents/{name}/lock", "lock", "agents", Role.OPERATOR, revokes=True)
    async def lock(self, name: str) -> Done:
        """Refuse an agent until it is unlocked."""
        return await self._change_state(Store.lock_agent, name)

    @verb("POST", "/v1/agents/{name}/unlock", "unlock", "agents", Role.OPERATOR)
    async def unlock(self, name: str) -> Done:
        """Accept an agent again."""
        return await self._change_state(Store.unlock_agent, name)

    @verb("DELETE", "/v1/agents/{name}", "delete", "agents", Role.ADMIN, revokes=True)
    async def remove(self, name: str) -> Done:
        """Retire an agent: its keys are revoked, and its name is never reused."""
        agent = known(self._now.agents_by_name, "agent", name)
        affected = [cluster.name for cluster in self._now.clusters_of(agent)]
        done = await self._change_state(Store.retire_agent, name)
        return attrs.evolve(done, body={**done.body, "apply_rbac": affected})

    async def _change_state(self, change: Callable[[Store, str], str], name: str) -> Done:
        used = await self._last_used(name)
        agent_id = await self.directory.change(lambda store: change(store, name))
        agent = self._now.agents_by_id[agent_id]
        return Done(self._shown(agent, used), note=f"id={agent.id} state={agent.state}")

    @verb("POST", "/v1/agents/{name}/keys", "create", "agents/keys", Role.ADMIN)
    async def add_key(self, agent: str) -> Done:
        """Give an agent another API key, which is shown only once."""
        key, key_hash, hint = self._new_key()
        key_id = await self.directory.change(
            lambda store: store.add_api_key(agent, key_hash=key_hash, key_hint=hint)
        )
        return Done({"agent": agent, "id": key_id, "api_key": key}, created=True, note=f"key={key_id}")

    @verb("DELETE", "/v1/agents/{name}/keys/{id}", "delete", "agents/keys", Role.ADMIN, revokes=True)
    async def revoke_key(self, agent: str, key_id: str) -> Done:
        """Revoke one key of an agent, of either kind."""
        await self.directory.change(lambda store: store.revoke_key(agent, key_id))
        return Done({"agent": agent, "revoked": key_id}, note=f"key={key_id}")

    @verb("POST", "/v1/agents/{name}/codes", "create", "agents/codes", Role.ADMIN)
    async def add_code(self, agent: str) -> Done:
        """Make a code with which an agent registers its own key; it is shown only once."""
        text, digest = self._new_code()
        code = await self.directory.change(lambda store: store.add_code(agent, digest))
        return Done({"agent": agent, **_shown_code(text, code)}, created=True, note=f"code={code.id}")

    @verb("DELETE", "/v1/agents/{name}/codes", "delete", "agents/codes", Role.ADMIN)
    async def withdraw_codes(self, agent: str) -> Done:
        """Revoke an agent's unused codes."""
        count = await self.directory.change(lambda store: store.withdraw_codes(agent))
        return Done({"agent": agent, "withdrawn": count}, note=f"count={count}")

    def _new_code(self) -> tuple[str, str]:
        code = new_code(secrets.token_bytes(CODE_BYTES))
        return code, hash_key(code, self.pepper)

    def _new_key(self) -> tuple[str, str, str]:
        key = new_api_key(secrets.token_bytes(32))
        return key, hash_key(key, self.pepper), key[:HINT_CHARACTERS]

    async def _last_used(self, name: str) -> Mapping[str, float]:
        """The agent's time of last use, for the answer of a change.

        Read before that: a failed read after it would look like a failed change.
        """
        agent = self._now.agents_by_name.get(name)
        ids = [] if agent is None else [agent.id]
        return await self.directory.read(lambda store: store.last_used(ids))

    def _shown(
        self,
        agent: Agent,
        used: Mapping[str, float],
        granted: Mapping[str, Sequence[str]] | None = None,
    ) -> Payload:
        if granted is None:
            clusters = [cluster.name for cluster in self._now.clusters_of(agent)]
        else:
            clusters = sorted({name for team_id in agent.team_ids for name in granted.get(team_id, ())})
        return {
            "name": agent.name,
            "id": agent.id,
            "owner": agent.owner,
            "state": str(agent.state),
            "teams": list(agent.teams),
            "clusters": clusters,
            "created_at": time_text(agent.created_at),
            "last_used_at": time_text(used.get(agent.id)),
        }


def _keys_and_use(
    store: Store, *, name: str, agent_id: str
) -> tuple[list[ApiKey | AgentKey], Mapping[str, float]]:
    keys = store.credentials(name)
    return keys, store.last_used([agent_id, *(key.id for key in keys)])


def _key(key: ApiKey | AgentKey, last_used_at: float | None) -> Payload:
    hint = key.hint if isinstance(key, ApiKey) else key.public.kid[:HINT_CHARACTERS]
    return {
        "id": key.id,
        "type": "api-key" if isinstance(key, ApiKey) else "key",
        "hint": f"{hint}…",
        "created_at": time_text(key.created_at),
        "last_used_at": time_text(last_used_at),
        "revoked_at": time_text(key.revoked_at),
    }


def _shown_code(text: str, code: Code) -> Payload:
    return {"code": text, "code_id": code.id, "expires_at": time_text(code.expires_at)}
