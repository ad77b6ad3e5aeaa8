"""The scripted session: each step is one thing an agent does with kubectl, and what must come of it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import select
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs

from sandbox.demo.cluster import NAMESPACE, POD, last_line

STEP_DEADLINE_S = 60.0
# How long an event may take before the next change is made: a watch just opened may have missed the first.
WATCH_PATIENCE_S = 0.5
WATCH_CHANGES_MAX = 40
COPY_BYTES = 3_000_000


class StepFailedError(Exception):
    """kubectl's output was not what it must be; the text shows both."""


@attrs.frozen
class Kubectl:
    """The agent's unmodified kubectl: its kubeconfig names the hub and no Kubernetes credential."""

    kubeconfig: Path
    environment: Mapping[str, str]

    def start(self, *args: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
        """Start kubectl with its outputs piped, in the demo's namespace."""
        return subprocess.Popen(
            ["kubectl", f"--kubeconfig={self.kubeconfig}", f"--namespace={NAMESPACE}", *args],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **self.environment},
        )

    def run(self, *args: str, stdin: str | None = None, exit_code: int = 0) -> tuple[str, str]:
        """Run kubectl to its end and return stdout, stderr; raises StepFailedError on another exit code."""
        process = self.start(*args, stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE)
        try:
            out, err = process.communicate(stdin, timeout=STEP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise StepFailedError(
                f"no end within {STEP_DEADLINE_S:.0f} s; stdout {out!r}, stderr {err!r}"
            ) from None
        except BaseException:
            process.kill()
            process.wait()
            raise
        if process.returncode != exit_code:
            raise StepFailedError(
                f"exit code {process.returncode} instead of {exit_code}: {last_line(err or out)}"
            )
        return out, err


@attrs.frozen
class Scene:
    """What the steps know of the world they run in."""

    kubectl: Kubectl
    agent_user: str
    agent_group: str
    pod_port: int


@attrs.frozen
class Step:
    """A named step; `act` returns one line that says what was seen, or raises StepFailedError."""

    name: str
    command: str
    act: Callable[[Scene], str]


def expect(text: str, *needed: str) -> None:
    """Every one of `needed` stands in the text."""
    for part in needed:
        if part not in text:
            raise StepFailedError(f"{part!r} is missing in the output: {text.strip()!r}")


def whoami(scene: Scene) -> str:
    out, _ = scene.kubectl.run("auth", "whoami")
    expect(out, scene.agent_user, scene.agent_group)
    return f"the API server sees {scene.agent_user} in {scene.agent_group}"


def get(scene: Scene) -> str:
    out, _ = scene.kubectl.run("get", "pods")
    expect(out, POD, "1/1", "Running")
    return f"pod {POD} is Running"


def apply(scene: Scene) -> str:
    manifest = (
        '{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "notes"}, "data": {"colour": "%s"}}'
    )
    out, _ = scene.kubectl.run("apply", "-f", "-", stdin=manifest % "green")
    expect(out, "configmap/notes created")
    out, _ = scene.kubectl.run("apply", "-f", "-", stdin=manifest % "blue")
    expect(out, "configmap/notes configured")
    out, _ = scene.kubectl.run("get", "configmap", "notes", "-o", "jsonpath={.data.colour}")
    expect(out, "blue")
    return "configmap notes created, then configured, and reads back"


def watch(scene: Scene) -> str:
    watching = scene.kubectl.start(
        "get", "configmap", "notes", "--watch-only", "-o", "jsonpath={.data.colour}{'\\n'}"
    )
    try:
        assert watching.stdout is not None
        # A watch says nothing until something happens, so change the object until the watch has seen it.
        for colour in range(WATCH_CHANGES_MAX):
            scene.kubectl.run(
                "patch", "configmap", "notes", "-p", json.dumps({"data": {"colour": f"colour-{colour}"}})
            )
            if select.select([watching.stdout], [], [], WATCH_PATIENCE_S)[0]:
                break
        else:
            raise StepFailedError(f"the watch delivered none of {WATCH_CHANGES_MAX} changes")
        expect(watching.stdout.readline(), "colour-")
    finally:
        watching.kill()
        watching.communicate()
    return "an event arrived while the watch was open"


def logs(scene: Scene) -> str:
    following = scene.kubectl.start("logs", "--follow", POD)
    try:
        assert following.stdout is not None
        line = following.stdout.readline()
    finally:
        following.kill()
        following.communicate()
    expect(line, "workbench is up")
    return "the pod's first line, while following"


def execute(scene: Scene) -> str:
    out, err = scene.kubectl.run("exec", POD, "--", "sh", "-c", "echo out; echo err >&2; exit 3", exit_code=3)
    expect(out, "out")
    expect(err, "err")
    out, _ = scene.kubectl.run("exec", "-i", POD, "--", "cat", stdin="through stdin and back\n")
    expect(out, "through stdin and back")
    return "stdout, stderr, stdin and exit code 3 came through"


def copy(scene: Scene) -> str:
    content = os.urandom(COPY_BYTES)
    with tempfile.TemporaryDirectory() as folder:
        there, back = Path(folder, "there"), Path(folder, "back")
        there.write_bytes(content)
        scene.kubectl.run("cp", str(there), f"{POD}:copied")
        scene.kubectl.run("cp", f"{POD}:copied", str(back))
        same = hashlib.sha256(back.read_bytes()).digest() == hashlib.sha256(content).digest()
    if not same:
        raise StepFailedError("the file that came back is not the one that was sent")
    return f"{COPY_BYTES:,} bytes there and back, sha256 equal"


def port_forward(scene: Scene) -> str:
    forwarding = scene.kubectl.start(
        "port-forward", f"pod/{POD}", f":{scene.pod_port}", "--address=127.0.0.1"
    )
    try:
        assert forwarding.stdout is not None
        line = forwarding.stdout.readline()
        found = re.search(r"127\.0\.0\.1:(\d+)", line)
        if found is None:
            assert forwarding.stderr is not None
            raise StepFailedError(f"port-forward said {line!r}: {forwarding.stderr.readline().strip()}")
        with urllib.request.urlopen(f"http://127.0.0.1:{found[1]}/", timeout=STEP_DEADLINE_S) as answer:
            status, page = answer.status, answer.read()
    finally:
        forwarding.kill()
        forwarding.communicate()
    if status != 200 or b"copied" not in page:
        raise StepFailedError(f"the pod's web server answered {status}: {page[:200]!r}")
    return "an HTTP request reached the pod's port"


def forbidden(scene: Scene) -> str:
    _, err = scene.kubectl.run("get", "secrets", "--namespace=kube-system", exit_code=1)
    expect(err, "Forbidden", f'User "{scene.agent_user}" cannot list resource "secrets"')
    return "the cluster's own RBAC said no to the agent, by name"


def impersonate(scene: Scene) -> str:
    _, err = scene.kubectl.run("get", "pods", "--as=system:admin", exit_code=1)
    expect(err, "Forbidden")
    return "the hub refused an identity that the client brought along"


STEPS = (
    Step("whoami", "kubectl auth whoami", whoami),
    Step("get", "kubectl get pods", get),
    Step("apply", "kubectl apply -f -", apply),
    Step("watch", "kubectl get configmap notes --watch-only", watch),
    Step("logs -f", f"kubectl logs --follow {POD}", logs),
    Step("exec", f"kubectl exec -i {POD} -- …", execute),
    Step("cp", f"kubectl cp FILE {POD}:copied, and back", copy),
    Step("port-forward", f"kubectl port-forward pod/{POD} :PORT", port_forward),
    Step("forbidden", "kubectl get secrets -n kube-system", forbidden),
    Step("--as", "kubectl get pods --as=system:admin", impersonate),
)
