"""Agents with a home folder of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import attrs

from tests.system.world import NAMESPACE, TEAM, Result, World, run


@attrs.frozen
class Home:
    """One agent's own machine, as far as its files go."""

    world: World
    name: str
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            "HOME": str(self.folder),
            "XDG_CONFIG_HOME": str(self.folder / "config"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "KUBECONFIG": str(self.folder / "kubeconfig"),
        }

    def hawse(self, *args: str, stdin: bytes | None = None, **environment: str) -> Result:
        return run(["hawse", *args], {**self.environment, **environment}, stdin)

    def login(self, *args: str, stdin: bytes | None = None, **environment: str) -> Result:
        hub = f"https://127.0.0.1:{self.world.hub_port}"
        ca = str(self.world.folder / "hub" / "tls" / "ca.pem")
        return self.hawse("login", "--hub", hub, "--ca", ca, *args, stdin=stdin, **environment)

    def kubectl(self, way: str, *args: str, environment: Mapping[str, str] | None = None) -> Result:
        argv = ["kubectl", f"--context={way}", f"--namespace={NAMESPACE}", *args]
        return run(argv, {**self.environment, **(environment or {})})

    def popen(self, way: str, *args: str) -> subprocess.Popen[bytes]:
        argv = ["kubectl", f"--context={way}", f"--namespace={NAMESPACE}", *args]
        return subprocess.Popen(
            argv,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **self.environment},
        )

    def forget_tokens(self) -> None:
        shutil.rmtree(self.folder / "cache")


def add_agent(world: World, name: str, folder: Path, *args: str) -> tuple[Home, dict[str, object]]:
    """An agent with a home of its own, which the cluster's relays may impersonate."""
    made = json.loads(world.admin("agent", "add", name, "--team", TEAM, "--owner", "tests", "--json", *args))
    rbac = world.admin("cluster", "rbac", "tunnel", "--namespace", "hawse", "--service-account", "relay")
    world.administrator("apply", "-f", "-", stdin=rbac)
    folder.mkdir(exist_ok=True)
    return Home(world, name, folder), made
