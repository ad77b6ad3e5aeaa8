from __future__ import annotations

import re

from sandbox.objects import (
    Object,
    child,
    clone,
    encode,
    integer,
    items,
    lookup,
    mapping,
    now,
    now_micro,
    plain,
    string_map,
    strings,
    text,
)

VALUE: Object = {
    "a": {"b": [{"c": "d"}, 1]},
    "n": 3,
    "yes": True,
    "words": ["x", 2, "y"],
    "m": {"k": "v", "n": 1},
}


def test_reading_gives_what_is_there_or_nothing_of_the_kind() -> None:
    assert lookup(VALUE, "a", "b") == [{"c": "d"}, 1]
    assert lookup(VALUE, "a", "b", "c") is None
    assert items(VALUE, "a", "b") == [{"c": "d"}]
    assert text(VALUE, "n") == ""
    assert integer(VALUE, "n") == 3
    assert integer(VALUE, "yes", default=7) == 7
    assert strings(VALUE, "words") == ["x", "y"]
    assert string_map(VALUE, "m") == {"k": "v"}
    assert mapping(VALUE, "words") == {}


def test_child_makes_what_is_missing_and_replaces_what_is_no_object() -> None:
    value: Object = {"metadata": None}
    child(value, "metadata", "labels")["a"] = "b"
    assert value == {"metadata": {"labels": {"a": "b"}}}


def test_a_clone_shares_nothing() -> None:
    copied = clone(VALUE)
    child(copied, "a")["b"] = []
    assert items(VALUE, "a", "b")


def test_json_is_compact_and_in_utf8() -> None:
    assert encode({"a": ["ü", None]}) == '{"a":["ü",null]}'.encode()
    assert plain({"a": (1, 2)}) == {"a": [1, 2]}


def test_times_are_those_of_the_api() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", now())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", now_micro())
