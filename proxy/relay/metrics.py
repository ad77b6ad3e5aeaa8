"""The relay's Prometheus metrics, in the text format 0.0.4: too few to need a library."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

import attrs

from proxy.process.memory.memory_metrics import LIMIT, LIMIT_HELP, USED, USED_HELP, used_by
from proxy.process.metrics.texts import BUILD, BUILD_HELP, EXPIRY, EXPIRY_HELP
from proxy.process.version import VERSION
from tunnel import Memory

CONTENT_TYPE = b"text/plain; version=0.0.4"

API_SERVER = "hawse_relay_api_server_up"
API_SERVER_HELP = "Whether the API server answered the last probe, by anything but a 5xx."
API_SERVER_TIME = "hawse_relay_api_server_seconds"
API_SERVER_TIME_HELP = "How long the last probe of the API server has taken, with its dial."
TUNNELS = "hawse_relay_tunnels"
TUNNELS_HELP = "Tunnels that are up, that have lost their connection, and that end with their streams."
DIALS = "hawse_relay_dials"
DIALS_HELP = "Dials of the hub for another tunnel, by result."
CALLS = "hawse_relay_calls"
CALLS_HELP = "Calls sent to the API server, by its answer (0: none)."
GUARDRAILS = "hawse_guardrails_info"
GUARDRAILS_HELP = "1, with the hash of the guardrails in force."


@attrs.define(eq=False)
class Counts:
    """What the relay has counted since its start."""

    answers: dict[int, int] = attrs.field(factory=lambda: defaultdict(int, {200: 0}))
    """Calls by the status of their answer, 0 without one."""
    dials: dict[str, int] = attrs.field(factory=lambda: dict.fromkeys(("up", "refused", "failed"), 0))


@attrs.frozen
class Figures:
    """What the relay shows. Any pod may read it, so none of it says which agent does what."""

    memory: Memory
    counts: Counts
    api_server: bool
    api_server_s: float | None
    """None before the first probe."""
    tunnels: Mapping[str, int] = attrs.Factory(dict)
    """By state; empty in direct mode."""
    guardrails: str | None = None
    """Their hash; None without guardrails."""
    expires_at: Callable[[], float] | None = None
    """When the certificate of direct mode expires; None in tunnel mode."""

    def __str__(self) -> str:
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield from _family(BUILD, BUILD_HELP, {f'{{version="{VERSION}"}}': 1})
        yield from _family(USED, USED_HELP, _by("by", used_by(self.memory)))
        yield from _family(LIMIT, LIMIT_HELP, {"": self.memory.limit_bytes})
        yield from _family(API_SERVER, API_SERVER_HELP, {"": int(self.api_server)})
        if self.api_server_s is not None:
            yield from _family(API_SERVER_TIME, API_SERVER_TIME_HELP, {"": round(self.api_server_s, 6)})
        yield from _family(CALLS, CALLS_HELP, _by("status", self.counts.answers), kind="counter")
        if self.tunnels:
            yield from _family(TUNNELS, TUNNELS_HELP, _by("state", self.tunnels))
            yield from _family(DIALS, DIALS_HELP, _by("result", self.counts.dials), kind="counter")
        if self.guardrails is not None:
            yield from _family(GUARDRAILS, GUARDRAILS_HELP, _by("hash", {self.guardrails: 1}))
        if self.expires_at is not None:
            yield from _family(EXPIRY, EXPIRY_HELP, _by("which", {"direct": self.expires_at()}))


def _by(label: str, values: Mapping[str, float] | Mapping[int, int]) -> dict[str, float]:
    return {f'{{{label}="{name}"}}': value for name, value in values.items()}


def _family(name: str, text: str, samples: Mapping[str, float], *, kind: str = "gauge") -> Iterator[str]:
    if kind == "counter":
        name += "_total"
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for labels, value in samples.items():
        yield f"{name}{labels} {value}"
