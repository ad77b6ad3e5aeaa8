"""`hawse admin cluster`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from proxy.cli.admin.client import Object, Reach
from proxy.cli.admin.cluster_check import check_cluster
from proxy.cli.admin.handover import Handover
from proxy.cli.admin.inputs import parse_pairs, read_certificates
from proxy.cli.admin.output import (
    child,
    confirm,
    field,
    json_option,
    listed,
    objects,
    print_fields,
    print_json,
    print_table,
    say,
    since,
    tell_change,
    text,
    yes_option,
)

F = TypeVar("F", bound=Callable[..., object])
PEM_BYTES_MAX = 64 * 1024


@click.group()
def cluster() -> None:
    """Clusters: each behind its relay, granted to teams."""


def _role_options(command: F) -> F:
    """Whom the ClusterRole is bound to, and its form."""
    for option in (
        click.option(
            "--constrained",
            is_flag=True,
            help="The narrower ClusterRole that API servers know from 1.36 on; older ones refuse all agents.",
        ),
        click.option("--namespace", metavar="NAME", help="The relay's namespace (hawse)."),
        click.option("--service-account", metavar="NAME", help="The relay's service account (hawse-relay)."),
    ):
        command = option(command)
    return command


def _relay_options(command: F) -> F:
    """How the relay is set up, and where that is printed or written."""
    for option in (
        click.option(
            "--output-dir",
            type=click.Path(path_type=Path, file_okay=False),
            metavar="DIR",
            help="For a relay outside a cluster: write relay.toml and its keys there, print nothing.",
        ),
        click.option(
            "--output",
            "-o",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Write what would be printed to FILE (mode 0600), which must not be there yet.",
        ),
        click.option(
            "--force",
            is_flag=True,
            help="Overwrite the FILE of --output, or print the private key on a terminal.",
        ),
        click.option(
            "--kubeconfig",
            type=click.Path(path_type=Path, dir_okay=False),
            metavar="FILE",
            help="With --output-dir: the kubeconfig (with a bearer token) that the relay will use.",
        ),
        click.option(
            "--image",
            metavar="IMAGE",
            help="The relay's container image; hawse-relay, which you have to build, without it.",
        ),
        click.option("--replicas", type=int, metavar="N", help="How many relays the cluster runs (2)."),
        click.option(
            "--service-type",
            type=click.Choice(["LoadBalancer", "ClusterIP", "NodePort"]),
            help="How direct mode's Service is exposed (LoadBalancer).",
        ),
        click.option(
            "--hub-ca",
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            metavar="FILE",
            help="The CA of the hub's certificate, if it is configured and not of a public CA.",
        ),
        json_option,
    ):
        command = option(command)
    return _role_options(command)


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
@click.option("--team", "teams", multiple=True, metavar="NAME", help="Grant it to this team; repeatable.")
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="KEY=VALUE",
    help="For the policies that select clusters; repeatable.",
)
@click.option(
    "--mode",
    type=click.Choice(["tunnel", "direct"]),
    default="tunnel",
    show_default=True,
    help="tunnel: the relay dials the hub. direct: the hub dials the relay.",
)
@click.option("--relay-url", metavar="URL", help="Mode direct: where the hub reaches the relay.")
@click.option(
    "--relay-ca",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Mode direct: the CA of the relay's certificate, if it is not a public one.",
)
@click.option(
    "--allow-private-address",
    is_flag=True,
    help="Mode direct: the relay's URL may lead to a private or loopback address.",
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
    """Add a cluster, and print its relay's manifests, this once.

    They hold the relay's private key, so they are not printed on a terminal:

    \b
    hawse admin cluster add prod --team sre --image IMAGE | kubectl --context prod apply -f -
    hawse admin cluster add prod --team sre --image IMAGE --output prod.yaml
    """
    handover = Handover(name, _manifest_options(options), output_dir, kubeconfig, relay_url, as_json=as_json)
    with handover.opened(output, force=force, secret=mode == "tunnel") as take:
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
                "manifest": handover.said,
            },
        )
        take(made, constrained=bool(options["constrained"]))
    if not as_json and not teams:
        say(f"no team may reach it yet: hawse admin cluster grant {name} TEAM")


@cluster.command("key")
@click.argument("name")
@click.option("--keep-old", is_flag=True, help="Let the present key work beside it, until --drop-old.")
@click.option(
    "--drop-old", is_flag=True, help="Make no new key, and end all but the newest: what --keep-old had kept."
)
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
    """Give a cluster's relay a new key, and print its manifests with it.

    Without an outage, in three steps:

    \b
    hawse admin cluster key prod --keep-old --image IMAGE | kubectl apply -f -
    kubectl --namespace hawse rollout status deployment hawse-relay
    hawse admin cluster key prod --drop-old     (hawse admin relay list says who uses which)

    Without --keep-old the present key ends at once, and with it the tunnels that were opened by it: for a key
    that may be in other hands.
    """
    if drop_old:
        if keep_old:
            raise click.UsageError("--keep-old and --drop-old are two steps of a change: say one")
        confirm(f"End the older keys of {name}? A relay that still has one is cut off", yes=yes)
        changed = reach.client().delete("clusters", name, "keys")
        if as_json:
            print_json(changed)
        else:
            say(f"the relay of {name} proves itself by {listed('relay_keys')(changed)} alone from now on")
        return
    handover = Handover(name, _manifest_options(options), output_dir, kubeconfig, None, as_json=as_json)
    with handover.opened(output, force=force, secret=True) as take:
        body = {"keep_old": keep_old, "manifest": handover.said}
        made = reach.client().post("clusters", name, "keys", body=body)
        take(made, constrained=bool(options["constrained"]))


@cluster.command("show")
@click.argument("name")
@json_option
@click.pass_obj
def show_cluster(reach: Reach, /, name: str, as_json: bool) -> None:
    """Show a cluster and who may reach it."""
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
    """Let a team's agents reach a cluster."""
    changed = reach.client().put("clusters", name, "teams", team)
    tell_change(changed, f"granted cluster {name} to team {team}", as_json=as_json)


@cluster.command("revoke")
@click.argument("name")
@click.argument("team")
@json_option
@click.pass_obj
def revoke(reach: Reach, /, name: str, team: str, as_json: bool) -> None:
    """Take a cluster from a team."""
    changed = reach.client().delete("clusters", name, "teams", team)
    done = f"revoked cluster {name} from team {team}: its agents are refused there from now on"
    tell_change(changed, done, as_json=as_json)


@cluster.command("remove")
@click.argument("name")
@yes_option
@json_option
@click.pass_obj
def remove_cluster(reach: Reach, /, name: str, yes: bool, as_json: bool) -> None:
    """Remove a cluster; its relays can no longer connect."""
    confirm(f"Remove cluster {name}? Its relays must be set up anew to come back", yes=yes)
    gone = reach.client().delete("clusters", name)
    done = f"removed cluster {name}; in the cluster, delete the relay's namespace and ClusterRole"
    tell_change(gone, done, as_json=as_json)


@cluster.command("repin")
@click.argument("name")
@yes_option
@json_option
@click.pass_obj
def repin(reach: Reach, /, name: str, yes: bool, as_json: bool) -> None:
    """Pin a cluster to what its next relay states.

    For a cluster that was rebuilt or moved: its first relay has pinned the UID of its namespace kube-system,
    and relays that state another one are refused. Those that are connected stay until another UID is pinned.
    """
    confirm(f"Forget which Kubernetes cluster {name} is? The next relay that connects decides", yes=yes)
    changed = reach.client().post("clusters", name, "repin")
    done = f"cluster {name} is not pinned to {text(changed, 'unpinned')} any more: the next relay pins it"
    tell_change(changed, done, as_json=as_json)


@cluster.command("rbac")
@click.argument("name")
@click.option(
    "--wildcard", is_flag=True, help="Any user and any group: the cluster is then as safe as this hub."
)
@_role_options
@click.pass_obj
def rbac(
    reach: Reach,
    /,
    name: str,
    wildcard: bool,
    constrained: bool,
    namespace: str | None,
    service_account: str | None,
) -> None:
    """Print whom the relay may impersonate now, as a ClusterRole.

    hawse admin cluster rbac prod | kubectl --context prod apply -f -

    Give --namespace and --service-account where the relay was set up with others than the printed manifests
    have. `hawse admin cluster check` tells whether what is applied fits.
    """
    from proxy.cli.admin.rendered import rendered_role

    place = {"namespace": namespace, "service_account": service_account}
    answer = reach.client().get("clusters", name, "rbac")
    click.echo(rendered_role(answer, place, wildcard=wildcard, constrained=constrained), nl=False)


cluster.add_command(check_cluster)


def _pin(row: Object) -> str:
    return text(row, "cluster_uid") or "not pinned"


def _labels(row: Object) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(child(row, "labels").items())) or "-"


def _manifest_options(options: dict[str, object]) -> dict[str, object]:
    """What was said of the relay's place; what was not is the hub's to choose."""
    asked_here = {"hub_ca", "constrained"}
    said = {name: value for name, value in options.items() if name not in asked_here and value is not None}
    hub_ca = options.get("hub_ca")
    if isinstance(hub_ca, Path):
        said["hub_ca_pem"] = read_certificates(hub_ca, "--hub-ca", PEM_BYTES_MAX)
    return said
