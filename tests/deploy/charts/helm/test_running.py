"""The chart installed by Helm, and its container run from the built wheel, with kubectl through both.

Only the cluster is the sandbox. Helm installs the chart there. The test plays the kubelet: it reads the
Deployment back, and runs its command with its variables and volumes. Hub and relay run from wheels in
environments of their own, with the packages of their images and no checkout on the path.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from sandbox.demo.processes import Daemons, free_port
from tests.deploy.charts.helm.conftest import PROGRAMS
from tests.deploy.charts.helm.pod import Pod
from tests.deploy.charts.sets import CHART
from tests.packaging.installed import (
    CONTAINERFILE,
    ROOT,
    Environment,
    build,
    image_packages,
    make_environment,
    relay_image,
)
from tests.system.world import GROUP, NAMESPACE, ORG, TEAM, cluster_objects

# It installs two wheels, and each command of the hub compiles its imports.
pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(300)]
GUARDRAILS = """\
kind: Policy
metadata: {name: owners}
spec:
  bind: {teams: ["*"]}
  rules:
    - {id: no-deletes, effect: deny, verbs: [delete], reason: the owner keeps all pods}
"""


@attrs.define
class Installed:
    """A hub and a relay of wheels, and the sandbox as their cluster."""

    folder: Path
    hub: Environment
    variables: dict[str, str]
    url: str

    def hawse(self, *args: str, **more: str) -> str:
        """Run `hawse …` from the hub's wheel, to its success."""
        done = self.hub.run("hawse", *args, variables={**self.variables, **more})
        assert done.returncode == 0, done.stderr
        return done.stdout

    def administrator(self, *args: str, stdin: bytes = b"") -> bytes:
        """The cluster administrator's kubectl."""
        return self.program("kubectl", *args, stdin=stdin)

    def helm(self, *args: str) -> bytes:
        return self.program(f"{PROGRAMS}/helm-4", *args, "--namespace", "hawse")

    def program(self, *argv: str, stdin: bytes = b"") -> bytes:
        # Both programs keep a cache in the home.
        kubeconfig = str(self.folder / "cluster" / "admin.kubeconfig")
        environment = {**os.environ, "HOME": self.variables["HOME"], "KUBECONFIG": kubeconfig}
        done = subprocess.run(argv, input=stdin, capture_output=True, env=environment, timeout=60)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def agent(self, *args: str) -> subprocess.CompletedProcess[str]:
        """The agent's kubectl, whose credentials come from the hub's wheel."""
        kubectl = Path(sys.executable).with_name("kubectl")
        return self.hub.run(str(kubectl), f"--namespace={NAMESPACE}", *args, variables=self.variables)

    def enrol(self, name: str) -> str:
        """Add an agent; returns its API key."""
        add = ("agent", "add", name, "--team", TEAM, "--owner", "you@example.com", "--json")
        key = json.loads(self.hawse("admin", *add))["api_key"]
        assert isinstance(key, str)
        return key

    def log_in(self, key: str) -> None:
        ca = str(self.folder / "volume" / "hub" / "tls" / "ca.pem")
        self.hawse("login", "--hub", self.url, "--ca", ca, HAWSE_API_KEY=key)
        self.hawse("kubeconfig", "--output", self.variables["KUBECONFIG"])


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    folder = tmp_path_factory.mktemp("installed")
    hub = make_environment(folder / "hub", image_packages("hub"))
    hub.install(build("wheel", folder / "wheel"))
    relay = relay_image(folder)
    port = free_port()
    home = folder / "home"
    home.mkdir()
    # As by `podman run` in deploy/README.md.
    url = f"https://127.0.0.1:{port}"
    variables = {
        "HAWSE_HUB_ORG": ORG,
        "HAWSE_HUB_PUBLIC_URL": url,
        "HAWSE_HUB_LISTEN": f"127.0.0.1:{port}",
        "HAWSE_HUB_DATA_DIR": str(folder / "volume" / "hub"),
        "HAWSE_HUB_ADMIN_LISTEN": f"127.0.0.1:{free_port()}",
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "KUBECONFIG": str(home / "kubeconfig"),
    }
    (folder / "volume").mkdir()
    with Daemons(folder) as daemons:
        made = Installed(folder, hub, variables, url)
        argv = [sys.executable, "-m", "sandbox", "--dir", str(folder / "cluster")]
        sandbox = daemons.start("sandbox", argv, cwd=ROOT)
        environment = {**hub.variables, **variables}
        daemons.start("hub", [str(hub.programs / "hawse"), "hub"], environment, cwd=folder).wait_for(
            "hub is ready"
        )
        sandbox.wait_for("ready ")
        made.hawse("admin", "team", "add", TEAM)
        key = made.enrol("probe")
        deploy(made)
        made.log_in(key)
        view = json.loads(made.administrator("config", "view", "--output=json"))
        server = view["clusters"][0]["cluster"]["server"]
        pod = Pod.of(made.administrator, "hawse", "hawse-relay", server)
        # The only change: another process of this machine may have the port.
        changes = {"HAWSE_RELAY_HEALTH_LISTEN": f"127.0.0.1:{free_port()}"}
        started = pod.argv(relay.programs / "hawse", folder / "pod", changes)
        daemons.start("relay", started, cwd=folder).wait_for(" is up, session ")
        yield made


def deploy(made: Installed) -> None:
    """Add the cluster and install the chart, by the commands of the chart's README."""
    secret, values = made.folder / "prod.secret.yaml", made.folder / "prod.values.yaml"
    add = ("cluster", "add", "prod", "--team", TEAM, "--image", "registry.example/hawse-relay:0.1.0")
    printed = made.hawse("admin", *add, "--replicas", "1", "--output", "helm", "--secret", str(secret))
    values.write_text(printed)
    own = made.folder / "own.json"
    own.write_text(json.dumps({"guardrails": {"text": GUARDRAILS}, "networkPolicy": {"enabled": False}}))
    made.administrator("apply", f"--filename={secret}")
    secret.unlink()
    made.helm("upgrade", "--install", "prod", str(CHART), "--values", str(values), "--values", str(own))
    place = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    documents = "\n---\n".join(json.dumps(each) for each in (place, *cluster_objects()))
    made.administrator("create", "--filename=-", stdin=documents.encode())
    ready = ("--for=condition=Ready", "pod/workbench", f"--namespace={NAMESPACE}", "--timeout=20s")
    made.administrator("wait", *ready)


def test_kubectl_works_through_hub_and_relay_of_the_wheels(installed: Installed) -> None:
    got = installed.agent("get", "pods", "--output=name")
    assert (got.returncode, got.stdout) == (0, "pod/workbench\n"), got.stderr
    done = installed.agent("exec", "workbench", "--", "echo", "through both")
    assert (done.returncode, done.stdout) == (0, "through both\n"), done.stderr


def test_the_guardrails_of_the_values_are_in_force(installed: Installed) -> None:
    done = installed.agent("delete", "pod", "workbench")
    assert done.returncode == 1
    assert "the owner keeps all pods" in done.stderr


def test_the_programs_are_those_that_the_images_start() -> None:
    assert 'ENTRYPOINT ["hawse"]\n' in CONTAINERFILE
    assert re.findall(r'^CMD \["(\w+)"\]$', CONTAINERFILE, re.MULTILINE) == ["hub", "relay"]


def test_no_checkout_is_on_the_path(installed: Installed) -> None:
    code = "import sys; print([each for each in sys.path if each.startswith(sys.argv[1])])"
    done = installed.hub.run(str(installed.hub.programs / "python"), "-c", code, str(ROOT))
    assert done.stdout == "[]\n"


def test_a_new_agent_works_after_its_name_is_upgraded(installed: Installed) -> None:
    installed.log_in(installed.enrol("second"))
    assert installed.agent("get", "pods").returncode == 1
    names = installed.folder / "prod.names.yaml"
    names.write_text(installed.hawse("admin", "cluster", "values", "prod"))
    files = (
        "--values",
        str(installed.folder / "prod.values.yaml"),
        "--values",
        str(installed.folder / "own.json"),
    )
    installed.helm("upgrade", "prod", str(CHART), *files, "--values", str(names))
    got = installed.agent("get", "pods", "--output=name")
    assert (got.returncode, got.stdout) == (0, "pod/workbench\n"), got.stderr
    role = installed.administrator("get", "clusterrole", "hawse-relay-impersonation", "--output=json")
    rules = {each["resources"][0]: each.get("resourceNames") for each in json.loads(role)["rules"]}
    assert rules["users"] == ["agent:probe", "agent:second"]
    assert rules["groups"] == [GROUP]
