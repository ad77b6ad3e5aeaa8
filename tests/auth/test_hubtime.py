from __future__ import annotations

import pytest

from auth.apikey import hash as hash_key
from auth.hubtime import hub_time, is_hub_time, seconds_of

PEPPER = b"p" * 32
NOW = 1_800_000_000.9


def test_the_time_is_read_back_to_the_second() -> None:
    assert seconds_of(hub_time(PEPPER, NOW)) == 1_800_000_000
    assert seconds_of(hub_time(PEPPER, 0)) == 0


def test_each_second_and_each_hub_has_another_text_that_is_no_stored_hash() -> None:
    told = hub_time(PEPPER, NOW)
    assert told == hub_time(PEPPER, NOW - 0.9)
    others = [hub_time(PEPPER, NOW + 1), hub_time(PEPPER, NOW - 1), hub_time(b"q" * 32, NOW)]
    macs = {text.partition(".")[2] for text in (told, *others)}
    assert len(macs) == 4
    assert hash_key("1800000000", PEPPER) not in macs


def test_a_text_is_the_hubs_for_its_own_second_alone() -> None:
    told = hub_time(PEPPER, NOW)
    assert is_hub_time(told, PEPPER, int(NOW))
    assert not is_hub_time(told, PEPPER, int(NOW) + 1)
    assert not is_hub_time(told, b"q" * 32, int(NOW))
    for text in ("", "1800000000", told[:-1], f"{int(NOW) + 1}{told[10:]}"):
        assert not is_hub_time(text, PEPPER, int(NOW))


MAC = "0" * 64


@pytest.mark.parametrize(
    "text", ["", "1800000000", "x.y", f"-1.{MAC}", f"1.{MAC[1:]}", f"1.{MAC}\n", f"{'9' * 12}.{MAC}"]
)
def test_what_is_no_such_text_has_no_time(text: str) -> None:
    assert seconds_of(text) is None
