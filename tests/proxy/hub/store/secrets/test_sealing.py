from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.hub.store.secrets.sealing import KEY_BYTES, Seal, SealError, UnknownSealingKeyError

OLD, NEW = Seal((b"o" * KEY_BYTES,)), Seal((b"n" * KEY_BYTES,))
BOTH = Seal((*NEW.keys, *OLD.keys))
rows = st.text(max_size=50)


@given(st.binary(max_size=300), rows, rows)
def test_a_value_opens_in_its_row_only(value: bytes, row: str, other: str) -> None:
    sealed = OLD.seal(value, row)
    assert OLD.open(sealed, row) == value
    if other != row:
        with pytest.raises(SealError, match="was sealed for another row"):
            OLD.open(sealed, other)


def test_the_first_key_seals_and_all_open() -> None:
    before = OLD.seal(b"value", "row")
    assert BOTH.open(before, "row") == b"value"
    assert not BOTH.is_current(before)
    after = BOTH.seal(b"value", "row")
    assert BOTH.is_current(after)
    assert NEW.open(after, "row") == b"value"
    with pytest.raises(UnknownSealingKeyError, match=r"^'row' is sealed by another key$"):
        OLD.open(after, "row")


def test_one_value_is_sealed_differently_each_time() -> None:
    assert OLD.seal(b"value", "row") != OLD.seal(b"value", "row")


@given(st.data())
def test_a_changed_value_does_not_open(data: st.DataObject) -> None:
    sealed = OLD.seal(b"value", "row")
    at = data.draw(st.integers(0, len(sealed) - 1))
    char = data.draw(st.characters(max_codepoint=127))
    changed = data.draw(st.sampled_from([sealed[:at], sealed[:at] + char + sealed[at + 1 :]]))
    try:
        opened = OLD.open(changed, "row")
    except SealError:
        return
    # The last character of base64 has bits that mean nothing.
    assert changed == sealed or at == len(sealed) - 1
    assert opened == b"value"


@given(st.text(max_size=80))
def test_no_text_raises_anything_else(text: str) -> None:
    with pytest.raises(SealError):
        OLD.open(text, "row")


def test_no_key_is_shown() -> None:
    assert "o" * 4 not in repr(OLD)
    assert OLD.keys[0].hex() not in OLD.seal(b"", "row")
