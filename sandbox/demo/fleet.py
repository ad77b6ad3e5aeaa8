"""What the demo adds for the console: more teams and agents at work, and clusters without a relay."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Iterator, Sequence

import attrs
import yaml

from sandbox.demo.cluster import NAMESPACE, POD, RELAY_NAMESPACE, RELAY_SERVICE_ACCOUNT, Administrator
from sandbox.demo.operator_steps import RULE
from sandbox.demo.program import Program
from sandbox.demo.scene import Scene
from sandbox.demo.stage import CLUSTER, Stage, kubectl_of, log_in, start_relay, wait_for_relay

# Between two commands of an agent, which costs some 0.1 s of CPU.
PAUSE_S = 5.0
# Before a call that was ended, as by a click in the console, is opened again.
REOPEN_S = 30.0
# How often a thread looks whether the demo ends.
LOOK_S = 0.2

NOTES = '{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "%s"}, "data": {"by": "%s"}}'
DATES = "while true; do date; sleep 5; done"


@attrs.frozen
class Worker:
    """An agent, what it does again and again, and the calls that it keeps open."""

    name: str
    team: str
    owner: str
    commands: Sequence[tuple[str, ...]]
    calls: Sequence[tuple[str, ...]]
    # What `kubectl apply -f -` reads.
    note: str = ""


RELEASES = Worker(
    "release-bot",
    "payments",
    "Dana Ruiz",
    commands=(
        ("get", "pods", "--output=wide"),
        ("apply", "--filename=-"),
        ("get", "configmap", "checkout"),
        ("exec", POD, "--", "date"),
        ("delete", "configmap", "checkout"),
    ),
    calls=(("logs", "--follow", POD),),
    note="checkout",
)
WATCH = Worker(
    "night-watch",
    "platform",
    "Ann Okafor",
    commands=(
        ("get", "pods"),
        ("logs", POD, "--tail=5"),
        ("get", "secrets", "--namespace=kube-system"),
        ("exec", POD, "--", "sh", "-c", "uptime"),
    ),
    calls=(("get", "pods", "--watch"), ("exec", POD, "--", "sh", "-c", DATES)),
)
# The agent of the script: its own commands come from there.
ROBOT = Worker(
    "robot",
    "demo",
    "demo",
    commands=(("get", "services"), ("delete", "pod", POD), ("get", "configmaps")),
    calls=(("get", "configmaps", "--watch"),),
)

FREEZE = f"""\
apiVersion: hawse.dev/v1
kind: Policy
metadata:
  name: payments-freeze
  owner: Dana Ruiz
  contact: "#payments"
  description: Nothing of the checkout changes during the sale
spec:
  bind: {{teams: [payments]}}
  rules:
    - {{id: no-shell, effect: deny, verbs: [create], resources: [pods/exec, pods/attach],
       reason: the checkout's pods hold card data, instead: read their logs}}
    - {{id: no-delete, effect: deny, verbs: [delete, deletecollection], namespaces: [{NAMESPACE}],
       reason: the sale runs until Monday}}
"""
# The policy of the script, with one rule more and another reason.
KEEP_AGAIN = f"""\
apiVersion: hawse.dev/v1
kind: Policy
metadata: {{name: {RULE.partition("/")[0]}, contact: "#platform", description: Agents look and change}}
spec:
  bind: {{teams: [demo]}}
  rules:
    - {{id: {RULE.partition("/")[2]}, effect: deny, namespaces: [{NAMESPACE}],
       verbs: [delete, deletecollection], reason: agents delete nothing here, instead: label it for removal}}
    - {{id: secrets, effect: deny, verbs: [read], resources: [secrets],
       reason: secrets stay in the vault, instead: mount it as a volume}}
"""
OFFLINE, AWAITED = "edge-berlin", "spare-frankfurt"


@contextlib.contextmanager
def working_fleet(stage: Stage) -> Iterator[None]:
    """Enrol more, and let the agents work until the end of the block."""
    scene = stage.scene
    kubectls = {ROBOT: scene.kubectl, **_enrol(stage)}
    _add_clusters(stage)
    scene.hawse.run("admin", "policy", "apply", "-", stdin=f"{KEEP_AGAIN}---\n{FREEZE}")
    ending = threading.Event()
    threads = []
    for worker, kubectl in kubectls.items():
        threads.append(threading.Thread(target=_work, args=(worker, kubectl, ending)))
        threads += [
            threading.Thread(target=_keep_open, args=(call, kubectl, ending)) for call in worker.calls
        ]
    try:
        for thread in threads:
            thread.start()
        yield
    finally:
        ending.set()
        for thread in threads:
            thread.join()


def _enrol(stage: Stage) -> dict[Worker, Program]:
    """Enrol the teams and agents, and log the agents in; returns the kubectl of each."""
    scene, keys = stage.scene, {}
    for worker in (RELEASES, WATCH):
        scene.hawse.run("admin", "team", "add", worker.team)
        scene.hawse.run("admin", "cluster", "grant", CLUSTER, worker.team)
        added, _ = scene.hawse.run(
            *("admin", "agent", "add", worker.name, "--team", worker.team, "--owner", worker.owner, "--json")
        )
        keys[worker] = json.loads(added)["api_key"]
    _allow(stage.administrator, scene)
    kubectls = {}
    for worker, key in keys.items():
        home = scene.folder / f"agent-{worker.name}"
        home.mkdir(mode=0o700)
        kubectls[worker] = kubectl_of(home)
        log_in(kubectls[worker], stage.front, key)
    # Its code is never used, and its team's clusters lack it.
    scene.hawse.run(
        *("admin", "agent", "add", "trainee", "--team", WATCH.team, "--owner", WATCH.owner),
        *("--credential", "code"),
    )
    return kubectls


def _allow(administrator: Administrator, scene: Scene) -> None:
    """Permit the relay to impersonate the new agents, and their teams what the script's team may."""
    rbac, _ = scene.hawse.run(
        *("admin", "cluster", "rbac", CLUSTER, "--namespace", RELAY_NAMESPACE),
        *("--service-account", RELAY_SERVICE_ACCOUNT),
    )
    administrator.kubectl("apply", "-f", "-", stdin=rbac)
    group = "rbac.authorization.k8s.io"
    binding = {
        "apiVersion": f"{group}/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "demo-teams", "namespace": NAMESPACE},
        "roleRef": {"apiGroup": group, "kind": "Role", "name": "demo-agent"},
        "subjects": [
            {"apiGroup": group, "kind": "Group", "name": f"{scene.org}/{worker.team}"}
            for worker in (RELEASES, WATCH)
        ],
    }
    administrator.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(binding))


def _add_clusters(stage: Stage) -> None:
    """Enrol a cluster whose relay came and left, and one whose relay has never come."""
    scene = stage.scene
    folder = scene.folder / f"relay-{OFFLINE}"
    scene.hawse.run(
        *("admin", "cluster", "add", OFFLINE, "--team", WATCH.team, "--label", "env=edge"),
        *("--output-dir", str(folder)),
    )
    scene.hawse.run(
        *("admin", "cluster", "add", AWAITED, "--team", WATCH.team, "--team", RELEASES.team),
        *("--label", "env=prod", "--output", str(scene.folder / f"{AWAITED}.yaml")),
    )
    relay = start_relay(stage.daemons, OFFLINE, folder, stage.administrator, stage.front)
    wait_for_relay(relay, scene.hawse, OFFLINE)
    relay.stop()
    stage.daemons.replaced(relay)


def _work(worker: Worker, kubectl: Program, ending: threading.Event) -> None:
    """Run the worker's commands one after the other. Some are denied, which is what there is to see."""
    while True:
        for command in worker.commands:
            stdin = NOTES % (worker.note, worker.name) if command[0] == "apply" else None
            _run(kubectl, command, ending, stdin)
            if ending.wait(PAUSE_S):
                return


def _keep_open(call: tuple[str, ...], kubectl: Program, ending: threading.Event) -> None:
    """Keep a call open, which an operator may end."""
    while True:
        _run(kubectl, call, ending, None)
        if ending.wait(REOPEN_S):
            return


def _run(kubectl: Program, command: tuple[str, ...], ending: threading.Event, stdin: str | None) -> None:
    """Run a command until its end, or that of the demo."""
    source = subprocess.DEVNULL if stdin is None else subprocess.PIPE
    with kubectl.started(*command, stdin=source, stdout=subprocess.DEVNULL) as process:
        while not ending.is_set():
            try:
                process.communicate(stdin, timeout=LOOK_S)
            except subprocess.TimeoutExpired:
                stdin = None  # `communicate` has it already
            else:
                return
