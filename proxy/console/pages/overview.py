"""Overview: what needs attention first, then the clusters and the agents."""

from __future__ import annotations

from proxy.console.routes import Ask, Page, Route


async def show(ask: Ask) -> Page:
    """Show the first page."""
    clusters = (await ask.api.get("/v1/clusters"))["clusters"]
    return Page("overview.html", "Overview", {"clusters": clusters})


ROUTES = (Route("GET", "/", "viewer", show, "overview"),)
