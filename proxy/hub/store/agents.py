"""The part of the store that keeps teams, and the agents in them."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from auth.principal import TEAMS_MAX
from proxy.hub.store.credentials import Credentials
from proxy.hub.store.database import Database, find, find_agent, new_id, refuse_taken
from proxy.hub.store.engines.errors import ConflictError, InvalidError
from proxy.hub.store.entities import AgentState
from proxy.hub.store.migrations import tables as t
from proxy.hub.store.names import check_name, check_owner


class Teams(Database):
    """Teams, and the names of removed teams."""

    def add_team(self, name: str, clusters: Iterable[str] = (), *, reuse_name: bool = False) -> str:
        """Add a team, grant it clusters, and return its id.

        The name of a removed team is refused, because clusters may still grant rights to its group; with
        `reuse_name` it is allowed. Raises InvalidError, ConflictError, NotFoundError for a cluster.
        """
        check_name("team", name)
        with self._change() as connection:
            refuse_taken(connection, t.teams, "team", name)
            retired = t.retired_teams.c.name == name
            if reuse_name:
                connection.execute(sa.delete(t.retired_teams).where(retired))
            elif connection.execute(sa.select(t.retired_teams.c.id).where(retired)).first() is not None:
                raise ConflictError(
                    f"team {name} was removed, and RoleBindings of clusters may still give rights to the "
                    f"group {self._org}/{name}: choose a new name, or remove those bindings and add "
                    "--reuse-name"
                )
            team_id = new_id()
            connection.execute(sa.insert(t.teams).values(id=team_id, name=name, created_at=self._clock()))
            for cluster in dict.fromkeys(clusters):
                cluster_id = find(connection, t.clusters, "cluster", cluster).id
                connection.execute(sa.insert(t.cluster_grants).values(cluster_id=cluster_id, team_id=team_id))
            return team_id

    def remove_team(self, name: str) -> str:
        """Remove a team and its grants, and return its id; its name stays reserved.

        Raises NotFoundError, ConflictError while an agent is in it.
        """
        with self._change() as connection:
            team = find(connection, t.teams, "team", name)
            inside = connection.scalars(
                sa.select(t.agents.c.name)
                .join(t.agent_teams)
                .where(t.agent_teams.c.team_id == team.id)
                .order_by(t.agents.c.name)
            ).all()
            if inside:
                raise ConflictError(
                    f"team {name} still has {_some(inside)}: give them other teams, or remove them, first"
                )
            connection.execute(sa.delete(t.teams).where(t.teams.c.id == team.id))
            connection.execute(
                sa.insert(t.retired_teams).values(name=team.name, id=team.id, retired_at=self._clock())
            )
            return str(team.id)


class Agents(Credentials):
    """Agents, their states and their teams."""

    def add_agent(
        self,
        name: str,
        *,
        owner: str,
        teams: Iterable[str],
        key_hash: str | None = None,
        key_hint: str = "",
    ) -> tuple[str, str | None]:
        """Add an agent, with its first API key when there is one, and return the ids of both.

        Raises InvalidError, ConflictError, NotFoundError for a team.
        """
        check_name("agent name", name)
        check_owner(owner)
        now = self._clock()
        with self._change() as connection:
            taken = connection.execute(sa.select(t.agents).where(t.agents.c.name == name)).first()
            if taken is not None:
                raise ConflictError(
                    f"agent {name} was retired, and a name is never given to another agent: choose a new one"
                    if taken.state == AgentState.RETIRED
                    else f"agent {name} exists already: `hawse admin agent code {name}` or "
                    f"`agent key add {name}` gives it another credential"
                )
            agent_id = new_id()
            connection.execute(
                sa.insert(t.agents).values(
                    id=agent_id,
                    name=name,
                    owner=owner,
                    state=AgentState.ACTIVE,
                    created_at=now,
                    state_changed_at=now,
                )
            )
            _set_teams(connection, agent_id, teams)
            if key_hash is None:
                return agent_id, None
            return agent_id, self._add_key(connection, agent_id, key_hash, key_hint)

    def change_agent_teams(self, name: str, *, add: Iterable[str] = (), remove: Iterable[str] = ()) -> str:
        """Add an agent to teams and remove it from others, and return its id.

        The arguments are the differences, so two concurrent changes do not undo each other. Raises
        InvalidError, NotFoundError, ConflictError.
        """
        with self._change() as connection:
            agent = find_agent(connection, name)
            gone = {find(connection, t.teams, "team", team).name for team in remove}
            inside = t.agent_teams.c.agent_id == agent.id
            present = connection.scalars(sa.select(t.teams.c.name).join(t.agent_teams).where(inside)).all()
            left = [team for team in (*present, *add) if team not in gone]
            if set(left) == set(present):
                raise ConflictError(f"nothing was changed: agent {name} is in {', '.join(sorted(present))}")
            connection.execute(sa.delete(t.agent_teams).where(inside))
            _set_teams(connection, agent.id, left)
            return str(agent.id)

    def lock_agent(self, name: str) -> str:
        """Refuse an agent until it is unlocked; returns its id. Raises NotFoundError, ConflictError."""
        return self._set_state(name, AgentState.LOCKED)

    def unlock_agent(self, name: str) -> str:
        """Accept an agent again; returns its id. Raises NotFoundError, ConflictError."""
        return self._set_state(name, AgentState.ACTIVE)

    def retire_agent(self, name: str) -> str:
        """Remove an agent for good: its keys are revoked, its name stays reserved; returns its id.

        Raises NotFoundError, ConflictError.
        """
        with self._change() as connection:
            agent_id = str(find_agent(connection, name).id)
            now = self._clock()
            connection.execute(
                sa.update(t.agents)
                .where(t.agents.c.id == agent_id)
                .values(state=AgentState.RETIRED, state_changed_at=now)
            )
            connection.execute(sa.delete(t.agent_teams).where(t.agent_teams.c.agent_id == agent_id))
            self._revoke_all(connection, agent_id, now)
            return agent_id

    def _set_state(self, name: str, state: AgentState) -> str:
        with self._change() as connection:
            agent = find_agent(connection, name)
            if agent.state == state:
                raise ConflictError(f"agent {name} is {state} already")
            connection.execute(
                sa.update(t.agents)
                .where(t.agents.c.id == agent.id)
                .values(state=state, state_changed_at=self._clock())
            )
            return str(agent.id)


def _set_teams(connection: sa.Connection, agent_id: str, names: Iterable[str]) -> None:
    distinct = tuple(dict.fromkeys(names))
    if not distinct:
        raise InvalidError(
            "an agent needs at least one team, because its rights in clusters come from its groups: "
            "add another team in the same command, or remove or lock the agent"
        )
    if len(distinct) > TEAMS_MAX:
        raise InvalidError(f"{len(distinct)} teams exceed the {TEAMS_MAX} that an agent may have")
    for name in distinct:
        team = find(connection, t.teams, "team", name)
        connection.execute(sa.insert(t.agent_teams).values(agent_id=agent_id, team_id=team.id))


def _some(names: Iterable[str]) -> str:
    """List names, but not thousands of them."""
    listed = list(names)
    rest = f" and {len(listed) - 10} more" if len(listed) > 10 else ""
    return f"agent{'s' if len(listed) > 1 else ''} {', '.join(listed[:10])}{rest}"
