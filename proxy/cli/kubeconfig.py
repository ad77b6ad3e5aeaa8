"""`hawse kubeconfig`: a kubeconfig for the clusters that the agent may reach; it holds no credential."""

from __future__ import annotations

import os
import shlex
import shutil
import sys

import click

from proxy.cli.errors import CommandError


@click.command()
@click.argument("clusters", nargs=-1, metavar="[CLUSTER]...")
@click.option("--hub", metavar="URL", help="Which hub, if this agent has logged in to several.")
@click.option(
    "--output",
    "-o",
    metavar="FILE",
    help="Merge into this file (made 0600 if it is missing) instead of the one that kubectl reads; - prints.",
)
@click.option(
    "--embed-ca/--no-embed-ca",
    default=True,
    help="Write the CA given at login into it (default), or let kubectl use the system's.",
)
@click.option("--namespace", metavar="NAME", help="The namespace that kubectl uses when none is given.")
@click.option(
    "--prefix", default="", metavar="TEXT", help="Put this before the names, as in --prefix hawse-."
)
@click.option(
    "--user-per-cluster",
    is_flag=True,
    help="For clients that do not tell a plugin which cluster they want, or know its older form alone "
    "(kr8s, lightkube, the JavaScript client).",
)
@click.option(
    "--hosts",
    is_flag=True,
    help="Give each cluster a host of its own as its server, where the hub has them (cluster_hosts): for "
    "clients that ignore a path there (`kubectl proxy`, `kubectl get --raw` of 1.32).",
)
def kubeconfig(
    *,
    clusters: tuple[str, ...],
    hub: str | None,
    output: str | None,
    embed_ca: bool,
    namespace: str | None,
    prefix: str,
    user_per_cluster: bool,
    hosts: bool,
) -> None:
    """Write a kubeconfig for the named clusters, or for all that this agent may reach.

    kubectl then runs `hawse-credential` for a token whenever it needs one.
    """
    from proxy.agent import kubeconfig as kubeconfigs
    from proxy.agent.account import find_account, hub_origin, note_kubeconfig
    from proxy.agent.errors import AgentError
    from proxy.agent.hub import fetch_reach
    from proxy.agent.login import note_reach
    from proxy.kubernetes.manifests import to_yaml

    try:
        account = find_account(os.environ, None if hub is None else hub_origin(hub))
        reach = fetch_reach(account)
        chosen = kubeconfigs.chosen_clusters(reach, clusters)
        forms = kubeconfigs.forms(account, chosen, reach)
        if hosts:
            # By this alone the plugin knows where a token may go.
            account = note_reach(os.environ, account, reach)
            if account.cluster_hosts is None:
                raise AgentError(
                    f"{account.hub} has no hosts for its clusters: its operator sets cluster_hosts; until "
                    "then leave out --hosts"
                )
        ours = kubeconfigs.entries(
            account,
            chosen,
            command=_command(kubeconfigs.PLUGIN),
            embed_ca=embed_ca,
            namespace=namespace,
            prefix=prefix,
            user_per_cluster=user_per_cluster,
            hosts=account.cluster_hosts if hosts else None,
        )
        if output == "-":
            click.echo(to_yaml([ours]), nl=False)
            return
        path, *others = [output] if output else kubeconfigs.kubectls_own(os.environ)
        kubeconfigs.write(path, kubeconfigs.fit_before(others, ours, forms), forms)
        note_kubeconfig(os.environ, account.hub, os.path.abspath(path))
    except AgentError as error:
        raise CommandError(str(error)) from error
    names = [prefix + name for name in chosen]
    click.echo(f"wrote {', '.join(names)} into {path}")
    # kubectl finds the file by itself, unless --output has named another.
    where = f" --kubeconfig {shlex.quote(path)}" if output else ""
    click.echo(f"next: kubectl{where} --context {shlex.quote(names[0])} get pods")


def _command(plugin: str) -> str:
    """Tell how kubectl is to call it: by name where the PATH finds the one beside us, else by its path.

    Raises CommandError when there is none.
    """
    script = os.path.realpath(sys.argv[0])
    by_module = os.path.basename(script) == "__main__.py"
    # With `python -m hawse`, the programs of an environment are beside its link to the interpreter.
    beside = os.path.join(os.path.dirname(sys.executable if by_module else script), plugin)
    found = shutil.which(plugin)
    if os.path.basename(script) != "hawse" and not (by_module and os.path.exists(beside)):
        return plugin
    if found is not None and os.path.realpath(found) == os.path.realpath(beside):
        return plugin
    if not os.path.exists(beside):
        # As in a checkout that was brought up to date and not installed again.
        raise CommandError(f"{beside}, which kubectl is to run, is missing: install hawse again")
    return beside
