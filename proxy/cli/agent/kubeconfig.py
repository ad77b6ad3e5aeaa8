"""`hawse kubeconfig`: write a kubeconfig, without a credential, for the clusters that the agent may reach."""

from __future__ import annotations

import os
import shlex
import shutil
import sys

import click

from proxy.cli.errors import CommandError


@click.command()
@click.argument("clusters", nargs=-1, metavar="[CLUSTER]...")
@click.option("--hub", metavar="URL", help="The hub, if this agent is logged in to several.")
@click.option(
    "--output",
    "-o",
    metavar="FILE",
    help="Merge into this file (created with 0600 if missing) instead of kubectl's own; - prints it.",
)
@click.option(
    "--embed-ca/--no-embed-ca",
    default=True,
    help="Embed the CA given at login (default), or let kubectl use the system's CAs.",
)
@click.option("--namespace", metavar="NAME", help="The default namespace in the kubeconfig.")
@click.option(
    "--prefix", default="", metavar="TEXT", help="Put this before all names, as in --prefix hawse-."
)
@click.option(
    "--user-per-cluster",
    is_flag=True,
    help="Write one user per cluster: for clients that pass no cluster to a plugin or support only its older "
    "version (kr8s, lightkube, the JavaScript client).",
)
@click.option(
    "--hosts",
    is_flag=True,
    help="Use a separate host name as each cluster's server, if the hub has cluster_hosts: for clients that "
    "ignore the path of a server URL (`kubectl proxy`, `kubectl get --raw` of 1.32).",
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

    kubectl then runs `hawse-credential` whenever it needs a token.
    """
    from proxy.agent.hub.requests import fetch_reach
    from proxy.agent.kubeconfig import config_file as kubeconfigs
    from proxy.agent.local.account import find_account, hub_origin, note_kubeconfig
    from proxy.agent.local.errors import AgentError
    from proxy.agent.login import note_reach
    from proxy.kubernetes.write_yaml import to_yaml

    try:
        account = find_account(os.environ, None if hub is None else hub_origin(hub))
        reach = fetch_reach(account)
        chosen = kubeconfigs.chosen_clusters(reach, clusters)
        aliases = kubeconfigs.server_aliases(account, chosen, reach)
        if hosts:
            # The plugin sends tokens only to hosts that match the stored pattern.
            account = note_reach(os.environ, account, reach)
            if account.cluster_hosts is None:
                raise AgentError(
                    f"{account.hub} has no hosts for its clusters: leave out --hosts, or ask its operator to "
                    "set cluster_hosts"
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
        path, *others = [output] if output else kubeconfigs.kubectl_paths(os.environ)
        kubeconfigs.write(path, kubeconfigs.avoid_shadowing(others, ours, aliases), aliases)
        note_kubeconfig(os.environ, account.hub, os.path.abspath(path))
    except AgentError as error:
        raise CommandError(str(error)) from error
    names = [prefix + name for name in chosen]
    click.echo(f"wrote {', '.join(names)} to {path}")
    # kubectl reads its own file by default, so only another one must be named.
    where = f" --kubeconfig {shlex.quote(path)}" if output else ""
    click.echo(f"next: kubectl{where} --context {shlex.quote(names[0])} get pods")


def _command(plugin: str) -> str:
    """Return the plugin's command for a kubeconfig: its name if the PATH finds this install's, else its path.

    Raises CommandError if the plugin is missing.
    """
    script = os.path.realpath(sys.argv[0])
    by_module = os.path.basename(script) == "__main__.py"
    # With `python -m hawse`, an environment's programs are next to its link to the interpreter.
    beside = os.path.join(os.path.dirname(sys.executable if by_module else script), plugin)
    found = shutil.which(plugin)
    if os.path.basename(script) != "hawse" and not (by_module and os.path.exists(beside)):
        return plugin
    if found is not None and os.path.realpath(found) == os.path.realpath(beside):
        return plugin
    if not os.path.exists(beside):
        # As in a checkout that was updated but not installed again.
        raise CommandError(f"{beside} is missing, and kubectl needs it: install hawse again")
    return beside
