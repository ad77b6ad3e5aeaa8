"""`hawse admin policy simulate`: decide recorded calls again under other policies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from proxy.cli.admin.api.client import Reach
from proxy.cli.admin.policy.files import files_argument, read_files, say_missing
from proxy.cli.admin.policy.recorded_calls import recorded_calls
from proxy.cli.audit.options import to_moment
from proxy.cli.errors import CommandError
from proxy.cli.output import Object, field, json_option, objects, print_json, print_table, say, text, texts
from proxy.cli.progress import progress
from proxy.process.plural import counted
from proxy.process.suggestions import did_you_mean

if TYPE_CHECKING:
    from auth.policy.match import Bundle
    from auth.policy.text import Source
    from proxy.cli.admin.policy.tests import Agent, Cluster, Simulation


@click.command("simulate", short_help="Show which recorded calls would be newly denied or allowed.")
@files_argument
@click.option("--only", is_flag=True, help="As if all policies outside these files were removed.")
@click.option(
    "--since",
    default="24h",
    metavar="TIME",
    callback=to_moment,
    show_default=True,
    help="Only calls since then: an age (10m, 2h, 7d) or an RFC 3339 time.",
)
@click.option(
    "--without", multiple=True, metavar="NAME", help="As if this policy were removed too; repeatable."
)
@click.option("--agent", metavar="NAME", help="Only calls of this agent.")
@click.option("--cluster", metavar="NAME", help="Only calls on this cluster.")
@json_option
@click.pass_obj
def simulate_policies(
    reach: Reach,
    /,
    files: tuple[Path, ...],
    only: bool,
    without: tuple[str, ...],
    since: datetime,
    agent: str | None,
    cluster: str | None,
    as_json: bool,
) -> None:
    """Show which recorded calls these policies would newly deny or allow.

    It reads the audit trail in the hub's data folder, so run it on the hub's machine. Each call is decided by
    the policies in force and by the proposed ones, with today's teams and cluster labels. --agent and
    --cluster also accept removed ones, if the trail has calls of them.
    """
    from auth.policy.document import name_of
    from auth.policy.rules import missing
    from proxy.cli.admin.policy.tests import simulate, sorted_out

    client = reach.client()
    policies, _ = sorted_out(read_files(files))
    in_force = objects(client.get("policies"), "policies")
    current, proposed = _bundles(in_force, policies, only=only, without=without)
    # Including removed agents: their names are valid here, and their calls count as calls of removed agents.
    enrolled = objects(client.get("agents", retired="true"), "agents")
    agents = _agents([row for row in enrolled if row.get("state") != "retired"])
    clusters = _clusters(objects(client.get("clusters"), "clusters"))
    filters = {"agent": agent, "cluster": cluster, "since": since.isoformat()}
    with recorded_calls(reach.folder(), filters) as recorded:
        known = {text(row, "name") for row in enrolled}
        if agent is not None and agent not in known and not recorded.any_of(agent=agent):
            raise _unknown("agent", agent, known, "hawse admin agent list --retired")
        if cluster is not None and cluster not in clusters and not recorded.any_of(cluster=cluster):
            raise _unknown("cluster", cluster, clusters, "hawse admin cluster list")
        begin = recorded.begin()
        with progress() as show:
            found = simulate(recorded.since(since, agent, cluster, show), agents, clusters, current, proposed)
    teams = {text(row, "name") for row in objects(client.get("teams"), "teams")}
    given = {name_of(source) for source in policies}
    new = (policy for policy in proposed.policies if policy.name in given)
    unmet = missing(new, {"team": teams, "agent": agents, "cluster": clusters})
    if as_json:
        print_json(
            {
                "since": _time_text(since),
                "trail_begins": None if begin is None else _time_text(begin),
                **_as_json(found),
                "missing": [{**row} for row in unmet],
            }
        )
    else:
        _print(found)
        if begin is not None and begin > since:
            say(
                f"the trail begins at {_time_text(begin)}, so calls between {_time_text(since)} and then are "
                "not covered"
            )
    say_missing(unmet)


def _bundles(
    in_force: Sequence[Object], policies: Sequence[Source], *, only: bool, without: tuple[str, ...]
) -> tuple[Bundle, Bundle]:
    """Return the current and the proposed bundle; raises CommandError."""
    from auth.policy.text import PolicyError
    from proxy.cli.admin.policy.tests import compiled, merged

    documents = [text(row, "document") for row in in_force]
    names = {text(row, "name") for row in in_force}
    for name in without:
        if name not in names:
            # A typo would otherwise look like a removal that changes nothing.
            existing = f"; the policies are: {', '.join(sorted(names))}" if names else ", and no other"
            raise CommandError(f"there is no policy {name!a}{existing}")
    try:
        current = compiled(merged(documents, [], only=False))
        return current, compiled(merged(documents, policies, only=only, without=without))
    except PolicyError as error:
        raise CommandError(str(error)) from error


def _unknown(kind: str, name: str, names: Iterable[str], listing: str) -> CommandError:
    near = did_you_mean(name, names)
    return CommandError(
        f"there is no {kind} {name!a}{near}, and the trail has no call of one: for the names run `{listing}`"
    )


def _changes(found: Simulation) -> list[Object]:
    """Return the changes, denials first, and within each kind the most frequent first."""
    return [
        {
            "change": "newly allowed" if change.allowed else "newly denied",
            "count": count,
            "agent": change.agent,
            "cluster": change.cluster,
            "verb": change.verb,
            "resource": change.resource,
            "namespace": change.namespace,
            "rule_before": change.before,
            "rule_after": change.after,
        }
        for change, count in sorted(found.changes.items(), key=lambda each: (each[0].allowed, -each[1]))
    ]


def _as_json(found: Simulation) -> Object:
    return {
        "calls": found.calls,
        "newly_denied": found.newly_denied,
        "newly_allowed": found.newly_allowed,
        "unknown": found.unknown,
        "unreadable": found.unreadable,
        "changes": [*_changes(found)],
    }


def _print(found: Simulation) -> None:
    """Print the changes, and totals to compare with."""
    changes = _changes(found)
    columns = [
        ("CHANGE", field("change")),
        ("CALLS", field("count")),
        ("AGENT", field("agent")),
        ("CLUSTER", field("cluster")),
        ("VERB", field("verb")),
        ("RESOURCE", field("resource")),
        ("NAMESPACE", field("namespace")),
        ("BY", field("rule_after")),
    ]
    if changes:
        print_table(changes, columns, as_json=False, empty="", spare=("CLUSTER", "AGENT"))
    if found.calls:
        calls = counted(found.calls, "call")
        say(f"{calls}: {found.newly_denied} newly denied, {found.newly_allowed} newly allowed")
    else:
        say("no recorded call to decide, so this says nothing about these policies: use a longer --since")
    shown = sum(found.changes.values())
    if shown < found.newly_denied + found.newly_allowed:
        rest = found.newly_denied + found.newly_allowed - shown
        say(f"changes not in these {len(changes)} rows: {rest}")
    if found.unknown:
        removed = counted(found.unknown, "call")
        say(f"not decided: {removed} of removed agents or clusters, or without a grant now")
    if found.unreadable:
        say(f"not decided: {counted(found.unreadable, 'call')} that can't be read again")


def _agents(rows: list[Object]) -> Mapping[str, Agent]:
    from proxy.cli.admin.policy.tests import Agent

    return {
        text(row, "name"): Agent(text(row, "name"), tuple(texts(row, "teams")), text(row, "owner"))
        for row in rows
    }


def _clusters(rows: list[Object]) -> Mapping[str, Cluster]:
    from proxy.cli.admin.policy.tests import Cluster

    found = {}
    for row in rows:
        labels = row.get("labels")
        plain = {key: str(value) for key, value in labels.items()} if isinstance(labels, dict) else {}
        found[text(row, "name")] = Cluster(text(row, "name"), plain, tuple(texts(row, "teams")))
    return found


def _time_text(when: datetime) -> str:
    """Format a time as the admin API does."""
    return when.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
