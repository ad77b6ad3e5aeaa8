from __future__ import annotations

import pytest

from auth.memo import TARGET_LENGTH_MAX, TARGETS_MAX, memoized


class Making:
    """A memoized function that counts its calls."""

    def __init__(self) -> None:
        self.count = 0
        self.recall = memoized(self.make)

    def make(self, method: bytes, target: bytes) -> bytes:
        self.count += 1
        if target == b"/bad":
            raise ValueError("bad")
        return method + target

    def times(self, target: bytes, *, asked: int = 2) -> int:
        """The number of calls for this many requests of one target."""
        before = self.count
        for _ in range(asked):
            assert self.recall(b"GET", target) == b"GET" + target
        return self.count - before


def test_what_is_asked_for_again_is_made_once() -> None:
    making = Making()
    assert making.times(b"/api") == 1
    assert making.times(b"/api?labelSelector=app%3Dweb") == 1
    assert making.recall(b"PUT", b"/api") == b"PUT/api"


def test_what_was_not_asked_for_lately_is_forgotten() -> None:
    making = Making()
    for number in range(TARGETS_MAX + 1):
        assert making.times(b"/%d" % number) == 1
    assert making.times(b"/%d" % TARGETS_MAX) == 0
    assert making.times(b"/0") == 1


@pytest.mark.parametrize(
    "name",
    [b"access_token", b"Access_Token", b"%61ccess_%74oken", b"access_t%4Fken", b"id-toke%6e", b"TOKEN"],
)
def test_what_may_have_a_credential_in_it_is_made_each_time(name: bytes) -> None:
    assert Making().times(b"/api?a=%20&" + name + b"=secret") == 2


def test_however_each_letter_of_it_is_spelled() -> None:
    escaped = b"".join(b"%%%02x" % letter for letter in b"access_token")
    assert Making().times(b"/api?" + escaped + b"=secret") == 2


def test_what_is_long_is_made_each_time() -> None:
    assert Making().times(b"/" + b"x" * (TARGET_LENGTH_MAX - 1)) == 1
    assert Making().times(b"/" + b"x" * TARGET_LENGTH_MAX) == 2


def test_what_it_raises_is_raised_each_time() -> None:
    making = Making()
    for _ in range(2):
        with pytest.raises(ValueError, match="bad") as caught:
            making.recall(b"GET", b"/bad")
        assert caught.value.__context__ is None
    assert making.count == 2
