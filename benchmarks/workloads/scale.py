"""One hub with a thousand clusters, a relay each: what a tunnel holds and costs, and what a restart does.

`idle-tunnels` has the tunnels and nothing in them. `scale` has requests through relays at random beside
requests through one of them, ends the hub by SIGTERM and by SIGKILL, starts it again at once, and waits for
all relays to be back. The relays dial from addresses of their own, and wait before they dial as all do.
"""

from __future__ import annotations

import http.client
import json
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import attrs

from benchmarks.accounting import CpuMeter, rss_kb
from benchmarks.fleet import Fleet, open_fleet
from benchmarks.result import Measurement, Sample, milliseconds, quantile
from benchmarks.system import System, Upstream
from benchmarks.talk import Talk
from benchmarks.upstream.apiserver import POD_PATH
from benchmarks.workload import Options, RunFailed, Workload
from proxy.cli.admin.api.client import AdminClient, Reach

TUNNELS = 1000
FEW = 200
QUICK_TUNNELS = 20
# The first ones of each process pay for what all share.
BASE_A_PROCESS = 5
SETTLE_S = 1.0
# A PING is due every 30 s on a tunnel that carries nothing.
PING_PERIOD_S = 30.0
QUICK_IDLE_S = 2.0
# How many clusters the requests are for, each on a connection of its own, and how many are under way.
TARGETS = 200
AT_ONCE = 16
SECONDS = 3.0
SCRAPE_S = 30.0
# One of it says what it does; the waits in it are minutes.
RUNS = 1


@attrs.frozen
class Tunnels:
    """What the tunnels came to, once they are up."""

    fleet: Fleet
    tunnel_kb: float
    """More in the hub by tunnel than with the first ones."""
    connect_ms: float
    """CPU time of the hub for one that connects."""
    base_kb: float
    """The hub without any."""


@contextmanager
def up(upstream: Upstream, size: int) -> Iterator[Tunnels]:
    """Have the tunnels up in a folder of their own."""
    with tempfile.TemporaryDirectory(prefix="hawse-bench-scale-") as folder:
        with open_fleet(Path(folder), upstream, size) as fleet:
            base = [BASE_A_PROCESS for _ in fleet.processes]
            fleet.start(base)
            time.sleep(SETTLE_S)
            hub = fleet.hub.process.pid
            before_kb, meter = rss_kb(hub), CpuMeter({"hub": hub})
            rest = [process.size - BASE_A_PROCESS for process in fleet.processes]
            fleet.start(rest)
            time.sleep(SETTLE_S)
            count, spent_s = sum(rest), meter.read()["hub"]
            tunnel_kb = (rss_kb(hub) - before_kb) / count
            yield Tunnels(
                fleet,
                tunnel_kb=tunnel_kb,
                connect_ms=spent_s * 1e3 / count,
                base_kb=before_kb - sum(base) * tunnel_kb,
            )


def run_idle(system: System, upstream: Upstream, tunnels: int, options: Options) -> Sample:
    """The tunnels, and nothing in them."""
    size = QUICK_TUNNELS if options.quick else tunnels
    with up(upstream, size) as found:
        idle_s = QUICK_IDLE_S if options.quick else PING_PERIOD_S
        meter = CpuMeter({"hub": found.fleet.hub.process.pid, **found.fleet.processes_by_name})
        time.sleep(idle_s)
        spent = meter.read()
    return Sample(
        Measurement("idle-tunnels", "hawse", tunnels, rss_kb_per_stream=found.tunnel_kb),
        cpu_s=spent,
        notes={
            "tunnel_kb": found.tunnel_kb,
            "hub_base_kb": found.base_kb,
            "connect_ms": found.connect_ms,
            "idle_us_per_s": spent["hub"] * 1e6 / size / idle_s,
            "relay_process_kb": rss_kb(system.processes["relay"]),
        },
    )


def run(system: System, upstream: Upstream, tunnels: int, options: Options) -> Sample:
    """Requests at random, and two restarts."""
    size = QUICK_TUNNELS if options.quick else tunnels
    seconds = options.seconds if options.quick else SECONDS
    with up(upstream, size) as found:
        fleet = found.fleet
        folder = fleet.installation.folder
        chosen = fleet.clusters[:: max(1, size // TARGETS)]
        hub_kb = rss_kb(fleet.hub.process.pid)
        # As many connections, all for one cluster.
        one, _ = roam(fleet, chosen[:1] * len(chosen), seconds)
        many, latencies_ns = roam(fleet, chosen, seconds)
        client = Reach(folder / "hub.toml", None).client()
        scrape_ms = timed_ms(lambda: scrape(client))
        relays_ms, clusters_ms = (timed_ms(partial(client.get, what)) for what in ("relays", "clusters"))
        stopped = restart(fleet, signal.SIGTERM, size)
        time.sleep(SETTLE_S)
        killed = restart(fleet, signal.SIGKILL, size)
        after_kb = rss_kb(fleet.hub.process.pid)
    return Sample(
        Measurement(
            "scale",
            "hawse",
            tunnels,
            cpu_us_per_request=many["hub_us"],
            p50_ms=milliseconds(latencies_ns, 0.50),
            p99_ms=milliseconds(latencies_ns, 0.99),
            rss_kb_per_stream=found.tunnel_kb,
        ),
        notes={
            "hub_kb": hub_kb,
            "connect_ms": found.connect_ms,
            **{f"many_{name}": value for name, value in many.items()},
            **{f"one_{name}": value for name, value in one.items()},
            "metrics_ms": scrape_ms,
            "relay_list_ms": relays_ms,
            "cluster_list_ms": clusters_ms,
            **{f"stopped_{name}": value for name, value in stopped.items()},
            **{f"killed_{name}": value for name, value in killed.items()},
            "hub_after_kb": after_kb,
        },
    )


def run_two(system: System, upstream: Upstream, tunnels: int, options: Options) -> Sample:
    """The clusters on two hubs, half on each, and requests through one after the other, then through both."""
    size = QUICK_TUNNELS if options.quick else tunnels
    seconds = options.seconds if options.quick else SECONDS
    with up(upstream, size // 2) as one, up(upstream, size // 2) as other:
        fleets = (one.fleet, other.fleet)
        hub_kb = [rss_kb(fleet.hub.process.pid) for fleet in fleets]

        def use(fleet: Fleet) -> tuple[dict[str, float], list[int]]:
            return roam(fleet, fleet.clusters[:: max(1, size // TARGETS)], seconds)

        # As on a machine each.
        in_turn = [use(fleet)[0] for fleet in fleets]
        with ThreadPoolExecutor(len(fleets)) as threads:
            used = list(threads.map(use, fleets))
    latencies_ns = sorted(took_ns for _, each in used for took_ns in each)
    return Sample(
        Measurement(
            "scale-two",
            "hawse",
            tunnels,
            cpu_us_per_request=max(notes["hub_us"] for notes, _ in used),
            p50_ms=milliseconds(latencies_ns, 0.50),
            p99_ms=milliseconds(latencies_ns, 0.99),
        ),
        notes={
            "requests_per_s": sum(notes["requests_per_s"] for notes, _ in used),
            "in_turn_hub_us": max(notes["hub_us"] for notes in in_turn),
            "larger_hub_kb": max(hub_kb),
        },
    )


def roam(fleet: Fleet, clusters: Sequence[str], seconds: float) -> tuple[dict[str, float], list[int]]:
    """Requests at random among the clusters: what one costs by process, and how long each took."""
    installation = fleet.installation
    endpoint = {"host": "127.0.0.1", "port": installation.port, "server_name": "127.0.0.1"}
    tokens = {cluster: installation.token(fleet.api_key, cluster) for cluster in dict.fromkeys(clusters)}
    heads = [head(cluster, tokens[cluster]) for cluster in clusters]
    job = {
        "endpoint": {**endpoint, "ca": str(installation.ca)},
        "connections": len(heads),
        "heads": heads,
        "at_once": AT_ONCE,
        "seconds": seconds,
    }
    with Talk("benchmarks.roaming") as client:
        client.ask(json.dumps(job))
        meter = CpuMeter({"hub": fleet.hub.process.pid, **fleet.processes_by_name})
        report = json.loads(client.ask("go"))
        spent = meter.read()
    count = len(report["latencies_ns"])
    return {
        "requests_per_s": count / report["wall_s"],
        "hub_us": spent["hub"] * 1e6 / count,
        "relays_us": (sum(spent.values()) - spent["hub"]) * 1e6 / count,
    }, report["latencies_ns"]


def head(cluster: str, token: str) -> str:
    return (
        f"GET /clusters/{cluster}{POD_PATH} HTTP/1.1\r\nHost: hub\r\nUser-Agent: kubectl/v1.37.0\r\n"
        f"Accept: application/json\r\nAuthorization: Bearer {token}\r\n\r\n"
    )


def restart(fleet: Fleet, number: signal.Signals, size: int) -> dict[str, float]:
    """End the hub and start it again: when its relays were back, in seconds since it was ready."""
    fleet.opened()
    began = time.monotonic()
    ready = fleet.restart_hub(number)
    meter = CpuMeter({"hub": fleet.hub.process.pid})
    opened = sorted(at - ready for at in fleet.wait_for_opened(size))
    return {
        "away_s": ready - began,
        "half_back_s": quantile(opened, 0.5),
        "nearly_all_back_s": quantile(opened, 0.99),
        "all_back_s": opened[-1],
        "connect_ms": meter.read()["hub"] * 1e3 / size,
    }


def scrape(client: AdminClient) -> bytes:
    """Prometheus' call."""
    parts = urlsplit(client.url)
    connection = http.client.HTTPSConnection(
        parts.hostname or "", parts.port, timeout=SCRAPE_S, context=client.context
    )
    try:
        connection.request("GET", "/metrics", headers={"authorization": f"Bearer {client.token}"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise RunFailed(f"/metrics answered {answer.status}")
        return answer.read()
    finally:
        connection.close()


def timed_ms(work: Callable[[], object]) -> float:
    """How long the second of two calls takes: the first one pays for what is made once."""
    work()
    began_s = time.perf_counter()
    work()
    return (time.perf_counter() - began_s) * 1e3


IDLE_TUNNELS = Workload(
    "idle-tunnels",
    "a hub with 200 and with 1,000 relays and no requests: its memory and CPU time by tunnel",
    (FEW, TUNNELS),
    run_idle,
    systems=frozenset({"hawse"}),
    runs=RUNS,
)
SCALE = Workload(
    "scale",
    "a hub with 1,000 relays: requests through 200 of them at random, and how soon all are back",
    (TUNNELS,),
    run,
    systems=frozenset({"hawse"}),
    runs=RUNS,
)
SCALE_TWO = Workload(
    "scale-two",
    "the same clusters on two hubs, half on each: requests through one after the other, then through both",
    (TUNNELS,),
    run_two,
    systems=frozenset({"hawse"}),
    runs=RUNS,
)
