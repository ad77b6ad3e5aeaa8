from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from audit.bounds import ARGV_ITEMS_MAX, NAME_CHARACTERS_MAX, TARGET_CHARACTERS_MAX
from audit.record import Client, Event, Phase, Request, Response, Stream, encode, proto_of, text, utc
from tests.audit.events import NOW_S, call

ANY_TEXT = st.text(st.characters())  # lone surrogates too


def test_no_event_lasts_less_than_nothing_though_the_clock_was_set_back() -> None:
    back = utc(NOW_S - 3600)
    assert call().completed(back).dur_ms == 0.0
    assert call().completed(back, dur_ms=12.3456).dur_ms == 12.346


def test_an_event_says_everything_under_the_documented_names() -> None:
    event = replace(call(), stream=Stream("v5.channel.k8s.io", ("sh", "-c", "id"), "web", tty=True))
    end = event.completed(utc(NOW_S + 0.25), resp=Response(200, "OK", 120, 3.5, "yes"))
    assert json.loads(encode(end)) == {
        "v": 1,
        "eid": event.eid,
        "kind": "call",
        "phase": "complete",
        "ts": "2026-09-21T14:13:20.250000Z",
        "dur_ms": 250.0,
        "org": "acme",
        "actor": {
            "type": "agent",
            "name": "robot",
            "id": "a-1",
            "owner": "ann",
            "teams": ["sre"],
            "credential": "key-1",
        },
        "client": {"ip": "10.0.0.9", "user_agent": "kubectl/v1.37.0"},
        "cluster": {"id": "c-1", "name": "prod"},
        "req": {
            "method": "DELETE",
            "raw_target": "/api/v1/namespaces/app/pods/web",
            "verb": "delete",
            "version": "v1",
            "resource": "pods",
            "namespace": "app",
            "name": "web",
            "dry_run": False,
        },
        "impersonated": {
            "user": "agent:robot",
            "groups": ["acme/sre"],
            "extra": {"hawse.dev/agent": ["a-1"]},
        },
        "decision": {"effect": "allow", "rule": "all", "policy": "granted"},
        "resp": {"status": 200, "reason": "OK", "bytes": 120, "upstream_ms": 3.5, "processed": "yes"},
        "stream": {
            "proto": "v5.channel.k8s.io",
            "command": ["sh", "-c", "id"],
            "container": "web",
            "tty": True,
            "bytes_in": 0,
            "bytes_out": 0,
        },
    }


@given(ANY_TEXT, ANY_TEXT, st.lists(ANY_TEXT))
def test_hostile_text_is_one_line_of_json(user_agent: str, target: str, argv: list[str]) -> None:
    event = replace(
        call(),
        client=Client("::1", user_agent),
        req=Request("GET", target, name=target),
        stream=Stream(command=tuple(argv)),
    )
    line = encode(event)
    assert b"\n" not in line
    stored = json.loads(line)
    # PostgreSQL takes no zero byte.
    visible = user_agent.encode("utf-8", "backslashreplace").decode().replace("\0", r"\x00")
    assert stored.get("client", {}).get("user_agent", "") == visible


def test_bytes_that_are_no_utf_8_stay_visible() -> None:
    assert text(b"kube\xffctl") == r"kube\xffctl"


def test_a_mebibyte_of_user_agent_is_cut_and_says_so() -> None:
    client = Client("::1", "x" * 2**20)
    assert len(client.user_agent) < NAME_CHARACTERS_MAX + 40
    assert client.user_agent.endswith(f"[{2**20 - NAME_CHARACTERS_MAX} more characters]")


def test_a_stream_is_bounded_in_all_that_a_client_chooses() -> None:
    stream = Stream(proto_of(b"x" * 60_000), container="x" * 60_000)
    assert len(encode(stream)) < 2 * NAME_CHARACTERS_MAX + 200


def test_a_long_target_and_a_long_argv_are_cut() -> None:
    # Masking may turn one character into three.
    assert len(Request("GET", "/" * 2**20).raw_target) < 3 * TARGET_CHARACTERS_MAX + 40
    long = Stream(command=("a",) * (ARGV_ITEMS_MAX + 5))
    assert long.command[-1] == "…[5 more arguments]"
    assert len(long.command) == ARGV_ITEMS_MAX + 1
    wide = Stream(command=("a" * TARGET_CHARACTERS_MAX, "b", "c"))
    assert wide.command[1:] == ("…[2 more arguments]",)


def test_the_weight_grows_with_what_a_client_controls() -> None:
    light = call()
    heavy = call(target="/" + "x" * 10_000)
    assert heavy.weight_bytes - light.weight_bytes > 9_000


def test_only_an_agents_event_is_found_by_agent() -> None:
    event = call(agent="robot")
    assert event.agent == "robot"
    assert replace(event, actor=replace(event.actor, type="operator")).agent == ""
    assert event.completed(event.ts).phase is Phase.COMPLETE


def test_a_copy_is_bounded_as_the_original_is() -> None:
    assert len(replace(Request("GET"), name="x" * 5000).name) < NAME_CHARACTERS_MAX + 40
    assert len(replace(call(), note="x" * 100_000).note) < TARGET_CHARACTERS_MAX + 40


def test_an_event_of_a_later_version_is_not_taken_for_ours() -> None:
    later = encode(call()).replace(b'"v":1', b'"v":2')
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(later, type=Event)
