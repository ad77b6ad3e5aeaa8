"""An exec session: its keys, its start, and the whole of `kubectl exec POD -- true`.

The real protocol, v5.channel.k8s.io over a WebSocket, from the client to a container and back.

`exec` types keys into one open session, one at a time; the upstream echoes its input. Each key wakes every
process on the way: the dearest way to send a byte. `exec-start` runs `true` by a client without kubectl: a
new TLS connection, the upgrade, the command's status, and the end. `exec-kubectl` runs it by kubectl, with a
token in its kubeconfig and discovery in its cache. kubectl asks for the pod first, and opens a second
connection for the upgrade.

p50_ms of the last two is the time of all that. Each run follows one straight to the upstream, and `added_ms`
is the median of the differences.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import attrs

from benchmarks.meter import measure
from benchmarks.processes import program
from benchmarks.result import Measurement, Sample, milliseconds
from benchmarks.system import Endpoint, System, Upstream
from benchmarks.talk import Talk
from benchmarks.upstream.apiserver import POD_PATH
from benchmarks.upstream.kubectl import NAMESPACE, POD
from benchmarks.upstream.streams import open_streams
from benchmarks.workload import Options, RunFailed, Workload, once
from benchmarks.workloads.kubectl import CALLS, DEADLINE_S, QUICK_CALLS, TOKEN, Home, token_kubeconfig
from benchmarks.workloads.kubectl import SYSTEMS as WITH_KUBECTL
from benchmarks.workloads.watch import SYSTEMS as WATCHED
from benchmarks.workloads.watch import opened_again

PATH = f"{POD_PATH}/exec?command=sh&container=main&stdin=true&stdout=true&tty=true"
KEYS = 400
QUICK_KEYS = 20
# Faster than a person types. A longer sleep would measure cold caches.
PAUSE_S = 0.005
TRUE_PATH = f"{POD_PATH}/exec?command=true&container=main&stderr=true&stdout=true"
STARTS = 100
QUICK_STARTS = 3
# `plain` upgrades no connection.
SYSTEMS = WATCHED - {"plain"}


@contextmanager
def open_before_streams(system: System) -> Iterator[tuple[System, Upstream]]:
    """Open the system that has this name once more, before an upstream that serves an exec."""
    with tempfile.TemporaryDirectory(prefix="hawse-bench-exec-") as name:
        folder = Path(name)
        (folder / "upstream").mkdir()
        (folder / system.name).mkdir()
        with (
            open_streams(folder / "upstream") as upstream,
            opened_again(system, folder / system.name, upstream) as opened,
        ):
            yield opened, upstream


@contextmanager
def open_keys(
    system: System, _upstream: Upstream, sessions: int, options: Options
) -> Iterator[Callable[[], Sample]]:
    """Open a session, in which each run types keys."""
    count = QUICK_KEYS if options.quick else int(KEYS * min(1.0, options.seconds))

    def measured() -> Sample:
        with measure(opened, echo) as costs:
            took_ns = sorted(json.loads(typist.ask("go")))
        return Sample(
            Measurement(
                "exec",
                system.name,
                sessions,
                cpu_us_per_request=costs.own_s * 1e6 / count if opened.processes else None,
                p50_ms=milliseconds(took_ns, 0.50),
                p99_ms=milliseconds(took_ns, 0.99),
            ),
            cpu_s=costs.cpu_s,
            notes={"requests": count},
        )

    with open_before_streams(system) as (opened, echo), Talk("benchmarks.keystrokes") as typist:
        endpoint = job_endpoint(opened.fresh_endpoint())
        typist.ask(json.dumps({"endpoint": endpoint, "path": PATH, "count": count, "pause_s": PAUSE_S}))
        yield measured


@contextmanager
def open_starts(
    system: System, _upstream: Upstream, sessions: int, options: Options
) -> Iterator[Callable[[], Sample]]:
    """Each run starts sessions one after the other."""
    count = QUICK_STARTS if options.quick else int(STARTS * min(1.0, options.seconds))

    def measured() -> Sample:
        with measure(opened, upstream) as costs:
            pairs = json.loads(client.ask("go"))
        return sample("exec-start", opened, sessions, pairs, costs.own_s, costs.cpu_s)

    with open_before_streams(system) as (opened, upstream), Talk("benchmarks.commands") as client:
        job = {
            "endpoint": job_endpoint(opened.fresh_endpoint()),
            "beside": job_endpoint(upstream.endpoint) if opened.processes else None,
            "path": TRUE_PATH,
            "count": count,
        }
        client.ask(json.dumps(job))
        yield measured


def job_endpoint(endpoint: Endpoint) -> dict[str, object]:
    """An endpoint for a client process, as JSON has it."""
    return attrs.asdict(endpoint) | {"ca": str(endpoint.ca)}


def sample(
    kind: str,
    system: System,
    variant: int,
    pairs: list[tuple[int | None, int]],
    own_s: float,
    cpu_s: Mapping[str, float],
) -> Sample:
    """The figures of commands, from the ns that each took straight to the upstream, and by the system."""
    took_ns = sorted(took for _, took in pairs)
    added_ns = [took - straight for straight, took in pairs if straight is not None]
    notes = {"requests": float(len(pairs))}
    if added_ns:
        notes["added_ms"] = statistics.median(added_ns) / 1e6
    return Sample(
        Measurement(
            kind,
            system.name,
            variant,
            cpu_us_per_request=own_s * 1e6 / len(pairs) if system.processes else None,
            p50_ms=milliseconds(took_ns, 0.50),
            p99_ms=milliseconds(took_ns, 0.99),
        ),
        cpu_s=cpu_s,
        notes=notes,
    )


@contextmanager
def open_kubectl(
    system: System, _upstream: Upstream, variant: int, options: Options
) -> Iterator[Callable[[], Sample]]:
    """Each run starts kubectl some times. Its cache of discovery is filled before."""
    count = QUICK_CALLS if options.quick else int(CALLS * min(1.0, options.seconds))

    def measured() -> Sample:
        pairs: list[tuple[int | None, int]] = []
        with measure(opened, upstream) as costs:
            for _ in range(count):
                before_ns = exec_ns(straight) if opened.processes else None
                pairs.append((before_ns, exec_ns(home)))
        return sample("exec-kubectl", opened, variant, pairs, costs.own_s, costs.cpu_s)

    with (
        open_before_streams(system) as (opened, upstream),
        tempfile.TemporaryDirectory(prefix="hawse-bench-homes-") as name,
    ):
        straight = open_home(Path(name, "direct"), upstream.endpoint)
        home = open_home(Path(name, "home"), opened.fresh_endpoint())
        yield measured


def open_home(folder: Path, endpoint: Endpoint) -> Home:
    """Make a home for kubectl at an endpoint, with its token, and run it once."""
    folder.mkdir()
    home = Home(folder)
    token = dict(endpoint.headers).get("Authorization", TOKEN).removeprefix("Bearer ")
    home.kubeconfig.write_text(token_kubeconfig(endpoint, token))
    exec_ns(home)
    return home


def exec_ns(home: Home) -> int:
    """Run `kubectl exec POD -- true` to its end; returns the ns that it took. Raises RunFailed."""
    kubectl = program("kubectl", "exec-kubectl", "make setup")
    began_ns = time.perf_counter_ns()
    done = subprocess.run(
        [kubectl, "exec", f"--namespace={NAMESPACE}", POD, "--", "true"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={**os.environ, **home.environment},
        timeout=DEADLINE_S,
    )
    took_ns = time.perf_counter_ns() - began_ns
    if done.returncode != 0:
        raise RunFailed(f"kubectl: {done.stderr.decode().strip()}")
    return took_ns


EXEC = Workload(
    "exec",
    "keys typed into an exec session over v5.channel.k8s.io, and their echo; a request is a key here",
    (1,),
    once(open_keys),
    systems=SYSTEMS,
    open=open_keys,
)
START = Workload(
    "exec-start",
    "exec of `true` over a new TLS connection each: upgrade, status, end; a request is all of that",
    (1,),
    once(open_starts),
    systems=SYSTEMS,
    open=open_starts,
)
KUBECTL = Workload(
    "exec-kubectl",
    "kubectl exec POD -- true from its start to its end, with a token at hand",
    (1,),
    once(open_kubectl),
    systems=WITH_KUBECTL,
    open=open_kubectl,
)
WORKLOADS = (EXEC, START, KUBECTL)
