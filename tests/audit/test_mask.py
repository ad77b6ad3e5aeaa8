from __future__ import annotations

import itertools
import re
import time
from hashlib import sha256
from operator import itemgetter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from audit.bounds import TARGET_CHARACTERS_MAX
from audit.mask import _MEMO_MAX, _MEMO_TARGET_CHARACTERS_MAX, MASK, Masks
from audit.record import Client, Request, Response, Stream, encode
from tests.audit.events import call

JWT = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJhZ2VudDpyb2JvdCJ9.c2lnbmF0dXJlLXNpZ25hdHVyZQ"
API_KEY = "hws_8qk3ZP0aT4mWc1v9N2"
CODE = "hwc_8qk3ZP0aT4mWc1v9N2"
CONSOLE_CODE = "hwo_8qk3ZP0aT4mWc1v9N2"
# Patterns that mean the same to every engine.
PATTERNS = ["a+", "a", r"a\sb", "^b$", "ab|b", "ä", "[^a]b", "a.*b", r"€\S*=", "(?i)Ä|🙂.", "s{2,3}"]


def exec_target(*argv: str) -> str:
    return "/api/v1/namespaces/a/pods/b/exec?" + "&".join(f"command={arg}" for arg in argv)


@pytest.mark.parametrize("secret", [JWT, API_KEY, CODE, CONSOLE_CODE, JWT[:40]])
def test_a_token_is_in_no_field(secret: str) -> None:
    event = replace(
        call(),
        client=Client("::1", f"curl Bearer {secret}", claimed_reason=f"to use {secret}"),
        req=Request(secret, f"/api/{secret}?x={secret}&y=%22{secret}%22", *[secret] * 6, name=secret),
        resp=Response(400, f"bad method {secret}"),
        stream=Stream(secret, ("curl", "-H", f"Authorization: Bearer {secret}"), secret, close_reason=secret),
        note=f"client_secret={secret}",
    )
    assert secret.encode() not in encode(Masks().apply(event))


def test_a_stated_reason_is_masked_by_the_configured_patterns() -> None:
    event = replace(call(), client=Client("::1", "curl", claimed_reason="with password=hunter2 of CI"))
    client = Masks([r"password=\S+"]).apply(event).client
    assert client is not None
    assert client.claimed_reason == "with *** of CI"


def test_a_token_that_is_percent_encoded_is_found() -> None:
    disguised = "%65%79%4a" + JWT[3:]
    masked = Masks().target(f"/api/{disguised}?x={disguised}")
    assert masked == "/api/***?x=***"


def test_an_opaque_token_in_the_query_is_masked_by_its_name() -> None:
    assert Masks().target("/api?access_token=abc123&limit=5") == "/api?access_token=***&limit=5"
    assert Masks().values(["base64url.bearer.authorization.k8s.io.b3BhcXVl", "v5.channel.k8s.io"]) == [
        "base64url.bearer.authorization.k8s.io.***",
        "v5.channel.k8s.io",
    ]


def test_without_a_match_the_event_is_the_same_object_and_the_target_the_same_bytes() -> None:
    target = exec_target("sh", "-c", "echo%20%2541+b;%0Aid") + "&&x&=y&stdin=true"
    event = call(target=target)
    assert Masks(["password=.*"]).apply(event) is event


def test_a_pattern_masks_what_it_matches_in_a_value_and_keeps_the_rest() -> None:
    masks = Masks([r"\bpassword=\S+"])
    target = masks.target(exec_target("mysql", "--password%3Dhunter2%20-v", "x%2Fy"))
    assert target == exec_target("mysql", "--***%20-v", "x%2Fy")
    assert masks.values(["mysql", "--password=hunter2 -v"]) == ["mysql", "--*** -v"]


def test_a_password_that_is_an_argument_of_its_own_is_found() -> None:
    masks = Masks([r"--password\s\S+"])
    assert masks.values(["mysql", "--password", "hunter2", "-v"]) == ["mysql", "***", "***", "-v"]
    assert "hunter2" not in masks.target(exec_target("mysql", "--password", "hunter2", "-v"))


def test_a_container_is_masked_as_the_query_that_names_it() -> None:
    stream = Masks(["hunter2"]).apply(replace(call(), stream=Stream("http", container="hunter2"))).stream
    assert stream is not None
    assert stream.container == "***"


def test_anchors_stand_for_a_values_ends_and_a_dot_stays_in_it() -> None:
    masks = Masks([r"^pin .*$"])
    assert masks.values(["a", "pin 1234", "b"]) == ["a", "***", "b"]


def test_an_empty_match_masks_nothing() -> None:
    assert Masks([r"\ba*"]).values(["aab b", "", "b"]) == ["***b b", "", "b"]


def test_a_pattern_finds_a_parameter_by_its_name() -> None:
    assert Masks(["fieldSelector=.*"]).target("/api?limit=1&fieldSelector=a%3Db") == "/api?limit=1&***"


def test_patterns_do_not_touch_the_path() -> None:
    assert Masks(["pods"]).target("/api/v1/pods?x=pods") == "/api/v1/pods?x=***"


@given(st.lists(st.text(alphabet="ab\n =sä€🙂")), st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=3))
@example(["äab", "", "b", "aa"], ["a", "ab|b", r"b\s+b"])
def test_what_is_masked_is_what_the_patterns_match(values: list[str], patterns: list[str]) -> None:
    text = "\n".join(values)
    matches = [match for pattern in patterns for match in re.finditer(pattern, text, re.MULTILINE)]
    hidden = {place for match in matches for place in range(*match.span())}
    expected = []
    start = 0
    for value in values:
        places = [(start + number in hidden, char) for number, char in enumerate(value)]
        runs = itertools.groupby(places, key=itemgetter(0))
        expected.append("".join(MASK if masked else "".join(c for _, c in run) for masked, run in runs))
        start += len(value) + 1
    assert Masks(patterns).values(values) == expected


@given(
    st.lists(
        st.sampled_from(
            [
                JWT,
                API_KEY,
                "Bearer 0123456789",
                "ACCESS_TOKEN=x",
                "id_token=x",
                "refresh_token=x",
                "client_secret=x",
                "client_assertion=x",
                "base64url.bearer.authorization.k8s.io.x",
                "eyJ",
                "hws",
                "%65",
                " ",
                "&",
                "=",
                "?",
            ]
        )
    ),
    st.sampled_from(["note", "target", "argument", "user agent"]),
)
def test_the_quick_look_never_misses_what_the_slow_one_masks(parts: list[str], place: str) -> None:
    text = "".join(parts)
    event = call()
    match place:
        case "note":
            event = replace(event, note=text)
        case "target":
            event = call(target=f"/api?{text}")
        case "argument":
            event = replace(event, stream=Stream(command=(text,)))
        case _:
            event = replace(event, client=Client("::1", text))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("audit.mask._may_hold_a_secret", lambda *values: True)
        searched = Masks().apply(event)
    assert Masks().apply(event) == searched


def test_what_was_masked_once_is_masked_again_and_little_is_remembered() -> None:
    masks = Masks(["hunter2"])
    for number in range(_MEMO_MAX + 1):
        for _ in range(2):
            masked = masks.apply(call(target=f"/api?n={number}&p=hunter2"))
            assert masked.req == replace(masked.req, raw_target=f"/api?n={number}&p=***")
    assert masks._memoized_request.cache_info().currsize == _MEMO_MAX
    long = "/api?p=hunter2&x=" + "x" * _MEMO_TARGET_CHARACTERS_MAX
    before = masks._memoized_request.cache_info()
    assert "hunter2" not in encode(masks.apply(call(target=long))).decode()
    assert masks._memoized_request.cache_info() == before


@pytest.mark.parametrize(
    "part",
    [
        *("eyJ", "eyJ-", "eyJ.", "eyJaaaaaaaa.", "bearer ", "id_token=", "hws_"),
        *("id_token=a&", "x=id_token%3Da&"),
    ],
)
@pytest.mark.parametrize("end", ["", ".", "..", ".-"])
def test_no_text_takes_longer_to_search_than_its_length_tells(part: str, end: str) -> None:
    def took_s(size: int) -> float:
        text = f"/api?x={part * (size // len(part))}{end}"
        times = []
        for _ in range(3):
            begun = time.thread_time()
            Masks().target(text)
            times.append(time.thread_time() - begun)
        return min(times)

    # Four times as long: a search from each position to the end would take sixteen times as long.
    assert took_s(32 * 1024) < 8 * took_s(8 * 1024) + 0.005


@pytest.mark.parametrize("pattern", ["(a+)+$", r"(?:\S*a)*password\S*=\S+", "(a|aa)+b"])
def test_an_operators_pattern_ends_on_a_text_for_which_a_backtracking_engine_never_would(
    pattern: str,
) -> None:
    text = "a" * (TARGET_CHARACTERS_MAX - len("/api?x= ")) + " "
    assert Masks([pattern]).target(f"/api?x={text}") == f"/api?x={text}"
    assert Masks([pattern]).values([text[:-1] + "=", text]) == [text[:-1] + "=", text]


def test_a_token_is_found_whatever_it_is_glued_to() -> None:
    masks = Masks()
    for around in ("x{}", "eyJ{}", "eyJ.{}", "-eyJ-{}", "eyJeyJeyJeyJ {}", "eyJ{}.x", "{}-{}", "a.{}"):
        assert JWT not in masks.target("/api?x=" + around.replace("{}", JWT))
        assert JWT[10:] not in masks.values([around.replace("{}", JWT)])[0]


@pytest.mark.parametrize("pad", range(0, 40, 3))
def test_a_target_is_cut_when_it_is_masked_so_that_no_piece_of_a_secret_is_left(pad: int) -> None:
    """If the target were cut first, a token at the cut would be unrecognisable, and the checksum would cover
    the token.
    """
    for shown, piece in ((JWT, "eyJhb"), ("password=swordfish", "swo")):
        query = "a" * (1000 - pad) + f"&t={shown}&c=" + "c" * 500
        event = call(target=f"/api?{query}")
        assert event.req is not None
        event = replace(event, req=replace(event.req, target_kept=1000, target_bytes=len(f"/api?{query}")))
        stored = Masks([r"password=[a-z]+"]).apply(event).req
        assert stored is not None
        assert stored.target_kept is None
        whole = Masks([r"password=[a-z]+"]).target(f"/api?{query}")
        assert stored.raw_target == f"{whole[:1000]}…"
        assert stored.target_sha256 == sha256(whole.encode()).hexdigest()
        assert piece not in stored.raw_target


def test_what_is_not_cut_has_no_sum() -> None:
    event = call(target="/api?x=1")
    assert event.req is not None
    event = replace(event, req=replace(event.req, target_kept=1000, target_bytes=8))
    stored = Masks().apply(event).req
    assert stored is not None
    assert (stored.target_kept, stored.target_bytes, stored.target_sha256) == (None, None, "")


@pytest.mark.parametrize("filler", ["[", "|", '"', "%", "+", "%5B"])
def test_nothing_that_looks_like_a_secret_has_the_end_of_a_command_cut(filler: str) -> None:
    """A masked value is written with escapes, and so is longer than before."""
    begin, end = "/api/v1/namespaces/n/services/s/proxy/run?cmd=hws_abcdefgh1234;", ";rm"
    filling = filler * ((TARGET_CHARACTERS_MAX - len(begin) - len(end)) // len(filler))
    stored = Masks().apply(call(target=f"{begin}{filling}{end}")).req
    assert stored is not None
    assert "hws_abcdefgh1234" not in stored.raw_target
    assert stored.raw_target.endswith(end)


def test_the_path_of_a_read_is_whole_where_a_secret_in_it_is_masked() -> None:
    path = "/api/v1/namespaces/n/configmaps/%68ws_abcdefgh1234." + "&+" * 3000 + ".end"
    event = call(target=f"{path}?x=1")
    assert event.req is not None
    event = replace(event, req=replace(event.req, target_kept=len(path) + 1, target_bytes=len(path) + 4))
    stored = Masks().apply(event).req
    assert stored is not None
    assert "ws_abcdefgh1234" not in stored.raw_target
    assert ".end" in stored.raw_target
