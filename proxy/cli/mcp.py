"""`hawse mcp config`: the entry of an MCP server in the configuration of an AI client."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping

import click

from audit.escape import escape
from proxy.agent.mcp.clients import CLIENTS, SERVERS, Client
from proxy.cli.errors import CommandError


@click.group()
def mcp() -> None:
    """Use MCP servers for Kubernetes, unmodified, on the clusters of a hub."""


@mcp.command()
@click.argument("clusters", nargs=-1, metavar="[CLUSTER]...")
@click.option("--server", type=click.Choice([*SERVERS]), default=next(iter(SERVERS)), show_default=True)
@click.option("--client", type=click.Choice([*CLIENTS]), default=next(iter(CLIENTS)), show_default=True)
@click.option("--name", default="kubernetes", show_default=True, help="The entry's name in that file.")
@click.option(
    "--reason", metavar="TEXT", help="The reason that the server states for its calls (HAWSE_REASON)."
)
@click.option("--file", metavar="FILE", help="The client's file, if it is not in its usual place.")
@click.option("--write", is_flag=True, help="Add the entry to the file. An entry is never overwritten.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def config(
    *,
    clusters: tuple[str, ...],
    server: str,
    client: str,
    name: str,
    reason: str | None,
    file: str | None,
    write: bool,
    as_json: bool,
) -> None:
    """Print the entry by which an AI client starts an MCP server.

    The server gets the named clusters, or all that this agent may reach.

    \b
    claude-code     .mcp.json in this folder
    claude-desktop  claude_desktop_config.json
    cursor          ~/.cursor/mcp.json
    vscode          .vscode/mcp.json in this folder

    The entry runs the server by `hawse connect`. It holds no credential: the agent's login is used
    (`hawse login`). The server comes from npm's registry at the version that Hawse is tested with, so the
    client needs Node.js.
    """
    from auth.principal import IdentityError, slug
    from proxy.agent.local.errors import AgentError
    from proxy.agent.mcp.clients import entry
    from proxy.message.reason import ReasonError, check_reason

    chosen = CLIENTS[client]
    path = _path(chosen, file)
    if not name.strip() or not name.isprintable():
        raise CommandError("--name is empty, or has a control character")
    try:
        for cluster in clusters:
            slug("cluster", cluster)
        made = entry(
            chosen,
            server,
            command=_hawse(on_path=chosen.project),
            clusters=clusters,
            reason=check_reason(reason or ""),
        )
        written = write and _add(path, chosen.section, name, made)
    except ReasonError as error:
        raise CommandError(f"--reason {error}") from error
    except (AgentError, IdentityError) as error:
        raise CommandError(escape(str(error))) from error
    document = {chosen.section: {name: made}}
    if as_json:
        found = {"client": client, "server": server, "path": path, "written": written, "document": document}
        click.echo(json.dumps(found, indent=2))
    elif write:
        click.echo(escape(f"added {name} to {path}" if written else f"already there: {name} in {path}"))
        click.echo(f"next: restart {chosen.title}, and ask it for the pods of a namespace")
    else:
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
        click.echo(f"for {escape(path)}; to add it there: --write", err=True)


def _add(path: str, section: str, name: str, made: Mapping[str, object]) -> bool:
    """Add the entry, and return whether the file has changed; raises AgentError."""
    from proxy.agent.local.files import cache_folder, locked
    from proxy.agent.mcp.config_file import add_server

    # Two commands at once would lose an entry. The lock is not beside the file, which may be in a repository.
    with locked(os.path.join(cache_folder(os.environ), "mcp.lock")):
        return add_server(path, section, name, made)


def _path(client: Client, file: str | None) -> str:
    """Return the absolute path of the client's file; raises CommandError."""
    try:
        return os.path.abspath(file) if file else client.path(os.environ, os.getcwd())
    except FileNotFoundError:
        raise CommandError("the working folder was removed: change to another one") from None


def _hawse(*, on_path: bool) -> str:
    """Return the program for the entry.

    A file in a project's folder is shared by people whose programs have other paths. A client that a desktop
    starts may not have the shell's PATH, so an entry in the home folder has the program's path.
    """
    found = shutil.which("hawse")
    beside = os.path.join(os.path.dirname(os.path.realpath(sys.argv[0])), "hawse")
    if on_path and found is not None:
        return "hawse"
    return os.path.abspath(found) if found is not None else beside if os.path.exists(beside) else "hawse"
