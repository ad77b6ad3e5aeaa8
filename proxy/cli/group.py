"""The top command group, from one table. It imports a command's module when that command is used.

Apart from `proxy.cli.main`, whose fast path must not import click.
"""

from __future__ import annotations

import sys
from difflib import get_close_matches
from importlib import import_module

import click

from proxy.cli import INTERRUPTED
from proxy.cli.errors import CommandError
from proxy.process.version import VERSION

# name -> (module, attribute, the line in `hawse --help`)
COMMANDS = {
    "hub": ("proxy.cli.hub", "hub", "Run the hub: agents connect over HTTPS, relays dial tunnels to it."),
    "relay": ("proxy.cli.relay", "relay", "Run the relay beside a cluster's API server."),
    "admin": (
        "proxy.cli.admin",
        "admin",
        "Manage teams, agents, clusters, policies, relays, sessions and backups.",
    ),
    "audit": (
        "proxy.cli.audit.commands",
        "audit",
        "Read a hub's audit trail, here or from elsewhere, and prune it.",
    ),
    "login": (
        "proxy.cli.agent.login",
        "login",
        "Log an agent in to a hub, with its own key, a platform's token or an API key.",
    ),
    "status": (
        "proxy.cli.agent.status",
        "status",
        "Show this agent's logins, and whether its hubs accept them.",
    ),
    "clusters": ("proxy.cli.agent.clusters", "clusters", "List the clusters that this agent may reach."),
    "kubeconfig": (
        "proxy.cli.agent.kubeconfig",
        "kubeconfig",
        "Write a kubeconfig for the clusters that the agent may reach.",
    ),
    "connect": (
        "proxy.cli.agent.connect",
        "connect",
        "Serve clusters on 127.0.0.1, for SDKs that never refresh.",
    ),
    "mcp": ("proxy.cli.mcp", "mcp", "Configure AI clients to start an MCP server for Kubernetes."),
    "logout": ("proxy.cli.agent.logout", "logout", "Remove a login: its key, tokens and kubeconfig entries."),
    "credential": (
        "proxy.cli.agent.credential",
        "credential",
        "Print a credential for kubectl (kubectl runs this itself).",
    ),
}
# If one of these is missing, the installation is broken. Any other missing module belongs to an extra.
OURS = frozenset({"proxy", "tunnel", "auth", "audit"})
# Left out of the relay's image (deploy/Containerfile).
HUBS_OWN = frozenset({"proxy.hub", "audit"})


def build_group() -> click.Group:
    """Build the top group."""
    return LazyGroup(
        "hawse",
        help="kubectl for AI agents, on clusters that nothing outside can reach.\n\n"
        "An agent's kubectl talks to the hub. The hub reaches each cluster through a tunnel that the "
        "cluster's relay dialled, and acts under the agent's own name. Every call is in the audit trail.\n\n"
        "Operators start with `hawse hub` and `hawse admin`, agents with `hawse login`.",
        params=[
            click.Option(
                ["--version"],
                is_flag=True,
                expose_value=False,
                is_eager=True,
                help="Print the version.",
                callback=_print_version,
            )
        ],
        # Subcommands inherit it. Usage errors mention the first option.
        context_settings={"help_option_names": ["--help", "-h"]},
    )


class LazyGroup(click.Group):
    """Imports a command when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            if near := get_close_matches(cmd_name, COMMANDS, 1):
                ctx.fail(f"No such command {cmd_name!a}. Did you mean {near[0]!a}?")
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> object:
        try:
            return self._invoke(ctx)
        except click.ClickException as error:
            from proxy.cli.logs import in_json, show_failure
            from proxy.cli.suggestions import with_suggestion

            suggested = with_suggestion(error)
            if not in_json():
                raise suggested from error.__cause__
            show_failure(suggested)
            ctx.exit(suggested.exit_code)
        except (KeyboardInterrupt, click.Abort) as error:
            # A prompt raises Abort for Ctrl-C, for Ctrl-D and for a no. Only the first is an interrupt.
            if isinstance(error, click.Abort) and not isinstance(error.__context__, KeyboardInterrupt):
                raise
            if sys.stderr.isatty():
                # The terminal has echoed ^C: start a new line for the shell's prompt.
                click.echo(err=True)
            # click would print "Aborted!" and exit with 1, as for a failed command.
            ctx.exit(INTERRUPTED)

    def _invoke(self, ctx: click.Context) -> object:
        # Commands import their dependencies when they run, so a missing package shows here.
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if error.name in HUBS_OWN:
                raise CommandError(
                    "this command is not in the relay's image: run it where the hub is installed"
                ) from error
            if package in OURS:
                raise
            # Not `pip install hawse`: anyone could register that name.
            wheel = f"hawse-{VERSION}-py3-none-any.whl"
            raise CommandError(
                f"this command needs the package {package}: install '{wheel}[hub]' by uv, pipx or pip"
            ) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # From the table, so that `hawse --help` imports no command.
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        click.echo(VERSION)
        ctx.exit()
