from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth import apikey


@given(st.binary(min_size=32, max_size=32))
def test_a_new_key_has_one_shape_and_parses(random: bytes) -> None:
    key = apikey.new_api_key(random)
    assert key.startswith("hws_")
    assert len(key) == 53
    assert apikey.parse(key) == key


@given(st.binary(min_size=32, max_size=32), st.integers(4, 52))
def test_a_changed_character_is_noticed(random: bytes, position: int) -> None:
    key = apikey.new_api_key(random)
    changed = key[:position] + ("A" if key[position] != "A" else "B") + key[position + 1 :]
    with pytest.raises(apikey.ApiKeyError):
        apikey.parse(changed)


@pytest.mark.parametrize("change", [lambda k: k[:-1], lambda k: k + "\n", lambda k: k.upper(), lambda k: ""])
def test_text_that_is_no_key_is_refused_without_being_shown(change: object) -> None:
    key = apikey.new_api_key(b"\x01" * 32)
    assert callable(change)
    with pytest.raises(apikey.ApiKeyError) as caught:
        apikey.parse(change(key))
    assert key[4:20] not in str(caught.value)


def test_a_key_needs_its_32_bytes() -> None:
    with pytest.raises(ValueError, match="32 random bytes"):
        apikey.new_api_key(b"short")


def test_the_hash_depends_on_key_and_pepper() -> None:
    one, other = apikey.new_api_key(b"\x01" * 32), apikey.new_api_key(b"\x02" * 32)
    assert apikey.hash(one, b"p") == apikey.hash(one, b"p")
    assert len({apikey.hash(one, b"p"), apikey.hash(one, b"q"), apikey.hash(other, b"p")}) == 3


def test_a_code_is_told_from_a_key_and_from_half_of_itself() -> None:
    code = apikey.new_code(b"\xff" * 20)
    assert apikey.parse_code(code) == code
    assert code.startswith("hwc_")
    assert len(code) == 4 + 27 + 6
    for text in ("", code[:-1], code + "0", code.replace("hwc_", "hws_"), apikey.new_api_key(b"k" * 32)):
        with pytest.raises(apikey.ApiKeyError, match="not an enrolment code") as refused:
            apikey.parse_code(text)
        assert not text or text not in str(refused.value)
    with pytest.raises(apikey.ApiKeyError):
        apikey.parse(code)
    with pytest.raises(ValueError, match="20 random bytes"):
        apikey.new_code(b"k" * 32)
