from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.proxy.hub.approvals.plan.calls import DEPLOYMENT, JSON, NOW, Asked

TYPE = (b"application/strategic-merge-patch+json",)
DAY = 24 * 3600


def body_of(time: str) -> bytes:
    """The body that kubectl 1.32 and 1.37 send."""
    before = b'{"spec":{"template":{"metadata":{"annotations":{"kubectl.kubernetes.io/restartedAt":"'
    return before + time.encode() + b'"}}}}}'


def restart(time: str = "2026-05-28T20:26:40Z", **changes) -> Asked:
    asked = Asked(b"PATCH", DEPLOYMENT + b"?fieldManager=kubectl-rollout", types=TYPE, body=body_of(time))
    return attrs.evolve(asked, **changes)


def at(seconds: float, hours: float = 0) -> str:
    """Go's RFC 3339 of a time after NOW, in a time zone this far from UTC."""
    time = datetime.fromtimestamp(NOW + seconds, timezone(timedelta(hours=hours)))
    return time.isoformat(timespec="seconds").replace("+00:00", "Z")


@settings(max_examples=1000)
@given(st.integers(-DAY, DAY), st.sampled_from([0, 2, -8, 5.75, 14]))
def test_the_time_of_a_restart_does_not_change_the_plan(seconds, hours):
    assert restart(at(seconds, hours)).plan() == restart(at(0)).plan()


@given(st.one_of(st.integers(DAY + 1, 10**9), st.integers(-(10**9), -DAY - 1)))
def test_a_time_far_from_now_is_bound(seconds):
    assert restart(at(seconds)).plan() != restart(at(0)).plan()


def test_now_moves():
    later = restart(at(DAY + 1), now=NOW + DAY + 1)
    assert later.plan() == restart(at(0)).plan()


@pytest.mark.parametrize(
    "body",
    [
        body_of("2026-05-28T20:26:40Z").replace(b'"spec"', b' "spec"'),
        body_of("2026-05-28T20:26:40Z") + b"\n",
        body_of("2026-05-28T20:26:40Z").replace(b"restartedAt", b"restartedat"),
        body_of('2026-05-28T20:26:40Z","x":"'),
        body_of("2026-05-28T20:26:40.5Z"),
        body_of("2026-05-28 20:26:40Z"),
        body_of("2026-05-28T20:26:40"),
        body_of("2026-13-28T20:26:40Z"),
        body_of("2026-05-28T20:26:40+99:00"),
        body_of("0001-01-01T00:00:00+23:59"),
        body_of("restart"),
        body_of(""),
        b"",
    ],
)
def test_another_body_is_bound(body):
    with_body = restart(body=body)
    assert with_body.plan() != restart().plan()
    assert with_body.plan() != restart(body=body_of("2026-05-28T20:26:41Z")).plan()


@pytest.mark.parametrize(
    "changes",
    [
        {"method": b"PUT"},
        {"types": JSON},
        {"types": (b"application/strategic-merge-patch+json; charset=utf-8",)},
        {"target": DEPLOYMENT + b"/status"},
        {"target": b"/apis/example.com/v1/namespaces/shop/deployments/web"},
        {"target": b"/apis/apps/v1/namespaces/shop/replicasets/web"},
    ],
)
def test_elsewhere_the_time_is_bound(changes):
    one, two = (restart(at(seconds), **changes).plan() for seconds in (0, 1))
    assert one != two


def test_what_is_restarted_is_bound():
    plans = {
        restart(target=b"/apis/apps/v1/namespaces/%b" % path).plan()
        for path in (
            b"shop/deployments/web",
            b"shop/deployments/api",
            b"shop/daemonsets/web",
            b"x/deployments/web",
        )
    }
    assert len(plans) == 4
    assert datetime.fromtimestamp(NOW, UTC).isoformat() == "2026-05-28T20:26:40+00:00"
