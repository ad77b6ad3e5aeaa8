from __future__ import annotations

import pytest
from msgspec.structs import replace

from audit.record import Event, Request, Response, Stream
from audit.wording import ending_of, request_of, took, why_of
from tests.audit.events import call


def stream(status: int, reason: str, close_reason: str = "client gone") -> Event:
    return replace(call(), stream=Stream("http", close_reason=close_reason), resp=Response(status, reason))


@pytest.mark.parametrize(
    ("event", "ending", "why"),
    [
        # kubectl ends `cp`, a watch and a followed log like this; earlier rows say the same.
        (stream(101, "the client is gone"), "ended by the client", ""),
        (stream(101, "the client ended first"), "ended by the client", ""),
        (stream(200, "the client is gone"), "ended by the client", ""),
        (
            stream(0, "the client or the hub went away"),
            "client gone before the answer",
            "the client or the hub went away",
        ),
        (stream(200, "", "complete"), "complete", ""),
        (stream(101, "killed by the operator", "killed"), "killed", "killed by the operator"),
        (replace(call(), resp=Response(200, "the client is gone")), "", "the client is gone"),
        (call(), "", ""),
    ],
)
def test_an_end_by_the_client_is_told_from_a_client_without_an_answer(
    event: Event, ending: str, why: str
) -> None:
    assert (ending_of(event), why_of(event)) == (ending, why)


@pytest.mark.parametrize(
    ("dur_ms", "words"),
    [
        (None, "-"),
        (0.04, "0.0ms"),
        (3.51, "3.5ms"),
        (9.96, "10ms"),
        (999.4, "999ms"),
        (999.6, "1.0s"),
        (99_940, "99.9s"),
        (99_960, "1m39s"),
        (3_599_000, "59m59s"),
        (5_400_000, "1h30m"),
        (6_000_000, "1h40m"),
        (400_000_000, "4d"),
    ],
)
def test_how_long_it_took_has_at_most_six_characters(dur_ms: float | None, words: str) -> None:
    assert took(dur_ms) == words
    assert len(words) <= 6


def test_a_request_is_told_by_its_verb_and_resource() -> None:
    scale = Request("PATCH", "/x", "patch", "apps", "v1", "deployments", "scale", "app", "web")
    assert request_of(replace(call(), req=scale)) == "patch deployments.apps/scale web -n app"
    assert request_of(replace(call(), req=Request("GET", "/version", "get"))) == "GET /version"
    assert request_of(replace(call(), req=Request("POST", "/v1/teams", "create", resource="teams"))) == (
        "create teams"
    )
    assert request_of(replace(call(), req=None)) == ""
