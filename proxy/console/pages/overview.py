"""Overview: what needs attention first, then the clusters, the agents and the last denials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from proxy.console.base.routes import Ask, Page, Route

# More would hide the clusters, which are below, the worst first.
ATTENTION_ROWS_MAX = 8

# The worst first; the page of the clusters has all. A row has 250 bytes, so the page stays below 60 KB.
CLUSTER_ROWS_MAX = 120

TONES = {"critical": "bad", "warning": "warn", "notice": "info"}
STATES = {
    "offline": ("offline", "bad"),
    "degraded": ("degraded", "warn"),
    "new": ("waiting", "info"),
    "online": ("online", "ok"),
}
_PAGES = {"cluster": "/clusters/{}", "request": "/requests"}
# Of a subject without a name of its own.
_NAMES = {"request": "Requests"}


async def show(ask: Ask) -> Page:
    """Show the first page."""
    overview = await ask.api.get("/v1/overview")
    shown = {
        "fleet": overview,
        "attention": overview["attention"][:ATTENTION_ROWS_MAX],
        "unshown": max(0, len(overview["attention"]) - ATTENTION_ROWS_MAX),
        "clusters": worst_first(overview["clusters"])[:CLUSTER_ROWS_MAX],
        "unshown_clusters": max(0, len(overview["clusters"]) - CLUSTER_ROWS_MAX),
        "agents": sum(overview["agents"][state] for state in ("active", "locked")),
        "tones": TONES,
        "states": STATES,
        "pages": _PAGES,
        "names": _NAMES,
    }
    return Page("overview.html", "Overview", shown)


def worst_first(clusters: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Sort clusters by their state, then by name."""
    order = list(STATES)
    return sorted(clusters, key=lambda cluster: (order.index(cluster["state"]), cluster["name"]))


ROUTES = (Route("GET", "/", "viewer", show, "overview"),)
