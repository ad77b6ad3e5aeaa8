"""The hub's key changes: what a relay then takes for the hub's word, in both modes (C34)."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path

import pytest

from auth.key_rotation import issue_rotation
from auth.keys import SigningKey
from proxy.message.failure import Processed, StreamCode
from tests.proxy.relay.apiserver import OK, Connection, running
from tests.proxy.relay.ways import HUB, KEY, inner, open_way, token

pytestmark = pytest.mark.parametrize("mode", ["tunnel", "direct"])


async def answer_ok(connection: Connection) -> None:
    while await connection.request():
        await connection.send(OK)


def statement(old: SigningKey, new: SigningKey, *, overlap_s: float = 120) -> str:
    now = time.time()
    return issue_rotation(old, issuer=HUB, successor=new.public, now=now, retires_at=now + overlap_s)


async def test_a_key_that_the_pinned_one_announced_is_the_hubs(mode: str, tmp_path: Path) -> None:
    keys = [KEY, *(SigningKey.generate() for _ in range(3))]
    async with running(answer_ok, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        for old, new in pairwise(keys):
            way.announce(statement(old, new))
        for key in keys:
            assert (await way.ask(inner(), token=token(key=key))).status == 200


async def test_a_key_that_nobody_announced_is_not(
    mode: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stranger, evil = SigningKey.generate(), SigningKey.generate()
    async with running(answer_ok, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        # Said over the hub's own line, since a hub may be taken: by a key of its own, and by none.
        way.announce(statement(stranger, evil))
        way.announce("not-a-statement")
        for key in (stranger, evil):
            answer = await way.ask(inner(), token=token(key=key))
            assert answer.failure is not None
            assert answer.failure.code is StreamCode.UNAUTHENTICATED
            assert answer.failure.processed is Processed.NO
        assert server.received == b""
        # Its owner is told, since somebody may have the hub.
        assert "a change of the hub's signing key is not trusted: " in caplog.text
        # And the key that is pinned stays good.
        assert (await way.ask(inner())).status == 200


async def test_an_old_key_is_refused_once_its_time_is_over(mode: str, tmp_path: Path) -> None:
    new = SigningKey.generate()
    async with running(answer_ok, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        way.announce(statement(KEY, new, overlap_s=-1))
        assert (await way.ask(inner(), token=token(key=new))).status == 200
        answer = await way.ask(inner(), token=token(key=KEY))
        assert answer.failure is not None
        assert answer.failure.code is StreamCode.UNAUTHENTICATED
        assert answer.failure.processed is Processed.NO
