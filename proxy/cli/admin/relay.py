"""`hawse admin relay`."""

from __future__ import annotations

import click

from proxy.cli.admin.api.client import Reach
from proxy.cli.errors import CommandError
from proxy.cli.output import (
    Object,
    field,
    json_option,
    listed,
    objects,
    print_fields,
    print_table,
    since,
    text,
)
from proxy.process.suggestions import did_you_mean


@click.group()
def relay() -> None:
    """Show relays: the processes that connect the clusters.

    To add a relay, use `hawse admin cluster add`. `cluster key` replaces its key (without --keep-old, that
    ends the old key's tunnels). `cluster remove` disconnects all of a cluster's relays.
    limits.relays_per_cluster bounds their number. To stop a single relay, stop its process.
    """


@relay.command("list")
@click.option("--cluster", metavar="NAME", help="Only relays of this cluster.")
@json_option
@click.pass_obj
def list_relays(reach: Reach, /, cluster: str | None, as_json: bool) -> None:
    """List the relays, connected or not: a line for each tunnel.

    Where several hubs serve, HUB names the one that has the tunnel. Only that hub knows the tunnel's streams,
    its round-trip time and the state of its API server.
    """
    relays = _relays(reach, cluster)
    # On SQLite a hub is alone.
    of_several = any(row.get("hub") for row in relays)
    columns = [
        ("CLUSTER", field("cluster")),
        ("INSTANCE", field("instance")),
        *([("HUB", _hub)] if of_several else []),
        ("STATE", _state),
        ("API SERVER", field("api_server")),
        ("KUBERNETES", _pinned),
        ("LAST SEEN", since("last_seen_at")),
        ("RTT", _rtt),
        ("STREAMS", field("streams")),
        ("KEY", field("key")),
        ("VERSION", field("version")),
        ("ADDRESS", field("address")),
    ]
    print_table(
        relays,
        columns,
        as_json=as_json,
        empty="no relay has connected yet: add one with hawse admin cluster add"
        if cluster is None
        else f"no relay of {cluster} has connected yet; to find out why: "
        f"hawse admin cluster check {cluster} --kubeconfig FILE",
        spare=("ADDRESS", "KEY", "STREAMS", "VERSION", "KUBERNETES", "RTT", "LAST SEEN"),
    )


@relay.command("show")
@click.argument("instance")
@click.option("--cluster", metavar="NAME", help="Its cluster, if two clusters have an instance of that name.")
@json_option
@click.pass_obj
def show_relay(reach: Reach, /, instance: str, cluster: str | None, as_json: bool) -> None:
    """Show one relay."""
    relays = _relays(reach, cluster)
    found = [row for row in relays if row.get("instance") == instance]
    if not found:
        near = did_you_mean(instance, {text(row, "instance") for row in relays})
        whose = "" if cluster is None else f" of {cluster}"
        raise CommandError(
            f"no relay {instance!a}{whose} has connected{near}; for the names: hawse admin relay list"
        )
    if (clusters := len({text(row, "cluster") for row in found})) > 1:
        raise CommandError(f"{clusters} clusters have a relay {instance!a}: name one with --cluster")
    # The hub's own tunnel, of which it knows most, is the first.
    print_fields(
        {**found[0], "hubs": [_hub(row) for row in found]},
        [
            ("instance", field("instance")),
            ("cluster", field("cluster")),
            ("hubs", listed("hubs")),
            ("state", _state),
            ("api server", field("api_server")),
            ("kubernetes", _pinned),
            ("connected", since("connected_at")),
            ("last seen", since("last_seen_at")),
            ("round trip", _rtt),
            ("streams", field("streams")),
            ("key", field("key")),
            ("version", field("version")),
            ("address", field("address")),
        ],
        as_json=as_json,
    )


def _relays(reach: Reach, cluster: str | None) -> list[Object]:
    """Return all relays, or those of a cluster. Raises CommandError if the cluster does not exist."""
    client = reach.client()
    relays = objects(client.get("relays"), "relays")
    if cluster is None:
        return relays
    of_it = [row for row in relays if row.get("cluster") == cluster]
    if not of_it:
        # A typo would otherwise look like a cluster without relays: the hub refuses unknown names.
        client.get("clusters", cluster)
    return of_it


def _state(row: Object) -> str:
    if not row.get("connected"):
        return "away"
    return "leaving" if row.get("leaving") else "connected"


def _hub(row: Object) -> str:
    return text(row, "hub") or "-"


def _pinned(row: Object) -> str:
    """Whether the relay has stated the UID of its cluster, which is then enforced."""
    if not row.get("connected") or row.get("pinned") is None:
        return "-"
    return "pinned" if row.get("pinned") else "not pinned"


def _rtt(row: Object) -> str:
    rtt = row.get("rtt_ms")
    return f"{rtt:.1f} ms" if isinstance(rtt, int | float) else text(row, "rtt_ms") or "-"
