"""New connections at a rate that does not depend on the answers, as when many kubectls start by themselves.

`starts-rate` has 1,000 clients a second for ten seconds from 20 addresses, each with a full TLS handshake, a
GET of 2 KB and its end; and 3,000 at once from one address. A client waits DEADLINE_S for its answer. The
latency is that of the served ones, from the start of the TCP connection. The notes count all clients by their
outcome, as `benchmarks.arrivals` describes it. The client is one process, which takes up to a core.
"""

from __future__ import annotations

import json

from benchmarks.meter import measure
from benchmarks.result import Measurement, Sample, milliseconds
from benchmarks.system import System, Upstream
from benchmarks.talk import Talk
from benchmarks.upstream.apiserver import POD_PATH
from benchmarks.workload import Options, RunFailed, Workload

PER_SECOND = 1000
SECONDS = 10.0
SOURCES = 20
AT_ONCE = 3000
QUICK_COUNT = 20
# Longer than any wait that the hub imposes: the kernel's retries of a SYN, and 10 s for a handshake.
DEADLINE_S = 30.0
OUTCOMES = ("served", "refused", "cut", "status", "late")


def run(system: System, upstream: Upstream, rate: int, options: Options) -> Sample:
    """So many clients a second; with a rate of 0 AT_ONCE at once."""
    endpoint = system.fresh_endpoint()
    lines = [f"GET {endpoint.prefix}{POD_PATH} HTTP/1.1", "Host: hub", "User-Agent: kubectl/v1.37.0"]
    lines += [f"{name}: {value}" for name, value in endpoint.headers]
    count = int(rate * SECONDS) if rate else AT_ONCE
    job = {
        "host": endpoint.host,
        "port": endpoint.port,
        "head": "\r\n".join(lines) + "\r\n\r\n",
        "rate": rate,
        "count": QUICK_COUNT if options.quick else count,
        "sources": SOURCES if rate else 1,
        "deadline_s": DEADLINE_S,
    }
    with measure(system, upstream) as costs, Talk("benchmarks.arrivals") as client:
        report = json.loads(client.ask(json.dumps(job)))
    latencies_ns, outcomes = report["latencies_ns"], report["outcomes"]
    if not latencies_ns:
        raise RunFailed(f"no client was served: {outcomes}")
    served = len(latencies_ns)
    return Sample(
        Measurement(
            "starts-rate",
            system.name,
            rate,
            cpu_us_per_request=costs.own_s * 1e6 / served if system.processes else None,
            p50_ms=milliseconds(latencies_ns, 0.50),
            p99_ms=milliseconds(latencies_ns, 0.99),
        ),
        cpu_s={**costs.cpu_s, "load": report["cpu_s"]},
        notes={
            **{name: outcomes.get(name, 0) for name in OUTCOMES},
            "served_per_s": served / report["wall_s"],
            "wall_s": report["wall_s"],
        },
    )


RATE = Workload(
    "starts-rate",
    "1,000 new TLS connections a second for 10 s from 20 addresses, and 3,000 at once from one (variant 0)",
    (PER_SECOND, 0),
    run,
    systems=frozenset({"nginx", "hawse"}),
    runs=1,
)
