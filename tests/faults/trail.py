"""The hub's record of the calls that a test makes."""

from __future__ import annotations

from tests.faults.world import FaultWorld


def closing(world: FaultWorld, subresource: str) -> dict[str, dict[str, int]]:
    """The closing event of the call of a subresource that began last.

    Those of a test before, on the same world, may come between.
    """
    *_, last = [event for event in events(world, subresource) if event["phase"] == "intent"]

    def ended() -> list[dict[str, object]]:
        return [
            event
            for event in events(world, subresource)
            if (event["eid"], event["phase"]) == (last["eid"], "complete")
        ]

    world.until(lambda: bool(ended()), "the call has its closing event")
    [event] = ended()
    return event  # type: ignore[return-value]


def events(world: FaultWorld, subresource: str) -> list[dict[str, object]]:
    return [
        event
        for event in world.audit_rows()
        if isinstance(event.get("req"), dict) and event["req"].get("subresource") == subresource
    ]
