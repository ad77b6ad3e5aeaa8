from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from sandbox.balancer.backends import Backend, Backends, Policy

CLIENTS = [f"192.0.2.{number}" for number in range(60)]


def backends(policy: Policy, *ready: bool) -> Backends:
    return Backends(policy, [Backend(port, is_ready) for port, is_ready in enumerate(ready, 1)])


def test_round_robin_gives_each_backend_in_service_the_same() -> None:
    chosen = backends(Policy.ROUND_ROBIN, True, False, True)
    first = Counter(chosen.in_order("192.0.2.1")[0].port for _ in range(20))
    assert first == {1: 10, 3: 10}


def test_a_source_stays_with_its_backend_and_sources_are_spread() -> None:
    chosen = backends(Policy.SOURCE, True, True, True)
    first = {client: chosen.in_order(client)[0].port for client in CLIENTS}
    assert first == {client: chosen.in_order(client)[0].port for client in CLIENTS}
    assert set(first.values()) == {1, 2, 3}


@given(st.sampled_from(Policy), st.lists(st.booleans(), max_size=5), st.sampled_from(CLIENTS))
def test_each_backend_in_service_is_tried_once_and_no_other(
    policy: Policy, ready: list[bool], client: str
) -> None:
    tried = [backend.port for backend in backends(policy, *ready).in_order(client)]
    assert sorted(tried) == [port for port, is_ready in enumerate(ready, 1) if is_ready]
