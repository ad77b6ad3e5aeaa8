"""What the hub keeps of a relay in direct mode; the way of a request there is the system tests' business."""

from __future__ import annotations

import time
from unittest.mock import Mock

import pytest
import trio

from audit.ids import new_eid
from auth.keys import SigningKey
from auth.principal import Principal
from proxy.hub.contexts import RENEW_AFTER_S
from proxy.hub.datadir import SigningKeys
from proxy.hub.direct import DirectRelays

ISSUER = "https://hub.example"


async def test_a_clock_that_is_set_back_makes_no_token_young(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_800_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    key = SigningKey.generate()
    relay = Mock(cluster=Mock(id="c1"), session="s1", tokens={})
    ann = Principal("agent-1", "ann", "acme", ("sre",))
    async with trio.open_nursery() as nursery:
        relays = DirectRelays(
            keys=lambda: SigningKeys(key, (key,)),
            issuer="https://hub.example",
            new_id=new_eid,
            nursery=nursery,
        )
        first = relays._token(relay, ann, renew=False)
        now += RENEW_AFTER_S - 0.1
        assert relays._token(relay, ann, renew=False) == first
        now -= 3600
        assert relays._token(relay, ann, renew=False) != first
        nursery.cancel_scope.cancel()
