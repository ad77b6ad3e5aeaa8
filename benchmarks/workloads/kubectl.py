"""`kubectl get pods` from the start of its process to its last line of output: the time that a person waits.

`kubectl` gives kubectl a token in its kubeconfig, for Hawse as for the others: the difference is the path.
kubectl's own discovery is in its cache. `kubectl-plugin` is a login with an own key, and a kubeconfig as
`hawse kubeconfig` writes it: kubectl runs `hawse-credential`, which has answered in this minute. For
`kubectl-token` the plugin's token is gone before each call, as after a minute without calls: the plugin gets
another one from the hub. `kubectl-first` has neither that token nor discovery in a cache: the first call of
all. For `kubectl-two`, the plugin has answered another question before each call: of a client that describes
the same cluster in another way, as an SDK does.

p50_ms is kubectl's whole time. For nginx and Hawse the notes have `added_ms` as well: each of their calls
follows one straight to the API server, and it is the median of their differences. The CPU time is the
system's, without kubectl's and the plugin's. `plugin_ms` and `plugin_cpu_ms` are the plugin's own, run alone
after the calls: medians of its time and of its CPU time.
"""

from __future__ import annotations

import base64
import json
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import attrs
import yaml

from benchmarks.meter import measure
from benchmarks.processes import program
from benchmarks.result import Measurement, Sample, milliseconds
from benchmarks.system import Endpoint, System, Upstream
from benchmarks.systems.direct import open_direct
from benchmarks.systems.hawse import AGENT, CLUSTER, Enrolled, enrolled
from benchmarks.systems.nginx import open_nginx
from benchmarks.upstream.kubectl import NAMESPACE, POD, open_kubectl_server
from benchmarks.workload import Options, RunFailed, Workload

# kubectl's own time differs by 15 ms from call to call: the median of fewer pairs is off by more than the
# 5 ms in question.
CALLS: Final = 50
QUICK_CALLS: Final = 2
DEADLINE_S: Final = 30.0
TOKEN: Final = "service-account." + "t" * 900
SYSTEMS: Final = frozenset({"direct", "nginx", "hawse"})


@attrs.frozen
class Question:
    """What a client of Kubernetes hands to the plugin."""

    exec_info: str
    arguments: tuple[str, ...] = ()


class Asked(NamedTuple):
    """One run of the plugin, with the processes that it started."""

    took_ms: float
    cpu_ms: float


@attrs.frozen
class Home:
    """Where one user's kubectl keeps its things."""

    folder: Path
    others: list[Question] = attrs.Factory(list)
    """Questions of other clients of the same user."""

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "kubeconfig"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "HOME": str(self.folder),
            "XDG_CONFIG_HOME": str(self.folder / "config"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "KUBECACHEDIR": str(self.folder / "kubecache"),
            "KUBECONFIG": str(self.kubeconfig),
        }

    def ask_plugin(self, question: Question) -> Asked:
        """Run the plugin to its end, as a client with this question does. Raises RunFailed."""
        plugin = program("hawse-credential", "hawse", "make setup")
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began_ns = time.perf_counter_ns()
        done = subprocess.run(
            [plugin, *question.arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**os.environ, **self.environment, "KUBERNETES_EXEC_INFO": question.exec_info},
            timeout=DEADLINE_S,
        )
        took_ns = time.perf_counter_ns() - began_ns
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode != 0:
            raise RunFailed(f"hawse-credential: {done.stderr.decode().strip()}")
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Asked(took_ns / 1e6, cpu_s * 1e3)

    def forget_token(self) -> None:
        """Empty the plugin's cache."""
        shutil.rmtree(self.folder / "cache", ignore_errors=True)

    def forget_all(self) -> None:
        """Empty every cache: discovery, and tokens."""
        self.forget_token()
        shutil.rmtree(self.folder / "kubecache", ignore_errors=True)

    def get_pods_ns(self) -> int:
        """Run kubectl to its end; returns the ns that it took. Raises RunFailed."""
        kubectl = program("kubectl", "kubectl", "make setup")
        began_ns = time.perf_counter_ns()
        done = subprocess.run(
            [kubectl, "get", "pods", f"--namespace={NAMESPACE}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**os.environ, **self.environment},
            timeout=DEADLINE_S,
        )
        took_ns = time.perf_counter_ns() - began_ns
        if done.returncode != 0 or POD.encode() not in done.stdout:
            raise RunFailed(f"kubectl: {done.stderr.decode().strip() or done.stdout.decode().strip()}")
        return took_ns


def token_kubeconfig(endpoint: Endpoint, token: str) -> str:
    """A kubeconfig with nothing to run or to fetch."""
    server = f"https://{endpoint.host}:{endpoint.port}{endpoint.prefix}"
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "c", "cluster": {"server": server, "certificate-authority": str(endpoint.ca)}}
            ],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "c",
        }
    )


Prepare = Callable[[Home, Enrolled], Question | None]
"""Writes the kubeconfig, and returns what kubectl asks the plugin, if it runs it."""
Before = Callable[[Home], None]
"""What happens before each call."""


def run(kind: str, prepare: Prepare, before: Before, system: System, options: Options) -> Sample:
    """Some calls of kubectl, with a warm one before them."""
    calls = QUICK_CALLS if options.quick else CALLS
    with tempfile.TemporaryDirectory(prefix="hawse-bench-kubectl-") as name:
        folder = Path(name)
        for part in ("upstream", "direct-home", "home", system.name):
            (folder / part).mkdir()
        with open_kubectl_server(folder / "upstream") as server:
            straight, home = Home(folder / "direct-home"), Home(folder / "home")
            straight.kubeconfig.write_text(token_kubeconfig(server.endpoint, TOKEN))
            straight.get_pods_ns()
            with opened(system.name, folder / system.name, server, home, prepare) as (running, question):
                home.get_pods_ns()
                took_ns, added_ns = [], []
                with measure(running, server) as costs:
                    for _ in range(calls):
                        for each in (straight, home):
                            before(each)
                        if system.name == "direct":
                            took_ns.append(straight.get_pods_ns())
                            continue
                        straight_ns = straight.get_pods_ns()
                        took_ns.append(home.get_pods_ns())
                        added_ns.append(took_ns[-1] - straight_ns)
                asked = [] if question is None else ask_alone(home, question, before, calls)
    return sample(kind, system.name, took_ns, added_ns, costs.cpu_s, asked)


def ask_alone(home: Home, question: Question, before: Before, calls: int) -> list[Asked]:
    """Run the plugin alone as often as kubectl ran it, with a warm run before."""
    home.ask_plugin(question)
    asked = []
    for _ in range(calls):
        before(home)
        asked.append(home.ask_plugin(question))
    return asked


@contextmanager
def opened(
    name: str, folder: Path, server: Upstream, home: Home, prepare: Prepare
) -> Iterator[tuple[System, Question | None]]:
    """Run the system of this name once more, before an upstream that kubectl understands."""
    if name == "hawse":
        with enrolled(folder, server, name, {}) as found:
            yield found.system, prepare(home, found)
        return
    with (open_nginx if name == "nginx" else open_direct)(folder, server) as system:
        home.kubeconfig.write_text(token_kubeconfig(system.endpoint, TOKEN))
        yield system, None


def with_token(home: Home, found: Enrolled) -> None:
    """A token as the plugin would have it, in the file; it is good for longer than the calls take."""
    token = found.installation.token(found.api_key)
    home.kubeconfig.write_text(token_kubeconfig(found.system.endpoint, token))


def with_plugin(home: Home, found: Enrolled) -> Question:
    """Log in with an own key, and have the kubeconfig written, as a user does."""
    installation = found.installation
    code = json.loads(installation.run("admin", "agent", "code", AGENT, "--json"))["code"]
    user = {**home.environment, "HAWSE_ENROLMENT_CODE": code}
    installation.run_as(user, "login", "--hub", installation.url, "--ca", str(installation.ca), "--code")
    installation.run_as(user, "kubeconfig", CLUSTER, "--output", str(home.kubeconfig))
    return Question(exec_info(f"{installation.url}/clusters/{CLUSTER}", installation.ca))


def with_two_questions(home: Home, found: Enrolled) -> Question:
    """As with_plugin, and an SDK that states no cluster, and no more than the version."""
    question = with_plugin(home, found)
    server = f"{found.installation.url}/clusters/{CLUSTER}"
    home.others.append(Question(exec_info(), ("--server", server)))
    return question


def exec_info(server: str = "", ca: Path | None = None) -> str:
    """What a client puts into KUBERNETES_EXEC_INFO, in kubectl's form."""
    spec: dict[str, object] = {"interactive": False}
    if ca is not None:
        spec["cluster"] = {
            "server": server,
            "certificate-authority-data": base64.b64encode(ca.read_bytes()).decode(),
            "config": None,
        }
    document = {"kind": "ExecCredential", "apiVersion": "client.authentication.k8s.io/v1", "spec": spec}
    return json.dumps(document, separators=(",", ":")) + "\n"


def sample(
    kind: str,
    system: str,
    took_ns: list[int],
    added_ns: list[int],
    cpu_s: Mapping[str, float] | None = None,
    asked: Sequence[Asked] = (),
) -> Sample:
    ordered = sorted(took_ns)
    notes = {"requests": float(len(ordered))}
    if added_ns:
        notes["added_ms"] = statistics.median(added_ns) / 1e6
    if asked:
        notes["plugin_ms"] = statistics.median(each.took_ms for each in asked)
        notes["plugin_cpu_ms"] = statistics.median(each.cpu_ms for each in asked)
    return Sample(
        Measurement(kind, system, 1, p50_ms=milliseconds(ordered, 0.50), p99_ms=milliseconds(ordered, 0.99)),
        cpu_s=cpu_s or {},
        notes=notes,
    )


def leave_all(_home: Home) -> None:
    """Leave every cache as it is."""


def ask_others(home: Home) -> None:
    """Have the plugin answer the user's other clients."""
    for question in home.others:
        home.ask_plugin(question)


def workload(kind: str, title: str, prepare: Prepare, before: Before = leave_all) -> Workload:
    def run_one(system: System, upstream: Upstream, variant: int, options: Options) -> Sample:
        return run(kind, prepare, before, system, options)

    return Workload(kind, title, (1,), run_one, systems=SYSTEMS)


WORKLOADS = (
    workload("kubectl", "kubectl get pods from its start to its output, with a token at hand", with_token),
    workload("kubectl-plugin", "the same with `hawse-credential`, asked in this minute before", with_plugin),
    workload(
        "kubectl-two",
        "the same, and `hawse-credential` has answered another question in between",
        with_two_questions,
        ask_others,
    ),
    workload(
        "kubectl-token",
        "the same with `hawse-credential`, which has to get another token",
        with_plugin,
        Home.forget_token,
    ),
    workload(
        "kubectl-first",
        "the first call of all: no token, no discovery in any cache",
        with_plugin,
        Home.forget_all,
    ),
)
