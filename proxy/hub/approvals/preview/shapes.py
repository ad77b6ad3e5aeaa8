"""The results of a preview."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs

from proxy.hub.approvals.preview.values import NotReadable, parse_json, text_at
from proxy.hub.approvals.view import View

# A Status has a few hundred bytes.
_STATUS_BYTES_MAX: Final = 8 * 1024


@attrs.frozen
class Preview:
    """What a call would do."""

    effect: str
    """As `effect.Effect` writes it. It has a salt, so it belongs neither in the trail nor in an answer."""
    view: View
    """Masked already."""


@attrs.frozen
class PreviewRefused:
    """The agent's answer, where the preview shows that the call must not or cannot be made.

    No request is opened, and a grant is not used. The API server has not carried out the call.
    """

    status: int
    message: str
    reason: str = ""
    """As in a Status, if it is not the status's usual one: `AlreadyExists`."""
    details: Mapping[str, object] | None = None
    """For programs of the agent, as in a Status."""
    guardrail: str = ""
    """The relay's guardrail that denied it; for `LiveCall.guardrail`."""
    note: str = ""
    """For the trail, if the message is an API server's, which may quote the body."""


def refusal_of(status: int, body: bytes) -> PreviewRefused:
    """Return the refusal that a Status says. The words of any other body are not known to be for an agent."""
    try:
        said = parse_json(body) if len(body) <= _STATUS_BYTES_MAX else None
    except NotReadable:
        said = None
    message = text_at(said, "message")
    if text_at(said, "kind") != "Status" or not message:
        return PreviewRefused(status, f"the API server refuses the request with {status}")
    assert isinstance(said, dict), "it has a message"
    details = said.get("details")
    return PreviewRefused(
        status,
        message,
        text_at(said, "reason"),
        details if isinstance(details, dict) else None,
        note=f"the API server refuses what the call would do with {status}",
    )
