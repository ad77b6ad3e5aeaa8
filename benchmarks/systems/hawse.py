"""Hawse as a user runs it: a hub, a relay in tunnel mode, and an agent's access token for each run.

Everything that is on by default is on: TLS on every leg, tokens, policy, the durable audit trail. Only the
limits of one agent are raised, because one agent makes all calls here.
"""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlencode

import attrs
import yaml

from benchmarks.nginx import issue_certificate
from benchmarks.processes import Daemon, Daemons, free_port, program
from benchmarks.system import Endpoint, Missing, OpenSystem, System, Upstream
from benchmarks.systems.leg import Leg, straight

CLUSTER, TEAM, AGENT = "bench", "platform", "probe"
TOP = Path(__file__).parents[2]
SEEDS = TOP / "benchmarks" / "seed"
# The same cluster, by a relay in direct mode.
DIRECT = "direct"
STREAMS_PER_AGENT = 10_000
DEADLINE_S = 30.0
POLL_S = 0.05


class HawseError(Exception):
    """One of hawse's commands failed."""


@attrs.frozen
class Installation:
    """A hub, its relay and an agent in one folder."""

    folder: Path
    daemons: Daemons
    program: str
    port: int
    """Where the hub listens."""
    public_port: int
    """The port that its relay dials: the same, or a detour to it."""
    environment: Mapping[str, str]
    settings: str = ""
    """More sections of the hub's configuration."""
    authority: Path | None = None
    """The CA of the hub's certificate, where the hub has not made it."""

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.public_port}"

    @property
    def ca(self) -> Path:
        return self.authority or self.folder / "hub" / "tls" / "ca.pem"

    def run(self, *args: str) -> str:
        return self.run_as({"HAWSE_HUB_CONFIG": str(self.folder / "hub.toml")}, *args)

    def run_as(self, user: Mapping[str, str], *args: str) -> str:
        """Run a command with the environment of its user; raises HawseError."""
        done = subprocess.run(
            [self.program, *args],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**os.environ, **user, **self.environment},
        )
        if done.returncode != 0:
            raise HawseError(f"hawse {' '.join(args)}: {done.stderr.strip()}")
        return done.stdout

    def start_hub(self, name: str = "hub") -> Daemon:
        config = self.folder / "hub.toml"
        config.write_text(
            f'org = "acme"\npublic_url = "{self.url}"\nlisten = "127.0.0.1:{self.port}"\n'
            f'data_dir = "{self.folder / "hub"}"\n'
            f'[admin]\nlisten = "127.0.0.1:{free_port()}"\n'
            f"[limits]\nstreams_per_agent = {STREAMS_PER_AGENT}\n"
            # One agent makes all requests. Its limits are not what is measured.
            "requests_per_second = 0\ncancels_per_second = 0\nbytes_per_minute = 0\nidle_connections = 0\n"
            f"{self.settings}"
        )
        hub = self.daemons.start(name, [self.program, "hub", "--config", str(config)], self.environment)
        hub.wait_for("hub is ready")
        return hub

    def start_relay(self, upstream: Upstream) -> Daemon:
        relay = self.folder / "relay"
        (relay / "kubeconfig").write_text(yaml.safe_dump(kubeconfig(upstream.endpoint)))
        return self.daemons.start(
            "relay",
            [self.program, "relay", "--config", str(relay / "relay.toml")],
            {
                "HAWSE_RELAY_KUBECONFIG": str(relay / "kubeconfig"),
                # For the thousands of streams of one agent.
                "HAWSE_RELAY_MEMORY_MIB": "1024",
                **self.environment,
            },
        )

    def start_direct(self, upstream: Upstream) -> Daemon:
        """Enrol the cluster DIRECT and start its relay, which the hub dials."""
        relay, port = self.folder / "relay-direct", free_port()
        certificate = self.folder / "direct"
        certificate.mkdir()
        ca = issue_certificate(certificate)
        where = ("--relay-url", f"https://127.0.0.1:{port}", "--allow-private-address", "--relay-ca", str(ca))
        self.run(
            *("admin", "cluster", "add", DIRECT, "--team", TEAM, "--mode", "direct", *where),
            *("--output-dir", str(relay)),
        )
        (relay / "kubeconfig").write_text(yaml.safe_dump(kubeconfig(upstream.endpoint)))
        daemon = self.daemons.start(
            "relay-direct",
            [self.program, "relay", "--config", str(relay / "relay.toml")],
            {
                "HAWSE_RELAY_KUBECONFIG": str(relay / "kubeconfig"),
                "HAWSE_RELAY_DIRECT_LISTEN": f"127.0.0.1:{port}",
                "HAWSE_RELAY_DIRECT_CERTIFICATE": str(certificate / "server.pem"),
                "HAWSE_RELAY_DIRECT_KEY": str(certificate / "server.key"),
                **self.environment,
            },
        )
        daemon.wait_for("listening for the hub")
        return daemon

    def wait_for_tunnel(self, relay: Daemon) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not any(each["connected"] for each in json.loads(self.run("admin", "relay", "list", "--json"))):
            relay.check()
            if time.monotonic() > deadline:
                raise HawseError(f"the relay did not reach the hub: see {relay.log}")
            time.sleep(POLL_S)

    def token(self, api_key: str, cluster: str = CLUSTER) -> str:
        """A fresh access token, by the call that `hawse credential` makes."""
        form = {"grant_type": "client_credentials", "audience": cluster, "client_secret": api_key}
        context = ssl.create_default_context(cafile=str(self.ca))
        url, data = f"https://127.0.0.1:{self.port}/oauth/token", urlencode(form).encode()
        with urllib.request.urlopen(url, data, DEADLINE_S, context=context) as answer:
            token: str = json.load(answer)["access_token"]
        return token


def kubeconfig(endpoint: Endpoint) -> dict[str, object]:
    """The relay's: the upstream, its CA, and a bearer token as a service account has one."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "upstream",
                "cluster": {
                    "server": f"https://{endpoint.host}:{endpoint.port}",
                    "certificate-authority": str(endpoint.ca),
                },
            }
        ],
        # As long as the token of a service account.
        "users": [{"name": "relay", "user": {"token": "service-account." + "t" * 900}}],
        "contexts": [{"name": "relay", "context": {"cluster": "upstream", "user": "relay"}}],
        "current-context": "relay",
    }


@contextmanager
def open_hawse(folder: Path, upstream: Upstream, leg: Leg = straight) -> Iterator[System]:
    """Run hub and relay with everything that is installed."""
    with running(folder, upstream, "hawse", {}, leg) as system:
        yield system


@contextmanager
def open_without_wheels(folder: Path, upstream: Upstream) -> Iterator[System]:
    """Run hub and relay as if no optional C wheel were installed: `websockets` cannot be imported."""
    absent = folder / "absent" / "websockets"
    absent.mkdir(parents=True)
    (absent / "__init__.py").write_text('raise ImportError("absent in this run")\n')
    with running(folder, upstream, "hawse-nowheel", {"PYTHONPATH": str(absent.parent)}) as system:
        yield system


def open_checkout(revision: str) -> OpenSystem:
    """Open hub and relay of another revision of this repository, with the packages of this one."""

    @contextmanager
    def opened(folder: Path, upstream: Upstream) -> Iterator[System]:
        checkout = folder / "checkout"
        checkout.mkdir()
        archive = subprocess.run(["git", "-C", str(TOP), "archive", revision], stdout=subprocess.PIPE)
        if archive.returncode != 0:
            raise Missing(f"{revision} is not a revision of {TOP}")
        subprocess.run(["tar", "-x", "-C", str(checkout)], input=archive.stdout, check=True)
        with running(folder, upstream, revision, {"PYTHONPATH": str(checkout)}) as system:
            yield system

    return opened


def open_seeded(seed: str) -> OpenSystem:
    """Open hub and relay with a seeded regression of benchmarks/seed, which a gate has to catch."""

    @contextmanager
    def opened(folder: Path, upstream: Upstream) -> Iterator[System]:
        path = f"{SEEDS / seed}{os.pathsep}{TOP}"
        with running(folder, upstream, f"hawse-{seed}", {"PYTHONPATH": path}) as system:
            yield system

    return opened


@contextmanager
def running(
    folder: Path, upstream: Upstream, name: str, environment: Mapping[str, str], leg: Leg = straight
) -> Iterator[System]:
    """Enrol and run one installation, with `environment` for all of its processes."""
    with enrolled(folder, upstream, name, environment, leg) as found:
        yield found.system


@attrs.frozen
class Enrolled:
    """A running installation, and what its agent proves itself by."""

    system: System
    installation: Installation
    api_key: str = attrs.field(repr=False)


@contextmanager
def enrolled(
    folder: Path, upstream: Upstream, name: str, environment: Mapping[str, str], leg: Leg = straight
) -> Iterator[Enrolled]:
    """As `running`, for workloads that need more than its requests."""
    hawse = program("hawse", name, "make setup")
    with Daemons(folder) as daemons:
        port = free_port()
        installation = Installation(folder, daemons, hawse, port, leg(port), environment)
        hub = installation.start_hub()
        installation.run("admin", "team", "add", TEAM)
        installation.run(
            *("admin", "cluster", "add", CLUSTER, "--team", TEAM, "--output-dir", str(folder / "relay"))
        )
        agent = installation.run("admin", "agent", "add", AGENT, "--team", TEAM, "--owner", "bench", "--json")
        api_key: str = json.loads(agent)["api_key"]
        relay = installation.start_relay(upstream)
        installation.wait_for_tunnel(relay)
        system = System(
            name=name,
            endpoint=Endpoint("127.0.0.1", installation.port, installation.ca, prefix=f"/clusters/{CLUSTER}"),
            processes={"hub": hub.process.pid, "relay": relay.process.pid},
            versions={"hawse": version("hawse")},
            authorize=lambda: (("Authorization", f"Bearer {installation.token(api_key)}"),),
        )
        yield Enrolled(system, installation, api_key)
