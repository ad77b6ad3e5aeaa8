from __future__ import annotations

import ssl

from proxy.agent.local.errors import QUOTED_CHARACTERS_MAX, quoted, reason


def test_what_others_wrote_is_one_short_printable_line() -> None:
    assert quoted("bad\n\x1b[2J\u202e") == r"bad\n\x1b[2J\u202e"
    assert len(quoted("x" * 10_000)) == QUOTED_CHARACTERS_MAX


def test_a_reason_is_in_words_and_has_no_number_of_pythons() -> None:
    assert reason(ConnectionRefusedError(111, "Connection refused")) == "Connection refused"
    no_tls = ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)")
    no_tls.reason = "WRONG_VERSION_NUMBER"
    assert reason(no_tls) == "it does not speak TLS"
    cut = ssl.SSLEOFError(8, "[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in violation of protocol")
    cut.reason = "UNEXPECTED_EOF_WHILE_READING"
    assert reason(cut) == "the connection was cut"
    assert reason(OSError("Tunnel connection failed: 407")) == "Tunnel connection failed: 407"
    assert reason(EOFError()) == "EOFError"
