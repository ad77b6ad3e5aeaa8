"""`hawse status`: this agent's logins, and whether its hubs accept them."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import click

from proxy.cli.agent.login_selection import hub_option, json_option, selected_logins
from proxy.cli.errors import AnswerIsNo, CommandError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.agent.status import Status


@click.command()
@hub_option
@json_option
def status(*, hub: str | None, as_json: bool) -> None:
    """Show this agent's logins, and what each hub says about them now.

    Each hub reports whether it accepts the credential, the difference to this machine's clock, and the
    clusters. If a hub does not answer, only this machine's part is shown: the login and its kubeconfig
    entries.

    Exit status: 0 if every hub accepts its login. 3 if a hub refuses it (key revoked, agent locked, or the
    hub has another URL). 1 if a hub does not answer, or there is no login.
    """
    from proxy.agent.local.errors import AgentError
    from proxy.agent.status import REFUSED, status_of

    try:
        found = [status_of(os.environ, account) for account in selected_logins(hub)]
    except AgentError as error:
        raise CommandError(str(error)) from error
    if as_json:
        click.echo(json.dumps([_document(each) for each in found], indent=2))
    else:
        for number, each in enumerate(found):
            click.echo(("\n" if number else "") + each.account.hub)
            for name, value in _lines(each):
                click.echo(f"  {name:10}  {value}")
    faults = "\n".join(each.fault for each in found if each.fault)
    if any(each.state == REFUSED for each in found):
        raise AnswerIsNo(faults)
    if faults:
        raise CommandError(faults)


def _lines(of: Status) -> Iterator[tuple[str, str]]:
    from proxy.agent.local.account import logins_path
    from proxy.agent.local.errors import quoted
    from proxy.agent.status import ACCEPTED, REFUSED, clock_text, other_name, proof_text

    account, reach = of.account, of.reach
    who = account.agent if reach is None else f"{reach.agent} of {reach.org}"
    teams = f", teams {', '.join(reach.teams)}" if reach is not None and reach.teams else ""
    yield "agent", f"{who}{teams}"
    key_id = f" (id {account.key_id})" if account.key_id else ""
    yield "proof", f"{proof_text(account)}{key_id}"
    yield "login", logins_path(os.environ)
    end = "its operator revokes it" if account.platform is None else "its rule at the hub is removed"
    states = {ACCEPTED: f"accepted until {end}", REFUSED: "refused, see below"}
    yield "state", states.get(of.state, "unknown, see below")
    if reach is not None:
        if name := other_name(account, reach):
            yield "hub's name", f"{name}: log in there, and run `hawse logout --hub {account.hub}`"
        if at := clock_text(reach):
            yield "clock", at
        by_cluster = ((each, reach.states.get(each)) for each in reach.clusters)
        clusters = (f"{each} ({state})" if state else each for each, state in by_cluster)
        yield "clusters", ", ".join(clusters) or "none: ask the operator to grant its team one"
    for path, contexts, fault in of.kubeconfigs:
        yield "kubeconfig", fault or f"{path}: {', '.join(map(quoted, contexts)) or 'no context'}"
    if not of.kubeconfigs:
        yield "kubeconfig", f"no entries for this hub: run `hawse kubeconfig --hub {account.hub}`"


def _document(of: Status) -> dict[str, object]:
    from proxy.agent.status import other_name, proof_text

    account, reach = of.account, of.reach
    hub_facts = (
        {}
        if reach is None
        else {
            "org": reach.org,
            "teams": list(reach.teams),
            "hub_calls_itself": other_name(account, reach) or account.hub,
            "clock_ahead_s": None if reach.skew_s is None else round(reach.skew_s),
            "clusters": [
                {"name": name, "state": reach.states.get(name), "may": reach.may.get(name)}
                for name in reach.clusters
            ],
        }
    )
    return {
        "hub": account.hub,
        "agent": account.agent,
        "proof": proof_text(account),
        "key_id": account.key_id,
        "state": of.state,
        "fault": of.fault or None,
        **hub_facts,
        "kubeconfigs": [each._asdict() for each in of.kubeconfigs],
    }
