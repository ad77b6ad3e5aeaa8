"""What alerts and dashboard name is scraped from a real hub and from its relays."""

from __future__ import annotations

from urllib.request import Request, urlopen

import pytest

from proxy.process.version import VERSION
from tests.deploy.monitoring import ONLY_POSTGRES, asked_for, missing
from tests.system.waiting import wait_until
from tests.system.world import DEADLINE_S, WAYS, World

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(120)]


def pages(world: World) -> list[str]:
    """The hub's metrics, and those of both relays."""
    admin = world.administration
    as_operator = {"Authorization": f"Bearer {admin.token}"}
    asked = [(Request(f"{admin.url}/metrics", headers=as_operator), admin.context)]
    asked += [(Request(f"http://127.0.0.1:{world.health_ports[way]}/metrics"), None) for way in WAYS]
    found = []
    for request, context in asked:
        with urlopen(request, timeout=DEADLINE_S, context=context) as answer:
            found.append(answer.read().decode())
    return found


def test_each_metric_of_alerts_and_dashboard_is_scraped(world: World) -> None:
    for way in WAYS:
        assert world.kubectl(way, "get", "pods").code == 0
    assert missing(set(asked_for()) - ONLY_POSTGRES, pages(world)) == {}


def test_denials_and_answers_are_counted(world: World) -> None:
    def count(line: str) -> float:
        lines = [each for page in pages(world) for each in page.splitlines() if each.startswith(f"{line} ")]
        return sum(float(each.rpartition(" ")[2]) for each in lines)

    answered, failed = 'hawse_relay_calls_total{status="404"}', 'hawse_events_total{kind="auth.failed"}'
    before = {line: count(line) for line in (answered, failed)}
    assert world.kubectl("tunnel", "get", "pod", "there-is-none").code == 1
    assert world.kubectl("tunnel", "--token=wrong", "get", "pods").code == 1
    wait_until(lambda: count(answered) > before[answered])
    wait_until(lambda: count(failed) > before[failed])
    assert count('hawse_relay_dials_total{result="up"}') >= 1
    assert count(f'hawse_build_info{{version="{VERSION}"}}') == 3
