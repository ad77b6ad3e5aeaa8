"""Selects a login when an agent has several: by --hub, or by asking at a terminal."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from proxy.agent.local.account import Account

hub_option = click.option("--hub", metavar="URL", help="The hub, if this agent is logged in to several.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def selected_logins(hub: str | None) -> list[Account]:
    """Return the login for the hub, or all logins; never an empty list. Raises AgentError."""
    from proxy.agent.local.account import find_account, hub_origin, load_accounts

    if hub is None and len(accounts := load_accounts(os.environ)) > 1:
        return list(accounts.values())
    return [find_account(os.environ, None if hub is None else hub_origin(hub))]


def selected_login(hub: str | None, question: str) -> Account:
    """Return the login for the hub, or the only one. With several, ask at the terminal. Raises AgentError."""
    from proxy.agent.local.account import find_account

    found = selected_logins(hub)
    if len(found) == 1:
        return found[0]
    if not sys.stdin.isatty():
        # Raises an error that lists the hubs and names --hub.
        return find_account(os.environ, None)
    numbered = dict(enumerate(found, 1))
    for number, account in numbered.items():
        click.echo(f"  {number}  {account.hub}, as agent {account.agent}", err=True)
    return numbered[click.prompt(question, type=click.IntRange(1, len(numbered)), err=True)]
