"""Which of several logins an agent's command is about."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from proxy.agent.account import Account

hub_option = click.option("--hub", metavar="URL", help="Which hub, if this agent has logged in to several.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def chosen_logins(hub: str | None) -> list[Account]:
    """Return the login for the hub, or all there are; never none. Raises AgentError."""
    from proxy.agent.account import find_account, hub_origin, load_accounts

    if hub is None and len(accounts := load_accounts(os.environ)) > 1:
        return list(accounts.values())
    return [find_account(os.environ, None if hub is None else hub_origin(hub))]


def chosen_login(hub: str | None, question: str) -> Account:
    """Return the login for the hub, or the only one; of several a person is asked. Raises AgentError."""
    from proxy.agent.account import find_account

    found = chosen_logins(hub)
    if len(found) == 1:
        return found[0]
    if not sys.stdin.isatty():
        # It names them, and the option.
        return find_account(os.environ, None)
    numbered = dict(enumerate(found, 1))
    for number, account in numbered.items():
        click.echo(f"  {number}  {account.hub}, as agent {account.agent}", err=True)
    return numbered[click.prompt(question, type=click.IntRange(1, len(numbered)), err=True)]
