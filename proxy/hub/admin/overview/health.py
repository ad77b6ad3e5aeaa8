"""The facts that one hub alone knows, for its own overview and for those of the other hubs."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import attrs
import trio

from proxy.hub.admin.overview.fleet import shortest
from proxy.hub.admin.overview.shapes import Attention, HubFacts
from proxy.hub.relays.operations import RelayInfo
from proxy.process.certificates import remarks_on

# How late a renewed certificate may be noticed.
CERTIFICATE_READ_EVERY_S = 60.0


class Hub(Protocol):
    """The parts of a running hub that its facts come from."""

    @property
    def calls(self) -> Mapping[str, int]:
        """The calls under way by cluster."""
        ...

    @property
    def relays(self) -> Sequence[RelayInfo]:
        """The relays that are connected here."""
        ...

    @property
    def lacks_rights(self) -> Mapping[str, float]:
        """Clusters whose relay was refused an impersonation, and when (epoch seconds)."""
        ...

    def troubles(self) -> Iterator[Attention]:
        """What is wrong with the hub itself."""
        ...


Facts = Callable[[], Awaitable[HubFacts]]


@attrs.frozen
class NoFacts:
    """A hub that has no calls and no relays, for tests of other parts."""

    async def __call__(self) -> HubFacts:
        """Return no facts."""
        await trio.lowlevel.checkpoint()
        return HubFacts()


@attrs.define(eq=False)
class OwnFacts:
    """The facts of this hub."""

    hub: Hub
    certificate: Path | None
    """The operator's certificate; None for one that the hub renews itself."""
    _remarks: tuple[str, ...] = ()
    _read_at: float = -math.inf

    async def __call__(self) -> HubFacts:
        """Return the facts of this moment."""
        await self._read_certificate()
        hub, relays = self.hub, self.hub.relays
        troubles = [*hub.troubles(), *self._of_certificate()]
        return HubFacts(
            calls=dict(hub.calls),
            rtt_ms=dict(shortest(relays)),
            api_down=sorted(_without_api(relays)),
            lacks_rights=dict(hub.lacks_rights),
            troubles=troubles,
        )

    async def _read_certificate(self) -> None:
        if self.certificate is None or trio.current_time() < self._read_at + CERTIFICATE_READ_EVERY_S:
            return
        self._read_at = trio.current_time()
        self._remarks = await trio.to_thread.run_sync(_remarks, self.certificate)

    def _of_certificate(self) -> Iterator[Attention]:
        for remark in self._remarks:
            yield Attention("certificate", "warning", "hub", "", f"the hub's certificate: {remark}")


def _without_api(relays: Sequence[RelayInfo]) -> set[str]:
    """Return the clusters of which each relay says that the API server does not answer."""
    says = Counter(relay.cluster for relay in relays if not relay.leaving)
    down = Counter(
        relay.cluster for relay in relays if not relay.leaving and relay.statement.api_server is False
    )
    return {cluster for cluster, count in down.items() if count == says[cluster]}


def _remarks(certificate: Path) -> tuple[str, ...]:
    try:
        pem = certificate.read_bytes()
    except OSError as error:
        return (f"{certificate} cannot be read: {error.strerror}",)
    return tuple(remark.text for remark in remarks_on(pem, datetime.fromtimestamp(time.time(), UTC)))
