"""Clocks that are wrong, and clocks that are set while everything runs.

Tokens live for 60 s, and a relay may be told the time by nobody but the hub.
"""

from __future__ import annotations

import base64
import json
import re
import ssl
import time
from collections.abc import Iterator
from email.utils import formatdate
from functools import partial
from http.client import HTTPSConnection
from pathlib import Path

import pytest

from tests.faults.clients import ExecEcho, Verdict, report
from tests.faults.impostor import hub_certificate
from tests.faults.requests import ask
from tests.faults.wire import Enrolment
from tests.faults.world import CLUSTER, FaultWorld, running_faults
from tests.system.world import AGENT, NAMESPACE, POD, TEAM, run

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(180)]

AHEAD_S = {"behind": -30, "ahead": 30, "far-behind": -420, "far-ahead": 420}
# The first wait after a dial that failed is 10 s at most.
NEXT_DIAL_S = 15.0
TOKEN_S = 60
LATER_S = 3600


@pytest.fixture(scope="module")
def timed_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultWorld]:
    folder = tmp_path_factory.mktemp("clocks")
    with running_faults(folder, settings="[limits]\nrelays_per_cluster = 8") as running:
        yield running


def dials(world: FaultWorld, instance: str = "relay-0") -> str:
    """How each dial has ended, by the relay's log.

    R: refused for its clock, X: refused otherwise, F: not answered, T: a tunnel.
    """
    ends = {"; our clock is ": "R", " 401 ": "X", "no tunnel to ": "F"}
    ends |= {" is up, session ": "T", " is back, session ": "T"}
    lines = world.relay_says(" tunnel to ", instance)
    return "".join(next((end for told, end in ends.items() if told in line), "") for line in lines)


# Of a relay that is told the time at each dial anew: mostly RTRT, and where all is slow one may fail besides.
ONE_REFUSAL_OF_EACH = re.compile(r"(R[TF]|F)*R?")


def test_a_relay_with_a_wrong_clock_is_told_the_hubs_and_connects(timed_world: FaultWorld) -> None:
    """By one refusal of each dial, at most; and all else goes by the hub's clock."""
    world = timed_world
    for name, ahead_s in AHEAD_S.items():
        world.start_relay(instance=name, clock_s=ahead_s)
    for name in AHEAD_S:
        world.until(lambda name=name: name in world.connected(), f"relay {name} is there", NEXT_DIAL_S)  # type: ignore[misc]
    relay = world.relays.pop("relay-0")
    relay.process.terminate()
    relay.process.wait(20)
    world.tunnel.cut()
    for name, ahead_s in AHEAD_S.items():
        world.until(lambda name=name: world.relay_says("is back, session", name), f"{name} is back", 10)  # type: ignore[misc]
        refusals = world.relay_says("; our clock is ", name)
        if name == "behind":
            # Its tokens are old when they come, and not too old.
            assert refusals == []
            continue
        ended = dials(world, name)
        # The first dial, and the one by which it came back.
        assert ended.count("T") >= 2
        assert ONE_REFUSAL_OF_EACH.fullmatch(ended), ended
        for refusal in refusals:
            told_s = int(refusal.partition("; our clock is ")[2].split(" ")[0])
            assert abs(told_s - abs(ahead_s)) <= 2
            assert f" s {'behind' if ahead_s < 0 else 'ahead of'} the hub's: set the one that is" in refusal
    assert world.hub is not None
    told = [line for line in world.hub.log.read_text().splitlines() if "the clock of a relay of" in line]
    assert any(" behind this hub's: set the one that is wrong" in line for line in told)
    # One after the other is the only one that is left, and has to take what comes.
    for name in AHEAD_S:
        assert ask(world)[0] == 200
        with ExecEcho(world, 1) as work:
            pass
        assert work.judgement.verdict is Verdict.WHOLE, report([work.judgement])
        relay = world.relays.pop(name)
        relay.process.terminate()
        relay.process.wait(20)
    world.connect_relay()


@pytest.mark.parametrize("ahead_s", [-420, 420], ids=["behind", "ahead"])
def test_an_agent_logs_in_and_works_by_its_own_key_whatever_its_clock(
    timed_world: FaultWorld, ahead_s: int, tmp_path: Path
) -> None:
    """The hub's is set instead, which is the same to them both."""
    world = timed_world
    home = {"HOME": str(tmp_path), "KUBECONFIG": str(tmp_path / "kubeconfig")}
    home |= {"XDG_CONFIG_HOME": str(tmp_path / "config"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    code = json.loads(world.admin("agent", "code", AGENT, "--json"))["code"]
    ca, url = str(world.folder / "hub" / "tls" / "ca.pem"), f"https://127.0.0.1:{world.tunnel.port}"
    world.set_clock(world.hub, -ahead_s)
    try:
        # It asks for the time once in a while, and the clock may just have been set by another test.
        world.until(lambda: ask(world)[0] == 200, "the relay knows")
        told = run(["hawse", "login", "--hub", url, "--ca", ca, "--code", code], home)
        assert (told.code, b"this machine's clock is 4" in told.err) == (0, True), told.err
        world.hawse("kubeconfig", "--output", home["KUBECONFIG"], environment=home)
        kubectl = ["kubectl", f"--context={CLUSTER}", f"--namespace={NAMESPACE}", "get", "pod", POD, "-oname"]
        for argv in (kubectl, kubectl, ["hawse", "connect", CLUSTER, "--", *kubectl]):
            done = run(argv, home)
            assert (done.err, done.code, done.out) == (b"", 0, f"pod/{POD}\n".encode())
    finally:
        world.set_clock(world.hub, 0)


@pytest.mark.parametrize("ahead_s", [-300, 300], ids=["back", "ahead"])
def test_a_relays_clock_that_is_set_is_nobodys_business(timed_world: FaultWorld, ahead_s: int) -> None:
    """As by ntpd, after a machine has booted with a wrong one: under a live exec and between two calls."""
    world = timed_world
    assert ask(world)[0] == 200
    with ExecEcho(world, 1) as work:
        world.set_clock(world.relays["relay-0"], ahead_s)
        try:
            assert ask(world)[0] == 200
            before, back = len(dials(world)), len(world.relay_says("is back, session"))
            world.tunnel.cut()
            world.until(lambda: len(world.relay_says("is back, session")) > back, "it is back", 10)
            ended = dials(world)[before:]
            # The dial after the refusal has come through.
            assert ONE_REFUSAL_OF_EACH.fullmatch(ended), ended
            assert ask(world)[0] == 200
        finally:
            world.set_clock(world.relays["relay-0"], 0)
        assert ask(world)[0] == 200
    assert work.judgement.verdict is Verdict.WHOLE, report([work.judgement])


def test_a_relay_whose_clock_is_set_an_hour_off_leaves_its_calls_to_a_sibling(
    timed_world: FaultWorld,
) -> None:
    """It refuses each request, and so is always the one with the fewest calls."""
    world = timed_world
    world.start_relay(instance="sibling")
    world.until(lambda: "sibling" in world.connected(), "the sibling is there", NEXT_DIAL_S)
    world.set_clock(world.relays["relay-0"], LATER_S)
    try:
        assert [ask(world)[0] for _ in range(6)] == [200] * 6
        assert world.relay_says("s behind this relay's, more than the 900 s"), "it was asked"
        assert set(world.connected()) >= {"relay-0", "sibling"}
    finally:
        world.set_clock(world.relays["relay-0"], 0)
        sibling = world.relays.pop("sibling")
        sibling.process.terminate()
        sibling.process.wait(20)
    assert ask(world)[0] == 200


def status_of_a_dial(world: FaultWorld, token: str) -> int:
    """What the hub answers to a relay's upgrade."""
    context = ssl.create_default_context(cafile=str(world.folder / "hub" / "tls" / "ca.pem"))
    connection = HTTPSConnection("127.0.0.1", world.hub_listen, context=context, timeout=10)
    headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Authorization": f"Bearer {token}"}
    headers |= {"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode()}
    headers |= {"Sec-WebSocket-Protocol": "hawse.v1"}
    try:
        connection.request("GET", "/v1/tunnel", headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


def claims_of(token: str) -> dict[str, object]:
    segment = token.split(".")[1]
    claims: dict[str, object] = json.loads(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))
    return claims


def heads_of(world: FaultWorld, dials: int) -> list[str]:
    """What the relay has asked of whoever stands in the way; nothing before it has dialled so often."""
    heads = world.tunnel.counts().heads
    return heads if len(heads) >= dials else []


def test_who_stands_in_the_hubs_place_for_a_while_gathers_no_hello_that_is_good_later(
    timed_world: FaultWorld,
) -> None:
    """It has the hub's own certificate, and names a time to come: as the Date, and as if by the hub."""
    world = timed_world
    later = int(time.time()) + LATER_S
    date, made_up = formatdate(later, usegmt=True), f"{later}.{'0' * 64}"
    refusal = f"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nDate: {date}\r\n"
    gathered: list[str] = []
    for answer, dials in ((refusal, 1), (f"{refusal}Hawse-Hub-Time: {made_up}\r\n", 2)):
        # One that has not failed before.
        world.fresh_relay()
        world.tunnel.answer(f"{answer}\r\n".encode(), certificate=hub_certificate(world))
        world.tunnel.cut()
        heads = world.until(partial(heads_of, world, dials), "the relay has dialled")
        world.tunnel.accept()
        gathered += [re.findall(r"(?i)\r\nauthorization: bearer (\S+)", head)[0] for head in heads]
    told = [claims["iat"] for claims in map(claims_of, gathered) if claims.get("hub_time") == made_up]
    assert set(told) == {later}
    # None goes by the Date, nor by a time without saying whose.
    own = [claims["iat"] for claims in map(claims_of, gathered) if "hub_time" not in claims]
    assert len(own) + len(told) == len(gathered)
    assert all(abs(float(str(at)) - time.time()) < 60 for at in own)
    enrolment = Enrolment.read(world.folder / f"relay-{CLUSTER}")
    world.set_clock(world.hub, LATER_S)
    try:
        assert {status_of_a_dial(world, token) for token in gathered} == {401}
        # As the relay has signed it where the Date was enough.
        assert status_of_a_dial(world, enrolment.token("other", clock_s=later - time.time())) == 101
    finally:
        world.set_clock(world.hub, 0)
    world.fresh_relay()


def test_a_hubs_clock_that_is_set_back_ends_and_refuses_nothing(timed_world: FaultWorld) -> None:
    """It goes back by more than a token lives, and for a relay the hub's clock does not go back.

    So the hub dates tokens by the former time, and the relay takes the first one that it is shown.
    """
    world = timed_world
    # The relay was told nothing of it yet, so the hub has to mint a token.
    late = json.loads(world.admin("agent", "add", "late", "--team", TEAM, "--owner", "tests", "--json"))
    rbac = world.admin("cluster", "rbac", CLUSTER, "--namespace", "hawse", "--service-account", "relay")
    world.administrator("apply", "-f", "-", stdin=rbac)
    assert ask(world)[0] == 200
    with ExecEcho(world, 1) as work:
        world.set_clock(world.hub, -2 * TOKEN_S)
        try:
            refused = len(world.relay_says("refused a request"))
            assert ask(world, late["api_key"])[0] == 200
            assert len(world.relay_says("refused a request")) == refused
            assert world.hub is not None
            assert "this hub's clock was set back by 120 s" in world.hub.log.read_text()
        finally:
            world.set_clock(world.hub, 0)
        assert ask(world)[0] == 200
        before = len(work.sent)
        world.until(lambda: len(work.sent) > before + 50_000, "the exec goes on")
    assert work.judgement.verdict is Verdict.WHOLE, report([work.judgement])


@pytest.mark.long
def test_an_exec_outlives_the_token_that_it_was_opened_under(timed_world: FaultWorld) -> None:
    world = timed_world
    began = time.monotonic()
    with ExecEcho(world, 1) as work:
        world.until(lambda: time.monotonic() > began + TOKEN_S + 15, "a token's life is over", TOKEN_S + 20)
        # The cut must not be the end of it either.
        world.tunnel.cut()
        world.until(lambda: ask(world)[0] == 200, "the relay is back", 10)
    assert work.judgement.verdict is Verdict.WHOLE, report([work.judgement])
