"""`hawse credential` as a click command, for its help. kubectl's call takes the fast path in `main`."""

from __future__ import annotations

import sys

import click


@click.command()
@click.option(
    "--server",
    default="",
    metavar="URL",
    help="The cluster, https://<hub>/clusters/<name>, for clients that do not pass one to a plugin.",
)
@click.option(
    "--hub",
    default="",
    metavar="URL",
    help="The hub, for kubeconfigs whose servers are the clusters' own hosts (hawse kubeconfig --hosts).",
)
def credential(*, server: str, hub: str) -> None:
    """Print a credential for kubectl. kubectl runs this command itself.

    Reads KUBERNETES_EXEC_INFO and prints an ExecCredential: a token for the kubeconfig's cluster, valid for
    at most a minute. Tokens are cached in the user's cache folder until they expire.
    """
    from proxy.agent.token.credential import run_plugin

    sys.exit(run_plugin(server, hub))
