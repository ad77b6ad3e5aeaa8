"""The facts that one hub has for the overview."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
import pytest
import trio
import trustme
from trio.testing import MockClock

from proxy.hub.admin.overview import health
from proxy.hub.admin.overview.health import CERTIFICATE_READ_EVERY_S, OwnFacts
from proxy.hub.admin.overview.shapes import Attention
from proxy.hub.relays.operations import RelayInfo
from proxy.kubernetes.statement import Statement


@attrs.define
class Hub:
    relays: Sequence[RelayInfo] = ()
    calls: Mapping[str, int] = attrs.Factory(dict)
    lacks_rights: Mapping[str, float] = attrs.Factory(dict)

    def troubles(self) -> Iterator[Attention]:
        yield Attention("audit-gap", "critical", "trail", "", "down")


def relay(cluster: str, rtt_ms: float | None, api: bool | None, *, leaving: bool = False) -> RelayInfo:
    now = 1_800_000_000.0
    said = Statement("", api)
    return RelayInfo(cluster, "a", "0.1.0", "192.0.2.7", now, now, rtt_ms, 0, "", said, leaving)


async def test_the_facts_are_by_cluster() -> None:
    relays = [
        relay("prod", 5.0, True),
        relay("prod", 3.0, False),
        relay("dev", 4.0, False),
        relay("dev", None, True, leaving=True),
        relay("old", None, None),
    ]
    facts = await OwnFacts(Hub(relays, {"prod": 7}, {"dev": 1.0}), None)()
    assert (facts.rtt_ms, facts.api_down) == ({"prod": 3.0, "dev": 4.0}, ["dev"])
    assert (facts.calls, facts.lacks_rights) == ({"prod": 7}, {"dev": 1.0})
    assert [each.kind for each in facts.troubles] == ["audit-gap"]


async def test_an_operators_certificate_is_read_once_a_minute(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "hub.pem"
    leaf = trustme.CA().issue_cert(
        "hub.example", not_after=datetime.fromtimestamp(time.time(), UTC) + timedelta(days=2)
    )
    leaf.cert_chain_pems[0].write_to_path(str(file))
    reads = 0
    read = health._remarks

    def counted(certificate: Path) -> tuple[str, ...]:
        nonlocal reads
        reads += 1
        return read(certificate)

    monkeypatch.setattr(health, "_remarks", counted)
    facts = OwnFacts(Hub(), file)
    for _ in range(3):
        found = (await facts()).troubles
    assert [each.kind for each in found] == ["audit-gap", "certificate"]
    assert "has not been renewed yet" in found[1].message
    assert reads == 1
    file.unlink()
    await trio.sleep(CERTIFICATE_READ_EVERY_S)
    assert "cannot be read" in (await facts()).troubles[1].message
