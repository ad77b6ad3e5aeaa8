"""`hawse admin policy simulate`: decide recorded calls again under other policies."""

from __future__ import annotations

import itertools
from datetime import datetime
from pathlib import Path

import click

from audit.escape import escape_lines
from proxy.cli.admin.api.client import AdminClient, Reach
from proxy.cli.admin.policy.files import files_argument, padded, read_files, say_missing
from proxy.cli.audit.options import to_moment
from proxy.cli.errors import CommandError
from proxy.cli.output import Object, child, field, json_option, objects, print_json, print_table, say, text
from proxy.cli.progress import progress
from proxy.process.plural import counted

# How long each request waits for the end. Each is an event of the trail, so they get longer; at most what the
# hub grants.
_WAITS_S = (1, 2, 4, 8, 16, 20)


@click.command("simulate", short_help="Show which recorded calls would be decided differently.")
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
    """Show which recorded calls these policies would newly deny, ask about, or allow.

    The hub decides each call of its trail by the policies in force and by the proposed ones, with today's
    teams and cluster labels. --agent and --cluster also accept removed ones, if the trail has calls of them.
    """
    from proxy.cli.admin.policy.tests import sorted_out

    client = reach.client()
    policies, _ = sorted_out(read_files(files))
    body = {
        "files": [{"name": source.file, "text": padded(source)} for source in policies],
        "only": only,
        "without": without,
        "since": since.isoformat(),
        "agent": agent or "",
        "cluster": cluster or "",
    }
    found = _result_of(client, client.post("policy-simulations", body=body))
    unmet = objects(found, "missing")
    if as_json:
        print_json({key: value for key, value in found.items() if key != "diff"})
    else:
        _print(found)
        begin = text(found, "trail_begins")
        if begin > text(found, "since"):
            say(
                f"the trail begins at {begin}, so calls between {text(found, 'since')} and then are "
                "not covered"
            )
    say_missing(unmet)


def _result_of(client: AdminClient, started: Object) -> Object:
    """Wait for a simulation, and return its result; raises CommandError. Ctrl-C cancels it."""
    simulation_id, found = text(started, "id"), started
    waits = itertools.chain(_WAITS_S, itertools.repeat(_WAITS_S[-1]))
    try:
        with progress() as show:
            while not found.get("ended_at"):
                found = client.get("policy-simulations", simulation_id, wait_s=str(next(waits)))
                if (
                    isinstance(of := found.get("of"), int)
                    and isinstance(read := found.get("read"), int)
                    and of
                ):
                    show("events read", read, of)
    except KeyboardInterrupt:
        client.delete("policy-simulations", simulation_id)
        raise
    state = text(found, "state")
    if state == "cancelled":
        raise CommandError("the simulation was cancelled by another operator")
    if state != "done":
        raise CommandError(escape_lines(text(found, "message")))
    return child(found, "result")


def _print(found: Object) -> None:
    """Print the changes, and totals to compare with."""
    changes = objects(found, "changes")
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
    calls, unknown, unreadable = (_number(found, key) for key in ("calls", "unknown", "unreadable"))
    totals = {word: _number(found, f"newly_{word}") for word in ("denied", "asked", "allowed")}
    if calls:
        said = ", ".join(
            f"{count} newly {word}" for word, count in totals.items() if count or word != "asked"
        )
        say(f"{counted(calls, 'call')}: {said}")
    else:
        say("no recorded call to decide, so this says nothing about these policies: use a longer --since")
    shown = sum(_number(change, "count") for change in changes)
    if shown < (changed := sum(totals.values())):
        say(f"changes not in these {len(changes)} rows: {changed - shown}")
    if unknown:
        removed = counted(unknown, "call")
        say(f"not decided: {removed} of removed agents or clusters, or without a grant now")
    if unreadable:
        say(f"not decided: {counted(unreadable, 'call')} that can't be read again")


def _number(document: Object, key: str) -> int:
    value = document.get(key)
    return value if isinstance(value, int) else 0
