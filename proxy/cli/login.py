"""`hawse login`: make this agent known to itself, by a key of its own making or by an API key."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from proxy.cli.errors import CommandError

if TYPE_CHECKING:
    from proxy.agent.account import Account
    from proxy.agent.hub import Reach

KEY_VARIABLE = "HAWSE_API_KEY"
CODE_VARIABLE = "HAWSE_ENROLMENT_CODE"
# A key has 53 characters; a file that somebody redirects by mistake is not read whole.
SECRET_CHARACTERS_MAX = 1024
# What `--code` without a value stands for: no code looks like it.
_ASK = "ask"


@click.command()
@click.option("--hub", required=True, metavar="URL", help="The hub, as in https://hub.example.")
@click.option(
    "--ca", metavar="FILE", help="The CA of the hub's certificate (PEM), if it is not a public one."
)
@click.option(
    "--code",
    is_flag=False,
    flag_value=_ASK,
    metavar="[CODE]",
    help="Make a key here and register it by a one-time code (hawse admin agent code). Without CODE it is "
    "taken from HAWSE_ENROLMENT_CODE, or from standard input, or asked for.",
)
@click.option(
    "--code-file",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="Take the one-time code from a file.",
)
@click.option(
    "--token-file",
    metavar="FILE",
    help="Use the token that this machine's platform keeps in a file, as a projected service account's.",
)
@click.option("--github", is_flag=True, help="Use the token that GitHub gives a job (id-token: write).")
@click.option("--agent", default="", metavar="NAME", help="Who to be, if the platform's token fits several.")
def login(
    *,
    hub: str,
    ca: str | None,
    code: str | None,
    code_file: str | None,
    token_file: str | None,
    github: bool,
    agent: str,
) -> None:
    """Log this agent in at a hub.

    With --code a key is made on this machine and its public half registered; the private half never leaves
    it. A code is good once, so it may stand on the command line: whoever reads it there comes too late.

    With --token-file or --github nothing secret is stored: the platform says who this workload is, and the
    hub has a rule for that (hawse admin federation add).

    Otherwise an API key is stored. It is taken from HAWSE_API_KEY, or from standard input, or asked for;
    never from the command line, where other users of this machine could read it.
    """
    from proxy.agent.account import hub_origin
    from proxy.agent.errors import AgentError
    from proxy.agent.login import enrol, log_in, log_in_by_platform, read_ca
    from proxy.agent.platform import FILE_PREFIX, GITHUB

    ways = [way for way in (code, code_file, token_file, github or None) if way is not None]
    if len(ways) > 1:
        raise click.UsageError("say one of --code, --code-file, --token-file and --github")
    try:
        # Before a secret is asked for.
        hub = hub_origin(hub)
        ca_pem = None if ca is None else read_ca(ca)
        if token_file is not None or github:
            platform = GITHUB if token_file is None else FILE_PREFIX + os.path.abspath(token_file)
            done = log_in_by_platform(os.environ, hub, platform, ca_pem, agent)
        elif code is None and code_file is None:
            done = log_in(os.environ, hub, _secret(KEY_VARIABLE, "API key"), ca_pem)
        else:
            done = enrol(os.environ, hub, _code(code, code_file), ca_pem)
    except AgentError as error:
        raise CommandError(str(error)) from error
    _tell(*done)


def _tell(account: Account, reach: Reach, path: str) -> None:
    from proxy.agent.account import load_accounts
    from proxy.agent.status import other_name

    which = f" --hub {account.hub}" if len(load_accounts(os.environ)) > 1 else ""
    clusters = ", ".join(reach.clusters) or "none yet"
    kept = f"the key is in {path}" if account.platform is None else f"no secret is kept in {path}"
    click.echo(f"logged in to {account.hub} as agent {reach.agent} of {reach.org}; {kept}")
    click.echo(f"clusters: {clusters}")
    if name := other_name(account, reach):
        click.echo(
            f"warning: this hub calls itself {name}, and every login but one by an API key needs that name: "
            f"hawse login --hub {name}",
            err=True,
        )
    _warn_of_clock(reach)
    click.echo(f"next: hawse kubeconfig{which}")


def _warn_of_clock(reach: Reach) -> None:
    """Say it here, where somebody looks, and at no kubectl: that works all the same."""
    if reach.ahead_s:
        side = "ahead of" if reach.ahead_s > 0 else "behind"
        click.echo(
            f"warning: this machine's clock is {abs(reach.ahead_s)} s {side} the hub's: set it; "
            "until then each token takes two requests, and the hub records the first as refused",
            err=True,
        )


def _code(code: str | None, code_file: str | None) -> str:
    if code_file is not None:
        try:
            with open(code_file, encoding="ascii", errors="replace") as file:
                return file.readline(SECRET_CHARACTERS_MAX)
        except OSError as error:
            raise CommandError(f"cannot read {code_file}: {error.strerror}") from error
    if code is None or code == _ASK:
        return _secret(CODE_VARIABLE, "enrolment code")
    return code


def _secret(variable: str, name: str) -> str:
    if found := os.environ.get(variable):
        return found
    if sys.stdin.isatty():
        prompted = click.prompt(name[0].upper() + name[1:], hide_input=True)
        assert isinstance(prompted, str)
        return prompted
    secret = sys.stdin.readline(SECRET_CHARACTERS_MAX)
    if not secret.strip():
        told = f"no {name}: give it by {variable}, on standard input, or at a terminal"
        raise CommandError(told if variable == CODE_VARIABLE else f"{told}; for a one-time code say --code")
    return secret
