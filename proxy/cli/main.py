"""The command line: one group whose commands are imported only when they are named.

kubectl runs `hawse credential` at every start, so that command is reached before click is imported
(click costs 27 ms, trio 120, SQLAlchemy 210); the others import what they need inside themselves.
"""

from __future__ import annotations

import errno
import os
import sys

# typing's own, without the 4 ms of its import: until `main` runs, nothing is there to catch Ctrl-C.
TYPE_CHECKING = False

if TYPE_CHECKING:
    import click

# name -> (module, attribute, the line in `hawse --help`)
COMMANDS = {
    "hub": ("proxy.cli.hub", "hub", "Run the hub: agents come in by HTTPS, relays by their tunnels."),
    "relay": ("proxy.cli.relay", "relay", "Run the relay beside a cluster's API server."),
    "admin": (
        "proxy.cli.admin",
        "admin",
        "Enrol teams, agents and clusters; set policies; look at relays; back up.",
    ),
    "audit": ("proxy.cli.audit", "audit", "Read the audit trail on the hub's machine, and shorten it."),
    "login": (
        "proxy.cli.login",
        "login",
        "Log an agent in at a hub, by a key of its own, a platform's token or an API key.",
    ),
    "status": ("proxy.cli.status", "status", "Show who this agent is, and whether its hubs still accept it."),
    "clusters": ("proxy.cli.clusters", "clusters", "List the clusters that this agent may reach."),
    "kubeconfig": (
        "proxy.cli.kubeconfig",
        "kubeconfig",
        "Write a kubeconfig for the clusters an agent may reach.",
    ),
    "connect": ("proxy.cli.connect", "connect", "Serve clusters on 127.0.0.1, for SDKs that never refresh."),
    "logout": ("proxy.cli.logout", "logout", "Forget a login: its key, tokens and kubeconfig entries."),
    "credential": (
        "proxy.cli.credential",
        "credential",
        "Print a credential for kubectl (it runs this itself).",
    ),
}
# A module of these that is missing is a fault of ours; any other one belongs to an extra.
OURS = frozenset({"proxy", "tunnel", "auth", "audit"})
# What the relay's image leaves out as a whole (deploy/Containerfile).
HUBS_OWN = frozenset({"proxy.hub", "audit"})
# What a disk says on which nothing more can be written.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
# What a shell says of a command that Ctrl-C has ended: 128 and the signal's number.
INTERRUPTED = 130


def main() -> None:
    """Run the command line; never returns."""
    try:
        _run(sys.argv[1:])
    except KeyboardInterrupt:
        # Ctrl-C may come at any moment, also while modules are still being imported.
        sys.exit(INTERRUPTED)


def _run(arguments: list[str]) -> None:
    match arguments:
        case ["credential"]:
            from proxy.agent.credential import run_plugin

            sys.exit(run_plugin())
        case ["credential", "--server", server]:
            from proxy.agent.credential import run_plugin

            sys.exit(run_plugin(server))
        case ["credential", "--hub", hub]:
            from proxy.agent.credential import run_plugin

            sys.exit(run_plugin(hub=hub))
    try:
        build_group()(prog_name="hawse")
    except OSError as error:
        # Any command may meet it while it prints, and so none of them looks for it.
        if error.errno not in FULL:
            raise
        if sys.stdout is not None:
            # What is left in it would fail once more when the interpreter ends, in words of its own.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        from proxy.cli.errors import CommandError
        from proxy.cli.logs import in_json, show_failure

        where = f" {error.filename}" if error.filename is not None else ""
        told = f"cannot write{where}: {error.strerror}"
        if not in_json():
            sys.exit(f"hawse: {told}")
        show_failure(CommandError(told))
        sys.exit(1)


def build_group() -> click.Group:
    """Build the top group; apart from `main` so that the fast path above never imports click."""
    from difflib import get_close_matches
    from importlib import import_module
    from importlib.metadata import version

    import click

    from proxy.cli.errors import CommandError

    def print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            click.echo(version("hawse"))
            ctx.exit()

    class LazyGroup(click.Group):
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
                from proxy.cli.habits import advised
                from proxy.cli.logs import in_json, show_failure

                told = advised(error)
                if not in_json():
                    raise told from error.__cause__
                show_failure(told)
                ctx.exit(told.exit_code)
            except (KeyboardInterrupt, click.Abort) as error:
                # A prompt ends so by Ctrl-C, by Ctrl-D and by a no, and only the first is an interrupt.
                if isinstance(error, click.Abort) and not isinstance(error.__context__, KeyboardInterrupt):
                    raise
                if sys.stderr.isatty():
                    # The terminal has echoed ^C, and the shell's prompt follows.
                    click.echo(err=True)
                # click would say "Aborted!" and end with 1, as if the command had failed.
                ctx.exit(INTERRUPTED)

        def _invoke(self, ctx: click.Context) -> object:
            # The commands import what they need when they run, so a missing package shows itself here.
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
                # Not by its name alone, which is free for anyone to register.
                wheel = f"hawse-{version('hawse')}-py3-none-any.whl"
                raise CommandError(
                    f"this command needs the package {package}: pip install '{wheel}[hub]'"
                ) from error

        def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
            # From the table, so that `hawse --help` imports none of the commands.
            with formatter.section("Commands"):
                formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])

    return LazyGroup(
        "hawse",
        help="kubectl for agents on clusters that nothing outside can reach.\n\n"
        "An agent's kubectl talks to the hub; the hub reaches the cluster through the one tunnel that the "
        "cluster's relay dialled, under the agent's own name; every call stands in the audit trail.\n\n"
        "An operator starts with `hawse hub` and `hawse admin`, an agent with `hawse login`.",
        params=[
            click.Option(
                ["--version"],
                is_flag=True,
                expose_value=False,
                is_eager=True,
                help="Print the version.",
                callback=print_version,
            )
        ],
        # Those below inherit it. The first of them is the one that usage errors point to.
        context_settings={"help_option_names": ["--help", "-h"]},
    )
