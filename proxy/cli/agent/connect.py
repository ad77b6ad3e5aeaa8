"""`hawse connect`: a proxy on loopback, for SDKs that never refresh a token."""

from __future__ import annotations

import os
import sys

import click

from proxy.cli.errors import CommandError
from proxy.cli.logs import TEXT, LoggedCommand, configure_logging, log_format_option
from proxy.message.reason import REASON_CHARACTERS_MAX, ReasonError, check_reason

REASON_VARIABLE = "HAWSE_REASON"


@click.command(cls=LoggedCommand, context_settings={"ignore_unknown_options": False})
@click.argument("clusters", nargs=-1, metavar="[CLUSTER]... [-- COMMAND...]", type=click.UNPROCESSED)
@click.option("--hub", metavar="URL", help="The hub, if this agent is logged in to several.")
@click.option(
    "--output",
    "-o",
    metavar="FILE",
    help="Write the kubeconfig to this new file. Default: a file in the user's cache folder.",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    metavar="N",
    help="The port on 127.0.0.1. Default: any free port.",
)
@click.option("--namespace", metavar="NAME", help="The default namespace in the kubeconfig.")
@click.option(
    "--reason",
    metavar="TEXT",
    help="The reason that this agent states for its calls. Operators and approvers read it as a claim. "
    f"At most {REASON_CHARACTERS_MAX} characters. Default: the variable {REASON_VARIABLE}.",
)
@log_format_option()
@click.option("-v", "--verbose", is_flag=True, help="Log debug messages too.")
@click.pass_context
def connect(
    ctx: click.Context,
    *,
    clusters: tuple[str, ...],
    hub: str | None,
    output: str | None,
    port: int | None,
    namespace: str | None,
    reason: str | None,
    log_format: str | None,
    verbose: bool,
) -> None:
    """Serve clusters on 127.0.0.1: the named ones, or all that this agent may reach.

    For SDKs that read a token once and never refresh it. The command writes a kubeconfig (0600) for a local
    proxy, and prints its path. The proxy adds a fresh agent token to each request, including exec,
    port-forward and watches.

    With `-- COMMAND…` it runs the command with KUBECONFIG set to that file, and returns its exit status.
    On SIGINT, SIGTERM or the end of the command, it removes the file and cuts open requests. At a terminal,
    Ctrl-C goes to the command.

    Anyone who can read the file can act as the agent while this runs.
    """
    from shutil import which

    from auth.principal import IdentityError, slug
    from proxy.agent.connect.serve import ConnectConfig, run_connect
    from proxy.agent.hub.requests import fetch_reach
    from proxy.agent.kubeconfig.config_file import chosen_clusters
    from proxy.agent.local.account import find_account, hub_origin
    from proxy.agent.local.errors import AgentError
    from proxy.cli.service import run_ungrouped

    configure_logging(verbose=verbose, log_format=log_format or TEXT)
    stated_reason = _reason(reason)
    names, command = _split(clusters, sys.argv)
    try:
        if namespace is not None:
            slug("namespace", namespace)
        account = find_account(os.environ, None if hub is None else hub_origin(hub))
        chosen = chosen_clusters(fetch_reach(account), names)
        config = ConnectConfig(
            os.environ, account, chosen, port or 0, output, namespace, command, stated_reason
        )
    except (AgentError, IdentityError) as error:
        # A command without `--`, as sudo or env would take it: `connect kubectl get pods`.
        forgotten = not command and names and which(names[0]) is not None
        hint = f"; put a command after --: `hawse connect -- {names[0]}`" if forgotten else ""
        raise CommandError(f"{error}{hint}") from error
    known = AgentError, OSError
    try:
        status = run_ungrouped(run_connect, config, known)
    except known as error:
        raise CommandError(str(error)) from error
    ctx.exit(status)


def _reason(option: str | None) -> str:
    """Return the reason of the option, or of the environment; raises CommandError."""
    text = os.environ.get(REASON_VARIABLE, "") if option is None else option
    try:
        return check_reason(text)
    except ReasonError as error:
        raise CommandError(f"{REASON_VARIABLE if option is None else '--reason'} {error}") from error


def _split(words: tuple[str, ...], argv: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split the arguments into clusters and command. click has removed the `--` between them."""
    if "--" not in argv:
        return words, ()
    command = tuple(argv[argv.index("--") + 1 :])
    return words[: len(words) - len(command)], command
