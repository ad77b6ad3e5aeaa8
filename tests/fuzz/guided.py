"""The same checks on inputs that coverage leads to: `python -m tests.fuzz.guided [ARG…]`.

The arguments are atheris' own (-runs=N, -max_len=N, a folder of inputs to begin with). The first byte of an
input chooses the check.
"""

from __future__ import annotations

import sys

import atheris

# Before anything else imports them: what was imported plainly is not measured.
with atheris.instrument_imports(
    include=["proxy.message.strict", "proxy.message.head", "proxy.message.body", "h11"]
):
    from proxy.message.strict import read_request_head
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
        check_chunks(rest[1 + count :], [size % 12 + 1 for size in rest[1 : 1 + count]])


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
