"""What the pages of agents, clusters and teams show."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import attrs

from proxy.console.base.api import Answer
from proxy.console.base.templating import lasting, number, size
from proxy.console.views.listing import filters_of

# One name and one of Kubernetes' labels, as `hawse admin cluster add` takes them.
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_LABEL = re.compile(r"[A-Za-z0-9./_-]+=[A-Za-z0-9._-]*")
# A relay pings each 15 s or so. Without a word for longer, its tunnel is about to be given up.
SILENT_S = 90.0

STATE_TONES = {"active": "ok", "locked": "warn", "retired": ""}


@attrs.frozen
class State:
    """A word for a state, and its colour."""

    text: str
    tone: str


def state_of_agent(agent: Answer) -> State:
    """Word an agent's state."""
    return State(agent["state"], STATE_TONES.get(agent["state"], ""))


# What people compare first; `limits` in the hub's configuration has the others.
_LIMITS = (
    ("streams_per_agent", "calls at once", number),
    ("requests_per_second", "calls a second", number),
    ("bytes_per_minute", "a minute, both ways", size),
    ("stream_age_s", "for one call", lasting),
    ("tokens_per_minute", "tokens a minute", number),
    ("audit_bytes_per_second", "of the trail a second", size),
)


def limits_of(agent: Answer) -> list[str]:
    """Word an agent's limits."""
    return [
        f"{word(value)} {what}" if (value := agent["limits"][key]) else f"no limit: {what}"
        for key, what, word in _LIMITS
    ]


def state_of_cluster(cluster: Answer) -> State:
    """Word whether a cluster can be reached."""
    if cluster["relays"]:
        return State("online", "ok")
    return State("offline", "bad") if cluster.get("last_seen_at") else State("never connected", "warn")


def state_of_key(key: Answer) -> State:
    """Word whether a key is accepted."""
    return State("revoked", "") if key["revoked_at"] else State("valid", "ok")


@attrs.frozen
class RelayRow:
    """A relay of a cluster."""

    instance: str
    state: State
    hub: str
    version: str
    address: str
    last_seen_at: str | None
    rtt_ms: float | None
    streams: int | None
    key: str
    api_server: State


def relay_row(relay: Mapping[str, Any], now: float) -> RelayRow:
    """Make a row of a relay of the API."""
    return RelayRow(
        instance=relay["instance"],
        state=_state_of_relay(relay, now),
        hub=relay["hub"],
        version=relay["version"],
        address=relay["address"],
        last_seen_at=relay["last_seen_at"],
        rtt_ms=relay["rtt_ms"],
        streams=relay["streams"],
        key=relay["key"],
        api_server={"up": State("answers", "ok"), "down": State("does not answer", "bad")}.get(
            relay["api_server"] or "", State("–", "")
        ),
    )


def _state_of_relay(relay: Mapping[str, Any], now: float) -> State:
    if not relay["connected"]:
        return State("gone", "")
    if relay["leaving"]:
        return State("draining", "warn")
    seen = relay["last_seen_at"]
    if seen is not None and now - datetime.fromisoformat(seen).timestamp() > SILENT_S:
        return State("silent", "warn")
    return State("connected", "ok")


def rbac_command(cluster: str) -> str:
    """Return the command that applies the relay's ClusterRole."""
    name = shlex.quote(cluster)
    return f"hawse admin cluster rbac {name} | kubectl --context {name} apply -f -"


# -- the enrolment of a cluster


@attrs.frozen
class Enrolment:
    """A cluster that is about to be added, as the form describes it."""

    name: str = ""
    teams: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    mode: str = "tunnel"
    relay_url: str = ""
    image: str = ""

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Enrolment:
        """Read the form. Teams and labels are separated by commas or spaces."""
        values = filters_of(query, ("name", "teams", "labels", "mode", "relay_url", "image"))
        return cls(
            values["name"],
            tuple(re.findall(r"[^\s,]+", values["teams"])),
            tuple(re.findall(r"[^\s,]+", values["labels"])),
            "direct" if values["mode"] == "direct" else "tunnel",
            values["relay_url"],
            values["image"],
        )

    @property
    def faults(self) -> dict[str, str]:
        """What is wrong with each field; the command line checks the rest."""
        found = {}
        if not _NAME.fullmatch(self.name):
            found["name"] = "A name has 1 to 63 of a-z, 0-9 and '-'."
        for team in self.teams:
            if not _NAME.fullmatch(team):
                found["teams"] = "Names of teams, separated by spaces."
        for label in self.labels:
            if not _LABEL.fullmatch(label):
                found["labels"] = "Labels as key=value, separated by spaces."
        if self.mode == "direct" and not self.relay_url.startswith("https://"):
            found["relay_url"] = "The hub dials the relay at an https:// address."
        return found

    @property
    def command(self) -> str:
        """The command that adds the cluster and applies its relay's manifests.

        The relay's private key goes through this pipe, and never through a browser.
        """
        parts = ["hawse admin cluster add", shlex.quote(self.name)]
        parts += [f"--team {shlex.quote(team)}" for team in self.teams]
        parts += [f"--label {shlex.quote(label)}" for label in self.labels]
        if self.mode == "direct":
            parts += ["--mode direct", f"--relay-url {shlex.quote(self.relay_url)}"]
        if self.image:
            parts.append(f"--image {shlex.quote(self.image)}")
        applied = f"| kubectl --context {shlex.quote(self.name)} apply -f -"
        return " ".join(parts) + f" \\\n  {applied}"


@attrs.frozen
class Step:
    """A step of an enrolment."""

    id: str
    title: str
    text: str
    state: State
    at: str | None = None


def enrolment_steps(cluster: Answer | None, relays: Sequence[Mapping[str, Any]]) -> list[Step]:
    """Return how far a cluster has come: added, its relay connected, its API server reached."""
    waiting, done, next_ = State("waiting", ""), State("done", "ok"), State("waiting", "info")
    connected = [relay for relay in relays if relay["connected"]]
    reached = [relay for relay in connected if relay["api_server"] != "down"]
    first = min((relay["connected_at"] for relay in connected), default=None)
    answers = waiting
    if connected:
        answers = done if reached else State("does not answer", "bad")
    return [
        Step(
            "added",
            "The cluster is added",
            "by the command above, on a machine with hawse admin and kubectl",
            done if cluster is not None else next_,
            cluster["created_at"] if cluster is not None else None,
        ),
        Step(
            "connected",
            "Its relay is connected",
            connected[0]["instance"] if connected else "once its pod runs and reaches the hub",
            done if connected else (next_ if cluster is not None else waiting),
            first,
        ),
        Step(
            "reached",
            "Its API server answers",
            "agents of the granted teams may use the cluster now"
            if answers is done
            else "the relay asks it by itself",
            answers,
        ),
    ]
