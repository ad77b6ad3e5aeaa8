"""The whole, as separate processes with real sockets and TLS: a cluster, a hub, two relays, an agent.

The hub knows the one cluster under two names: `tunnel`, whose relay dials in, and `direct`, whose relay it
dials. `running_world` has the sandbox for a cluster; `straight` is then the administrator's kubectl at the
API server itself, under the same identity by `--as`. `running_chain` is hub, relays and agent in front of
any API server that a kubeconfig leads to.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import attrs
import trustme
from click import Command
from click.testing import CliRunner

from proxy.cli.admin import admin
from proxy.cli.admin.api.client import AdminClient, Reach
from proxy.cli.agent.kubeconfig import kubeconfig
from proxy.cli.agent.login import login as login_command
from proxy.cli.audit.commands import audit
from proxy.cli.errors import CommandError
from sandbox.demo.processes import Daemon, Daemons, free_port
from tests.system.waiting import wait_until

ORG, TEAM, AGENT = "acme", "platform", "probe"
USER, GROUP = f"agent:{AGENT}", f"{ORG}/{TEAM}"
NAMESPACE = "work"
POD = "workbench"
POD_PATH = f"/api/v1/namespaces/{NAMESPACE}/pods/{POD}"
DEADLINE_S = 30.0
POLL_S = 0.05
# Names a team that no test adds, and that the trail's events are read after.
NO_TEAM = "no-team-"

WAYS = ("tunnel", "direct")
SPDY = {"KUBECTL_REMOTE_COMMAND_WEBSOCKETS": "false", "KUBECTL_PORT_FORWARD_WEBSOCKETS": "false"}


@attrs.frozen
class Result:
    """What a command left: exit code and both outputs."""

    code: int
    out: bytes
    err: bytes


@attrs.define(eq=False)
class World:
    """Handles of everything that runs, and ways to talk to it."""

    folder: Path
    daemons: Daemons
    hub_port: int
    admin_port: int
    direct_port: int
    relay_kubeconfig: Path
    flags: tuple[str, ...] = ()
    """More arguments for hub and relays."""
    relay_environment: Mapping[str, str] = attrs.Factory(dict)
    api_key: str = ""
    sandbox: Daemon | None = None
    hub: Daemon | None = None
    hubs: int = 1
    """How many have been started in place of one another."""
    relays: dict[str, Daemon] = attrs.Factory(dict)
    health_ports: dict[str, int] = attrs.Factory(dict)
    """Of the relays, by the same names."""

    @property
    def operator(self) -> dict[str, str]:
        return {"HAWSE_HUB_CONFIG": str(self.folder / "hub.toml")}

    @property
    def ca(self) -> Path:
        """The CA of the hub's certificate."""
        return self.folder / "hub" / "tls" / "ca.pem"

    @property
    def agent(self) -> dict[str, str]:
        home = self.folder / "agent"
        return {
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_CACHE_HOME": str(home / "cache"),
            "KUBECONFIG": str(home / "kubeconfig"),
        }

    def hawse(self, *args: str, environment: Mapping[str, str], stdin: bytes | None = None) -> bytes:
        done = run(["hawse", *args], environment, stdin)
        assert done.code == 0, f"hawse {' '.join(args)}: {done.err.decode()}"
        return done.out

    def admin(self, *args: str) -> bytes:
        """`hawse admin …` on the hub's machine, in this process: a new one costs more than the command."""
        return self._invoke(admin, *args)

    def try_admin(self, *args: str) -> Result:
        """The same, with whatever outcome."""
        done = CliRunner().invoke(admin, args, env=self.operator)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.output
        return Result(done.exit_code, done.stdout_bytes, done.stderr_bytes)

    def _invoke(self, command: Command, *args: str) -> bytes:
        return invoke(command, *args, environment=self.operator)

    @property
    def administration(self) -> AdminClient:
        """The hub's admin API, for who asks again and again: a command each time takes what is waited for."""
        return Reach(None, self.folder / "hub").client()

    def relay_rows(self) -> list[dict[str, Any]]:
        """What `hawse admin relay list` would say."""
        rows = self.administration.get("relays")["relays"]
        assert isinstance(rows, list)
        return rows  # type: ignore[return-value]

    def session_rows(self, **chosen: str) -> list[dict[str, Any]]:
        """What `hawse admin session list` would say, of an `agent` or a `cluster`."""
        rows = self.administration.get("sessions", **chosen)["sessions"]
        assert isinstance(rows, list)
        return rows  # type: ignore[return-value]

    def administrator(self, *args: str, stdin: bytes | None = None) -> bytes:
        """The cluster administrator's kubectl, which nothing of ours is in the way of."""
        done = run(["kubectl", *args], {"KUBECONFIG": str(self.admin_kubeconfig)}, stdin)
        assert done.code == 0, f"kubectl {' '.join(args)}: {done.err.decode()}"
        return done.out

    @property
    def admin_kubeconfig(self) -> Path:
        return self.folder / "cluster" / "admin.kubeconfig"

    def command(self, way: str, *args: str) -> list[str]:
        """The kubectl command line for a way: through a cluster of the hub, or straight with `--as`."""
        if way == "straight":
            identity = [f"--kubeconfig={self.admin_kubeconfig}", f"--as={USER}", f"--as-group={GROUP}"]
        else:
            identity = [f"--context={way}"]
        return ["kubectl", *identity, f"--namespace={NAMESPACE}", *args]

    def kubectl(
        self, way: str, *args: str, stdin: bytes | None = None, spdy: bool = False, deadline_s: float = 40
    ) -> Result:
        """Run the agent's kubectl by a way, to its end."""
        environment = {**self.agent, **(SPDY if spdy else {})}
        return run(self.command(way, *args), environment, stdin, deadline_s)

    def popen(
        self, way: str, *args: str, spdy: bool = False, stdin: int | IO[bytes] = subprocess.PIPE
    ) -> subprocess.Popen[bytes]:
        """Start the agent's kubectl by a way, its outputs piped."""
        return subprocess.Popen(
            self.command(way, *args),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **self.agent, **(SPDY if spdy else {})},
        )

    def cluster_audit(self) -> list[dict[str, Any]]:
        """The API server's own audit log, without the two requests that relays make as themselves."""
        # Bytes, whose lines end at newlines alone: a text has more that ends a line, and a name may hold it.
        lines = (self.folder / "cluster" / "audit.jsonl").read_bytes().splitlines()
        events = [json.loads(line) for line in lines]
        return [event for event in events if not _is_relays_own(event)]

    def hub_audit(self, *args: str) -> list[dict[str, Any]]:
        """The trail of a hub that runs, newest last, with all that it had to record when this was called.

        Events are written in their order, so the one of a request that is made here is the last of them. No
        answer has the events of these requests, so that answers can be compared.
        """
        mark = f"{NO_TEAM}{uuid.uuid4()}"
        with contextlib.suppress(CommandError):
            self.administration.get("teams", mark)
        wait_until(lambda: any(mark in json.dumps(row) for row in self.audit_rows("--kind", "admin.action")))
        return [row for row in self.audit_rows(*args) if NO_TEAM not in json.dumps(row)]

    def audit_rows(self, *args: str) -> list[dict[str, Any]]:
        """What `hawse audit list` has now, read in this process: another one takes 0.6 s of CPU for it.

        An event is in the trail shortly after its answer, so read once this may miss it.
        """
        out = self._invoke(audit, "list", "--json", *args)
        return [json.loads(line) for line in out.splitlines()]

    def start_hub(self) -> None:
        self.launch_hub().wait_for("hub is ready")

    def launch_hub(self) -> Daemon:
        """Start the hub without waiting until it is ready."""
        config = str(self.folder / "hub.toml")
        self.hub = self.daemons.start("hub", ["hawse", "hub", "--config", config, *self.flags])
        return self.hub

    def replace_hub(self) -> Daemon:
        """Have another process take over from the hub that runs; returns the old one."""
        old = self.hub
        assert old is not None
        self.hubs += 1
        config = str(self.folder / "hub.toml")
        argv = ["hawse", "hub", "--replace", "--config", config, *self.flags]
        self.hub = self.daemons.start(f"hub-{self.hubs}", argv)
        self.hub.wait_for("hub is ready")
        return old

    def start_relay(self, way: str, instance: str = "", *, health_port: int = 0, log: str = "") -> None:
        """Start the relay of a way, or another instance of it."""
        relay = self.folder / f"relay-{way}"
        name = f"{way}-{instance}" if instance else way
        self.health_ports[name] = health_port or free_port()
        environment = {
            **({"HAWSE_RELAY_INSTANCE": instance} if instance else {}),
            "HAWSE_RELAY_KUBECONFIG": str(self.relay_kubeconfig),
            "HAWSE_RELAY_HEALTH_LISTEN": f"127.0.0.1:{self.health_ports[name]}",
            **self.relay_environment,
        }
        if way == "direct":
            environment |= {
                "HAWSE_RELAY_DIRECT_LISTEN": f"127.0.0.1:{self.direct_port}",
                "HAWSE_RELAY_DIRECT_CERTIFICATE": str(self.folder / "direct.pem"),
                "HAWSE_RELAY_DIRECT_KEY": str(self.folder / "direct.key"),
            }
        argv = ["hawse", "relay", "--config", str(relay / "relay.toml"), *self.flags]
        self.relays[name] = self.daemons.start(log or f"relay-{name}", argv, environment)
        if way == "direct":
            self.relays[name].wait_for("listening for the hub")

    def wait_for_tunnel(self, deadline_s: float = DEADLINE_S) -> None:
        deadline = time.monotonic() + deadline_s
        # The direct one has a row as well, once it was asked for something.
        while not any(relay["connected"] and relay["cluster"] == "tunnel" for relay in self.relay_rows()):
            assert time.monotonic() < deadline, "no relay reached the hub"
            time.sleep(POLL_S)


def _is_relays_own(event: Mapping[str, object]) -> bool:
    """Whether a relay asked this of its API server for itself. What only looks like it has a mark."""
    return (
        event.get("requestURI") in {"/readyz", "/api/v1/namespaces/kube-system"}
        and (event.get("verb"), event.get("userAgent")) == ("get", "hawse-relay")
        and "impersonatedUser" not in event
        and not event.get("unimpersonated")
    )


def run(
    argv: Sequence[str], environment: Mapping[str, str], stdin: bytes | None = None, deadline_s: float = 40
) -> Result:
    done = subprocess.run(
        argv,
        input=stdin if stdin is not None else b"",
        capture_output=True,
        env={**os.environ, **environment},
        timeout=deadline_s,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def invoke(command: Command, *args: str, environment: Mapping[str, str]) -> bytes:
    """Run a command of `hawse` in this process, to its success; returns what it prints."""
    done = CliRunner().invoke(command, args, env=environment)
    assert done.exit_code == 0, f"hawse {command.name} {' '.join(args)}: {done.output}"
    return done.stdout_bytes


@contextlib.contextmanager
def running_world(
    folder: Path,
    *,
    flags: tuple[str, ...] = (),
    relay_environment: Mapping[str, str] | None = None,
    hub_settings: str = "",
) -> Iterator[World]:
    """Bring a world up in `folder`, with one pod in it, and take it down again."""
    with Daemons(folder) as daemons:
        world = make_world(folder, daemons, folder / "cluster" / "relay.kubeconfig", hub_settings)
        world.flags = flags
        world.relay_environment = relay_environment or {}
        world.sandbox = daemons.start(
            "sandbox", [sys.executable, "-m", "sandbox", "--dir", str(folder / "cluster")]
        )
        start_and_enrol(world)
        world.sandbox.wait_for("ready ")
        prepare_cluster(world)
        connect(world)
        yield world


@contextlib.contextmanager
def running_chain(
    folder: Path,
    relay_kubeconfig: Path,
    *,
    flags: tuple[str, ...] = (),
    relay_environment: Mapping[str, str] | None = None,
    settings: str = "",
) -> Iterator[World]:
    """Bring up all but the cluster, and take it down again; `settings` are added to those of the hub."""
    with Daemons(folder) as daemons:
        world = make_world(folder, daemons, relay_kubeconfig)
        with (folder / "hub.toml").open("a") as file:
            file.write(settings)
        world.flags = flags
        world.relay_environment = relay_environment or {}
        start_and_enrol(world)
        connect(world)
        yield world


def make_world(folder: Path, daemons: Daemons, relay_kubeconfig: Path, hub_settings: str = "") -> World:
    """Nothing runs yet; ports are chosen, and the files written that hub and relays start with.

    `hub_settings` are more lines of the hub's own, in front of the section `admin`.
    """
    (folder / "agent").mkdir()
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "direct-ca.pem")
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(folder / "direct.key")
    for number, pem in enumerate(certificate.cert_chain_pems):
        pem.write_to_path(folder / "direct.pem", append=number > 0)
    world = World(folder, daemons, free_port(), free_port(), free_port(), relay_kubeconfig)
    (folder / "hub.toml").write_text(
        f'org = "{ORG}"\npublic_url = "https://127.0.0.1:{world.hub_port}"\n'
        f'listen = "127.0.0.1:{world.hub_port}"\ndata_dir = "{folder / "hub"}"\n{hub_settings}\n'
        f'[admin]\nlisten = "127.0.0.1:{world.admin_port}"\n'
    )
    return world


def start_and_enrol(world: World) -> None:
    """Start the hub, and tell it of a team, of the cluster by both ways, and of an agent."""
    world.start_hub()
    world.admin("team", "add", TEAM)
    for way in WAYS:
        mode = ["--mode", way]
        if way == "direct":
            mode += ["--relay-url", f"https://127.0.0.1:{world.direct_port}", "--allow-private-address"]
            mode += ["--relay-ca", str(world.folder / "direct-ca.pem")]
        folder = str(world.folder / f"relay-{way}")
        world.admin("cluster", "add", way, "--team", TEAM, *mode, "--output-dir", folder)
    agent = json.loads(world.admin("agent", "add", AGENT, "--team", TEAM, "--owner", "tests", "--json"))
    world.api_key = agent["api_key"]


def connect(world: World) -> None:
    """Start the relays and log the agent in."""
    for way in WAYS:
        world.start_relay(way)
    login(world)
    world.wait_for_tunnel()


def login(world: World) -> None:
    log_in(world, world.agent, world.api_key)


def log_in(world: World, environment: Mapping[str, str], api_key: str) -> None:
    """Log an agent in and write its kubeconfig, by the commands, in this process."""
    ca = str(world.ca)
    hub = f"https://127.0.0.1:{world.hub_port}"
    invoke(login_command, "--hub", hub, "--ca", ca, environment={**environment, "HAWSE_API_KEY": api_key})
    invoke(kubeconfig, "--output", environment["KUBECONFIG"], environment=environment)


def prepare_cluster(world: World) -> None:
    rbac = world.admin("cluster", "rbac", "tunnel", "--namespace", "hawse", "--service-account", "relay")
    places: list[dict[str, object]] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "hawse"}},
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "relay", "namespace": "hawse"}},
    ]
    documents = "\n---\n".join(json.dumps(document) for document in (*places, *cluster_objects()))
    # In this order: what stands in a namespace comes after it.
    world.administrator("create", "--filename=-", stdin=f"{documents}\n---\n".encode() + rbac)
    world.administrator(
        "wait", "--for=condition=Ready", f"pod/{POD}", f"--namespace={NAMESPACE}", "--timeout=20s"
    )


def cluster_objects() -> list[dict[str, object]]:
    """What the agent may do in its namespace, and the pod it works on."""
    every = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"]
    rules = [
        {"apiGroups": ["", "apps"], "resources": ["*"], "verbs": every},
        {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles"], "verbs": ["get", "list"]},
    ]
    group = "rbac.authorization.k8s.io"
    return [
        {
            "apiVersion": f"{group}/v1",
            "kind": "Role",
            "metadata": {"name": "agents", "namespace": NAMESPACE},
            "rules": rules,
        },
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "agents", "namespace": NAMESPACE},
            "roleRef": {"apiGroup": group, "kind": "Role", "name": "agents"},
            # By the group, so that every test also shows that the group arrives.
            "subjects": [{"apiGroup": group, "kind": "Group", "name": GROUP}],
        },
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": POD, "namespace": NAMESPACE, "labels": {"app": POD}},
            "spec": {
                "containers": [
                    {
                        "name": "main",
                        "image": "busybox",
                        "command": ["sh", "-c", "echo workbench is up; exec sleep 3600"],
                    }
                ]
            },
        },
    ]
