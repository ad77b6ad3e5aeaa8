"""Escaping, and the words for times and sizes."""

from __future__ import annotations

import re
from html import unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.escape import escape
from proxy.console.base import notices
from proxy.console.base.templating import (
    ago,
    breakable,
    copied,
    environment,
    lasting,
    lines,
    read_assets,
    size,
    words,
)
from tests.console.names import HOSTILE

TEMPLATES = environment(read_assets())


@given(st.text() | st.sampled_from(HOSTILE))
def test_a_template_prints_no_text_as_it_came(text: str) -> None:
    printed = TEMPLATES.from_string('<a title="{{ text }}">{{ text }}</a>').render(text=text)
    title, _, rest = printed.removeprefix('<a title="').partition('">')
    assert unescape(title) == unescape(rest.removesuffix("</a>")) == escape(text)
    assert not {"<", ">", '"', "'"} & set(title)


@given(st.text() | st.sampled_from(HOSTILE))
def test_the_lines_of_a_text_keep_their_backslashes(text: str) -> None:
    printed = lines(text)
    assert "<script" not in printed
    assert all(one == "\n" or one.isprintable() for one in printed)
    if text.isascii() and text.replace("\n", "").isprintable():
        assert unescape(str(printed)) == text


@given(st.text())
def test_a_form_gets_its_value_back(text: str) -> None:
    printed = TEMPLATES.from_string("{{ text|value }}").render(text=text)
    assert not {"<", ">", '"', "'"} & set(printed)
    assert unescape(printed) == text


@given(st.text(max_size=500), st.text(min_size=1))
def test_a_notice_is_that_of_its_session(text: str, secret: str) -> None:
    signed = notices.signed(text, secret)
    assert notices.opened(signed, secret) == text.encode("utf-8", "backslashreplace").decode()
    assert notices.opened(signed, secret + "x") == ""


@given(st.text())
def test_a_notice_that_is_made_up_shows_nothing(value: str) -> None:
    assert notices.opened(value, "secret") == ""


@given(st.text() | st.sampled_from(HOSTILE))
def test_what_is_copied_is_what_is_shown(text: str) -> None:
    shown = str(lines(text)).replace('<span class="escaped">', "").replace("</span>", "")
    assert unescape(shown) == copied(text)
    assert all(one == "\n" or one.isprintable() for one in copied(text))
    assert copied("printf 'a\\n' | sh\x1b[2J") == "printf 'a\\n' | sh\\x1b[2J"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "119 min"), (7200, "2 h"), (172_800, "2 days")],
)
def test_a_duration_has_its_largest_unit_from_two_on(seconds: float, words: str) -> None:
    assert lasting(seconds) == words


def test_a_time_is_its_distance_from_now() -> None:
    now = 1_800_000_000.0
    assert ago("2027-01-15T08:00:00Z", now) == "now"
    assert ago("2027-01-15T07:57:00Z", now) == "3 min ago"
    assert ago("2027-01-18T08:00:00Z", now) == "in 3 days"


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KiB"),
        (10_240, "10 KiB"),
        (2**40, "1.0 TiB"),
        (2**60, "1048576 TiB"),
    ],
)
def test_a_size_has_two_digits(count: int, words: str) -> None:
    assert size(count) == words


def test_a_path_may_break_between_its_fields_and_its_text_is_escaped() -> None:
    assert breakable("spec.containers[name=web].image") == "spec.<wbr>containers<wbr>[name=web].<wbr>image"
    assert breakable("a[<b>\u202e&.x]") == "a<wbr>[&lt;b&gt;\\u202e&amp;.<wbr>x]"


@given(st.text() | st.sampled_from(HOSTILE))
def test_the_words_of_a_command_are_marked_and_its_text_stays(text: str) -> None:
    printed = words(text)
    assert re.sub(r'</?span(?: class="(?:word|escaped)")?>', "", printed) == re.sub(
        r'</?span(?: class="escaped")?>', "", lines(text)
    )


def test_a_line_of_a_command_does_not_break_within_an_option() -> None:
    assert words("a -n b") == 'a <span class="word">-n</span> b'
