from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from proxy.hub.admin.metrics.hub import MemoryCollector
from proxy.relay.metrics import Counts, Figures
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
            text_string_to_metric_families(str(Figures(process, Counts(), True, None))),
        )
    )
    relay = [family for family in relay if family in hub]
    assert hub == relay
    used, limit = (samples for _, _, _, samples in relay)
    assert [(sample.labels, sample.value) for sample in used] == [
        ({"by": "calls"}, 300.0),
        ({"by": "tunnels"}, 20.0),
    ]
    assert [sample.value for sample in limit] == [1000.0]
