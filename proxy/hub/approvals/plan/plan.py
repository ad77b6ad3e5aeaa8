"""The plan of a call: the digest of everything that an approval is bound to. Pure."""

from __future__ import annotations

import attrs

from auth.policy.ask import Ask
from auth.requestinfo import RequestInfo


@attrs.frozen
class PlanFacts:
    """A call, but for its body."""

    agent_id: str
    cluster_id: str
    info: RequestInfo
    """Its `upgrade` says whether the headers ask for an upgrade."""
    content_types: tuple[bytes, ...]
    """The values of Content-Type, one for each header line."""
    content_encodings: tuple[bytes, ...]
    """The values of Content-Encoding."""
    now: float
    """In epoch seconds."""


@attrs.frozen
class Plan:
    """What an approval is bound to."""

    digest: str
    """The hexadecimal SHA-256. Equal digests mean equal calls."""
    exact: bool
    """False for calls whose later bytes are not seen (`ask.interactive`)."""


def plan_of(facts: PlanFacts, body: bytes, ask: Ask) -> Plan:
    """Return the plan of a call with this body; raises CannotAskError."""
    raise NotImplementedError
