"""The names of the made-up hub, and hostile ones."""

from __future__ import annotations

TEAMS = ("platform", "payments", "search", "data", "incident-response")
CLUSTERS = ("prod-eu-1", "prod-us-1", "staging", "dev", "edge-lisbon")
AGENTS = (
    "deploy-bot",
    "oncall-helper",
    "rightsizer",
    "cost-reporter",
    "db-migrator",
    "search-indexer",
    "triage",
)
OWNERS = ("ada@example.com", "grace@example.com", "linus@example.com")
# What agents, relays and clients choose, so that every page meets it.
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "\x1b]0;owned\x07\x1b[2J",
    "safe\u202egnp.exe",
    "'; background:url(//evil.example/x)",
    "{{ 7*7 }}{% raw %}",
    "javascript:alert(1)",
    "a" * 300,
)
