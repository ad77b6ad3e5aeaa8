"""The capacity of one hub process, computed from measured unit costs. Pure.

A hub is one process with one event loop, so it has one core. A plan uses a share of it, because every request
waits for a loop that is always busy.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from benchmarks.figures import Found, brief
from benchmarks.report import render
from benchmarks.result import Series
from benchmarks.workloads.scale import FEW, TUNNELS
from tunnel.dialing.backoff import DELAYS_S, REDIAL_S, REDIAL_SPREAD

HUB = "hub"
CORE_SHARE = 0.7
# Of the core for tunnels on which nothing happens.
KEEPALIVE_SHARE = 0.1
# A hub that comes back refuses most relays of a large fleet at first. They dial again 5 to 10 s later, so
# all of them within five seconds.
REDIAL_WINDOW_S = DELAYS_S[0] / 2
# Counted from when the hub is ready: the last first dial, and the longest wait after its refusal.
REDIAL_LAST_S = REDIAL_S * (1 + REDIAL_SPREAD) + DELAYS_S[0]
GB_KB = 1e9 / 1024


@attrs.frozen
class Costs:
    """Unit costs of the hub, and of the relay where the name says so."""

    request_us: float
    """A small read through tunnels at random, 16 at a time in all: it is mostly alone in its tunnel."""
    request_alone_us: float
    """The same through the one tunnel there is, one at a time."""
    request_best_us: float
    """The same through the one tunnel there is, 64 at a time: the most that is done in one step."""
    request_alone_relay_us: float
    request_best_relay_us: float
    gb_s: float
    """CPU seconds for a GB of downloads."""
    gb_relay_s: float
    event_us: float
    stream_kb: float
    """An open watch on which nothing happens, TLS to the client included."""
    stream_relay_kb: float
    tunnel_kb: float
    tunnel_us_per_s: float
    """Keeping it, while nothing happens: what it takes more with each tunnel."""
    idle_us_per_s: float
    """The process itself, without any."""
    connect_ms: float
    """A relay that comes: TLS, WebSocket, its token, the audit record, the store."""
    reconnect_ms: float
    """The same when all of them come back, to a hub that has just started."""
    hub_kb: float
    """The process without any client or relay."""
    relay_kb: float
    """A whole relay process."""


class Absent(Exception):
    """A figure that the run does not have; the text is its workload."""


def costs(found: Found) -> Costs:
    """Take the unit costs out of the series; raises Absent."""
    alone, small, bulk = series(found, "small", 1), series(found, "small", 64), series(found, "bulk", 32)
    watch, idle = series(found, "watch"), series(found, "idle")
    # Of a fifth of the tunnels, so that the run with all of them can show whether it holds there.
    tunnels, scale = series(found, "idle-tunnels", FEW), series(found, "scale")
    tunnel_us_per_s, idle_us_per_s = keeping(found)
    return Costs(
        request_us=least(scale, "many_hub_us"),
        request_alone_us=cpu(alone, HUB, "requests") * 1e6,
        request_best_us=cpu(small, HUB, "requests") * 1e6,
        request_alone_relay_us=cpu(alone, "relay", "requests") * 1e6,
        request_best_relay_us=cpu(small, "relay", "requests") * 1e6,
        gb_s=cpu(bulk, HUB, "gigabytes"),
        gb_relay_s=cpu(bulk, "relay", "gigabytes"),
        event_us=cpu(watch, HUB, "requests") * 1e6,
        stream_kb=most(idle, "hub_kb"),
        stream_relay_kb=most(idle, "relay_kb"),
        tunnel_kb=least(tunnels, "tunnel_kb"),
        tunnel_us_per_s=tunnel_us_per_s,
        idle_us_per_s=idle_us_per_s,
        connect_ms=least(tunnels, "connect_ms"),
        reconnect_ms=max(least(scale, "stopped_connect_ms"), least(scale, "killed_connect_ms")),
        hub_kb=least(tunnels, "hub_base_kb"),
        relay_kb=least(tunnels, "relay_process_kb"),
    )


def keeping(found: Found) -> tuple[float, float]:
    """CPU µs a second for each tunnel on which nothing happens, and for the process itself; raises Absent.

    From two sizes of fleet: of a few hundred tunnels the process itself takes a third.
    """
    few, many = (
        size * least(series(found, "idle-tunnels", size), "idle_us_per_s") for size in (FEW, TUNNELS)
    )
    tunnel = (many - few) / (TUNNELS - FEW)
    return tunnel, few - FEW * tunnel


def series(found: Found, workload: str, variant: int | None = None) -> Series:
    """Hawse's series of a workload; raises Absent."""
    for each in found.of(workload):
        if each.system == "hawse" and variant in (None, each.variant):
            return each
    raise Absent(workload)


def least(of: Series, note: str) -> float:
    return min(sample.notes[note] for sample in of.samples)


def most(of: Series, note: str) -> float:
    """Of memory, since no disturbance adds any."""
    return max(sample.notes[note] for sample in of.samples)


def cpu(of: Series, process: str, unit: str) -> float:
    """CPU seconds of a process for one of a unit that the notes count."""
    return min(sample.cpu_s[process] / sample.notes[unit] for sample in of.samples)


def unit_table(of: Costs) -> str:
    """The costs themselves."""
    rows = [
        [
            "a small read, one at a time in its tunnel",
            f"{brief(of.request_us)} µs",
            f"{brief(of.request_alone_relay_us)} µs",
        ],
        [
            "the same, 64 at a time in one tunnel",
            f"{brief(of.request_best_us)} µs",
            f"{brief(of.request_best_relay_us)} µs",
        ],
        ["a GB of downloads", f"{brief(of.gb_s)} s", f"{brief(of.gb_relay_s)} s"],
        ["an event of a watch, 1 KB", f"{brief(of.event_us)} µs", ""],
        [
            "an open watch on which nothing happens",
            f"{brief(of.stream_kb)} KB",
            f"{brief(of.stream_relay_kb)} KB",
        ],
        ["a tunnel on which nothing happens", f"{brief(of.tunnel_kb)} KB", ""],
        ["keeping such a tunnel", f"{brief(of.tunnel_us_per_s)} µs/s", ""],
        [
            "a relay that connects / that comes back with all others",
            f"{brief(of.connect_ms)} / {brief(of.reconnect_ms)} ms",
            "",
        ],
        ["the process itself", f"{brief(of.hub_kb / 1024)} MB", f"{brief(of.relay_kb / 1024)} MB"],
        ["keeping the process", f"{brief(of.idle_us_per_s / 1000)} ms/s", ""],
    ]
    return render(["what", "hub", "relay"], rows)


def capacity_table(of: Costs) -> str:
    """What one process carries of each, if there is nothing else."""
    core_s = CORE_SHARE
    rows = [
        ["small requests a second", count(core_s * 1e6, of.request_us), f"{CORE_SHARE:.0%} of a core"],
        ["downloads, MB/s", count(core_s * 1000, of.gb_s), f"{CORE_SHARE:.0%} of a core"],
        ["events of watches a second", count(core_s * 1e6, of.event_us), f"{CORE_SHARE:.0%} of a core"],
        ["open watches", count(GB_KB, of.stream_kb), "each GB of memory"],
        ["tunnels", count(GB_KB, of.tunnel_kb), "each GB of memory"],
        [
            "tunnels",
            count(KEEPALIVE_SHARE * 1e6, of.tunnel_us_per_s),
            f"{KEEPALIVE_SHARE:.0%} of a core to keep them",
        ],
        [
            "relays that come back at once",
            count(REDIAL_WINDOW_S * core_s * 1000, of.reconnect_ms),
            f"{CORE_SHARE:.0%} of a core for the {REDIAL_WINDOW_S:.0f} s in which all dial",
        ],
    ]
    return render(["one hub process carries", "", "and is then at"], rows)


def check_table(of: Costs, found: Found) -> str:
    """What the costs predict of the run with a thousand relays, beside what it was."""
    scale, two = series(found, "scale"), series(found, "scale-two").samples[0]
    notes = scale.samples[0].notes
    tunnels = scale.variant
    rows = [
        [
            "hub's memory with all tunnels, MB",
            brief((of.hub_kb + tunnels * of.tunnel_kb) / 1024),
            brief(notes["hub_kb"] / 1024),
        ],
        [
            "µs of the hub a read, as one at a time in one tunnel",
            brief(of.request_alone_us),
            brief(notes["many_hub_us"]),
        ],
        ["the same, all 16 at a time in one tunnel", "", brief(notes["one_hub_us"])],
        *(
            [
                f"all relays are back after {name} and {brief(notes[f'{how}_away_s'])} s without a hub, s",
                f"at most {REDIAL_LAST_S:g}",
                brief(notes[f"{how}_all_back_s"]),
            ]
            for name, how in (("SIGTERM", "stopped"), ("SIGKILL", "killed"))
        ),
        [
            "on two hubs: memory of the larger one, MB",
            brief((of.hub_kb + tunnels / 2 * of.tunnel_kb) / 1024),
            brief(two.notes["larger_hub_kb"] / 1024),
        ],
        [
            "on two hubs in turn: µs of the hub a read, as on one",
            brief(notes["many_hub_us"]),
            brief(two.notes["in_turn_hub_us"]),
        ],
        [
            "on two hubs at a time, on the same two cores",
            "",
            brief(two.measurement.cpu_us_per_request),
        ],
    ]
    return render([f"with {tunnels:,} relays", "predicted", "measured"], rows)


def count(budget: float, cost: float) -> str:
    """How many there are in a budget, by two digits: a plan needs no more, and the figures have no more."""
    if cost <= 0:
        return "too cheap to tell"
    value = budget / cost
    digits = len(f"{value:.0f}")
    return f"{round(value, 2 - digits):,.0f}" if digits > 2 else brief(value)


def between(text: str, begin: str, end: str, what: Sequence[str]) -> str:
    """`text` with `what` in place of what stands between two lines; raises ValueError without them."""
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"there are no lines {begin} and {end}")
    return f"{before}{begin}\n\n" + "\n\n".join(what) + f"\n\n{end}{after}"
