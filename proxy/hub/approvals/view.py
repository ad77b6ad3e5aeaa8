"""What an approver sees of a call. It is masked before it is stored."""

from __future__ import annotations

from typing import Final

import attrs

# Stands for a value that is not shown. JSON text never is this word, so no object's value looks like it.
MASKED: Final = "hidden"
# Instead of MASKED as the value after, where there is another hidden one before.
CHANGED: Final = "changed"
# Of all texts of a view together. No person reads a longer difference.
VIEW_BYTES_MAX: Final = 256 * 1024


@attrs.frozen
class Change:
    """One difference between before and after."""

    path: str
    """As in `spec.replicas` or `spec.template.spec.containers[name=web].image`."""
    before: str | None
    """JSON of the value; None where there was none, and MASKED for a value that is not shown."""
    after: str | None
    """The same; CHANGED for a value that is not shown, where another one was."""


@attrs.frozen
class View:
    """The preview of a call."""

    summary: str = ""
    """One sentence: `deletes Deployment web, at least 6 pods`."""
    flags: tuple[str, ...] = ()
    """Effects that deserve attention, from a closed list: `runs privileged`, `scales to 0`."""
    changes: tuple[Change, ...] = ()
    left_out: tuple[str, ...] = ()
    """Paths that differed between two dry runs: generated names, allocated ports."""
    notes: tuple[str, ...] = ()
    """The limits of the preview: `not tried out: this API may not honour dryRun`."""
    body: str = ""
    """The masked body, where there is no difference to show."""
    too_large: bool = False
    """The difference exceeds VIEW_BYTES_MAX, so it cannot be approved."""
    claimed_reason: str = ""
    """The reason that the agent states for the call that asked first. Nothing verifies it."""
