"""Helm refuses each fault, and names its place, before anything is rendered."""

from __future__ import annotations

import itertools

from tests.deploy.charts.faults import Fault, faults
from tests.deploy.charts.helm.programs import Helm


def batches() -> list[list[Fault]]:
    """Group the faults, one for each key at the top of the values: Helm names all of a group at once."""
    by_key: dict[object, list[Fault]] = {}
    for fault in faults():
        by_key.setdefault(fault.path[0] if fault.path else None, []).append(fault)
    # Those of the values as a whole are alone.
    whole = [[fault] for fault in by_key.pop(None)]
    rows = itertools.zip_longest(*by_key.values())
    return whole + [[fault for fault in row if fault is not None] for row in rows]


def test_each_fault_is_refused_with_its_place(helm: Helm) -> None:
    missing = []
    for batch in batches():
        values = dict(batch[0].values)
        for fault in batch[1:]:
            values[str(fault.path[0])] = fault.values.get(str(fault.path[0]))
        done = helm.run("template", "prod", values=values)
        assert done.returncode == 1
        assert done.stdout == ""
        for fault in batch:
            place = f"at '{fault.pointer}':" if helm.program.name == "helm-4" else f"- {fault.dotted}:"
            if place not in done.stderr:
                missing.append((fault.name, done.stderr))
    assert missing == []
