"""The audit trail: one immutable, sequenced row per event, durable before a write is forwarded."""
