"""The plan of a call: the digest of everything that an approval is bound to. Pure.

Two calls have one plan only if the API server does the same for both. So the digest covers bytes, not their
meaning: in a canonical JSON, 9007199254740992 and 9007199254740993 would be one number. The time in the body
of `kubectl rollout restart` is the one exception.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from typing import Final

import attrs

from auth.policy.ask import Ask
from auth.requestinfo import RequestInfo
from proxy.hub.approvals.plan.bindable import check_bindable, is_pod_stream
from proxy.hub.approvals.plan.json_body import check_body
from proxy.hub.approvals.plan.query import bound_query
from proxy.hub.approvals.plan.restart import is_restart
from proxy.message.rewrite import is_tail

# Changes with the fields below, so that a stored plan never equals one of other fields.
_FORMAT: Final = b"hawse plan 1"
# A method is never empty.
_STREAM: Final = b""
_STREAM_METHODS: Final = frozenset({"GET", "POST"})


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
    """Return the plan of a call with this body; raises CannotAskError.

    Checking 1 MiB of JSON takes some 30 ms: see `BodyBudget.plan`.
    """
    exact = check_bindable(facts.info, ask)
    if not is_tail(facts.info):
        check_body(facts.content_types, facts.content_encodings, body)
    return Plan(digest_of(facts, body), exact)


def digest_of(facts: PlanFacts, body: bytes) -> str:
    """Return the digest of a plan."""
    info = facts.info
    # A client may retry by SPDY (POST) what it has tried by WebSocket (GET).
    either = info.upgrade and is_pod_stream(info) and info.method in _STREAM_METHODS
    method = _STREAM if either else info.method.encode()
    restart = is_restart(info, facts.content_types, body, facts.now)
    fields = (
        _FORMAT,
        facts.agent_id.encode(),
        facts.cluster_id.encode(),
        method,
        b"upgrade" if info.upgrade else b"",
        info.raw_path,
        _framed(bound_query(info)),
        _framed(facts.content_types),
        _framed(facts.content_encodings),
        b"restart" if restart else b"body",
        b"" if restart else body,
    )
    return sha256(_framed(fields)).hexdigest()


def _framed(fields: Iterable[bytes]) -> bytes:
    """Join fields so that no two lists of fields have the same bytes."""
    return b"".join([len(field).to_bytes(8, "big") + field for field in fields])
