"""`hawse logout`: this machine forgets a login."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import click

from proxy.cli.choosing import chosen_login, hub_option, json_option
from proxy.cli.errors import CommandError

if TYPE_CHECKING:
    from proxy.agent.account import Account
    from proxy.agent.logout import Forgotten


@click.command()
@hub_option
@json_option
def logout(*, hub: str | None, as_json: bool) -> None:
    """Forget a login: its key, its cached tokens, and the kubeconfig entries that lead to its hub.

    The hub is not asked, so this works when it is gone or has another URL by now. A key stays good there
    until its operator revokes it, by the command that is printed. With several logins and no --hub, a
    terminal is asked which.

    Entries are looked for in the files of KUBECONFIG (or ~/.kube/config), and in those that `hawse kubeconfig
    --output` has written. Entries of others stay. A `hawse connect` that runs gets no further token.

    \b
    hawse logout --hub https://hub.example

    The exit status is 0 when all of it is forgotten, and 1 when there is no such login, or a kubeconfig could
    not be changed; the login itself is forgotten then as well.
    """
    from proxy.agent.errors import AgentError
    from proxy.agent.logout import log_out

    try:
        account = chosen_login(hub, "Log out of which")
        done = log_out(os.environ, account)
    except AgentError as error:
        raise CommandError(str(error)) from error
    if as_json:
        click.echo(json.dumps(_document(account, done), indent=2))
    else:
        _tell(account, done)
    if faults := [f"{each.fault}; remove its entries yourself" for each in done.kubeconfigs if each.fault]:
        raise CommandError("\n".join(faults))


def _tell(account: Account, done: Forgotten) -> None:
    from proxy.agent.errors import quoted

    click.echo(f"logged out of {account.hub}, where this was agent {account.agent}")
    for path, contexts, fault in done.kubeconfigs:
        if not fault:
            named = ", ".join(map(quoted, contexts)) or "none that is complete"
            click.echo(f"removed from {path}: contexts {named}")
    if account.platform is None:
        click.echo("the key is good until the hub's operator revokes it:")
    else:
        click.echo("no key was kept; the platform's token is good until the hub's operator removes its rule:")
    click.echo(f"  {done.left_to_do}")
    if account.key_id is None:
        listing = "federation list" if account.platform else f"agent key list {account.agent}"
        click.echo(f"  (hawse admin {listing} has the ID)")


def _document(account: Account, done: Forgotten) -> dict[str, object]:
    return {
        "hub": account.hub,
        "agent": account.agent,
        "key_id": account.key_id,
        "kubeconfigs": [each._asdict() for each in done.kubeconfigs],
        "left_to_do": done.left_to_do,
    }
