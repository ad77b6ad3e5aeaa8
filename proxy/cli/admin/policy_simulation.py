"""`hawse admin policy simulate`: recorded calls, decided once more under other policies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from proxy.cli.admin.client import Object, Reach
from proxy.cli.admin.output import field, json_option, objects, print_json, print_table, say, text, texts
from proxy.cli.admin.policy_files import files_argument, read_files, say_missing
from proxy.cli.admin.policy_recorded import recorded_calls
from proxy.cli.audit_options import to_moment
from proxy.cli.errors import CommandError
from proxy.cli.progress import progress
from proxy.process.plural import counted
from proxy.process.suggestions import did_you_mean

if TYPE_CHECKING:
    from auth.policy.match import Bundle
    from auth.policy.text import Source
    from proxy.cli.admin.policy_tests import Agent, Cluster, Simulation


@click.command("simulate", short_help="Say which recorded calls would newly pass or be denied.")
@files_argument
@click.option("--only", is_flag=True, help="As if every policy that is not among them were removed.")
@click.option(
    "--since",
    default="24h",
    metavar="TIME",
    callback=to_moment,
    show_default=True,
    help="Only calls from then on: an age (10m, 2h, 7d) or an RFC 3339 time.",
)
@click.option(
    "--without", multiple=True, metavar="NAME", help="As if this policy were removed, too; repeatable."
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
    """Say which recorded calls these policies would newly deny or allow.

    Reads the audit trail in the hub's data folder, so it runs on the hub's machine. Each call is decided by
    the policies in force and by the proposed ones, for the agent's teams and the cluster's labels of today.
    An agent or a cluster that was removed may be named as long as the trail has a call of it.
    """
    from auth.policy.document import name_of
    from auth.policy.rules import missing
    from proxy.cli.admin.policy_tests import simulate, sorted_out

    client = reach.client()
    policies, _ = sorted_out(read_files(files))
    in_force = objects(client.get("policies"), "policies")
    current, proposed = _bundles(in_force, policies, only=only, without=without)
    # With the removed ones: a name that once was is no slip, and its calls are counted as those of one gone.
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
        with progress() as tell:
            found = simulate(recorded.since(since, agent, cluster, tell), agents, clusters, current, proposed)
    teams = {text(row, "name") for row in objects(client.get("teams"), "teams")}
    given = {name_of(source) for source in policies}
    new = (policy for policy in proposed.policies if policy.name in given)
    unmet = missing(new, {"team": teams, "agent": agents, "cluster": clusters})
    if as_json:
        print_json(
            {
                "since": _time_text(since),
                "trail_begins": None if begin is None else _time_text(begin),
                "calls": found.calls,
                "newly_denied": found.newly_denied,
                "newly_allowed": found.newly_allowed,
                "unknown": found.unknown,
                "unreadable": found.unreadable,
                "changes": [*_changes(found)],
                "missing": [{**row} for row in unmet],
            }
        )
    else:
        _print(found)
        if begin is not None and begin > since:
            say(
                f"the trail begins at {_time_text(begin)}: of the time before it, from {_time_text(since)} "
                "on, this tells nothing"
            )
    say_missing(unmet)


def _bundles(
    in_force: Sequence[Object], policies: Sequence[Source], *, only: bool, without: tuple[str, ...]
) -> tuple[Bundle, Bundle]:
    """What decides now, and what would; raises CommandError."""
    from auth.policy.text import PolicyError
    from proxy.cli.admin.policy_tests import compiled, merged

    documents = [text(row, "document") for row in in_force]
    names = {text(row, "name") for row in in_force}
    for name in without:
        if name not in names:
            # Else a slip of the pen would read as a removal that changes nothing.
            there = f", only {', '.join(sorted(names))}" if names else ", and no other"
            raise CommandError(f"there is no policy {name!a}{there}")
    try:
        current = compiled(merged(documents, [], only=False))
        return current, compiled(merged(documents, policies, only=only, without=without))
    except PolicyError as error:
        raise CommandError(str(error)) from error


def _unknown(kind: str, name: str, names: Iterable[str], listing: str) -> CommandError:
    near = did_you_mean(name, names)
    return CommandError(
        f"there is no {kind} {name!a}{near}, and the trail has no call of one: "
        f"`{listing}` names those there are"
    )


def _changes(found: Simulation) -> list[Object]:
    """What would change, the denials first, of each kind the most frequent first."""
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


def _print(found: Simulation) -> None:
    """Print the changes, and in sentences what they are a part of."""
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
        say("no call was decided, so this tells nothing about these policies: look further back by --since")
    told = sum(found.changes.values())
    if told < found.newly_denied + found.newly_allowed:
        rest = found.newly_denied + found.newly_allowed - told
        say(f"of other kinds than the {len(changes)} listed: {rest}")
    if found.unknown:
        say(f"of agents or clusters that are gone, or not granted to one another now: {found.unknown} more")
    if found.unreadable:
        say(f"not to be read again: {found.unreadable} more")


def _agents(rows: list[Object]) -> Mapping[str, Agent]:
    from proxy.cli.admin.policy_tests import Agent

    return {
        text(row, "name"): Agent(text(row, "name"), tuple(texts(row, "teams")), text(row, "owner"))
        for row in rows
    }


def _clusters(rows: list[Object]) -> Mapping[str, Cluster]:
    from proxy.cli.admin.policy_tests import Cluster

    found = {}
    for row in rows:
        labels = row.get("labels")
        plain = {key: str(value) for key, value in labels.items()} if isinstance(labels, dict) else {}
        found[text(row, "name")] = Cluster(text(row, "name"), plain, tuple(texts(row, "teams")))
    return found


def _time_text(when: datetime) -> str:
    """A time as the admin API writes it."""
    return when.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
