"""The agent's steps with kubectl, and the checks of their results."""

from __future__ import annotations

import hashlib
import json
import os
import re
import select
import tempfile
import urllib.request
from pathlib import Path

from sandbox.demo.cluster import POD, last_line
from sandbox.demo.processes import DemoError
from sandbox.demo.program import COMMAND_DEADLINE_S, first_line
from sandbox.demo.scene import Scene, Show, Step, expect, prose

# How long to wait for an event before the next change: a watch that has just been opened may miss the first.
WATCH_PATIENCE_S = 0.5
WATCH_CHANGES_MAX = 40
COPY_BYTES = 3_000_000
# Reads stdin, writes to both outputs, and ends with its own exit code.
SHELL = "cat; echo a line of stderr >&2; exit 3"


def whoami(scene: Scene, show: Show) -> None:
    show("$ kubectl auth whoami")
    out, _ = scene.kubectl.run("auth", "whoami")
    expect(out, scene.agent_user, scene.agent_group)
    show(out)


def get(scene: Scene, show: Show) -> None:
    show("$ kubectl get pods")
    out, _ = scene.kubectl.run("get", "pods")
    expect(out, POD, "1/1", "Running")
    show(out)


def apply(scene: Scene, show: Show) -> None:
    show("$ kubectl apply -f -      # a ConfigMap, and again with another value")
    manifest = (
        '{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "notes"}, "data": {"colour": "%s"}}'
    )
    created, _ = scene.kubectl.run("apply", "-f", "-", stdin=manifest % "green")
    expect(created, "configmap/notes created")
    configured, _ = scene.kubectl.run("apply", "-f", "-", stdin=manifest % "blue")
    expect(configured, "configmap/notes configured")
    colour, _ = scene.kubectl.run("get", "configmap", "notes", "-o", "jsonpath={.data.colour}")
    expect(colour, "blue")
    show(created + configured)


def watch(scene: Scene, show: Show) -> None:
    show("$ kubectl get configmap notes --watch-only")
    with scene.kubectl.started("get", "configmap", "notes", "--watch-only", "--no-headers") as watching:
        assert watching.stdout is not None
        # A watch prints nothing until something changes, so change the object until the watch shows it.
        for number in range(WATCH_CHANGES_MAX):
            change = json.dumps({"data": {f"note-{number}": "seen"}})
            scene.kubectl.run("patch", "configmap", "notes", "-p", change)
            if select.select([watching.stdout], [], [], WATCH_PATIENCE_S)[0]:
                break
        else:
            raise DemoError(f"the watch delivered none of {WATCH_CHANGES_MAX} changes")
        line = first_line(watching)
    expect(line, "notes")
    show(line)


def delete(scene: Scene, show: Show) -> None:
    show("$ kubectl delete configmap notes")
    out, _ = scene.kubectl.run("delete", "configmap", "notes")
    expect(out, 'configmap "notes" deleted')
    show(out)


def logs(scene: Scene, show: Show) -> None:
    show(f"$ kubectl logs --follow {POD}")
    with scene.kubectl.started("logs", "--follow", POD) as following:
        line = first_line(following)
    expect(line, "workbench is up")
    show(line)


def execute(scene: Scene, show: Show) -> None:
    show(f"$ echo a line of stdin | kubectl exec -i {POD} -- \\\n    sh -c '{SHELL}'")
    out, err = scene.kubectl.run(
        "exec", "-i", POD, "--", "sh", "-c", SHELL, stdin="a line of stdin\n", exit_code=3
    )
    expect(out, "a line of stdin")
    expect(err, "a line of stderr", "exit code 3")
    show(out + err)


def copy(scene: Scene, show: Show) -> None:
    show(f"$ kubectl cp FILE {POD}:copied, and back")
    content = os.urandom(COPY_BYTES)
    with tempfile.TemporaryDirectory() as folder:
        there, back = Path(folder, "there"), Path(folder, "back")
        there.write_bytes(content)
        scene.kubectl.run("cp", str(there), f"{POD}:copied")
        scene.kubectl.run("cp", f"{POD}:copied", str(back))
        same = hashlib.sha256(back.read_bytes()).digest() == hashlib.sha256(content).digest()
    if not same:
        raise DemoError("the file that came back is not the one that was sent")
    show(f"{COPY_BYTES:,} bytes each way, sha256 equal")


def port_forward(scene: Scene, show: Show) -> None:
    show(f"$ kubectl port-forward pod/{POD} :{scene.pod_port} &")
    with scene.kubectl.started(
        "port-forward", f"pod/{POD}", f":{scene.pod_port}", "--address=127.0.0.1"
    ) as forwarding:
        line = first_line(forwarding)
        found = re.search(r"127\.0\.0\.1:(\d+)", line)
        if found is None:
            raise DemoError(f"port-forward printed {line!r}")
        url = f"http://127.0.0.1:{found[1]}/"
        with urllib.request.urlopen(url, timeout=COMMAND_DEADLINE_S) as answer:
            status, page = answer.status, answer.read()
    if status != 200 or b"copied" not in page:
        raise DemoError(f"the pod's web server answered {status}: {page[:200]!r}")
    show(f"{line}GET {url}: {status}, {len(page)} bytes")


def forbidden(scene: Scene, show: Show) -> None:
    show("$ kubectl get secrets -n kube-system")
    _, err = scene.kubectl.run("get", "secrets", "--namespace=kube-system", exit_code=1)
    expect(err, "Forbidden", f'User "{scene.agent_user}" cannot list resource "secrets"')
    show(prose(last_line(err)))


def impersonate(scene: Scene, show: Show) -> None:
    show("$ kubectl get pods --as=system:admin")
    _, err = scene.kubectl.run("get", "pods", "--as=system:admin", exit_code=1)
    expect(err, "Forbidden", "impersonate-user is refused")
    show(prose(last_line(err)))


AGENT_STEPS = (
    Step("whoami", "the API server sees the agent's own name and its team", whoami),
    Step("get", "an unmodified kubectl, and no credential of the cluster", get),
    Step("apply", "the hub records a change before it sends it on", apply),
    Step("watch", "an event arrives while the watch is open", watch),
    Step("delete", "RBAC allows it, and no policy forbids it yet", delete),
    Step("logs -f", "the pod's first line, while following", logs),
    Step("exec", "stdin, stdout, stderr and the exit code come through", execute),
    Step("cp", "a file is the same after the way there and back", copy),
    Step("port-forward", "an HTTP request reaches the pod's port", port_forward),
    Step("forbidden", "the cluster's own RBAC decides, and names the agent", forbidden),
    Step("--as", "the hub refuses an identity that the client brings along", impersonate),
)
