"""Run the demo: `python -m sandbox.demo [--once] [--kubeconfig FILE]`, or `make demo ARGS=…`."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sandbox.demo.cluster import RELAY_NAMESPACE, RELAY_SERVICE_ACCOUNT, Administrator, prepared
from sandbox.demo.processes import Daemons, DemoError, free_port
from sandbox.demo.steps import STEPS, Kubectl, Scene, StepFailedError

AGENT = "robot"
TEAM = "demo"
CLUSTER = "sandbox"
ORG = "acme"
RELAY_DEADLINE_S = 30.0
POLL_S = 0.1


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make demo",
        description="Runs a hub, a relay and a small in-memory cluster as separate processes, enrols an "
        "agent, and lets the real kubectl work through them. Then it stays up for you to try by hand.",
    )
    parser.add_argument(
        "--once", action="store_true", help="exit after the script: 0 when every step was right"
    )
    parser.add_argument(
        "--kubeconfig",
        type=Path,
        metavar="FILE",
        help="use this disposable cluster instead of the sandbox, with its administrator's kubeconfig",
    )
    parser.add_argument(
        "--dir", type=Path, default=Path(".demo"), metavar="DIR", help="where state and logs go"
    )
    return parser.parse_args(arguments)


def hawse(*args: str, environment: dict[str, str] | None = None, stdin: str | None = None) -> str:
    """Run one hawse command as an operator or agent would, and return its stdout."""
    done = subprocess.run(
        ["hawse", *args],
        input=stdin,
        capture_output=True,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    if done.returncode != 0:
        raise DemoError(f"hawse {' '.join(args)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def say(text: str) -> None:
    print(text, flush=True)


@contextmanager
def running(folder: Path, cluster: Path | None) -> Iterator[tuple[Scene, Path]]:
    """Bring everything up, and take it down again; yields the scene and the hub's configuration file."""
    with ExitStack() as stack:
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
        port, admin_port = free_port(8443), free_port(8444)
        config = folder / "hub.toml"
        config.write_text(
            f'org = "{ORG}"\n'
            f'public_url = "https://127.0.0.1:{port}"\n'
            f'listen = "127.0.0.1:{port}"\n'
            f'data_dir = "{folder / "hub"}"\n'
            f'[admin]\nlisten = "127.0.0.1:{admin_port}"\n'
        )
        daemons.start("hub", ["hawse", "hub", "--config", str(config)]).wait_for("hub is ready")

        say("enrolling a team, a cluster and an agent ...")
        operator = {"HAWSE_HUB_CONFIG": str(config)}
        hawse("admin", "team", "add", TEAM, environment=operator)
        hawse(
            *("admin", "cluster", "add", CLUSTER, "--team", TEAM, "--output-dir", str(folder / "relay")),
            environment=operator,
        )
        agent = json.loads(
            hawse(
                "admin",
                "agent",
                "add",
                AGENT,
                "--team",
                TEAM,
                "--owner",
                "demo",
                "--json",
                environment=operator,
            )
        )
        rbac = hawse(
            *("admin", "cluster", "rbac", CLUSTER, "--namespace", RELAY_NAMESPACE),
            *("--service-account", RELAY_SERVICE_ACCOUNT),
            environment=operator,
        )

        say("preparing the cluster as its administrator ...")
        pod_port = free_port()
        scene_user, scene_group = f"agent:{AGENT}", f"{ORG}/{TEAM}"
        stack.enter_context(
            prepared(
                administrator, agent_user=scene_user, agent_group=scene_group, rbac=rbac, pod_port=pod_port
            )
        )

        say("starting the relay: it dials the hub, nothing dials it ...")
        relay_kubeconfig = folder / "relay" / "kubeconfig"
        relay_kubeconfig.touch(mode=0o600)
        relay_kubeconfig.write_text(administrator.relay_kubeconfig())
        daemons.start(
            "relay",
            ["hawse", "relay", "--config", str(folder / "relay" / "relay.toml")],
            {
                "HAWSE_RELAY_KUBECONFIG": str(relay_kubeconfig),
                "HAWSE_RELAY_HEALTH_LISTEN": f"127.0.0.1:{free_port()}",
            },
        )
        wait_for_relay(operator, folder)

        home = folder / "agent"
        agent_environment = {"XDG_CONFIG_HOME": str(home / "config"), "XDG_CACHE_HOME": str(home / "cache")}
        hawse(
            *("login", "--hub", f"https://127.0.0.1:{port}", "--ca", str(folder / "hub" / "tls" / "ca.pem")),
            environment={**agent_environment, "HAWSE_API_KEY": agent["api_key"]},
        )
        kubeconfig = home / "kubeconfig"
        hawse("kubeconfig", "--output", str(kubeconfig), environment=agent_environment)
        kubectl = Kubectl(kubeconfig, {**agent_environment, "HOME": str(home)})
        yield Scene(kubectl, scene_user, scene_group, pod_port), config


def wait_for_relay(operator: dict[str, str], folder: Path) -> None:
    deadline = time.monotonic() + RELAY_DEADLINE_S
    while not json.loads(hawse("admin", "relay", "list", "--json", environment=operator)):
        if time.monotonic() > deadline:
            raise DemoError(f"the relay did not reach the hub: see {folder / 'relay.log'}")
        time.sleep(POLL_S)


def run_script(scene: Scene, config: Path, *, once: bool) -> int:
    """Run every step; returns how many failed."""
    failures = 0
    trail = Trail(config)
    for step in STEPS:
        try:
            seen = step.act(scene)
        except StepFailedError as error:
            failures += 1
            say(f"FAILED  {step.name:<13} {error}")
        else:
            say(f"ok      {step.name:<13} {seen}")
        new = trail.new_lines()
        if not once:
            for line in new:
                say(f"        | {line}")
    say(f"the audit trail holds {trail.length} events of this session")
    return failures


class Trail:
    """The audit trail as `hawse audit list` prints it, read between the steps to show it growing."""

    def __init__(self, config: Path) -> None:
        self._config = config
        self.length = 0

    def new_lines(self) -> list[str]:
        lines = hawse("audit", "list", "--agent", AGENT, environment={"HAWSE_HUB_CONFIG": str(self._config)})
        rows = lines.splitlines()[1:]
        new, self.length = rows[self.length :], len(rows)
        return new


def main() -> int:
    arguments = parse()
    # SIGTERM ends the demo as Ctrl-C does, so that what it made in the cluster is removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if arguments.kubeconfig is not None and not arguments.kubeconfig.is_file():
        say(f"make demo: no file {arguments.kubeconfig}: give the administrator's, of a disposable cluster")
        return 2
    folder: Path = arguments.dir.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("agent", "relay"):
        (folder / part).mkdir(parents=True, mode=0o700)
    cluster = arguments.kubeconfig.resolve() if arguments.kubeconfig is not None else None
    try:
        with running(folder, cluster) as (scene, config):
            failures = run_script(scene, config, once=arguments.once)
            if arguments.once:
                return 1 if failures else 0
            stay(scene, config)
    except DemoError as error:
        say(f"make demo: {error}")
        return 1
    except KeyboardInterrupt:
        say("stopped")
    return 0


def stay(scene: Scene, config: Path) -> None:
    settings = " ".join(
        f"{name}={value}" for name, value in scene.kubectl.environment.items() if name != "HOME"
    )
    say(
        "\nEverything stays up until Ctrl-C. Try it by hand in another terminal:\n\n"
        f"  export PATH={Path(sys.executable).parent}:$PATH {settings}\n"
        f"  export KUBECONFIG={scene.kubectl.kubeconfig}\n"
        "  kubectl get pods -n hawse-demo\n\n"
        "and watch the trail in a third:\n\n"
        f"  HAWSE_HUB_CONFIG={config} {Path(sys.executable).parent}/hawse audit list --follow\n"
    )
    signal.pause()


if __name__ == "__main__":
    sys.exit(main())
