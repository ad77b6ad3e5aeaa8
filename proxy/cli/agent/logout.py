"""`hawse logout`: remove a login from this machine."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import click

from proxy.cli.agent.login_selection import hub_option, json_option, selected_login
from proxy.cli.errors import CommandError

if TYPE_CHECKING:
    from proxy.agent.local.account import Account
    from proxy.agent.logout import Forgotten


@click.command()
@hub_option
@json_option
def logout(*, hub: str | None, as_json: bool) -> None:
    """Remove a login: its key, its cached tokens, and its hub's entries in kubeconfigs.

    It does not contact the hub, so it works even if the hub is gone. The key stays valid until the hub's
    operator revokes it; the command for that is printed. With several logins, give --hub or choose at the
    prompt.

    It searches the files of KUBECONFIG (or ~/.kube/config), and those written by `hawse kubeconfig
    --output`. Other entries are kept. A running `hawse connect` gets no more tokens.

    \b
    hawse logout --hub https://hub.example

    Exit status: 0 if everything was removed. 1 if there is no such login, or if a kubeconfig could not be
    changed; the login is removed even then.
    """
    from proxy.agent.local.errors import AgentError
    from proxy.agent.logout import log_out

    try:
        account = selected_login(hub, "Log out of which")
        done = log_out(os.environ, account)
    except AgentError as error:
        raise CommandError(str(error)) from error
    if as_json:
        click.echo(json.dumps(_document(account, done), indent=2))
    else:
        _print_result(account, done)
    if faults := [f"{each.fault}; remove its entries by hand" for each in done.kubeconfigs if each.fault]:
        raise CommandError("\n".join(faults))


def _print_result(account: Account, done: Forgotten) -> None:
    from proxy.agent.local.errors import quoted

    click.echo(f"logged out of {account.hub} (agent {account.agent})")
    for path, contexts, fault in done.kubeconfigs:
        if not fault:
            named = ", ".join(map(quoted, contexts)) or "no complete one"
            click.echo(f"removed from {path}: contexts {named}")
    if account.platform is None:
        click.echo("the key is valid until the hub's operator revokes it:")
    else:
        click.echo("no key was stored; the platform's token works until the hub's operator removes its rule:")
    click.echo(f"  {done.left_to_do}")
    if account.key_id is None:
        listing = "federation list" if account.platform else f"agent key list {account.agent}"
        click.echo(f"  (for the ID: hawse admin {listing})")


def _document(account: Account, done: Forgotten) -> dict[str, object]:
    return {
        "hub": account.hub,
        "agent": account.agent,
        "key_id": account.key_id,
        "kubeconfigs": [each._asdict() for each in done.kubeconfigs],
        "left_to_do": done.left_to_do,
    }
