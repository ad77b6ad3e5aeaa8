"""Networks that swallow, half-open sockets, impatient balancers, and hubs that are somebody else."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import websockets.exceptions

from tests.faults.clients import ExecEcho, LogsFollow, Verdict, Watch, report
from tests.faults.control import Side, Way
from tests.faults.figures import note
from tests.faults.impostor import hub_certificate
from tests.faults.pipe import End
from tests.faults.silent import SilentExec
from tests.faults.wire import Enrolment, wire_relay
from tests.faults.world import BY_HAND, FaultWorld, running_faults
from tests.system.load import get
from tests.system.world import POD_PATH

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(180)]

# PROTOCOL.md, "Liveness": a PING every 5 s while a stream is open, every 30 s without, and 10 s for its
# answer. A dial follows in REDIAL_S.
PING_S = 30.0
NOTICED_S = 15.0
NOTICED_IDLE_S = 40.0
REDIAL_S = 1.0
# Of a busy machine.
LATE_S = 1.0
SLACK_S = 2.0


def seconds(world: FaultWorld, condition: Callable[[], object], what: str, within_s: float) -> float:
    """How long it takes until the condition holds."""
    began = time.monotonic()
    world.until(condition, what, within_s, every_s=0.05)
    return time.monotonic() - began


def works_again(world: FaultWorld) -> bool:
    client = world.client()
    return get(client, client.token(), POD_PATH)[0] == 200


def test_a_black_hole_under_load_is_noticed_and_nothing_is_lost(world: FaultWorld) -> None:
    """TCP stays open and nothing moves, on this connection and for good; the next dial gets through."""
    works = [ExecEcho(world, 1), LogsFollow(world, 1, pause_s=0.05), Watch(world, 1, pause_s=0.05)]
    with ExitStack() as stack:
        for work in works:
            stack.enter_context(work)
        before = world.tunnel.counts()
        world.tunnel.stall(later=False)
        noticed_s = seconds(
            world, lambda: world.tunnel.counts().opened > before.opened, "the relay dials again", 30
        )
        again_s = seconds(world, lambda: works_again(world), "requests work", 10)
        note("silent black hole under load", noticed_s=round(noticed_s, 1), works_again_s=round(again_s, 1))
        assert noticed_s < NOTICED_S + REDIAL_S
        assert again_s < SLACK_S
        # The old connection never says a word again; the streams have gone on over the new one.
        world.until(lambda: world.connected() == ["relay-0"], "the hub has one relay")
    judgements = [work.judgement for work in works]
    assert {judgement.verdict for judgement in judgements} == {Verdict.WHOLE}, report(judgements)


@pytest.mark.long
@pytest.mark.parametrize(
    "way", [Way.BOTH, Way.UP, Way.DOWN], ids=["by-whoever-is-first", "by-the-hub", "by-the-relay"]
)
def test_an_idle_black_hole_is_noticed(world: FaultWorld, way: Way) -> None:
    """Where only one end hears nothing, it is that one which has to end the connection."""
    before = world.tunnel.counts()
    world.tunnel.stall(way, later=False)
    noticed_s = seconds(
        world, lambda: world.tunnel.counts().opened > before.opened, "the relay dials again", 60
    )
    again_s = seconds(world, lambda: works_again(world), "requests work", 10)
    note("silent black hole, idle", way.value, noticed_s=round(noticed_s, 1), works_again_s=round(again_s, 1))
    assert noticed_s < NOTICED_IDLE_S + REDIAL_S
    assert again_s < SLACK_S


def test_pings_of_a_middlebox_keep_no_dead_relay(world: FaultWorld, by_hand: Enrolment) -> None:
    """It may send the WebSocket's pings, and answer ours, for a relay that is gone."""
    client = world.client(BY_HAND)
    with (
        wire_relay(by_hand, world.tunnel.port, answers_pings=False) as relay,
        client.talk(client.head("/api/v1/nodes")),
    ):
        relay.next_open()

        def ended() -> bool:
            with suppress(websockets.exceptions.ConnectionClosed):
                relay.websocket.ping()
            return relay.closed_with is not None

        noticed_s = seconds(world, ended, "the hub gives the relay up", 30)
    note("a middlebox that pings for a dead relay", noticed_s=round(noticed_s, 1))
    assert noticed_s < NOTICED_S + LATE_S


def test_a_close_among_pings_ends_the_session_at_once(world: FaultWorld, by_hand: Enrolment) -> None:
    """Who loses the one among the others takes a relay that is gone for connected."""
    masked_ping, masked_close = b"\x89\x80" + bytes(4), b"\x88\x82" + bytes(4) + (1000).to_bytes(2)
    with wire_relay(by_hand, world.tunnel.port, "closes") as relay:
        world.until(lambda: "closes" in world.connected(), "the hub has the relay")
        relay.websocket.socket.sendall(masked_ping * 20 + masked_close + masked_ping)
        relay.wait(lambda: relay.closed_with is not None, "the hub's Close", SLACK_S)
        assert relay.closed_with == 1000
        world.until(lambda: "closes" not in world.connected(), "the hub knows", SLACK_S)


def test_a_relay_that_is_back_takes_the_place_of_its_half_open_socket(world: FaultWorld) -> None:
    """The hub never hears that the old connection has ended, and must not wait for its death."""
    work = ExecEcho(world, 1)
    with work:
        before = world.tunnel.counts()
        world.tunnel.cut(End.RST, side=Side.NEAR)
        seconds(world, lambda: world.tunnel.counts().opened > before.opened, "the relay dials again", 10)
        again_s = seconds(world, lambda: works_again(world), "requests work", 10)
        assert again_s < SLACK_S
        assert world.connected() == ["relay-0"]
    assert work.judgement.verdict is Verdict.WHOLE, report([work.judgement])


def test_a_balancer_that_kills_at_an_age_hurts_nobody(world: FaultWorld) -> None:
    """Under traffic, every few seconds: more often than any balancer does."""
    works = [ExecEcho(world, 1), Watch(world, 1, pause_s=0.05)]
    world.tunnel.limit_age(2.5)
    with ExitStack() as stack:
        for work in works:
            stack.enter_context(work)
        before = world.tunnel.counts()
        world.until(lambda: world.tunnel.counts().cut >= before.cut + 3, "three connections were killed")
        world.tunnel.limit_age(None)
    judgements = [work.judgement for work in works]
    assert {judgement.verdict for judgement in judgements} == {Verdict.WHOLE}, report(judgements)


@pytest.mark.parametrize(
    ("execs", "idle_s", "for_s"),
    [(1, 8.0, 13.0), pytest.param(0, 35.0, 75.0, marks=pytest.mark.long)],
    ids=["with an exec that is silent", "with nothing"],
)
def test_a_balancer_that_drops_what_idles_finds_nothing(
    world: FaultWorld, execs: int, idle_s: float, for_s: float
) -> None:
    with ExitStack() as stack:
        silent = [stack.enter_context(SilentExec(world)) for _ in range(execs)]
        world.tunnel.limit_idle(idle_s)
        began, before = time.monotonic(), world.tunnel.counts()
        world.until(lambda: time.monotonic() - began > for_s, "the time is over", 2 * for_s, every_s=1.0)
        after = world.tunnel.counts()
        assert (after.opened, after.cut) == (before.opened, before.cut)
        for each in silent:
            each.says_again()


@pytest.mark.long
def test_an_idle_tunnel_sends_a_ping_every_30_s(tmp_path: Path) -> None:
    with running_faults(tmp_path) as world:
        began = time.monotonic()
        world.until(lambda: time.monotonic() - began > 65.0, "the time is over", 70.0, every_s=1.0)
        silence_s = world.tunnel.counts().silence_max_s
    note("silence of an idle tunnel", silence_s=round(silence_s, 1))
    assert PING_S - 1 < silence_s < PING_S + 1


@pytest.mark.parametrize(
    ("settings", "relay_environment"),
    [
        pytest.param("", {"HAWSE_RELAY_TUNNEL_PING_S": "5"}, id="by-the-relay"),
        pytest.param("[tunnel]\nping_s = 5", {}, id="by-the-hub", marks=pytest.mark.long),
    ],
)
def test_a_setting_keeps_an_idle_tunnel_through_a_balancer_that_forgets_sooner(
    settings: str, relay_environment: dict[str, str], tmp_path: Path
) -> None:
    """Either side's pings are enough, as the other one answers them."""
    with running_faults(tmp_path, settings=settings, relay_environment=relay_environment) as world:
        world.tunnel.limit_idle(7.0)
        began, before = time.monotonic(), world.tunnel.counts()
        world.until(lambda: time.monotonic() - began > 13.0, "the time is over", 20.0, every_s=1.0)
        after = world.tunnel.counts()
        assert (after.opened, after.cut) == (before.opened, before.cut)
        assert after.silence_max_s < 6.0


def test_a_balancer_that_drops_what_idles_for_a_moment_hurts_nobody(world: FaultWorld) -> None:
    """Sooner than any balancer does, and than we say anything."""
    with SilentExec(world) as silent:
        before = world.tunnel.counts()
        world.tunnel.limit_idle(1.0)
        world.until(lambda: world.tunnel.counts().cut >= before.cut + 3, "three connections were dropped")
        silent.says_again()


WRONG_ANSWERS = {
    "301": (
        b"HTTP/1.1 301 Moved\r\nLocation: https://u:pw@other.example/?token=x\r\nContent-Length: 0\r\n\r\n",
        "is 301 instead of 101, it points to https://other.example; the hub's URL must name the hub itself",
    ),
    "403": (
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
        "is 403 instead of 101; this relay is not allowed to connect",
    ),
    "407": (
        b"HTTP/1.1 407 Proxy\r\nContent-Length: 0\r\n\r\n",
        "is 407 instead of 101; a proxy on the way demands a user and a password, and HTTPS_PROXY does not "
        "name it",
    ),
    "502": (
        b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
        "is 502 instead of 101; a proxy in front of the hub does not reach it",
    ),
    "no-http": (b"SSH-2.0-OpenSSH_9.2\r\n", "what answers speaks no HTTP"),
}
# Two waits, of 10 and 20 s at most, and the dials.
TWICE_S = 40.0


def told(world: FaultWorld, lines: int) -> list[str]:
    """What the relay has warned of behind so many lines, with the dials that have failed."""
    log = world.relays["relay-0"].log.read_text().splitlines()[lines:]
    return [line for line in log if " WARNING " in line]


def wait_s(line: str) -> int:
    """How long it will wait, as it says."""
    return int(line.rpartition("the next attempt is in ")[2].removesuffix(" s"))


@pytest.mark.parametrize("kind", ["407", "no-http"])
def test_whoever_answers_in_place_of_the_hub_is_named_at_the_first_dial(world: FaultWorld, kind: str) -> None:
    """One line, and the hub is found once it answers itself."""
    answer, said = WRONG_ANSWERS[kind]
    # One that has not failed before.
    world.fresh_relay()
    lines = len(world.relays["relay-0"].log.read_text().splitlines())
    world.tunnel.answer(answer, certificate=hub_certificate(world))
    world.tunnel.cut()
    world.until(lambda: told(world, lines), "the relay says why", 10, every_s=0.05)
    world.tunnel.accept()
    [line] = told(world, lines)
    assert said in line
    world.until(lambda: works_again(world), "requests work", wait_s(line) + SLACK_S)


# No hub says these, and one that restarts may be behind them.
HUB_IS_AWAY = {"502", "no-http"}


@pytest.mark.long
@pytest.mark.parametrize("kind", sorted(HUB_IS_AWAY))
def test_what_answers_while_the_hub_is_away_is_asked_each_second_at_first(
    world: FaultWorld, kind: str
) -> None:
    answer, said = WRONG_ANSWERS[kind]
    world.fresh_relay()
    lines = len(world.relays["relay-0"].log.read_text().splitlines())
    world.tunnel.answer(answer, certificate=hub_certificate(world))
    world.tunnel.cut()
    world.until(lambda: len(told(world, lines)) == 4, "four dials have failed", 10, every_s=0.05)
    world.tunnel.accept()
    warned = told(world, lines)
    assert all(said in line for line in warned), warned
    assert [wait_s(line) <= 1 for line in warned] == [True] * 4
    again_s = seconds(world, lambda: works_again(world), "requests work", 1 + SLACK_S)
    note("wrong answers in place of the hub", kind, works_again_s=round(again_s, 1))


@pytest.mark.long
@pytest.mark.parametrize("kind", sorted(WRONG_ANSWERS.keys() - HUB_IS_AWAY))
def test_whoever_answers_in_place_of_the_hub_is_named_and_asked_less_and_less(
    world: FaultWorld, kind: str
) -> None:
    answer, said = WRONG_ANSWERS[kind]
    # One that has not failed before.
    world.fresh_relay()
    before = world.tunnel.counts().opened
    lines = len(world.relays["relay-0"].log.read_text().splitlines())
    world.tunnel.answer(answer, certificate=hub_certificate(world))
    world.tunnel.cut()
    world.until(lambda: len(told(world, lines)) == 3, "three dials have failed", TWICE_S, every_s=0.05)
    opened = world.tunnel.counts().opened - before
    world.tunnel.accept()
    # A line for each dial that has failed, and a longer wait behind each.
    warned = told(world, lines)
    assert opened == len(warned) == 3
    assert all(said in line for line in warned), warned
    assert "pw" not in "".join(warned)
    assert "token" not in "".join(warned)
    for line, least_s in zip(warned, (5, 10, 20), strict=True):
        assert least_s <= wait_s(line) <= 2 * least_s
    again_s = seconds(world, lambda: works_again(world), "requests work", wait_s(warned[-1]) + SLACK_S)
    note("wrong answers in place of the hub", kind, works_again_s=round(again_s, 1))
