"""What stands in for a real cluster while the quickstart runs.

| in the page | here |
|---|---|
| `uv tool install` of the wheel | the environment of the tests (tests/packaging installs the wheel) |
| kind | the sandbox, by a kubeconfig with kind's context |
| the relay's image, and mounts | a program `relay` on the sandbox's PATH, which asks kubectl for all |
| the readiness of the relay's pods | a wait for their tunnels |
| an address of this machine | loopback |
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import attrs

from sandbox.demo.processes import Daemons
from tests.quickstart.shell import Shell

CONTEXT = "kind-hawse"
DEADLINE_S = 30.0
POLL_S = 0.1
# Runs as a container of the sandbox, whose environment is the manifests' and whose volumes are not mounted.
RELAY = """#!/bin/sh -e
administrator() { kubectl --kubeconfig FOLDER/cluster/admin.kubeconfig --namespace hawse "$@"; }
umask 077
here=$(mktemp -d FOLDER/pod-XXXXXX)
for name in hub-keys.json relay-key.pem hub-ca.pem; do
  administrator get secret hawse-relay-keys \\
    -o "go-template={{index .data \\"$name\\" | base64decode}}" > "$here/$name"
done
mkdir "$here/guardrails"
cp FOLDER/cluster/admin.kubeconfig "$here/kubeconfig"
kubectl --kubeconfig "$here/kubeconfig" config set-credentials admin \\
  --token "$(administrator create token hawse-relay)" > /dev/null
export HAWSE_RELAY_HUB_KEYS="$here/hub-keys.json" HAWSE_RELAY_PRIVATE_KEY="$here/relay-key.pem"
export HAWSE_RELAY_HUB_CA="$here/hub-ca.pem" HAWSE_RELAY_GUARDRAILS="$here/guardrails"
export HAWSE_RELAY_KUBECONFIG="$here/kubeconfig" HOME="$here"
unset HAWSE_RELAY_HEALTH_LISTEN
exec hawse relay
"""


@attrs.define(eq=False)
class StandIns:
    """Does what a marked block would do. Each method has a mark's name."""

    folder: Path
    home: Path
    daemons: Daemons

    def install(self, shell: Shell) -> None:
        shell.run(f"CHECKOUT={Path(__file__).parents[2]}\nhawse --version\n")

    def cluster(self, shell: Shell) -> None:
        programs = self.folder / "programs"
        programs.mkdir()
        relay = programs / "relay"
        relay.write_text(RELAY.replace("FOLDER", str(self.folder)))
        relay.chmod(0o700)
        path = shell.run('echo "$PATH"\n').strip()
        sandbox = [sys.executable, "-m", "sandbox", "--dir", str(self.folder / "cluster")]
        environment = {"PATH": f"{programs}:{path}"}
        self.daemons.start("sandbox", sandbox, environment).wait_for("ready ")
        config = self.home / ".kube" / "config"
        config.parent.mkdir()
        shutil.copy(self.folder / "cluster" / "admin.kubeconfig", config)
        shell.run(f"kubectl config rename-context sandbox {CONTEXT}\n")

    def address(self, shell: Shell) -> None:
        shell.run("ADDRESS=127.0.0.1\n")

    def removal(self, shell: Shell) -> None:
        """The test's own end removes everything."""

    def wait_for_relays(self, shell: Shell) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while len(json.loads(shell.run("hawse admin relay list --json\n"))) < 2:
            assert time.monotonic() < deadline, (self.folder / "sandbox.log").read_text()
            time.sleep(POLL_S)
