"""Starts everything that the scripted session needs, step by step, and stops it again."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import attrs

from sandbox.demo.cluster import (
    NAMESPACE,
    RELAY_NAMESPACE,
    RELAY_SERVICE_ACCOUNT,
    Administrator,
    manifests,
    prepared,
)
from sandbox.demo.database import new_postgres
from sandbox.demo.hubs import Hubs, make_hubs
from sandbox.demo.processes import Daemon, Daemons, DemoError, free_port, say
from sandbox.demo.program import Program
from sandbox.demo.scene import Scene

AGENT = "robot"
TEAM = "demo"
CLUSTER = "sandbox"
ORG = "acme"
# Of the cluster, with several hubs: as many as the printed manifests have.
RELAYS = 2
# Production settings are 15 s for the balancer to notice, and checks every few seconds.
BALANCER_CHECKS_S = 0.2
HUB_SETTINGS = "[stop]\nlb_s = 1\n"
RELAY_DEADLINE_S = 30.0
POLL_S = 0.1


@attrs.frozen
class Stage:
    """The running processes, and the scene for the steps."""

    daemons: Daemons
    scene: Scene
    front: Front
    administrator: Administrator


@attrs.frozen
class Front:
    """What relays, agents and the operator need of the hub, or of several hubs."""

    url: str
    ca: Path
    # The configuration of the hub on whose machine the operator is.
    config: Path
    several: Hubs | None = None


@contextlib.contextmanager
def running(
    folder: Path, cluster: Path | None, port: int, *, postgres: bool = False, hubs: int = 1
) -> Iterator[Stage]:
    """Start everything in `folder`, on the sandbox or the cluster of a kubeconfig, and stop it on leaving.

    `postgres`: the hub's database is a PostgreSQL that runs beside it, which several hubs need.
    """
    for part in ("agent", "relay"):
        (folder / part).mkdir(mode=0o700)
    with ExitStack() as stack:
        database = stack.enter_context(new_postgres()) if postgres else None
        if cluster is not None:
            say(f"looking at the cluster of {cluster} ...")
            Administrator(cluster).check(NAMESPACE, RELAY_NAMESPACE)
        # Runs last, when everything below has stopped.
        stack.callback(say, "everything is stopped and removed")
        daemons = stack.enter_context(Daemons(folder))
        if cluster is None:
            say("starting the sandbox cluster ...")
            say("  its pods are processes of this machine, not containers: so is each `kubectl exec`")
            sandbox = daemons.start(
                "sandbox", [sys.executable, "-m", "sandbox", "--dir", str(folder / "cluster")]
            )
            sandbox.wait_for("ready ")
            cluster = folder / "cluster" / "admin.kubeconfig"
        administrator = Administrator(cluster)

        database_url = None
        if database is not None:
            say("starting PostgreSQL ...")
            database_url = database.start(daemons)
        if hubs > 1:
            assert database_url is not None
            say(f"starting {hubs} hubs, and a load balancer in front of them ...")
            front = _start_hubs(daemons, folder, port, database_url, hubs)
            assert front.several is not None
            stack.callback(front.several.stop)
        else:
            say("starting the hub ...")
            front = _start_hub(daemons, folder, port, database_url)
        operator = Program(("hawse",), {"HAWSE_HUB_CONFIG": str(front.config)})

        say("enrolling a team, a cluster and an agent ...")
        operator.run("admin", "team", "add", TEAM)
        operator.run(
            *("admin", "cluster", "add", CLUSTER, "--team", TEAM, "--output-dir", str(folder / "relay"))
        )
        agent, _ = operator.run("admin", "agent", "add", AGENT, "--team", TEAM, "--owner", "demo", "--json")
        rbac, _ = operator.run(
            *("admin", "cluster", "rbac", CLUSTER, "--namespace", RELAY_NAMESPACE),
            *("--service-account", RELAY_SERVICE_ACCOUNT),
        )

        say("preparing the cluster as its administrator, and waiting for a pod ...")
        pod_port = free_port()
        home = folder / "agent"
        relays: list[Daemon] = []
        scene = Scene(kubectl_of(home), operator, AGENT, TEAM, ORG, pod_port, folder, relays, front.several)
        objects = manifests(scene.agent_user, scene.agent_group, pod_port)
        stack.enter_context(prepared(administrator, namespace=NAMESPACE, rbac=rbac, objects=objects))
        # Runs before the cleanup of `prepared`, which takes a while on a real cluster.
        stack.callback(say, "removing what was made in the cluster ...")

        if front.several is None:
            say("starting the relay: it dials the hub, nothing dials it ...")
        else:
            say(f"starting {RELAYS} relays: they dial the hubs by their name, nothing dials them ...")
        for number in range(RELAYS if front.several is not None else 1):
            name = f"relay-{number}"
            relays.append(start_relay(daemons, name, folder / "relay", administrator, front))
        wait_for_relay(relays[0], operator, CLUSTER)

        say("logging the agent in ...")
        log_in(scene.kubectl, front, json.loads(agent)["api_key"])
        yield Stage(daemons, scene, front, administrator)


def kubectl_of(home: Path) -> Program:
    """An agent's kubectl, in the demo's namespace."""
    return Program(
        ("kubectl", f"--namespace={NAMESPACE}"),
        {
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_CACHE_HOME": str(home / "cache"),
            "KUBECONFIG": str(home / "kubeconfig"),
        },
    )


def _start_hub(daemons: Daemons, folder: Path, preferred: int, database_url: str | None) -> Front:
    port, admin_port, console_port = (free_port(preferred and preferred + step) for step in range(3))
    config, url = folder / "hub.toml", f"https://127.0.0.1:{port}"
    config.write_text(
        f'org = "{ORG}"\n'
        f'public_url = "{url}"\n'
        f'listen = "127.0.0.1:{port}"\n'
        f'data_dir = "{folder / "hub"}"\n'
        f'[admin]\nlisten = "127.0.0.1:{admin_port}"\n'
        f'[console]\nlisten = "127.0.0.1:{console_port}"\n'
        + (f'[database]\nurl = "{database_url}"\n' if database_url is not None else "")
    )
    daemons.start("hub", ["hawse", "hub", "--config", str(config)]).wait_for("hub is ready")
    return Front(url, folder / "hub" / "tls" / "ca.pem", config)


def _start_hubs(daemons: Daemons, folder: Path, preferred: int, database_url: str, count: int) -> Front:
    several = make_hubs(
        folder,
        daemons,
        lambda _: database_url,
        org=ORG,
        hubs=count,
        port=preferred,
        check_s=BALANCER_CHECKS_S,
        settings=HUB_SETTINGS,
        console=True,
    )
    for number, hub in enumerate(several.all):
        hub.launch(daemons)
        if number == 0:
            # It makes the tables.
            several.wait_ready(hub)
    for hub in several.all:
        several.wait_ready(hub)
    return Front(several.url, several.ca, several.all[0].config, several)


def start_relay(
    daemons: Daemons, name: str, folder: Path, administrator: Administrator, front: Front
) -> Daemon:
    """Start a relay with the files of `folder`; it has not reached the hub yet."""
    kubeconfig = folder / "kubeconfig"
    kubeconfig.touch(mode=0o600)
    kubeconfig.write_text(administrator.relay_kubeconfig())
    environment = {
        "HAWSE_RELAY_INSTANCE": name,
        "HAWSE_RELAY_KUBECONFIG": str(kubeconfig),
        "HAWSE_RELAY_HEALTH_LISTEN": f"127.0.0.1:{free_port()}",
    }
    if front.several is not None:
        # The hubs do not know the CA of the certificate that they were given.
        environment["HAWSE_RELAY_HUB_CA"] = str(front.ca)
    return daemons.start(name, ["hawse", "relay", "--config", str(folder / "relay.toml")], environment)


def wait_for_relay(relay: Daemon, operator: Program, cluster: str) -> None:
    """Wait until a relay of the cluster has reached the hub; raises DemoError."""
    deadline = time.monotonic() + RELAY_DEADLINE_S
    while not json.loads(operator.run("admin", "relay", "list", "--cluster", cluster, "--json")[0]):
        relay.check()
        if time.monotonic() > deadline:
            raise DemoError(f"the relay did not reach the hub: see {relay.log}")
        time.sleep(POLL_S)


def log_in(kubectl: Program, front: Front, api_key: str) -> None:
    """Log an agent in by its API key, and write the kubeconfig of its kubectl."""
    agent = Program(("hawse",), {**kubectl.environment, "HAWSE_API_KEY": api_key})
    agent.run("login", "--hub", front.url, "--ca", str(front.ca))
    agent.run("kubeconfig", "--output", kubectl.environment["KUBECONFIG"])
