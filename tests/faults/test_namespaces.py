"""Relays on a machine of their own, whose cable is pulled, and which come back as somebody else."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.faults.clients import ExecEcho, LogsFollow, Verdict, report
from tests.faults.egress import open_egress
from tests.faults.figures import note
from tests.faults.namespace import Site, open_site
from tests.faults.world import FaultWorld, running_faults
from tests.system.world import POD

pytestmark = [
    pytest.mark.kubectl,
    pytest.mark.timeout(180),
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("ip") is None,
        reason="network namespaces need root and iproute2: run `make test` as root to have these as well",
    ),
]

AWAY_S = 20.0
# Found dead after 15 s, and dialled every 1 to 2 s from then on.
BACK_WITHIN_S = 25.0


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with open_site() as opened:
        yield opened


@pytest.fixture(scope="module")
def remote(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultWorld]:
    """A world whose relays are on the site."""
    with running_faults(tmp_path_factory.mktemp("remote"), site=site) as running:
        yield running


def comebacks(world: FaultWorld) -> int:
    return len(world.relay_says("is back, session"))


def pull_and_plug(world: FaultWorld, site: Site, *, away_s: float, address: int) -> None:
    """Under a live exec and a log, which go on; new calls work again as well."""
    works = [ExecEcho(world, 1), LogsFollow(world, 1, pause_s=0.05)]
    with ExitStack() as stack:
        for work in works:
            stack.enter_context(work)
        before, began = comebacks(world), time.monotonic()
        site.unplug()
        try:
            world.until(lambda: time.monotonic() - began >= away_s, "the time is over", away_s + 5)
        finally:
            site.plug(address)
        plugged = time.monotonic()
        if address or away_s > 15:
            world.until(lambda: comebacks(world) > before, "the relay is back", BACK_WITHIN_S)
        world.until(lambda: world.kubectl("tunnel", "get", "pods").code == 0, "calls work", BACK_WITHIN_S)
        note(
            "the cable of a relay is pulled, under exec and logs",
            f"{away_s:.0f} s" + (", and it has another address" if address else ""),
            works_again_s=round(time.monotonic() - plugged, 1),
        )
    judgements = [work.judgement for work in works]
    assert {judgement.verdict for judgement in judgements} == {Verdict.WHOLE}, report(judgements)


@pytest.fixture
def at_home(remote: FaultWorld, site: Site) -> Iterator[FaultWorld]:
    """The site with its first address, and its relay there."""
    yield remote
    # Ended while it can still say so.
    relay = remote.relays.pop("relay-0")
    relay.process.kill()
    relay.process.wait()
    remote.until(lambda: remote.connected() == [], "the hub has seen it go")
    site.plug()
    remote.connect_relay()


def test_a_relay_that_roams_goes_on_under_another_address(at_home: FaultWorld, site: Site) -> None:
    """The old connection dies without a word: its address is nobody's any more."""
    pull_and_plug(at_home, site, away_s=0.5, address=1)
    rows = [row for row in at_home.relay_rows() if row["connected"]]
    assert [str(row["address"]) for row in rows] == [site.to_hub.address(3)]
    assert len(at_home.relay_says("is up, session")) == 1


@pytest.mark.long
@pytest.mark.parametrize("address", [0, 1], ids=["same-address", "another-address"])
def test_an_exec_outlives_a_cable_that_is_out_for_a_while(
    at_home: FaultWorld, site: Site, address: int
) -> None:
    pull_and_plug(at_home, site, away_s=AWAY_S, address=address)


@pytest.mark.parametrize("listed", [True, False], ids=["listed", "not-listed"])
def test_a_network_of_no_proxy_is_reached_without_the_proxy(
    at_home: FaultWorld, site: Site, listed: bool
) -> None:
    world = at_home
    no_proxy = f"10.0.0.0/8,{site.to_hub.network if listed else '192.0.2.0/24'}"
    with open_egress({site.hub: "127.0.0.1"}, password="s3cret", listen=site.hub) as egress:
        environment = {"HTTPS_PROXY": egress.url(address=site.hub), "NO_PROXY": no_proxy}
        world.connect_relay("proxied", environment=environment)
        assert egress.asked == ([] if listed else [f"{site.hub}:{world.hub_listen}"])
        assert POD.encode() in world.run("get", "pods")
        relay = world.relays.pop("proxied")
        relay.process.terminate()
        relay.process.wait(20)
