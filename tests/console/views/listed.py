"""Events as the API lists them, for tests of the views."""

from __future__ import annotations

from typing import Any

EID = "0199a1b2-4c5d-7e6f-8a9b-0c1d2e3f4a5b"


def listed(**changed: Any) -> dict[str, Any]:
    """Return the row of an agent's call."""
    row = {
        "number": "17",
        "eid": EID,
        "time": "2026-12-01T15:00:00.123Z",
        "kind": "call",
        "phase": "complete",
        "actor": "agent:builder",
        "agent": "builder",
        "cluster": "prod",
        "request": "get pods -n app",
        "result": "200",
        "took": "12ms",
        "ending": "",
        "why": "",
        "count": 1,
        "event": {"decision": {"effect": "allow"}},
    }
    return {**row, **changed}
