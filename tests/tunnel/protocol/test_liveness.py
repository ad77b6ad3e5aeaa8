from __future__ import annotations

import math

from tunnel.protocol.liveness import Liveness, RateLimit


def test_a_ping_is_due_at_once_at_first_then_every_30_s_or_5_s_with_streams() -> None:
    liveness = Liveness()
    assert liveness.ping_at(busy=False) == -math.inf
    liveness.pinged(100.0)
    assert liveness.ping_at(busy=False) == 130.0
    assert liveness.ping_at(busy=True) == 105.0


def test_dead_ten_seconds_after_the_oldest_unanswered_ping() -> None:
    liveness = Liveness()
    assert liveness.dead_at == math.inf
    liveness.pinged(100.0)
    liveness.pinged(105.0)
    assert liveness.dead_at == 110.0


def test_any_received_byte_is_a_sign_of_life() -> None:
    liveness = Liveness()
    liveness.pinged(100.0)
    liveness.received(109.9)
    assert liveness.dead_at == math.inf
    liveness.pinged(112.0)
    assert liveness.dead_at == 122.0


def test_ten_in_a_second_and_no_more() -> None:
    limit = RateLimit(10.0)
    assert [limit.allows(5.0) for _ in range(11)] == [True] * 10 + [False]
    assert limit.allows(5.11)
    assert not limit.allows(5.11)
    assert [limit.allows(60.0) for _ in range(11)] == [True] * 10 + [False]
