from __future__ import annotations

import json

from msgspec.structs import replace

from audit.display import TerminalTable, header_line, json_line, table_line
from audit.mask import Masks
from audit.reader import StoredEvent
from audit.record import (
    Actor,
    ActorType,
    Client,
    Decision,
    Event,
    Kind,
    Phase,
    Request,
    Response,
    Stream,
    encode,
    utc,
)
from tests.audit.events import HOSTILE, NOW_S, call, failure


def stored(event: Event, seq: int = 7) -> StoredEvent:
    return StoredEvent(seq, encode(Masks().apply(event)))


def test_an_event_is_one_line_that_says_who_did_what_where_and_how_it_went() -> None:
    event = call(agent="robot", cluster="prod", target="/api/v1/namespaces/app/pods/web")
    end = event.completed(utc(NOW_S + 0.0123), resp=Response(200))
    assert header_line().split() == ["SEQ", "TIME", "PHASE", "ACTOR", "CLUSTER", "RESULT", "TOOK", "WHAT"]
    assert table_line(stored(event)).split() == [
        *("7", "2026-09-21T14:13:20.000Z", "intent", "agent:robot", "prod", "-", "-"),
        *("DELETE", "/api/v1/namespaces/app/pods/web"),
    ]
    assert table_line(stored(end)).split() == [
        *("7", "2026-09-21T14:13:20.012Z", "complete", "agent:robot", "prod", "200", "12.3ms"),
        *("DELETE", "/api/v1/namespaces/app/pods/web"),
    ]


def test_other_kinds_say_what_they_are() -> None:
    flood = replace(failure(), count=490)
    assert table_line(stored(flood)).endswith(
        "10.0.0.9             -            401    -         [auth.failed] 490 times - the token has expired"
    )
    unknown = replace(call(), phase=Phase.UNKNOWN)
    assert " ? " in table_line(stored(unknown))
    denied = replace(call(), decision=Decision("deny"))
    assert " deny " in table_line(stored(denied))
    stream = replace(call(), stream=Stream(close_reason="tunnel lost"))
    assert table_line(stored(stream)).endswith("(tunnel lost)")
    copied = replace(
        call(), stream=Stream(close_reason="client gone"), resp=Response(101, "the client is gone")
    )
    assert table_line(stored(copied)).endswith("/pods/web (ended by the client)")
    killed = replace(call(), resp=Response(101, "killed by the operator local: wrong cluster"))
    assert table_line(stored(killed)).endswith(" - killed by the operator local: wrong cluster")
    guarded = replace(call(), decision=Decision("deny", "owner/no-secrets", "relay-guardrails"))
    assert table_line(stored(guarded)).endswith(" - denied by relay-guardrails: owner/no-secrets")
    gap = replace(failure(), kind=Kind.AUDIT_GAP, actor=Actor(ActorType.HUB))
    assert " hub " in table_line(stored(gap))


def test_a_terminal_of_80_columns_has_no_longer_line() -> None:
    table = TerminalTable(80)
    watch = replace(
        call(agent="builder-of-staging", cluster="prod-eu-west"),
        stream=Stream("http", close_reason="client gone"),
        resp=Response(200, "the client is gone"),
        dur_ms=6_781.6,
    )
    intent = call(at_s=NOW_S + 86_400)
    assert table.header() == "SEQ    UTC      ACTOR        CLUSTER  RESULT TOOK   WHAT"
    assert table.lines(stored(watch)).splitlines() == [
        "2026-09-21",
        "7      14:13:20 builder-of.. prod-e.. 200    6.8s   delete pods web -n app (en..",
    ]
    assert table.lines(stored(failure(note="the token has expired " * 5))).splitlines() == [
        "7      14:13:20 10.0.0.9     -        401    -      [auth.failed]",
        "       " + ("the token has expired " * 5)[:71] + "..",
    ]
    # Each day's line appears once.
    assert table.lines(stored(intent, seq=12_345_678)).splitlines() == [
        "2026-09-22",
        "12345678 14:13:20 robot        prod     intent -      delete pods web -n app",
    ]
    for name, shown in (("local:ada", "local:ada"), ("ada", "operator:ada")):
        by = replace(failure(), actor=Actor(ActorType.OPERATOR, name=name))
        assert table.lines(stored(by)).split("14:13:20 ")[1].startswith(f"{shown} ")
    wide = TerminalTable(200).lines(stored(watch))
    assert "builder-of-staging       prod-eu-west     200" in wide
    assert wide.endswith("delete pods web -n app (ended by the client)")
    assert len(TerminalTable(20).header()) > 20


def test_hostile_text_is_escaped_in_every_field() -> None:
    event = replace(
        call(agent=HOSTILE, cluster=HOSTILE),
        client=Client("::1", HOSTILE, claimed_reason=HOSTILE),
        req=Request(HOSTILE, HOSTILE, name=HOSTILE),
        stream=Stream(command=(HOSTILE,), close_reason=HOSTILE),
        note=HOSTILE,
    )
    terminal = TerminalTable(2000).lines(stored(event)).splitlines()[1:]
    for line in (table_line(stored(event)), json_line(stored(event)), *terminal):
        assert line.isascii()
        assert line.isprintable()
        assert "owned" in line
        # Escaped once: text that is escaped twice cannot be read back.
        assert r"\\x1b" not in line.replace(json_line(stored(event)), "")
    assert json.loads(json_line(stored(event)))["client"]["user_agent"] == HOSTILE


def test_an_event_of_a_newer_hawse_is_shown_raw() -> None:
    assert table_line(StoredEvent(3, b'{"v":2,"kind":"\\u001b"}')) == r'3 {"seq":3,"v":2,"kind":"\\u001b"}'
