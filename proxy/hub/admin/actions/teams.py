"""Actions on teams."""

from __future__ import annotations

import attrs
import msgspec

from proxy.hub.admin.verbs import shapes
from proxy.hub.admin.verbs.answers import Done, Payload, known, time_text
from proxy.hub.admin.verbs.listing import Listing
from proxy.hub.admin.verbs.verb import verb
from proxy.hub.store.directory import Changes
from proxy.hub.store.entities import Snapshot, Team
from proxy.hub.store.roles import Role
from proxy.hub.store.store import Store


class NewTeam(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    clusters: tuple[str, ...] = ()
    """Clusters that the team gets access to."""
    reuse_name: bool = False
    """Whether the name may be that of a removed team."""


@attrs.frozen
class TeamActions:
    """The teams, and which clusters they reach."""

    directory: Changes

    @property
    def _now(self) -> Snapshot:
        return self.directory.current

    @verb("GET", "/v1/teams", "list", "teams", Role.VIEWER, query=Listing, answer=shapes.Teams)
    def list_all(self, listing: Listing) -> Done:
        """List the teams whose name contains a text, with their agents and clusters."""
        now = self._now
        matching = [team for name, team in sorted(now.teams_by_name.items()) if listing.contains(name)]
        agents: dict[str, list[str]] = {}
        # Once for all teams: a search among 10,000 agents for each of 200 teams would block the loop for a
        # second.
        for name, agent in sorted(now.agents_by_name.items()):
            for team_id in agent.team_ids:
                agents.setdefault(team_id, []).append(name)
        rows = [self._shown(team, agents.get(team.id, [])) for team in listing.page(matching)]
        return Done({"teams": rows, "total": len(matching)})

    @verb("GET", "/v1/teams/{name}", "get", "teams", Role.VIEWER, answer=shapes.Team)
    def get(self, name: str) -> Done:
        """Show one team."""
        return Done(self._shown(known(self._now.teams_by_name, "team", name)))

    @verb("POST", "/v1/teams", "create", "teams", Role.ADMIN, body=NewTeam)
    async def add(self, new: NewTeam) -> Done:
        """Add a team, and grant it clusters."""

        def add(store: Store) -> None:
            store.add_team(new.name, clusters=new.clusters, reuse_name=new.reuse_name)

        await self.directory.change(add)
        team = self._now.teams_by_name[new.name]
        body = {**self._shown(team), "apply_rbac": sorted(set(new.clusters))}
        note = f"name={team.name} id={team.id} clusters={','.join(new.clusters)}"
        return Done(body, created=True, note=f"{note} reuse_name=true" if new.reuse_name else note)

    @verb("DELETE", "/v1/teams/{name}", "delete", "teams", Role.ADMIN)
    async def remove(self, name: str) -> Done:
        """Remove a team without agents."""
        team = known(self._now.teams_by_name, "team", name)
        granted = self._granted(team)
        await self.directory.change(lambda store: store.remove_team(name))
        return Done(
            {"removed": name, "group": f"{self._now.org}/{name}", "apply_rbac": granted}, note=f"id={team.id}"
        )

    def _granted(self, team: Team) -> list[str]:
        clusters = sorted(self._now.clusters_by_name.items())
        return [name for name, cluster in clusters if team.id in cluster.team_ids]

    def _shown(self, team: Team, agents: list[str] | None = None) -> Payload:
        if agents is None:
            agents = [a.name for _, a in sorted(self._now.agents_by_name.items()) if team.id in a.team_ids]
        return {
            "name": team.name,
            "id": team.id,
            "group": f"{self._now.org}/{team.name}",
            "agents": agents,
            "clusters": self._granted(team),
            "created_at": time_text(team.created_at),
        }
