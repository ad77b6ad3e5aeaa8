from __future__ import annotations

from proxy.agent.errors import QUOTED_CHARACTERS_MAX, quoted


def test_what_others_wrote_is_one_short_printable_line() -> None:
    assert quoted("bad\n\x1b[2J\u202e") == r"bad\n\x1b[2J\u202e"
    assert len(quoted("x" * 10_000)) == QUOTED_CHARACTERS_MAX
