"""`hawse connect`: a proxy on loopback, for SDKs that never refresh a token."""

from __future__ import annotations

import os
import sys

import click

from proxy.cli.errors import CommandError
from proxy.cli.logs import TEXT, LoggedCommand, configure_logging, log_format_option


@click.command(cls=LoggedCommand, context_settings={"ignore_unknown_options": False})
@click.argument("clusters", nargs=-1, metavar="[CLUSTER]... [-- COMMAND...]", type=click.UNPROCESSED)
@click.option("--hub", metavar="URL", help="Which hub, if this agent has logged in to several.")
@click.option(
    "--output",
    "-o",
    metavar="FILE",
    help="Where the kubeconfig is written; there must be none yet. Without it, in the user's cache folder.",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    metavar="N",
    help="The port on 127.0.0.1, which is free unless it is given.",
)
@click.option("--namespace", metavar="NAME", help="The namespace that is used when none is given.")
@log_format_option()
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
@click.pass_context
def connect(
    ctx: click.Context,
    *,
    clusters: tuple[str, ...],
    hub: str | None,
    output: str | None,
    port: int | None,
    namespace: str | None,
    log_format: str | None,
    verbose: bool,
) -> None:
    """Serve the named clusters, or all that this agent may reach, on 127.0.0.1.

    For SDKs that read a token once and never again: the kubeconfig that this writes (0600) leads to a proxy,
    which puts a fresh token of the agent's on each request, exec, port-forward and watches included. Its path
    is printed when the proxy serves. With `-- COMMAND…` the command is run with KUBECONFIG set to it, and its
    exit status is returned. At the end (SIGINT, SIGTERM, or the command's) the file is removed, and what is
    under way is cut. In a terminal's foreground a SIGINT is left to the command, which Ctrl-C reaches, too.

    Whoever can read the file acts as the agent while this runs.
    """
    from shutil import which

    from auth.principal import IdentityError, slug
    from proxy.agent.account import find_account, hub_origin
    from proxy.agent.connecting import ConnectConfig, run_connect
    from proxy.agent.errors import AgentError
    from proxy.agent.hub import fetch_reach
    from proxy.agent.kubeconfig import chosen_clusters
    from proxy.cli.service import run_ungrouped

    configure_logging(verbose=verbose, log_format=log_format or TEXT)
    names, command = _split(clusters, sys.argv)
    try:
        if namespace is not None:
            slug("namespace", namespace)
        account = find_account(os.environ, None if hub is None else hub_origin(hub))
        chosen = chosen_clusters(fetch_reach(account), names)
        config = ConnectConfig(os.environ, account, chosen, port or 0, output, namespace, command)
    except (AgentError, IdentityError) as error:
        # `connect kubectl get pods`: as sudo or env would take it.
        forgotten = not command and names and which(names[0]) is not None
        hint = f"; a command stands behind --, as in `hawse connect -- {names[0]}`" if forgotten else ""
        raise CommandError(f"{error}{hint}") from error
    known = AgentError, OSError
    try:
        status = run_ungrouped(run_connect, config, known)
    except known as error:
        raise CommandError(str(error)) from error
    ctx.exit(status)


def _split(words: tuple[str, ...], argv: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tell the clusters from the command, which click has taken the `--` out from between."""
    if "--" not in argv:
        return words, ()
    command = tuple(argv[argv.index("--") + 1 :])
    return words[: len(words) - len(command)], command
