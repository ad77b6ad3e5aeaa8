"""`hawse credential` by way of click, for its help; kubectl's own call takes the short way in `main`."""

from __future__ import annotations

import sys

import click


@click.command()
@click.option(
    "--server",
    default="",
    metavar="URL",
    help="The cluster, https://<hub>/clusters/<name>, for a client that does not say which it wants.",
)
@click.option(
    "--hub",
    default="",
    metavar="URL",
    help="The hub, where the kubeconfig's servers are hosts of the clusters' own (hawse kubeconfig --hosts).",
)
def credential(*, server: str, hub: str) -> None:
    """Print a credential for kubectl, which runs this itself.

    Reads KUBERNETES_EXEC_INFO, and prints an ExecCredential with a token of at most a minute for the cluster
    that the kubeconfig names. Tokens are kept for their life in the user's cache folder.
    """
    from proxy.agent.credential import run_plugin

    sys.exit(run_plugin(server, hub))
