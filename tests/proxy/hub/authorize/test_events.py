from __future__ import annotations

from hashlib import sha256
from urllib.parse import unquote_to_bytes

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.bounds import ARGV_ITEMS_MAX, NAME_CHARACTERS_MAX, TARGET_CHARACTERS_MAX
from audit.mask import Masks
from audit.record import Client, Decision, Event, Kind, encode
from auth.principal import Principal
from auth.requestinfo import decode_value, parse
from auth.tokens import AccessClaims
from proxy.hub.authorize.admission import parse_request
from proxy.hub.authorize.events import Trail, _remembered_client, impersonated, stream_of, without_bearer
from proxy.hub.store.entities import Agent, AgentState
from proxy.message.head import RequestHead


@pytest.mark.parametrize(
    ("target", "kept"),
    [
        (b"/api?access_token=abc", b"/api?access_token=***"),
        (b"/api?a=1&access_token=abc&b=2", b"/api?a=1&access_token=***&b=2"),
        (b"/api?access%5Ftoken=abc", b"/api?access%5Ftoken=***"),
        (b"/api?Access_Token=abc&access_token=d", b"/api?Access_Token=***&access_token=***"),
        (b"/api?ACCESS_TOKEN=abc", b"/api?ACCESS_TOKEN=***"),
        (b"/api?limit=500", b"/api?limit=500"),
        (b"/api/access_token=x", b"/api/access_token=x"),
    ],
)
def test_a_token_in_a_query_is_not_recorded(target: bytes, kept: bytes) -> None:
    assert without_bearer(target) == kept


PIECES = [b"?", b"&", b"=", b"access_token", b"Access_Token", b"%61ccess_token", b"acc%45ss%5ftoken", b"%5F"]


@given(st.lists(st.sampled_from([*PIECES, b"x", b"%", b"%ff", b"\n", b"token"]), max_size=12).map(b"".join))
def test_a_token_is_found_by_its_decoded_name(query: bytes) -> None:
    expected = [
        name + b"=***" if unquote_to_bytes(name).lower() == b"access_token" else pair
        for pair in query.split(b"&")
        for name in (pair.partition(b"=")[0],)
    ]
    assert without_bearer(b"/p?" + query) == b"/p?" + b"&".join(expected)


def test_of_a_target_no_more_is_looked_through_than_is_kept() -> None:
    kept = b"/p?access_token=" + b"x" * TARGET_CHARACTERS_MAX
    # If a token may be in the rest, not even its digest is recorded.
    assert without_bearer(kept + b"&access_token=y") == b"/p?access_token=***#"
    long = b"/p?%" + b"&a" * TARGET_CHARACTERS_MAX
    for whole in (False, True):
        assert len(without_bearer(long, whole=whole)) <= TARGET_CHARACTERS_MAX
    # The sum says of every byte what it is.
    assert without_bearer(long, whole=True) != without_bearer(long[:-1] + b"b", whole=True)
    path = b"/" + b"x" * TARGET_CHARACTERS_MAX
    assert without_bearer(path).startswith(path[:60_000])
    assert without_bearer(long[:TARGET_CHARACTERS_MAX]) == long[:TARGET_CHARACTERS_MAX]


@given(st.binary(max_size=40))
def test_any_bytes_may_stand_in_a_target(query: bytes) -> None:
    assert without_bearer(b"/p?" + query).startswith(b"/p?")


AGENT = Agent("a-1", "ann", "Ann", AgentState.ACTIVE, ("sre",), frozenset({"t"}), 0.0, None)
CLAIMS = AccessClaims(Principal("a-1", "ann", "acme", ("sre",)), "prod", "sid", "jti-1", 0, 60)


def told(
    trail: Trail, *, agent: Agent = AGENT, claims: AccessClaims = CLAIMS, head: bytes = b"curl"
) -> Event:
    target = b"/clusters/prod/api/v1/pods?limit=1"
    return trail.call(
        head=RequestHead.of(b"GET", target, ((b"user-agent", head),)),
        parsed=parse_request(b"GET", target),
        client_ip="192.0.2.7",
        claims=claims,
        agent=agent,
        cluster=None,
        decision=Decision("allow", "granted", "granted", "1-abc"),
    )


LONG = b"x" * 3000
POD = b"/api/v1/namespaces/a/pods/p"


@pytest.mark.parametrize(
    ("line", "upgrade", "undecided", "kept"),
    [
        # A read has its path, and 2 KiB of its query; a path of any length.
        (b"GET %b?x=%b" % (POD, LONG), False, False, len(POD) + 1 + 2048),
        (b"GET %b/%b?watch=1" % (POD, LONG), False, False, None),
        (b"GET %b/%b?x=%b" % (POD, LONG, LONG), False, False, len(POD) + 3001 + 1 + 2048),
        (b"GET %b?x=%b" % (POD, LONG * 30), False, False, len(POD) + 1 + 2048),
        (b"GET /%b?x=%b" % (b"x" * 64_000, LONG), False, False, TARGET_CHARACTERS_MAX - 65),
        # What acts is whole.
        (b"DELETE %b?x=%b" % (POD, LONG), False, False, None),
        (b"GET %b/exec?command=%b" % (POD, LONG), False, False, None),
        (b"GET %b?watch=1&x=%b" % (POD, LONG), True, False, None),
        # Of what was refused before anything was decided there is an example.
        (b"DELETE %b?x=%b" % (POD, LONG), False, True, 1024),
        (b"GET %b/exec?command=%b" % (POD, LONG), True, True, 1024),
        (b"GET %b/../x?%b" % (POD, LONG), False, False, 1024),
        (b"DELETE %b?x=%b" % (POD, LONG * 30), False, False, 1024),
        (b"GET /%b?x" % (LONG * 30), False, False, 1024),
        (b"GET %b?x=1" % POD, False, True, None),
    ],
)
def test_how_much_of_a_target_is_recorded(
    line: bytes, upgrade: bool, undecided: bool, kept: int | None
) -> None:
    method, _, inner = line.partition(b" ")
    target = b"/clusters/prod" + inner
    headers = ((b"connection", b"upgrade"), (b"upgrade", b"websocket")) if upgrade else ()
    event = Trail("acme").call(
        head=RequestHead.of(method, target, headers),
        parsed=parse_request(method, target),
        client_ip="192.0.2.7",
        claims=CLAIMS,
        agent=AGENT,
        cluster=None,
        decision=Decision("allow", "granted", "granted", "1-abc"),
        undecided=undecided,
    )
    assert event.req is not None
    assert event.req.target_kept == kept
    assert event.req.target_bytes == (None if kept is None else len(inner))
    if undecided:
        assert event.stream is None or event.stream.command == ()
    stored = Masks().apply(event).req
    assert stored is not None
    assert stored.target_kept is None
    if kept is None:
        assert stored.raw_target == inner.decode()
        assert (stored.target_bytes, stored.target_sha256) == (None, "")
    else:
        assert stored.raw_target == f"{inner[:kept].decode()}…"
        assert stored.target_bytes == len(inner)
        if len(inner) <= TARGET_CHARACTERS_MAX:
            assert stored.target_sha256 == sha256(inner).hexdigest()
        assert len(stored.target_sha256) == 64


def test_an_unauthenticated_request_has_an_excerpt_of_its_target_in_the_trail() -> None:
    for method in (b"GET", b"DELETE"):
        for target in (b"/" + LONG * 40, b"/?" + LONG):
            head = RequestHead.of(method, target, ((b"user-agent", b"u" * 60_000),))
            event = Masks().apply(
                Trail("acme").unauthenticated(Kind.AUTH_FAILED, client_ip="192.0.2.7", note="no", head=head)
            )
            assert event.req is not None
            assert event.req.raw_target == f"{target[:1024].decode()}…"
            assert event.req.target_bytes == len(target)
            assert len(encode(event)) < 4096


def test_what_is_the_same_is_made_once() -> None:
    trail = Trail("acme")
    first, second = told(trail), told(trail)
    assert first.eid != second.eid
    assert first.actor is second.actor
    assert first.req is second.req
    assert first.client is second.client
    assert told(trail, head=b"wget").client == Client("192.0.2.7", "wget")


def test_a_change_in_the_directory_is_recorded_at_once_under_the_same_token() -> None:
    trail = Trail("acme")
    told(trail)
    principal = Principal("a-1", "ann", "acme", ("web",))
    changed = attrs.evolve(AGENT, owner="Bob", teams=("web",), principal=principal)
    event = told(trail, agent=changed)
    assert (event.actor.owner, event.actor.teams) == ("Bob", ("web",))
    assert event.impersonated == impersonated(principal)
    assert told(trail).impersonated is None


def test_the_tokens_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.hub.authorize.events.TOKENS_REMEMBERED_MAX", 2)
    trail = Trail("acme")
    for number in range(5):
        event = told(trail, claims=attrs.evolve(CLAIMS, jti=f"jti-{number}"))
        assert event.actor.jti == f"jti-{number}"
    assert list(trail._parties) == ["jti-3", "jti-4"]


def test_a_long_user_agent_is_recorded_and_not_cached() -> None:
    before = _remembered_client.cache_info().currsize
    event = told(Trail("acme"), head=b"x" * 600)
    assert event.client == Client("192.0.2.7", "x" * 600)
    assert _remembered_client.cache_info().currsize == before


@pytest.mark.parametrize(
    ("byte", "shown", "decoded"), [(b"x", "x", 4096), (b"\xff", "\\xff", 16384), ("ä".encode(), "ä", 2048)]
)
def test_of_a_user_agent_of_any_bytes_a_record_has_what_it_keeps(
    byte: bytes, shown: str, decoded: int
) -> None:
    user_agent = byte * 100_000
    client = told(Trail("acme"), head=user_agent).client
    assert client is not None
    kept, _, cut = client.user_agent.partition("…[")
    assert kept == (shown * NAME_CHARACTERS_MAX)[:NAME_CHARACTERS_MAX]
    # No more than 4 KiB are decoded; of what follows each byte counts.
    assert cut == f"{decoded - NAME_CHARACTERS_MAX + len(user_agent) - 4096} more characters]"


@pytest.mark.parametrize(
    ("upgrade", "proto"),
    [
        (None, "http"),
        (b"websocket", "websocket"),
        (b"SPDY/3.1", "spdy/3.1"),
        # What is served as a plain request is on record as one.
        (b"http", "http"),
        (b"h2c", "http"),
        (b"websocket, h2c", "http"),
    ],
)
def test_a_stream_goes_by_the_protocol_that_may_be_changed_to(upgrade: bytes | None, proto: str) -> None:
    headers = ((b"connection", b"upgrade"), (b"upgrade", upgrade)) if upgrade is not None else ()
    target = b"/api/v1/namespaces/a/services/s/proxy/x"
    stream = stream_of(RequestHead.of(b"GET", target, headers), parse(b"GET", target))
    assert stream is not None
    assert (stream.proto, stream.upgraded) == (proto, proto != "http")


def test_of_an_execs_arguments_no_more_is_read_than_a_record_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []

    def counted(value: bytes) -> str | None:
        read.append(value)
        return decode_value(value)

    monkeypatch.setattr("proxy.hub.authorize.events.decode_value", counted)
    arguments = [b"sh", b"%zz", *[b"%61"] * 9000]
    target = b"/api/v1/namespaces/a/pods/p/exec?tty=true&" + b"&".join([b"command=" + a for a in arguments])
    stream = stream_of(RequestHead.of(b"POST", target), parse(b"POST", target))
    assert stream is not None
    assert stream.tty
    more = f"…[{9001 - ARGV_ITEMS_MAX} more arguments]"
    assert stream.command == ("sh", *["a"] * (ARGV_ITEMS_MAX - 1), more)
    assert len(read) == ARGV_ITEMS_MAX + 1
    long = target.replace(b"%61", b"%61" * TARGET_CHARACTERS_MAX, 1)
    stream = stream_of(RequestHead.of(b"POST", long), parse(b"POST", long))
    assert stream is not None
    kept = "a" * (TARGET_CHARACTERS_MAX - 2)
    assert stream.command == ("sh", f"{kept}…[2 more characters]", "…[8999 more arguments]")
    assert len(read) == ARGV_ITEMS_MAX + 1 + 3
