"""Guardrails read from a file of the test."""

from __future__ import annotations

from pathlib import Path

import attrs

from proxy.relay.guarding import CHECK_S
from proxy.relay.guardrails import Guardrails

NO_SECRETS = """
kind: Policy
metadata: {name: owner, contact: "#cluster-prod"}
spec:
  bind: {teams: ["*"]}
  rules:
    - {id: no-secrets, effect: deny, verbs: ["*"], resources: [secrets], reason: they are ours,
       instead: ask for a copy}
"""


@attrs.define
class GuardrailClock:
    """The clock of guardrails, which only `advance` moves."""

    now: float = 1000.0

    def advance(self, rails: Guardrails, seconds: float = CHECK_S) -> bool:
        """Check the files after this time; whether the rules changed."""
        self.now += seconds
        return rails.look()


def guardrails(folder: Path, text: str, clock: GuardrailClock | None = None) -> Guardrails:
    """Guardrails that read `text` from a file in `folder`."""
    file = folder / "guardrails.yaml"
    file.write_text(text)
    return Guardrails(file, monotonic=lambda: clock.now if clock is not None else 0.0)
