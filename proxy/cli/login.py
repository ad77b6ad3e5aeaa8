"""`hawse login`: store an agent's API key for a hub, after trying it there."""

from __future__ import annotations

import os
import sys

import click

from proxy.cli.errors import CommandError

KEY_VARIABLE = "HAWSE_API_KEY"
# A key has 53 characters; a file that somebody redirects by mistake is not read whole.
KEY_CHARACTERS_MAX = 1024


@click.command()
@click.option("--hub", required=True, metavar="URL", help="The hub, as in https://hub.example.")
@click.option(
    "--ca", metavar="FILE", help="The CA of the hub's certificate (PEM), if it is not a public one."
)
def login(*, hub: str, ca: str | None) -> None:
    """Store an agent's API key for a hub.

    The key is taken from HAWSE_API_KEY, or from standard input, or asked for; never from the command line,
    where other users of this machine could read it.
    """
    from proxy.agent.errors import AgentError
    from proxy.agent.login import log_in, read_ca

    try:
        account, reach, path = log_in(os.environ, hub, _api_key(), None if ca is None else read_ca(ca))
    except AgentError as error:
        raise CommandError(str(error)) from error
    clusters = ", ".join(reach.clusters) or "none yet"
    click.echo(f"logged in to {account.hub} as agent {reach.agent} of {reach.org}; the key is in {path}")
    click.echo(f"clusters: {clusters}")
    click.echo("next: hawse kubeconfig --output FILE")


def _api_key() -> str:
    if key := os.environ.get(KEY_VARIABLE):
        return key
    if sys.stdin.isatty():
        prompted = click.prompt("API key", hide_input=True)
        assert isinstance(prompted, str)
        return prompted
    key = sys.stdin.readline(KEY_CHARACTERS_MAX)
    if not key.strip():
        raise CommandError(f"no API key: give it by {KEY_VARIABLE}, on standard input, or at a terminal")
    return key
