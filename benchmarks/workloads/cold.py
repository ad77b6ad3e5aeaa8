"""`kubectl get pods` from the start of its process to its last line of output: what a person waits for.

`cold` gives kubectl a token in its kubeconfig, for Hawse and for direct: the difference is the way. kubectl's
own discovery is in its cache. `cold-plugin` is a kubeconfig as `hawse kubeconfig` writes it: kubectl runs
`hawse-credential`, which has answered in this minute. `cold-first` has neither that token nor discovery in a
cache: the first call of all.

p50_ms is kubectl's whole time. For Hawse the notes have `added_ms` as well: each of its calls follows one
straight to the API server, and it is the median of their differences.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import attrs
import yaml

from benchmarks.processes import program
from benchmarks.result import Measurement, Sample, milliseconds
from benchmarks.system import Endpoint, System, Upstream
from benchmarks.systems.hawse import CLUSTER, Enrolled, enrolled
from benchmarks.upstream.kubectl import NAMESPACE, POD, open_kubectl_server
from benchmarks.workload import Options, RunFailed, Workload

# kubectl's own time differs by 15 ms from call to call: the median of fewer pairs is off by more than the
# 5 ms in question.
CALLS: Final = 50
QUICK_CALLS: Final = 2
DEADLINE_S: Final = 30.0
TOKEN: Final = "service-account." + "t" * 900
SYSTEMS: Final = frozenset({"direct", "hawse"})


@attrs.frozen
class Home:
    """Where one user's kubectl keeps its things."""

    folder: Path

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

    def forget(self) -> None:
        """Empty every cache: discovery, and tokens."""
        for name in ("cache", "kubecache"):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def get_pods_ns(self) -> int:
        """Run kubectl to its end; returns the ns that it took. Raises RunFailed."""
        kubectl = program("kubectl", "cold", "make setup")
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


def run(
    kind: str, prepare: Callable[[Home, Enrolled], None], system: System, upstream: Upstream, options: Options
) -> Sample:
    """Some calls of kubectl, with a warm one before them."""
    calls = QUICK_CALLS if options.quick else CALLS
    with tempfile.TemporaryDirectory(prefix="hawse-bench-cold-") as name:
        folder = Path(name)
        for part in ("upstream", "hawse", "direct-home", "hawse-home"):
            (folder / part).mkdir()
        with open_kubectl_server(folder / "upstream") as server:
            direct = Home(folder / "direct-home")
            direct.kubeconfig.write_text(token_kubeconfig(server.endpoint, TOKEN))
            direct.get_pods_ns()
            if system.name == "direct":
                return sample(kind, "direct", [timed(direct, kind) for _ in range(calls)], [])
            with enrolled(folder / "hawse", server, "hawse", {}) as found:
                through = Home(folder / "hawse-home")
                prepare(through, found)
                through.get_pods_ns()
                pairs = [(timed(direct, kind), timed(through, kind)) for _ in range(calls)]
    return sample(kind, "hawse", [after for _, after in pairs], [after - before for before, after in pairs])


def timed(home: Home, kind: str) -> int:
    if kind == "cold-first":
        home.forget()
    return home.get_pods_ns()


def with_token(home: Home, found: Enrolled) -> None:
    """A token as the plugin would have it, in the file; it is good for longer than the calls take."""
    token = found.installation.token(found.api_key)
    home.kubeconfig.write_text(token_kubeconfig(found.system.endpoint, token))


def with_plugin(home: Home, found: Enrolled) -> None:
    """Log in, and have the kubeconfig written, as a user does."""
    installation = found.installation
    user = {**home.environment, "HAWSE_API_KEY": found.api_key}
    installation.run_as(user, "login", "--hub", installation.url, "--ca", str(installation.ca))
    installation.run_as(user, "kubeconfig", CLUSTER, "--output", str(home.kubeconfig))


def sample(kind: str, system: str, took_ns: list[int], added_ns: list[int]) -> Sample:
    ordered = sorted(took_ns)
    notes = {"calls": float(len(ordered))}
    if added_ns:
        notes["added_ms"] = statistics.median(added_ns) / 1e6
    return Sample(
        Measurement(kind, system, 1, p50_ms=milliseconds(ordered, 0.50), p99_ms=milliseconds(ordered, 0.99)),
        notes=notes,
    )


def workload(kind: str, title: str, prepare: Callable[[Home, Enrolled], None]) -> Workload:
    def run_one(system: System, upstream: Upstream, variant: int, options: Options) -> Sample:
        return run(kind, prepare, system, upstream, options)

    return Workload(kind, title, (1,), run_one, systems=SYSTEMS)


WORKLOADS = (
    workload("cold", "kubectl get pods from its start to its output, with a token at hand", with_token),
    workload("cold-plugin", "the same with `hawse-credential`, asked in this minute before", with_plugin),
    workload("cold-first", "the first call of all: no token, no discovery in any cache", with_plugin),
)
