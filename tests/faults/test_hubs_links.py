"""The links between hubs are cut, swallow everything, or work one way only, under calls that take the hop."""

from __future__ import annotations

import hashlib
import http.client
import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import attrs
import pytest

from sandbox.demo.hubs import HubProcess
from tests.fakes.apiserver import Exchange
from tests.faults.control import Way
from tests.faults.figures import note
from tests.faults.hub_on_postgres import Streams
from tests.faults.hubs import FaultyHubs, faulty_hubs, hub_rows
from tests.faults.traffic import traffic
from tests.system.hubs import hub_id

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

# One relay with one tunnel: calls at the other two hubs take the hop.
SETTINGS = "tunnels_per_relay = 1\n"
CUTS = 50
STREAMS = 10
# Below the 14 s after which a silent link is given up, and above.
SILENCES_S = (8, 25)
UPLOADS = 40
UPLOAD_BYTES = 4_000_000
CHUNK_BYTES = 64_000


@attrs.frozen
class Site:
    """The hubs, with the part of each in a forwarded call."""

    hubs: FaultyHubs
    first: HubProcess
    second: HubProcess

    def cut(self) -> None:
        """Reset the link between the two, whichever of them has dialled it."""
        for member in (self.first, self.second):
            self.hubs.peers[member.name].cut()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with faulty_hubs(tmp_path_factory.mktemp("links"), relays=("relay-0",), settings=SETTINGS) as hubs:
        tunnels = hubs.world.tunnels()
        [second] = [member for member in hubs.world.members if tunnels[member.name]]
        first = next(member for member in hubs.world.members if member is not second)
        yield Site(hubs, first, second)


def test_cuts_of_a_link_cost_no_stream_and_no_call(site: Site) -> None:
    chosen = random.Random(1)
    with ExitStack() as stack:
        streams = Streams()
        streams.open(site.hubs, STREAMS // 2, stack, site.hubs.at(site.first))
        calls = stack.enter_context(traffic(site.hubs.at(site.first), reads_per_s=50, writes_per_s=25))
        for _ in range(CUTS):
            # Also in the middle of a dial: then the next one comes a second later.
            time.sleep(chosen.uniform(0.1, 0.8))
            site.cut()
        calls.until_good(time.monotonic(), 10.0)
        calls.stop()
        assert not streams.ended
    assert not calls.failed()
    site.hubs.check_trail(calls)
    note(
        "a link between hubs is cut under calls and streams that take it",
        f"{CUTS} cuts",
        calls=len(calls.calls),
        failed=0,
        streams=STREAMS,
        ended=0,
        longest_s=round(calls.longest_s(), 2),
    )


@pytest.mark.parametrize("silent_s", SILENCES_S)
@pytest.mark.parametrize("way", [Way.BOTH, Way.UP, Way.DOWN])
def test_a_link_that_swallows_everything_is_used_again(site: Site, way: Way, silent_s: int) -> None:
    site.hubs.settle()
    links = [site.hubs.peers[member.name] for member in (site.first, site.second)]
    with ExitStack() as stack:
        streams = Streams()
        streams.open(site.hubs, STREAMS // 2, stack, site.hubs.at(site.first))
        calls = stack.enter_context(traffic(site.hubs.at(site.first), reads_per_s=25, writes_per_s=25))
        time.sleep(1)
        for link in links:
            link.stall(way)
        time.sleep(silent_s)
        for link in links:
            link.flow(way)
        back_s = calls.until_good(time.monotonic(), 30.0)
        calls.stop()
        ended = len(streams.ended)
    # Refused, not lost: the API server has seen none of them.
    failed = calls.failed()
    assert {call.status for call in failed} <= {503, 504}
    assert not ended
    site.hubs.check_trail(calls)
    note(
        "a link between hubs swallows everything",
        f"{way.value}, {silent_s} s",
        calls=len(calls.calls),
        refused=len(failed),
        streams=STREAMS,
        ended=ended,
        longest_s=round(calls.longest_s(), 2),
        serves_again_s=round(back_s, 2),
    )


def test_a_peer_address_that_cannot_be_reached_is_named_by_the_other_hub(site: Site) -> None:
    site.hubs.settle()
    ids = {member.name: hub_id(member) for member in (site.first, site.second)}
    dialled = max((site.first, site.second), key=lambda member: ids[member.name])
    [dialling] = {site.first.name, site.second.name} - {dialled.name}
    site.hubs.peers[dialled.name].refuse()
    site.cut()

    def named() -> bool:
        rows = {row["hub"]: row for row in hub_rows(site.hubs.world)}
        return ids[dialled.name] in rows[ids[dialling]]["unreachable"]  # type: ignore[operator]

    named_s = site.hubs.world.until(named, "the address is named", 60.0)
    site.hubs.peers[dialled.name].accept()
    back_s = site.hubs.settle()
    note(
        "a peer address that cannot be reached",
        named_after_s=round(named_s, 1),
        settled_after_s=round(back_s, 1),
    )


@attrs.define(eq=False)
class Uploads:
    """Bodies of unknown length, by the hop, and what became of each."""

    site: Site
    whole: int = 0
    cut: int = 0
    violations: list[str] = attrs.Factory(list)

    def one(self, number: int) -> None:
        """Upload a body; it arrives byte for byte, or both ends see that it was cut."""
        body = random.Random(number).randbytes(UPLOAD_BYTES)
        arrived: list[bytes] = []

        def collect(exchange: Exchange) -> None:
            digest = hashlib.sha256()
            while size := int(exchange.connection.take_until(b"\r\n").strip(), 16):
                digest.update(exchange.connection.take(size))
                exchange.connection.take(2)
            exchange.connection.take_until(b"\r\n")
            arrived.append(digest.digest())
            exchange.answer()

        path, _ = self.site.hubs.chain.path(collect)
        status = self._send(path, body)
        if arrived and arrived != [hashlib.sha256(body).digest()]:
            self.violations.append(f"upload {number}: another body has ended cleanly")
        if status == 200 and not arrived:
            self.violations.append(f"upload {number}: answered 200, and not arrived")
        if status == 200:
            self.whole += 1
        else:
            self.cut += 1

    def _send(self, path: str, body: bytes) -> int:
        """The answer's status; 0 where the connection was cut."""
        client = self.site.hubs.at(self.site.first)
        pieces = (body[at : at + CHUNK_BYTES] for at in range(0, len(body), CHUNK_BYTES))
        connection = http.client.HTTPSConnection(
            "127.0.0.1", client.port, timeout=60, context=client.context()
        )
        headers = {"authorization": f"Bearer {client.token()}", "content-type": "application/json"}
        try:
            connection.request("PUT", f"/clusters/{client.way}{path}", pieces, headers, encode_chunked=True)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()

    def run(self, count: int) -> None:
        for number in range(count):
            self.one(number)


def test_an_upload_over_a_link_that_is_cut_arrives_byte_for_byte(site: Site) -> None:
    site.hubs.settle()
    chosen = random.Random(2)
    uploads, cuts = Uploads(site), 0
    thread = threading.Thread(target=uploads.run, args=(UPLOADS,))
    thread.start()
    while thread.is_alive():
        # To the byte, and in the middle of a frame more often than not.
        for member in (site.first, site.second):
            way = chosen.choice((Way.UP, Way.DOWN))
            site.hubs.peers[member.name].cut(way=way, after=chosen.randrange(2 * UPLOAD_BYTES))
        cuts += 1
        thread.join(chosen.uniform(0.2, 1.0))
    note(
        "a link between hubs is cut in mid-upload",
        f"{UPLOADS} bodies of {UPLOAD_BYTES // 1_000_000} MB",
        cuts=cuts,
        whole=uploads.whole,
        cut=uploads.cut,
        ended_cleanly_but_not_whole=len(uploads.violations),
    )
    assert not uploads.violations
    assert uploads.whole


def test_an_upload_to_a_hub_that_is_killed_never_ends_cleanly(site: Site) -> None:
    """The last test of this world, whose second hub it restarts."""
    uploads = Uploads(site)
    chosen = random.Random(3)
    for number in range(5):
        site.hubs.world.wait_for_tunnels(1)
        site.hubs.settle(tunnels=1)
        tunnels = site.hubs.world.tunnels()
        [second] = [member for member in site.hubs.world.members if tunnels[member.name]]
        first = next(member for member in site.hubs.world.members if member is not second)
        uploads.site = Site(site.hubs, first, second)
        thread = threading.Thread(target=uploads.one, args=(1000 + number,))
        thread.start()
        time.sleep(chosen.uniform(0.0, 0.1))
        second.kill()
        thread.join()
        site.hubs.world.start(second)
    note(
        "the second hub is killed in mid-upload",
        "5 kills",
        whole=uploads.whole,
        cut=uploads.cut,
        ended_cleanly_but_not_whole=len(uploads.violations),
    )
    assert not uploads.violations
