"""The way of a request, from an agent's kubectl to the API server: one description, in two layouts."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from docs.pictures.svg import MONO, SANS, Picture, arrow, rect, spans, text

TITLE = "The way of a request through Hawse"
DESCRIPTION = (
    "On the agent's machine, kubectl gets an access token of 60 seconds from its exec plugin, and sends the "
    "request to the hub by HTTPS. The hub verifies the token, decides by grant and policy, asks a person if "
    "a rule says so, records the call, and signs a token of 60 seconds for the relay. The request then goes "
    "through a tunnel to the relay in the private network. The tunnel is one WebSocket, which the relay has "
    "dialled outwards; the network has no open port. Instead of the tunnel, the hub can call the relay by "
    "HTTPS, if the owner of the cluster exposes it. The relay verifies the token and sets impersonation "
    "headers. The API server sees user agent:builder in group acme/platform, and the cluster's RBAC decides."
)

# Parts of a line, each with its class.
Row = tuple[tuple[str, str], ...]


@attrs.frozen
class Card:
    """A box with a title and rows."""

    title: str
    rows: tuple[Row, ...]


def step(verb: str, rest: str) -> Row:
    return (("strong", verb), ("quiet", rest))


AGENT = Card(
    "Agent",
    (
        step("kubectl", "or any SDK"),
        step("Exec plugin", "a token of 60 s"),
        step("A key for the hub", "none for the cluster"),
    ),
)
HUB = Card(
    "Hub",
    (
        step("Verify", "the agent's token"),
        step("Decide", "by grant and policy"),
        step("Ask", "a person, if a rule says so"),
        step("Record", "the call in the audit trail"),
        step("Sign", "a 60 s token for the relay"),
    ),
)
RELAY = Card("Relay", (step("Verify", "the hub's token"), step("Set", "impersonation headers")))
API_SERVER = Card(
    "kube-apiserver",
    (
        (("quiet", "user"), ("code", "agent:builder")),
        (("quiet", "group"), ("code", "acme/platform")),
        step("RBAC", "decides"),
    ),
)
ZONE = (("marked", "Private network"), ("note", "no open port"))
HTTPS = "HTTPS"
DIALS = "The relay dials out"
TUNNEL = "one WebSocket, TLS"
REQUESTS = "requests"
DIRECT = ("or by HTTPS, where the", "owner exposes the relay")

STYLE = f"""
text {{ font: 14px {SANS}; fill: $text; }}
.ground {{ fill: $ground; }}
.card {{ fill: $surface; stroke: $edge; }}
.zone {{ fill: none; stroke: $accent; stroke-width: 1.5; stroke-dasharray: 1 5; stroke-linecap: round; }}
.title {{ font-size: 16px; font-weight: 650; }}
.strong {{ font-weight: 600; }}
.quiet {{ fill: $quiet; }}
.code {{ font: 13px {MONO}; font-weight: 600; }}
.note {{ fill: $quiet; font-size: 13px; }}
.middle {{ fill: $quiet; font-size: 13px; text-anchor: middle; }}
.marked {{ fill: $accent; font-size: 13px; font-weight: 600; }}
.marked-middle {{ fill: $accent; font-size: 13px; font-weight: 600; text-anchor: middle; }}
.tube {{ fill: $soft; stroke: $accent; }}
.way {{ fill: none; stroke: $text; stroke-width: 2; }}
.way-head {{ fill: $text; }}
.dial {{ fill: none; stroke: $accent; stroke-width: 2; stroke-dasharray: 5 4; }}
.dial-head {{ fill: $accent; }}
.thin {{ fill: none; stroke: $quiet; stroke-dasharray: 3 3; }}
.thin-head {{ fill: $quiet; }}
"""

LINE, ROW_GAP = 20, 8
PAD = 18
# From the top of a card to the baseline of its first row, and from that of the last one to the bottom.
HEAD, FOOT = 60, 20


def height(card: Card, *, stacked: bool = False) -> float:
    """The height of the card: each part of a row has a line of its own if `stacked`."""
    lines = sum(len(row) if stacked else 1 for row in card.rows)
    return HEAD + (lines - 1) * LINE + (len(card.rows) - 1) * ROW_GAP + FOOT


def draw(card: Card, x: float, y: float, width: float, *, stacked: bool = False) -> Iterator[str]:
    """The card with its corner at x, y."""
    yield rect(x, y, width, height(card, stacked=stacked), "card")
    yield text(x + PAD, y + 31, card.title, "title")
    baseline = y + HEAD
    for row in card.rows:
        for line in ([part] for part in row) if stacked else [row]:
            yield spans(x + PAD, baseline, line)
            baseline += LINE
        baseline += ROW_GAP


def wide() -> Picture:
    """From left to right, for a page of 700 px and more."""
    width, bottom, top, way = 944, 396, 64, 134
    agent, agent_end = 20, 206
    hub, hub_end = 268, 496
    zone, relay, relay_end = 684, 704, 908
    between = (hub_end + zone) / 2
    server = top + height(RELAY, stacked=True) + 36
    shapes = [
        rect(0, 0, width, bottom + 20, "ground", 12),
        rect(zone, 20, relay_end + relay - 2 * zone, bottom - 20, "zone", 12),
        spans(relay, 48, ZONE),
        *draw(AGENT, agent, top, agent_end - agent, stacked=True),
        *draw(HUB, hub, top, hub_end - hub, stacked=True),
        *draw(RELAY, relay, top, relay_end - relay, stacked=True),
        *draw(API_SERVER, relay, server, relay_end - relay),
        text((agent_end + hub) / 2, way - 12, HTTPS, "middle"),
        arrow((agent_end, way), (hub, way), "way"),
        text(between, way - 54, DIALS, "marked-middle"),
        arrow((relay, way - 42), (hub_end, way - 42), "dial"),
        rect(hub_end, way - 28, relay - hub_end, 42, "tube", 0),
        text(between, way - 11, REQUESTS, "middle"),
        arrow((hub_end, way), (relay, way), "way"),
        text(between, way + 32, TUNNEL, "middle"),
        arrow((hub_end, way + 62), (relay, way + 62), "thin"),
        *(text(between, way + 82 + 18 * line, part, "middle") for line, part in enumerate(DIRECT)),
        arrow(((relay + relay_end) / 2, server - 36), ((relay + relay_end) / 2, server), "way"),
    ]
    return Picture("request", TITLE, DESCRIPTION, width, bottom + 20, STYLE, tuple(shapes))


def narrow() -> Picture:
    """From top to bottom, for a phone."""
    left, width, way, notes = 28, 334, 86, 152
    hub = 20 + height(AGENT) + 52
    hub_end = hub + height(HUB)
    zone = hub_end + 124
    relay = zone + 60
    relay_end = relay + height(RELAY)
    server = relay_end + 36
    bottom = server + height(API_SERVER) + 16
    shapes = [
        rect(0, 0, 390, bottom + 12, "ground", 12),
        rect(12, zone, 366, bottom - zone, "zone", 12),
        *draw(AGENT, left, 20, width),
        *draw(HUB, left, hub, width),
        *draw(RELAY, left, relay, width),
        *draw(API_SERVER, left, server, width),
        arrow((way, hub - 52), (way, hub), "way"),
        text(way + 18, hub - 22, HTTPS, "note"),
        rect(way - 22, hub_end, 44, relay - hub_end, "tube", 0),
        arrow((way, hub_end), (way, relay), "way"),
        arrow((way + 44, relay), (way + 44, hub_end), "dial"),
        text(notes, hub_end + 30, DIALS, "marked"),
        text(notes, hub_end + 50, TUNNEL, "note"),
        arrow((left + width - 16, hub_end), (left + width - 16, relay), "thin"),
        *(text(notes, hub_end + 86 + 18 * line, part, "note") for line, part in enumerate(DIRECT)),
        *(text(notes, zone + 26 + 18 * line, part, kind) for line, (kind, part) in enumerate(ZONE)),
        arrow((way, relay_end), (way, server), "way"),
    ]
    return Picture("request-phone", TITLE, DESCRIPTION, 390, int(bottom + 12), STYLE, tuple(shapes))


def pictures() -> tuple[Picture, Picture]:
    """Both layouts."""
    return wide(), narrow()
