"""`hawse admin agent`."""

from __future__ import annotations

import shlex

import click

from proxy.cli.admin.api.client import AdminClient, Reach
from proxy.cli.errors import CommandError
from proxy.cli.output import (
    Object,
    child,
    confirm,
    field,
    json_option,
    listed,
    objects,
    print_change,
    print_fields,
    print_json,
    print_table,
    say,
    say_apply_rbac,
    since,
    text,
    yes_option,
)


@click.group()
def agent() -> None:
    """Manage agents. Each is the Kubernetes user agent:<name>."""


@agent.command("list")
@click.option("--team", metavar="NAME", help="Only agents of this team.")
@click.option("--cluster", metavar="NAME", help="Only agents that may reach this cluster.")
@click.option("--policy", metavar="NAME", help="Only agents that this policy binds.")
@click.option("--retired", is_flag=True, help="Include removed agents.")
@json_option
@click.pass_obj
def list_agents(
    reach: Reach,
    /,
    team: str | None,
    cluster: str | None,
    policy: str | None,
    retired: bool,
    as_json: bool,
) -> None:
    """List the agents."""
    chosen = {"team": team, "cluster": cluster, "policy": policy}
    filtered = any(name is not None for name in chosen.values())
    found = reach.client().get("agents", retired=str(retired).lower(), **chosen)
    if filtered and "total" not in found:
        # A hub of an earlier version ignores them, and lists all agents.
        raise CommandError(
            "the hub does not know --team, --cluster or --policy: does it run the same version?"
        )
    agents = objects(found, "agents")
    columns = [
        ("AGENT", field("name")),
        ("STATE", field("state")),
        ("TEAMS", listed("teams")),
        ("CLUSTERS", listed("clusters")),
        ("OWNER", field("owner")),
        ("LAST USED", since("last_used_at")),
    ]
    print_table(
        agents,
        columns,
        as_json=as_json,
        empty="no agent matches"
        if filtered
        else "no agents yet: hawse admin agent add NAME --owner WHO --team TEAM",
        spare=("OWNER", "LAST USED", "CLUSTERS"),
    )


@agent.command("add")
@click.argument("name")
@click.option("--owner", required=True, metavar="WHO", help="The person responsible for the agent.")
@click.option("--team", "teams", multiple=True, required=True, metavar="NAME", help="Its team; repeatable.")
@click.option(
    "--credential",
    type=click.Choice(["api-key", "code", "none"]),
    default="api-key",
    show_default=True,
    help="The agent's first credential: an API key, a one-time code for a key of its own, or none yet.",
)
@json_option
@click.pass_obj
def add_agent(
    reach: Reach, /, name: str, owner: str, teams: tuple[str, ...], credential: str, as_json: bool
) -> None:
    """Add an agent, and print its API key or code. It is shown only once.

    A name is permanent: it is never reused, even after the agent is removed.
    """
    client = reach.client()
    body = {"name": name, "owner": owner, "teams": teams, "credential": credential}
    made = client.post("agents", body=body)
    if as_json:
        print_json(made)
        return
    say(f"added agent {name}, the Kubernetes user agent:{name}; it may reach: {listed('clusters')(made)}")
    if credential == "api-key":
        _print_key(client, made)
    elif credential == "code":
        _print_code(client, made)
    say_apply_rbac(made)


@agent.command("show")
@click.argument("name")
@json_option
@click.pass_obj
def show_agent(reach: Reach, /, name: str, as_json: bool) -> None:
    """Show an agent and its keys (only their first characters)."""
    found = reach.client().get("agents", name)
    print_fields(
        found,
        [
            ("agent", field("name")),
            ("id", field("id")),
            ("user", lambda row: f"agent:{text(row, 'name')}"),
            ("state", field("state")),
            ("owner", field("owner")),
            ("teams", listed("teams")),
            ("clusters", listed("clusters")),
            ("created", since("created_at")),
            ("last used", since("last_used_at")),
            (
                "policies",
                lambda row: ", ".join(text(each, "name") for each in objects(row, "policies")) or "-",
            ),
            ("open codes", lambda row: str(len(objects(row, "codes")) or "-")),
            (
                "limits",
                lambda row: ", ".join(f"{key}={value}" for key, value in child(row, "limits").items()),
            ),
        ],
        as_json=as_json,
    )
    if not as_json:
        click.echo()
        _print_keys(objects(found, "keys"), as_json=False)


@agent.command("teams")
@click.argument("name")
@click.option("--add", multiple=True, metavar="TEAM", help="Add it to this team; repeatable.")
@click.option("--remove", multiple=True, metavar="TEAM", help="Remove it from this team; repeatable.")
@json_option
@click.pass_obj
def change_teams(
    reach: Reach, /, name: str, add: tuple[str, ...], remove: tuple[str, ...], as_json: bool
) -> None:
    """Change an agent's teams."""
    if not add and not remove:
        raise click.UsageError("use --add TEAM, --remove TEAM, or both")
    changed = reach.client().patch("agents", name, "teams", body={"add": add, "remove": remove})
    done = f"agent {name} is in: {listed('teams')(changed)}; it may reach: {listed('clusters')(changed)}"
    print_change(changed, done, as_json=as_json)


@agent.command("lock")
@click.argument("name")
@json_option
@click.pass_obj
def lock_agent(reach: Reach, /, name: str, as_json: bool) -> None:
    """Refuse an agent until it is unlocked, and end its open calls. Its keys are kept."""
    changed = reach.client().post("agents", name, "lock")
    done = (
        f"locked agent {name}: its calls are refused and its open calls are ended; "
        f"to undo: hawse admin agent unlock {name}"
    )
    print_change(changed, done, as_json=as_json)


@agent.command("unlock")
@click.argument("name")
@json_option
@click.pass_obj
def unlock_agent(reach: Reach, /, name: str, as_json: bool) -> None:
    """Accept a locked agent again."""
    changed = reach.client().post("agents", name, "unlock")
    print_change(changed, f"unlocked agent {name}", as_json=as_json)


@agent.command("remove")
@click.argument("name")
@yes_option
@json_option
@click.pass_obj
def remove_agent(reach: Reach, /, name: str, yes: bool, as_json: bool) -> None:
    """Remove an agent permanently. Its keys are revoked, and its name is never reused."""
    confirm(f"Remove agent {name} permanently? Its name can never be used again", yes=yes)
    gone = reach.client().delete("agents", name)
    done = f"removed agent {name}; its keys are revoked, and its name can't be reused"
    print_change(gone, done, as_json=as_json)


@agent.command("code")
@click.argument("name")
@click.option("--withdraw", is_flag=True, help="Instead, invalidate the agent's unused codes.")
@json_option
@click.pass_obj
def make_code(reach: Reach, /, name: str, withdraw: bool, as_json: bool) -> None:
    """Print a one-time code for registering an agent's own key.

    The agent uses it with `hawse login --code`. It works once, within 15 minutes. The private half of the key
    never leaves the agent's machine.
    """
    client = reach.client()
    if withdraw:
        gone = client.delete("agents", name, "codes")
        print_change(gone, f"withdrawn codes of agent {name}: {text(gone, 'withdrawn')}", as_json=as_json)
        return
    made = client.post("agents", name, "codes")
    if as_json:
        print_json(made)
        return
    _print_code(client, made)


@agent.group("key")
def key() -> None:
    """Manage an agent's keys: API keys and keys of its own."""


@key.command("list")
@click.argument("name")
@json_option
@click.pass_obj
def list_keys(reach: Reach, /, name: str, as_json: bool) -> None:
    """List an agent's keys of both kinds (only their first characters)."""
    keys = objects(reach.client().get("agents", name), "keys")
    _print_keys(keys, as_json=as_json)


@key.command("add")
@click.argument("name")
@json_option
@click.pass_obj
def add_key(reach: Reach, /, name: str, as_json: bool) -> None:
    """Add an API key for an agent, and print it. It is shown only once."""
    client = reach.client()
    made = client.post("agents", name, "keys")
    if as_json:
        print_json(made)
        return
    say(f"added a key for agent {name}; once it is in use: hawse admin agent key revoke {name} OLD-ID")
    _print_key(client, made)


@key.command("revoke")
@click.argument("name")
@click.argument("key_id")
@json_option
@click.pass_obj
def revoke_key(reach: Reach, /, name: str, key_id: str, as_json: bool) -> None:
    """Revoke a key of either kind, and end its open calls. For its id: hawse admin agent key list NAME."""
    gone = reach.client().delete("agents", name, "keys", key_id)
    print_change(gone, f"revoked key {key_id} of agent {name}", as_json=as_json)


def _print_key(client: AdminClient, made: Object) -> None:
    say("its API key, shown only once:")
    click.echo(text(made, "api_key"))
    _say_login(client, "", "the key")


def _print_code(client: AdminClient, made: Object) -> None:
    say(f"its code, valid once and until {text(made, 'expires_at')}:")
    click.echo(text(made, "code"))
    _say_login(client, " --code", "the code")


def _say_login(client: AdminClient, option: str, secret: str) -> None:
    hub = client.get("hub")
    if text(hub, "ca_pem"):
        say("give the agent this hub's CA too: hawse admin hub ca > hub-ca.pem")
        option += " --ca hub-ca.pem"
    say(f"on the agent's machine, run this and paste {secret}:")
    # It is pasted into a shell on another machine.
    say(f"  hawse login --hub {shlex.quote(text(hub, 'public_url'))}{option}")


def _policies(row: Object) -> str:
    return ", ".join(text(policy, "name") for policy in objects(row, "policies")) or "-"


def _print_keys(keys: list[Object], *, as_json: bool) -> None:
    columns = [
        ("KEY", field("hint")),
        ("TYPE", field("type")),
        ("ID", field("id")),
        ("STATE", lambda row: "revoked" if text(row, "revoked_at") else "valid"),
        ("CREATED", since("created_at")),
        ("LAST USED", since("last_used_at")),
    ]
    print_table(keys, columns, as_json=as_json, empty="no keys", spare=("CREATED", "TYPE"))
