"""`hawse admin cluster`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from proxy.cli.admin.api.client import Reach
from proxy.cli.admin.api.inputs import parse_pairs, read_certificates
from proxy.cli.admin.cluster.check import check_cluster
from proxy.cli.admin.cluster.rbac import rbac, role_options
from proxy.cli.admin.cluster.values import cluster_values
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
    since,
    text,
    yes_option,
)

if TYPE_CHECKING:
    from proxy.cli.admin.cluster.relay_output import Handover

F = TypeVar("F", bound=Callable[..., object])
PEM_BYTES_MAX = 64 * 1024


@click.group()
def cluster() -> None:
    """Manage clusters. Each is reached through its relay, and granted to teams."""


def _relay_options(command: F) -> F:
    """Add the options for the relay's setup and for the output."""
    for option in (
        click.option(
            "--output-dir",
            type=click.Path(path_type=Path, file_okay=False),
            metavar="DIR",
            help="For a relay outside a cluster: write relay.toml and its keys to this folder.",
        ),
        click.option(
            "--output",
            "-o",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Write the output to this new file (mode 0600). `helm` instead prints the chart's values.",
        ),
        click.option(
            "--secret",
            "secret_file",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="With --output helm: write the Secret with the relay's key to this new file (mode 0600).",
        ),
        click.option(
            "--force",
            is_flag=True,
            help="Overwrite the FILE of --output or --secret, or print the private key on a terminal.",
        ),
        click.option(
            "--kubeconfig",
            type=click.Path(path_type=Path, dir_okay=False),
            metavar="FILE",
            help="With --output-dir: the kubeconfig (with a bearer token) for the relay.",
        ),
        click.option(
            "--image",
            metavar="IMAGE",
            help="The relay's container image. Default: hawse-relay, which you build yourself.",
        ),
        click.option(
            "--replicas", type=int, metavar="N", help="Number of relays in the cluster. Default: 2."
        ),
        click.option(
            "--service-type",
            type=click.Choice(["LoadBalancer", "ClusterIP", "NodePort"]),
            help="Type of direct mode's Service. Default: LoadBalancer.",
        ),
        click.option(
            "--hub-ca",
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            metavar="FILE",
            help="The CA of the hub's certificate, if that is configured and not from a public CA.",
        ),
        json_option,
    ):
        command = option(command)
    return role_options(command)


@cluster.command("list")
@json_option
@click.pass_obj
def list_clusters(reach: Reach, /, as_json: bool) -> None:
    """List the clusters."""
    clusters = objects(reach.client().get("clusters"), "clusters")
    columns = [
        ("CLUSTER", field("name")),
        ("MODE", field("mode")),
        ("TEAMS", listed("teams")),
        ("RELAYS", field("relays")),
        ("LABELS", _labels),
        ("CREATED", since("created_at")),
    ]
    print_table(
        clusters,
        columns,
        as_json=as_json,
        empty="no clusters yet: hawse admin cluster add NAME --team TEAM",
        spare=("CREATED", "LABELS"),
    )


@cluster.command("add")
@click.argument("name")
@click.option(
    "--team", "teams", multiple=True, metavar="NAME", help="Grant the cluster to this team; repeatable."
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="KEY=VALUE",
    help="A label that policies can select clusters by; repeatable.",
)
@click.option(
    "--mode",
    type=click.Choice(["tunnel", "direct"]),
    default="tunnel",
    show_default=True,
    help="tunnel: the relay dials the hub. direct: the hub dials the relay.",
)
@click.option("--relay-url", metavar="URL", help="Mode direct: the URL at which the hub reaches the relay.")
@click.option(
    "--relay-ca",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Mode direct: the CA of the relay's certificate, unless it is a public CA.",
)
@click.option(
    "--allow-private-address",
    is_flag=True,
    help="Mode direct: allow a private or loopback address for the relay.",
)
@_relay_options
@click.pass_obj
def add_cluster(
    reach: Reach,
    /,
    name: str,
    teams: tuple[str, ...],
    labels: tuple[str, ...],
    mode: str,
    relay_url: str | None,
    relay_ca: Path | None,
    allow_private_address: bool,
    as_json: bool,
    output_dir: Path | None,
    kubeconfig: Path | None,
    output: Path | None,
    force: bool,
    **options: object,
) -> None:
    """Add a cluster, and print its relay's manifests. They are shown only once.

    They hold the relay's private key, so they are not printed on a terminal:

    \b
    hawse admin cluster add prod --team sre --image IMAGE | kubectl --context prod apply -f -
    hawse admin cluster add prod --team sre --image IMAGE --output prod.yaml

    For Helm, the values for a repository and the Secret with the key are apart:

    \b
    hawse admin cluster add prod --team sre --image IMAGE --output helm --secret FILE > prod.values.yaml
    """
    handover = _handover(name, options, output_dir, kubeconfig, relay_url, mode=mode, as_json=as_json)
    with handover.opened(output, force=force) as take:
        made = reach.client().post(
            "clusters",
            body={
                "name": name,
                "teams": teams,
                "labels": parse_pairs(labels, "--label"),
                "mode": mode,
                "relay_url": relay_url,
                "relay_ca_pem": read_certificates(relay_ca, "--relay-ca", PEM_BYTES_MAX),
                "relay_address_private": allow_private_address,
                "manifest": handover.given,
            },
        )
        take(made, constrained=bool(options["constrained"]))
    if not as_json and not teams:
        say(f"no team may reach it yet: hawse admin cluster grant {name} TEAM")


@cluster.command("key")
@click.argument("name")
@click.option("--keep-old", is_flag=True, help="Keep the current key valid too, until --drop-old.")
@click.option("--drop-old", is_flag=True, help="Instead of a new key: revoke all keys but the newest.")
@yes_option
@_relay_options
@click.pass_obj
def replace_key(
    reach: Reach,
    /,
    name: str,
    keep_old: bool,
    drop_old: bool,
    yes: bool,
    as_json: bool,
    output_dir: Path | None,
    kubeconfig: Path | None,
    output: Path | None,
    force: bool,
    **options: object,
) -> None:
    """Replace the relay's key, and print new manifests.

    Without an outage, in three steps:

    \b
    hawse admin cluster key prod --keep-old --image IMAGE | kubectl apply -f -
    kubectl --namespace hawse rollout status deployment hawse-relay
    hawse admin cluster key prod --drop-old     (hawse admin relay list shows each relay's key)

    Without --keep-old, the current key and its tunnels end at once. Do this if the key may have leaked.
    """
    if drop_old:
        if keep_old:
            raise click.UsageError("--keep-old and --drop-old are separate steps: use one of them")
        confirm(f"Revoke the older keys of {name}? Relays that still use one are disconnected", yes=yes)
        changed = reach.client().delete("clusters", name, "keys")
        if as_json:
            print_json(changed)
        else:
            say(f"the relay keys of {name} are now: {listed('relay_keys')(changed)}")
        return
    # A relay in direct mode has no key, and the hub refuses to replace it.
    handover = _handover(name, options, output_dir, kubeconfig, None, mode="tunnel", as_json=as_json)
    with handover.opened(output, force=force) as take:
        body = {"keep_old": keep_old, "manifest": handover.given}
        made = reach.client().post("clusters", name, "keys", body=body)
        take(made, constrained=bool(options["constrained"]))


@cluster.command("show")
@click.argument("name")
@json_option
@click.pass_obj
def show_cluster(reach: Reach, /, name: str, as_json: bool) -> None:
    """Show a cluster, and the teams and agents that may reach it."""
    found = reach.client().get("clusters", name)
    print_fields(
        found,
        [
            ("cluster", field("name")),
            ("id", field("id")),
            ("mode", field("mode")),
            ("relay url", field("relay_url")),
            ("relay keys", listed("relay_keys")),
            ("relays here", field("relays")),
            ("kube-system", _pin),
            ("labels", _labels),
            ("teams", listed("teams")),
            ("agents", listed("agents")),
            ("created", since("created_at")),
        ],
        as_json=as_json,
    )


@cluster.command("grant")
@click.argument("name")
@click.argument("team")
@json_option
@click.pass_obj
def grant(reach: Reach, /, name: str, team: str, as_json: bool) -> None:
    """Allow a team's agents to reach a cluster."""
    changed = reach.client().put("clusters", name, "teams", team)
    print_change(changed, f"granted cluster {name} to team {team}", as_json=as_json)


@cluster.command("revoke")
@click.argument("name")
@click.argument("team")
@json_option
@click.pass_obj
def revoke(reach: Reach, /, name: str, team: str, as_json: bool) -> None:
    """Revoke a team's access to a cluster."""
    changed = reach.client().delete("clusters", name, "teams", team)
    done = f"revoked cluster {name} from team {team}: its agents are refused there from now on"
    print_change(changed, done, as_json=as_json)


@cluster.command("remove")
@click.argument("name")
@yes_option
@json_option
@click.pass_obj
def remove_cluster(reach: Reach, /, name: str, yes: bool, as_json: bool) -> None:
    """Remove a cluster. Its relays can no longer connect."""
    confirm(f"Remove cluster {name}? To add it again, its relays need new keys", yes=yes)
    gone = reach.client().delete("clusters", name)
    done = f"removed cluster {name}; in the cluster, delete the relay's namespace and ClusterRole"
    print_change(gone, done, as_json=as_json)


@cluster.command("repin")
@click.argument("name")
@yes_option
@json_option
@click.pass_obj
def repin(reach: Reach, /, name: str, yes: bool, as_json: bool) -> None:
    """Pin a cluster again, to the next relay that connects.

    For a cluster that was rebuilt or moved. Its first relay pinned the UID of its namespace kube-system, and
    relays with another UID are refused. Connected relays stay until another UID is pinned.
    """
    confirm(f"Unpin cluster {name}? The next relay that connects pins it again", yes=yes)
    changed = reach.client().post("clusters", name, "repin")
    done = f"cluster {name} is no longer pinned to {text(changed, 'unpinned')}: the next relay pins it"
    print_change(changed, done, as_json=as_json)


cluster.add_command(check_cluster)
cluster.add_command(rbac)
cluster.add_command(cluster_values)


def _pin(row: Object) -> str:
    return text(row, "cluster_uid") or "not pinned"


def _labels(row: Object) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(child(row, "labels").items())) or "-"


def _handover(
    name: str,
    options: dict[str, object],
    output_dir: Path | None,
    kubeconfig: Path | None,
    relay_url: str | None,
    *,
    mode: str,
    as_json: bool,
) -> Handover:
    # Not above: with the manifests and YAML it takes a third of the start of a command that needs neither.
    from proxy.cli.admin.cluster.relay_output import Handover

    secret_file = options["secret_file"]
    assert secret_file is None or isinstance(secret_file, Path)
    return Handover(
        name,
        _manifest_options(options),
        output_dir,
        kubeconfig,
        relay_url,
        as_json=as_json,
        mode=mode,
        secret_file=secret_file,
    )


def _manifest_options(options: dict[str, object]) -> dict[str, object]:
    """Return the options that were given for the relay's setup. The hub chooses the others."""
    not_sent = {"hub_ca", "constrained", "secret_file"}
    given = {name: value for name, value in options.items() if name not in not_sent and value is not None}
    hub_ca = options.get("hub_ca")
    if isinstance(hub_ca, Path):
        given["hub_ca_pem"] = read_certificates(hub_ca, "--hub-ca", PEM_BYTES_MAX)
    return given
