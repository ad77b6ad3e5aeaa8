"""The same checks on inputs that coverage leads to: `python -m tests.fuzz.guided [ARG…]`.

The arguments are atheris' own (-runs=N, -max_len=N, a folder of inputs to begin with). The first byte of an
input chooses the check.
"""

from __future__ import annotations

import sys

import atheris

# Before anything else imports them: what was imported plainly is not measured.
_MESSAGE = [f"proxy.message.{name}" for name in ("strict", "head", "body")]
_CONNECTION = [f"proxy.exchange.http_{name}" for name in ("connection", "server", "client")]
with atheris.instrument_imports(include=["h11", *_MESSAGE, *_CONNECTION]):
    from proxy.message.strict import read_request_head
    from tests.fuzz.conversations import ASKED, check_answers, check_requests
    from tests.fuzz.differential import check_canonical, check_chunks, check_request, check_response
    from tests.fuzz.mutation import REQUESTS

_OTHER = read_request_head(REQUESTS[0])


def one_input(data: bytes) -> None:
    """Check one input."""
    kind, rest = data[:1], data[1:]
    if kind < b"\x60":
        check_request(rest, _OTHER)
    elif kind < b"\xa0":
        check_response(rest)
    elif kind < b"\xc0":
        check_canonical(rest)
    else:
        # As many sizes of pieces as the byte behind says.
        count = min(20, rest[0] % 32) if rest else 0
        sizes, wire = [size % 12 + 1 for size in rest[1 : 1 + count]], rest[1 + count :]
        if kind < b"\xd0":
            check_chunks(wire, sizes)
        elif kind < b"\xe8":
            check_requests(wire, sizes)
        else:
            check_answers([wire], sizes, list(ASKED)[kind[0] % len(ASKED)])


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
