"""`hawse admin policy simulate`: recorded calls, decided once more under other policies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from proxy.cli.admin.client import Json, Object, Reach
from proxy.cli.admin.output import field, json_option, objects, print_json, print_table, say, text, texts
from proxy.cli.admin.policy_files import files_argument, read_files, say_missing
from proxy.cli.audit_options import to_moment
from proxy.cli.errors import CommandError
from proxy.cli.progress import Progress, progress
from proxy.cli.trail import record_read
from proxy.counted import counted

if TYPE_CHECKING:
    from proxy.policytest import Agent, Cluster, Recorded


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
    """
    from auth.policy_document import name_of
    from auth.policy_rules import missing
    from auth.policy_text import PolicyError
    from proxy.policytest import compiled, merged, simulate, sorted_out

    client = reach.client()
    policies, _ = sorted_out(read_files(files))
    in_force = objects(client.get("policies"), "policies")
    documents = [text(row, "document") for row in in_force]
    names = {text(row, "name") for row in in_force}
    for name in without:
        if name not in names:
            # Else a slip of the pen would read as a removal that changes nothing.
            there = f", only {', '.join(sorted(names))}" if names else ", and no other"
            raise CommandError(f"there is no policy {name!a}{there}")
    try:
        current = compiled(merged(documents, [], only=False))
        proposed = compiled(merged(documents, policies, only=only, without=without))
    except PolicyError as error:
        raise CommandError(str(error)) from error
    agents = _agents(objects(client.get("agents"), "agents"))
    clusters = _clusters(objects(client.get("clusters"), "clusters"))
    with progress() as tell:
        recorded = _recorded(reach.folder(), since, agent, cluster, tell)
        found = simulate(recorded, agents, clusters, current, proposed)
    teams = {text(row, "name") for row in objects(client.get("teams"), "teams")}
    given = {name_of(source) for source in policies}
    new = (policy for policy in proposed.policies if policy.name in given)
    unmet = missing(new, {"team": teams, "agent": agents, "cluster": clusters})
    changes: list[Json] = [
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
    if as_json:
        print_json(
            {
                "calls": found.calls,
                "newly_denied": found.newly_denied,
                "newly_allowed": found.newly_allowed,
                "unknown": found.unknown,
                "unreadable": found.unreadable,
                "changes": changes,
                "missing": [{**row} for row in unmet],
            }
        )
        say_missing(unmet)
        return
    rows = [change for change in changes if isinstance(change, dict)]
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
    if rows:
        print_table(rows, columns, as_json=False, empty="")
    calls = counted(found.calls, "call")
    say(f"{calls}: {found.newly_denied} newly denied, {found.newly_allowed} newly allowed")
    told = sum(found.changes.values())
    if told < found.newly_denied + found.newly_allowed:
        rest = found.newly_denied + found.newly_allowed - told
        say(f"of other kinds than the {len(rows)} listed: {rest}")
    if found.unknown:
        say(f"of agents or clusters that are gone, or not granted to one another now: {found.unknown} more")
    if found.unreadable:
        say(f"not to be read again: {found.unreadable} more")
    say_missing(unmet)


def _agents(rows: list[Object]) -> Mapping[str, Agent]:
    from proxy.policytest import Agent

    return {
        text(row, "name"): Agent(text(row, "name"), tuple(texts(row, "teams")), text(row, "owner"))
        for row in rows
    }


def _clusters(rows: list[Object]) -> Mapping[str, Cluster]:
    from proxy.policytest import Cluster

    found = {}
    for row in rows:
        labels = row.get("labels")
        plain = {key: str(value) for key, value in labels.items()} if isinstance(labels, dict) else {}
        found[text(row, "name")] = Cluster(text(row, "name"), plain, tuple(texts(row, "teams")))
    return found


def _recorded(
    folder: Path, start: datetime, agent: str | None, cluster: str | None, tell: Progress
) -> Iterator[Recorded]:
    """The calls of agents in the trail, each once; raises CommandError."""
    import msgspec

    from audit.errors import AuditUnavailable
    from audit.reader import AuditReader
    from audit.record import Event, Kind
    from audit.wanted import Wanted
    from proxy.hub.datadir import DataDir
    from proxy.policytest import Recorded

    path = DataDir(folder).audit_file
    wanted = Wanted(agent, cluster, (Kind.CALL, Kind.SESSION_KILLED), start)
    filters = {"agent": agent, "cluster": cluster, "since": start.isoformat()}
    try:
        reader = AuditReader(path)
        try:
            record_read(path, "", "policy simulate", filters)
            first, last = reader.span(wanted)
            for stored in reader.events(first, last, wanted):
                tell("events read", stored.seq - first + 1, last - first + 1)
                try:
                    event = msgspec.json.decode(stored.body, type=Event)
                except msgspec.ValidationError:
                    # Of a version of hawse with events that this one does not know.
                    continue
                if not event.phase.opens and event.req is not None and event.agent:
                    yield Recorded(
                        event.agent,
                        event.cluster_name,
                        event.req.method,
                        event.req.raw_target,
                        event.ts.timestamp(),
                        upgrade=event.stream is not None and event.stream.upgraded,
                    )
        finally:
            reader.close()
    except AuditUnavailable as error:
        raise CommandError(
            f"{error}: simulate runs on the hub's machine, as the user that runs the hub"
        ) from error
