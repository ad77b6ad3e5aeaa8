"""`hawse login`: log this agent in, with a key made here, an API key, or its platform's token."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from proxy.cli.errors import CommandError

if TYPE_CHECKING:
    from proxy.agent.hub.requests import Reach
    from proxy.agent.local.account import Account

KEY_VARIABLE = "HAWSE_API_KEY"
CODE_VARIABLE = "HAWSE_ENROLMENT_CODE"
# A key has 53 characters. The bound is for a large file redirected by mistake.
SECRET_CHARACTERS_MAX = 1024
# The value of `--code` without an argument. No code has this form.
_ASK = "ask"


@click.command()
@click.option("--hub", required=True, metavar="URL", help="The hub's URL, such as https://hub.example.")
@click.option("--ca", metavar="FILE", help="The CA of the hub's certificate (PEM), unless it is a public CA.")
@click.option(
    "--code",
    is_flag=False,
    flag_value=_ASK,
    metavar="[CODE]",
    help="Make a key on this machine and register it with a one-time code (hawse admin agent code). Without "
    "CODE, it is read from HAWSE_ENROLMENT_CODE or standard input, or prompted for.",
)
@click.option(
    "--code-file",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="Read the one-time code from a file.",
)
@click.option(
    "--token-file",
    metavar="FILE",
    help="Use the token in this file, kept fresh by the platform (as a projected service account token).",
)
@click.option("--github", is_flag=True, help="Use a GitHub job's token (needs id-token: write).")
@click.option("--agent", default="", metavar="NAME", help="The agent, if the platform's token fits several.")
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

    With --code, the agent makes a key on this machine and registers its public half. The private half never
    leaves the machine. A code works once, so it may appear on the command line.

    With --token-file or --github, no secret is stored: the platform identifies this workload, and the hub has
    a rule for it (hawse admin federation add).

    Otherwise an API key is stored. It is read from HAWSE_API_KEY or standard input, or prompted for. It is
    never an argument, since other users of this machine can read command lines.
    """
    from proxy.agent.hub.platform import FILE_PREFIX, GITHUB
    from proxy.agent.local.account import hub_origin
    from proxy.agent.local.errors import AgentError
    from proxy.agent.login import enrol, log_in, log_in_by_platform, read_ca

    methods = [each for each in (code, code_file, token_file, github or None) if each is not None]
    if len(methods) > 1:
        raise click.UsageError("use only one of --code, --code-file, --token-file and --github")
    try:
        # Checked before prompting for a secret.
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
    _print_login(*done)


def _print_login(account: Account, reach: Reach, path: str) -> None:
    from proxy.agent.local.account import load_accounts
    from proxy.agent.status import other_name

    which = f" --hub {account.hub}" if len(load_accounts(os.environ)) > 1 else ""
    clusters = ", ".join(reach.clusters) or "none yet"
    stored = f"the key is in {path}" if account.platform is None else f"no secret is stored in {path}"
    click.echo(f"logged in to {account.hub} as agent {reach.agent} of {reach.org}; {stored}")
    click.echo(f"clusters: {clusters}")
    if name := other_name(account, reach):
        click.echo(
            f"warning: this hub's own URL is {name}, and logins other than by API key work only with that: "
            f"run `hawse login --hub {name}`",
            err=True,
        )
    _warn_of_clock(reach)
    click.echo(f"next: hawse kubeconfig{which}")


def _warn_of_clock(reach: Reach) -> None:
    """Warn about a wrong clock at login, where a person reads it. kubectl works anyway and stays quiet."""
    if reach.ahead_s:
        side = "ahead of" if reach.ahead_s > 0 else "behind"
        click.echo(
            f"warning: this machine's clock is {abs(reach.ahead_s)} s {side} the hub's: set the clock; "
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
        message = f"no {name}: set {variable}, pipe it to standard input, or run this at a terminal"
        hint = "" if variable == CODE_VARIABLE else "; for a one-time code use --code"
        raise CommandError(message + hint)
    return secret
