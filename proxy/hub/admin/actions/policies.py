"""Actions on policies."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated

import attrs
import msgspec

from auth.policy.advice import asking
from auth.policy.ask import Ask
from auth.policy.diff import diff
from auth.policy.document import name_of, policy_of
from auth.policy.match import Bundle
from auth.policy.rules import Effect, Policy, Rule, missing
from auth.policy.text import PolicyError, Source, read, split
from auth.requestinfo import BadTarget, RequestInfo, parse
from proxy.hub.admin.verbs.answers import Done, Payload, known, time_text
from proxy.hub.admin.verbs.verb import verb
from proxy.hub.approvals.plan.bindable import check_bindable
from proxy.hub.approvals.plan.refusal import CannotAskError
from proxy.hub.authorize.binding import Binding
from proxy.hub.authorize.decisions import denial, judge
from proxy.hub.authorize.warnings import ask_warnings, change_warnings
from proxy.hub.store.directory import Changes
from proxy.hub.store.engines.errors import ConflictError, InvalidError, NotFoundError
from proxy.hub.store.entities import AgentState
from proxy.hub.store.policies import BundleRow, PolicyFaultsError, Proposal
from proxy.hub.store.roles import Role
from proxy.hub.store.store import Store
from proxy.kubernetes.described import request_for
from tunnel.net.fairness import in_chunks


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    text: str
    name: str = ""
    """The name for errors in this file."""


class NewPolicies(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    files: tuple[File, ...]
    only: bool = False
    """Whether to remove all other policies."""
    dry_run: bool = False
    """As in the query. An older hub refuses it here, while it would ignore the query and apply."""


class ApplyOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dry_run: bool = False
    """Whether to change nothing, and to return what would change."""


class RuleSwitch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rules: tuple[str, ...]
    enabled: bool


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request as a client sends it (`method` and `target`), or in the words of `kubectl auth can-i`."""

    agent: str
    cluster: str
    target: str = ""
    method: str = "GET"
    upgrade: bool = False
    verb: str = ""
    resource: str = ""
    """Such as pods, pods/log, deployments.apps, or a path."""
    name: str = ""
    namespace: str = ""

    def line(self) -> tuple[str, str]:
        """Return its method and its target; raises InvalidError."""
        if bool(self.target) == bool(self.verb and self.resource):
            raise InvalidError("name a target, or a verb and a resource")
        if self.target:
            return self.method, self.target
        try:
            return request_for(self.verb, self.resource, self.name, self.namespace)
        except ValueError as error:
            raise InvalidError(str(error)) from error


class OneVersion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """A stored version; by default the one in force."""


@attrs.frozen
class PolicyActions:
    """The policies."""

    directory: Changes
    clock: Callable[[], float]

    @property
    def _bundle(self) -> Bundle:
        return self.directory.current.bundle

    @verb("GET", "/v1/policies", "list", "policies", Role.VIEWER)
    async def list_all(self) -> Done:
        """List the policies in force, with their documents and their version."""
        bundle = self._bundle
        row = await self.directory.read(lambda store: store.bundle(bundle.version))
        listed = [_policy(policy) for policy in bundle.policies]
        return Done({**_version(bundle), "applied_at": time_text(row.created_at), "policies": listed})

    @verb("GET", "/v1/policies/{name}", "get", "policies", Role.VIEWER, query=OneVersion)
    async def get(self, name: str, which: OneVersion) -> Done:
        """Show one policy, of the version in force or of a stored one.

        For the version in force, count the agents that it binds, and the clusters that it selects.
        """
        now = self.directory.current
        if which.version is not None and which.version != now.bundle.version:
            number = which.version
            row, policy = await self.directory.read(lambda store: _stored(store.bundle(number), name))
            bundle = f"{row.version}-{row.hash}"
            return Done({"version": row.version, "hash": row.hash, "bundle": bundle, **_policy(policy)})
        binding = Binding.named(name, now)
        agents = [agent for agent in now.agents_by_id.values() if agent.state is not AgentState.RETIRED]
        binds = {"agents": sum(await in_chunks(binding.binds, agents)), "clusters": binding.clusters}
        return Done({**_version(now.bundle), **_policy(binding.policy), "binds": binds})

    @verb("GET", "/v1/policy-versions", "list", "policyversions", Role.VIEWER)
    async def versions(self) -> Done:
        """List the stored bundles, the newest first."""
        rows = await self.directory.read(Store.bundles)
        return Done({"versions": [_row(row) for row in rows]})

    @verb("GET", "/v1/policy-versions/{name}", "get", "policyversions", Role.VIEWER)
    async def version(self, number: str) -> Done:
        """Show a stored bundle with its documents."""
        version = _number(number)
        row = await self.directory.read(lambda store: store.bundle(version))
        return Done({**_row(row), "documents": list(row.documents)})

    @verb("GET", "/v1/policy-versions/{name}/diff/{other}", "diff", "policyversions", Role.VIEWER)
    async def compare(self, number: str, other: str) -> Done:
        """Compare two stored bundles, by rule."""
        versions = _number(number), _number(other)

        def compare(store: Store) -> Payload:
            before, after = (store.bundle(version) for version in versions)
            changes = differences(before.documents, after.documents)
            return {"before": _row(before), "after": _row(after), "diff": changes}

        try:
            return Done(await self.directory.read(compare))
        except PolicyError as error:
            raise ConflictError(f"this version of hawse cannot read a stored policy: {error}") from error

    @verb("POST", "/v1/policies", "apply", "policies", Role.ADMIN, body=NewPolicies, query=ApplyOptions)
    async def apply(self, new: NewPolicies, options: ApplyOptions) -> Done:
        """Replace the policies of the same names; with `dry_run` check them, and show the difference."""
        sources: list[Source] = [source for file in new.files for source in split(file.text, file.name)]
        if new.dry_run or options.dry_run:
            return await self._check(sources, only=new.only)
        done = await self._change(lambda store: store.apply_policies(sources, only=new.only))
        bundle = self._bundle
        body = {
            **done.body,
            "missing": self._missing(bundle, sources),
            "warnings": ask_warnings(bundle, map(name_of, sources)),
        }
        return attrs.evolve(done, body=body)

    async def _check(self, sources: list[Source], *, only: bool) -> Done:
        """Return what applying the documents would change, or their faults."""
        body: dict[str, object] = {
            "dry_run": True,
            **_version(self._bundle),
            **dict.fromkeys(("faults", "warnings", "missing", "added", "edited", "removed", "diff"), ()),
        }
        note = "dry run, nothing is changed"

        def propose(store: Store) -> tuple[Proposal, list[Payload]]:
            proposal = store.propose_policies(sources, only=only)
            return proposal, differences(proposal.documents, proposal.proposed)

        try:
            proposal, changes = await self.directory.read(propose)
        except PolicyFaultsError as error:
            faults = [attrs.asdict(fault) for fault in error.faults]
            return Done({**body, "faults": faults}, note=f"{note}; faults: {len(faults)}")
        unmet = self._missing(proposal.after, sources)
        unknown = [
            f"policy {row['policy']} names {row['kind']} {row['name']}, which does not exist" for row in unmet
        ]
        body |= {
            **_version(proposal.before),
            **_changes(proposal.before, proposal.after),
            "diff": changes,
            "missing": unmet,
            "warnings": [
                *unknown,
                *change_warnings(proposal.before, proposal.after),
                *ask_warnings(proposal.after, map(name_of, sources)),
            ],
        }
        return Done(body, note=note)

    def _missing(self, bundle: Bundle, sources: list[Source]) -> list[dict[str, str]]:
        """Return the names in these documents that do not exist."""
        given, now = {name_of(source) for source in sources}, self.directory.current
        there = {"team": now.teams_by_name, "agent": now.agents_by_name, "cluster": now.clusters_by_name}
        return missing((policy for policy in bundle.policies if policy.name in given), there)

    @verb("DELETE", "/v1/policies/{name}", "delete", "policies", Role.ADMIN)
    async def remove(self, name: str) -> Done:
        """Remove a policy."""
        return await self._change(lambda store: store.remove_policy(name))

    def only_denies(self, name: str, switched: RuleSwitch) -> bool:
        """Return whether a switch only enables rules that deny.

        A rule that asks may let through what no rule allows.
        """
        denies = {
            rule.id: rule.effect is Effect.DENY
            for policy in self._bundle.policies
            if policy.name == name
            for rule in policy.rules
        }
        # An unknown rule counts as one that allows.
        return switched.enabled and all(denies.get(rule, False) for rule in switched.rules)

    @verb(
        "PUT",
        "/v1/policies/{name}/rules",
        "switch",
        "policies/rules",
        Role.ADMIN,
        body=RuleSwitch,
        revokes=only_denies,
    )
    async def switch(self, name: str, switched: RuleSwitch) -> Done:
        """Switch rules of a policy on or off."""
        done = await self._change(
            lambda store: store.switch_rules(name, switched.rules, enabled=switched.enabled)
        )
        what = "on" if switched.enabled else "off"
        return attrs.evolve(done, note=f"{done.note}; switched {what}: {','.join(switched.rules)}")

    async def _change(self, change: Callable[[Store], Bundle]) -> Done:
        # Both in one change, so that another operator's change is not included.
        before, after = await self.directory.change(lambda store: (self._bundle, change(store)))
        return _changed(before, after)

    @verb("GET", "/v1/decision", "get", "decision", Role.VIEWER, query=Question)
    def explain(self, question: Question) -> Done:
        """Explain how a request would be decided now."""
        now = self.directory.current
        agent = known(now.agents_by_name, "agent", question.agent)
        cluster = known(now.clusters_by_name, "cluster", question.cluster)
        method, target = question.line()
        try:
            info = parse(method.encode("utf-8"), target.encode("utf-8"))
        except BadTarget as error:
            raise InvalidError(f"the request is malformed: {error.reason}") from error
        if question.upgrade:
            info = info.upgraded()
        verdict = judge(now.bundle, agent, cluster, info, self.clock())
        body: dict[str, object] = {
            **_version(now.bundle),
            "allowed": verdict.allowed and agent.active and now.may_reach(agent, cluster),
            "decision": verdict.recorded.effect,
            "rule": verdict.decision.rule,
            "policy": verdict.decision.policy,
            "max_duration_s": verdict.decision.max_duration_s,
            "request": {
                "verb": info.verb,
                "group": info.group,
                "resource": info.resource,
                "subresource": info.subresource,
                "namespace": info.namespace,
                "name": info.name,
            },
            "bound": sorted({ready.policy.name for ready in now.bundle.scope_of(agent, cluster).rules}),
        }
        if not agent.active:
            body["refused"] = f"agent:{agent.name} is {agent.state}"
        elif not now.may_reach(agent, cluster):
            body["refused"] = f"cluster {cluster.name} is not granted to a team of agent:{agent.name}"
        if (ask := verdict.decision.ask) is not None:
            rules = asking(now.bundle, agent, cluster, info, self.clock())
            body |= {
                "ask": _ask(ask),
                "other_asks": [
                    {"policy": other.policy, "rule": other.rule, **_ask(other.ask)}
                    for other in rules
                    if other is not verdict.decision and other.ask is not None
                ],
                "unapprovable": _unapprovable(info, ask),
            }
        if not verdict.allowed:
            denied = denial(verdict, agent, cluster, info)
            body |= {"message": denied.message, "details": denied.details}
        return Done(body, cluster=cluster)


def differences(before: Iterable[str], after: Iterable[str]) -> list[Payload]:
    """Return the difference of two bundles' documents, for an answer; raises PolicyError."""
    found = diff(map(Source, before), map(Source, after))
    return [attrs.asdict(change) for change in found]


def _number(text: str) -> int:
    """Read the number of a stored bundle; raises NotFoundError."""
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise NotFoundError(f"there is no version {text[:20]!r} of the policies")
    return int(text)


def _version(bundle: Bundle) -> dict[str, object]:
    return {"version": bundle.version, "hash": bundle.hash, "bundle": bundle.id}


def _row(row: BundleRow) -> Payload:
    return {"version": row.version, "hash": row.hash, "applied_at": time_text(row.created_at)}


def _policy(policy: Policy) -> dict[str, object]:
    return {
        "name": policy.name,
        "owner": policy.owner,
        "contact": policy.contact,
        "teams": list(policy.teams.patterns) if policy.teams is not None else [],
        "agents": list(policy.agents.patterns) if policy.agents is not None else [],
        "clusters": [
            *(policy.clusters.names.patterns if policy.clusters.names is not None else ()),
            *map(str, policy.clusters.terms),
        ],
        "rules": [_rule(rule) for rule in policy.rules],
        "document": policy.source.text,
    }


def _rule(rule: Rule) -> dict[str, object]:
    row: dict[str, object] = {
        "id": rule.id,
        "effect": rule.effect,
        "enabled": rule.enabled,
        "reason": rule.reason,
        "line": rule.line,
    }
    return row if rule.ask is None else {**row, "ask": _ask(rule.ask)}


def _unapprovable(info: RequestInfo, ask: Ask) -> str:
    """Return why no approval can be bound to such a call, so that it is refused; empty for others."""
    try:
        check_bindable(info, ask)
    except CannotAskError as error:
        return error.reason
    return ""


def _ask(ask: Ask) -> dict[str, object]:
    return {
        "approvers": list(ask.approvers),
        "wait_s": ask.wait_s,
        "valid_for_s": ask.valid_for_s,
        "interactive": ask.interactive,
        "dry_run": list(ask.dry_run.patterns) if ask.dry_run is not None else [],
        "show_env": ask.show_env,
    }


def _stored(row: BundleRow, name: str) -> tuple[BundleRow, Policy]:
    """Read one policy of a stored bundle; raises NotFoundError, InvalidError."""
    sources = {name_of(source): source for source in map(Source, row.documents)}
    source = known(sources, "policy", name)
    try:
        return row, policy_of(read(source), source, check_condition=lambda _: "")
    except PolicyError as error:
        raise InvalidError(f"version {row.version} of the policy {name} is refused now: {error}") from error


def _changed(before: Bundle, after: Bundle) -> Done:
    """Return the answer to a change."""
    changed = _changes(before, after)
    parts = [f"bundle={after.id}", *(f"{what} {','.join(names)}" for what, names in changed.items() if names)]
    return Done({**_version(after), **changed}, note="; ".join(parts))


def _changes(before: Bundle, after: Bundle) -> dict[str, list[str]]:
    """Return the differences of two bundles, by the names of their policies."""
    old = {policy.name: policy for policy in before.policies}
    new = {policy.name: policy for policy in after.policies}
    both = old.keys() & new.keys()
    return {
        "added": sorted(new.keys() - old.keys()),
        "edited": sorted(name for name in both if new[name].data != old[name].data),
        "removed": sorted(old.keys() - new.keys()),
    }
