"""Actions on simulations of policies: they decide the calls of the trail again."""

from __future__ import annotations

from datetime import UTC, datetime

import attrs
import msgspec
import trio

from auth.policy.document import name_of
from auth.policy.text import split
from proxy.hub.admin.actions.policies import File
from proxy.hub.admin.simulation.job import AgentFacts, ClusterFacts, Document, Job
from proxy.hub.admin.simulation.simulations import Running, Simulations
from proxy.hub.admin.verbs.answers import Done, Payload, time_text
from proxy.hub.admin.verbs.call import Call
from proxy.hub.admin.verbs.verb import verb
from proxy.hub.store.directory import Changes
from proxy.hub.store.engines.errors import InvalidError
from proxy.hub.store.entities import AgentState, Snapshot
from proxy.hub.store.roles import Role

# A client asks again after it: no load balancer ends a request within that.
WAIT_S_MAX = 20.0


class NewSimulation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    files: tuple[File, ...]
    since: datetime
    """With a time zone."""
    only: bool = False
    """Whether to simulate that all policies outside the files are removed."""
    without: tuple[str, ...] = ()
    """Further policies to simulate the removal of."""
    agent: str = ""
    cluster: str = ""


class Wait(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    wait_s: float = 0.0
    """How long to wait for the end of a simulation, at most."""


@attrs.frozen
class SimulationActions:
    """The simulations of this hub."""

    directory: Changes
    simulations: Simulations

    @verb(
        "POST",
        "/v1/policy-simulations",
        "create",
        "policysimulations",
        Role.AUDITOR,
        body=NewSimulation,
        with_call=True,
        reads=True,
    )
    async def start(self, new: NewSimulation, call: Call) -> Done:
        """Start to decide the calls of the trail again, by the policies in force and by proposed ones."""
        if new.since.tzinfo is None:
            raise InvalidError("since must have a time zone, as in 2026-01-31T08:00:00Z")
        try:
            new.since.astimezone(UTC)
        except OverflowError as error:
            raise InvalidError("since must be within the years 1 to 9999 in UTC") from error
        # In a thread: it reads the documents.
        names = await trio.to_thread.run_sync(_names_in, new.files)
        started = self.simulations.start(_job(self.directory.current, new), call.operator, names)
        filters = (("agent", new.agent), ("cluster", new.cluster), ("without", ",".join(new.without)))
        note = [
            f"simulation={started.id} policies={','.join(names)} since={time_text(started.since)}",
            *(f"{name}={value}" for name, value in filters if value),
        ]
        return Done(self._shown(started), accepted=True, note=" ".join(note))

    @verb("GET", "/v1/policy-simulations", "list", "policysimulations", Role.AUDITOR)
    def list_all(self) -> Done:
        """List the last simulations of this hub, without their results."""
        return Done(
            {"simulations": [{**self._shown(each), "result": None} for each in self.simulations.all()]}
        )

    @verb("GET", "/v1/policy-simulations/{name}", "get", "policysimulations", Role.AUDITOR, query=Wait)
    async def get(self, simulation_id: str, wait: Wait) -> Done:
        """Show a simulation, with its result once it is done; `wait_s` waits for the end."""
        found = self.simulations.get(simulation_id)
        if not 0 <= wait.wait_s <= WAIT_S_MAX:
            raise InvalidError(f"wait_s must be 0 to {WAIT_S_MAX:.0f}")
        with trio.move_on_after(wait.wait_s):
            await found.ended.wait()
        return Done(self._shown(found))

    @verb("DELETE", "/v1/policy-simulations/{name}", "cancel", "policysimulations", Role.AUDITOR, reads=True)
    def cancel(self, simulation_id: str) -> Done:
        """Cancel a simulation."""
        found = self.simulations.cancel(simulation_id)
        return Done(self._shown(found), note=f"simulation={found.id} of {found.operator}")

    def _shown(self, each: Running) -> Payload:
        return {
            "id": each.id,
            "operator": each.operator,
            "hub": self.simulations.hub,
            "state": each.state,
            "created_at": time_text(each.created_at),
            "ended_at": time_text(each.ended_at),
            "since": time_text(each.since),
            "agent": each.agent,
            "cluster": each.cluster,
            "policies": each.policies,
            "read": each.progress.read,
            "of": each.progress.of,
            "message": each.outcome.message,
            "faults": each.outcome.faults,
            "result": each.outcome.result,
        }


def _names_in(files: tuple[File, ...]) -> list[str]:
    names = (name_of(source) for file in files for source in split(file.text, file.name))
    return sorted({name for name in names if name})


def _job(now: Snapshot, new: NewSimulation) -> Job:
    return Job(
        files=tuple(Document(file.text, file.name) for file in new.files),
        only=new.only,
        without=new.without,
        since=new.since.timestamp(),
        agent=new.agent,
        cluster=new.cluster,
        in_force=tuple(policy.source.text for policy in now.bundle.policies),
        agents=tuple(
            AgentFacts(agent.name, agent.teams, agent.owner, agent.state is AgentState.RETIRED)
            for agent in now.agents_by_name.values()
        ),
        clusters=tuple(
            ClusterFacts(cluster.name, dict(cluster.labels), cluster.teams)
            for cluster in now.clusters_by_name.values()
        ),
        teams=tuple(now.teams_by_name),
    )
