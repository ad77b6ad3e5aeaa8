from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from proxy.process.version import VERSION
from proxy.relay.metrics import Counts, Figures
from tunnel import Memory


def samples(figures: Figures) -> dict[tuple[str, str], float]:
    """By name and value of the label."""
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(str(figures))
        for sample in family.samples
    }


def test_a_relay_in_tunnel_mode_shows_its_tunnels_and_dials() -> None:
    counts = Counts()
    for status in (200, 200, 404, 0):
        counts.answers[status] += 1
    counts.dials["failed"] += 1
    shown = samples(Figures(Memory(1000), counts, True, 0.25, {"up": 2, "away": 0}, guardrails="0144c5"))
    assert (
        shown.items()
        >= {
            ("hawse_build_info", VERSION): 1,
            ("hawse_relay_api_server_up", ""): 1,
            ("hawse_relay_api_server_seconds", ""): 0.25,
            ("hawse_relay_calls_total", "200"): 2,
            ("hawse_relay_calls_total", "404"): 1,
            ("hawse_relay_calls_total", "0"): 1,
            ("hawse_relay_tunnels", "up"): 2,
            ("hawse_relay_tunnels", "away"): 0,
            ("hawse_relay_dials_total", "up"): 0,
            ("hawse_relay_dials_total", "failed"): 1,
            ("hawse_guardrails_info", "0144c5"): 1,
        }.items()
    )
    assert ("hawse_certificate_expiry_seconds", "direct") not in shown


def test_a_relay_in_direct_mode_shows_its_certificate_and_no_tunnel() -> None:
    shown = samples(Figures(Memory(1000), Counts(), False, None, expires_at=lambda: 4e9))
    assert shown["hawse_certificate_expiry_seconds", "direct"] == 4e9
    absent = ("hawse_relay_tunnels", "hawse_relay_dials_total", "hawse_relay_api_server_seconds")
    assert not [name for name, _ in shown if name in (*absent, "hawse_guardrails_info")]
