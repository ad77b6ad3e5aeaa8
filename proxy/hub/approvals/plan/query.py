"""The query of a call: its bound form, and the parameters that decide whether it can be bound. Pure."""

from __future__ import annotations

from typing import Final

from auth.requestinfo import RequestInfo, decode_value, raw_values
from proxy.hub.approvals.plan.refusal import CannotAskError
from proxy.message.rewrite import is_tail

# Decoding takes 1 µs a pair. Long commands of exec have one pair for each word, and few reach 100.
PAIRS_MAX: Final = 1000
# How long the API server may take. Clients set it from their own deadlines, so it may differ in a repeat.
_TIMEOUT: Final = "timeout"
# kube-apiserver compares without regard to case, and reads every other value as true, an empty one too.
_FALSE: Final = frozenset({"0", "false"})


def bound_query(info: RequestInfo) -> list[bytes]:
    """Return the raw pairs of a query as an approval binds them; raises CannotAskError.

    They are sorted by their decoded keys. Pairs with the same key keep their order, since the API server
    takes the first. On a proxy path's tail the query is one part: the backend may read it in any way.
    """
    if is_tail(info):
        return [info.query]
    pairs = info.query.split(b"&") if info.query else []
    if len(pairs) > PAIRS_MAX:
        reason = f"the query has {len(pairs)} parameters, and an approval is bound to {PAIRS_MAX} at most"
        raise CannotAskError(400, reason)
    keyed = [(_key(pair), pair) for pair in pairs]
    keyed.sort(key=_first)
    return [pair for key, pair in keyed if key != _TIMEOUT]


def may_be_true(query: bytes, name: str) -> bool:
    """Return whether any reader may take this parameter for true. The name must consist of letters."""
    values = map(decode_value, raw_values(query, name))
    return any(value is None or value.lower() not in _FALSE for value in values)


def may_be_set(query: bytes, name: str) -> bool:
    """Return whether this parameter has a value that is not empty. The name must consist of letters."""
    return any(value != b"" for value in raw_values(query, name))


def _key(pair: bytes) -> str:
    key, _, value = pair.partition(b"=")
    decoded = decode_value(key)
    # Go skips such a pair, older versions split it, and other readers take it as it is.
    if decoded is None or decode_value(value) is None:
        reason = (
            "the query has a ';' or a broken escape, which servers read differently: escape it as %3B or %25"
        )
        raise CannotAskError(400, reason)
    return decoded


def _first(keyed: tuple[str, bytes]) -> str:
    return keyed[0]
