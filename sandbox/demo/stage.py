"""Everything that the scripted session needs, brought up step by step and taken down again."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
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
from sandbox.demo.processes import Daemon, Daemons, DemoError, free_port
from sandbox.demo.steps import Kubectl, Scene

AGENT = "robot"
TEAM = "demo"
CLUSTER = "sandbox"
ORG = "acme"
RELAY_DEADLINE_S = 30.0
POLL_S = 0.1


@attrs.frozen
class Stage:
    """What is up: the processes, the scene for the steps, and the hub's configuration file."""

    daemons: Daemons
    scene: Scene
    config: Path


def say(text: str) -> None:
    """Print a line that is seen at once, through a pipe as well."""
    print(text, flush=True)


def hawse(*args: str, environment: Mapping[str, str]) -> str:
    """Run one hawse command as an operator or agent would, and return its stdout."""
    done = subprocess.run(
        ["hawse", *args],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    if done.returncode != 0:
        raise DemoError(f"hawse {' '.join(args)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


@contextlib.contextmanager
def running(folder: Path, cluster: Path | None, port: int) -> Iterator[Stage]:
    """Bring everything up in `folder`, on the sandbox or the cluster of a kubeconfig, and take it down."""
    for part in ("agent", "relay"):
        (folder / part).mkdir(mode=0o700)
    with ExitStack() as stack:
        if cluster is not None:
            say(f"looking at the cluster of {cluster} ...")
            Administrator(cluster).check(NAMESPACE, RELAY_NAMESPACE)
        # Last, when all that follows is already down.
        stack.callback(say, "everything is stopped and removed")
        daemons = stack.enter_context(Daemons(folder))
        if cluster is None:
            say("starting the sandbox cluster ...")
            sandbox = daemons.start(
                "sandbox", [sys.executable, "-m", "sandbox", "--dir", str(folder / "cluster")]
            )
            sandbox.wait_for("ready ")
            cluster = folder / "cluster" / "admin.kubeconfig"
        administrator = Administrator(cluster)

        say("starting the hub ...")
        hub_url, config = _start_hub(daemons, folder, port)
        operator = {"HAWSE_HUB_CONFIG": str(config)}

        say("enrolling a team, a cluster and an agent ...")
        hawse("admin", "team", "add", TEAM, environment=operator)
        hawse(
            *("admin", "cluster", "add", CLUSTER, "--team", TEAM, "--output-dir", str(folder / "relay")),
            environment=operator,
        )
        agent = hawse(
            *("admin", "agent", "add", AGENT, "--team", TEAM, "--owner", "demo", "--json"),
            environment=operator,
        )
        rbac = hawse(
            *("admin", "cluster", "rbac", CLUSTER, "--namespace", RELAY_NAMESPACE),
            *("--service-account", RELAY_SERVICE_ACCOUNT),
            environment=operator,
        )

        say("preparing the cluster as its administrator, and waiting for a pod ...")
        pod_port = free_port()
        user, group = f"agent:{AGENT}", f"{ORG}/{TEAM}"
        stack.enter_context(
            prepared(administrator, namespace=NAMESPACE, rbac=rbac, objects=manifests(user, group, pod_port))
        )
        # Called before what `prepared` does on leaving, which takes a while on a real cluster.
        stack.callback(say, "removing what was made in the cluster ...")

        say("starting the relay: it dials the hub, nothing dials it ...")
        _wait_for_relay(_start_relay(daemons, folder, administrator), operator)

        say("logging the agent in ...")
        kubectl = _log_in(folder / "agent", hub_url, folder / "hub" / "tls" / "ca.pem", agent)
        yield Stage(daemons, Scene(kubectl, user, group, pod_port), config)


def _start_hub(daemons: Daemons, folder: Path, preferred: int) -> tuple[str, Path]:
    port, admin_port = free_port(preferred), free_port(preferred and preferred + 1)
    config = folder / "hub.toml"
    config.write_text(
        f'org = "{ORG}"\n'
        f'public_url = "https://127.0.0.1:{port}"\n'
        f'listen = "127.0.0.1:{port}"\n'
        f'data_dir = "{folder / "hub"}"\n'
        f'[admin]\nlisten = "127.0.0.1:{admin_port}"\n'
    )
    daemons.start("hub", ["hawse", "hub", "--config", str(config)]).wait_for("hub is ready")
    return f"https://127.0.0.1:{port}", config


def _start_relay(daemons: Daemons, folder: Path, administrator: Administrator) -> Daemon:
    kubeconfig = folder / "relay" / "kubeconfig"
    kubeconfig.touch(mode=0o600)
    kubeconfig.write_text(administrator.relay_kubeconfig())
    environment = {
        "HAWSE_RELAY_KUBECONFIG": str(kubeconfig),
        "HAWSE_RELAY_HEALTH_LISTEN": f"127.0.0.1:{free_port()}",
    }
    argv = ["hawse", "relay", "--config", str(folder / "relay" / "relay.toml")]
    return daemons.start("relay", argv, environment)


def _wait_for_relay(relay: Daemon, operator: Mapping[str, str]) -> None:
    deadline = time.monotonic() + RELAY_DEADLINE_S
    while not json.loads(hawse("admin", "relay", "list", "--json", environment=operator)):
        relay.check()
        if time.monotonic() > deadline:
            raise DemoError(f"the relay did not reach the hub: see {relay.log}")
        time.sleep(POLL_S)


def _log_in(home: Path, hub_url: str, ca: Path, agent: str) -> Kubectl:
    environment = {"XDG_CONFIG_HOME": str(home / "config"), "XDG_CACHE_HOME": str(home / "cache")}
    hawse(
        *("login", "--hub", hub_url, "--ca", str(ca)),
        environment={**environment, "HAWSE_API_KEY": json.loads(agent)["api_key"]},
    )
    kubeconfig = home / "kubeconfig"
    hawse("kubeconfig", "--output", str(kubeconfig), environment=environment)
    return Kubectl(kubeconfig, {**environment, "HOME": str(home)})
