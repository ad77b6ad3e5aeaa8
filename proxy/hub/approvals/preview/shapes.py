"""The results of a preview."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from proxy.hub.approvals.view import View


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
    details: Mapping[str, object] | None = None
    """For programs of the agent, as in a Status."""
    guardrail: str = ""
    """The relay's guardrail that denied it; for `LiveCall.guardrail`."""
