from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from proxy.hub.admin.metrics.hub import MemoryCollector
from proxy.relay.metrics import metrics_text
from tunnel import Memory


def test_hub_and_relay_tell_the_same_and_the_parts_are_the_whole() -> None:
    process = Memory(1000)
    process.charge_outside(300)
    Memory(500, parent=process).charge(20)
    registry = CollectorRegistry()
    registry.register(MemoryCollector(process))
    hub, relay = (
        [(family.name, family.documentation, family.type, family.samples) for family in told]
        for told in (
            text_string_to_metric_families(generate_latest(registry).decode()),
            text_string_to_metric_families(metrics_text(process, True, {"up": 2, "away": 0})),
        )
    )
    relay, others = [family for family in relay if family in hub], [each for each in relay if each not in hub]
    assert hub == relay
    assert [(name, [sample.value for sample in samples]) for name, _, _, samples in others] == [
        ("hawse_relay_api_server_up", [1.0]),
        ("hawse_relay_tunnels", [2.0, 0.0]),
    ]
    used, limit = (samples for _, _, _, samples in relay)
    assert [(sample.labels, sample.value) for sample in used] == [
        ({"by": "calls"}, 300.0),
        ({"by": "tunnels"}, 20.0),
    ]
    assert [sample.value for sample in limit] == [1000.0]
