"""An attacker at the hub's TLS endpoint, who has none of its keys, and the clock by which tokens expire."""

from __future__ import annotations

import base64
import json
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import attrs
import pytest

from auth.assertion import LIFETIME_S
from auth.keys import SigningKey
from auth.signed import sign, sign_for_a_minute
from tests.faults.clients import ExecEcho, Verdict, report
from tests.faults.endpoint import Endpoint, Outcome, Said, taken_endpoint
from tests.faults.impostor import hub_certificate
from tests.faults.requests import ask, asking
from tests.faults.wire import CONTEXT, DATA, FIN, PING, WELCOME, Enrolment, Frame, frame, head, wire_relay
from tests.faults.world import BY_HAND, FaultWorld, running_faults

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(180)]

HOUR_S = 3600
NEXT_DIAL_S = 15.0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultWorld]:
    folder = tmp_path_factory.mktemp("hub-clock")
    with running_faults(folder, settings="[limits]\nrelays_per_cluster = 8") as running:
        yield running


@contextmanager
def taken(world: FaultWorld) -> Iterator[Endpoint]:
    """The endpoint, which passes relays on to the hub as long as it is not told otherwise."""
    with taken_endpoint(hub_certificate(world)) as endpoint:
        endpoint.pass_on(world.hub_listen, world.folder / "hub" / "tls" / "ca.pem")
        world.tunnel.lead_to(endpoint.port)
        try:
            yield endpoint
        finally:
            world.tunnel.lead_to(world.hub_listen)
            stop_relay(world)


def stop_relay(world: FaultWorld) -> None:
    """End the relay, if it runs: most of these tests begin with a fresh one."""
    relay = world.relays.pop("relay-0", None)
    if relay is not None:
        relay.process.kill()
        relay.process.wait()
        world.until(lambda: "relay-0" not in world.connected(), "the hub has seen it go")


def claims_of(token: bytes) -> dict[str, object]:
    segment = token.split(b".")[1]
    claims: dict[str, object] = json.loads(base64.urlsafe_b64decode(segment + b"=" * (-len(segment) % 4)))
    return claims


def injected(world: FaultWorld, endpoint: Endpoint, token: bytes) -> Outcome:
    """What becomes of a request under this token, amid those of the hub."""
    endpoint.inject(token)
    # It goes behind a message of the hub's, which then hears of more frames than it has sent, and may end the
    # session at any time, this request's answer included.
    with suppress(TimeoutError):
        ask(world)
    return outcome_of(world, endpoint)


def outcome_of(world: FaultWorld, endpoint: Endpoint) -> Outcome:
    outcome = world.until(endpoint.outcome, "the relay has said what becomes of it", NEXT_DIAL_S)
    assert outcome is not None
    return outcome


def keys_of(world: FaultWorld) -> dict[str, SigningKey]:
    """The hub's keys by their kid, the one that signs first."""
    folder = world.folder / "hub" / "keys"
    active = (folder / "active").read_text().strip()
    files = sorted(folder.glob("*.pem"), key=lambda file: file.stem != active)
    return {file.stem: SigningKey.from_pem(file.read_bytes()) for file in files}


def forged(key: SigningKey, like: bytes, now: float, **changes: object) -> bytes:
    """A relay token as the hub's, but for its time, its key and what is changed."""
    return sign_for_a_minute(key, "relay+jwt", now, {**claims_of(like), **changes}).encode()


def stated(key: SigningKey, like: bytes, now: float, nonce: object) -> Said:
    """A hub's time, stated to whoever has said this nonce."""
    claims = claims_of(like)
    told = {"iss": claims["iss"], "aud": claims["aud"], "nonce": nonce, "hub": "taken", "iat": int(now)}
    return Said(0, sign(key, "hub-time+jwt", told).encode())


def test_a_token_of_an_hour_ago_is_worth_nothing_by_the_clock_of_then(world: FaultWorld) -> None:
    with taken(world) as endpoint:
        world.fresh_relay()
        assert ask(world)[0] == 200
        recorded = [*endpoint.statements, endpoint.tokens[-1]]
        then = float(str(claims_of(recorded[-1].payload)["iat"]))
        stop_relay(world)
        # An hour later the relay starts anew, and the hub's name leads to the attacker still.
        endpoint.be_the_hub(lambda _: recorded, clock_s=lambda: then)
        world.start_relay(clock_s=HOUR_S)
        outcome = outcome_of(world, endpoint)
    assert (outcome.head, bool(outcome.refusal)) == (b"", True)


def test_a_token_of_another_session_is_worth_nothing_though_it_is_fresh(world: FaultWorld) -> None:
    """The attacker passes on all of a session, and adds a token of the one before."""
    with taken(world) as endpoint:
        world.fresh_relay()
        assert ask(world)[0] == 200
        of_before = endpoint.tokens[-1].payload
        world.fresh_relay()
        assert ask(world)[0] == 200
        outcome = injected(world, endpoint, of_before)
    assert outcome.head == b""
    assert "another session" in outcome.refusal


def test_what_is_open_outlives_its_token_and_nothing_is_opened_under_an_expired_one(
    world: FaultWorld,
) -> None:
    """The hub's clock is set ahead, which it signs; the attacker shows a token of before, of this session."""
    with taken(world) as endpoint:
        world.fresh_relay()
        with ExecEcho(world, 1) as work:
            world.until(lambda: len(work.sent) > 0, "the exec works")
            expired = endpoint.tokens[-1].payload
            world.set_clock(world.hub, 2 * LIFETIME_S)
            try:
                assert ask(world)[0] == 200
                before = len(work.sent)
                world.until(lambda: len(work.sent) > before + 50_000, "the exec goes on")
            finally:
                world.set_clock(world.hub, 0)
        assert work.judgement.verdict is Verdict.WHOLE, report([work.judgement])
        outcome = injected(world, endpoint, expired)
    assert outcome.head == b""
    assert "expired" in outcome.refusal


@pytest.mark.parametrize("ahead_s", [-HOUR_S, HOUR_S], ids=["behind", "ahead"])
def test_a_clock_that_nobody_has_signed_counts_for_nothing(world: FaultWorld, ahead_s: int) -> None:
    def rewrite(came: Frame) -> Frame | None:
        if came.kind == WELCOME:
            welcome = json.loads(came.payload)
            welcome["server_time_ms"] += ahead_s * 1000
            return attrs.evolve(came, payload=json.dumps(welcome).encode())
        if came.kind == PING:
            opaque, received, clock_ms = struct.unpack(">QQQ", came.payload)
            return attrs.evolve(
                came, payload=struct.pack(">QQQ", opaque, received, clock_ms + ahead_s * 1000)
            )
        return came

    with taken(world) as endpoint:
        endpoint.pass_on(world.hub_listen, world.folder / "hub" / "tls" / "ca.pem", rewrite)
        world.fresh_relay()
        for _ in range(3):
            assert ask(world)[0] == 200


def test_a_nonce_is_the_sessions_and_is_kept_through_its_resumptions(world: FaultWorld) -> None:
    with taken(world) as endpoint:
        world.fresh_relay()
        with ExecEcho(world, 1) as work:
            world.until(lambda: len(work.sent) > 0, "the exec works")
            world.tunnel.cut()
            world.until(lambda: world.relay_says("is back, session"), "it is back", NEXT_DIAL_S)
            # Under the token and by the clock of before.
            assert ask(world)[0] == 200
        assert work.judgement.verdict is Verdict.WHOLE, report([work.judgement])
        world.fresh_relay()
    first, resumed, other = (str(hello["nonce"]) for hello in endpoint.hellos)
    assert first == resumed != other
    assert endpoint.hellos[1]["resume"]
    assert {len(bytes.fromhex(nonce)) for nonce in (first, other)} == {16}


@pytest.mark.parametrize("ahead_s", [-HOUR_S, HOUR_S], ids=["behind", "ahead"])
def test_a_hub_whose_clock_is_an_hour_off_is_refused_and_the_offset_is_named(
    world: FaultWorld, ahead_s: int
) -> None:
    stop_relay(world)
    world.set_clock(world.hub, ahead_s)
    try:
        world.start_relay()
        way = "ahead of" if ahead_s > 0 else "behind"
        refusal = f"s {way} this relay's, more than the 900 s"
        [line, *_] = world.until(lambda: world.relay_says(refusal), "the relay names the offset", NEXT_DIAL_S)
        told_s = int(line.partition("the hub's clock is ")[2].split(" ")[0])
        assert abs(told_s - HOUR_S) <= 10
        assert "set the clock that is wrong" in line
        assert ask(world)[0] == 503
    finally:
        world.set_clock(world.hub, 0)
    world.fresh_relay()
    assert ask(world)[0] == 200


def test_a_retired_key_signs_nothing_that_a_fresh_relay_takes(world: FaultWorld) -> None:
    """The thief of an old key names a time at which it was good, and tells all that the hub has told."""
    stolen = next(iter(keys_of(world).values()))
    rotated_at = time.time()
    world.admin("keys", "rotate", "--yes")
    with taken(world) as endpoint:
        world.fresh_relay()
        assert ask(world)[0] == 200
        like = endpoint.tokens[-1].payload
        succession = [said for said in endpoint.statements if "jwk" in claims_of(said.payload)]
        assert succession
        stop_relay(world)

        def contexts(hello: Mapping[str, object]) -> list[Said]:
            nonce = hello.get("nonce")
            told = stated(stolen, like, rotated_at, nonce)
            token = forged(stolen, like, rotated_at, nonce=nonce)
            return [*succession, told, Said(1, token)]

        endpoint.be_the_hub(contexts, clock_s=lambda: rotated_at)
        world.start_relay(clock_s=HOUR_S)
        outcome = outcome_of(world, endpoint)
    assert (outcome.head, bool(outcome.refusal)) == (b"", True)


def test_a_hub_of_the_old_form_is_refused_and_is_to_be_upgraded(world: FaultWorld) -> None:
    """As after a downgrade, or where the relay was upgraded first: nothing has a nonce."""
    key = next(iter(keys_of(world).values()))
    with taken(world) as endpoint:
        world.fresh_relay()
        assert ask(world)[0] == 200
        claims = claims_of(endpoint.tokens[-1].payload)
        claims.pop("nonce", None)
        succession = [said for said in endpoint.statements if "jwk" in claims_of(said.payload)]
        stop_relay(world)
        old = sign_for_a_minute(key, "relay+jwt", time.time(), claims).encode()
        endpoint.be_the_hub(lambda _: [*succession, Said(1, old)], clock_s=time.time)
        world.start_relay()
        outcome = outcome_of(world, endpoint)
        assert outcome.head == b""
        assert "upgrade the hub" in outcome.refusal
        assert world.until(lambda: world.relay_says("upgrade the hub"), "its log says so", NEXT_DIAL_S)


@pytest.mark.parametrize("nonce", ["", "0123456789abcdef" * 2], ids=["old", "new"])
def test_a_relay_of_the_old_form_is_served_as_before(world: FaultWorld, nonce: str) -> None:
    """The hub is upgraded first: to a relay without a nonce it says what it has always said."""
    enrolment = Enrolment.read(world.folder / f"relay-{BY_HAND}")
    hello: dict[str, object] = {"nonce": nonce} if nonce else {}
    with wire_relay(enrolment, world.tunnel.port, hello=hello) as relay, asking(world) as talk:
        stream = relay.next_open().stream
        relay.send(head(stream), frame(DATA, stream, b"{}", FIN))
        assert talk.rest().startswith(b"HTTP/1.1 200 ")
        said = [each.payload for each in relay.frames if each.kind == CONTEXT and len(each.payload) > 8]
        groups = {int.from_bytes(payload[4:8], "big"): claims_of(payload[8:]) for payload in said}
    own = groups.pop(0, None)
    [claims] = groups.values()
    assert claims.get("nonce", "") == nonce
    assert (own or {}).get("nonce", "") == nonce
