"""Which agents and clusters a policy binds. For operators: a decision asks `auth.policy.match.binds`."""

from __future__ import annotations

import attrs

from auth.policy.rules import Policy
from proxy.hub.store.entities import Agent, Cluster, Snapshot
from proxy.hub.store.names import not_found


@attrs.frozen
class Binding:
    """What a policy binds: agents of the teams that were granted a cluster that it selects."""

    policy: Policy
    clusters: int
    """The number of clusters that it selects."""
    _granted: frozenset[str]

    @classmethod
    def of(cls, policy: Policy, now: Snapshot) -> Binding:
        """Find what a policy selects."""
        selected = [
            cluster.team_ids
            for name, cluster in now.clusters_by_name.items()
            if policy.clusters.matches(name, cluster.labels)
        ]
        return cls(policy, len(selected), frozenset().union(*selected))

    @classmethod
    def named(cls, name: str, now: Snapshot) -> Binding:
        """Find what the policy of this name selects; raises NotFoundError."""
        policies = {policy.name: policy for policy in now.bundle.policies}
        if name not in policies:
            raise not_found("policy", name, policies)
        return cls.of(policies[name], now)

    def selects(self, cluster: Cluster) -> bool:
        """Return whether the policy applies to agents on this cluster."""
        return self.policy.clusters.matches(cluster.name, cluster.labels)

    def binds(self, agent: Agent) -> bool:
        """Return whether the policy binds the agent on a cluster that it may reach."""
        return not agent.team_ids.isdisjoint(self._granted) and self.policy.binds_agent(
            agent.name, agent.teams
        )


def bound_where(agent: Agent, now: Snapshot) -> list[tuple[Policy, list[str]]]:
    """Return the policies that bind an agent, each with the clusters where it does; both by name."""
    reached = now.clusters_of(agent)
    found = []
    for policy in now.bundle.policies:
        if policy.binds_agent(agent.name, agent.teams):
            there = [each.name for each in reached if policy.clusters.matches(each.name, each.labels)]
            if there:
                found.append((policy, there))
    return found
