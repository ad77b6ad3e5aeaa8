"""The actions of the admin API: which path does what, and what it is called in the trail.

    GET    /v1/hub  /v1/keys  /v1/teams  /v1/agents[?retired=true]  /v1/clusters  /v1/relays  /v1/tokens
    GET    /v1/teams/NAME  /v1/agents/NAME  /v1/clusters/NAME  /v1/federation
    GET    /v1/clusters/NAME/rbac (whom its relay has to be able to impersonate)
    GET    /v1/sessions[?agent=NAME][&cluster=NAME]
    POST   /v1/keys  /v1/teams  /v1/agents  /v1/clusters  /v1/tokens  /v1/sessions/kill  /v1/federation
    POST   /v1/agents/NAME/{lock,unlock,keys,codes}  /v1/clusters/NAME/{keys,repin}
    PATCH  /v1/agents/NAME/teams
    PUT    /v1/clusters/NAME/teams/TEAM
    DELETE /v1/{teams,agents,clusters,tokens}/NAME  /v1/agents/NAME/keys/ID  /v1/clusters/NAME/teams/TEAM
    DELETE /v1/clusters/NAME/keys (all but the newest)  /v1/agents/NAME/codes  /v1/federation/ID
    GET    /v1/policies  /v1/policies/NAME  /v1/policy-versions[/NUMBER]
    GET    /v1/decision?agent=…&cluster=…&method=…&target=…&upgrade=…
    POST   /v1/policies
    PUT    /v1/policies/NAME/rules
    DELETE /v1/policies/NAME

The column `role` of the table says which role of an admin token an action needs, and `revokes` which
actions work while the trail cannot be written. Both are checked in proxy.hub.admin.api.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import attrs

from proxy.hub.admin.actions.administration import Administration
from proxy.hub.admin.actions.agents import NewAgent, TeamChange
from proxy.hub.admin.actions.answers import Done
from proxy.hub.admin.actions.clusters import NewCluster, NewRelayKey
from proxy.hub.admin.actions.federation import NewFederation
from proxy.hub.admin.actions.policies import NewPolicies, Question, RuleSwitch
from proxy.hub.admin.actions.sessions import Kill
from proxy.hub.admin.actions.teams import NewTeam
from proxy.hub.admin.actions.tokens import NewToken
from proxy.hub.admin.call import Call
from proxy.hub.store.roles import Role

# What only reads the snapshot has nothing to wait for.
Run = Callable[[Administration, Call], Done | Awaitable[Done]]
Revokes = Callable[[Administration, Call], bool]
"""Whether a request takes something back, and gives nothing."""


def _never(_: Administration, call: Call) -> bool:
    return False


def _always(_: Administration, call: Call) -> bool:
    return True


def _out_of_teams(_: Administration, call: Call) -> bool:
    return not call.decode(TeamChange).add


def _switches_on_denials(administration: Administration, call: Call) -> bool:
    return administration.policies.only_denies(call.path["name"], call.decode(RuleSwitch))


@attrs.frozen
class Endpoint:
    """A path with a method, what it is called in the trail, and which role of a token it needs."""

    method: str
    path: str
    verb: str
    resource: str
    role: Role
    """No default: an endpoint without a role cannot be made."""


@attrs.frozen
class Action(Endpoint):
    """What an endpoint does."""

    run: Run
    revokes: Revokes = _never
    """What it may do while the trail or the store cannot be written. Everything else waits for both."""

    @property
    def changes(self) -> bool:
        return self.method != "GET"


METRICS = Endpoint("GET", "/metrics", "get", "metrics", Role.METRICS)

ACTIONS: Sequence[Action] = (
    Action("GET", "/v1/hub", "get", "hub", Role.VIEWER, lambda a, c: a.hub()),
    Action("GET", "/v1/keys", "list", "keys", Role.VIEWER, lambda a, c: a.signing_keys.list_all()),
    Action("POST", "/v1/keys", "rotate", "keys", Role.ADMIN, lambda a, c: a.signing_keys.rotate()),
    Action("GET", "/v1/teams", "list", "teams", Role.VIEWER, lambda a, c: a.teams.list_all()),
    Action("GET", "/v1/teams/{name}", "get", "teams", Role.VIEWER, lambda a, c: a.teams.get(c.path["name"])),
    Action("POST", "/v1/teams", "create", "teams", Role.ADMIN, lambda a, c: a.teams.add(c.decode(NewTeam))),
    Action(
        "DELETE",
        "/v1/teams/{name}",
        "delete",
        "teams",
        Role.ADMIN,
        lambda a, c: a.teams.remove(c.path["name"]),
    ),
    Action(
        "GET",
        "/v1/agents",
        "list",
        "agents",
        Role.VIEWER,
        lambda a, c: a.agents.list_all(retired=c.flag("retired")),
    ),
    Action(
        "GET", "/v1/agents/{name}", "get", "agents", Role.VIEWER, lambda a, c: a.agents.get(c.path["name"])
    ),
    Action(
        "POST", "/v1/agents", "create", "agents", Role.ADMIN, lambda a, c: a.agents.add(c.decode(NewAgent))
    ),
    Action(
        "DELETE",
        "/v1/agents/{name}",
        "delete",
        "agents",
        Role.ADMIN,
        lambda a, c: a.agents.remove(c.path["name"]),
        _always,
    ),
    Action(
        "POST",
        "/v1/agents/{name}/lock",
        "lock",
        "agents",
        Role.OPERATOR,
        lambda a, c: a.agents.lock(c.path["name"]),
        _always,
    ),
    Action(
        "POST",
        "/v1/agents/{name}/unlock",
        "unlock",
        "agents",
        Role.OPERATOR,
        lambda a, c: a.agents.unlock(c.path["name"]),
    ),
    Action(
        "PATCH",
        "/v1/agents/{name}/teams",
        "update",
        "agents/teams",
        Role.ADMIN,
        lambda a, c: a.agents.change_teams(c.path["name"], c.decode(TeamChange)),
        _out_of_teams,
    ),
    Action(
        "POST",
        "/v1/agents/{name}/keys",
        "create",
        "agents/keys",
        Role.ADMIN,
        lambda a, c: a.agents.add_key(c.path["name"]),
    ),
    Action(
        "DELETE",
        "/v1/agents/{name}/keys/{id}",
        "delete",
        "agents/keys",
        Role.ADMIN,
        lambda a, c: a.agents.revoke_key(c.path["name"], c.path["id"]),
        _always,
    ),
    Action(
        "POST",
        "/v1/agents/{name}/codes",
        "create",
        "agents/codes",
        Role.ADMIN,
        lambda a, c: a.agents.add_code(c.path["name"]),
    ),
    Action(
        "DELETE",
        "/v1/agents/{name}/codes",
        "delete",
        "agents/codes",
        Role.ADMIN,
        lambda a, c: a.agents.withdraw_codes(c.path["name"]),
    ),
    Action("GET", "/v1/clusters", "list", "clusters", Role.VIEWER, lambda a, c: a.clusters.list_all()),
    Action(
        "GET",
        "/v1/clusters/{name}",
        "get",
        "clusters",
        Role.VIEWER,
        lambda a, c: a.clusters.get(c.path["name"]),
    ),
    Action(
        "GET",
        "/v1/clusters/{name}/rbac",
        "get",
        "clusters/rbac",
        Role.VIEWER,
        lambda a, c: a.clusters.rbac(c.path["name"]),
    ),
    Action(
        "POST",
        "/v1/clusters",
        "create",
        "clusters",
        Role.ADMIN,
        lambda a, c: a.clusters.add(c.decode(NewCluster)),
    ),
    Action(
        "DELETE",
        "/v1/clusters/{name}",
        "delete",
        "clusters",
        Role.ADMIN,
        lambda a, c: a.clusters.remove(c.path["name"]),
        _always,
    ),
    Action(
        "POST",
        "/v1/clusters/{name}/keys",
        "create",
        "clusters/keys",
        Role.ADMIN,
        lambda a, c: a.clusters.replace_relay_key(c.path["name"], c.decode(NewRelayKey)),
    ),
    Action(
        "DELETE",
        "/v1/clusters/{name}/keys",
        "delete",
        "clusters/keys",
        Role.ADMIN,
        lambda a, c: a.clusters.drop_old_relay_keys(c.path["name"]),
    ),
    Action(
        "PUT",
        "/v1/clusters/{name}/teams/{team}",
        "grant",
        "clusters/teams",
        Role.ADMIN,
        lambda a, c: a.clusters.grant(c.path["name"], c.path["team"]),
    ),
    Action(
        "DELETE",
        "/v1/clusters/{name}/teams/{team}",
        "revoke",
        "clusters/teams",
        Role.ADMIN,
        lambda a, c: a.clusters.revoke(c.path["name"], c.path["team"]),
        _always,
    ),
    Action(
        "POST",
        "/v1/clusters/{name}/repin",
        "repin",
        "clusters",
        Role.ADMIN,
        lambda a, c: a.clusters.repin(c.path["name"]),
    ),
    Action("GET", "/v1/federation", "list", "federation", Role.VIEWER, lambda a, c: a.federation.list_all()),
    Action(
        "POST",
        "/v1/federation",
        "create",
        "federation",
        Role.ADMIN,
        lambda a, c: a.federation.add(c.decode(NewFederation)),
    ),
    Action(
        "DELETE",
        "/v1/federation/{name}",
        "delete",
        "federation",
        Role.ADMIN,
        lambda a, c: a.federation.remove(c.path["name"]),
        _always,
    ),
    Action("GET", "/v1/relays", "list", "relays", Role.VIEWER, lambda a, c: a.sessions.relays()),
    Action(
        "GET",
        "/v1/sessions",
        "list",
        "sessions",
        Role.OPERATOR,
        lambda a, c: a.sessions.list_all(agent=c.query.get("agent"), cluster=c.query.get("cluster")),
    ),
    Action(
        "POST",
        "/v1/sessions/kill",
        "kill",
        "sessions",
        Role.OPERATOR,
        lambda a, c: a.sessions.kill(c.decode(Kill), operator=c.operator),
        _always,
    ),
    Action("GET", "/v1/policies", "list", "policies", Role.VIEWER, lambda a, c: a.policies.list_all()),
    Action(
        "GET",
        "/v1/policies/{name}",
        "get",
        "policies",
        Role.VIEWER,
        lambda a, c: a.policies.get(c.path["name"]),
    ),
    Action(
        "POST",
        "/v1/policies",
        "apply",
        "policies",
        Role.ADMIN,
        lambda a, c: a.policies.apply(c.decode(NewPolicies)),
    ),
    Action(
        "DELETE",
        "/v1/policies/{name}",
        "delete",
        "policies",
        Role.ADMIN,
        lambda a, c: a.policies.remove(c.path["name"]),
    ),
    Action(
        "PUT",
        "/v1/policies/{name}/rules",
        "switch",
        "policies/rules",
        Role.ADMIN,
        lambda a, c: a.policies.switch(c.path["name"], c.decode(RuleSwitch)),
        _switches_on_denials,
    ),
    Action(
        "GET",
        "/v1/policy-versions",
        "list",
        "policyversions",
        Role.VIEWER,
        lambda a, c: a.policies.versions(),
    ),
    Action(
        "GET",
        "/v1/policy-versions/{name}",
        "get",
        "policyversions",
        Role.VIEWER,
        lambda a, c: a.policies.version(c.path["name"]),
    ),
    Action(
        "GET",
        "/v1/decision",
        "get",
        "decision",
        Role.VIEWER,
        lambda a, c: a.policies.explain(c.convert(Question)),
    ),
    Action("GET", "/v1/tokens", "list", "tokens", Role.AUDITOR, lambda a, c: a.tokens.list_all()),
    Action(
        "POST", "/v1/tokens", "create", "tokens", Role.ADMIN, lambda a, c: a.tokens.add(c.decode(NewToken))
    ),
    Action(
        "DELETE",
        "/v1/tokens/{name}",
        "delete",
        "tokens",
        Role.ADMIN,
        lambda a, c: a.tokens.remove(c.path["name"], at=c.at),
        _always,
    ),
)
